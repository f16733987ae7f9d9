"""The debug presets: each does what it says, runs anew each time, and stands apart from what is compared."""

import json

import pytest

from attnlab.training import read_json


def ran(here):
    [path] = (here / "runs/debug").glob("*/seed=0")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return path, read_json(path / "status.json"), lines


@pytest.fixture
def words(tiny):
    return [word for word in tiny if not word.startswith(("trainer.max_steps", "trainer.val_check"))]


def test_fast_runs_every_loop_once_and_again_when_asked_again(attnlab, here, words):
    for _ in range(2):
        said = attnlab("train", *words, "debug=fast", "callbacks=[lr_monitor]")
        assert said.status == 0
        assert "debug=fast: every loop ran once; these figures are of one batch each" in said.err
        path, status, lines = ran(here)
        assert (status["state"], status["step"], status["attempt"]) == ("finished", 1, 1)
        assert [line["step"] for line in lines if "train/loss" in line["values"]] == [1]
        assert status["final"].keys() >= {"val/loss", "test/loss"}
        assert (path / "checkpoints/step=1.ckpt").is_file()
        assert (path / "outputs/samples.json").is_file()
    refused = attnlab("train", *words, "debug=fast", "study.name=mine")
    assert refused.status == 2
    assert "study.name must be debug, got 'mine', beside debug=fast" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "said"), [(0.02, "the batch is known: its loss fell from"), (1e-6, "the batch is NOT known")]
)
def test_overfit_says_whether_one_batch_was_learned(attnlab, here, words, rate, said):
    given = ["debug=overfit", f"optimizer.lr={rate}", "schedule=constant", "trainer.max_steps=60"]
    answered = attnlab("train", *words, *given)
    assert f"debug=overfit: {said}" in answered.err
    assert (answered.status, len(answered.err.splitlines())) == (int(rate < 0.01), 1)
    _, status, lines = ran(here)
    losses = [line["values"]["train/loss"] for line in lines if "train/loss" in line["values"]]
    assert (status["step"] < 60, status["state"]) == ((True, "finished") if rate > 0.01 else (False, "failed"))
    assert (losses[-1] < 0.5 * losses[0]) == (rate > 0.01)


@pytest.mark.slow
def test_profile_leaves_a_table_and_a_trace(attnlab, here, words):
    said = attnlab("train", *words, "debug=profile")
    assert said.status == 0
    path, status, _ = ran(here)
    named = [line.split("debug=profile: ")[1] for line in said.err.splitlines() if "debug=profile: " in line]
    assert named
    table, trace = (next(here / name for name in named if name.endswith(end)) for end in (".txt", ".json"))
    assert "aten::" in table.read_text()
    assert any("aten::" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])
    assert status["step"] == 12
    assert table.parent == path
