"""What a model loses when one head is masked. Legend: B batch, T length, H heads, K head width, N examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import Head, attention_names, kind_of

LEVEL = 0.95

# The summed loss in nats and the number of targets of each example, under the model as it is.
Losses = Callable[[], "ExampleLosses"]


@dataclass(frozen=True)
class ExampleLosses:
    """The summed loss of each example (N,), and its number of targets."""

    nats_N: Tensor  # noqa: N815 - shape suffixes on fields, too
    targets_N: Tensor  # noqa: N815


@dataclass(frozen=True)
class Effect:
    """
    The change of the loss in nats a target when a head is masked, with an interval that holds for all heads of a table
    together.

    before: the loss of the whole model. examples: how many were paired; with one alone nothing is known of the spread.
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
    return [head for _, heads in _places(model) for head in heads]


def ablate(model: nn.Module, losses: Losses) -> dict[Head, Effect]:
    """
    Every head masked by itself: its output is zeroed before the output projection (Michel et al. 2019, arXiv
    1905.10650, section 3.1).

    Losses are paired example by example. The change is the ratio of summed differences to summed targets, what the loss
    itself changes by; its interval is Student's, on the linearised ratio (Cochran 1977, section 6.4), at 95% for all
    heads together (Bonferroni). It says how the change varies over examples like these, not over trainings. Raises
    ValueError for a model without heads.
    """
    heads = heads_of(model)
    if not heads:
        raise ValueError(f"{type(model).__name__} has no heads that could be masked one by one")
    before = losses()
    found = {}
    for head in heads:
        with masked(model, [head]):
            after = losses()
        found[head] = effect(before, after, comparisons=len(heads))
    return found


def effect(before: ExampleLosses, after: ExampleLosses, comparisons: int = 1) -> Effect:
    """The paired change; see `ablate`."""
    targets_N = before.targets_N.double()
    differences_N = after.nats_N.double() - before.nats_N.double()
    total, count = targets_N.sum(), len(targets_N)
    change = float(differences_N.sum() / total)
    half = math.inf
    if count > 1:
        residuals_N = differences_N - change * targets_N
        error = math.sqrt(float((residuals_N**2).sum()) * count / (count - 1)) / float(total)
        half = float(stdtrit(count - 1, 1 - (1 - LEVEL) / (2 * comparisons))) * error
    loss = float(before.nats_N.double().sum() / total)
    return Effect(change, change - half, change + half, loss, count)


@contextmanager
def masked(model: nn.Module, heads: Sequence[Head]) -> Iterator[None]:
    """
    Inside, these heads give zeros to the output projection of their attention, whose bias stays; nothing stays changed.

    With grouped queries a head is one of the queries', and its keys and values stay for the others. An attention that
    two stacks share is masked in the one that the head is of.
    """
    wanted = set(heads)
    with torch.compiler.set_stance("force_eager"):
        undo = []
        try:
            for attention, all_places in _by_module(model).items():
                counts = {"calls": 0}

                def mask(
                    module: nn.Module,
                    args: tuple[Tensor],
                    places: list[list[Head]] = all_places,
                    counts: dict[str, int] = counts,
                    width: int = attention.d_head,
                ) -> tuple[Tensor]:
                    place = places[counts["calls"] % len(places)]
                    counts["calls"] += 1
                    kept_H = torch.tensor([head not in wanted for head in place], device=args[0].device)
                    return (args[0] * kept_H.repeat_interleave(width),)

                if any(head in wanted for place in all_places for head in place):
                    undo.append(attention.output.register_forward_pre_hook(mask))
            yield
        finally:
            for handle in undo:
                handle.remove()


class TaskLosses:
    """
    The loss of each example of a task's batches, by the task's own `all_sums` on each row of a batch alone, without
    label smoothing.

    most: examples, spread evenly over all; None: all. count: how many there are. Raises ValueError for batches that
    cannot be cut into rows.
    """

    def __init__(self, task: Any, batches: Sequence[Mapping[str, Any]], most: int | None = None) -> None:
        rows = [row for batch in batches for row in _rows(batch)]
        if most is not None and len(rows) > most:
            rows = [rows[i * len(rows) // most] for i in range(most)]
        self.task, self.rows, self.count = task, rows, len(rows)

    def __call__(self) -> ExampleLosses:
        """Under the model as it is."""
        with self.task.evaluating():
            sums = [self.task.loss_sums(self.task.on_device(row)) for row in self.rows]
        # A smoothed loss has the nats themselves beside it.
        nats_N = torch.stack([also.get("nats", nats).double().cpu() for nats, _, also in sums])
        return ExampleLosses(nats_N, torch.tensor([int(targets) for _, targets, _ in sums]))


def text_losses(model: nn.Module, examples: Sequence[Attended]) -> Losses:
    """
    The loss of each text: of a causal model that of each token after the first, of a sequence-to-sequence model that of
    the target and its end.

    Raises ValueError for a model that gives texts no probability.
    """
    if any(example.targets_T is None for example in examples):
        raise ValueError(
            f"{type(model).__name__} gives a text no probability, so nothing is known of a loss on texts; mask heads "
            "on the validation data (--ablate validation)"
        )

    @torch.inference_mode()
    def losses() -> ExampleLosses:
        nats, counts = [], []
        for example in examples:
            assert example.targets_T is not None
            known_T = example.targets_T >= 0
            logits_TV = model(*example.tokens)[0].float()
            nats.append(F.cross_entropy(logits_TV[known_T], example.targets_T[known_T], reduction="sum"))
            counts.append(int(known_T.sum()))
        return ExampleLosses(torch.stack(nats).double(), torch.tensor(counts))

    return losses


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    sizes = {name: len(value) for name, value in batch.items() if isinstance(value, Tensor) and value.ndim}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"a batch of tensors of {sizes} rows cannot be cut into its examples")
    count = next(iter(sizes.values()))
    return [{name: batch[name][i : i + 1] if name in sizes else batch[name] for name in batch} for i in range(count)]


def _places(model: nn.Module) -> list[tuple[Any, list[Head]]]:
    """Every attention, once for each stack that calls it, with its heads there, numbered by kind."""
    by_name = {name: module for module, names in attention_names(model).items() for name in names}
    counts: dict[str, int] = {}
    found = []
    for name, _ in model.named_modules(remove_duplicate=False):
        if name in by_name:
            kind = kind_of(model, name)
            layer = counts.get(kind, 0)
            counts[kind] = layer + 1
            found.append((by_name[name], [Head(kind, layer, head) for head in range(by_name[name].num_heads)]))
    return found


def _by_module(model: nn.Module) -> dict[Any, list[list[Head]]]:
    """The heads of every attention, once for each stack that calls it, in that order."""
    found: dict[Any, list[list[Head]]] = {}
    for attention, heads in _places(model):
        found.setdefault(attention, []).append(heads)
    return found
