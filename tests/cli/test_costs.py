"""A study whose metric is a cost, from study.yaml to its page."""

import csv
import io
import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_study_is_swept_and_compared_on_steps_to_a_loss(attnlab, study):
    """The target lies between the first and the last validation of a run, so that it is reached in between."""
    claim = {"says": "soon", "metric": {"tokens_to": {"val/loss": 2.9}}, "below": 1e9}
    study("fast", metric={"steps_to": {"val/loss": 2.9}, "margin": 1}, claims=[claim], seeds=1)
    here = ("hydra/launcher=basic", "trainer.max_steps=30", "optimizer.lr=0.01")
    said = attnlab("sweep", "fast", *here)
    assert said.status == 0, said.err
    plan = json.loads(Path("runs/fast/plan.json").read_text())
    assert plan["metric"] == {"name": "steps to val/loss 2.9", "better": "lower", "margin": 1}
    assert plan["claims"][0]["metric"] == "tokens to val/loss 2.9"
    assert "steps to val/loss 2.9, lower is better: median" in attnlab("compare", "fast").out
    for row in csv.DictReader(io.StringIO(attnlab("compare", "fast", "--runs", "--format", "csv").out)):
        lines = map(json.loads, Path(row["directory"], "metrics.jsonl").read_text().splitlines())
        curve = [(line["step"], line["values"]["val/loss"]) for line in lines if "val/loss" in line["values"]]
        at = next(i for i, (_, loss) in enumerate(curve) if loss <= 2.9)
        (before, above), (after, below) = curve[at - 1 : at + 1]
        expected = before + (after - before) * (above - 2.9) / (above - below)
        assert float(row["steps to val/loss 2.9"]) == pytest.approx(expected)
    other = attnlab("compare", "fast", "--metric", "flops_to val/loss 0.1")
    assert "None of the 2 runs that ended reached val/loss 0.1" in " ".join(other.out.split())
    refused = attnlab("compare", "fast", "--metric", "steps_to test/loss@1x 2")
    assert refused.status == 2
    assert "must name a metric of the validations during training" in refused.err
