"""A trial of a run measures what the run takes, by its parts, and leaves nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from attnlab.config.compose import ConfigSpace
from attnlab.data import Ramps
from attnlab.runs import trial
from attnlab.runs.build import prepare_data
from attnlab.runs.trial import Part, measure
from attnlab.tasks import CausalLanguageModelling


def test_a_trial_has_steps_of_full_size_alone(tiny, here):
    with ConfigSpace() as space:
        composed = space.compose([*tiny, "batch_ramp=linear", "length_ramp=linear"])
    with trial.alone(composed) as (_, parts, _):
        assert parts.data.ramps == Ramps()
        assert next(iter(parts.data.train_dataloader()))["tokens"].shape == (4, 16)
    assert prepare_data([composed.resolved]).popitem()[1].ramps.steps == 200


class Examples:
    """A task that takes ten seconds of a clock of its own for each batch of an evaluation."""

    def __init__(self):
        self.now = 0.0

    def _each(self, loader):
        for batch in loader:
            self.now += 10
            yield batch

    def score_sums(self, loader):
        return {"loss": float(sum(map(len, self._each(loader))))}, 1

    def predictions(self, loader, predict):
        return {i: predict(batch) for batch in self._each(loader) for i in batch["ids"].tolist()}


class Ids(list):
    tolist = list.copy


def test_of_a_long_evaluation_the_first_part_stands_for_all(monkeypatch):
    task = Examples()
    monkeypatch.setattr(trial, "CLOCK", lambda: task.now)
    part = Part(task, 25.0)
    assert task.score_sums([[0]] * 12) == ({"loss": 3.0}, 1)
    assert part.more == 90
    batches = [{"ids": Ids([3 * n, 3 * n + 1])} for n in range(6)]
    assert task.predictions(batches, lambda batch: "x") == dict.fromkeys((0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16), "x")
    assert part.restore() == 90 + 30
    assert task.score_sums([[0]] * 12) == ({"loss": 12.0}, 1)
    part = Part(task, 1000.0)
    assert task.score_sums([[0]] * 12) == ({"loss": 12.0}, 1)
    assert part.restore() == 0


@pytest.mark.parametrize("parts", [1, 3])
def test_a_run_whose_every_batch_takes_a_second(here, tiny, monkeypatch, parts):
    """By a clock that nothing else moves."""
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    now, loss_sums = [0.0], CausalLanguageModelling.loss_sums

    def second(self, batch):
        now[0] += 1
        return loss_sums(self, batch)

    monkeypatch.setattr(trial, "CLOCK", lambda: now[0])
    monkeypatch.setattr(CausalLanguageModelling, "loss_sums", second)
    with ConfigSpace() as space:
        composed = space.compose(
            [*tiny, f"trainer.accumulate_grad_batches={parts}", "trainer.devices=2", "logger=wandb"]
        )
    [data] = prepare_data([composed.resolved]).values()
    before = sorted(here.iterdir())
    cost = measure(composed, step_seconds=4.0, part_seconds=2.0)
    assert sorted(here.iterdir()) == before
    assert cost.step == parts
    assert cost.start == 1  # the batch on which operations are counted
    assert cost.validation == len(data.val_dataloader())
    whole = measure(composed, step_seconds=1.0, part_seconds=1e9)
    assert (whole.start, whole.validation, whole.end) == (cost.start, cost.validation, cost.end)
    assert cost.end >= 4
    assert cost.of(10, 2) == cost.start + 10 * cost.step + 2 * cost.validation + cost.end
    assert not Path("runs").exists()


def test_examples_whose_predictions_have_lengths_of_their_own_may_be_left_out(here, library):
    words = ["model=bert", "task=token_classification", "data=conll", f"data.path={library / 'tagged'}"]
    words += ["data.batch_tokens=200", "model.d_model=16", "model.num_heads=2", "model.num_layers=1"]
    with ConfigSpace([]) as space:
        composed = space.compose([*words, "trainer.max_steps=30", "trainer.threads=1", "progress=off"])
        prepare_data([composed.resolved])
        cost = measure(composed, step_seconds=0.0, part_seconds=0.0)
    assert cost.step >= 0
    assert cost.end > 0
