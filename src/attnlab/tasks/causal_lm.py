"""Causal language modelling: predict each token from those before it.

Shapes: B batch, T length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from attnlab.data import TextData
from attnlab.data.scripts import words_of
from attnlab.data.windows import EvaluationWindows
from attnlab.generation.sampling import Sampler, generate
from attnlab.models.language_model import LanguageModel
from attnlab.ranges import PositiveInt, check_ranges, must_be
from attnlab.training import Table, TokenTask

FIGURES = ("nats", "bits_per_byte", "token_perplexity", "word_perplexity")
LENGTHS = (1, 2, 4, 8)  # multiples of the training length
NUM_CONTINUED, MOST_CONTINUED = 8, 96  # texts that a table of samples goes on from, and by how many tokens


@check_ranges
class CausalLanguageModelling(TokenTask):
    """
    Next-token prediction with its figures: nats a token, bits a byte, perplexity a token and a word.

    At the end it is evaluated at every multiple of the training length in `evaluation_lengths`, with windows that do not overlap
    (`test/nats@4x`) and, where `sliding`, with windows that move by half their length and score their second half
    (`test/sliding_nats@4x`), on the same `evaluation_tokens` tokens each time. A length that the model or the text cannot serve is
    an outcome: `cannot` names it with the reason. Bits a byte and perplexity a word compare models of different tokenizers.
    """

    headline = ("val/*", "test/nats@*", "test/sliding_nats@*")
    data_type = TextData
    model_type = LanguageModel

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[..., Any],
        evaluation_lengths: Sequence[PositiveInt] = LENGTHS,
        evaluation_tokens: PositiveInt = 16384,
        sliding: bool = True,
        log_every: PositiveInt = 10,
    ) -> None:
        super().__init__(model, optimizer, schedule, log_every)
        if not evaluation_lengths:
            wanted = "a list of multiples of the training length, such as [1]"
            raise ValueError(must_be("task.evaluation_lengths", wanted, evaluation_lengths))
        self.evaluation_lengths, self.evaluation_tokens, self.sliding = (
            sorted(evaluation_lengths),
            evaluation_tokens,
            sliding,
        )

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of the validation part, and those of the test part at every evaluation length."""
        task = config["task"]
        kinds = ("", "sliding_") if task.get("sliding", True) else ("",)
        at_lengths = [
            f"{kind}{name}@{k}x" for k in task.get("evaluation_lengths", LENGTHS) for kind in kinds for name in FIGURES
        ]
        return [*(f"val/{name}" for name in FIGURES), *(f"test/{name}" for name in at_lengths)]

    def loss_sums(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropy in nats of the batch's targets, and how many there are; targets that are not `scored` do not count."""
        logits_BTV = self.model(batch["tokens"])
        flat = logits_BTV.flatten(0, 1).float()
        scored_BT = batch.get("scored")
        if scored_BT is None:
            return F.cross_entropy(flat, batch["targets"].flatten(), reduction="sum"), batch["targets"].numel()
        kept = scored_BT.flatten()
        return F.cross_entropy(flat[kept], batch["targets"].flatten()[kept], reduction="sum"), int(kept.sum())

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """The next tokens."""
        return batch["targets"].flatten()

    def validation_metrics(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        """The figures of the validation part at the training length."""
        data = self._data()
        return _figures("val/", "", sums["nats"], tokens, *_text_size(data, "validation", data.val_dataloader()))

    def validate(self, data: TextData) -> dict[str, float]:
        """The figures of the validation part, as `validation_metrics` gives them, of the weights as they are."""
        if data.corpus.validation.num_tokens == 0:
            return {}
        loader = data.val_dataloader()
        sums, tokens = self.score_sums(loader)
        return _figures("val/", "", sums["nats"], tokens, *_text_size(data, "validation", loader))

    def evaluate(self, data: TextData, split: str = "test") -> dict[str, float]:
        """
        The figures of a split at every evaluation length, by metric name; `cannot` is filled with what has none, and why.

        A part of no tokens has no figures at all.
        """
        found: dict[str, float] = {}
        prefix = {"validation": "val"}.get(split, split)
        for name, loader in self._loaders(data, split, prefix).items():
            sums, tokens = self.score_sums(loader)
            kind, multiple = name.rsplit("@", 1)
            found |= _figures(
                f"{prefix}/{kind}", f"@{multiple}", sums["nats"], tokens, *_text_size(data, split, loader)
            )
        return found

    def samples(self, data: TextData, split: str = "test") -> Table | None:
        """Texts of a split, cut off in the middle, and how the model goes on from there, within the training length; at most MOST_CONTINUED tokens of each."""
        tokens, half = data.corpus.part(split).tokens, max(1, min(data.context // 2, MOST_CONTINUED))
        starts = range(0, len(tokens) - 2 * half, max(2 * half, len(tokens) // NUM_CONTINUED))[:NUM_CONTINUED]
        if not starts:
            return None
        assert isinstance(self.model, LanguageModel)
        prompts = [tokens[start : start + half].tolist() for start in starts]
        ends = marks.ends if (marks := data.tokenizer.marks) else ()
        rows = generate(self.model, prompts, half, Sampler(top_p=0.9), ends=ends)
        cut = [tokens[start + half : start + 2 * half].tolist() for start in starts]
        texts = [tuple(map(data.tokenizer.decode, row)) for row in zip(prompts, cut, rows, strict=True)]
        return Table(("text", "goes on", "model goes on"), texts)

    def _loaders(self, data: TextData, split: str, prefix: str) -> dict[str, EvaluationWindows]:
        """One loader for each length and kind that can be served; all score the same tokens."""
        num_tokens = data.corpus.part(split).num_tokens
        lengths = {k: k * data.context for k in self.evaluation_lengths}
        fitting = [length for length in lengths.values() if 2 * length < num_tokens]
        loaders = {}
        for k, length in lengths.items():
            reason = self._cannot_reason(length, num_tokens, split, bool(fitting))
            for kind in ("", "sliding_") if self.sliding else ("",):
                if reason:
                    self.cannot[f"{prefix}/{kind}nats@{k}x"] = reason
                    continue
                loaders[f"{kind}@{k}x"] = data.evaluation_loader(
                    split, length, bool(kind), self.evaluation_tokens, max(fitting)
                )
        return loaders

    def _cannot_reason(self, length: int, num_tokens: int, split: str, any_fits: bool) -> str | None:
        longest = getattr(self.model, "longest", None)
        if longest is not None and length > longest:
            return f"the learned table ends at {longest} positions"
        if 2 * length >= num_tokens or not any_fits:
            return f"the {split} part has {num_tokens:,} tokens, too few for a lead-in and a window of {length:,}"
        return None

    def _data(self) -> TextData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it where a data module is used
        assert isinstance(data, TextData)
        return data


def _text_size(data: TextData, split: str, loader: EvaluationWindows) -> tuple[int, int]:
    """How many UTF-8 bytes and how many words (see `words_of`) the scored tokens of a loader are."""
    first = loader.first_target
    text = data.corpus.part(split).text_of(data.tokenizer, first, first + loader.num_targets)
    return len(text.encode("utf-8", "surrogatepass")), len(words_of(text))


def _figures(prefix: str, suffix: str, nats: float, tokens: int, num_bytes: int, num_words: int) -> dict[str, float]:
    """
    Nats a token, bits a byte, perplexity a token and a word, from sums over one text.

    Bits a byte = nats / (bytes ln 2); perplexity a word = exp(nats / words), the same text whatever the tokenizer.
    """
    values = (
        nats / max(1, tokens),
        nats / max(1, num_bytes) / math.log(2),
        _exp(nats / max(1, tokens)),
        _exp(nats / max(1, num_words)),
    )
    return {f"{prefix}{name}{suffix}": value for name, value in zip(FIGURES, values, strict=True)}


def _exp(x: float) -> float:
    """e to the x, infinite instead of an overflow."""
    return math.exp(x) if x < 700 else math.inf
