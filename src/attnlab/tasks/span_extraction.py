"""Questions whose answers stand in a text: where one starts and ends. Legend: B batch (windows), T length."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from attnlab.data.marks import Marks
from attnlab.data.span_extraction import EncodedQuestions, SpanExtractionData
from attnlab.models.encoder import Encoder
from attnlab.models.heads import SpanFinder
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.answers import answer_scores
from attnlab.tasks.encoder_task import EncoderTask, mask_for
from attnlab.tasks.losses import cross_entropy_sums
from attnlab.tasks.translation import mask_of
from attnlab.training import NUM_SAMPLES, Table
from attnlab.training.measures import of_both_parts


class Found(NamedTuple):
    """The best span of a window, both positions included, its log-probability, and that of there being none (the first token)."""

    score: float
    begin: int
    end: int
    nothing: float


@check_ranges
class SpanExtraction(EncoderTask):
    """
    The first and last token of an answer, each a choice among a window's text and the first token, which stands for "not here"
    (Devlin et al. 2019, sections 4.2 and 4.3): nats a window, of both choices together, and accuracy, both choices being right.

    At the end a question's answer is the most probable span of at most `max_answer` tokens over all of its windows, scored as SQuAD's
    official evaluation does: `test/exact_match` and `test/f1`, in percent. Scores of windows are log-probabilities, not logits, whose
    level says nothing. Where the training part has questions without an answer, the answer is "" if "not here" is more probable in
    every window. pretrained, dropout, token_dropout: see EncoderTask and EncoderHead.
    """

    headline = ("val/nats", "val/exact_match", "val/f1", "test/exact_match", "test/f1")
    data_type: ClassVar[type] = SpanExtractionData

    def __init__(
        self,
        model: Encoder,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        marks: Marks,
        pretrained: str | None = None,
        max_answer: PositiveInt = 30,
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
        log_every: PositiveInt = 10,
    ) -> None:
        head = SpanFinder(model, dropout, token_dropout, mask_for(token_dropout, marks))
        super().__init__(head, optimizer, schedule, log_every)
        self.pretrained = pretrained
        segments = getattr(model, "segments", None)
        if segments is not None and segments.num_embeddings < 2:
            raise ValueError("model.num_segments=1: question and text are two; leave it out, or give 2, or 0 for none")
        self.max_answer = max_answer

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts."""
        return of_both_parts(("nats", "accuracy", "exact_match", "f1"))

    def loss_sums(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropies of the batch's windows, those of start and end together, and how many windows they are."""
        start_BT, end_BT = self.logits(batch)
        begin_B, last_B = batch["answers"].unbind(dim=1)
        start, _ = cross_entropy_sums(start_BT, begin_B)
        end, _ = cross_entropy_sums(end_BT, last_B)
        right_B = (start_BT.argmax(dim=1) == begin_B) & (end_BT.argmax(dim=1) == last_B)
        self.also({"accuracy": right_B.sum()})
        return start + end, len(begin_B)

    def logits(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, T) of start and end; what is neither text nor the first token cannot be chosen."""
        barred_BT = ~batch["is_text"]
        barred_BT[:, 0] = False
        start_BT, end_BT = self.model(batch["tokens"], mask_of(batch["is_token"]), batch["segments"])
        return start_BT.masked_fill(barred_BT, -math.inf), end_BT.masked_fill(barred_BT, -math.inf)

    def predict(self, batch: Mapping[str, Tensor]) -> list[Found]:
        """The best span of each window."""
        start_BT, end_BT = (logits_BT.float().log_softmax(dim=1) for logits_BT in self.logits(batch))
        return best_spans(start_BT, end_BT, batch["is_text"], self.max_answer)

    def validate(self, data: SpanExtractionData) -> dict[str, float]:
        """All figures of the validation part."""
        return self.evaluate(data, "validation")

    def evaluate(self, data: SpanExtractionData, split: str = "test") -> dict[str, float]:
        """Nats, accuracy, exact match and F1 of a split; outputs/<split>.answers.json has the answers by the questions' ids."""
        prefix, loader = {"validation": "val"}.get(split, split), data.evaluation_loader(split)
        figures, part = self.score(loader), data.split(split)
        answers = answers_of(part, self.predictions(loader, self.predict), data.has_unanswered)
        figures |= answer_scores(answers, part.texts)
        self.outputs[f"{split}.answers.json"] = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
        return {f"{prefix}/{name}": value for name, value in figures.items()}

    def samples(self, data: SpanExtractionData, split: str = "test") -> Table | None:
        """The first questions that were not answered as any answer has it; where there is none, the first of all."""
        found, asked = json.loads(self.outputs.get(f"{split}.answers.json", "{}")), data.split(split).texts
        wanted = {question.id: [text for text, _ in question.answers] or [""] for question in asked}
        wrong = [question for question in asked if found.get(question.id) not in wanted[question.id]] or asked
        rows = [
            (one.text, " | ".join(dict.fromkeys(wanted[one.id])), found.get(one.id, "")) for one in wrong[:NUM_SAMPLES]
        ]
        return Table(("question", "answers", "answered"), rows)


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


def answers_of(part: EncodedQuestions, found: Mapping[int, Found], may_be_nothing: bool) -> dict[str, str]:
    """Each question's answer by its id: the best span over its windows, or "" where that is allowed and more probable in all of them."""
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
