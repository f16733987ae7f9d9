"""Problems with answers: how many are right, by length and by difficulty.

Shapes: B batch, T length, N answers, V vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnlab.data.module import IGNORED
from attnlab.data.problems import Problem, Row
from attnlab.data.synthetic import MOST_COMPARED, SyntheticData, most_frequent
from attnlab.models.base import Encoder, LanguageModel, Seq2Seq, TextModel
from attnlab.parts import Choices, Config
from attnlab.ranges import PositiveFloat, Probability, check_ranges, must_be
from attnlab.tasks.translation import teacher_forced
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import ACCURACY, EXACT, LOSS, Metric, prefix_of
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import Table

LENGTHS = (1, 2, 4)  # multiples of the training length
NUM_SHOWN = 8
CHANCE = Metric(
    "chance", "lower", "accuracy of the most frequent answers (0 to 1)", any_tokenizer=True, range=(0.0, 1.0)
)
OVERLAP = Metric("overlap", "lower", "questions that were trained on (0 to 1)", any_tokenizer=True, range=(0.0, 1.0))
SUCCESS = Metric(
    "success",
    "higher",
    "runs with more than the asked-for accuracy (0 or 1)",
    any_tokenizer=True,
    is_proportion=True,
    perfect=1.0,
)
WHOLE = (ACCURACY, EXACT, SUCCESS, CHANCE)


@check_ranges
class Answers(Task):
    """Cross-entropy of the answers alone, in nats an answer; `accuracy` is the share of answers that are the most
    probable ones, where another that is as probable counts as wrong, `exact` that of rows whose answers are all right.

    At the end, at each multiple of the training length in `evaluation_lengths` (`test/accuracy@2x`) and with each of
    the problem's fields in `difficulties` at each of its values (`test/accuracy@num_pairs=16`): accuracy, exact,
    `success` (1 where the accuracy is above `success_above`, else 0) and `chance`, the accuracy of saying what training
    rows have most often in an answer's place. `overlap`: the share of test questions that were trained on. What a model
    or a problem cannot serve is an outcome: `unavailable` names it with the reason. Raises ValueError for a field that
    the problem has not.
    """

    headline = ("val/accuracy", "test/accuracy@*", "test/success@1x", "test/chance@1x", "test/overlap")
    monitor: ClassVar[Metric] = ACCURACY
    data_type: ClassVar[type] = SyntheticData
    model_type: ClassVar[type] = TextModel
    model: LanguageModel | Seq2Seq

    def __init__(
        self,
        model: TextModel,
        evaluation_lengths: Sequence[PositiveFloat] = LENGTHS,
        difficulties: Mapping[str, Sequence[Any]] | None = None,
        success_above: Probability = 0.95,
    ) -> None:
        super().__init__(model)
        if not evaluation_lengths:
            wanted = "a list of multiples of the training length, such as [1]"
            raise ValueError(must_be("task.evaluation_lengths", wanted, evaluation_lengths))
        self.evaluation_lengths, self.difficulties = list(evaluation_lengths), dict(difficulties or {})
        self.success_above = success_above

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """Why a model cannot be asked, and which field of `difficulties` the problem has not."""
        problem = choices.get("data.problem") or {}
        if choices.is_a("model", Encoder):
            yield f"task: model={choices.name('model')} predicts no next token; choose model=gpt, or an encoder-decoder"
        for field in choices.get("task.difficulties") or {}:
            if field not in problem or field.startswith("_"):
                known = ", ".join(name for name in problem if not name.startswith("_")) or "none"
                yield must_be("task.difficulties", f"of the problem's fields ({known})", field)

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        task = config["task"]
        at = [_multiple(factor) for factor in task.get("evaluation_lengths") or LENGTHS]
        at += [f"{name}={value}" for name, values in (task.get("difficulties") or {}).items() for value in values]
        return [LOSS.on("val"), ACCURACY.on("val"), *(metric.on("test", at=at) for metric in WHOLE), OVERLAP.on("test")]

    def check_split(self, data: SyntheticData, split: str) -> None:
        """Raises ValueError where an encoder-decoder is asked what stands within the rows."""
        if isinstance(self.model, Seq2Seq) and not data.problem.answers_last:
            raise ValueError(
                f"data: answers of {data.name} stand within its rows, and {type(self.model).__name__} reads a question "
                "and gives what follows it; choose a language model (model=gpt), or a problem whose answers end the row"
            )

    def loss_sums(self, batch: Batch) -> LossSums:
        logits_NV, targets_N = self._answers(batch)
        loss, _ = cross_entropy_sums(logits_NV, targets_N)
        return LossSums(loss, len(targets_N), {"accuracy": right(logits_NV.detach(), targets_N).sum()})

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits (N, V) of the answers of a batch, and the answers (N), row by row."""
        if isinstance(self.model, Seq2Seq):
            logits_BTV, targets_BT = teacher_forced(self.model, batch)
            kept_BT = targets_BT != IGNORED
            return logits_BTV[kept_BT], targets_BT[kept_BT]
        return self.model(batch["tokens"])[batch["is_answer"]], batch["targets"][batch["is_answer"]]

    def targets_by_row(self, batch: Batch) -> Tensor | None:
        return batch["is_answer"].sum(dim=1) if "is_answer" in batch else super().targets_by_row(batch)

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets"][batch["is_answer"]]

    def figures(self, data: SyntheticData, split: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, length, fields in self._conditions(data):
            problem, reason = _with_fields(data.problem, fields)
            if reason := reason or self._why_not(data, length, problem):
                measured = [metric.name for metric in WHOLE]
                self.unavailable |= {f"{prefix_of(split)}/{each}@{name}": reason for each in measured}
                continue
            asked = data.rows_of(split, length, problem)
            figures = self._figures_of(data, asked)
            figures["chance"] = _chance(data, asked, length, problem)
            found |= {f"{each}@{name}": value for each, value in figures.items()}
        found["overlap"] = data.overlap(data.rows_of(split, data.length), self.tokens)
        self.notes["overlap"] = f"of at most {MOST_COMPARED:,} training rows"
        return found

    def _conditions(self, data: SyntheticData) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """What the answers are asked under: its name, the length, and the fields of the problem that differ."""
        for factor in self.evaluation_lengths:
            yield _multiple(factor), max(1, round(factor * data.length)), {}
        for field, values in self.difficulties.items():
            for value in values:
                yield f"{field}={value}", data.length, {field: value}

    def _why_not(self, data: SyntheticData, length: int, problem: Problem) -> str | None:
        """Why the model, or the problem, has no rows of a length."""
        if problem.smallest is None and length != data.length:
            return f"{data.name} has no lengths"
        try:
            read = problem.longest(length) - 1  # the last answer is read by nobody
        except ValueError as error:
            return str(error)
        if list(problem.symbols) != list(data.problem.symbols):
            return f"{data.name} has other symbols then, which the model does not know"
        if self.model.longest is not None and read > self.model.longest:
            return f"the learned table ends at {self.model.longest} positions"
        return None

    def _figures_of(self, data: SyntheticData, asked: Sequence[Row]) -> dict[str, float]:
        rights = self.predictions(data.loader_of(asked), self._right_by_row)
        answers, right_ones = sum(map(len, rights.values())), sum(map(sum, rights.values()))
        accuracy = right_ones / answers
        exact = sum(map(all, rights.values())) / len(rights)
        return {"accuracy": accuracy, "exact": exact, "success": float(accuracy > self.success_above)}

    def _right_by_row(self, batch: Batch) -> list[list[bool]]:
        flat = right(*self._answers(batch)).tolist()
        is_answer_BT = batch["is_target"] if isinstance(self.model, Seq2Seq) else batch["is_answer"]
        counts = is_answer_BT.sum(dim=1).tolist()
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        return [flat[first:last] for first, last in itertools.pairwise(ends)]

    def samples(self, data: SyntheticData, split: str = "test") -> Table | None:
        """The first questions of a split, their answers, and the model's own where they are others."""
        asked = data.rows_of(split, data.length, count=NUM_SHOWN)
        rights = self.predictions(data.loader_of(asked), self._right_by_row)
        shown = []
        for number, row in enumerate(asked):
            answers = [data.problem.write(row.tokens_T[[place]]) for place in row.is_answer_T.nonzero()[0]]
            marked = [word if is_right else f"({word})" for word, is_right in zip(answers, rights[number], strict=True)]
            shown.append((data.problem.write(row.tokens_T), " ".join(answers), " ".join(marked)))
        return Table(("row", "answers", "answers, (wrong)"), shown)


def _with_fields(problem: Problem, fields: Mapping[str, Any]) -> tuple[Problem, str | None]:
    """The problem with other fields; itself, and the reason, where they are refused."""
    own = {name: getattr(problem, name) for name in inspect.signature(type(problem)).parameters}
    try:
        return type(problem)(**{**own, **fields}), None
    except ValueError as error:
        return problem, str(error)


def right(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Whether each target is the most probable token, bool (N); where another is as probable, it is not."""
    if not len(targets_N):
        return torch.zeros(0, dtype=torch.bool, device=logits_NV.device)
    best_N2 = logits_NV.topk(2, dim=-1)
    return (best_N2.indices[:, 0] == targets_N) & (best_N2.values[:, 0] > best_N2.values[:, 1])


def _chance(data: SyntheticData, asked: Sequence[Row], length: int, problem: Problem) -> float:
    """The accuracy on rows of saying what other rows have most often in an answer's place."""
    guesses = most_frequent(data.rows_of("validation", length, problem, count=2048))
    pairs = [
        (int(answer), guess)
        for row in asked
        for answer, guess in zip(row.tokens_T[row.is_answer_T], guesses, strict=False)
    ]
    return sum(answer == guess for answer, guess in pairs) / max(1, sum(int(row.is_answer_T.sum()) for row in asked))


def _multiple(factor: float) -> str:
    return f"{factor:g}x"
