"""What a run leaves to look at: its log, samples, and its heads on one short example."""

import json
from pathlib import Path

import torch
from PIL import Image

from attnlab.cli.examples import MOST_POSITIONS, Examples, examples_of, first_example, leave_examples
from attnlab.training import Picture, Table


def test_the_example_is_one_and_short_where_nothing_points_into_it():
    batch = {"tokens": torch.arange(400).view(4, 100), "is_token": torch.ones(4, 100, dtype=torch.bool)}
    batch |= {"images": torch.zeros(4, 3, 80, 80), "shares": torch.zeros(4, 90), "labels": torch.arange(4)}
    one = first_example({**batch, "name": "a name"})
    assert one["tokens"].tolist() == [list(range(MOST_POSITIONS))]
    assert one["is_token"].shape == (1, MOST_POSITIONS)
    assert (one["images"].shape, one["shares"].shape, one["labels"].tolist()) == ((1, 3, 80, 80), (1, 90), [0])
    assert one["name"] == "a name"
    assert first_example({**batch, "answers": torch.tensor([[98, 99]] * 4)})["tokens"].shape == (1, 100)


def test_a_run_leaves_its_log_samples_and_heads(attnlab, tiny):
    assert attnlab("train", *tiny, "run_dir=run", "progress=off").status == 0
    log = Path("run/log.txt").read_text()
    assert "plan: " in log
    assert "val/nats" in log.splitlines()[-1] or "test/" in log
    left = json.loads(Path("run/outputs/samples.json").read_text())
    assert left["columns"] == ["text", "goes on", "model goes on"]
    assert all(len(row) == 3 for row in left["rows"])
    assert "columns: heads" in left["attention"]
    assert Image.open("run/outputs/attention.png").mode == "L"


def test_a_run_that_fails_leaves_the_traceback(attnlab, tiny, monkeypatch):
    def fail(*_):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("attnlab.cli.training_run.find_resume", fail)
    assert attnlab("train", *tiny, "run_dir=run").status == 1
    log = Path("run/log.txt").read_text()
    assert "Traceback" in log
    assert log.rstrip().endswith("RuntimeError: the disk caught fire")


def test_what_cannot_be_shown_is_told_and_harms_nothing(tmp_path):
    told = []
    assert examples_of(None, None, told.append) == Examples("test")
    assert len(told) == 2
    assert all(line.startswith("nothing to show: AttributeError") for line in told)
    leave_examples(Examples("test"), tmp_path, told.append)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "outputs").write_text("a file")
    table, picture = Table(("a",), [("b",)]), Picture(torch.zeros(2, 2, dtype=torch.uint8).numpy())
    leave_examples(Examples("test", table, picture), tmp_path, told.append)
    assert told[-1].startswith("cannot write ")
