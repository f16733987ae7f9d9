"""The one table of combinations that make no sense, with the reason for each; a sweep skips such a cell and prints the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from attnlab.cli.compose import Composed, shipped
from attnlab.cli.overrides import key_and_value


@dataclass(frozen=True)
class Asked:
    """What the rules look at: the resolved configuration and what was set on the command line or by the study, by its key."""

    config: dict[str, Any]
    named: Mapping[str, str]

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or `default` where there is none."""
        node: Any = self.config
        for word in path.split("."):
            if not isinstance(node, dict) or word not in node:
                return default
            node = node[word]
        return node

    def takes(self, seam: str) -> bool:
        """Whether the model has this seam; a norm is a part of the residual."""
        parts = (f"model.{seam}", "model.residual") if seam == "norm" else (f"model.{seam}",)
        return any(isinstance(self.get(part), dict) for part in parts)

    def written(self, group: str) -> str:
        """What was set of a group or of its fields, as it was written."""
        return " ".join(f"{key}={value}" for key, value in self.named.items() if key.split(".")[0] == group)

    def target(self, group: str) -> str:
        """The class that a group's choice names, without its package."""
        return str(self.get(f"{group}._target_", "")).rsplit(".", 1)[-1]

    def needs(self, group: str) -> type:
        """What the task wants `data` or `model` to be."""
        task: Any = get_object(self.get("task._target_"))
        needed: type = task.data_type if group == "data" else task.model_type
        return needed

    def serves(self, group: str) -> bool:
        """Whether the group's choice is of the kind that the task needs; what is no class cannot be told."""
        chosen = get_object(self.get(f"{group}._target_"))
        return not isinstance(chosen, type) or issubclass(chosen, self.needs(group))


