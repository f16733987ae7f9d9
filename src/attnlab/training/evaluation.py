"""What a model gives for batches and splits: sums of losses over target tokens, over all ranks."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from attnlab.layers.added import collected, collecting
from attnlab.parts import Prepared
from attnlab.training.additions import with_added
from attnlab.training.loss import LossSums, Number, TrainingSums, z_loss_sum

Batch = Mapping[str, Tensor]
T = TypeVar("T")


class Evaluation(pl.LightningModule):
    """What a model gives for a split, over all ranks. `loss_name`: the loss's name in reports. `z_loss`: the
    coefficient of `z_loss_sum` in training (PaLM: 1e-4)."""

    loss_name = "loss"
    z_loss: float = 0.0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def loss_sums(self, batch: Batch) -> LossSums:
        """The summed loss of a batch's target tokens, how many they are, and auxiliary sums over them."""

    def prepare(self, batch: Batch) -> Prepared:
        """The batch with what its loss has to know on the host, lest a step wait for the device: counts, places."""
        return batch

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Prepared:
        return self.prepare(batch)

    def training_sums(self, batch: Batch) -> TrainingSums:
        """`loss_sums` with what a training adds to the loss (see `layers.added`), each under its own name."""
        with collecting() as found:
            sums = self.loss_sums(batch)
        return with_added(sums, found, batch, self.targets_by_row(batch)) if found else TrainingSums(*sums)

    def targets_by_row(self, batch: Batch) -> Tensor | None:
        """How many target tokens each row of a batch has, (B,); None: all as many."""
        return batch["is_target"].sum(dim=1) if "is_target" in batch else None

    def add_z_loss(self, logits_NV: Tensor, targets_N: Tensor) -> None:
        """Leaves the z-loss of a batch's targets, where the task has one and a training collects it."""
        if self.z_loss and (added := collected()) is not None:
            added.add("z_loss", self.z_loss * z_loss_sum(logits_NV, targets_N))

    def cross_entropy(self, sums: LossSums) -> Tensor:
        """The summed cross-entropy of a batch's targets alone: not smoothed, without other losses."""
        return sums.auxiliary.get("loss", sums.loss)

    def targets(self, batch: Batch) -> Tensor | None:
        """The target tokens (N,) that a batch's loss is over; None in a task whose targets are no tokens."""
        return None

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model evaluates: without gradients, in the precision and on the device of training."""
        if self._trainer is not None:
            # Lightning leaves a model that it has trained on the CPU, where a GPU's autocast does nothing.
            self.to(self.trainer.strategy.root_device)
        was_training = self.model.training
        self.model.eval()  # a training leaves dropout on
        with self._gathered(), torch.inference_mode(), self._autocast():
            yield
        self.model.train(was_training)

    def score_sums(self, loader: Iterable[Batch]) -> tuple[dict[str, float], int]:
        """The sums by name over a loader and over all ranks, and the number of tokens."""
        with self.evaluating():
            return self.sum_up([self._named_sums(self.on_device(batch)) for batch in loader])

    def score(self, loader: Iterable[Batch]) -> dict[str, float]:
        """The means a token by name, over a loader and over all ranks."""
        sums, tokens = self.score_sums(loader)
        return {name: value / max(1, tokens) for name, value in sums.items()}

    def predictions(self, loader: Iterable[Batch], predict: Callable[[Batch], Sequence[T]]) -> dict[int, T]:
        """What `predict` (a batch to one value an example) gives, by the batch's `ids`, over all ranks."""
        found: dict[int, T] = {}
        with self.evaluating():
            for batch in loader:
                found |= dict(zip(batch["ids"].tolist(), predict(self.on_device(batch)), strict=True))
        everything = {example: value for part in self.of_all_ranks(found) for example, value in part.items()}
        return dict(sorted(everything.items()))

    def on_device(self, batch: Batch) -> dict[str, Tensor]:
        """The batch, prepared, with its tensors where the model is."""
        return {key: x.to(self.device) if isinstance(x, Tensor) else x for key, x in self.prepare(batch).items()}

    def sum_up(self, parts: list[dict[str, Number]]) -> tuple[dict[str, float], int]:
        """The sums over batches and ranks, in double precision, and the number of tokens."""
        columns = [torch.stack([torch.as_tensor(part[name]) for part in parts]) for name in parts[0]]
        sums = torch.stack([column.cpu().double().sum() for column in columns])
        if self._trainer is not None and self.trainer.world_size > 1:
            sums = self.reduce(sums.to(self.device))
        found = dict(zip(parts[0], sums.tolist(), strict=True))
        return found, int(found.pop("tokens"))

    def reduce(self, sums: Tensor) -> Tensor:
        """The sums over all ranks."""
        found: Tensor = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return found

    def of_all_ranks(self, here: T) -> list[T]:
        """What each rank has; all of them have to ask."""
        if self._trainer is None or self.trainer.world_size == 1:
            return [here]
        found: list[T] = [here] * self.trainer.world_size
        torch.distributed.all_gather_object(found, here)
        return found

    def _named_sums(self, batch: Batch) -> dict[str, Number]:
        sums = self.loss_sums(batch)
        auxiliary = {name: value.detach() for name, value in sums.auxiliary.items()}
        return {"tokens": sums.tokens, self.loss_name: sums.loss.detach(), **auxiliary}

    def _gathered(self) -> contextlib.AbstractContextManager[object]:
        """Inside, every rank has all weights, where each keeps a share of them."""
        if self.device_mesh is None:
            return contextlib.nullcontext()
        from attnlab.training.sharding import gathered

        return gathered(self)

    def _whole(self, state: T) -> T:
        """A state with all tensors whole, where each rank keeps a share of them; all ranks have to ask."""
        if self.device_mesh is None:
            return state
        from attnlab.training.sharding import whole

        return whole(state)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision that the training ran in; fp32 for a task without a trainer."""
        alone = self._trainer is None
        return torch.autocast("cpu", enabled=False) if alone else self.trainer.precision_plugin.forward_context()
