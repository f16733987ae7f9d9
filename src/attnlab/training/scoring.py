"""Sums of a task over batches, loaders and ranks, and what a model predicts for every example."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from attnlab.training.sharding import gathered


class Scoring(pl.LightningModule):
    """A model whose batches are scored by sums over their target tokens; a subclass gives `loss_sums`.

    loss_name: what the summed loss is reported as.
    """

    loss_name: str = "nats"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._also: dict[str, Tensor] = {}

    def also(self, sums: Mapping[str, Tensor]) -> None:
        """Called by `loss_sums`: other sums over the same tokens, reported as their means (train/<name>, val/<name>)."""
        self._also = {name: value.detach() for name, value in sums.items()}

    @abstractmethod
    def loss_sums(self, batch: Any) -> tuple[Tensor, int | Tensor]:
        """The summed loss in nats of a batch's target tokens, with gradient, and how many they are (an int saves a wait)."""
        raise NotImplementedError(f"{type(self).__name__} gives no loss_sums")

    def all_sums(self, batch: Any) -> tuple[Tensor, int | Tensor, dict[str, Tensor]]:
        """`loss_sums`, with what it handed to `also`."""
        nats, tokens = self.loss_sums(batch)
        also, self._also = self._also, {}
        return nats, tokens, also

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode, without gradients, in the precision and on the device that the training ran on."""
        if self._trainer is not None:
            # Lightning leaves a model that it has trained on the CPU, where a GPU's autocast does nothing.
            self.to(self.trainer.strategy.root_device)
        was_training = self.model.training
        self.model.eval()  # a training leaves dropout on
        with gathered(self), torch.inference_mode(), self._autocast():
            yield
        self.model.train(was_training)

    def score_sums(self, loader: Iterable[Any]) -> tuple[dict[str, float], int]:
        """The sums by name over a loader and over all ranks, and the number of tokens."""
        parts = []
        with self.evaluating():
            for batch in loader:
                nats, tokens, also = self.all_sums(self.on_device(batch))
                parts.append({"tokens": tokens, self.loss_name: nats, **also})
        return self.sum_up(parts)

    def score(self, loader: Iterable[Any]) -> dict[str, float]:
        """The means a token by name, over a loader and over all ranks."""
        sums, tokens = self.score_sums(loader)
        return {name: value / max(1, tokens) for name, value in sums.items()}

    def predictions(self, loader: Iterable[Any], predict: Callable[[Any], Sequence[Any]]) -> dict[int, Any]:
        """What `predict` (a batch to one value an example) gives, by the batch's `ids`, over all ranks."""
        found: dict[int, Any] = {}
        with self.evaluating():
            for batch in loader:
                found |= dict(zip(batch["ids"].tolist(), predict(self.on_device(batch)), strict=True))
        if self._trainer is not None and self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, found)
            found = {example: value for part in gathered for example, value in part.items()}
        return dict(sorted(found.items()))

    def on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its tensors where the model is."""
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _autocast(self) -> Any:
        """The precision that the training ran in; fp32 for a task without a trainer."""
        if self._trainer is None:
            return torch.autocast("cpu", enabled=False)
        return self.trainer.precision_plugin.forward_context()

    def sum_up(self, parts: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
        """The sums over batches and ranks, in double precision, and the number of tokens."""
        columns = [torch.stack([torch.as_tensor(part[name]) for part in parts]) for name in parts[0]]
        sums = torch.stack([column.cpu().double().sum() for column in columns])
        if self._trainer is not None and self.trainer.world_size > 1:
            sums = self.reduce(sums.to(self.device))
        found = dict(zip(parts[0], sums.tolist(), strict=True))
        return found, int(found.pop("tokens"))

    def reduce(self, sums: Tensor) -> Tensor:
        """The sums over all ranks."""
        return self.trainer.strategy.reduce(sums, reduce_op="sum")
