"""The Lightning data module of translation, and of any task whose examples are a source and a target text.

Shapes: B batch, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from attnlab.data.budget import BudgetedRows, EvaluationBatches, TokenBudgetBatches, check_budget, typical
from attnlab.data.cache import DataError, cache_root, kept, key_of
from attnlab.data.encoded import remarks_of
from attnlab.data.encoded_pairs import EncodedPairs, chosen, collate, encode_pairs
from attnlab.data.module import DataModule
from attnlab.data.pairs import Pairs, PairSource
from attnlab.data.sources import opened
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary, framed, num_marks, rehearsal
from attnlab.ranges import Ge, Seed, check_ranges

FORMAT = 3


@check_ranges
class TranslationData(DataModule):
    """
    Sentence pairs as batches within a token budget.

    source: a class or partial of a PairSource, completed with `pair` and `path`. tokenizer: trained on the training part, on
    both languages together where `joint`, else once for each. batch_tokens: a batch's pairs times its longest source plus its
    longest target, padding included, on average over the batches of a step. max_length: the most tokens of a source or target; a longer training pair is dropped or
    cut (`too_long`) and counted, and pairs to evaluate on are cut in the source alone. Raises DataError.
    """

    frame = "source"

    def __init__(
        self,
        source: Callable[..., PairSource],
        tokenizer: Tokenizer,
        pair: str,
        joint: bool = True,
        batch_tokens: Annotated[int, Ge(2)] = 4096,
        max_length: Annotated[int, Ge(2)] = 128,
        too_long: Literal["drop", "truncate"] = "drop",
        path: str | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.source = opened(source, path, pair=pair)
        self.name, self._untrained, self.joint = self.source.name, tokenizer, joint
        self.batch_tokens, self.max_length, self.too_long = batch_tokens, max_length, too_long
        self.seed, self.cache = seed, cache
        for name in ("end", "target_start"):
            rehearsal(tokenizer).marks.need(name)
        self._splits: dict[str, EncodedPairs] | None = None
        self.remarks: list[str] = []
        self._order: TokenBudgetBatches | None = None
        self._order_state: dict[str, int] | None = None

    # --- what was prepared

    def prepare_data(self) -> None:
        """Reads the pairs, trains the tokenizers and keeps these and the token rows in the cache, where they are not there yet."""
        self._all_splits()

    def setup(self, stage: str | None = None) -> None:
        """Encodes every split, and sees that there is something to train, to validate and to test on."""
        for name in ("train", "validation", "test"):
            self.split(name)
        check_budget(self.split("train").lengths, self.batch_tokens)

    def split(self, name: str) -> EncodedPairs:
        """The pairs of a split. Raises DataError for one that is not there, or is empty."""
        splits = self._all_splits()
        if name not in splits or not splits[name].sources:
            known = ", ".join(split for split, pairs in splits.items() if pairs.sources)
            counts = splits[name].counts if name in splits else {}
            left_out = ", ".join(f"{what}: {count:,}" for what, count in counts.items() if count)
            raise DataError(
                f"{self.name} {self.source.pair} has no pairs in a split {name!r}{left_out and f' ({left_out})'}; "
                + (f"accepted: {known}" if known else "no split has any: look at data.path")
            )
        return splits[name]

    def _all_splits(self) -> dict[str, EncodedPairs]:
        if self._splits is None:
            texts, folder = self._prepared()
            self.remarks = remarks_of(texts)
            self._splits = {split: self._rows(split, pairs, folder) for split, pairs in texts.items()}
        return self._splits

    def widths(self) -> dict[str, Any]:
        """The sizes of the two vocabularies, one number where they are one, and the marks of the targets."""
        self.split("train")
        return widths_of(self.vocabulary, self.source_vocabulary)

    def rehearsal_widths(self) -> dict[str, Any]:
        """Stand-ins."""
        return widths_of(rehearsal(self._untrained), rehearsal(self._untrained))

    def tokenizers(self) -> dict[str, Tokenizer]:
        """Of the targets, and of the sources where they have their own."""
        self.split("train")
        own = {} if self.joint else {"source_tokenizer.json": self.source_vocabulary.tokenizer}
        return {"tokenizer.json": self.vocabulary.tokenizer, **own}

    @property
    def train_tokens(self) -> int:
        """Target tokens of an epoch, the ends included."""
        return int(self.split("train").lengths[:, 1].sum())

    @property
    def tokens_per_batch(self) -> int:
        """Target tokens of a batch that is a step of its own, on average."""
        return self.tokens_per_step(1)

    def tokens_per_step(self, parts: int) -> int:
        """Target tokens of a step of so many batches, on average."""
        groups = TokenBudgetBatches(self.split("train").lengths, self.batch_tokens, self.seed, parts).groups(0)
        return max(1, self.train_tokens // len(groups))

    def facts(self) -> dict[str, Any]:
        """Sizes, and how many pairs were dropped or cut."""
        self.split("train")
        assert self._splits is not None
        return {
            "fingerprint": self.fingerprint,
            "pair": self.source.pair,
            "vocabulary_size": self.vocabulary.size,
            "source_vocabulary_size": self.source_vocabulary.size,
            "train_tokens": self.train_tokens,
            "pairs": {name: len(split.sources) for name, split in self._splits.items()},
            "left_out": {name: split.counts for name, split in self._splits.items()},
            **({"remarks": self.remarks} if self.remarks else {}),
        }

    def describe(self) -> str:
        """Pairs of every split, vocabulary, and what was left out."""
        facts = self.facts()
        pairs = ", ".join(f"{name} {count:,}" for name, count in facts["pairs"].items())
        size = f"{facts['vocabulary_size']:,}"
        if not self.joint:
            size = f"{facts['source_vocabulary_size']:,} and {size}"
        left_out = {f"{what} in {split}": n for split, c in facts["left_out"].items() for what, n in c.items() if n}
        notes = "".join(
            [*(f"; {what}: {count:,}" for what, count in left_out.items()), *(f"; {r}" for r in self.remarks)]
        )
        return f"{self.name} {self.source.pair}: pairs {pairs}; vocabulary {size}{notes}"

    # --- texts

    def sources(self, split: str) -> list[str]:
        """The source sentences of a split, by id."""
        return self.split(split).texts.sources

    def references(self, split: str) -> list[str]:
        """The target sentences of a split, by id."""
        return self.split(split).texts.targets

    def target_languages(self) -> tuple[str, ...]:
        """The language of the targets, as the pair has it."""
        return (self.source.target_language,)

    def source_lengths(self, split: str) -> list[int]:
        """The tokens of the source of each pair of a split, by id, without marks."""
        lengths_N = self.split(split).lengths[:, 0] - num_marks(self.source_vocabulary.marks.source)
        return lengths_N.tolist()  # type: ignore[no-any-return]

    def decode_target(self, tokens: Sequence[int]) -> str:
        """The text of target tokens, up to the first end mark, as one line."""
        return self.vocabulary.decode(tokens).replace("\n", " ").strip()

    # --- batches

    def train_dataloader(self) -> BudgetedRows:
        """The endless training order, from where `load_state_dict` set it."""
        rank, world_size = self.place()
        micro_batches = self.trainer.accumulate_grad_batches if self.trainer else 1
        split = self.split("train")
        self._order = TokenBudgetBatches(split.lengths, self.batch_tokens, self.seed, world_size * micro_batches)
        if self._order_state is not None:
            self._order.load_state_dict(self._order_state)
        return BudgetedRows(partial(collate, split, self.vocabulary.marks), self._order, rank, world_size)

    def example_batch(self) -> dict[str, torch.Tensor]:
        """A batch that is typical in its positions a target token, which are what a target token costs."""
        pairs = self.split("train")
        groups = TokenBudgetBatches(pairs.lengths, self.batch_tokens, self.seed).groups(0)
        return collate(pairs, self.vocabulary.marks, typical(groups, pairs.lengths, pairs.lengths[:, 1]))

    def val_dataloader(self) -> EvaluationBatches:
        """The validation pairs."""
        return self.evaluation_loader("validation")

    def evaluation_loader(self, split: str) -> EvaluationBatches:
        """Every pair of a split once over all ranks, with `ids`, the longest first."""
        pairs = self.split(split)
        budget = max(self.batch_tokens, int(pairs.lengths.sum(axis=1).max()))
        return EvaluationBatches(pairs.lengths, budget, partial(collate, pairs, self.vocabulary.marks), *self.place())

    def source_loader(self, texts: Sequence[str]) -> EvaluationBatches:
        """Batches of texts to translate, cut at the greatest length, with `ids`, their places in the list."""
        self.split("train")
        marks = self.source_vocabulary.marks.source
        limit = self.max_length - num_marks(marks)
        rows = [framed(marks, self._source_tokens(text)[:limit]) for text in texts]
        nothing = Pairs(list(texts), [""] * len(rows))
        pairs = EncodedPairs(rows, [np.empty(0, dtype=np.int64)] * len(rows), lambda: nothing)
        return EvaluationBatches(
            pairs.lengths, max(self.batch_tokens, self.max_length + 1), partial(collate, pairs, self.vocabulary.marks)
        )

    def texts_cut(self, texts: Sequence[str]) -> list[int]:
        """The places of those texts that `source_loader` cuts."""
        self.split("train")
        limit = self.max_length - num_marks(self.source_vocabulary.marks.source)
        return [i for i, text in enumerate(texts) if len(self._source_tokens(text)) > limit]

    def state_dict(self) -> dict[str, Any]:
        """The place in the training order."""
        return {} if self._order is None else self._order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader go on from a saved place."""
        self._order_state = dict(state_dict) or None

    # --- preparing

    def _prepared(self) -> tuple[dict[str, Pairs], Path]:
        """The sentences, and the folder of the cache that belongs to them; sets the vocabularies and the fingerprint."""
        texts = self.source.read(self.cache)
        self.fingerprint = self.source.fingerprint(texts)
        settings = [FORMAT, self.fingerprint, self._untrained.name, asdict(self._untrained), self.joint]
        folder = cache_root(self.cache) / "pairs" / f"{self.name}-{self.source.pair}-{key_of(settings)}"
        source, target = kept(folder, partial(self._train_tokenizers, texts), load_tokenizers)
        self.source_vocabulary, self.vocabulary = Vocabulary(source.of_source), Vocabulary(target)
        return texts, folder

    def _train_tokenizers(self, texts: dict[str, Pairs], folder: Path) -> None:
        seen = texts.values() if self._untrained.sees_whole_text else [texts["train"]]
        sources = [line for pairs in seen for line in pairs.sources]
        targets = [line for pairs in seen for line in pairs.targets]
        # Each as it will be encoded, with a space before it.
        for name, lines in {"source": sources, "target": targets}.items():
            text = "\n".join(f" {line}" for line in ([*sources, *targets] if self.joint else lines))
            self._untrained.train(text).save(folder / f"{name}.json")

    def _rows(self, split: str, texts: Pairs, folder: Path) -> EncodedPairs:
        """A split's rows, mapped from the cache. The sentences to evaluate on stay in memory; those to train on do not."""
        training = split == "train"
        read = self._training_texts if training else partial(chosen, texts)

        def make(scratch: Path) -> None:
            vocabularies, drop = (self.source_vocabulary, self.vocabulary), training and self.too_long == "drop"
            encode_pairs(texts, vocabularies, self.max_length, training, drop).save(scratch)

        cut = self.too_long if training else "cut"
        found = kept(folder / f"{split}-{self.max_length}-{cut}", make, partial(EncodedPairs.load, read=read))
        # Of the files as they are now: what was kept knows the pairs alone, which may be the same ones.
        found.counts = {"pairs with an empty side": texts.dropped, **found.counts}
        return found

    def _training_texts(self, places: np.ndarray) -> Pairs:
        return chosen(self.source.read(self.cache)["train"], places)

    def _source_tokens(self, text: str) -> np.ndarray:
        return self.source_vocabulary.encode_text(text.strip())


def widths_of(vocabulary: Vocabulary, source_vocabulary: Vocabulary) -> dict[str, Any]:
    """What the vocabularies of targets and sources tell a model and its task."""
    sizes = {"vocabulary_size": vocabulary.size, "source_vocabulary_size": source_vocabulary.size}
    return {**sizes, "marks": vocabulary.marks}


def load_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The source's and the target's tokenizer in a folder."""
    return Tokenizer.load(folder / "source.json"), Tokenizer.load(folder / "target.json")
