"""Transcription: what is said in a recording, as text. Legend: B batch, M mel bins, F frames, T target length, V
vocabulary."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor
from torchmetrics.functional.text import char_error_rate, word_error_rate

from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import SpecialTokens
from attnlab.data.speech_data import SpeechData
from attnlab.generation.beam import BeamSearch, decode
from attnlab.models.whisper import Whisper
from attnlab.parts import Config, Prepared
from attnlab.ranges import NonNegativeFloat, PositiveInt, Rate, check_ranges
from attnlab.tasks.translation import TeacherForced
from attnlab.training.metrics import CER, WER, Metric, prefix_of
from attnlab.training.task import Batch
from attnlab.training.tracking import NUM_SAMPLES, Table

NORMALISATION = "lower case, punctuation and symbols but apostrophes as blanks, blanks joined"
NO_WORD = re.compile(r"[^\w']|_")


@check_ranges
class Transcription(TeacherForced):
    """Teacher forcing with label smoothing; nats a token of the transcript, the end and what a published model is told
    included, always without smoothing beside it.

    At the end a split is transcribed (`num_beams`: 1 is greedy) and scored against the whole transcripts: the word and
    the character error rate over all its recordings, insertions, deletions and substitutions a word or character of the
    references (torchmetrics), after both were `normalised`. max_length: of a decoder's input. `outputs` holds what was
    scored, as it was before.
    """

    headline = ("val/loss", "val/wer", "test/wer", "test/cer")
    use = "transcribe RUN FILE"
    validates_figures = True
    data_type: ClassVar[type] = SpeechData
    model_type: ClassVar[type] = Whisper
    model: Whisper

    def __init__(
        self,
        model: Whisper,
        special_tokens: SpecialTokens,
        max_length: PositiveInt,
        label_smoothing: Rate = 0.1,
        num_beams: PositiveInt = 1,
        z_loss: NonNegativeFloat = 0.0,
        decode: bool = True,
    ) -> None:
        super().__init__(model, special_tokens, label_smoothing, z_loss, decode)
        self.max_length, self.search = max_length, BeamSearch(num_beams, length_penalty=0.0)

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        return [*cls.losses(config), *cls.scores(config, WER, CER)]

    def prepare(self, batch: Batch) -> Prepared:
        return super().prepare(batch if "is_target" in batch else {**batch, "is_target": batch["targets"] != IGNORED})

    def teacher_forced(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BTV: Tensor = self.model(batch["features"], batch["tokens_in"])
        return logits_BTV, batch["targets"]

    def figures(self, data: SpeechData, split: str) -> dict[str, float]:
        loader, references = data.evaluation_loader(split), data.references(split)
        if not self.decodes:
            return self.score(loader)
        heard = [data.decode_target(tokens) for tokens in self.transcripts(loader).values()]
        self.outputs[f"{split}.transcripts.txt"] = "".join(f"{text}\n" for text in heard)
        self.outputs[f"{split}.references.txt"] = "".join(f"{text}\n" for text in references)
        rates = error_rates(heard, references)
        for name in rates or ("wer", "cer"):
            key, why = f"{prefix_of(split)}/{name}", "no reference has a word"
            (self.notes if rates else self.unavailable)[key] = f"torchmetrics; {NORMALISATION}" if rates else why
        return self.score(loader) | rates

    def transcripts(self, loader: Iterable[Batch]) -> dict[int, list[int]]:
        """The tokens of what is heard in each example of a loader, by its id."""
        return self.predictions(loader, lambda batch: self.transcribe_features(batch["features"]))

    def transcribe_features(self, features_BMF: Tensor) -> list[list[int]]:
        """The tokens of what is heard in each window of features, without its start and its end."""
        start, end = self.special_tokens.require("target_start"), self.special_tokens.require("end")
        marks, prefix = (start, end, self.special_tokens.suppressed), self.special_tokens.target[0]
        found = decode(self.model, features_BMF, None, self.search, *marks, max_length=self.max_length, prefix=prefix)
        return [hypotheses[0].tokens for hypotheses in found]

    def samples(self, data: SpeechData, split: str = "test") -> Table | None:
        """The first recordings that were not heard as they were said, then others, with the word error rate of each;
        None where nothing was decoded."""
        if not self.decodes:
            return None
        heard = self.outputs.get(f"{split}.transcripts.txt", "").split("\n")[:-1]
        said = data.references(split)[: len(heard)]
        rates = [error_rates([one], [other]).get("wer", 0.0) for one, other in zip(heard, said, strict=True)]
        chosen = sorted(range(len(said)), key=lambda row: rates[row] == 0)[:NUM_SAMPLES]
        rows = [(said[row], heard[row], round(rates[row], 2)) for row in chosen]
        return Table(("said", "heard", "word error rate"), rows)


def normalised(text: str) -> str:
    """A text as error rates see it: lower case, punctuation and symbols but apostrophes as blanks, blanks joined."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    return " ".join(NO_WORD.sub(" ", plain).split())


def error_rates(heard: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """The word and the character error rate of a corpus; empty where no reference has a word."""
    predicted, references = [normalised(text) for text in heard], [normalised(text) for text in said]
    if not any(references):
        return {}
    scores = {"wer": word_error_rate(predicted, references), "cer": char_error_rate(predicted, references)}
    return {name: float(score) for name, score in scores.items()}
