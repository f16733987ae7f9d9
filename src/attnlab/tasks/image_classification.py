"""Image classification. Legend: B batch, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from attnlab.data.image_data import ImageData
from attnlab.models.vit import ViT
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.classification import Classification
from attnlab.tasks.pretrained import load_pretrained_vit
from attnlab.training.media import Thumbnail, thumbnail


@check_ranges
class ImageClassification(Classification):
    """
    One class an image: nats an image, accuracy, macro-F1.

    pretrained: the directory of a run to start from, whose images may be of another size; None: from scratch.
    """

    data_type: ClassVar[type] = ImageData
    model_type: ClassVar[type] = ViT

    def __init__(
        self,
        model: ViT,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        pretrained: str | None = None,
        label_smoothing: Rate = 0.0,
        log_every: PositiveInt = 10,
    ) -> None:
        super().__init__(model, optimizer, schedule, label_smoothing, log_every)
        self.pretrained = pretrained

    def initialise(self) -> list[str]:
        """Takes the weights of the pretrained run, where there is one."""
        if self.pretrained is None:
            return []
        assert isinstance(self.model, ViT)
        return [load_pretrained_vit(self.model, self.pretrained)]

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's, (B, C)."""
        logits_BC: Tensor = self.model(batch["images"])
        return logits_BC

    def shown(self, data: ImageData, split: str, row: int) -> Thumbnail:
        """The image."""
        return thumbnail(data.split(split).pixels[row])
