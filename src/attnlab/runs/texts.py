"""What a trained run makes of texts: it goes on from them, answers them or translates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from attnlab import generation
from attnlab.config import UsageError
from attnlab.data.readers import refuse_half_characters
from attnlab.data.special_tokens import SpecialTokens
from attnlab.generation import BeamSearch, Sampler
from attnlab.models import LanguageModel, Seq2Seq
from attnlab.runs.trained import load_run

if TYPE_CHECKING:
    from attnlab.data import Tokenizer

NAMED = 10  # lines whose numbers are told


@dataclass(frozen=True)
class Writer:
    """A language model that writes, its tokenizer, and the run that it is of."""

    run: Path
    model: LanguageModel
    tokenizer: Tokenizer

    @classmethod
    def of(cls, run: Path, model: nn.Module, tokenizer: Tokenizer | None) -> Writer:
        """Raises: UsageError where the run's model writes nothing."""
        if not isinstance(model, LanguageModel) or tokenizer is None:
            instead = "translate" if isinstance(model, Seq2Seq) else "evaluate"
            raise UsageError(f"{run}: {type(model).__name__} continues no text; attnlab {instead} may be meant")
        return cls(run, model, tokenizer)

    def go_on(self, prompts: Sequence[str], length: int, sampler: Sampler, seed: int, called: str) -> list[str]:
        """Each prompt with up to `length` tokens after it. called: what a message calls a prompt. Raises UsageError for
        one that is empty, ValueError for one that cannot be read."""
        self._check(prompts, called)
        before = self._special.text[0]
        rows = [[*before, *self.tokenizer.encode(prompt).tolist()] for prompt in prompts]
        found = zip(prompts, rows, self._write(rows, length, sampler, seed), strict=True)
        return [prompt + continuation(self.tokenizer, row, new) for prompt, row, new in found]

    def answer(
        self, messages: Sequence[str], system: str | None, length: int, sampler: Sampler, seed: int, called: str
    ) -> list[str]:
        """The answer to each message by the tokenizer's chat template; as `go_on`. system: how it is to be answered."""
        self._check(messages, called)
        rows = [self._conversation(message, system) for message in messages]
        return [self.tokenizer.decode(row) for row in self._write(rows, length, sampler, seed)]

    @property
    def _special(self) -> SpecialTokens:
        return self.tokenizer.special_tokens or SpecialTokens()

    def _check(self, texts: Sequence[str], called: str) -> None:
        if not all(texts):
            raise UsageError(f"{called} is empty; give at least one character to go on from")
        for text in texts:
            refuse_half_characters(text, called)

    def _write(self, rows: Sequence[list[int]], length: int, sampler: Sampler, seed: int) -> list[list[int]]:
        """The new tokens alone, without the mark at which a text ended."""
        ends = self._special.ends
        with torch.inference_mode():
            found = generation.generate(self.model, rows, length, sampler, seed=seed, ends=ends)
        return [row[:-1] if row and row[-1] in ends else row for row in found]

    def _conversation(self, message: str, system: str | None) -> list[int]:
        """The tokens of a conversation of one message, and perhaps of how to answer it."""
        from attnlab.data import PretrainedTokenizer  # few runs have one

        tokenizer = self.tokenizer
        if not isinstance(tokenizer, PretrainedTokenizer) or tokenizer.chat_template is None:
            otherwise = "leave --chat out, or take a run of a published model that answers messages"
            raise UsageError(
                f"{self.run}: --chat needs a tokenizer with a chat template, and this run's has none; {otherwise}"
            )
        before = [] if system is None else [{"role": "system", "content": system}]
        text = tokenizer.render_chat([*before, {"role": "user", "content": message}])
        return [int(token) for token in tokenizer.encode(text)]


def continuation(tokenizer: Tokenizer, prompt: list[int], row: list[int]) -> str:
    """The text of new tokens after a prompt's: by themselves, some tokenizers leave out the blank before them."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *row])
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(row)


class Translator:
    """A run that translates, with its data, by which texts are cut into tokens. Raises UsageError where it is none."""

    def __init__(self, directory: Path, checkpoint: str) -> None:
        from attnlab.data import TranslationData
        from attnlab.tasks import Translation  # what only goes on from texts does not wait for it

        parts, task = load_run(directory, checkpoint)
        if not isinstance(task, Translation) or not isinstance(parts.data, TranslationData):
            kind = type(task).__name__
            raise UsageError(f"{directory}: a run of {kind} translates nothing; give one of task=translation")
        self.task, self.data = task, parts.data

    def search(
        self, num_beams: int | None = None, length_penalty: float | None = None, num_best: int = 1
    ) -> BeamSearch:
        """How translations are found; what is not given is as in the run's evaluation. Raises ValueError."""
        own = self.task.search
        beams = max(own.num_beams, num_best) if num_beams is None else num_beams
        alpha = own.length_penalty if length_penalty is None else length_penalty
        return replace(own, num_beams=beams, length_penalty=alpha, num_best=num_best)

    def cut(self, texts: Sequence[str]) -> str:
        """A word on the texts that are too long to be read in whole, "" where none is."""
        cut = self.data.texts_cut(texts)
        numbers = ", ".join(str(place + 1) for place in cut[:NAMED]) + (", ..." if len(cut) > NAMED else "")
        limit = self.data.max_length
        return f"{len(cut)} of {len(texts)} lines cut at {limit} tokens (data.max_length): {numbers}" if cut else ""
