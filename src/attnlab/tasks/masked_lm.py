"""Masked language modelling: restore the tokens that were hidden. Legend: B batch, T length, N masked tokens, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from attnlab.data.masked_text import MaskedTextData
from attnlab.models.bert import Bert
from attnlab.ranges import PositiveInt, check_ranges
from attnlab.tasks.losses import cross_entropy_sums
from attnlab.training import Table, TokenTask
from attnlab.training.measures import of_both_parts

IGNORED = -100
NUM_RESTORED = 8  # texts of a table of samples


@check_ranges
class MaskedLanguageModelling(TokenTask):
    """
    Nats a masked token, their perplexity, and the share restored (Devlin et al. 2019, section 3.1).

    masked_only: the output layer is computed where a token is masked, and nowhere else; the loss and gradients are the same. With
    data.next_sentence the loss is that of a masked token plus that of its pair of segments, and both are reported; a pair counts
    as often as it has masked tokens.
    """

    headline = ("val/*", "test/*")
    data_type = MaskedTextData
    model_type = Bert

    def __init__(
        self,
        model: Bert,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        masked_only: bool = True,
        next_sentence: bool = False,
        log_every: PositiveInt = 10,
    ) -> None:
        super().__init__(model, optimizer, schedule, log_every)
        self.masked_only, self.next_sentence = masked_only, next_sentence
        self.loss_name = "loss" if next_sentence else "nats"

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts; those of pairs of segments where the data have them."""
        pairs = ("loss", "next_sentence_nats", "next_sentence_accuracy") if config["data"].get("next_sentence") else ()
        return of_both_parts(("nats", "accuracy", "perplexity", *pairs))

    def loss_sums(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropy of the masked tokens, and how many they are."""
        assert isinstance(self.model, Bert)
        chosen_BT, targets_BT = batch["chosen"], batch["targets"]
        states_BTD = self.model.encode(batch["tokens"], segments_BT=batch.get("segments"))
        if self.masked_only:
            logits, targets = self.model.predict(states_BTD, chosen_BT), targets_BT[chosen_BT]
        else:
            logits = self.model.predict(states_BTD).flatten(0, 1)
            targets = targets_BT.masked_fill(~chosen_BT, IGNORED).flatten()
        loss, nats = cross_entropy_sums(logits, targets, ignore=IGNORED)
        tokens = int(chosen_BT.sum())
        also = {"accuracy": (logits.argmax(dim=-1) == targets).sum()}
        if self.next_sentence:
            # Each pair as often as it has masked tokens, so that splitting a batch changes no sum. Where all have as many, which
            # they have without whole words, a mean over tokens is a mean over pairs.
            masked_B = chosen_BT.sum(dim=1)
            follows_B2 = self.model.follows(states_BTD).float()
            pairs = (masked_B * F.cross_entropy(follows_B2, batch["follows"], reduction="none")).sum()
            right = (masked_B * (follows_B2.argmax(dim=1) == batch["follows"])).sum()
            also |= {"nats": nats, "next_sentence_nats": pairs, "next_sentence_accuracy": right}
            loss = loss + pairs
        self.also(also)
        return loss, tokens

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The tokens that were masked."""
        return batch["targets"][batch["chosen"]]

    def validation_metrics(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        """The means, and the perplexity of a masked token."""
        return _with_perplexity("val", {name: value / max(1, tokens) for name, value in sums.items()})

    def evaluate(self, data: MaskedTextData, split: str = "test") -> dict[str, float]:
        """The figures of a split."""
        return _with_perplexity({"validation": "val"}.get(split, split), self.score(data.evaluation_loader(split)))

    def samples(self, data: MaskedTextData, split: str = "test") -> Table | None:
        """The first texts of a split, what was masked in each, and what the model puts there."""
        assert isinstance(self.model, Bert)
        whole = self.on_device(next(iter(data.evaluation_loader(split))))
        batch = {name: value[:NUM_RESTORED] for name, value in whole.items()}
        chosen_BT, segments_BT = batch["chosen"], batch.get("segments")
        restored_BT = batch["targets"].clone()
        states_BTD = self.model.encode(batch["tokens"], segments_BT=segments_BT)
        restored_BT[chosen_BT] = self.model.predict(states_BTD, chosen_BT).argmax(dim=-1)
        text_BT = batch["tokens"].where(~chosen_BT, batch["targets"])
        rows = []
        for text_T, restored_T, chosen_T in zip(text_BT, restored_BT, chosen_BT, strict=True):
            pieces = [
                [data.vocabulary.decode([token]) for token in of_T[chosen_T].tolist()] for of_T in (text_T, restored_T)
            ]
            rows.append((data.vocabulary.decode(text_T.tolist()), *(" | ".join(words) for words in pieces)))
        return Table(("text", "masked", "restored"), rows)


def _with_perplexity(prefix: str, means: Mapping[str, float]) -> dict[str, float]:
    perplexity = math.exp(means["nats"]) if means["nats"] < 700 else math.inf
    return {f"{prefix}/{name}": value for name, value in {**means, "perplexity": perplexity}.items()}
