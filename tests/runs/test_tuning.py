"""The range test of the learning rate and the sizes of batches: the run's own first steps, and nothing is left of them."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import polars
import pytest
from lightning.pytorch.tuner.lr_finder import _LRFinder

from attnlab.config.compose import ConfigSpace
from attnlab.runs import tuning
from attnlab.runs.tuning import Memory, RangeTest, batch_sizes
from attnlab.training.callbacks import OutOfMemory

MODELS = {
    "gpt": ["trainer.accumulate_grad_batches=2", "schedule=inverse_sqrt", "optimizer=torch", "optimizer.name=SGD"],
    "bert": ["optimizer=muon", "averaging=ema"],
    "encoder_decoder": ["optimizer=adafactor", "callbacks=[early_stopping]"],
    "vit": ["optimizer=schedule_free", "schedule=constant", "model.patch_size=4", "trainer.lightning.min_steps=50"],
}
REFUSED = {
    "lr-range --from 0.1 --to-rate 0.1": "--to-rate must be above --from=0.1, got 0.1",
    "lr-range --from 0": "--from must be above 0, got 0.0",
    "lr-range --steps 9": "--steps must be at least 10, got 9",
    "lr-range schedule=noam": "schedule=noam sets the learning rate itself",
    "lr-range --config-dir own optimizer=mine": "optimizer=mine has no field lr",
    "lr-range optimizer=torch optimizer.name=LBFGS": "evaluates the loss several times a step",
    "lr-range hydra/launcher=joblib": "leave out what is Hydra's",
    "lr-range trainer.device=mps": "trainer.device must be one that this machine has",
    "batch-size --most 2": "--most must be at least data.batch_size=4, from which on sizes are tried, got 2",
    "batch-size --most-gb 0": "--most-gb must be above 0, got 0.0",
    "batch-size --most-gb 0.001": "data.batch_size=4: ",
}


def test_smoothing_suggestion_and_end_are_those_of_the_libraries():
    """A loss that falls around a rate of 0.01 and grows from 0.3 on, with noise."""
    rates = np.geomspace(1e-6, 1, 100)
    losses = 4 - 2 / (1 + (0.01 / rates) ** 1.5) + 40 * np.maximum(0, rates - 0.3) ** 2
    losses += np.random.default_rng(0).normal(0, 0.02, 100)
    found = RangeTest()
    ends = []
    for rate, loss in zip(rates.tolist(), losses.tolist(), strict=True):
        found.add(rate, loss)
        ends.append(found.is_over)
    np.testing.assert_allclose(found.smoothed, polars.Series(losses).ewm_mean(alpha=0.02, adjust=True), rtol=1e-12)
    assert not any(ends)
    theirs = _LRFinder("exponential", 1e-6, 1.0, 100)
    theirs.results = {"lr": np.log(rates).tolist(), "loss": found.smoothed}  # a slope by the logarithm
    assert found.suggestion() == pytest.approx(np.exp(theirs.suggestion()), rel=1e-12)
    assert 1e-3 < found.suggestion() < 0.3
    while not found.is_over:
        found.add(1.0, 100.0)
    assert found.smoothed[-1] > 4 * min(found.smoothed) >= found.smoothed[-2]
    rising = RangeTest()
    for step in range(20):
        rising.add(0.1 + step, 1.0 + step)
    assert rising.suggestion() is None


def test_the_first_steps_are_those_of_the_run(attnlab, here, tiny, left):
    """Until the second update, which is the first with a rate of its own, the losses are the run's own bits."""
    words = [*tiny, "optimizer.lr=0.001", "schedule=constant", "schedule.warmup_steps=0", "model.dropout=0.1", "seed=3"]
    more = ["trainer.max_steps=4", "trainer.log_every_n_steps=1", "run_dir=run"]
    assert attnlab("train", *words, *more).status == 0
    lines = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    own = [line["values"]["train/loss"] for line in lines if "train/loss" in line["values"]]
    before = left(here)
    said = attnlab("lr-range", *words, "--from", "1e-3", "--to-rate", "100", "--steps", "40", "--to", "found")
    assert said.status == 0
    assert sorted({*left(here)} - {*before}) == ["found", *(f"found/lr-range.{kind}" for kind in ("csv", "pdf", "png"))]
    rows = list(csv.DictReader((here / "found/lr-range.csv").read_text().splitlines()))
    rates, losses = ([float(row[name]) for row in rows] for name in ("learning rate", "loss"))
    np.testing.assert_allclose(rates, np.geomspace(1e-3, 100, 40)[: len(rates)], rtol=1e-12)
    assert losses[:2] == own[:2]
    assert losses[2] != own[2]
    assert len(rates) == 40 or f"the loss diverged in step {len(rates)} of 40" in said.out
    *_, last = said.out.splitlines()
    assert re.fullmatch(r"it falls fastest at optimizer\.lr=[\d.e+-]+", last)
    assert len(said.out.splitlines()) <= 25


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_any_model_and_optimizer(attnlab, here, tiny, own_data, left, model):
    small = [word for word in tiny if word.startswith(("model.", "trainer."))]
    with ConfigSpace() as space:
        data = own_data(space, space.compose([f"model={model}"]))
    words = [f"model={model}", *data, *small, *MODELS[model], "progress=off"]
    said = attnlab("lr-range", *words, "--steps", "12")
    assert "learning rate" in said.out, said.err
    assert len(said.out.split("\n\n")[0].splitlines()) == 13 or "diverged" in said.out
    assert said.status == 0 or "falls nowhere" in said.err
    assert not left(here)


