"""
How answers are compared: exact match and F1 of words, as SQuAD's official evaluation has them (version 2.0, which is
that of 1.1 but for answers of no word); in scripts without blanks between words as MLQA's has Chinese (Lewis et al.
2020), a character being a word.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from attnlab.data.questions import Question
from attnlab.data.scripts import UNSPACED, words_of

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without punctuation marks, articles and surplus blanks."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def compared(answer: str, reference: str) -> tuple[list[str], list[str]]:
    """The words of both, as they are compared; the script of the reference says how."""
    if not UNSPACED.search(reference):
        return normalised(answer).split(), normalised(reference).split()
    kept = ("".join(c for c in text.lower() if not _is_punctuation(c)) for text in (answer, reference))
    given, wanted = map(words_of, kept)
    return given, wanted


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same once normalised, else 0."""
    given, wanted = compared(answer, reference)
    return float(given == wanted)


def word_f1(answer: str, reference: str) -> float:
    """The harmonic mean of the shares of the words of each that the other has; where one has no word, 1 if neither has, else 0."""
    given, wanted = compared(answer, reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def answer_scores(answers: Mapping[str, str], questions: Sequence[Question]) -> dict[str, float]:
    """Exact match and F1 in percent: of each question the best over its references, and the mean over questions."""
    exact = f1 = 0.0
    for question in questions:
        references = [text for text, _ in question.answers if normalised(text)] or [""]
        exact += max(exact_match(answers[question.id], reference) for reference in references)
        f1 += max(word_f1(answers[question.id], reference) for reference in references)
    return {"exact_match": 100 * exact / len(questions), "f1": 100 * f1 / len(questions)}
