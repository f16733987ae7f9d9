"""Sentences with their dependency trees in CoNLL-U (Universal Dependencies). Legend: W words."""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.pairs import read_lines

COLUMNS = 10
ID, FORM, HEAD, RELATION, MISC = 0, 1, 6, 7, 9


@dataclass(frozen=True)
class Sentence:
    """
    A text, the characters of each of its words (W, 2), each word's head (-1: the root, or unknown) and its relation to that.

    Words that share their characters, such as the two in French "au", have places -1: no token is of one of them.
    """

    text: str
    places_W2: np.ndarray
    heads_W: np.ndarray
    relations: list[str]
    forms: list[str]


def read_sentences(path: Path) -> list[Sentence]:
    """The sentences of a file. Raises ValueError, with file and line, for what is no CoNLL-U, and words that do not fit their text."""
    try:
        lines = read_lines(Path(path))
    except DataError as error:
        raise ValueError(f"{error}; give a file in CoNLL-U") from error
    sentences = [_sentence(path, first, block) for first, block in _blocks(lines)]
    if not sentences:
        raise ValueError(f"{path} holds no sentence; give one in CoNLL-U: a word a line, ten columns between tabs")
    return sentences


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The lines of each sentence, and the number of the first one."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip(" \t"):
            block.append(line)
        elif any(not before.startswith("#") for before in block):
            yield number - len(block), block
            block = []
        else:
            block = []


def _sentence(path: Path, first: int, lines: list[str]) -> Sentence:
    text = None
    surface: list[tuple[int, str, str, range]] = []  # line, form, miscellany, words of it
    words: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, start=first):
        if line.startswith("#"):
            name, equals, value = line[1:].partition("=")
            text = value.strip(" \t") if equals and name.strip() == "text" else text
            continue
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            raise ValueError(f"{path}, line {number}: {len(columns)} columns; accepted: CoNLL-U, ten between tabs")
        _place(path, number, columns, surface, words)
    spelt = "".join(form + ("" if "SpaceAfter=No" in misc.split("|") else " ") for _, form, misc, _ in surface).strip(
        " "
    )
    text = spelt if text is None else text
    heads = [_head(path, number, columns, len(words)) for number, columns in words]
    return Sentence(
        text,
        _places(path, text, surface, len(words)),
        np.array(heads, dtype=np.int64),
        [columns[RELATION] for _, columns in words],
        [columns[FORM] for _, columns in words],
    )


def _place(
    path: Path,
    number: int,
    columns: list[str],
    surface: list[tuple[int, str, str, range]],
    words: list[tuple[int, list[str]]],
) -> None:
    """Takes in a line: a word, several words that are written as one, or an empty node, which stands nowhere."""
    name, form, misc = columns[ID], columns[FORM], columns[MISC]
    if name.isdecimal() and int(name) == len(words) + 1:
        words.append((number, columns))
        if not surface or len(words) - 1 not in surface[-1][3]:
            surface.append((number, form, misc, range(len(words) - 1, len(words))))
    elif (ends := name.split("-")) and len(ends) == 2 and all(map(str.isdecimal, ends)):
        surface.append((number, form, misc, range(int(ends[0]) - 1, int(ends[1]))))
    elif not all(map(str.isdecimal, name.split("."))) or "." not in name:
        raise ValueError(f"{path}, line {number}: the word number {name!r}; accepted here: {len(words) + 1}")


def _head(path: Path, number: int, columns: list[str], count: int) -> int:
    head = columns[HEAD]
    if head == "_":
        return -1
    if not head.isdecimal() or int(head) > count:
        raise ValueError(f"{path}, line {number}: the head {head!r}; accepted: 0 (the root) to {count}")
    return int(head) - 1


def _places(path: Path, text: str, surface: list[tuple[int, str, str, range]], count: int) -> np.ndarray:
    """Where each word stands in the text, in order, with nothing but blanks between."""
    places_W2 = np.full((count, 2), -1, dtype=np.int64)
    at = 0
    for number, form, _, words in surface:
        while at < len(text) and text[at].isspace() and not text.startswith(form, at):
            at += 1
        if not text.startswith(form, at):
            raise ValueError(
                f"{path}, line {number}: the word {form!r} does not fit the text, which goes on with {text[at : at + 20]!r}; mend the "
                "file, or leave the line '# text = ...' out"
            )
        if len(words) == 1:
            places_W2[words[0]] = at, at + len(form)
        at += len(form)
    return places_W2
