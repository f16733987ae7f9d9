"""Where questions on texts come from, and the answers that stand in these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from attnlab.data.cache import DataError
from attnlab.data.readers import HubSet, read_lines, refuse_half_characters, text_of, truth_of, whole_number_of
from attnlab.data.source import SPLITS, Examples, ExampleSource, InHub, check_split, completed, divide, existing
from attnlab.ranges import Probability, check_ranges

FORMAT = '{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}'


@dataclass(frozen=True)
class Question:
    """A question on a text, and its answers with the character each starts at; without any, it is unanswerable."""

    id: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Questions(Examples):
    """Questions; all of one text fall into one split."""

    questions: list[Question]

    @property
    def keys(self) -> list[str]:
        return [question.context for question in self.questions]

    @property
    def has_answers(self) -> bool:
        """Whether any of them has an answer."""
        return any(question.answers for question in self.questions)

    def update(self, digest: hashlib._Hash, name: str) -> None:
        rows = [[q.id, q.text, q.context, q.answers] for q in self.questions]
        digest.update(json.dumps([name, rows]).encode())


class QuestionSource(ExampleSource[Questions]):
    """Questions on texts."""

    kind, shelf = "questions", "questions"


@check_ranges
class SQuADFiles(QuestionSource):
    """JSON files in the format of SQuAD 1.1 or 2.0 (Rajpurkar et al. 2016, 2018).

    path: a folder with train*.json and dev*.json (or valid*.json) and, where there is one, test*.json: without it the
    dev file is the test, and a tenth of the training texts is to validate on. Or one file, whose texts are split by
    `split`. In either case all questions of a text stand in one split, which the text itself decides. Raises DataError.
    """

    name = "squad_files"
    what = "questions in SQuAD's JSON of your own: data.path=FOLDER or FILE"

    def __init__(self, path: str | Path, split: Sequence[Probability] = (0.8, 0.1, 0.1)) -> None:
        self.path = existing(path, "a JSON file in SQuAD's format, or a folder with train.json and dev.json")
        self.split = check_split(split, "data.source.split")

    def read(self, cache: str | Path | None = None) -> dict[str, Questions]:
        if self.path.is_file():
            return divide(read_squad(self.path), dict(zip(SPLITS, self.split, strict=True)))
        stems = {"train": ("train",), "validation": ("dev", "valid"), "test": ("test",)}
        files = {name: self._file(starts) for name, starts in stems.items()}
        found = {name: read_squad(file) for name, file in files.items() if file is not None}
        if "train" not in found or len(found) == 1:
            raise DataError(
                f"data.path={self.path} holds no {'dev*.json' if 'train' in found else 'train*.json'}; give a folder "
                "with train*.json and dev*.json (or valid*.json, test*.json), or one JSON file"
            )
        test = found.get("test")
        if test is not None and len(test) and not test.has_answers and found["train"].has_answers:
            raise DataError(
                f"no question of {files['test']} has an answer; leave it out: the dev file is the test part then"
            )
        return completed(found)

    def _file(self, starts: Sequence[str]) -> Path | None:
        found = sorted(path for start in starts for path in self.path.glob(f"{start}*.json"))
        if len(found) > 1:
            raise DataError(
                f"data.path={self.path} holds both {found[0].name} and {found[1].name}; leave one file each of train, "
                "dev and test"
            )
        return found[0] if found else None


class HubQuestions(InHub, QuestionSource):
    """A data set of the hub with SQuAD's columns id, question, context and answers."""

    name = "hub_questions"
    what = 'questions of the hub in SQuAD\'s columns: data.path=NAME (needs pip install "attnlab[hub]")'

    def __init__(self, path: str, test: str = "validation", **fields: Unpack[HubSet]) -> None:
        super().__init__(path, test, **fields)

    def read(self, cache: str | Path | None = None) -> dict[str, Questions]:
        return completed({name: self._part(split, cache) for name, split in self.splits.items()})

    def _part(self, split: str, cache: str | Path | None) -> Questions:
        rows, where = self.table.rows(split, cache), f"{self.table.path} ({split})"
        columns = ("id", "question", "context", "answers")
        if missing := [name for name in columns if name not in rows.column_names]:
            raise DataError(
                f"{self.table.path} has no column {missing[0]!r}; accepted: a data set with {', '.join(columns)}, and "
                f"this one has {', '.join(rows.column_names)}"
            )
        return checked([question_of(row, row["context"], row["answers"], where) for row in rows], where)


