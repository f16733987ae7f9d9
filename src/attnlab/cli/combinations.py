"""The one table of combinations that make no sense, with the reason for each; a sweep skips such a cell and prints the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from attnlab.cli.compose import Composed


@dataclass(frozen=True)
class Asked:
    """What the rules look at: the resolved configuration and the keys that were named on the command line or by the study."""

    config: dict[str, Any]
    named: frozenset[str]

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or `default` where there is none."""
        node: Any = self.config
        for word in path.split("."):
            if not isinstance(node, dict) or word not in node:
                return default
            node = node[word]
        return node

    def target(self, group: str) -> str:
        """The class that a group's choice names, without its package."""
        return str(self.get(f"{group}._target_", "")).rsplit(".", 1)[-1]


def _d_head(asked: Asked) -> int:
    d_model, num_heads = asked.get("model.d_model"), asked.get("model.num_heads")
    return int(asked.get("attention.d_head") or (d_model // num_heads if d_model and num_heads else 2))


def _rotary_channels(asked: Asked) -> int:
    return int(_d_head(asked) * asked.get("position.fraction", 1.0))


def _is_rotary(asked: Asked) -> bool:
    return asked.target("position") in {"Rotary", "AxialRotary"}


Rule = tuple[str, Callable[[Asked], bool], str]

TABLE: tuple[Rule, ...] = (
    (
        "model.num_heads",
        lambda a: (
            bool(a.get("model.d_model") and a.get("model.num_heads"))
            and not a.get("attention.d_head")
            and a.get("model.d_model") % a.get("model.num_heads") != 0
        ),
        "{model.d_model} (model.d_model) does not divide into {model.num_heads} heads; choose one of {divisors}",
    ),
    (
        "position",
        lambda a: _is_rotary(a) and _rotary_channels(a) % 2 == 1,
        "rotary positions turn pairs of channels, and a head has an odd number of them ({d_head}); change model.d_model or model.num_heads",
    ),
    (
        "position",
        lambda a: a.target("position") in {"Sinusoidal2D", "Learned2D", "AxialRotary"} and a.get("model.grid") is None,
        "two-dimensional positions index a grid of image patches, and this model reads a sequence; choose one of sinusoidal, learned, rotary, alibi, relative_bias, none",
    ),
    (
        "position",
        lambda a: a.target("position") == "Learned" and (a.get("model.max_length") or 0) < (a.get("data.context") or 0),
        "a learned table of {model.max_length} positions (model.max_length) cannot serve windows of {data.context} tokens (data.context)",
    ),
    (
        "schedule",
        lambda a: a.target("schedule") == "Noam" and "optimizer.lr" in a.named,
        "noam sets the learning rate itself (schedule.factor * d_model^-0.5 * ...), so optimizer.lr would have no effect; set schedule.factor, or choose schedule=inverse_sqrt",
    ),
    (
        "optimizer",
        lambda a: a.get("optimizer._target_", "").endswith("schedule_free") and a.target("schedule") != "Constant",
        "schedule_free replaces the decay of the learning rate; use it with schedule=constant",
    ),
    (
        "norm",
        lambda a: a.target("residual") == "ReZero" and "norm" in a.named,
        "residual=rezero has no norm, so norm={norm} would have no effect",
    ),
    (
        "attention.backend",
        lambda a: a.get("attention.backend") == "fused" and a.get("attention.soft_cap") is not None,
        "the fused kernel has no soft cap; choose attention.backend=auto, explicit or flex",
    ),
    (
        "schedule.warmup_steps",
        lambda a: (a.get("schedule.warmup_steps") or 0) > a.get("trainer.max_steps", 0) > 0,
        "a warm-up of {schedule.warmup_steps} steps is longer than the training of {trainer.max_steps} (trainer.max_steps)",
    ),
)


def impossible(composed: Composed) -> Iterator[tuple[str, str]]:
    """The rules that a configuration breaks: (field, reason)."""
    named = frozenset(o.split("=", 1)[0].lstrip("+~") for o in composed.overrides)
    asked = Asked(composed.resolved, named)
    for field, breaks, reason in TABLE:
        if breaks(asked):
            yield field, _fill(reason, asked)


def _fill(reason: str, asked: Asked) -> str:
    d_model = asked.get("model.d_model") or 1
    known = {
        "d_head": _d_head(asked),
        "divisors": ", ".join(str(n) for n in range(1, d_model + 1) if d_model % n == 0),
        "norm": asked.target("norm"),
    }
    for word in {part.split("}")[0] for part in reason.split("{")[1:]}:
        reason = reason.replace(f"{{{word}}}", str(known.get(word, asked.get(word))))
    return reason
