"""One class an example: of images and of texts. Legend: B batch, T length, C classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_stat_scores

from attnlab.data.classification import ClassificationData
from attnlab.data.image_data import ImageData
from attnlab.data.special_tokens import SpecialTokens
from attnlab.models.base import Encoder
from attnlab.models.heads import SequenceClassifier
from attnlab.models.vit import ViT
from attnlab.parts import Config
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.pretrained import EncoderTask, load_pretrained_vit, mask_for
from attnlab.tasks.translation import mask_of
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import ACCURACY, LOSS, LOSS_SMOOTHED, MACRO_F1, Metric
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import NUM_SAMPLES, Table, Thumbnail, thumbnail


@check_ranges
class Classification(Task):
    """One class an example: nats an example, accuracy, and the mean F1 of all classes alike (macro-F1).

    A subclass gives `logits` and `shown`. A batch has `labels` (B,), `ids` (B,) and, where an example may be of several
    classes by shares, `targets` (B, C). An example is one term of the loss.
    """

    monitor = ACCURACY
    headline = ("val/loss", "val/accuracy", "val/macro_f1", "test/accuracy", "test/macro_f1")
    validates_figures = True

    def __init__(self, model: nn.Module, label_smoothing: Rate = 0.0) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing
        self.loss_name = "loss_smoothed" if label_smoothing else "loss"

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        return [LOSS, *([LOSS_SMOOTHED] if config["task"].get("label_smoothing") else []), ACCURACY, MACRO_F1]

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """The logits (B, C) of a batch."""

    @abstractmethod
    def shown(self, data: Any, split: str, row: int) -> str | Thumbnail:
        """An example as people see it."""

    def loss_sums(self, batch: Batch) -> LossSums:
        logits_BC, labels_B = self.logits(batch), batch["labels"]
        if "targets" in batch:
            smoothed, loss = shared_cross_entropy_sums(logits_BC, batch["targets"], self.label_smoothing)
        else:
            smoothed, loss = cross_entropy_sums(logits_BC, labels_B, self.label_smoothing)
        auxiliary = {"accuracy": (logits_BC.argmax(dim=1) == labels_B).sum()}
        return LossSums(smoothed, len(labels_B), auxiliary | ({"loss": loss} if self.label_smoothing else {}))

    def figures(self, data: Any, split: str) -> dict[str, float]:
        loader, labels = data.evaluation_loader(split), data.labels(split)
        found = self.predictions(loader, lambda batch: self.logits(batch).argmax(dim=1).tolist())
        predicted = [found[example] for example in range(len(labels))]
        self.outputs[f"{split}.classes.txt"] = "".join(f"{data.classes[i]}\n" for i in predicted)
        return self.score(loader) | {"macro_f1": macro_f1(predicted, labels, len(data.classes))}

    def samples(self, data: Any, split: str = "test") -> Table | None:
        """The first examples that were put into a wrong class; where there is none, the first of all."""
        predicted = self.outputs.get(f"{split}.classes.txt", "").split("\n")[:-1]
        labels = [data.classes[number] for number in data.labels(split)]
        wrong = [row for row, label in enumerate(labels) if label != predicted[row]] or list(range(len(labels)))
        rows = [(self.shown(data, split, row), labels[row], predicted[row]) for row in wrong[:NUM_SAMPLES]]
        return Table((data.unit, "class", "put into"), rows)


@check_ranges
class ImageClassification(Classification):
    """One class an image. pretrained: the directory of a run to start from, whose images may be of another size."""

    data_type: ClassVar[type] = ImageData
    model_type: ClassVar[type] = ViT
    model: ViT

    def __init__(self, model: ViT, pretrained: str | None = None, label_smoothing: Rate = 0.0) -> None:
        super().__init__(model, label_smoothing)
        self.pretrained = pretrained

    def initialise(self) -> list[str]:
        return [] if self.pretrained is None else [load_pretrained_vit(self.model, self.pretrained)]

    def logits(self, batch: Batch) -> Tensor:
        logits_BC: Tensor = self.model(batch["images"])
        return logits_BC

    def shown(self, data: ImageData, split: str, row: int) -> Thumbnail:
        return thumbnail(data.split(split).pixels[row])


@check_ranges
class SequenceClassification(Classification, EncoderTask):
    """One class a text, from an encoder's states. pooling, dropout, token_dropout: see SequenceClassifier."""

    data_type: ClassVar[type] = ClassificationData
    model_type: ClassVar[type] = Encoder

    def __init__(
        self,
        model: Encoder,
        num_classes: PositiveInt,
        special_tokens: SpecialTokens,
        pretrained: str | None = None,
        pooling: Literal["first", "mean"] = "mean",
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
        label_smoothing: Rate = 0.0,
    ) -> None:
        mask = mask_for(token_dropout, special_tokens)
        super().__init__(
            SequenceClassifier(model, num_classes, pooling, dropout=dropout, token_dropout=token_dropout, mask=mask),
            label_smoothing,
        )
        self.pretrained = pretrained

    def logits(self, batch: Batch) -> Tensor:
        logits_BC: Tensor = self.model(batch["tokens"], mask_of(batch["is_token"]))
        return logits_BC

    def shown(self, data: ClassificationData, split: str, row: int) -> str:
        """The text, as far as the model sees it."""
        return data.vocabulary.decode(data.split(split).rows[row])


def shared_cross_entropy_sums(logits_BC: Tensor, targets_BC: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`cross_entropy_sums` where each class has a share of the target; the same where one class has it all."""
    logits_BC = logits_BC.float()
    loss = F.cross_entropy(logits_BC, targets_BC, reduction="sum")
    smoothed = F.cross_entropy(logits_BC, targets_BC, reduction="sum", label_smoothing=smoothing) if smoothing else loss
    return smoothed, loss.detach()


def macro_f1(predicted: Sequence[int], labels: Sequence[int], num_classes: int) -> float:
    """The mean F1 of the classes that occur or are predicted, in double precision."""
    given, found = torch.as_tensor(np.asarray(labels)), torch.as_tensor(np.asarray(predicted))
    counts_C5 = multiclass_stat_scores(found, given, num_classes=max(2, num_classes), average=None)
    right_C, wrong_C, _, missed_C, _ = counts_C5.double().numpy().T
    is_there_C = right_C + wrong_C + missed_C > 0
    return float((2 * right_C / (2 * right_C + wrong_C + missed_C))[is_there_C].mean())
