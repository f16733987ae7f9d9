"""What every task shares that puts examples into classes. Legend: B batch, C classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.losses import cross_entropy_sums
from attnlab.training import NUM_SAMPLES, Table, TokenTask
from attnlab.training.measures import of_both_parts
from attnlab.training.media import Thumbnail


@check_ranges
class Classification(TokenTask):
    """
    One class an example: nats an example, accuracy, and the mean F1 of all classes alike (macro-F1); a subclass gives `logits`.

    A batch has `labels` (B,), `ids` (B,) and, where an example may be of several classes by shares, `targets` (B, C). An example is one
    term of the loss. Raises ValueError for a label_smoothing outside of 0 to 1.
    """

    monitor = "val/accuracy"
    monitor_lower = False
    headline = ("val/nats", "val/accuracy", "val/macro_f1", "test/accuracy", "test/macro_f1")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        label_smoothing: Rate = 0.0,
        log_every: PositiveInt = 10,
    ) -> None:
        super().__init__(model, optimizer, schedule, log_every)
        self.label_smoothing = label_smoothing
        self.loss_name = "smoothed_nats" if label_smoothing else "nats"

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts."""
        smoothed = ("smoothed_nats",) if config["task"].get("label_smoothing") else ()
        return of_both_parts(("nats", *smoothed, "accuracy", "macro_f1"))

    @abstractmethod
    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, C) of a batch."""
        raise NotImplementedError(f"{type(self).__name__} gives no logits")

    def loss_sums(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropy of the batch's examples, and how many they are."""
        logits_BC, labels_B = self.logits(batch), batch["labels"]
        if "targets" in batch:
            smoothed, nats = shared_cross_entropy_sums(logits_BC, batch["targets"], self.label_smoothing)
        else:
            smoothed, nats = cross_entropy_sums(logits_BC, labels_B, self.label_smoothing)
        also = {"accuracy": (logits_BC.argmax(dim=1) == labels_B).sum()}
        self.also(also | ({"nats": nats} if self.label_smoothing else {}))
        return smoothed, len(labels_B)

    def validate(self, data: Any) -> dict[str, float]:
        """All figures of the validation part."""
        return self.evaluate(data, "validation")

    def evaluate(self, data: Any, split: str = "test") -> dict[str, float]:
        """Nats, accuracy and macro-F1 of a split."""
        prefix, loader = {"validation": "val"}.get(split, split), data.evaluation_loader(split)
        figures = self.score(loader)
        found = self.predictions(loader, lambda batch: self.predict(batch).tolist())
        labels = data.labels(split)
        predicted = np.array([found[example] for example in range(len(labels))])
        from sklearn.metrics import f1_score  # half a second, in which other tasks have begun

        figures["macro_f1"] = float(f1_score(labels, predicted, average="macro", zero_division=0.0))
        self.outputs[f"{split}.classes.txt"] = "".join(f"{data.classes[i]}\n" for i in predicted)
        return {f"{prefix}/{name}": value for name, value in figures.items()}

    def samples(self, data: Any, split: str = "test") -> Table | None:
        """The first examples that were put into a wrong class; where there is none, the first of all."""
        predicted = self.outputs.get(f"{split}.classes.txt", "").split("\n")[:-1]
        labels = [data.classes[number] for number in data.labels(split)]
        wrong = [row for row, label in enumerate(labels) if label != predicted[row]] or list(range(len(labels)))
        rows = [(self.shown(data, split, row), labels[row], predicted[row]) for row in wrong[:NUM_SAMPLES]]
        return Table((data.unit, "class", "put into"), rows)

    @abstractmethod
    def shown(self, data: Any, split: str, row: int) -> str | Thumbnail:
        """An example as people see it."""
        raise NotImplementedError(f"{type(self).__name__} gives no shown")

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The most probable class of each example, (B,)."""
        return self.logits(batch).argmax(dim=1)


def shared_cross_entropy_sums(logits_BC: Tensor, targets_BC: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy in nats where each class has a share of the target, with label smoothing and without.

    The same as `cross_entropy_sums` where one class has it all. Only the first sum has a gradient.
    """
    logits_BC = logits_BC.float()
    nats = F.cross_entropy(logits_BC, targets_BC, reduction="sum")
    smoothed = F.cross_entropy(logits_BC, targets_BC, reduction="sum", label_smoothing=smoothing) if smoothing else nats
    return smoothed, nats.detach()
