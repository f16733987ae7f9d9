"""Whether heads attend from a word to its syntactic head, in sentences with dependency trees (CoNLL-U).

Legend: W words, T tokens, H heads.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.readers import read_lines
from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import ENCODER, SELF, Axis, Head
from attnlab.inspection.heads import csv_of

TO_HEAD, TO_DEPENDENT = "dependent to head", "head to dependent"
OFFSETS = [k for k in range(-10, 11) if k]
COLUMNS = 10
ID, FORM, HEAD, RELATION, MISC = 0, 1, 6, 7, 9


@dataclass(frozen=True)
class Sentence:
    """A text, the characters of each of its words (W, 2), each word's head (-1: the root, or unknown) and its relation
    to that. Words that share their characters, such as the two in French "au", have places -1: no token is of one of
    them.
    """

    text: str
    places_W2: np.ndarray
    heads_W: np.ndarray
    relations: list[str]
    forms: list[str]


def read_sentences(path: Path) -> list[Sentence]:
    """The sentences of a file. Raises ValueError, with file and line, for what is no CoNLL-U."""
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
            continue
        if any(not before.startswith("#") for before in block):
            yield number - len(block), block
        block = []


class _Surface(NamedTuple):
    """A piece of the text: its line in the file, form, miscellany, and the words that it is of."""

    number: int
    form: str
    misc: str
    words: range


def _sentence(path: Path, first: int, lines: list[str]) -> Sentence:
    text = None
    surface: list[_Surface] = []
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
    if text is None:
        text = "".join(s.form + ("" if "SpaceAfter=No" in s.misc.split("|") else " ") for s in surface).strip(" ")
    heads = [_head(path, number, columns[HEAD], len(words)) for number, columns in words]
    relations, forms = ([columns[which] for _, columns in words] for which in (RELATION, FORM))
    return Sentence(text, _places(path, text, surface, len(words)), np.array(heads, dtype=np.int64), relations, forms)


def _place(
    path: Path, number: int, columns: list[str], surface: list[_Surface], words: list[tuple[int, list[str]]]
) -> None:
    """Takes in a line: a word, several words that are written as one, or an empty node, which stands nowhere."""
    name, form, misc = columns[ID], columns[FORM], columns[MISC]
    if name.isdecimal() and int(name) == len(words) + 1:
        words.append((number, columns))
        if not surface or len(words) - 1 not in surface[-1].words:
            surface.append(_Surface(number, form, misc, range(len(words) - 1, len(words))))
    elif re.fullmatch(r"\d+-\d+", name):
        start, end = map(int, name.split("-"))
        surface.append(_Surface(number, form, misc, range(start - 1, end)))
    elif not re.fullmatch(r"\d+(\.\d+)+", name):
        raise ValueError(f"{path}, line {number}: the word number {name!r}; accepted here: {len(words) + 1}")


def _head(path: Path, number: int, head: str, count: int) -> int:
    if head == "_":
        return -1
    if not head.isdecimal() or int(head) > count:
        raise ValueError(f"{path}, line {number}: the head {head!r}; accepted: 0 (the root) to {count}")
    return int(head) - 1


def _places(path: Path, text: str, surface: list[_Surface], count: int) -> np.ndarray:
    """Where each word stands in the text, in order, with nothing but blanks between."""
    places_W2 = np.full((count, 2), -1, dtype=np.int64)
    at = 0
    for number, form, _, words in surface:
        while at < len(text) and text[at].isspace() and not text.startswith(form, at):
            at += 1
        if not text.startswith(form, at):
            raise ValueError(
                f"{path}, line {number}: the word {form!r} does not fit the text, which goes on with "
                f"{text[at : at + 20]!r}; mend the file, or leave the line '# text = ...' out"
            )
        if len(words) == 1:
            places_W2[words[0]] = at, at + len(form)
        at += len(form)
    return places_W2


@dataclass(frozen=True)
class Agreement:
    """Of a relation in one direction: the share of its `count` pairs in which each head attends most from the one word
    to the other. baseline: the share that the best fixed offset (in words) finds, which is chosen on the same pairs.
    """

    relation: str
    direction: str
    count: int
    shares: dict[Head, float]
    baseline: float
    offset: int

    @property
    def best(self) -> Head:
        """The head that finds most pairs; of equals the first."""
        return max(self.shares, key=lambda head: self.shares[head])


def agreement(examples: Iterable[Attended], sentences: Sequence[Sentence]) -> list[Agreement]:
    """How often each head's most attended other word is the right one, for every relation and direction, most frequent
    first.

    As in Clark et al. 2019, arXiv 1906.04341, section 4: attention to a word is the sum over its tokens, attention from
    a word the mean over them; the word itself and marks are no answers. A head that may see only what is before it has
    offsets before it. Root words, words that share their characters and those without a token are left out.
    """
    hits: dict[tuple[str, str], dict[Head, list[bool]]] = defaultdict(lambda: defaultdict(list))
    apart: dict[tuple[str, str], list[int]] = defaultdict(list)
    causal = False
    for example, sentence in zip(examples, sentences, strict=True):
        kind = ENCODER if example.of_kind(ENCODER) else SELF
        maps = example.of_kind(kind)
        owner_T = owners(example.axes[kind][0], sentence)
        causal = causal or bool((~maps[0].allowed_TS.triu(1)).all())
        pairs = _pairs(sentence, owner_T)
        for relation, query, key in pairs:
            apart[relation].append(key - query)
        for one in maps:
            most_HW = most_attended(word_attention(one.weights_HTS.double().numpy(), owner_T, len(sentence.relations)))
            for head, most_W in enumerate(most_HW):
                for relation, query, key in pairs:
                    hits[relation][Head(kind, one.layer, head)].append(bool(most_W[query] == key))
    found = [_summed(*relation, hits[relation], apart[relation], causal) for relation in apart]
    return sorted(found, key=lambda one: -one.count)


def owners(axis: Axis, sentence: Sentence) -> np.ndarray:
    """The word that each token is of, (T,); -1 for marks, blanks, and what lies in no word that can be told apart."""
    found = []
    for start, end in axis.places_N2:
        overlaps_W = np.minimum(sentence.places_W2[:, 1], end) - np.maximum(sentence.places_W2[:, 0], start)
        overlaps_W = np.where(sentence.places_W2[:, 0] < 0, 0, overlaps_W)
        best = int(overlaps_W.argmax()) if start >= 0 and len(overlaps_W) else 0
        found.append(best if start >= 0 and overlaps_W[best] > 0 else -1)
    return np.array(found, dtype=np.int64)


def word_attention(weights_HTS: np.ndarray, owner_T: np.ndarray, count: int) -> np.ndarray:
    """Attention between words (H, W, W): the sum over the tokens of the one attended to, the mean over the other's."""
    is_of_TW = owner_T[:, None] == np.arange(count)[None]
    mean_TW = is_of_TW / np.maximum(is_of_TW.sum(axis=0), 1)
    words_HWW: np.ndarray = mean_TW.T @ weights_HTS @ is_of_TW
    return words_HWW


