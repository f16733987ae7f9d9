"""Losses that parts of a model add in training, as sums over target tokens; and what parts are told of a step that is
over, and report of it. Legend: B batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from attnlab.layers.added import Added
from attnlab.training.loss import LossSums, TrainingSums

Figures = Mapping[str, Mapping[str, Tensor]]  # by the name of a part in its model


def with_added(sums: LossSums, found: Added, batch: Mapping[str, Tensor], by_row_B: Tensor | None) -> TrainingSums:
    """The sums of a batch with what was left beside them. The loss of a row counts as often as the row has target
    tokens, so that splitting a batch changes nothing; by_row_B: how many these are, None: all rows have as many.
    """
    losses, counts = dict(found.sums), dict[nn.Module, Tensor]()
    for addition in found.additions:
        for name, loss_B in addition.losses(batch).items():
            if by_row_B is not None and len(by_row_B) == len(loss_B):
                loss = (loss_B * by_row_B).sum()
            else:
                loss = loss_B.mean() * sums.tokens
            losses[name] = losses[name] + loss if name in losses else loss
        if (told := addition.counts(batch)) is not None:
            counts[addition.part] = counts[addition.part] + told if addition.part in counts else told
    added = torch.stack(list(losses.values())).sum() if losses else None
    return TrainingSums(sums.loss, sums.tokens, {**sums.auxiliary, **losses}, added, counts)


class PartCounts:
    """What parts of a model are told of the present optimizer step, once it is over."""

    def __init__(self) -> None:
        self._counts: dict[nn.Module, Tensor] = {}

    def accumulate(self, counts: Mapping[nn.Module, Tensor]) -> None:
        """Takes in a micro-batch."""
        for part, told in counts.items():
            self._counts[part] = self._counts[part] + told if part in self._counts else told

    def tell(self, model: nn.Module, reduce: Callable[[Tensor], Tensor] | None) -> Figures:
        """Tells the parts, and returns what each reports (`reduce` sums over ranks)."""
        counted, self._counts = self._counts, {}
        names = {part: name for name, part in model.named_modules() if part in counted} if counted else {}
        told = {}
        for part, name in names.items():  # in one order on all ranks
            counts = counted[part] if reduce is None else reduce(counted[part])
            told[name] = part.after_step(counts)
        return told


def figures_of(told: Figures) -> dict[str, float]:
    """What is reported of a step: of each part at its place in the model, and the mean of all."""
    figures: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    for part, values in told.items():
        for name, value in values.items():
            figures[f"train/{name}@{place_of(part)}"] = float(value)
            found.setdefault(name, []).append(float(value))
    return {f"train/{name}": sum(values) / len(values) for name, values in found.items()} | figures


def place_of(part: str) -> str:
    """encoder/layer=3 of a part called encoder.stack.layers.3.feed_forward; its name where it is of no layer."""
    stack, found, rest = part.partition("layers.")
    return f"{stack.removesuffix('stack.').replace('.', '/')}layer={rest.partition('.')[0]}" if found else part
