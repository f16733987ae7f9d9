"""Named entities: a tag a word. Legend: B batch, T length, C tags, N words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from attnlab.data.entities import Tagged
from attnlab.data.marks import Marks
from attnlab.data.tags import entities_of, may_follow
from attnlab.data.token_classification import IGNORED, TokenClassificationData
from attnlab.models.encoder import Encoder
from attnlab.models.heads import TokenClassifier
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.encoder_task import EncoderTask, mask_for
from attnlab.tasks.losses import cross_entropy_sums
from attnlab.tasks.translation import mask_of
from attnlab.training import NUM_SAMPLES, Table
from attnlab.training.measures import of_both_parts

BLANKS = re.compile(r"[ \t\r\n]+")  # what parts columns and lines; other white space may be all of a word
ENTITY_SUMS = ("right", "found", "there")


@check_ranges
class TokenClassification(EncoderTask):
    """
    One tag a word, from the state of its first token: nats a word, accuracy a word, and precision, recall and F1 of entities.

    An entity is found where its first word, last word and type are right (conlleval; seqeval's default mode); `test/f1@TYPE` is that
    of one type, and `cannot` names types that a split neither has nor is said to have. constrained: the most probable tags among those
    that IOB2 allows, instead of the most probable tag of each word. pretrained, dropout, token_dropout: see EncoderTask and
    EncoderHead. During training, figures of a sentence that is split are those of its pieces.
    """

    monitor = "val/f1"
    monitor_lower = False
    headline = ("val/nats", "val/f1", "test/precision", "test/recall", "test/f1")
    data_type: ClassVar[type] = TokenClassificationData

    def __init__(
        self,
        model: Encoder,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        num_classes: PositiveInt,
        marks: Marks,
        pretrained: str | None = None,
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
        constrained: bool = False,
        log_every: PositiveInt = 10,
    ) -> None:
        head = TokenClassifier(model, num_classes, dropout, token_dropout, mask_for(token_dropout, marks))
        super().__init__(head, optimizer, schedule, log_every)
        self.pretrained = pretrained
        self.constrained = constrained
        self.labels = ["O", *(f"{prefix}-{kind}" for kind in range(num_classes // 2) for prefix in "BI")]  # by number

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts; F1 of each type that the data have."""
        return of_both_parts(("nats", "accuracy", "precision", "recall", "f1", "f1@*"))

    def loss_sums(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropy of the batch's words, and how many they are."""
        first_BT = batch["labels"] != IGNORED
        logits_NC, labels_N = self._logits(batch, first_BT), batch["labels"][first_BT]
        nats, _ = cross_entropy_sums(logits_NC, labels_N)
        also = {"accuracy": (logits_NC.argmax(dim=1) == labels_N).sum()}
        if not self.model.training:
            also |= self._entity_sums(logits_NC, labels_N, first_BT.sum(dim=1).tolist())
        self.also(also)
        return nats, len(labels_N)

    def _logits(self, batch: Mapping[str, Tensor], first_BT: Tensor) -> Tensor:
        logits_NC: Tensor = self.model(batch["tokens"], first_BT, mask_of(batch["is_token"]))
        return logits_NC

    def _entity_sums(self, logits_NC: Tensor, labels_N: Tensor, words_B: list[int]) -> dict[str, Tensor]:
        """Entities found rightly, found and there, in the rows of a batch."""
        rows = zip(*(part.split(words_B) for part in (log_probabilities(logits_NC), labels_N.cpu())), strict=True)
        pairs = [([self.labels[i] for i in given], self.tags(scores.numpy(), self.labels)) for scores, given in rows]
        counts = count_entities([given for given, _ in pairs], [found for _, found in pairs])
        sums = torch.tensor([*counts.values(), (0, 0, 0)]).sum(dim=0).to(logits_NC.device)
        return dict(zip(ENTITY_SUMS, sums.unbind(), strict=True))

    def predict(self, batch: Mapping[str, Tensor]) -> list[np.ndarray]:
        """Log-probabilities (words, C) of each row's words."""
        first_BT = batch["labels"] != IGNORED
        scores_NC = log_probabilities(self._logits(batch, first_BT))
        return [scores.numpy() for scores in scores_NC.split(first_BT.sum(dim=1).tolist())]

    def validation_metrics(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        """The means a word, and the figures of entities."""
        means = super().validation_metrics({name: sums[name] for name in sums if name not in ENTITY_SUMS}, tokens)
        right, found, there = (int(sums[name]) for name in ENTITY_SUMS)
        return means | {f"val/{name}": value for name, value in entity_scores([(right, found, there)]).items()}

    def validate(self, data: TokenClassificationData) -> dict[str, float]:
        """All figures of the validation part."""
        return self.evaluate(data, "validation")

    def evaluate(self, data: TokenClassificationData, split: str = "test") -> dict[str, float]:
        """Nats, accuracy, precision, recall and F1 of a split; outputs/<split>.entities.conll has word, tag and predicted tag."""
        prefix, loader = {"validation": "val"}.get(split, split), data.evaluation_loader(split)
        figures, texts = self.score(loader), data.split(split).texts
        figures = {name: value for name, value in figures.items() if name not in ENTITY_SUMS}
        found = data.by_sentence(split, self.predictions(loader, self.predict))
        predicted = [self.tags(np.stack(scores), data.labels) for scores in found]
        figures |= self._entity_figures(texts.tags, predicted, data.types, prefix)
        self.outputs[f"{split}.entities.conll"] = as_conll(texts, predicted)
        return {f"{prefix}/{name}": value for name, value in figures.items()}

    def samples(self, data: TokenClassificationData, split: str = "test") -> Table | None:
        """The first sentences with a word whose tag is wrong; where there is none, the first of all. Words of no entity stand without a tag."""
        lines = self.outputs.get(f"{split}.entities.conll", "").strip("\n").split("\n\n")
        sentences = [[line.split(" ") for line in sentence.split("\n")] for sentence in lines]
        wrong = [words for words in sentences if any(word[-2] != word[-1] for word in words)] or sentences
        rows = [
            tuple(" ".join(_tagged(word[0], word[at]) for word in words) for at in (-2, -1))
            for words in wrong[:NUM_SAMPLES]
        ]
        return Table(("tagged", "found"), rows)

    def tags(self, scores_NC: np.ndarray, labels: Sequence[str]) -> list[str]:
        """The tags of a sentence from the log-probabilities of its words."""
        chosen = best_allowed(scores_NC, labels) if self.constrained else scores_NC.argmax(axis=1)
        return [labels[number] for number in chosen]

    def _entity_figures(
        self, tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str], prefix: str
    ) -> dict[str, float]:
        counts = count_entities(tags, predicted)
        figures = entity_scores([counts.get(kind, (0, 0, 0)) for kind in types])
        for kind in types:
            if kind in counts:
                figures[f"f1@{kind}"] = entity_scores([counts[kind]])["f1"]
            else:
                self.cannot[f"{prefix}/f1@{kind}"] = "the split has no such entity, and none was found"
        return figures


Counts = tuple[int, int, int]  # entities found rightly, found, there


def count_entities(tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """Of each type that is there or was found: entities found rightly, found, and there, over all sentences."""
    counts: dict[str, list[int]] = {}
    for given, guessed in zip(tags, predicted, strict=True):
        there, found = set(entities_of(given)), set(entities_of(guessed))
        for place, group in enumerate((there & found, found, there)):
            for entity in group:
                counts.setdefault(entity.type, [0, 0, 0])[place] += 1
    return {kind: (right, found, there) for kind, (right, found, there) in counts.items()}


def entity_scores(counts: Sequence[Counts]) -> dict[str, float]:
    """Precision, recall and F1 of all entities together; 0 where there is nothing to divide by, as conlleval and seqeval have it."""
    right, found, there = (sum(column) for column in zip(*counts, strict=True))
    return {
        "precision": right / found if found else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (found + there) if found + there else 0.0,
    }


def log_probabilities(logits_NC: Tensor) -> Tensor:
    """The same in fp32, in memory of the processor."""
    return logits_NC.detach().float().log_softmax(dim=1).cpu()


def best_allowed(scores_NC: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The tags (N,) with the highest sum of scores among the sequences that IOB2 allows (Viterbi)."""
    barred_CC = np.array([[0.0 if may_follow(before, tag) else -np.inf for tag in labels] for before in labels])
    best_C = scores_NC[0] + [0.0 if may_follow(None, tag) else -np.inf for tag in labels]
    came_from = []
    for scores_C in scores_NC[1:]:
        all_CC = best_C[:, None] + barred_CC
        came_from.append(all_CC.argmax(axis=0))
        best_C = all_CC.max(axis=0) + scores_C
    path = [int(best_C.argmax())]
    for before_C in reversed(came_from):
        path.append(int(before_C[path[-1]]))
    return np.array(path[::-1])


def as_conll(texts: Tagged, predicted: Sequence[Sequence[str]]) -> str:
    """
    Word, tag and predicted tag a line between blanks, an empty line after a sentence: what conlleval reads. Blanks in
    words are left out.
    """
    sentences = (zip(*three, strict=True) for three in zip(texts.words, texts.tags, predicted, strict=True))
    lines = ("".join(f"{BLANKS.sub('', word)} {tag} {guess}\n" for word, tag, guess in s) for s in sentences)
    return "".join(f"{sentence}\n" for sentence in lines)


def _tagged(word: str, tag: str) -> str:
    return word if tag == "O" else f"{word}/{tag}"
