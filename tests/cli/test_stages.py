"""Seeds in stages: a sweep adds them until all is settled or there are no more, and goes on wherever it was killed."""

import json
from pathlib import Path

import pytest

from attnlab.analysis import compare, load_study
from attnlab.training.run_directory import read_json

HERE = "hydra/launcher=basic"


def seeds_of(study):
    return {int(path.name.partition("=")[2]) for path in Path("runs", study).glob("*/seed=*")}


@pytest.mark.slow
def test_what_is_plain_stops_at_the_first_stage(attnlab, study):
    rates = {"factors": {"optimizer.lr": [0.00001, 0.03]}, "baseline": {"optimizer.lr": 0.00001}}
    study("plain", **rates, seeds=3, stop={"when": "settled", "at_most": 6})
    said = attnlab("sweep", "plain", HERE)
    assert said.status == 0, said.err
    print(said.out)
    assert "seeds in stages, 3, 6, until all is settled: at most 12 runs" in said.out
    assert "plain: look 1 of 2, at 2.5% of 5%, with 3 seeds: every comparison is settled" in said.out
    assert seeds_of("plain") == {0, 1, 2}
