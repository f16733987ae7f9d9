"""Language modelling: predict each token from those before it, or restore what was hidden in a text.

Shapes: B batch, T length, N masked tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from attnlab.data import TextData
from attnlab.data.denoising import MaskedTextData
from attnlab.data.module import IGNORED
from attnlab.data.span_corruption import SpanCorruptionData
from attnlab.data.tokenizers import words_of
from attnlab.data.windows import EvaluationWindows
from attnlab.generation.sampling import Sampler, generate
from attnlab.models import Bert
from attnlab.models.base import LanguageModel, Seq2Seq
from attnlab.parts import Config, Prepared
from attnlab.ranges import NonNegativeFloat, PositiveInt, check_ranges, must_be
from attnlab.tasks.translation import counted, teacher_forced
from attnlab.training import metrics
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import ACCURACY, LOSS, PERPLEXITY, SLIDING, Metric, perplexity, prefix_of
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import Table

FIGURES = (LOSS, metrics.BITS_PER_BYTE, PERPLEXITY, metrics.WORD_PERPLEXITY)
LENGTHS = (1, 2, 4, 8)  # multiples of the training length
NUM_CONTINUED, MOST_CONTINUED = 8, 96  # texts that a table of samples goes on from, and by how many tokens
NUM_RESTORED = 8  # texts of a table of samples


@check_ranges
class CausalLanguageModelling(Task):
    """Next-token prediction with its figures: loss a token, bits a byte, perplexity a token and a word.

    At the end it is evaluated at every multiple of the training length in `evaluation_lengths`, with windows that do
    not overlap (`test/loss@4x`) and, where `sliding`, with windows that move by half their length and score their
    second half (`test/sliding_loss@4x`), on the same `evaluation_tokens` tokens each time. A length that the model or
    the text cannot serve is an outcome: `unavailable` names it with the reason. Bits a byte and perplexity a word
    compare models of different tokenizers. z_loss: see Evaluation.
    """

    predicts_ahead: ClassVar[bool] = True  # every token after the next one is a target, too
    headline = ("val/*", "test/loss@*", "test/sliding_loss@*")
    use = 'generate RUN --prompt "TEXT"'
    data_type: ClassVar[type] = TextData
    model_type: ClassVar[type] = LanguageModel
    model: LanguageModel

    def __init__(
        self,
        model: LanguageModel,
        evaluation_lengths: Sequence[PositiveInt] = LENGTHS,
        evaluation_tokens: PositiveInt = 16384,
        sliding: bool = True,
        z_loss: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(model)
        self.z_loss = z_loss
        if not evaluation_lengths:
            wanted = "a list of multiples of the training length, such as [1]"
            raise ValueError(must_be("task.evaluation_lengths", wanted, evaluation_lengths))
        self.evaluation_lengths, self.evaluation_tokens = sorted(evaluation_lengths), evaluation_tokens
        self.kinds = ("", SLIDING) if sliding else ("",)

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        task = config["task"]
        at = [f"{multiple}x" for multiple in task.get("evaluation_lengths", LENGTHS)]
        windows = FIGURES if task.get("sliding", True) else ()
        sliding = [replace(metric, name=SLIDING + metric.name) for metric in windows]
        return [*(m.on("val") for m in FIGURES), *(m.on("test", at=at) for m in (*FIGURES, *sliding))]

    def loss_sums(self, batch: Batch) -> LossSums:
        """As every task's; targets that are not `scored` do not count, and `late` ones have a sum of their own, too."""
        flat, targets = self.model(batch["tokens"]).flatten(0, 1).float(), batch["targets"].flatten()
        scored_BT, late_BT = batch.get("scored"), batch.get("late")
        if scored_BT is not None:
            flat, targets = flat[scored_BT.flatten()], targets[scored_BT.flatten()]
        auxiliary = {}
        if scored_BT is not None and late_BT is not None:
            late = late_BT[scored_BT]
            auxiliary["late_loss"] = F.cross_entropy(flat[late], targets[late], reduction="sum")
        self.add_z_loss(flat, targets)
        return LossSums(F.cross_entropy(flat, targets, reduction="sum"), targets.numel(), auxiliary)

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets"].flatten()

    def figures_of_sums(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it where a data module is used
        assert isinstance(data, TextData)
        return _figures(sums["loss"], tokens, *_text_size(data, "validation", data.val_dataloader()))

    def validate(self, data: TextData) -> dict[str, float]:
        if data.corpus.validation.num_tokens == 0:
            return {}
        figures = self._scored(data, "validation", data.val_dataloader())
        return {f"val/{name}": value for name, value in figures.items()}

    def _scored(self, data: TextData, split: str, loader: EvaluationWindows) -> dict[str, float]:
        sums, tokens = self.score_sums(loader)
        return _figures(sums["loss"], tokens, *_text_size(data, split, loader))

    def figures(self, data: TextData, split: str) -> dict[str, float]:
        """The figures at every evaluation length; a part of no tokens has none at all."""
        num_tokens, found = data.corpus.part(split).num_tokens, dict[str, float]()
        lengths = {k: k * data.context_length for k in self.evaluation_lengths}
        # Also where the model itself cannot serve it: all models are to score the same tokens.
        longest = max((length for length in lengths.values() if 2 * length < num_tokens), default=0)
        for multiple, length in lengths.items():
            if reason := self._why_not(split, num_tokens, length):
                self.unavailable |= {f"{prefix_of(split)}/{kind}loss@{multiple}x": reason for kind in self.kinds}
                continue
            loader = partial(data.evaluation_loader, split, length, max_tokens=self.evaluation_tokens, longest=longest)
            if len(self.kinds) == 1 or length % 2:
                of_kinds = {kind: self._scored(data, split, loader(sliding=bool(kind))) for kind in self.kinds}
            else:
                of_kinds = self._both_ways(data, split, loader)
            for kind, figures in of_kinds.items():
                found |= {f"{kind}{name}@{multiple}x": value for name, value in figures.items()}
        return found

    def _both_ways(
        self, data: TextData, split: str, loader: Callable[..., EvaluationWindows]
    ) -> dict[str, dict[str, float]]:
        """The figures by windows that do not overlap, and by sliding ones, of which every other is one of these."""
        apart = loader(shared=True)
        sums, tokens = self.score_sums(apart)
        between, _ = self.score_sums(loader(sliding=True, shared=True))
        size = _text_size(data, split, apart)
        losses = {"": sums["loss"], SLIDING: sums["late_loss"] + between["loss"]}
        return {kind: _figures(loss, tokens, *size) for kind, loss in losses.items()}

    def samples(self, data: TextData, split: str = "test") -> Table | None:
        """Texts of a split, cut off in the middle, and how the model goes on from there, within the training length; at
        most MOST_CONTINUED tokens of each."""
        tokens, half = data.corpus.part(split).tokens, max(1, min(data.context_length // 2, MOST_CONTINUED))
        starts = range(0, len(tokens) - 2 * half, max(2 * half, len(tokens) // NUM_CONTINUED))[:NUM_CONTINUED]
        if not starts:
            return None
        prompts = [tokens[start : start + half].tolist() for start in starts]
        ends = special_tokens.ends if (special_tokens := data.tokenizer.special_tokens) else ()
        rows = generate(self.model, prompts, half, Sampler(top_p=0.9), ends=ends)
        cut = [tokens[start + half : start + 2 * half].tolist() for start in starts]
        texts = [tuple(map(data.tokenizer.decode, row)) for row in zip(prompts, cut, rows, strict=True)]
        return Table(("text", "goes on", "model goes on"), texts)

    def _why_not(self, split: str, num_tokens: int, length: int) -> str | None:
        """Why the model, or a part of so many tokens, cannot serve windows of a length."""
        longest = getattr(self.model, "longest", None)
        if longest is not None and length > longest:
            return f"the learned table ends at {longest} positions"
        if 2 * length >= num_tokens:
            return f"the {split} part has {num_tokens:,} tokens, too few for a lead-in and a window of {length:,}"
        return None


def _text_size(data: TextData, split: str, loader: EvaluationWindows) -> tuple[int, int]:
    """How many UTF-8 bytes and how many words (see `words_of`) the scored tokens of a loader are."""
    first = loader.first_target
    text = data.corpus.part(split).text_of(data.tokenizer, first, first + loader.num_targets)
    return len(text.encode("utf-8", "surrogatepass")), len(words_of(text))


def _figures(loss: float, tokens: int, num_bytes: int, num_words: int) -> dict[str, float]:
    """Loss and perplexity a token, bits a byte = loss / (bytes ln 2), perplexity a word = exp(loss / words), the same
    text whatever the tokenizer, from sums over one text."""
    per_token, per_byte = loss / max(1, tokens), loss / max(1, num_bytes) / math.log(2)
    values = (per_token, per_byte, perplexity(per_token), perplexity(loss / max(1, num_words)))
    return {metric.name: value for metric, value in zip(FIGURES, values, strict=True)}


@check_ranges
class MaskedLanguageModelling(Task):
    """Nats a masked token, their perplexity, and the share restored (Devlin et al. 2019, section 3.1).

    masked_only: the output layer is computed where a token is masked, and nowhere else; the loss and gradients are the
    same. With data.next_sentence the loss is that of a masked token plus that of its pair of segments, reported as
    masked_lm_loss and next_sentence_loss, too; a pair counts as often as it has masked tokens.
    """

    headline = ("val/*", "test/*")
    data_type: ClassVar[type] = MaskedTextData
    model_type: ClassVar[type] = Bert
    model: Bert

    def __init__(
        self, model: Bert, masked_only: bool = True, next_sentence: bool = False, z_loss: NonNegativeFloat = 0.0
    ) -> None:
        super().__init__(model)
        self.masked_only, self.next_sentence, self.z_loss = masked_only, next_sentence, z_loss

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        of_pairs = (metrics.MASKED_LM_LOSS, metrics.NEXT_SENTENCE_LOSS, metrics.NEXT_SENTENCE_ACCURACY)
        return [LOSS, ACCURACY, PERPLEXITY, *(of_pairs if config["data"].get("next_sentence") else ())]

    def prepare(self, batch: Batch) -> Prepared:
        """With the places of the masked tokens among all of the batch's, (N)."""
        return batch if "places" in batch else {**batch, "places": batch["chosen"].flatten().nonzero()[:, 0]}

    def loss_sums(self, batch: Batch) -> LossSums:
        batch = self.prepare(batch)
        chosen_BT, places_N = batch["chosen"], batch["places"]
        states_BTD = self.model.encode(batch["tokens"], segments_BT=batch.get("segments"))
        if self.masked_only:
            logits = self.model.predict(states_BTD.flatten(0, 1).index_select(0, places_N))
            targets = batch["targets"].flatten().index_select(0, places_N)
        else:
            logits = self.model.predict(states_BTD).flatten(0, 1)
            targets = batch["targets"].masked_fill(~chosen_BT, IGNORED).flatten()
        self.add_z_loss(logits, targets)
        loss, masked_lm = cross_entropy_sums(logits, targets, ignore=IGNORED)
        tokens = len(places_N)
        auxiliary = {"accuracy": (logits.argmax(dim=-1) == targets).sum()}
        if self.next_sentence:
            # Each pair as often as it has masked tokens, so that splitting a batch changes no sum. Where all have as
            # many (without whole words), a mean over tokens is a mean over pairs.
            masked_B = chosen_BT.sum(dim=1)
            follows_B2 = self.model.follows(states_BTD).float()
            pairs = (masked_B * F.cross_entropy(follows_B2, batch["follows"], reduction="none")).sum()
            right = (masked_B * (follows_B2.argmax(dim=1) == batch["follows"])).sum()
            auxiliary |= {"masked_lm_loss": masked_lm, "next_sentence_loss": pairs, "next_sentence_accuracy": right}
            loss = loss + pairs
        return LossSums(loss, tokens, auxiliary)

    def targets_by_row(self, batch: Batch) -> Tensor:
        return batch["chosen"].sum(dim=1)

    def cross_entropy(self, sums: LossSums) -> Tensor:
        return sums.auxiliary.get("masked_lm_loss", sums.loss)

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets"][batch["chosen"]]

    def figures_of_sums(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        means = super().figures_of_sums(sums, tokens)
        loss = means["masked_lm_loss" if self.next_sentence else "loss"]
        return means | {"perplexity": perplexity(loss)}

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


@check_ranges
class SpanCorruption(Task):
    """The pretraining of T5 (Raffel et al. 2020, section 3.1.4): teacher forcing on the spans that were taken out.

    Reported as nats a target token, sentinels and the end included, and as `accuracy`, the share of target tokens that
    are the most probable ones given those before them.
    """

    headline = ("val/loss", "test/loss", "test/accuracy")
    data_type: ClassVar[type] = SpanCorruptionData
    model_type: ClassVar[type] = Seq2Seq
    model: Seq2Seq

    def __init__(self, model: Seq2Seq, z_loss: NonNegativeFloat = 0.0) -> None:
        super().__init__(model)
        self.z_loss = z_loss

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        return [LOSS, ACCURACY]

    def prepare(self, batch: Batch) -> Prepared:
        return counted(batch)

    def loss_sums(self, batch: Batch) -> LossSums:
        batch = self.prepare(batch)
        logits_BTV, targets_BT = teacher_forced(self.model, batch)
        right_BT = logits_BTV.detach().argmax(dim=-1) == targets_BT  # never where a target does not count
        logits_NV, targets_N = logits_BTV.flatten(0, 1), targets_BT.flatten()
        self.add_z_loss(logits_NV, targets_N)
        loss, _ = cross_entropy_sums(logits_NV, targets_N, ignore=IGNORED)
        return LossSums(loss, int(batch["num_targets"]), {"accuracy": right_BT.sum()})

    def targets(self, batch: Batch) -> Tensor:
        return batch["target_out"][batch["is_target"]]
