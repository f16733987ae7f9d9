"""Schedules against their formulas, and what is asked of every one of them."""

import importlib
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attnlab.parts import build_part
from attnlab.training import WSD, Constant, Cosine, InverseSqrt, Linear, Noam

CONF = Path(__file__).parents[2] / "conf" / "schedule"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))


def from_yaml(name: str, total_steps: int, **more: object):
    fields = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | more
    module, cls = fields.pop("_target_").rsplit(".", 1)
    assert fields.pop("_partial_") is True

    def part(*, total_steps: int, d_model: int, lr: float):
        given = {**fields, "total_steps": total_steps}
        given |= {"d_model": d_model, "lr": lr} if name == "noam" else {}
        return getattr(importlib.import_module(module), cls)(**given)

    return build_part(part, total_steps=total_steps, d_model=64, lr=1e-3)


def test_all_the_choices_of_the_design_are_there():
    assert set(CHOICES) == {"constant", "cosine", "inverse_sqrt", "linear", "noam", "wsd"}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("total", [200, 1000])
def test_every_choice_warms_up_from_above_zero_in_equal_steps_and_never_jumps(name, total):
    schedule = from_yaml(name, total)
    rates = [schedule(step) for step in range(total)]
    warmup = schedule.warmup_steps
    assert warmup > 1
    peak = rates[warmup - 1]
    assert rates[:warmup] == pytest.approx([peak * (s + 1) / warmup for s in range(warmup)])
    assert max(rates) == pytest.approx(peak)
    assert all(0 < rate < math.inf for rate in rates)
    changes = [abs(b - a) for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False)]
    assert max(changes, default=0) < 0.2 * peak


@pytest.mark.parametrize("name", CHOICES)
def test_a_warmup_that_does_not_fit_is_refused_with_both_numbers(name):
    with pytest.raises(ValueError, match=r"schedule.warmup_steps must be at most trainer.max_steps=50, got 51"):
        from_yaml(name, 50, warmup_steps=51)


@given(st.integers(1, 500), st.data())
def test_a_schedule_is_a_pure_function_of_the_step(total, data):
    warmup = data.draw(st.integers(0, total))
    steps = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=5))
    for cls in (Constant, Linear, Cosine, InverseSqrt, WSD):
        first, second = cls(total, warmup), cls(total, warmup)
        for step in reversed(steps):
            first(step)
        assert [first(step) for step in steps] == [second(step) for step in steps]


@pytest.mark.parametrize("step", [0, 1, 399, 400, 5000, 99_999])
def test_noam_is_the_papers_rate_whatever_the_optimizers(step):
    for lr in (1e-3, 7.0):
        schedule = Noam(total_steps=100_000, d_model=512, lr=lr, warmup_steps=400, factor=2.0)
        s = step + 1
        assert lr * schedule(step) == pytest.approx(2.0 * 512**-0.5 * min(s**-0.5, s * 400**-1.5), rel=1e-12)


def test_noam_needs_a_warmup_and_a_rate_to_divide_by():
    with pytest.raises(ValueError, match="warmup_steps must be at least 1, got 0"):
        Noam(100, 64, 1e-3, warmup_steps=0)
    with pytest.raises(ValueError, match=r"lr must be above 0, got 0.0"):
        Noam(100, 64, 0.0, warmup_steps=10)


def test_cosine_and_linear_at_known_points():
    cosine, linear = Cosine(110, 10, min_lr_ratio=0.2), Linear(110, 10, min_lr_ratio=0.2)
    for quarter in range(4):
        angle = math.pi * quarter / 4
        assert cosine(10 + 25 * quarter) == pytest.approx(0.2 + 0.8 * (1 + math.cos(angle)) / 2)
        assert linear(10 + 25 * quarter) == pytest.approx(1 - 0.8 * quarter / 4)
    assert [cosine(110), linear(110), cosine(10**6)] == pytest.approx([0.2] * 3)


def test_inverse_sqrt_halves_when_the_steps_quadruple():
    schedule = InverseSqrt(10_000, 100)
    assert [schedule(step) for step in (99, 399, 1599)] == pytest.approx([1.0, 0.5, 0.25])


def test_wsd_is_flat_and_then_one_minus_sqrt():
    schedule = WSD(1000, 100, decay_steps=200)
    assert {schedule(step) for step in range(100, 801)} == {1.0}
    assert schedule(850) == pytest.approx(1 - 0.25**0.5)
    assert schedule(999) == pytest.approx(1 - (199 / 200) ** 0.5)
    assert WSD(1000, 100).decay_steps == 200
    with pytest.raises(
        ValueError, match=r"schedule.decay_steps must be at most 900, the steps after the warm-up, got 901"
    ):
        WSD(1000, 100, decay_steps=901)


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert [cls(100, 0)(0) for cls in (Constant, Linear, Cosine, InverseSqrt, WSD)] == [1.0] * 5
