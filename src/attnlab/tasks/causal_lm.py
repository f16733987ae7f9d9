"""Causal language modelling: predict each token from those before it.

Shapes: B batch, T length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from attnlab.data import TextData
from attnlab.data.tokenizers import words_of
from attnlab.data.windows import EvaluationWindows
from attnlab.generation.sampling import Sampler, generate
from attnlab.models.base import LanguageModel
from attnlab.ranges import PositiveInt, check_ranges, must_be
from attnlab.training.loss import LossSums
from attnlab.training.metrics import BITS_PER_BYTE, NATS, SLIDING, TOKEN_PERPLEXITY, WORD_PERPLEXITY, Metric, prefix_of
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import Table

FIGURES = (NATS, BITS_PER_BYTE, TOKEN_PERPLEXITY, WORD_PERPLEXITY)
LENGTHS = (1, 2, 4, 8)  # multiples of the training length
NUM_CONTINUED, MOST_CONTINUED = 8, 96  # texts that a table of samples goes on from, and by how many tokens


@check_ranges
class CausalLanguageModelling(Task):
    """Next-token prediction with its figures: nats a token, bits a byte, perplexity a token and a word.

    At the end it is evaluated at every multiple of the training length in `evaluation_lengths`, with windows that do
    not overlap (`test/nats@4x`) and, where `sliding`, with windows that move by half their length and score their
    second half (`test/sliding_nats@4x`), on the same `evaluation_tokens` tokens each time. A length that the model or
    the text cannot serve is an outcome: `cannot` names it with the reason. Bits a byte and perplexity a word compare
    models of different tokenizers.
    """

    headline = ("val/*", "test/nats@*", "test/sliding_nats@*")
    data_type: ClassVar[type] = TextData
    model_type: ClassVar[type] = LanguageModel
    model: LanguageModel

    def __init__(
        self,
        model: LanguageModel,
        evaluation_lengths: Sequence[PositiveInt] = LENGTHS,
        evaluation_tokens: PositiveInt = 16384,
        sliding: bool = True,
    ) -> None:
        super().__init__(model)
        if not evaluation_lengths:
            wanted = "a list of multiples of the training length, such as [1]"
            raise ValueError(must_be("task.evaluation_lengths", wanted, evaluation_lengths))
        self.evaluation_lengths, self.evaluation_tokens = sorted(evaluation_lengths), evaluation_tokens
        self.kinds = ("", SLIDING) if sliding else ("",)

    @classmethod
    def metrics(cls, config: Mapping[str, Any]) -> Sequence[Metric]:
        task = config["task"]
        at = [f"{multiple}x" for multiple in task.get("evaluation_lengths", LENGTHS)]
        sliding = (
            [replace(metric, name=SLIDING + metric.name) for metric in FIGURES] if task.get("sliding", True) else []
        )
        return [*(m.on("val") for m in FIGURES), *(m.on("test", at=at) for m in (*FIGURES, *sliding))]

    def loss_sums(self, batch: Batch) -> LossSums:
        """As every task's; targets that are not `scored` do not count."""
        flat, targets = self.model(batch["tokens"]).flatten(0, 1).float(), batch["targets"].flatten()
        scored_BT = batch.get("scored")
        if scored_BT is not None:
            flat, targets = flat[scored_BT.flatten()], targets[scored_BT.flatten()]
        return LossSums(F.cross_entropy(flat, targets, reduction="sum"), targets.numel())

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets"].flatten()

    def figures_of_sums(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it where a data module is used
        assert isinstance(data, TextData)
        return _figures(sums["nats"], tokens, *_text_size(data, "validation", data.val_dataloader()))

    def validate(self, data: TextData) -> dict[str, float]:
        if data.corpus.validation.num_tokens == 0:
            return {}
        loader = data.val_dataloader()
        sums, tokens = self.score_sums(loader)
        figures = _figures(sums["nats"], tokens, *_text_size(data, "validation", loader))
        return {f"val/{name}": value for name, value in figures.items()}

    def figures(self, data: TextData, split: str) -> dict[str, float]:
        """The figures at every evaluation length; a part of no tokens has none at all."""
        found: dict[str, float] = {}
        for (kind, multiple), loader in self._loaders(data, split).items():
            sums, tokens = self.score_sums(loader)
            figures = _figures(sums["nats"], tokens, *_text_size(data, split, loader))
            found |= {f"{kind}{name}@{multiple}x": value for name, value in figures.items()}
        return found

    def samples(self, data: TextData, split: str = "test") -> Table | None:
        """Texts of a split, cut off in the middle, and how the model goes on from there, within the training length; at
        most MOST_CONTINUED tokens of each."""
        tokens, half = data.corpus.part(split).tokens, max(1, min(data.context // 2, MOST_CONTINUED))
        starts = range(0, len(tokens) - 2 * half, max(2 * half, len(tokens) // NUM_CONTINUED))[:NUM_CONTINUED]
        if not starts:
            return None
        prompts = [tokens[start : start + half].tolist() for start in starts]
        ends = special_tokens.ends if (special_tokens := data.tokenizer.special_tokens) else ()
        rows = generate(self.model, prompts, half, Sampler(top_p=0.9), ends=ends)
        cut = [tokens[start + half : start + 2 * half].tolist() for start in starts]
        texts = [tuple(map(data.tokenizer.decode, row)) for row in zip(prompts, cut, rows, strict=True)]
        return Table(("text", "goes on", "model goes on"), texts)

    def _loaders(self, data: TextData, split: str) -> dict[tuple[str, int], EvaluationWindows]:
        """One loader for each kind and length that can be served; all score the same tokens."""
        num_tokens = data.corpus.part(split).num_tokens
        lengths = {k: k * data.context for k in self.evaluation_lengths}
        fitting = [length for length in lengths.values() if 2 * length < num_tokens]
        loaders = {}
        for (k, length), kind in ((each, kind) for each in lengths.items() for kind in self.kinds):
            longest = getattr(self.model, "longest", None)
            if longest is not None and length > longest:
                reason = f"the learned table ends at {longest} positions"
            elif length not in fitting:
                reason = f"the {split} part has {num_tokens:,} tokens, too few for a lead-in and a window of {length:,}"
            else:
                scored, longest_window = self.evaluation_tokens, max(fitting)
                loaders[kind, k] = data.evaluation_loader(split, length, bool(kind), scored, longest_window)
                continue
            self.cannot[f"{prefix_of(split)}/{kind}nats@{k}x"] = reason
        return loaders


def _text_size(data: TextData, split: str, loader: EvaluationWindows) -> tuple[int, int]:
    """How many UTF-8 bytes and how many words (see `words_of`) the scored tokens of a loader are."""
    first = loader.first_target
    text = data.corpus.part(split).text_of(data.tokenizer, first, first + loader.num_targets)
    return len(text.encode("utf-8", "surrogatepass")), len(words_of(text))


def _figures(nats: float, tokens: int, num_bytes: int, num_words: int) -> dict[str, float]:
    """Nats a token, bits a byte, perplexity a token and a word, from sums over one text.

    Bits a byte = nats / (bytes ln 2); perplexity a word = exp(nats / words), the same text whatever the tokenizer.
    """

    def exp(x: float) -> float:
        return math.exp(x) if x < 700 else math.inf

    per_token, per_byte = nats / max(1, tokens), nats / max(1, num_bytes) / math.log(2)
    values = (per_token, per_byte, exp(per_token), exp(nats / max(1, num_words)))
    return {metric.name: value for metric, value in zip(FIGURES, values, strict=True)}
