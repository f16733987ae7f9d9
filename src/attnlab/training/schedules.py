"""Learning-rate schedules: pure functions of the optimizer step, as multiples of the optimizer's rate.

`schedule(step)` with step counted from 0. Warm-up is linear and its first step is not zero: step s of w gives (s + 1) /
w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from attnlab.parts import Choices, Part
from attnlab.ranges import Le, NonNegativeInt, PositiveFloat, PositiveInt, Probability, check_ranges, must_be


@check_ranges
class Schedule(Part):
    """Linear warm-up over `warmup_steps` to the optimizer's rate, then what a subclass's `after` says. None: a tenth of
    the training, at most 100 steps. Raises ValueError for a warm-up longer than the training."""

    def __init__(self, total_steps: PositiveInt, warmup_steps: NonNegativeInt | None = 0) -> None:
        if warmup_steps is None:
            warmup_steps = min(100, total_steps // 10)
        if warmup_steps > total_steps:
            raise ValueError(must_be("schedule.warmup_steps", f"at most trainer.max_steps={total_steps}", warmup_steps))
        self.total_steps, self.warmup_steps = total_steps, warmup_steps

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """The warm-up has to end within the training."""
        yield from super().incompatible(choices)
        warmup, steps = (choices.get(name) or 0 for name in ("schedule.warmup_steps", "trainer.max_steps"))
        if warmup > steps > 0:
            yield (
                f"schedule.warmup_steps: a warm-up of {warmup} steps is longer than the training of {steps} "
                "(trainer.max_steps)"
            )

    def __call__(self, step: int) -> float:
        """The multiple of the optimizer's rate at `step`."""
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else self.after(step)

    def after(self, step: int) -> float:
        """The multiple at a `step` after the warm-up."""
        return 1.0

    def progress(self, step: int) -> float:
        """How much of the training after the warm-up is behind at `step`: 0 at its first step, below 1 at its last."""
        return min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))


class Constant(Schedule):
    """The optimizer's rate throughout, after the warm-up."""


@check_ranges
class Linear(Schedule):
    """Falls linearly to `min_lr_ratio` times the rate."""

    def __init__(
        self, total_steps: PositiveInt, warmup_steps: NonNegativeInt | None = 0, min_lr_ratio: Probability = 0.0
    ) -> None:
        super().__init__(total_steps, warmup_steps)
        self.min_lr_ratio = min_lr_ratio

    def after(self, step: int) -> float:
        return 1.0 - (1.0 - self.min_lr_ratio) * self.progress(step)


class Cosine(Linear):
    """Falls along half a cosine to `min_lr_ratio` times the rate (Loshchilov & Hutter 2017, without restarts)."""

    def after(self, step: int) -> float:
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * self.progress(step)))


class InverseSqrt(Schedule):
    """Falls as sqrt(warmup_steps / step) after the warm-up (Raffel et al. 2020, section 3.1.2)."""

    def after(self, step: int) -> float:
        return math.sqrt(max(1, self.warmup_steps) / (step + 1))


# What is left of a rate at a share x of its cool-down: from 1 to 0 (Hägele et al. 2024, arXiv 2405.18392, section 4).
COOLDOWNS: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "mirror_cosine": lambda x: 2.0 * (1.0 - x) - 0.5 * (1.0 + math.cos(math.pi * x)),  # the cosine's about the line
    "square": lambda x: 1.0 - x * x,
}


