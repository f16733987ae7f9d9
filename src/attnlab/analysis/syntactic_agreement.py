"""Whether heads attend from a word to its syntactic head. Legend: W words, T tokens, H heads."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.attended import Attended
from attnlab.analysis.attention_maps import ENCODER, SELF
from attnlab.analysis.conllu import Sentence
from attnlab.analysis.head_statistics import Head
from attnlab.analysis.token_axis import Axis

TO_HEAD, TO_DEPENDENT = "dependent to head", "head to dependent"
OFFSETS = [k for k in range(-10, 11) if k]


@dataclass(frozen=True)
class Agreement:
    """
    Of a relation in one direction: the share of its `count` pairs in which each head attends most from the one word to the other.

    baseline: the share that the best fixed offset (in words) finds, which is chosen on the same pairs.
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
    """
    How often each head's most attended other word is the right one, for every relation and direction, most frequent first.

    As in Clark et al. 2019, arXiv 1906.04341, section 4: attention to a word is the sum over its tokens, attention from a word the mean over
    them; the word itself and marks are no answers, and the baseline is the best fixed offset. A head that may see only what is before it
    has offsets before it. Root words, words that share their characters and those without a token are left out.
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
    """Attention between words (H, W, W): summed over the tokens of the word attended to, the mean over those of the word it comes from."""
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


def as_csv(found: Sequence[Agreement]) -> str:
    """A row for each relation, direction and head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["relation", "direction", "pairs", "kind", "layer", "head", "share", "baseline", "offset"])
    for one in found:
        for head, share in one.shares.items():
            line = [one.relation, one.direction, one.count, *head, f"{share:.6g}", f"{one.baseline:.6g}", one.offset]
            writer.writerow(line)
    return text.getvalue()
