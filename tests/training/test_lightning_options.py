"""Lightning's own callbacks beside attnlab's: they see what is reported, end a training, and are gone on with exactly."""

import inspect
import math
import re
from typing import get_type_hints

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from test_checkpoints import Stop, curve, stop_after
from tiny_run import make_task, same_bits, train, weights

from attnlab.training import LastCheckpoints, TrainerSettings, find_resume
from attnlab.training.lightning_options import GIVEN_HERE, refused_callback, why_stopped
from attnlab.training.trainer import Passed


def watching(patience: int) -> EarlyStopping:
    """Nothing is better by so much after the first validation."""
    return EarlyStopping("val/loss", min_delta=9.0, patience=patience)


@pytest.mark.parametrize("stop", [7, 12, 15])
def test_patience_is_gone_on_with_across_a_resume(tmp_path, stop):
    """Validations at 5, 10, 15, 20: the third one that is no better is at 20, wherever a kill comes between."""
    straight, second = make_task(), make_task()
    train(tmp_path / "straight", straight, callbacks=(watching(3),), max_steps=40)
    assert straight.global_step == 20
    with pytest.raises(Stop):
        train(tmp_path / "run", make_task(), callbacks=(watching(3), stop_after(stop)), max_steps=40)
    resumed = watching(3)
    train(tmp_path / "run", second, callbacks=(resumed,), max_steps=40, resume=find_resume(tmp_path / "run"))
    assert (second.global_step, resumed.wait_count) == (20, 3)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")
    assert why_stopped([resumed]).startswith("Monitored metric val/loss did not improve in the last 3 records")


def test_a_training_that_a_callback_ended_does_not_go_on(tmp_path):
    """As where the kill came between the end of the training and that of the evaluation."""
    first, second = make_task(), make_task()
    train(tmp_path, first, callbacks=(watching(1),), max_steps=40)
    train(tmp_path, second, callbacks=(watching(1),), max_steps=40, resume=find_resume(tmp_path))
    assert first.global_step == second.global_step == 10
    assert same_bits(weights(first), weights(second))


def test_a_callback_sees_what_is_reported_to_the_bit(tmp_path):
    callback = EarlyStopping("val/loss", patience=9)
    task = make_task()
    train(tmp_path, task, callbacks=(callback,))
    values = [value for (_, name), value in curve(tmp_path).items() if name == "val/loss"]
    assert callback.best_score.item() == min(values)
    assert task.trainer.callback_metrics["train/loss"].item() == task.latest["train/loss"]


def test_a_metric_that_is_not_there_ends_the_training_and_names_those_that_are(tmp_path):
    with pytest.raises(RuntimeError, match=r"val/bleu.*which is not available.*val/loss"):
        train(tmp_path, make_task(), callbacks=(EarlyStopping("val/bleu"),))


def test_the_rates_that_are_monitored_are_those_of_the_steps(tmp_path):
    """attnlab reports the rate of each step itself, from the schedule; this one is read from the optimizer."""
    train(tmp_path, make_task(), callbacks=(LearningRateMonitor("step"),), log_every_n_steps=1)
    values = curve(tmp_path)
    seen = {step: value for (step, name), value in values.items() if name == "lr-AdamW/pg1"}
    assert [*seen] == [*range(1, 21)]
    assert seen == {step: values[step, "train/lr"] for step in seen}
    assert len(set(seen.values())) > 10


def test_a_timer_ends_a_training_with_a_validation(tmp_path):
    task, timer = make_task(), Timer(duration={"seconds": 0.0})
    train(tmp_path / "none", task, callbacks=(timer,))
    assert task.global_step == 0
    task, timer = make_task(), Timer(duration={"seconds": 0.2})
    train(tmp_path / "some", task, callbacks=(timer,), max_steps=100_000, val_check_interval=90_000)
    assert 0 < task.global_step < 90_000
    assert math.isfinite(curve(tmp_path / "some")[task.global_step, "val/loss"])
    assert why_stopped([timer]).startswith("the time limit of a timer was reached after 0 s")


@pytest.mark.parametrize(
    ("kind", "said"), [(ModelCheckpoint, "trainer.checkpoint_budget_gb"), (StochasticWeightAveraging, "averaging=ema")]
)
def test_what_attnlab_does_itself_is_refused(kind, said):
    assert said in refused_callback(type("Own", (kind,), {}))
    assert refused_callback(EarlyStopping) is None


# --- arguments of the Trainer


def test_every_argument_of_the_trainer_is_passed_or_has_a_field_of_attnlabs_own():
    """A new version of Lightning has to be decided about; a field that is named has to be there."""
    arguments = inspect.signature(pl.Trainer).parameters.keys()
    passed = get_type_hints(Passed).keys()
    assert sorted([*passed, *GIVEN_HERE]) == sorted(arguments)
    named = {name for reason in GIVEN_HERE.values() for name in re.findall(r"trainer\.(\w+)", reason)}
    assert named - {"lightning"} <= inspect.signature(TrainerSettings).parameters.keys()


def test_what_is_passed_acts(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_validation_batch_end(self, trainer, *rest):
            seen.append((trainer.global_step, trainer.sanity_checking, torch.is_anomaly_enabled()))

    lightning = {"limit_val_batches": 1, "num_sanity_val_steps": 2, "detect_anomaly": True}
    train(tmp_path / "passed", passed := make_task(), callbacks=(Look(),), lightning=lightning)
    assert seen == [(0, True, False), *((step, False, True) for step in (5, 10, 15, 20))]
    train(tmp_path / "plain", plain := make_task())
    assert same_bits(weights(passed), weights(plain))  # what only looks changes no weight
    lines = curve(tmp_path / "passed"), curve(tmp_path / "plain")
    assert lines[0].keys() == lines[1].keys()  # a check before the training leaves no line
    assert passed.best["value"] != plain.best["value"]


def test_no_stop_comes_before_the_least_number_of_steps(tmp_path):
    train(tmp_path, task := make_task(), callbacks=(watching(1),), max_steps=40, lightning={"min_steps": 17})
    assert 17 <= task.global_step < 40


def test_a_sanity_check_is_nothing_that_weights_are_averaged_of(tmp_path):
    found = []
    for name, lightning in (("plain", {}), ("checked", {"num_sanity_val_steps": 1})):
        task = make_task()
        task.optimization.averaging = LastCheckpoints(9)
        train(tmp_path / name, task, lightning=lightning)
        found.append(weights(task))
    assert same_bits(*found)
