"""What a model loses when one head is masked. Legend: B batch, T length, H heads, K head width, N examples."""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import Head, attention_names, kind_of
from attnlab.layers.attention import DotProductAttention

if TYPE_CHECKING:
    from attnlab.training.task import Task

LEVEL = 0.95

# The summed loss in nats and the number of targets of each example, under the model as it is.
Losses = Callable[[], "ExampleLosses"]


@dataclass(frozen=True)
class ExampleLosses:
    """The summed loss of each example (N,), and its number of targets."""

    loss_N: Tensor
    targets_N: Tensor


@dataclass(frozen=True)
class Effect:
    """The change of the loss in nats a target when a head is masked, with an interval that holds for all heads of a
    table together. before: the loss of the whole model. examples: how many were paired; with one alone nothing is known
    of the spread.
    """

    change: float
    low: float
    high: float
    before: float
    examples: int

    @property
    def verdict(self) -> str:
        """needed or harmful where the interval lies on one side of 0, else undecided."""
        if self.low > 0:
            return "needed"
        return "harmful" if self.high < 0 else "undecided"


def heads_of(model: nn.Module) -> list[Head]:
    """Every head of the model's attentions, in the order of computation."""
    return [head for _, heads in _attentions(model) for head in heads]


def ablate(model: nn.Module, losses: Losses) -> dict[Head, Effect]:
    """Every head masked by itself: its output is zeroed before the output projection (Michel et al. 2019, arXiv
    1905.10650, section 3.1).

    Losses are paired example by example. The change is the ratio of summed differences to summed targets; its interval
    is Student's, on the linearised ratio (Cochran 1977, section 6.4), at 95% for all heads together (Bonferroni). It
    says how the change varies over examples, not over trainings. Raises ValueError for a model without heads.
    """
    heads = heads_of(model)
    if not heads:
        raise ValueError(f"{type(model).__name__} has no heads that could be masked one by one")
    before = losses()
    found = {}
    for head in heads:
        with masked(model, [head]):
            found[head] = effect(before, losses(), comparisons=len(heads))
    return found


def effect(before: ExampleLosses, after: ExampleLosses, comparisons: int = 1) -> Effect:
    """The paired change; see `ablate`."""
    targets_N = before.targets_N.double()
    differences_N = after.loss_N.double() - before.loss_N.double()
    total, count = targets_N.sum(), len(targets_N)
    change = float(differences_N.sum() / total)
    half = math.inf
    if count > 1:
        residuals_N = differences_N - change * targets_N
        error = math.sqrt(float((residuals_N**2).sum()) * count / (count - 1)) / float(total)
        half = float(stdtrit(count - 1, 1 - (1 - LEVEL) / (2 * comparisons))) * error
    loss = float(before.loss_N.double().sum() / total)
    return Effect(change, change - half, change + half, loss, count)


@contextmanager
def masked(model: nn.Module, heads: Sequence[Head]) -> Iterator[None]:
    """Inside, these heads give zeros to the output projection of their attention, whose bias stays. With grouped
    queries a head is one of the queries', and its keys and values stay for the others. An attention that two stacks
    share is masked in the one that the head is of.
    """
    calls: dict[
        DotProductAttention, list[list[Head]]
    ] = {}  # the heads of each, once for each stack that calls it, in that order
    for attention, own in _attentions(model):
        calls.setdefault(attention, []).append(own)
    undo = []
    with torch.compiler.set_stance("force_eager"):
        try:
            for attention, turns in calls.items():
                if any(head in heads for own in turns for head in own):
                    mask = _masking(turns, frozenset(heads), attention.d_value)
                    undo.append(attention.output.register_forward_pre_hook(mask))
            yield
        finally:
            for handle in undo:
                handle.remove()


def _masking(
    turns: list[list[Head]], wanted: frozenset[Head], width: int
) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    turn = cycle(turns)

    def mask(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        kept_H = torch.tensor([head not in wanted for head in next(turn)], device=args[0].device)
        return (args[0] * kept_H.repeat_interleave(width),)

    return mask


class TaskLosses:
    """The loss of each example of a task's batches, by the task's own `loss_sums` on each row of a batch alone, without
    label smoothing; of a task that compares the examples of a batch, by that of whole batches. most: examples, spread
    evenly over all; None: all. count: how many there are. Raises ValueError for batches that cannot be cut into rows.
    """

    def __init__(self, task: Task, batches: Sequence[Mapping[str, Tensor]], most: int | None = None) -> None:
        rows = [row for batch in batches for row in (_rows(batch) if task.separable else [dict(batch)])]
        if most is not None and len(rows) > most:
            rows = [rows[i * len(rows) // most] for i in range(most)]
        self.task, self.rows, self.count = task, rows, len(rows)

    def __call__(self) -> ExampleLosses:
        with self.task.evaluating():
            sums = [self.task.loss_sums(self.task.on_device(row)) for row in self.rows]
        loss_N = torch.stack([self.task.cross_entropy(each).double().cpu() for each in sums])
        return ExampleLosses(loss_N, torch.tensor([int(each.tokens) for each in sums]))


def text_losses(model: nn.Module, examples: Sequence[Attended]) -> Losses:
    """The loss of each text: of a causal model that of each token after the first, of a sequence-to-sequence model that
    of the target and its end. Raises ValueError for a model that gives texts no probability.
    """
    targets = [example.targets_T for example in examples if example.targets_T is not None]
    if len(targets) < len(examples):
        raise ValueError(
            f"{type(model).__name__} gives a text no probability, so nothing is known of a loss on texts; mask heads "
            "on the validation data (--ablate validation)"
        )

    @torch.inference_mode()
    def losses() -> ExampleLosses:
        nats, counts = [], []
        for example, targets_T in zip(examples, targets, strict=True):
            known_T = targets_T >= 0
            logits_TV = model(*example.tokens)[0].float()
            nats.append(F.cross_entropy(logits_TV[known_T], targets_T[known_T], reduction="sum"))
            counts.append(int(known_T.sum()))
        return ExampleLosses(torch.stack(nats).double(), torch.tensor(counts))

    return losses


def _rows(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.ndim}
    sizes = {name: len(value) for name, value in tensors.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"a batch of tensors of {sizes} rows cannot be cut into its examples")
    count = next(iter(sizes.values()))
    return [{**batch, **{name: value[i : i + 1] for name, value in tensors.items()}} for i in range(count)]


def _attentions(model: nn.Module) -> Iterator[tuple[DotProductAttention, list[Head]]]:
    """Every attention, once for each stack that calls it, with its heads there, numbered by kind."""
    by_name = {name: attention for attention, names in attention_names(model).items() for name in names}
    counts: dict[str, int] = {}
    for name, _ in model.named_modules(remove_duplicate=False):
        if name in by_name:
            attention, kind = by_name[name], kind_of(model, name)
            layer = counts[kind] = counts.get(kind, -1) + 1
            yield attention, [Head(kind, layer, head) for head in range(attention.num_heads)]
