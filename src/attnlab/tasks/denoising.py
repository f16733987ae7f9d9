"""Denoising: restore what was hidden in a text. Legend: B batch, T length, N masked tokens, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from attnlab.data.masked_text import MaskedTextData
from attnlab.data.module import IGNORED
from attnlab.data.span_corruption import SpanCorruptionData
from attnlab.models.base import Seq2Seq
from attnlab.models.bert import Bert
from attnlab.ranges import check_ranges
from attnlab.tasks.translation import teacher_forced
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import (
    ACCURACY,
    LOSS,
    NATS,
    NEXT_SENTENCE_ACCURACY,
    NEXT_SENTENCE_NATS,
    PERPLEXITY,
    Metric,
)
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import Table

NUM_RESTORED = 8  # texts of a table of samples


@check_ranges
class MaskedLanguageModelling(Task):
    """Nats a masked token, their perplexity, and the share restored (Devlin et al. 2019, section 3.1).

    masked_only: the output layer is computed where a token is masked, and nowhere else; the loss and gradients are the
    same. With data.next_sentence the loss is that of a masked token plus that of its pair of segments, and both are
    reported; a pair counts as often as it has masked tokens.
    """

    headline = ("val/*", "test/*")
    data_type: ClassVar[type] = MaskedTextData
    model_type: ClassVar[type] = Bert
    model: Bert

    def __init__(self, model: Bert, masked_only: bool = True, next_sentence: bool = False) -> None:
        super().__init__(model)
        self.masked_only, self.next_sentence = masked_only, next_sentence
        self.loss_name = "loss" if next_sentence else "nats"

    @classmethod
    def metrics(cls, config: Mapping[str, Any]) -> Sequence[Metric]:
        of_pairs = [LOSS, NEXT_SENTENCE_NATS, NEXT_SENTENCE_ACCURACY] if config["data"].get("next_sentence") else []
        return [NATS, ACCURACY, PERPLEXITY, *of_pairs]

    def loss_sums(self, batch: Batch) -> LossSums:
        chosen_BT, targets_BT = batch["chosen"], batch["targets"]
        states_BTD = self.model.encode(batch["tokens"], segments_BT=batch.get("segments"))
        if self.masked_only:
            logits, targets = self.model.predict(states_BTD, chosen_BT), targets_BT[chosen_BT]
        else:
            logits = self.model.predict(states_BTD).flatten(0, 1)
            targets = targets_BT.masked_fill(~chosen_BT, IGNORED).flatten()
        loss, nats = cross_entropy_sums(logits, targets, ignore=IGNORED)
        tokens = int(chosen_BT.sum())
        auxiliary = {"accuracy": (logits.argmax(dim=-1) == targets).sum()}
        if self.next_sentence:
            # Each pair as often as it has masked tokens, so that splitting a batch changes no sum. Where all have as
            # many (without whole words), a mean over tokens is a mean over pairs.
            masked_B = chosen_BT.sum(dim=1)
            follows_B2 = self.model.follows(states_BTD).float()
            pairs = (masked_B * F.cross_entropy(follows_B2, batch["follows"], reduction="none")).sum()
            right = (masked_B * (follows_B2.argmax(dim=1) == batch["follows"])).sum()
            auxiliary |= {"nats": nats, "next_sentence_nats": pairs, "next_sentence_accuracy": right}
            loss = loss + pairs
        return LossSums(loss, tokens, auxiliary)

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets"][batch["chosen"]]

    def figures_of_sums(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        means = super().figures_of_sums(sums, tokens)
        return means | {"perplexity": math.exp(means["nats"]) if means["nats"] < 700 else math.inf}

    def samples(self, data: MaskedTextData, split: str = "test") -> Table | None:
        """The first texts of a split, what was masked in each, and what the model puts there."""
        whole = self.on_device(next(iter(data.evaluation_loader(split))))
        batch = {name: value[:NUM_RESTORED] for name, value in whole.items()}
        chosen_BT, restored_BT = batch["chosen"], batch["targets"].clone()
        states_BTD = self.model.encode(batch["tokens"], segments_BT=batch.get("segments"))
        restored_BT[chosen_BT] = self.model.predict(states_BTD, chosen_BT).argmax(dim=-1)
        text_BT = batch["tokens"].where(~chosen_BT, batch["targets"])
        rows = []
        for text_T, restored_T, chosen_T in zip(text_BT, restored_BT, chosen_BT, strict=True):
            pieces = ([data.vocabulary.decode([i]) for i in of_T[chosen_T].tolist()] for of_T in (text_T, restored_T))
            rows.append((data.vocabulary.decode(text_T.tolist()), *map(" | ".join, pieces)))
        return Table(("text", "masked", "restored"), rows)


class SpanCorruption(Task):
    """The pretraining of T5 (Raffel et al. 2020, section 3.1.4): teacher forcing on the spans that were taken out.

    Reported as nats a target token, sentinels and the end included, and as `accuracy`, the share of target tokens that
    are the most probable ones given those before them.
    """

    headline = ("val/nats", "test/nats", "test/accuracy")
    data_type: ClassVar[type] = SpanCorruptionData
    model_type: ClassVar[type] = Seq2Seq
    model: Seq2Seq

    @classmethod
    def metrics(cls, config: Mapping[str, Any]) -> Sequence[Metric]:
        return [NATS, ACCURACY]

    def loss_sums(self, batch: Batch) -> LossSums:
        logits_BTV, targets_BT = teacher_forced(self.model, batch)
        right_BT = logits_BTV.detach().argmax(dim=-1) == targets_BT  # never where a target does not count
        nats, _ = cross_entropy_sums(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore=IGNORED)
        return LossSums(nats, int(batch["is_target"].sum()), {"accuracy": right_BT.sum()})

    def targets(self, batch: Batch) -> Tensor:
        return batch["target_out"][batch["is_target"]]
