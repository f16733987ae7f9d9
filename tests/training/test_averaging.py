"""Averaged weights: against their definitions, and that a training, its validations and its checkpoints use them where they should."""

import io
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoints import Stop, curve, stop_after
from tiny_run import Stream, TinyModel, make_task, same_bits, train, weights
from torch import nn

from attnlab.training import EMA, Averaging, LastCheckpoints, Optimization, find_resume, load_weights

CHOICES = {
    "none": Averaging,
    "ema": partial(EMA, decay=0.8),
    "last_checkpoints": partial(LastCheckpoints, count=2),
}


class Tied(nn.Module):
    """A tied output, a frozen weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("seen", torch.zeros(()))


def moved(model, seed):
    """Gives every trained parameter a new value, and counts it in the buffer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.seen += 1
    return [parameter.detach().double() for parameter in model.parameters()]


def assert_averages(averaging, expected):
    for actual, wanted in zip(averaging.weights(), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-6)


def in_turn(averaging, model, steps):
    """Takes in the weights of these steps, as a training with a validation after each would."""
    for step in steps:
        moved(model, step)
        averaging.after_step(model, step)
        averaging.before_validation(model, step + 1)


@settings(max_examples=30, deadline=None)
@given(
    decay=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    warm_up=st.booleans(),
    first=st.sampled_from([0, 7, 10_000]),
    count=st.integers(1, 12),
)
def test_ema_is_its_recursion(decay, warm_up, first, count):
    averaging, model, expected = EMA(decay, warm_up), Tied(), None
    for step in range(first, first + count):
        weights_now = moved(model, step)
        averaging.after_step(model, step)
        d = min(decay, (1 + step) / (10 + step)) if warm_up else decay
        expected = (
            weights_now
            if expected is None
            else [d * average + (1 - d) * weight for average, weight in zip(expected, weights_now, strict=True)]
        )
        assert_averages(averaging, expected)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 4), validations=st.integers(1, 7))
def test_last_checkpoints_are_the_mean_of_those_there_are(count, validations):
    averaging, model, seen = LastCheckpoints(count), Tied(), []
    for step in range(validations):
        seen.append(moved(model, step))
        averaging.after_step(model, step)
        for _ in range(2):  # a second validation at one step is not another one
            averaging.before_validation(model, step)
        last = seen[-count:]
        assert_averages(averaging, [sum(same) / len(last) for same in zip(*last, strict=True)])


