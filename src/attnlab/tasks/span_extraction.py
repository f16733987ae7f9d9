"""Questions whose answers stand in a text: where one starts and ends. Legend: B batch (windows), T length.

Answers are compared as SQuAD's official evaluation does (version 2.0, which is that of 1.1 but for answers of no word);
in scripts without blanks between words as MLQA's has Chinese (Lewis et al. 2020), a character being a word.
"""

from __future__ import annotations

import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from attnlab.data.questions import Question
from attnlab.data.span_extraction import QuestionRows, SpanExtractionData
from attnlab.data.special_tokens import SpecialTokens
from attnlab.data.tokenizers import UNSPACED, words_of
from attnlab.models.base import Encoder
from attnlab.models.heads import SpanFinder
from attnlab.parts import Config
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.pretrained import EncoderTask, mask_for
from attnlab.tasks.translation import mask_of
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import ACCURACY, EXACT_MATCH, F1, LOSS, Metric
from attnlab.training.task import Batch
from attnlab.training.tracking import NUM_SAMPLES, Table

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Found(NamedTuple):
    """The best span of a window, both ends included, its log-probability, and that of there being none (token 0)."""

    score: float
    begin: int
    end: int
    nothing: float


@check_ranges
class SpanExtraction(EncoderTask):
    """The first and last token of an answer, each a choice among a window's text and the first token, which stands for
    "not here" (Devlin et al. 2019, sections 4.2 and 4.3): nats a window, of both choices together, and accuracy, both
    being right.

    At the end a question's answer is the most probable span of at most `max_answer` tokens over all of its windows,
    scored as SQuAD's official evaluation does: `test/exact_match` and `test/f1`, in percent. Scores of windows are
    log-probabilities, not logits, whose level says nothing. Where the training part has questions without an answer,
    the answer is "" if "not here" is more probable in every window. dropout, token_dropout: see EncoderHead.
    """

    headline = ("val/loss", "val/exact_match", "val/f1", "test/exact_match", "test/f1")
    validates_figures = True
    data_type: ClassVar[type] = SpanExtractionData

    def __init__(
        self,
        model: Encoder,
        special_tokens: SpecialTokens,
        pretrained: str | None = None,
        max_answer: PositiveInt = 30,
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
    ) -> None:
        mask = mask_for(token_dropout, special_tokens)
        super().__init__(SpanFinder(model, dropout=dropout, token_dropout=token_dropout, mask=mask), pretrained)
        self.max_answer = max_answer
        segments = getattr(model, "segments", None)
        if segments is not None and segments.num_embeddings < 2:
            raise ValueError("model.num_segments=1: question and text are two; leave it out, or give 2, or 0 for none")

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        return [LOSS, ACCURACY, EXACT_MATCH, replace(F1, words="F1 of answers (0 to 100)")]

    def loss_sums(self, batch: Batch) -> LossSums:
        start_BT, end_BT = self.logits(batch)
        begin_B, last_B = batch["answers"].unbind(dim=1)
        start, _ = cross_entropy_sums(start_BT, begin_B)
        end, _ = cross_entropy_sums(end_BT, last_B)
        right_B = (start_BT.argmax(dim=1) == begin_B) & (end_BT.argmax(dim=1) == last_B)
        return LossSums(start + end, len(begin_B), {"accuracy": right_B.sum()})

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, T) of start and end; what is neither text nor the first token cannot be chosen."""
        barred_BT = ~batch["is_text"]
        barred_BT[:, 0] = False
        start_BT, end_BT = self.model(batch["tokens"], mask_of(batch["is_token"]), batch["segments"])
        return start_BT.masked_fill(barred_BT, -math.inf), end_BT.masked_fill(barred_BT, -math.inf)

    def predict(self, batch: Batch) -> list[Found]:
        """The best span of each window."""
        start_BT, end_BT = (logits_BT.float().log_softmax(dim=1) for logits_BT in self.logits(batch))
        return best_spans(start_BT, end_BT, batch["is_text"], self.max_answer)

    def figures(self, data: SpanExtractionData, split: str) -> dict[str, float]:
        """As every task's; outputs/<split>.answers.json has the answers by the questions' ids."""
        loader, part = data.evaluation_loader(split), data.split(split)
        figures = self.score(loader)
        answers = answers_of(part, self.predictions(loader, self.predict), data.has_unanswered)
        self.outputs[f"{split}.answers.json"] = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
        return figures | answer_scores(answers, part.texts)

    def samples(self, data: SpanExtractionData, split: str = "test") -> Table | None:
        """The first questions that were not answered as any answer has it; where there is none, the first of all."""
        found, asked = json.loads(self.outputs.get(f"{split}.answers.json", "{}")), data.split(split).texts
        wanted = {question.id: [text for text, _ in question.answers] or [""] for question in asked}
        wrong = [question for question in asked if found.get(question.id) not in wanted[question.id]] or asked
        shown = [(one.text, " | ".join(dict.fromkeys(wanted[one.id])), found.get(one.id, "")) for one in wrong]
        return Table(("question", "answers", "answered"), shown[:NUM_SAMPLES])


def best_spans(start_BT: Tensor, end_BT: Tensor, is_text_BT: Tensor, longest: int) -> list[Found]:
    """Of each window, the span of at most `longest` tokens of its text with the highest sum of scores."""
    length = start_BT.shape[1]
    spans_TT = torch.ones(length, length, dtype=torch.bool, device=start_BT.device).triu().tril(longest - 1)
    allowed_BTT = spans_TT & is_text_BT[:, :, None] & is_text_BT[:, None, :]
    scores_BTT = (start_BT[:, :, None] + end_BT[:, None, :]).masked_fill(~allowed_BTT, -math.inf)
    best_B, places_B = scores_BTT.flatten(1).max(dim=1)
    nothing_B = start_BT[:, 0] + end_BT[:, 0]
    rows = zip(best_B.tolist(), places_B.tolist(), nothing_B.tolist(), strict=True)
    return [Found(score, place // length, place % length, nothing) for score, place, nothing in rows]


def answers_of(part: QuestionRows, found: Mapping[int, Found], may_be_nothing: bool) -> dict[str, str]:
    """Each question's answer by its id: the best span over its windows, or "" where that may be and is likelier."""
    best: dict[int, tuple[float, int]] = {}  # by number of the question: score and row
    nothing: dict[int, float] = {}
    for row, number in enumerate(part.question_of):
        best[number] = max(best.get(number, (-math.inf, row)), (found[row].score, row))
        nothing[number] = min(nothing.get(number, math.inf), found[row].nothing)
    answers = {}
    for number, question in enumerate(part.texts):
        score, row = best[number]
        empty = may_be_nothing and nothing[number] > score
        answers[question.id] = "" if empty else part.words(row, found[row].begin, found[row].end)
    return answers


def normalised(answer: str) -> str:
    """Lower case, without punctuation marks, articles and surplus blanks."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def compared(answer: str, reference: str) -> tuple[list[str], list[str]]:
    """The words of both, as they are compared; the script of the reference says how."""
    if not UNSPACED.search(reference):
        return normalised(answer).split(), normalised(reference).split()

    def words(text: str) -> list[str]:
        kept = (c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
        return words_of("".join(kept))

    return words(answer), words(reference)


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same once normalised, else 0."""
    given, wanted = compared(answer, reference)
    return float(given == wanted)


def word_f1(answer: str, reference: str) -> float:
    """The harmonic mean of the shares of the words of each that the other has; where one has none, 1 if neither has."""
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
