"""T5's tasks from the command line: a text with spans taken out, and several tasks in one model."""

import json
import math
from pathlib import Path

import pytest

from attnlab.training.run_directory import read_json

SMALL = ["model=t5", "model.d_model=16", "model.num_heads=2", "model.num_layers=1", "trainer.threads=1", "progress=off"]
SMALL += ["tokenizer=character", "schedule.warmup_steps=0", "trainer.max_steps=3", "trainer.val_check_interval=2"]


def trained(attnlab, *words):
    """The final figures of a run of three steps, which an evaluation of its last weights gives again."""
    said = attnlab("train", *SMALL, *words, "run_dir=run")
    assert said.status == 0, said.err
    status = read_json(Path("run") / "status.json")
    assert (status["state"], status["step"]) == ("finished", 3)
    final = status["final"]
    assert all(map(math.isfinite, final.values()))
    again = attnlab("evaluate", "run")
    assert again.status == 0, again.err
    assert json.loads(again.out) == pytest.approx({name: value for name, value in final.items() if name[:4] == "test"})
    return final


def test_span_corruption(attnlab, library):
    own = ["task=span_corruption", "data=text_spans", f"data.path={library / 'text.txt'}"]
    final = trained(attnlab, *own, "data.context_length=24", "data.batch_size=4", "data.max_validation_tokens=480")
    assert {"val/loss", "test/loss", "test/accuracy"} <= set(final)
    assert 0 <= final["test/accuracy"] <= 1


@pytest.mark.slow
def test_several_tasks_in_one_model(attnlab, here, library):
    lines = [line.split("\t")[0] for line in (library / "pairs.tsv").read_text().splitlines()[:120]]
    (here / "size.tsv").write_text("".join(f"{line}\t{'short' if len(line) < 25 else 'long'}\n" for line in lines))
    files = {"german": library / "pairs.tsv", "dutch": here / "size.tsv"}
    own = [
        f"data.tasks.{name}.source={{_target_: attnlab.data.ParallelText, path: {path}, language_pair: text-text}}"
        for name, path in files.items()
    ]
    own += [
        "data.tasks.dutch.prefix=how long",
        "data.tasks.dutch.weight=400",
        "task.num_beams=1",
        "data.batch_tokens=800",
    ]
    final = trained(attnlab, "task=text_to_text", "data=text_to_text", *own)
    figures = {f"test/{figure}@{name}" for figure in ("exact", "bleu", "chrf") for name in files}
    assert {"val/loss", "test/loss", "val/exact", "test/exact", *figures} <= set(final)
    record = read_json(Path("run") / "run.json")
    assert record["data"]["tasks"]["dutch"]["an_epoch"] > record["data"]["tasks"]["dutch"]["examples"]
    outputs = (Path("run") / "outputs" / "test.outputs.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in outputs} == set(files)
