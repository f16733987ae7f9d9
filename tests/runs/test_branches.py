"""Runs that branch off another one's checkpoint have the bits of those that make all of their steps themselves."""

import json
from pathlib import Path

import pytest
import torch

from attnlab.training import read_checkpoint
from attnlab.training.run_directory import read_json

WSD = ["schedule=wsd", "schedule.warmup_steps=2", "model.dropout=0.1", "averaging=ema", "trainer.log_every_n_steps=1"]
SECONDS = ("seconds", "attempt")


def length(steps: int) -> str:
    return f"trainer.max_steps={steps}"


@pytest.fixture
def train(attnlab, here, tiny):
    """Trains one run in a directory, with schedule=wsd."""

    def run(directory: str, *words: str) -> str:
        said = attnlab("train", *tiny, *WSD, f"run_dir={directory}", "progress=plain", *words)
        assert said.status == 0, said.err
        return said.err

    return run


def lines(directory: str) -> list[dict]:
    """The log by step, of each value the last one written."""
    found: dict[int, dict] = {}
    for raw in Path(directory, "metrics.jsonl").read_text().splitlines():
        line = json.loads(raw)
        found.setdefault(line["step"], {"tokens": line["tokens"]}).update(line["values"])
    return [{"step": step, **found[step]} for step in sorted(found)]


def state(directory: str, name: str = "last") -> dict:
    return read_checkpoint(Path(directory, "checkpoints", f"{name}.ckpt"))


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def assert_alike(one: str, other: str) -> None:
    """Final figures, every line of the logs, and all that a checkpoint holds of the training."""
    first, second = (read_json(Path(run, "status.json")) for run in (one, other))
    for key in ("state", "step", "tokens", "final", "best", "latest"):
        assert first[key] == second[key], key
    assert lines(one) == lines(other)
    for name in ("last", "best"):
        first, second = state(one, name), state(other, name)
        assert {**first["attnlab"], "seconds": 0} == {**second["attnlab"], "seconds": 0}
        for key in ("state_dict", "averaging", "training_weights", "optimizer_states", "random"):
            assert same(first.get(key), second.get(key)), (name, key)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_branch_has_the_bits_of_the_run_that_was_trained_alone(train, optimizer):
    """Steps 8 and 10 of lengths 10 and 12 are the first ones that cool down; there is a validation at 10 and none at 9."""
    words = [f"optimizer={optimizer}", "schedule.decay_steps=3"]
    train("trunk", *words, length(20), "trainer.keep_checkpoints=[8,10]")
    assert {path.name for path in Path("trunk/checkpoints/kept").iterdir()} == {
        *("step=8.ckpt", "step=10.ckpt", "best-at=8.ckpt", "best-at=10.ckpt")
    }
    for steps, step in ((10, 8), (12, 10)):
        said = train(f"branch{steps}", *words, length(steps), "trainer.branch_from=trunk")
        assert f"going on from trunk/checkpoints/kept/step={step}.ckpt" in said
        train(f"alone{steps}", *words, length(steps))
        assert_alike(f"branch{steps}", f"alone{steps}")
    assert state("branch10")["attnlab"]["step"] == 10


def test_a_branch_and_a_trunk_that_are_stopped_go_on_to_the_same_bits(train, monkeypatch):
    """The trunk dies between its checkpoint and the one that it keeps of it, the branch before its first one."""
    from attnlab.training import branching, checkpoints

    words = ["schedule.decay_steps=3"]

    def dies(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(branching, "_second_name", dies)
        with pytest.raises(AssertionError):
            train("trunk", *words, length(20), "trainer.keep_checkpoints=[8]")
    assert not Path("trunk/checkpoints/kept/step=8.ckpt").exists()
    train("trunk", *words, length(20), "trainer.keep_checkpoints=[8]")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_checkpoint", dies)
        with pytest.raises(AssertionError):
            train("branch", *words, length(10), "trainer.branch_from=trunk")
    assert "going on from trunk" in train("branch", *words, length(10), "trainer.branch_from=trunk")
    train("alone", *words, length(10))
    assert_alike("branch", "alone")


def test_what_shares_no_kept_step_trains_all_of_its_own(train):
    """By default ten steps warm up in one and twenty in two: the schedules differ from the start."""
    warm = "schedule.warmup_steps=null"
    train("trunk", warm, length(20), "trainer.keep_checkpoints=[5]")
    said = train("branch", warm, length(10), "trainer.branch_from=trunk")
    assert "has kept no checkpoint that a run of 10 steps shares with it, so that all steps are made here" in said
    train("alone", warm, length(10))
    assert_alike("branch", "alone")


def test_another_trunk_is_refused_with_the_difference(train, attnlab, tiny):
    train("trunk", length(20), "trainer.keep_checkpoints=[5]")
    words = ["train", *tiny, *WSD, "run_dir=branch", length(10)]
    said = attnlab(*words, "trainer.branch_from=trunk", "optimizer.lr=0.5")
    assert said.status == 1
    assert "a branch may differ from its trunk in trainer.max_steps alone" in said.err
    assert "optimizer.lr: 0.001 -> 0.5" in said.err
    said = attnlab(*words, "run_dir=other", "trainer.branch_from=nowhere")
    assert said.status == 2
    assert "nowhere: there is no run" in said.err