def _d_head(asked: Asked) -> int:
    d_model, num_heads = asked.get("model.d_model"), asked.get("model.num_heads")
    return int(asked.get("attention.d_head") or (d_model // num_heads if d_model and num_heads else 2))


def _rotary_channels(asked: Asked) -> int:
    return int(_d_head(asked) * asked.get("position.fraction", 1.0))


def _is_rotary(asked: Asked) -> bool:
    return asked.target("position") in {"Rotary", "AxialRotary"}


def _validates(asked: Asked) -> bool:
    return 0 < int(asked.get("trainer.validate_every") or 0) <= int(asked.get("trainer.max_steps") or 0)


def _on_cpu(asked: Asked) -> bool:
    from attnlab.training import TrainerSettings  # here: it brings torch with it

    return TrainerSettings(device=asked.get("trainer.device", "auto")).device_type == "cpu"


def _is_sharded(asked: Asked) -> bool:
    return bool(asked.get("trainer.strategy") == "fsdp2")


def _has_table(asked: Asked) -> bool:
    """Whether the model has a learned table of positions: as its position, or its own where it leaves no choice."""
    chosen = asked.target("position") == "Learned" if asked.takes("position") else True
    return chosen and asked.get("model.max_length") is not None


def _longest_row(asked: Asked) -> tuple[int, str]:
    """Tokens of the longest row that the data may have, marks included, and the field that says so; 0 where none does."""
    from attnlab.data import MaskedTextData, SpanCorruptionData, TranslationData  # here: they bring torch with them
    from attnlab.data.encoded import EncodedData
    from attnlab.data.masked_text import marks_of
    from attnlab.data.span_corruption import lengths

    kind = get_object(asked.get("data._target_"))
    if isinstance(kind, type) and issubclass(kind, EncodedData | TranslationData):
        return asked.get("data.max_length") or 0, "data.max_length"
    context = asked.get("data.context") or 0
    if isinstance(kind, type) and issubclass(kind, MaskedTextData):
        return context + marks_of(bool(asked.get("data.next_sentence"))), "data.context, and its marks"
    if isinstance(kind, type) and issubclass(kind, SpanCorruptionData):
        density, mean_length = asked.get("data.noise_density"), asked.get("data.mean_span_length")
        # A window becomes an input and a target, with an end mark each. What the data refuse, they refuse themselves.
        context = max(lengths(context, density, mean_length)) + 1 if context > 1 and mean_length >= 1 else 0
    return context, "data.context"


SEAMS = ("position", "residual", "norm", "attention", "feed_forward", "init")


Rule = tuple[str, Callable[[Asked], bool], str]

TABLE: tuple[Rule, ...] = (
    (
        "task",
        lambda a: not a.serves("data"),
        "task={task} works on {data_type}, and data={data} is none; choose data that fit, or the model's own (leave task and data out)",
    ),
    (
        "task",
        lambda a: not a.serves("model"),
        "task={task} trains a {model_type}, and model={model} is none; choose one of {fitting_models}, or leave task out to get the model's own",
    ),
    (
        "model.share_embeddings",
        lambda a: a.get("model.share_embeddings") is True and a.get("data.joint") is False,
        "one table for source and target needs one vocabulary; set data.joint=true or model.share_embeddings=false",
    ),
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
        lambda a: (
            a.target("position") in {"Sinusoidal2D", "Learned2D", "AxialRotary"}
            and a.get("model.patch_size") is None
            and a.takes("position")
        ),
        "two-dimensional positions index a grid of image patches, and this model reads a sequence; choose one of sinusoidal, learned, rotary, alibi, relative_bias, none",
    ),
    (
        "augmentation",
        lambda a: "augmentation" in a.named and a.get("data.augmentation") is None,
        "augmentation changes images, and data={data} holds none; leave augmentation out",
    ),
    (
        "model.max_length",
        lambda a: _has_table(a) and a.get("model.max_length") < _longest_row(a)[0],
        "a learned table of {model.max_length} positions (model.max_length) cannot serve rows of {row} tokens ({row_field}); shorten the rows, or take a longer table where it is not trained yet",
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
        "averaging",
        lambda a: a.get("optimizer._target_", "").endswith("schedule_free") and a.target("averaging") != "Averaging",
        "schedule_free averages the weights itself, and what is averaged twice is the average of neither; leave averaging out",
    ),
    (
        "averaging",
        lambda a: a.target("averaging") == "LastCheckpoints" and not _validates(a),
        "last_checkpoints averages the weights at validations, and there are none (trainer.validate_every={trainer.validate_every}, trainer.max_steps={trainer.max_steps}); set trainer.validate_every",
    ),
    (
        "trainer.precision",
        lambda a: str(a.get("trainer.precision")) == "16" and a.get("model.cell") == "lstm" and _on_cpu(a),
        "a CPU has no LSTM in fp16; choose model.cell=gru, or trainer.precision=32 or bf16",
    ),
    (
        "trainer.strategy",
        lambda a: _is_sharded(a) and (a.target("residual") == "ReZero" or a.target("norm") == "DynamicTanh"),
        "fsdp2 shares tensors out, and residual=rezero and norm=dynamic_tanh learn single numbers, which torch cannot share out; choose others, or trainer.strategy=ddp",
    ),
    (
        "trainer.strategy",
        lambda a: _is_sharded(a) and a.get("optimizer._target_", "").endswith("adafactor"),
        "torch's Adafactor cannot work on tensors that are shared out over ranks; choose another optimizer, or trainer.strategy=ddp",
    ),
    (
        "norm",
        lambda a: a.target("residual") == "ReZero" and "norm" in a.named,
        "residual=rezero has no norm, so norm={norm} would have no effect",
    ),
    *(
        (
            seam,
            partial(lambda seam, a: bool(a.written(seam)) and not a.takes(seam), seam),
            f"model={{chosen_model}} has no {seam}, so {{written_{seam}}} would have no effect; leave it out",
        )
        for seam in SEAMS
    ),
    *(
        (
            f"model.{field}",
            partial(
                lambda field, a: (
                    a.target("model") == "RecurrentSeq2Seq" and field in a.named and a.get("model.attention") != "luong"
                ),
                f"model.{field}",
            ),
            "only Luong's attention has it, so with model.attention={model.attention} it would have no effect; leave it out, or set model.attention=luong",
        )
        for field in ("score", "input_feeding")
    ),
    (
        "attention.backend",
        lambda a: a.get("attention.backend") == "fused" and a.get("attention.soft_cap") is not None,
        "the fused kernel has no soft cap; choose attention.backend=auto, plain, explicit or flex",
    ),
    (
        "schedule.warmup_steps",
        lambda a: (a.get("schedule.warmup_steps") or 0) > a.get("trainer.max_steps", 0) > 0,
        "a warm-up of {schedule.warmup_steps} steps is longer than the training of {trainer.max_steps} (trainer.max_steps)",
    ),
)


def impossible(composed: Composed) -> Iterator[tuple[str, str]]:
    """The rules that a configuration breaks: (field, reason)."""
    asked = Asked(composed.resolved, dict(key_and_value(override) for override in composed.overrides))
    for field, breaks, reason in TABLE:
        if breaks(asked):
            yield field, _fill(reason, asked)


@cache
def _models_for(needed: type) -> str:
    """The model choices of a kind."""
    paths = sorted((shipped("conf") / "model").glob("*.yaml"))
    return ", ".join(path.stem for path in paths if issubclass(get_object(_target_of(path)), needed))


def _target_of(path: Path) -> str:
    """The class that a choice's file names, or the file that it builds on."""
    choice: Any = OmegaConf.load(path)
    built_on = [word for word in choice.get("defaults", []) if isinstance(word, str) and word != "_self_"]
    return choice.get("_target_") or _target_of(path.with_name(f"{built_on[0].split('@')[0]}.yaml"))


def _fill(reason: str, asked: Asked) -> str:
    d_model = asked.get("model.d_model") or 1
    row, row_field = _longest_row(asked)
    known = {
        "d_head": _d_head(asked),
        "row": row,
        "row_field": row_field,
        "divisors": ", ".join(str(n) for n in range(1, d_model + 1) if d_model % n == 0),
        "norm": asked.target("norm"),
        "chosen_model": asked.named.get("model", asked.target("model")),
        **{f"written_{seam}": asked.written(seam) for seam in SEAMS},
        **{group: asked.target(group) for group in ("task", "data", "model")},
        "fitting_models": _models_for(asked.needs("model")),
        **{f"{group}_type": asked.needs(group).__name__ for group in ("data", "model")},
    }
    for word in {part.split("}")[0] for part in reason.split("{")[1:]}:
        reason = reason.replace(f"{{{word}}}", str(known.get(word, asked.get(word))))
    return reason