@pytest.mark.parametrize("make", [*CHOICES.values(), partial(LastCheckpoints, count=7)])
def test_a_state_goes_on_with_the_same_bits(make):
    one, other, model = make(), make(), Tied()
    in_turn(one, model, range(5))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for averaging in (one, other):
        in_turn(averaging, model, range(5, 9))
    pairs = list(zip(one.weights() or [], other.weights() or [], strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert bool(pairs) == (make is not Averaging)


@pytest.mark.parametrize("make", [EMA, partial(LastCheckpoints, count=3)])
def test_a_state_that_was_read_on_another_device_moves_to_the_models(make):
    # A checkpoint is read on the CPU, wherever the model is; the meta device stands for a GPU.
    one, other, model, elsewhere = make(), make(), nn.Linear(3, 2), nn.Linear(3, 2, device="meta")
    one.after_step(model, 0)
    one.before_validation(model, 1)
    other.load_state_dict(one.state_dict())
    other.after_step(elsewhere, 2)
    other.before_validation(elsewhere, 3)
    assert {weight.device.type for weight in other.weights()} == {"meta"}


@pytest.mark.parametrize("make", [EMA, *(partial(LastCheckpoints, count=count) for count in (3, 5, 6, 7))])
def test_tied_stays_tied_frozen_stays_frozen_and_buffers_are_left_alone(make):
    torch.manual_seed(0)
    model, averaging = Tied(), make()
    in_turn(averaging, model, range(9))
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with Optimization(averaging=averaging).weights_to_evaluate(model, []) as differ:
        assert differ
        assert model.output.weight is model.embedding.weight
        assert not torch.equal(model.output.weight, trained["output.weight"])
        assert torch.equal(model.frozen, trained["frozen"])
        assert model.seen == 9
        assert all(
            torch.equal(parameter, average)
            for parameter, average in zip(model.parameters(), averaging.weights(), strict=True)
        )
    assert same_bits(dict(model.state_dict()), trained)


def test_the_trained_weights_come_back_whatever_happens():
    model, averaging = Tied(), EMA()
    in_turn(averaging, model, range(3))
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(Stop), Optimization(averaging=averaging).weights_to_evaluate(model, []):
        raise Stop
    assert same_bits(dict(model.state_dict()), trained)


@pytest.mark.parametrize("averaging", [Averaging(), EMA(), LastCheckpoints()])
def test_before_the_first_weights_there_is_no_average(averaging):
    model = TinyModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Optimization(averaging=averaging).weights_to_evaluate(model, []) as differ:
        assert not differ
    Optimization(averaging=averaging).leave_weights_to_evaluate(model, [])
    assert averaging.weights() is None
    assert same_bits(dict(model.state_dict()), before)


def averaged_task(choice, *arguments, **fields):
    task = make_task(*arguments, **fields)
    task.optimization.averaging = CHOICES[choice]()
    return task


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("stop", "every"), [(7, 0), (10, 1e9), (13, 1e9)])
def test_a_resumed_run_has_the_same_bits(tmp_path, choice, stop, every):
    straight, first, second = (averaged_task(choice) for _ in range(3))
    train(tmp_path / "straight", straight, checkpoint_every_seconds=every)
    with pytest.raises(Stop):
        train(tmp_path / "run", first, checkpoint_every_seconds=every, callbacks=(stop_after(stop),))
    train(tmp_path / "run", second, resume=find_resume(tmp_path / "run"), checkpoint_every_seconds=every)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")
    assert straight.best == second.best
    # A run that is over goes on to the same weights.
    third = averaged_task(choice)
    train(tmp_path / "run", third, resume=find_resume(tmp_path / "run"))
    assert same_bits(weights(straight), weights(third))


@pytest.mark.parametrize("choice", ["ema", "last_checkpoints"])
def test_training_is_the_same_and_evaluation_is_of_the_average(tmp_path, choice):
    plain, task = make_task(), averaged_task(choice)
    train(tmp_path / "plain", plain)
    train(tmp_path / "averaged", task)
    saved = torch.load(tmp_path / "averaged" / "checkpoints" / "last.ckpt", weights_only=True)
    trained = {name.removeprefix("model."): value for name, value in saved["training_weights"].items()}
    averaged = {name.removeprefix("model."): value for name, value in saved["state_dict"].items()}
    assert same_bits(trained, weights(plain))
    assert same_bits(averaged, weights(task))  # what a task holds after its training is what is evaluated
    assert not same_bits(averaged, trained)
    one, other = curve(tmp_path / "plain"), curve(tmp_path / "averaged")
    assert {key: value for key, value in one.items() if not key[1].startswith("val/")} == {
        key: value for key, value in other.items() if not key[1].startswith("val/")
    }
    # The last validation was of the weights that were saved.
    fresh = make_task(dropout=0.0)
    load_weights(fresh, tmp_path / "averaged" / "checkpoints" / "last.ckpt")
    assert other[(20, "val/loss")] == pytest.approx(fresh.score(Stream(4, limit=3))["loss"], abs=1e-6)
    assert other[(20, "val/loss")] != pytest.approx(one[(20, "val/loss")], abs=1e-4)


@pytest.mark.parametrize("choice", ["ema", "last_checkpoints"])
def test_the_average_is_of_the_weights_that_training_went_through(tmp_path, choice):
    steps, validated = [], []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *arguments):
            steps.append([p.detach().double() for p in pl_module.model.parameters()])

    class WatchValidation(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *arguments):
            if trainer.global_step % 5 == 0:
                validated.append([p.detach().double() for p in pl_module.model.parameters()])

    task = averaged_task(choice)
    train(tmp_path, task, callbacks=(Watch(), WatchValidation()))
    if choice == "ema":
        expected = steps[0]
        for step, now in enumerate(steps[1:], start=1):
            d = min(0.8, (1 + step) / (10 + step))
            expected = [d * average + (1 - d) * weight for average, weight in zip(expected, now, strict=True)]
    else:
        expected = [(a + b) / 2 for a, b in zip(*validated[-2:], strict=True)]
    for parameter, wanted in zip(task.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("choice", ["ema", "last_checkpoints"])
def test_best_holds_the_average_of_its_validation(tmp_path, choice):
    task = averaged_task(choice, dropout=0.0)
    train(tmp_path, task)
    fresh = make_task(dropout=0.0)
    counted = load_weights(fresh, tmp_path / "checkpoints" / "best.ckpt")
    assert counted["step"] == task.best["step"]
    assert fresh.score(Stream(4, limit=3))["loss"] == pytest.approx(task.best["value"], abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(decay=1.0), r"decay must be at least 0 and below 1, got 1.0"),
        (lambda: EMA(decay=-0.1), r"decay must be at least 0 and below 1, got -0.1"),
        (lambda: LastCheckpoints(count=0), r"count must be at least 1, got 0"),
    ],
)
def test_settings_that_average_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
