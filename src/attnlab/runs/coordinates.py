"""How large activations are after some steps of a training, by the width of the model: the coordinate check of muP.

Legend: B batch, T target length, S source length, H heads, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from attnlab.config import UsageError
from attnlab.config.compose import Composed
from attnlab.layers.attention import Attention
from attnlab.layers.backends import Math, Scores
from attnlab.layers.mixer import Mixer
from attnlab.layers.pointwise import FeedForward
from attnlab.layers.scope import Mask
from attnlab.layers.stack import Layer
from attnlab.models.base import evaluating
from attnlab.runs.trial import alone
from attnlab.runs.tuning import TRAINER, Short
from attnlab.training.task import Batch, Task, as_task

PLACES = ("stream", "attention logits", "attention", "feed-forward", "logits")
FLAT = 0.2  # by how much a width may differ from the mean of all
Record = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Sizes:
    """The root mean square over all seeds of each place, for each step from 0 on, one of each width: of activations, or
    of how they have changed since the start.
    """

    widths: Sequence[int]
    of: Mapping[str, Sequence[Sequence[float]]]

    @property
    def steps(self) -> int:
        return len(next(iter(self.of.values()))) - 1

    def spread(self, place: str, step: int) -> float:
        """By how much one width differs most from the geometric mean of all: 0 where all have the same."""
        sizes = self.of[place][step]
        if min(sizes) <= 0:
            return math.inf if max(sizes) > 0 else 0.0
        mean = math.exp(sum(map(math.log, sizes)) / len(sizes))
        return max(abs(size / mean - 1) for size in sizes)

    def slope(self, place: str, step: int) -> float:
        """The power of the width that the sizes grow as, by least squares of the logarithms."""
        if min(self.of[place][step]) <= 0:
            return math.nan
        x, y = (torch.tensor(values, dtype=torch.double).log() for values in (self.widths, self.of[place][step]))
        return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())

    def verdict(self, place: str, step: int) -> str:
        """In words, for a table: flat, grows or shrinks."""
        if self.spread(place, step) <= FLAT:
            return "flat"
        return "grows" if self.slope(place, step) > 0 else "shrinks"

    @property
    def grows(self) -> list[str]:
        """The places whose activations grow with the width at the last step."""
        return [place for place in self.of if self.verdict(place, self.steps) == "grows"]


def coordinate_check(runs: Mapping[int, Sequence[Composed]], steps: int) -> tuple[Sizes, Sizes]:
    """Activations of runs by their width, one for each seed, and how they have changed; each trains so many steps, and
    measures on its own first batch. Raises: UsageError, or what a run raises.

    The change is what a parametrisation is checked by (Yang et al. 2022, appendix D.1 and figure 5): what random first
    weights give to scores and output falls as the root of the width under muP, and is forgotten.
    """
    found = {width: [_watched(composed, steps) for composed in runs[width]] for width in sorted(runs)}
    squares = {width: [watcher.squares for watcher in of_width] for width, of_width in found.items()}
    changes = {width: [watcher.changes for watcher in of_width] for width, of_width in found.items()}
    return _sizes(squares), _sizes(changes)


def _sizes(found: Mapping[int, Sequence[Sequence[Mapping[str, float]]]]) -> Sizes:
    """Of mean squares by place, for each width, seed and step."""
    first = next(iter(found.values()))[0]

    def size(place: str, step: int, width: int) -> float:
        squares = [of_seed[step][place] for of_seed in found[width]]
        return math.sqrt(sum(squares) / len(squares))

    places = [place for place in PLACES if place in first[0]]
    return Sizes(
        list(found),
        {place: [[size(place, step, width) for width in found] for step in range(len(first))] for place in places},
    )


def _watched(composed: Composed, steps: int) -> Watcher:
    trainer = {**TRAINER, "max_steps": steps, "log_every_n_steps": 1, "precision": "32", "compile": False}
    with alone(composed, trainer=trainer, debug=None) as (by_itself, parts, directory):
        watcher = Watcher()
        status = Short(by_itself, parts, directory, watcher).go()
    if len(watcher.squares) <= steps:
        raise ValueError(f"model.d_model={composed.get('model.d_model')}: {status.get('error') or 'it ended early'}")
    return watcher


class Watcher(pl.Callback):
    """Measures activations on the first batch, before the training and after each step."""

    def __init__(self) -> None:
        self.squares: list[dict[str, float]] = []  # mean squares by place, of each step
        self.changes: list[dict[str, float]] = []  # of the differences from the first
        self.batch: Batch | None = None
        self._first: dict[str, list[Tensor]] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.batch is None:
            self.batch = batch
            self._measure(as_task(pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == len(self.squares):  # not within the micro-batches of a step
            self._measure(as_task(pl_module))

    def _measure(self, task: Task) -> None:
        assert self.batch is not None
        seen: dict[str, list[Tensor]] = {}

        def record(place: str, x: Tensor) -> None:
            seen.setdefault(place, []).append(x.detach())

        with torch.no_grad(), evaluating(task.model), torch.random.fork_rng(), recording(task.model, record):
            task.loss_sums(self.batch)
        self._first = self._first or seen
        self.squares.append({place: _mean_square(now) for place, now in seen.items()})
        pairs = {place: zip(now, self._first[place], strict=True) for place, now in seen.items()}
        self.changes.append({place: _mean_square([x - first for x, first in both]) for place, both in pairs.items()})


def _mean_square(tensors: Sequence[Tensor]) -> float:
    return sum(float(x.double().square().mean()) for x in tensors) / len(tensors)


@contextmanager
def recording(model: nn.Module, record: Record) -> Iterator[None]:
    """Inside, activations of a model are recorded as they are computed, by the place. Raises UsageError for a model
    that has no layers of attnlab's.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if not layers:
        raise UsageError("model: a coordinate check needs a Transformer, whose layers it measures; choose model=gpt")
    with ExitStack() as stack:

        def watch(module: nn.Module, place: str, of: Callable[[object], object] = lambda out: out) -> None:
            def hook(module: nn.Module, inputs: object, out: object) -> None:
                if isinstance(x := of(out), Tensor):
                    record(place, x)

            stack.callback(module.register_forward_hook(hook).remove)

        for layer in layers:
            watch(layer, "stream", layer.residual.leave)
            for module in layer.children():
                if isinstance(module, Mixer | FeedForward):
                    watch(module, "attention" if isinstance(module, Mixer) else "feed-forward")
                if isinstance(module, Attention):
                    stack.callback(setattr, module, "backend", module.backend)
                    module.backend = Logits(record)
        watch(model, "logits")
        yield


class Logits:
    """An attention backend that records the scores of the keys that a query sees, before cap and bias."""

    def __init__(self, record: Record) -> None:
        self.record, self.math = record, Math()

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        k_BHSK = k_BGSK.repeat_interleave(q_BHTK.shape[1] // k_BGSK.shape[1], dim=1)
        scale = q_BHTK.shape[-1] ** -0.5 if scores.scale is None else scores.scale
        logits_BHTS = q_BHTK @ k_BHSK.mT * scale
        additive_BHTS = mask.additive(logits_BHTS.dtype)
        seen = None if additive_BHTS is None else (additive_BHTS > -math.inf).expand_as(logits_BHTS)
        self.record("attention logits", logits_BHTS if seen is None else logits_BHTS[seen])
        return self.math(q_BHTK, k_BGSK, v_BGSK, mask, scores)
