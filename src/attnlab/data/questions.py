"""Where questions on texts come from: each source gives, for every split, questions, their texts, and answers that stand in these."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from attnlab.data.cache import DataError
from attnlab.data.corpus import check_split
from attnlab.data.pairs import read_lines, split_of
from attnlab.data.sources import existing, load_hub, refuse_half_characters
from attnlab.data.values import text_of, truth_of, whole_number_of
from attnlab.ranges import Probability, check_ranges


@dataclass(frozen=True)
class Question:
    """A question on a text, and its answers with the character each starts at; without any, the text does not answer it."""

    id: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


class QuestionSource:
    """Questions on texts. Subclasses give `read`."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool] = False

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> dict[str, list[Question]]:
        """The questions of train, validation and test. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} gives no read")

    def fingerprint(self, splits: dict[str, list[Question]]) -> str:
        """sha256 of all questions, texts and answers."""
        digest = hashlib.sha256()
        for name, questions in sorted(splits.items()):
            rows = [[q.id, q.text, q.context, q.answers] for q in questions]
            digest.update(json.dumps([name, rows]).encode())
        return digest.hexdigest()


@check_ranges
class SQuADFiles(QuestionSource):
    """
    JSON files in the format of SQuAD 1.1 or 2.0 (Rajpurkar et al. 2016, 2018).

    path: a folder with train*.json and dev*.json (or valid*.json) and, where there is one, test*.json: without it the dev file is the
    test, and a tenth of the training texts is to validate on. Or one file, whose texts are split by `split`. In either case all
    questions of a text stand in one split, which the text itself decides. Raises DataError.
    """

    name = "squad_files"
    what = "questions in SQuAD's JSON of your own: data.path=FOLDER or FILE"
    size = "yours"
    licence = "yours"

    def __init__(self, path: str | Path, split: Sequence[Probability] = (0.8, 0.1, 0.1)) -> None:
        self.path = existing(path, "a JSON file in SQuAD's format, or a folder with train.json and dev.json")
        self.split = check_split(split, "data.source.split")

    def read(self, cache: str | Path | None = None) -> dict[str, list[Question]]:
        """The files' parts."""
        if self.path.is_file():
            return by_context(read_squad(self.path), self.split, ("train", "validation", "test"))
        stems = {"train": ("train",), "validation": ("dev", "valid"), "test": ("test",)}
        files = {name: self._file(starts) for name, starts in stems.items()}
        found = {name: read_squad(file) for name, file in files.items() if file is not None}
        if "train" not in found or len(found) == 1:
            raise DataError(
                f"data.path={self.path} holds no {'dev*.json' if 'train' in found else 'train*.json'}; give a folder with train*.json and "
                "dev*.json (or valid*.json, test*.json), or one JSON file"
            )
        if "test" in found and hides_answers(found["test"], found["train"]):
            raise DataError(
                f"no question of {files['test']} has an answer; leave it out: the dev file is the test part then"
            )
        return (
            found
            if len(found) == 3
            else cut_validation(found["train"], found["test"] if "test" in found else found["validation"])
        )

    def _file(self, starts: Sequence[str]) -> Path | None:
        found = sorted(path for start in starts for path in self.path.glob(f"{start}*.json"))
        if len(found) > 1:
            raise DataError(
                f"data.path={self.path} holds both {found[0].name} and {found[1].name}; leave one file each of train, dev and test"
            )
        return found[0] if found else None