@check_ranges
class WSD(Linear):
    """Warm-up, stable, decay: constant, then a cool-down over the last `decay_steps` (a fifth of the training by
    default) to `min_lr_ratio` times the rate (Hu et al. 2024, arXiv 2404.06395), as `cooldown` says (1 - sqrt is Hägele
    et al. 2024's, section 4). Raises ValueError where they do not fit."""

    def __init__(
        self,
        total_steps: PositiveInt,
        warmup_steps: NonNegativeInt | None = 0,
        decay_steps: NonNegativeInt | None = None,
        min_lr_ratio: Probability = 0.0,
        cooldown: Literal["1-sqrt", "linear", "cosine", "mirror_cosine", "square"] = "1-sqrt",
    ) -> None:
        super().__init__(total_steps, warmup_steps, min_lr_ratio)
        longest = total_steps - self.warmup_steps
        self.decay_steps = min(total_steps // 5, longest) if decay_steps is None else decay_steps
        if self.decay_steps > longest:
            wanted = f"at most {longest}, the steps after the warm-up"
            raise ValueError(must_be("schedule.decay_steps", wanted, decay_steps))
        if cooldown not in COOLDOWNS:
            raise ValueError(must_be("schedule.cooldown", f"one of {', '.join(COOLDOWNS)}", cooldown))
        self.cooldown = COOLDOWNS[cooldown]

    def after(self, step: int) -> float:
        start = self.total_steps - self.decay_steps
        share = min(1.0, max(0, step - start) / max(1, self.decay_steps))
        left = self.min_lr_ratio + (1.0 - self.min_lr_ratio) * self.cooldown(share)
        return self.stable(min(step, start)) * left

    def stable(self, step: int) -> float:
        """The multiple between warm-up and cool-down."""
        return 1.0


@check_ranges
class Power(WSD):
    """The optimizer's rate for `flat_steps` (by default the warm-up), then as (step / flat_steps)^exponent, and at the
    end a cool-down as WSD's (Shen et al. 2024, arXiv 2408.13359, section 3).

    The paper's min(rate, batch size a tokens^b) in steps: where batches are all of one size, it is this one with
    exponent b, flat for as many steps as it takes to fall below the rate.
    """

    def __init__(
        self,
        total_steps: PositiveInt,
        warmup_steps: NonNegativeInt | None = 0,
        flat_steps: PositiveInt | None = None,
        exponent: Annotated[float, Le(0)] = -0.51,
        decay_steps: NonNegativeInt | None = None,
        min_lr_ratio: Probability = 0.0,
        cooldown: Literal["1-sqrt", "linear", "cosine", "mirror_cosine", "square"] = "1-sqrt",
    ) -> None:
        super().__init__(total_steps, warmup_steps, decay_steps, min_lr_ratio, cooldown)
        self.flat_steps, self.exponent = flat_steps or max(1, self.warmup_steps), exponent
        if self.flat_steps < self.warmup_steps:
            wanted = f"at least {self.warmup_steps}, the steps of the warm-up"
            raise ValueError(must_be("schedule.flat_steps", wanted, flat_steps))

    def stable(self, step: int) -> float:
        return min(1.0, float(((step + 1) / self.flat_steps) ** self.exponent))


def shared_steps(one: Callable[[int], float], other: Callable[[int], float], steps: int) -> int:
    """Of the first `steps`, those until the rates of two schedules first differ."""
    return next((step for step in range(steps) if one(step) != other(step)), steps)


@check_ranges
class Noam(Schedule):
    """Vaswani et al. 2017, section 5.3: the rate is factor * d_model^-0.5 * min(s^-0.5, s * warmup_steps^-1.5), s =
    step + 1, whatever the optimizer's `lr` (which the multiple divides by). Raises ValueError for no warm-up, or no
    rate above 0."""

    def __init__(
        self,
        total_steps: PositiveInt,
        d_model: PositiveInt,
        lr: PositiveFloat,
        warmup_steps: PositiveInt | None = 200,
        factor: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(total_steps, max(1, total_steps // 10) if warmup_steps is None else warmup_steps)
        self.scale: float = factor * d_model**-0.5 / lr

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """It sets the rate itself."""
        yield from super().incompatible(choices)
        if "optimizer.lr" in choices.given:
            yield (
                f"schedule: {choices.name('schedule')} sets the learning rate itself (schedule.factor * d_model^-0.5 * "
                "...), so optimizer.lr would have no effect; set schedule.factor, or choose schedule=inverse_sqrt"
            )

    def __call__(self, step: int) -> float:
        multiple: float = min((step + 1) ** -0.5, (step + 1) * self.warmup_steps**-1.5)
        return self.scale * multiple