@pytest.mark.parametrize("given", REFUSED)
def test_a_mistake_is_one_line(attnlab, here, tiny, given):
    (here / "own/optimizer").mkdir(parents=True)
    (here / "own/optimizer/mine.yaml").write_text("_target_: own_sgd.fixed\n_partial_: true\n")
    (here / "own_sgd.py").write_text(
        "import torch\n\n\ndef fixed(model):\n    return torch.optim.SGD(model.parameters())\n"
    )
    command, *words = given.split()
    said = attnlab(command, *tiny, *words)
    assert said.status == (1 if given.endswith("0.001") else 2), said.err
    assert REFUSED[given] in said.err
    assert len(said.err.splitlines()) == 1
    assert not (here / "runs").exists()


def test_sizes_double_and_leave_nothing(attnlab, here, tiny, left, monkeypatch):
    monkeypatch.setattr(tuning.Throughput, "__init__", lambda self, seconds: tuning.Pace.__init__(self, 0.05))
    said = attnlab("batch-size", *tiny, "--most", "9", "trainer.max_steps=1", "schedule=noam")
    assert said.status == 0, said.err
    rows = [line.split() for line in said.out.splitlines()[1:3]]
    assert [row[0] for row in rows] == ["4", "8"]
    for size, memory, milliseconds, pace in rows:
        assert float(memory) > 0.1
        assert float(pace.replace(",", "")) == pytest.approx(int(size) * 16 / float(milliseconds) * 1000, rel=0.05)
    assert "largest that fits: data.batch_size=8\n" in said.out
    assert re.search(r"^fastest: data\.batch_size=[48]$", said.out, re.MULTILINE)
    assert not left(here)


@pytest.mark.parametrize("ends", ["limit", "expected", "out of memory", "data"])
def test_sizes_end_where_memory_does_and_none_is_tried_that_would_need_more(here, tiny, monkeypatch, ends):
    """By a process that takes 100 bytes, a model of 50, and 10 a row, in a machine that has 1,000."""
    now, tried = [0], []

    class Fake:
        def __init__(self, composed, parts, directory, watcher):
            self.size, self.watcher = composed.get("data.batch_size"), watcher

        def go(self):
            tried.append(self.size)
            now[0] = 150 + 10 * self.size
            if ends == "out of memory" and self.size == 16:
                raise OutOfMemory
            self.watcher.steps, self.watcher.first, self.watcher.last = 3, 1.0, 1.0 + self.size
            self.watcher.tokens_before, self.watcher.tokens = 0, 160

    monkeypatch.setattr(tuning, "Short", Fake)
    monkeypatch.setattr(Memory, "now", lambda self: 100.0)
    monkeypatch.setattr(Memory, "most", lambda self: float(now[0]))
    monkeypatch.setattr(Memory, "there", lambda self: 1e9 if ends == "data" else 1000.0)
    with ConfigSpace() as space:
        composed = space.compose(tiny)
    found = list(batch_sizes(composed, 300.0 if ends == "limit" else None))
    fits = [one.size for one in found if one.fits]
    if ends == "data":
        assert (tried, 16 * tried[-1] <= 30_000 < 32 * tried[-1]) == (fits, True)
        return
    expected = {"limit": [4, 8], "expected": [4, 8, 16, 32, 64], "out of memory": [4, 8]}[ends]
    assert fits == expected
    assert tried == (expected if ends == "expected" else [*expected, 16])
    last = {
        "limit": (310.0, ""),
        "expected": (1430.0, "expected, not tried"),
        "out of memory": (310.0, "out of memory"),
    }
    assert (found[-1].bytes, found[-1].why, found[-1].fits) == (*last[ends], False)
    assert (found[1].bytes, found[1].step, found[1].pace) == (230.0, 4.0, 20.0)


def test_the_memory_of_a_process_is_seen_and_forgotten():
    memory = Memory("cpu")
    memory.reset()
    held = np.ones(1 << 24)  # 128 MiB
    before = memory.now()
    assert memory.most() >= before >= held.nbytes
    del held
    assert memory.most() >= before - 1e6
    memory.reset()
    assert memory.most() < before - 1e8
    assert memory.there() > 1e8
