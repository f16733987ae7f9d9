"""A run that is stopped anywhere and goes on has the same bits as one that was never stopped."""

import errno
import json
import os
import random
import re
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.processes import Started
from tiny_run import VOCABULARY, TinyTask, make_task, same_bits, train, weights

import attnlab
from attnlab.layers import HyperConnections, Rotary
from attnlab.models import GPT
from attnlab.tasks import (
    CausalLanguageModelling,
    ImageClassification,
    SequenceClassification,
    SpanExtraction,
    TokenClassification,
)
from attnlab.training import (
    CannotWrite,
    UnusableCheckpoint,
    adamw,
    checkpoints,
    find_resume,
    load_weights,
    muon,
    read_json,
    schedule_free,
)
from attnlab.training.checkpoints import draw_apart, random_state, set_random_state


class Stop(Exception):
    """Ends a training from outside, as a kill would, without a word to any callback."""


def stop_after(step: int):
    import lightning.pytorch as pl

    class Stopper(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step >= step:
                raise Stop

    return Stopper()


def curve(path: Path) -> dict[tuple[int, str], float]:
    """(step, metric) -> value, the last line of a step winning, as a reader takes it."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line["values"].items()}


@pytest.mark.parametrize("optimizer", [adamw, muon, schedule_free], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("stop", "every"), [(3, 0), (7, 0), (7, 1e9), (10, 0), (10, 1e9), (13, 0)])
def test_resumed_run_has_the_same_bits(tmp_path, optimizer, stop, every):
    """Every validation saves, at 5, 10, ...; with `every` 0 so does each step between, in mid-epoch."""
    straight, first, second = (make_task(optimizer) for _ in range(3))
    train(tmp_path / "straight", straight, checkpoint_every_seconds=every)
    with pytest.raises(Stop):
        train(tmp_path / "run", first, checkpoint_every_seconds=every, callbacks=(stop_after(stop),))
    resume = find_resume(tmp_path / "run")
    assert resume is not None
    train(tmp_path / "run", second, resume=resume, checkpoint_every_seconds=every)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")
    assert straight.tokens == second.tokens
    assert straight.best == second.best


def test_what_a_stack_draws_in_training_goes_on_with_the_same_bits(tmp_path):
    """Stochastic depth and positions."""

    def task():
        made = make_task()
        parts = {"position": Rotary, "residual": partial(HyperConnections, stochastic_depth=0.4)}
        made.model = GPT(VOCABULARY, 8, d_model=16, num_heads=2, num_layers=2, random_positions=40, **parts)
        return made

    straight, first, second = (task() for _ in range(3))
    train(tmp_path / "straight", straight, checkpoint_every_seconds=0)
    with pytest.raises(Stop):
        train(tmp_path / "run", first, checkpoint_every_seconds=0, callbacks=(stop_after(7),))
    train(tmp_path / "run", second, resume=find_resume(tmp_path / "run"), checkpoint_every_seconds=0)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


def test_resuming_with_accumulation_repeats_no_batch(tmp_path):
    straight, first, second = (make_task() for _ in range(3))
    settings = {"accumulate_grad_batches": 3, "max_steps": 11, "val_check_interval": 4, "checkpoint_every_seconds": 0}
    train(tmp_path / "straight", straight, **settings)
    with pytest.raises(Stop):
        train(tmp_path / "run", first, callbacks=(stop_after(6),), **settings)
    train(tmp_path / "run", second, resume=find_resume(tmp_path / "run"), **settings)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


def test_going_on_from_the_end_trains_nothing(tmp_path):
    first, second = make_task(), make_task()
    train(tmp_path, first)
    train(tmp_path, second, resume=find_resume(tmp_path))
    assert same_bits(weights(first), weights(second))
    assert second.tokens == first.tokens
    assert second.latest == first.latest


def test_a_kill_between_the_end_and_its_name_leaves_last_at_the_end(tmp_path):
    """The last checkpoint is written first, and `last.ckpt` made to name it then; a run that has nothing left to train saves no more."""
    train(tmp_path, make_task(), max_steps=6)
    link = tmp_path / "checkpoints" / "last.ckpt"
    link.unlink()
    link.symlink_to("step=5.ckpt")
    train(tmp_path, make_task(), max_steps=6, resume=find_resume(tmp_path))
    assert link.readlink() == Path("step=6.ckpt")


def test_checkpoint_holds_plain_tensors_and_primitives(tmp_path):
    train(tmp_path, make_task(muon))
    allowed = (torch.Tensor, str, int, float, bool, type(None))

    def visit(value):
        if isinstance(value, dict):
            assert type(value).__name__ in ("dict", "OrderedDict")
            for key, inside in value.items():
                assert isinstance(key, (str, int))
                visit(inside)
        elif isinstance(value, (list, tuple)):
            for inside in value:
                visit(inside)
        else:
            assert isinstance(value, allowed), type(value)

    for name in ("last.ckpt", "best.ckpt"):
        visit(torch.load(tmp_path / "checkpoints" / name, weights_only=True))


def test_best_is_the_best_validation_and_loads_for_evaluation(tmp_path):
    task = make_task(dropout=0.0)
    train(tmp_path, task, max_steps=30)
    values = {step: value for (step, name), value in curve(tmp_path).items() if name == "val/loss"}
    assert task.best == {"metric": "val/loss", "value": min(values.values()), "step": min(values, key=values.get)}
    assert read_json(tmp_path / "status.json")["best"] == task.best
    fresh = make_task()
    assert load_weights(fresh, tmp_path / "checkpoints" / "best.ckpt")["step"] == task.best["step"]
    assert same_bits(weights(fresh), weights(task))  # the last validation was the best here


@pytest.mark.parametrize(
    ("kind", "monitor", "best"),
    [
        (CausalLanguageModelling, "val/loss", 5),
        (SpanExtraction, "val/loss", 5),
        (SequenceClassification, "val/accuracy", 10),
        (ImageClassification, "val/accuracy", 10),
        (TokenClassification, "val/f1", 10),
    ],
)
def test_best_is_the_lowest_loss_or_the_highest_share(tmp_path, kind, monitor, best):
    reported = {5: 0.5, 10: 0.9, 15: 0.7}

    class Reports(TinyTask):
        monitor = kind.monitor

        def figures_of_sums(self, sums, tokens):
            return {"loss": 1.0, self.monitor.name: reported[self.global_step]}

    task = make_task(kind=Reports)
    train(tmp_path, task, max_steps=15)
    assert task.best == {"metric": monitor, "value": reported[best], "step": best}
    assert load_weights(make_task(), tmp_path / "checkpoints" / "best.ckpt")["step"] == best


def test_schedule_free_is_evaluated_and_saved_on_its_average(tmp_path):
    task = make_task(schedule_free, dropout=0.0)
    train(tmp_path, task)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    averaged = {name.removeprefix("model."): value for name, value in last["state_dict"].items()}
    trained = {name.removeprefix("model."): value for name, value in last["training_weights"].items()}
    assert not same_bits(averaged, trained)
    assert same_bits(averaged, weights(task))  # what a task holds after its training is what is evaluated


def test_validating_more_often_changes_no_bit(tmp_path):
    often, seldom = make_task(schedule_free), make_task(schedule_free)
    train(tmp_path / "often", often, val_check_interval=1)
    train(tmp_path / "seldom", seldom, val_check_interval=20)
    assert same_bits(weights(often), weights(seldom))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    assert find_resume(tmp_path) is None
    straight = make_task()
    train(tmp_path / "straight", straight)
    with pytest.raises(Stop):
        train(tmp_path / "run", make_task(), callbacks=(stop_after(17),))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt", "step=10.ckpt", "step=15.ckpt"]
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:1000])
    said: list[str] = []
    resume = find_resume(tmp_path / "run", say=said.append)
    assert resume == folder / "step=10.ckpt"
    assert len(said) == 1
    assert re.search(r"step=15\.ckpt is damaged: .*; going back to the one before", said[0])
    second = make_task()
    train(tmp_path / "run", second, resume=resume)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


def test_where_no_checkpoint_is_whole_a_run_begins_anew(tmp_path):
    train(tmp_path, make_task(), max_steps=5)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    said: list[str] = []
    assert find_resume(tmp_path, say=said.append) is None
    assert "no checkpoint is whole; the run begins anew" in said[-1]


def test_what_is_newer_than_the_training_goes_once_it_has_saved(tmp_path):
    """After damage a run trains the same steps again: what is left of the damaged ones is of no use."""
    train(tmp_path, make_task(), checkpoint_every_seconds=0)
    folder = tmp_path / "checkpoints"
    for step in (19, 20):
        (folder / f"step={step}.ckpt").write_bytes(b"damaged")
    train(tmp_path, make_task(), max_steps=6)
    assert sorted(path.name for path in folder.glob("step=*")) == ["step=5.ckpt", "step=6.ckpt"]


@pytest.mark.parametrize("budget", [0, 2, 4.5, 100])
def test_checkpoints_keep_within_their_budget_of_disk(tmp_path, budget):
    train(tmp_path / "one", make_task(), val_check_interval=0)  # without a best validation
    size = (tmp_path / "one" / "checkpoints" / "last.ckpt").stat().st_size
    train(
        tmp_path,
        make_task(),
        val_check_interval=0,
        checkpoint_every_seconds=0,
        checkpoint_budget_gb=budget * size / 1e9,
    )
    kept = sorted(int(path.stem.split("=")[1]) for path in (tmp_path / "checkpoints").glob("step=*"))
    assert kept == list(range(21 - min(20, max(2, int(budget))), 21))
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().name == "step=20.ckpt"


def test_a_folder_without_links_holds_the_last_as_a_copy(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    task = make_task()
    train(tmp_path, task)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert not last.is_symlink()
    assert load_weights(make_task(), last)["step"] == 20
    assert find_resume(tmp_path) == last


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(tmp_path):
    was = {"seed": 0, "optimizer.lr": 1e-2, "optimizer.betas": [0.9, 0.98], "schedule.warmup_steps": None}
    train(tmp_path, make_task(), max_steps=5, configuration=was)
    assert find_resume(tmp_path, was) is not None
    with pytest.raises(UnusableCheckpoint) as refused:
        find_resume(tmp_path, was | {"optimizer.lr": 2e-2, "optimizer.eps": 1e-8})
    assert "optimizer.eps: (absent) -> 1e-08\n  optimizer.lr: 0.01 -> 0.02" in str(refused.value)
    assert "study.name=NAME" in str(refused.value)


def test_a_checkpoint_of_other_versions_is_gone_on_from_with_a_line_that_says_so(tmp_path, monkeypatch):
    train(tmp_path, make_task(), max_steps=5)
    said: list[str] = []
    assert find_resume(tmp_path, say=said.append) is not None
    assert said == []
    monkeypatch.setattr(checkpoints, "versions", lambda: {"attnlab": "9.0", "torch": str(torch.__version__)})
    assert find_resume(tmp_path, say=said.append) is not None
    assert said == [
        f"the checkpoint was written by attnlab {attnlab.__version__}, now 9.0: from here on the last bits may differ"
    ]


@pytest.mark.parametrize("fails_at", [2, 3])
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint_to_go_on_from(tmp_path, monkeypatch, fails_at):
    straight, first, second = make_task(), make_task(), make_task()
    train(tmp_path / "straight", straight)
    given, count = checkpoints.os.fsync, [0]

    def fill_up(descriptor):
        if "ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            count[0] += 1
            if count[0] >= fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        given(descriptor)

    monkeypatch.setattr(checkpoints.os, "fsync", fill_up)
    with pytest.raises(CannotWrite, match=r"cannot write .*\.ckpt: the disk is full"):
        train(tmp_path / "run", first, checkpoint_every_seconds=0, val_check_interval=0)
    monkeypatch.undo()
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"
    resume = find_resume(tmp_path / "run")
    assert resume.name == f"step={fails_at - 1}.ckpt"
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    train(tmp_path / "run", second, resume=resume)
    assert same_bits(weights(straight), weights(second))


def test_weights_of_another_model_are_refused_in_one_sentence(tmp_path):
    train(tmp_path, make_task(), max_steps=5)
    other = TinyTask(torch.nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"last.ckpt is no checkpoint of this model: .* is \[.*\] there and \[.*\] here|is not there"
    ):
        load_weights(other, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="there is no such checkpoint"):
        load_weights(other, tmp_path / "nothing.ckpt")


def test_a_folder_that_cannot_be_written_ends_in_one_message(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(CannotWrite, match=r"cannot write .*step=1\.ckpt"):
        train(tmp_path, make_task(), checkpoint_every_seconds=0)
    assert read_json(tmp_path / "status.json")["state"] == "failed"


def run_process(path: Path, pace: float) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    task = make_task()
    given = task.loss_sums
    task.loss_sums = lambda batch: (time.sleep(pace), given(batch))[1]
    train(path, task, resume=find_resume(path), max_steps=100, checkpoint_every_seconds=0.05, val_check_interval=40)


@pytest.mark.slow
def test_a_process_that_is_asked_to_end_goes_on_to_the_same_bits(tmp_path):
    from attnlab.training import effective_state

    straight = make_task()
    train(tmp_path / "straight", straight, max_steps=100, val_check_interval=40)
    path = tmp_path / "run"
    process = Started(run_process, path, 0.02)
    deadline = time.monotonic() + 60
    while read_json(path / "status.json", {}).get("step", 0) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert effective_state(path) == "running"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert effective_state(path) == "interrupted"
    stopped_at = torch.load(find_resume(path), weights_only=True)["attnlab"]["step"]
    assert 0 < stopped_at < 100
    process = Started(run_process, path, 0.0)
    assert process.wait(60) == 0, process.said
    assert effective_state(path) == "finished"
    assert read_json(path / "status.json")["attempt"] == 2
    assert curve(path) == curve(tmp_path / "straight")
    fresh = make_task()
    load_weights(fresh, path / "checkpoints" / "last.ckpt")
    assert same_bits(weights(fresh), weights(straight))


def drawn(seed, rank):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    draw_apart(seed, rank)
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_ranks_and_seeds_draw_numbers_of_their_own_and_the_same_ones_again():
    found = [drawn(seed, rank) for seed in (0, 1) for rank in (0, 1, 2)]
    for kind in zip(*found, strict=True):
        assert len(set(map(str, kind))) == 6
    assert drawn(1, 2) == found[-1]


def test_the_first_rank_draws_what_a_rank_that_is_alone_draws():
    torch.manual_seed(4)
    expected = torch.rand(2)
    assert drawn(4, 0)[0] == expected.tolist()


def test_a_state_that_is_set_draws_the_same_numbers():
    state = random_state()
    one = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
    set_random_state(state)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == one
