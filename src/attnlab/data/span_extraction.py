"""The data module of questions whose answers stand in a text. Shapes: B batch, T length, N tokens of a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.order import Batch
from attnlab.data.questions import Question, Questions, QuestionSource
from attnlab.data.source import Given
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.token_data import RowData, RowFields, Rows, collate_rows
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.ranges import PositiveInt, check_ranges

NOWHERE = (0, 0)  # the first and last token of an answer that is not in the row: both are the first of all


@dataclass
class QuestionRows(Rows):
    """Questions in rows, one for each window of a question's text.

    question_of: which question a row is of. first: where the row's window begins; start: with which token of the text.
    answers: the first and last position of the answer in the row. places: for each question, the characters (N, 2) of
    its text's tokens.
    """

    texts: list[Question] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    question_of: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_examples(self) -> int:
        return len(self.texts)

    def words(self, row: int, begin: int, end: int) -> str:
        """The text from position `begin` of a row to position `end`, both included."""
        question, move = self.question_of[row], self.start[row] - self.first[row]
        places_N2 = self.places[question]
        return self.texts[question].context[places_N2[begin + move, 0] : places_N2[end + move, 1]].strip()


@check_ranges
class SpanExtractionData(RowData[QuestionRows]):
    """Questions on texts as batches within a token budget, each a question, a separator and a window of its text
    between start and end tokens.

    A text that is too long for `max_length` tokens is read in windows, the next beginning `stride` tokens after the
    last (Devlin et al. 2019, section 4.2, and their code); in a window that does not hold the whole answer, it is the
    first token. A question of more than `max_question` tokens is cut and counted. Of several answers the first is
    trained on; one that does not stand where it is said to is left out of training, and counted. The other fields as
    in RowData. Raises DataError.
    """

    examples, unit = "questions", "window"

    def __init__(
        self,
        source: Given[QuestionSource],
        tokenizer: Tokenizer,
        stride: PositiveInt = 64,
        max_question: PositiveInt = 40,
        **fields: Unpack[RowFields],
    ) -> None:
        super().__init__(source, tokenizer, **fields)
        self.stride, self.max_question = stride, max_question
        self._refuse_without_room(self.placeholder_vocabulary())

    def _refuse_without_room(self, vocabulary: Vocabulary) -> None:
        around = num_special_tokens(vocabulary.pair_special_tokens())
        if self.max_length - self.max_question - around < 1:
            raise DataError(
                f"data.max_length={self.max_length} leaves no room for a text beside a question of {self.max_question} "
                f"tokens (data.max_question) and {around} special tokens; accepted: data.max_length from "
                f"{self.max_question + around + 1} on"
            )

    def lines(self, part: Questions) -> Iterable[str]:
        return (f" {text}" for text in [*(q.text for q in part.questions), *dict.fromkeys(part.keys)])

    def encode(self, parts: dict[str, Questions]) -> dict[str, QuestionRows]:
        self._refuse_without_room(self.vocabulary)
        self.has_unanswered = any(not question.answers for question in parts["train"].questions)
        return {split: self._encode(part, split == "train") for split, part in parts.items()}

    def collate(self, part: QuestionRows, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """tokens (B, T) padded on the right, is_token, ids (B,), segments (B, T): 0 the question, 1 the text, is_text
        (B, T): True at the text's tokens, answers (B, 2): first and last position, 0 and 0 where they are elsewhere.
        """
        lengths_B1, first_B1 = (
            np.array([[value] for value in values])
            for values in ((len(part.rows[row]) for row in rows_B), (part.first[row] for row in rows_B))
        )
        places_1T, special_tokens = np.arange(lengths_B1.max())[None], self.vocabulary.special_tokens
        after_BT, inside_BT = places_1T >= first_B1, places_1T < lengths_B1
        return collate_rows(
            part,
            rows_B,
            special_tokens.pad_id,
            segments=(after_BT & inside_BT).astype(np.int64),
            is_text=after_BT & (places_1T < lengths_B1 - len(special_tokens.pair[2])),
            answers=np.array([part.answers[row] for row in rows_B], dtype=np.int64),
        )

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        return super().dims_of(vocabulary) | {"num_segments": 2}  # for models that tell the two texts apart

    def about_examples(self) -> list[str]:
        parts = self.splits().values()
        without = sum(not question.answers for part in parts for question in part.texts)
        windows = f"{sum(len(part.rows) for part in parts):,} windows"
        return [windows, f"{without:,} questions without an answer"] if without else [windows]

    def _encode(self, part: Questions, training: bool) -> QuestionRows:
        encoded = QuestionRows([], {"cut": 0, "without its answer": 0})
        texts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for question in part.questions:
            if question.context not in texts:
                texts[question.context] = self.vocabulary.locate(question.context)
            tokens_N, places_N2 = texts[question.context]
            answer = tokens_of(question, places_N2)
            if question.answers and answer is None:
                encoded.counts["without its answer"] += 1
                if training:
                    continue
            asked = self.vocabulary.encode_text(question.text)
            encoded.counts["cut"] += len(asked) > self.max_question
            self._add(encoded, asked[: self.max_question], tokens_N, answer)
            encoded.texts.append(question)
            encoded.places.append(places_N2)
        return encoded

    def _add(
        self, encoded: QuestionRows, asked: np.ndarray, tokens_N: np.ndarray, answer: tuple[int, int] | None
    ) -> None:
        around = self.vocabulary.pair_special_tokens()
        first, room = num_special_tokens(around[:2]) + len(asked), self.max_length - len(asked)
        for start, end in windows_over(len(tokens_N), room - num_special_tokens(around), self.stride):
            move = first - start
            encoded.rows.append(add_special_tokens(around, asked, tokens_N[start:end]))
            encoded.question_of.append(len(encoded.texts))
            encoded.first.append(first)
            encoded.start.append(start)
            inside = answer is not None and start <= answer[0] and answer[1] < end
            encoded.answers.append((answer[0] + move, answer[1] + move) if inside and answer else NOWHERE)


def windows_over(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Windows of at most `room` that cover 0 to `length`, each beginning at most `stride` after the one before it."""
    windows = [(0, min(room, length))]
    while windows[-1][1] < length:
        start = windows[-1][0] + min(stride, room)
        windows.append((start, min(start + room, length)))
    return windows


def tokens_of(question: Question, places_N2: np.ndarray) -> tuple[int, int] | None:
    """The first and last of the fewest tokens that hold the first answer; None where it is not where it should be."""
    if not question.answers:
        return None
    answer, begin = question.answers[0]
    if begin < 0 or not answer.strip() or not question.context.startswith(answer, begin):
        return None
    begin += len(answer) - len(answer.lstrip())
    end = begin + len(answer.strip())
    first = int(np.searchsorted(places_N2[:, 1], begin, side="right"))
    return first, int(np.searchsorted(places_N2[:, 0], end, side="left")) - 1
