"""How answers are compared: exact match and F1 of words, as SQuAD's official evaluation has them (version 2.0, which is that of 1.1 but
for answers of no word)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from attnlab.data.questions import Question

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without punctuation marks, articles and surplus blanks."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same once normalised, else 0."""
    return float(normalised(answer) == normalised(reference))


def word_f1(answer: str, reference: str) -> float:
    """The harmonic mean of the shares of the words of each that the other has; where one has no word, 1 if neither has, else 0."""
    given, wanted = normalised(answer).split(), normalised(reference).split()
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