@check_ranges
class SQuAD(QuestionSource):
    """The Stanford questions on Wikipedia (Rajpurkar et al. 2016), tested on their dev part, which has public answers.

    path: files as SQuADFiles reads them; None: the hub, at `revision`.
    """

    name = "squad"
    what = "questions on Wikipedia: data.path=FOLDER or FILE in SQuAD's JSON, or the hub where it is null"
    size = "87,599 + 10,570 questions"
    licence = "CC-BY-SA 4.0"

    def __init__(
        self,
        path: str | Path | None = None,
        split: Sequence[Probability] = (0.8, 0.1, 0.1),
        revision: str | None = None,
    ) -> None:
        hub = partial(HubQuestions, "rajpurkar/squad", revision=revision)
        self.source: QuestionSource = hub() if path is None else SQuADFiles(path, split)

    def read(self, cache: str | Path | None = None) -> dict[str, Questions]:
        return self.source.read(cache)


def read_squad(path: Path) -> Questions:
    """The questions of a JSON file in SQuAD's format. Raises DataError for a file of another."""
    text = "\n".join(read_lines(path))
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; accepted: a file in SQuAD's format") from error
    try:
        questions = list(_questions(content, str(path)))
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} is not in SQuAD's format ({type(error).__name__}: {error}); accepted: {FORMAT}"
        ) from error
    return checked(questions, str(path))


def _questions(content: Any, place: str) -> Iterator[Question]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                given = asked["answers"] if asked.get("is_impossible") is None else asked.get("answers", [])
                yield question_of(asked, paragraph["context"], given, place)


def question_of(asked: Mapping[str, Any], context: Any, answers: Any, place: str) -> Question:
    """The question of untyped fields, of which each is read for what it says.

    Raises DataError for one that says nothing that it can be read as, and for a question that is said to have no answer
    and has one, or the other way round.
    """
    name = text_of(asked["id"], f"the id of a question of {place}")
    where = f"the question {name!r} of {place}"
    found = []
    for answer in _listed(answers, where):
        text = text_of(answer["text"], f"an answer to {where}")
        found.append((text, whole_number_of(answer["answer_start"], f"the answer_start of an answer to {where}")))
    said = asked.get("is_impossible")
    if said is not None and truth_of(said, f"is_impossible of {where}") == bool(found):
        has = f"the answer {found[0][0]!r}" if found else "no answer"
        raise DataError(f"{where} has is_impossible={said} and {has}; accepted: one of the two")
    text = text_of(asked["question"], f"the text of {where}")
    return Question(name, text, text_of(context, f"the context of {where}"), tuple(found))


def _listed(answers: Any, place: str) -> list[Mapping[str, Any]]:
    """Answers as a list of them, where a table has a list for each field. Raises DataError for lists of two lengths."""
    if not isinstance(answers, Mapping):
        return list(answers or [])
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        raise DataError(f"{place} has {len(texts)} answers and {len(starts)} answer_start; accepted: one for each")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def checked(questions: list[Question], place: str) -> Questions:
    """The questions. Raises DataError for two with one id: their answers could not be told apart."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(
                f"{place} has two questions with the id {question.id!r}; accepted: an id of its own for each"
            )
        for text in (question.id, question.text, question.context, *(answer for answer, _ in question.answers)):
            refuse_half_characters(text, f"{place}, question {question.id!a},")
        seen.add(question.id)
    return Questions(questions)
