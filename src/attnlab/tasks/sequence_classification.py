"""Text classification. Legend: B batch, T length, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer

from attnlab.data.classification import ClassificationData
from attnlab.data.marks import Marks
from attnlab.models.encoder import Encoder
from attnlab.models.heads import SequenceClassifier
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.classification import Classification
from attnlab.tasks.encoder_task import EncoderTask, mask_for
from attnlab.tasks.translation import mask_of


@check_ranges
class SequenceClassification(Classification, EncoderTask):
    """
    One class a text, from an encoder's states: nats a text, accuracy, and the mean F1 of all classes alike (macro-F1).

    pretrained: see EncoderTask. pooling, dropout, token_dropout: see SequenceClassifier. A text is one term of the loss.
    """

    data_type: ClassVar[type] = ClassificationData
    model_type: ClassVar[type] = Encoder

    def __init__(
        self,
        model: Encoder,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        num_classes: PositiveInt,
        marks: Marks,
        pretrained: str | None = None,
        pooling: Literal["first", "mean"] = "mean",
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
        label_smoothing: Rate = 0.0,
        log_every: PositiveInt = 10,
    ) -> None:
        classifier = SequenceClassifier(
            model, num_classes, pooling, dropout, token_dropout, mask_for(token_dropout, marks)
        )
        super().__init__(classifier, optimizer, schedule, label_smoothing, log_every)
        self.pretrained = pretrained

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The classifier's, (B, C)."""
        logits_BC: Tensor = self.model(batch["tokens"], mask_of(batch["is_token"]))
        return logits_BC

    def shown(self, data: ClassificationData, split: str, row: int) -> str:
        """The text, as far as the model sees it."""
        return data.vocabulary.decode(data.split(split).rows[row])
