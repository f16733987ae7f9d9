"""Several tasks for one model: an example is "prefix: source" and a target text (Raffel et al. 2020, section 2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.pairs import Pairs, PairSource
from attnlab.data.source import SPLITS
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.translation import TranslationData
from attnlab.ranges import Ge, PositiveFloat, Seed, check_ranges

MOST_REPEATS = 1000


@check_ranges
@dataclass(frozen=True)
class TextTask:
    """
    One of the tasks: pairs of texts, and the prefix that tells the model which task it is.

    source: translations, or texts with their classes as target texts (ParallelText reads both). weight: the task's
    share of the training examples, relative to the other weights; None: as the mixture's temperature says. Raises
    DataError.
    """

    prefix: str
    source: PairSource
    weight: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if not self.prefix.strip():
            raise DataError("the prefix of a task is empty; give a few words, such as 'translate English to German'")


@check_ranges
class Mixture(PairSource):
    """
    The pairs of several tasks, each source behind its task's prefix.

    A task has a share of the training examples by its weight, by default its number of examples to the power 1 /
    temperature (section 3.5.2: 1 is examples-proportional, a high temperature makes equal shares). Shares are reached
    by repeating examples, so that none is left out: the task that is largest for its share has each once an epoch.
    Other splits hold every example once.
    """

    name = "text_to_text"

    def __init__(
        self, tasks: Mapping[str, TextTask], temperature: PositiveFloat = 1.0, pair: str = "text-text"
    ) -> None:
        super().__init__(pair)
        if not tasks:
            raise DataError("data.tasks is empty; name one task or more, each with a prefix and a source")
        prefixes = [task.prefix for task in tasks.values()]
        if len(set(prefixes)) < len(prefixes):
            raise DataError(f"two tasks have one prefix, so no model can tell them apart: {', '.join(prefixes)}")
        self.tasks, self.temperature = dict(tasks), temperature
        self.members: dict[str, list[str]] = {}
        self.sizes: dict[str, int] = {}

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """Every task's train, validation and test; fills `members`, the task of each pair of a split, and `sizes`."""
        found = {name: task.source.read(cache) for name, task in self.tasks.items()}
        self.sizes = {name: len(splits["train"].sources) for name, splits in found.items()}
        empty = [name for name, size in self.sizes.items() if not size]
        if empty:
            raise DataError(f"data.tasks.{empty[0]} has no training examples; look at its source, or leave it out")
        self.members = {}
        mixed = {}
        for split in SPLITS:
            parts = [(name, self._part(name, splits.get(split), split)) for name, splits in found.items()]
            self.members[split] = [name for name, pairs in parts for _ in pairs.sources]
            mixed[split] = Pairs(
                [source for _, pairs in parts for source in pairs.sources],
                [target for _, pairs in parts for target in pairs.targets],
                dropped=sum(pairs.dropped for _, pairs in parts),
                remarks=tuple(f"{name}: {remark}" for name, pairs in parts for remark in pairs.remarks),
            )
        return mixed

    def examples(self) -> dict[str, int]:
        """How many training examples of each task an epoch has."""
        shares = {name: task.weight or self.sizes[name] ** (1 / self.temperature) for name, task in self.tasks.items()}
        epoch = max(self.sizes[name] / share for name, share in shares.items())
        counts = {name: max(self.sizes[name], round(epoch * share)) for name, share in shares.items()}
        for name, count in counts.items():
            if count > MOST_REPEATS * self.sizes[name]:
                raise DataError(
                    f"data.tasks.{name} would have each of its {self.sizes[name]:,} examples more than "
                    f"{MOST_REPEATS:,} times an epoch; give the other tasks more weight"
                )
        return counts

    def _part(self, name: str, pairs: Pairs | None, split: str) -> Pairs:
        if pairs is None:
            return Pairs([], [])
        prefixed = replace(pairs, sources=[f"{self.tasks[name].prefix}: {source}" for source in pairs.sources])
        if split != "train":
            return prefixed
        whole, more = divmod(self.examples()[name], len(pairs))
        # The same ones for every seed of a run: they are part of the data.
        chosen = np.random.Generator(np.random.Philox(0)).permutation(len(pairs))[:more]
        rows = np.concatenate([np.tile(np.arange(len(pairs)), whole), np.sort(chosen)])
        return replace(prefixed.take(rows.tolist()), dropped=pairs.dropped, remarks=pairs.remarks)


@check_ranges
class TextToTextData(TranslationData):
    """
    Several tasks as batches within a token budget, with one vocabulary.

    tasks: by name. temperature: of the mixture. The other fields as in TranslationData. Raises DataError.
    """

    source: Mixture

    def __init__(
        self,
        tasks: Mapping[str, TextTask],
        tokenizer: Tokenizer,
        temperature: PositiveFloat = 1.0,
        batch_tokens: Annotated[int, Ge(2)] = 4096,
        max_length: Annotated[int, Ge(2)] = 128,
        too_long: Literal["drop", "truncate"] = "drop",
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        mixture = partial(Mixture, tasks, temperature)
        super().__init__(
            mixture, tokenizer, "text-text", True, batch_tokens, max_length, too_long, seed=seed, cache=cache
        )

    def target_languages(self) -> tuple[str, ...]:
        return tuple(task.source.target_language for task in self.source.tasks.values())

    def tasks_of(self, split: str) -> list[str]:
        """The name of the task of each example of a split, by id."""
        places = self.split(split).places
        return [self.source.members[split][place] for place in places]

    def facts(self) -> dict[str, Any]:
        facts, counts = super().facts(), self.source.examples()
        return facts | {
            "tasks": {name: {"examples": size, "an_epoch": counts[name]} for name, size in self.source.sizes.items()}
        }

    def describe(self) -> str:
        self.split("train")
        counts = self.source.examples()
        shares = ", ".join(f"{name} {count / sum(counts.values()):.0%}" for name, count in counts.items())
        return f"{super().describe()}; shares {shares}"
