"""Span corruption: tell what stood where a text has sentinels. Legend: B batch, T target length, V vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from attnlab.data.span_corruption_text import SpanCorruptionData
from attnlab.models.seq2seq import Seq2Seq
from attnlab.tasks.losses import IGNORED, cross_entropy_sums
from attnlab.tasks.translation import mask_of
from attnlab.training import TokenTask
from attnlab.training.measures import of_both_parts


class SpanCorruption(TokenTask):
    """
    The pretraining of T5 (Raffel et al. 2020, section 3.1.4): teacher forcing on the spans that were taken out.

    Reported as nats a target token, sentinels and the end included, and as `accuracy`, the share of target tokens that are the most
    probable ones given those before them.
    """

    headline = ("val/nats", "test/nats", "test/accuracy")
    data_type = SpanCorruptionData
    model_type = Seq2Seq

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts."""
        return of_both_parts(("nats", "accuracy"))

    def loss_sums(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropy of the batch's target tokens, and how many they are."""
        is_source, is_target = mask_of(batch["is_source"]), mask_of(batch["is_target"])
        logits_BTV = self.model(batch["source"], batch["target_in"], is_source, is_target)
        targets_BT = batch["target_out"]
        right_BT = (logits_BTV.detach().argmax(dim=-1) == targets_BT) & batch["is_target"]
        self.also({"accuracy": right_BT.sum()})
        counted_BT = targets_BT.masked_fill(~batch["is_target"], IGNORED)
        nats, _ = cross_entropy_sums(logits_BTV.flatten(0, 1), counted_BT.flatten())
        return nats, int(batch["is_target"].sum())

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target tokens, END included."""
        return batch["target_out"][batch["is_target"]]

    def evaluate(self, data: Any, split: str = "test") -> dict[str, float]:
        """Nats and accuracy of a split."""
        prefix = {"validation": "val"}.get(split, split)
        return {f"{prefix}/{name}": value for name, value in self.score(data.evaluation_loader(split)).items()}
