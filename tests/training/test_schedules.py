"""Schedules against their formulas, and what is asked of every one of them."""

import importlib
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attnlab.parts import build_part
from attnlab.training import WSD, Constant, Cosine, InverseSqrt, Linear, Noam, Power
from attnlab.training.schedules import COOLDOWNS, shared_steps

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
    assert set(CHOICES) == {"constant", "cosine", "inverse_sqrt", "linear", "noam", "power", "wsd"}


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
    for cls in (Constant, Linear, Cosine, InverseSqrt, WSD, Power):
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


@pytest.mark.parametrize(
    ("cooldown", "quarters"),
    [
        ("1-sqrt", [1, 0.5, 1 - 2**-0.5, 1 - 3**0.5 / 2]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
        ("mirror_cosine", [1, 1.5 - (2 + 2**0.5) / 4, 0.5, 0.5 - (2 - 2**0.5) / 4]),
        ("square", [1, 15 / 16, 3 / 4, 7 / 16]),
    ],
)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_cooldown_has_its_shape_between_the_rate_and_its_floor(cooldown, quarters, floor):
    schedule = WSD(1000, 100, decay_steps=200, min_lr_ratio=floor, cooldown=cooldown)
    assert [schedule(800 + 50 * i) for i in range(4)] == pytest.approx([floor + (1 - floor) * x for x in quarters])
    assert schedule(1000) == pytest.approx(floor)
    falls = [schedule(step) for step in range(800, 1001)]
    assert falls == sorted(falls, reverse=True)


def test_every_cooldown_can_be_chosen_and_no_other():
    for cooldown in COOLDOWNS:
        WSD(10, cooldown=cooldown)
    with pytest.raises(ValueError, match=r"schedule\.cooldown must be one of 1-sqrt, .*, got 'sqrt'"):
        WSD(10, cooldown="sqrt")


@pytest.mark.parametrize(("a", "b", "rate"), [(4.6, -0.51, 0.02), (4.6, -0.51, 0.001), (1.0, -0.3, 0.5)])
def test_power_is_the_papers_law_of_tokens_at_one_batch_size(a, b, rate):
    """Shen et al. 2024: min(rate, batch a tokens^b) of the tokens seen, here with batches of 16 rows of 64 tokens."""
    rows, tokens = 16, 16 * 64
    flat = (rate / (rows * a)) ** (1 / b) / tokens  # the steps at which both are equal
    total = max(2000, round(3 * flat)) if flat < 1e6 else 2000
    schedule = Power(total, 10, flat_steps=max(10, round(flat)), exponent=b, decay_steps=0)
    for step in range(10, total, total // 50):
        law = min(rate, rows * a * ((step + 1) * tokens) ** b)
        assert rate * schedule(step) == pytest.approx(law, rel=0.05)


def test_power_falls_as_its_power_and_then_cools_down_from_where_it_is():
    schedule = Power(1000, 100, exponent=-0.5, decay_steps=200, cooldown="linear")
    assert [schedule(step) for step in (99, 399)] == pytest.approx([1.0, 0.5])
    at = (801 / 100) ** -0.5
    assert [schedule(800), schedule(900)] == pytest.approx([at, at / 2])
    assert schedule(50) == pytest.approx(0.51)
    with pytest.raises(
        ValueError, match=r"schedule\.flat_steps must be at least 100, the steps of the warm-up, got 99"
    ):
        Power(1000, 100, flat_steps=99)


@pytest.mark.parametrize("cls", [WSD, Power])
def test_a_longer_training_has_the_same_rates_until_the_shorter_cools_down(cls):
    """The last of those steps is the first of the cool-down, at which nothing has fallen yet."""
    short, long = cls(500, 50, decay_steps=100), cls(2000, 50, decay_steps=400)
    assert shared_steps(short, long, 500) == shared_steps(long, short, 500) == 401
    assert shared_steps(long, long, 2000) == 2000
    assert shared_steps(cls(500, 50), cls(2000, 100), 500) == 0
    assert shared_steps(Cosine(500, 50), Cosine(2000, 50), 500) == 51


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert [cls(100, 0)(0) for cls in (Constant, Linear, Cosine, InverseSqrt, WSD, Power)] == [1.0] * 6