class HubQuestions(QuestionSource):
    """A data set of the hub with SQuAD's columns id, question, context and answers, or a local folder in its format."""

    name = "hub_questions"
    what = 'questions of the hub in SQuAD\'s columns: data.path=NAME (needs pip install "attnlab[hub]")'
    size = "its own"
    licence = "its own"
    columns: ClassVar[tuple[str, ...]] = ("id", "question", "context", "answers")

    def __init__(
        self,
        path: str,
        name: str | None = None,
        validation: str | None = None,
        test: str = "validation",
        revision: str | None = None,
    ) -> None:
        self.path, self.config, self.revision = path, name, revision
        self.validation, self.test = validation, test

    def read(self, cache: str | Path | None = None) -> dict[str, list[Question]]:
        """Its splits; without one to validate on, a tenth of the training texts serves."""
        train, test = (self._part(split, cache) for split in ("train", self.test))
        if self.validation is None:
            return cut_validation(train, test)
        return {"train": train, "validation": self._part(self.validation, cache), "test": test}

    def _part(self, split: str, cache: str | Path | None) -> list[Question]:
        rows = load_hub(self.path, self.config, split, self.revision, cache)
        if missing := [name for name in self.columns if name not in rows.column_names]:
            raise DataError(
                f"{self.path} has no column {missing[0]!r}; accepted: a data set with {', '.join(self.columns)}, and this one has "
                f"{', '.join(rows.column_names)}"
            )
        where = f"{self.path} ({split})"
        return checked([question_of(row, row["context"], row["answers"], where) for row in rows], where)


@check_ranges
class SQuAD(QuestionSource):
    """
    The Stanford questions on Wikipedia (Rajpurkar et al. 2016), tested on their dev part, which is the one with public answers.

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

    def read(self, cache: str | Path | None = None) -> dict[str, list[Question]]:
        """The parts."""
        return self.source.read(cache)


QUESTION_SOURCES: dict[str, type[QuestionSource]] = {s.name: s for s in (SQuAD, SQuADFiles, HubQuestions)}


def read_squad(path: Path) -> list[Question]:
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
            f"{path} is not in SQuAD's format ({type(error).__name__}: {error}); accepted: "
            '{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}'
        ) from error
    return checked(questions, str(path))


def _questions(content: Any, place: str) -> Iterator[Question]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                given = asked["answers"] if asked.get("is_impossible") is None else asked.get("answers", [])
                yield question_of(asked, paragraph["context"], given, place)


def question_of(asked: Mapping[str, Any], context: Any, answers: Any, place: str) -> Question:
    """
    The question of untyped fields, of which each is read for what it says.

    Raises DataError for one that says nothing that it can be read as, and for a question that is said to have no
    answer and has one, or the other way round.
    """
    name = text_of(asked["id"], f"the id of a question of {place}")
    where = f"the question {name!r} of {place}"
    found = tuple(
        (
            text_of(answer["text"], f"an answer to {where}"),
            whole_number_of(answer["answer_start"], f"the answer_start of an answer to {where}"),
        )
        for answer in listed(answers, where)
    )
    if (said := asked.get("is_impossible")) is not None:
        impossible = truth_of(said, f"is_impossible of {where}")
        if impossible == bool(found):
            has = f"the answer {found[0][0]!r}" if found else "no answer"
            raise DataError(f"{where} has is_impossible={said} and {has}; accepted: one of the two")
    return Question(
        name, text_of(asked["question"], f"the text of {where}"), text_of(context, f"the context of {where}"), found
    )


def listed(answers: Any, place: str) -> list[Mapping[str, Any]]:
    """Answers as a list of them, where a table has a list for each field. Raises DataError for lists of two lengths."""
    if not isinstance(answers, Mapping):
        return list(answers or [])
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        raise DataError(f"{place} has {len(texts)} answers and {len(starts)} answer_start; accepted: one for each")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def hides_answers(test: Sequence[Question], train: Sequence[Question]) -> bool:
    """Whether a part has no answers though another has: these are not to be known, and not that there are none."""
    return bool(test) and not any(q.answers for q in test) and any(q.answers for q in train)


def checked(questions: list[Question], place: str) -> list[Question]:
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
    return questions


def by_context(
    questions: Sequence[Question], shares: Sequence[float], names: Sequence[str]
) -> dict[str, list[Question]]:
    """The questions in parts: which one is decided by the text that they are on."""
    parts: dict[str, list[Question]] = {name: [] for name in names}
    for question in questions:
        parts[split_of(question.context, shares, names)].append(question)
    return parts


def cut_validation(train: Sequence[Question], test: list[Question], share: float = 0.1) -> dict[str, list[Question]]:
    """The training part in two, and the test."""
    return {**by_context(train, (1 - share, share), ("train", "validation")), "test": test}
