"""Named entities: a tag a word. Legend: B batch, T length, C tags, N words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attnlab.data.classification import TokenClassificationData
from attnlab.data.entities import Tagged, entities_of, may_follow
from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import SpecialTokens
from attnlab.models.base import Encoder
from attnlab.models.heads import TokenClassifier
from attnlab.parts import Config, Prepared
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.tasks.pretrained import EncoderTask, mask_for
from attnlab.tasks.translation import mask_of
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import ACCURACY, F1, LOSS, PRECISION, RECALL, Metric, prefix_of
from attnlab.training.task import Batch
from attnlab.training.tracking import NUM_SAMPLES, Table

BLANKS = re.compile(r"[ \t\r\n]+")  # what parts columns and lines; other white space may be all of a word
ENTITY_SUMS = ("right", "found", "there")


@check_ranges
class TokenClassification(EncoderTask):
    """One tag a word, from the state of its first token: nats and accuracy a word; precision, recall and F1 of
    entities.

    An entity is found where its first word, last word and type are right (conlleval; seqeval's default mode);
    `test/f1@TYPE` is that of one type, and `unavailable` names types that a split neither has nor is said to have.
    constrained: the most probable tags among those that IOB2 allows, instead of the most probable tag of each word.
    dropout, token_dropout: see EncoderHead. During training, figures of a sentence that is split are those of its
    pieces.
    """

    monitor = F1
    headline = ("val/loss", "val/f1", "test/precision", "test/recall", "test/f1")
    validates_figures = True
    data_type: ClassVar[type] = TokenClassificationData

    def __init__(
        self,
        model: Encoder,
        num_classes: PositiveInt,
        special_tokens: SpecialTokens,
        pretrained: str | None = None,
        dropout: Rate = 0.1,
        token_dropout: Rate = 0.0,
        constrained: bool = False,
    ) -> None:
        mask = mask_for(token_dropout, special_tokens)
        head = TokenClassifier(model, num_classes, dropout=dropout, token_dropout=token_dropout, mask=mask)
        super().__init__(head, pretrained)
        self.constrained = constrained
        self.labels = ["O", *(f"{prefix}-{kind}" for kind in range(num_classes // 2) for prefix in "BI")]  # by number

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        return [LOSS, ACCURACY, PRECISION, RECALL, F1, F1.on("val", "test", at=["*"])]

    def prepare(self, batch: Batch) -> Prepared:
        """With the places of the words' first tokens among all of the batch's, (N)."""
        return batch if "places" in batch else {**batch, "places": begins_word(batch).flatten().nonzero()[:, 0]}

    def targets_by_row(self, batch: Batch) -> Tensor:
        return begins_word(batch).sum(dim=1)

    def loss_sums(self, batch: Batch) -> LossSums:
        batch = self.prepare(batch)
        logits_NC, labels_N = self._logits(batch), batch["labels"].flatten().index_select(0, batch["places"])
        loss, _ = cross_entropy_sums(logits_NC, labels_N)
        auxiliary = {"accuracy": (logits_NC.argmax(dim=1) == labels_N).sum()}
        if not self.model.training:
            auxiliary |= self._entity_sums(logits_NC, labels_N, begins_word(batch).sum(dim=1).tolist())
        return LossSums(loss, len(labels_N), auxiliary)

    def _logits(self, batch: Batch) -> Tensor:
        logits_NC: Tensor = self.model(batch["tokens"], batch["places"], mask_of(batch["is_token"]))
        return logits_NC

    def _entity_sums(self, logits_NC: Tensor, labels_N: Tensor, words_B: list[int]) -> dict[str, Tensor]:
        """Entities found rightly, found and there, in the rows of a batch."""
        scores_NC = log_probabilities(logits_NC)
        parts = (part.split(words_B) for part in (scores_NC, labels_N.cpu()))
        rows = zip(*parts, strict=True)
        pairs = [([self.labels[i] for i in given], self.tags(scores.numpy(), self.labels)) for scores, given in rows]
        counts = count_entities([given for given, _ in pairs], [found for _, found in pairs])
        sums = torch.tensor([*counts.values(), (0, 0, 0)]).sum(dim=0).to(logits_NC.device)
        return dict(zip(ENTITY_SUMS, sums.unbind(), strict=True))

    def predict(self, batch: Batch) -> list[list[np.ndarray]]:
        """Log-probabilities (words, C) of each row's words."""
        batch = self.prepare(batch)
        scores_NC, words_B = log_probabilities(self._logits(batch)), begins_word(batch).sum(dim=1).tolist()
        return [list(scores.numpy()) for scores in scores_NC.split(words_B)]

    def figures_of_sums(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        means = super().figures_of_sums({name: sums[name] for name in sums if name not in ENTITY_SUMS}, tokens)
        right, found, there = (int(sums[name]) for name in ENTITY_SUMS)
        return means | entity_scores([(right, found, there)])

    def figures(self, data: TokenClassificationData, split: str) -> dict[str, float]:
        """As every task's; outputs/<split>.entities.conll has word, tag and predicted tag."""
        loader, texts = data.evaluation_loader(split), data.split(split).texts
        figures = {name: value for name, value in self.score(loader).items() if name not in ENTITY_SUMS}
        found = data.by_sentence(split, self.predictions(loader, self.predict))
        predicted = [self.tags(np.stack(scores), data.labels) for scores in found]
        self.outputs[f"{split}.entities.conll"] = as_conll(texts, predicted)
        return figures | self.entity_figures(texts.tags, predicted, data.types, split)

    def entity_figures(
        self, tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str], split: str
    ) -> dict[str, float]:
        """Precision, recall and F1 of all entities, F1 of each type; types that are nowhere become `unavailable`."""
        counts = count_entities(tags, predicted)
        figures = entity_scores([counts.get(kind, (0, 0, 0)) for kind in types])
        for kind in types:
            if kind in counts:
                figures[f"f1@{kind}"] = entity_scores([counts[kind]])["f1"]
            else:
                self.unavailable[f"{prefix_of(split)}/f1@{kind}"] = "the split has no such entity, and none was found"
        return figures

    def samples(self, data: TokenClassificationData, split: str = "test") -> Table | None:
        """The first sentences with a word whose tag is wrong; where there is none, the first of all. Words of no entity
        stand without a tag."""
        lines = self.outputs.get(f"{split}.entities.conll", "").strip("\n").split("\n\n")
        sentences = [[line.split(" ") for line in sentence.split("\n")] for sentence in lines]
        wrong = [words for words in sentences if any(word[-2] != word[-1] for word in words)] or sentences

        def text(words: list[list[str]], at: int) -> str:
            return " ".join(word[0] if word[at] == "O" else f"{word[0]}/{word[at]}" for word in words)

        return Table(("tagged", "found"), [(text(words, -2), text(words, -1)) for words in wrong[:NUM_SAMPLES]])

    def tags(self, scores_NC: np.ndarray, labels: Sequence[str]) -> list[str]:
        """The tags of a sentence from the log-probabilities of its words."""
        chosen = best_allowed(scores_NC, labels) if self.constrained else scores_NC.argmax(axis=1)
        return [labels[number] for number in chosen]


def begins_word(batch: Batch) -> Tensor:
    """Where a word has its first token and so its tag, (B, T)."""
    return batch["labels"] != IGNORED


Counts = tuple[int, int, int]  # entities found rightly, found, there


def count_entities(tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """Of each type that is there or was found: entities found rightly, found, and there, over all sentences."""
    pairs = [(set(entities_of(a)), set(entities_of(b))) for a, b in zip(tags, predicted, strict=True)]
    right = Counter(entity.type for there, found in pairs for entity in there & found)
    all_found, all_there = (Counter(entity.type for pair in pairs for entity in pair[side]) for side in (1, 0))
    return {kind: (right[kind], all_found[kind], all_there[kind]) for kind in all_found | all_there}


def entity_scores(counts: Sequence[Counts]) -> dict[str, float]:
    """Precision, recall and F1 of all entities together; 0 where there is nothing to divide by (conlleval, seqeval)."""
    right, found, there = (sum(column) for column in zip(*counts, strict=True))
    return {
        "precision": right / found if found else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (found + there) if found + there else 0.0,
    }


def log_probabilities(logits_NC: Tensor) -> Tensor:
    """In fp32, on the CPU."""
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
    """Word, tag and predicted tag a line between blanks, an empty line after a sentence: as conlleval reads it."""
    sentences = (zip(*three, strict=True) for three in zip(texts.words, texts.tags, predicted, strict=True))
    lines = ("".join(f"{BLANKS.sub('', word)} {tag} {guess}\n" for word, tag, guess in s) for s in sentences)
    return "".join(f"{sentence}\n" for sentence in lines)
