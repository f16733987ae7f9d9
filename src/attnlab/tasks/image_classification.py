"""Image classification. Legend: B batch, C classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from attnlab.data.image_data import ImageData
from attnlab.models.vit import ViT
from attnlab.tasks.classification import Classification


class ImageClassification(Classification):
    """One class an image: nats an image, accuracy, macro-F1."""

    data_type: ClassVar[type] = ImageData
    model_type: ClassVar[type] = ViT

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's, (B, C)."""
        logits_BC: Tensor = self.model(batch["images"])
        return logits_BC