def most_attended(words_HWW: np.ndarray) -> np.ndarray:
    """The other word that each word attends to most, (H, W); -1 where it attends to none."""
    others_HWW = words_HWW * (1 - np.eye(words_HWW.shape[1]))
    best_HW: np.ndarray = others_HWW.argmax(axis=2)
    return np.where(others_HWW.max(axis=2) > 0, best_HW, -1)


def _pairs(sentence: Sentence, owner_T: np.ndarray) -> list[tuple[tuple[str, str], int, int]]:
    """Relation and direction, the word that attends, and the right answer."""
    there = set(owner_T.tolist())
    found = []
    for dependent, (head, relation) in enumerate(zip(sentence.heads_W.tolist(), sentence.relations, strict=True)):
        if head >= 0 and head in there and dependent in there and head != dependent:
            found.append(((relation, TO_HEAD), dependent, head))
            found.append(((relation, TO_DEPENDENT), head, dependent))
    return found


def _summed(relation: str, direction: str, hits: dict[Head, list[bool]], apart: list[int], causal: bool) -> Agreement:
    offsets = [k for k in OFFSETS if k < 0 or not causal]
    offset = max(offsets, key=lambda k: (apart.count(k), -abs(k)))
    baseline = apart.count(offset) / len(apart)
    shares = {head: float(np.mean(found)) for head, found in hits.items()}
    return Agreement(relation, direction, len(apart), shares, baseline, offset)


def syntax_csv(found: Sequence[Agreement]) -> str:
    """A row for each relation, direction and head."""
    columns = ["relation", "direction", "pairs", "kind", "layer", "head", "share", "baseline", "offset"]
    rows: list[list[str | float]] = [
        [one.relation, one.direction, one.count, *head, share, one.baseline, one.offset]
        for one in found
        for head, share in one.shares.items()
    ]
    return csv_of(columns, rows)
