"""Images and texts that belong together: the losses, retrieval over a whole split, classification by prompts.

Legend: B images with their texts in a batch, N of all ranks or of a split, R rows that are taken at once, E width of
the common space, L classes.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from attnlab.data.image_text import CaptionedRows, ImageTextData
from attnlab.models import CLIP
from attnlab.parts import Choices, Config, Part
from attnlab.ranges import check_ranges, must_be
from attnlab.tasks.translation import mask_of
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import LOSS, Metric, prefix_of, share
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import NUM_SAMPLES, Table

CUTS = (1, 5, 10)
ROWS = 256  # of a split's scores that are looked at at once
TEXT_TO_IMAGE = share("text_to_image_recall", "texts whose image is found (0 to 1)")
IMAGE_TO_TEXT = share("image_to_text_recall", "images whose text is found (0 to 1)")
ZERO_SHOT = share("zero_shot_accuracy", "accuracy by prompts (0 to 1)")
PLACE = "{}"  # where a template has the name of a class

Score = Callable[[Tensor, Tensor], Tensor]  # embeddings of images (B, E) and of texts (N, E) to scores (B, N)


class Pairs(NamedTuple):
    """Embeddings of images and of their texts (B, E), and of all that these are compared with (N, E), among which they
    begin at row `first`.
    """

    images_BE: Tensor
    texts_BE: Tensor
    all_images_NE: Tensor
    all_texts_NE: Tensor
    first: int = 0

    @classmethod
    def alone(cls, images_BE: Tensor, texts_BE: Tensor) -> Pairs:
        """Those that are compared with each other alone."""
        return cls(images_BE, texts_BE, images_BE, texts_BE)

    @property
    def targets_B(self) -> Tensor:
        """Where each one's partner stands among all."""
        return torch.arange(self.first, self.first + len(self.images_BE), device=self.images_BE.device)

    def blocks(self) -> Iterator[Pairs]:
        """The same, some rows at a time."""
        for start in range(0, len(self.images_BE), ROWS):
            rows = slice(start, start + ROWS)
            yield self._replace(images_BE=self.images_BE[rows], texts_BE=self.texts_BE[rows], first=self.first + start)


def softmax_sum(score: Score, pairs: Pairs) -> Tensor:
    """The summed mean of two cross-entropies in nats: of an image's text among all texts, and of a text's image among
    all images (Radford et al. 2021, figure 3).
    """
    of_images, _ = cross_entropy_sums(score(pairs.images_BE, pairs.all_texts_NE), pairs.targets_B)
    of_texts, _ = cross_entropy_sums(score(pairs.all_images_NE, pairs.texts_BE).t(), pairs.targets_B)
    return (of_images + of_texts) / 2


def sigmoid_sum(score: Score, pairs: Pairs) -> Tensor:
    """The summed binary cross-entropies in nats of every image with every text: they belong together, or do not (Zhai
    et al. 2023, equation 1).
    """
    scores_BN = score(pairs.images_BE, pairs.all_texts_NE)
    signs_BN = torch.full_like(scores_BN, -1.0)
    signs_BN.scatter_(1, pairs.targets_B[:, None], 1.0)
    return -F.logsigmoid(signs_BN * scores_BN).sum(dtype=torch.float64).float()


def placed(scores_RN: Tensor, right_RN: Tensor) -> Tensor:
    """How many wrong candidates stand before the first right one, (R,); one with the same score does, too."""
    best_R1 = scores_RN.masked_fill(~right_RN, -torch.inf).amax(dim=1, keepdim=True)
    before_RN = ~(scores_RN < best_R1) & ~right_RN  # of scores that are no numbers none is right
    return before_RN.sum(dim=1)


LOSSES: dict[str, Callable[[Score, Pairs], Tensor]] = {"softmax": softmax_sum, "sigmoid": sigmoid_sum}


class Kept(NamedTuple):
    """What is kept of a batch that is evaluated: its rows in the split, and the embeddings."""

    ids: list[int]
    images_BE: Tensor
    texts_BE: Tensor


@check_ranges
class Contrastive(Part, Task):
    """Images and texts that belong together lie together (Radford et al. 2021, arXiv 2103.00020).

    loss: softmax, or sigmoid (Zhai et al. 2023, arXiv 2303.15343), which needs a model with `logit_bias`. It compares
    the examples of a step's batch over all ranks; an image is one term of it. A validation and the end compare all
    examples of a split: loss, and recall: the share of texts of whose images one is among the first 1, 5, 10, and of
    images of whose texts one is. All images of one caption are right for each text of it, and the other way round;
    so are all texts of one image. A wrong candidate of the same score counts as before a right one. Where the data name
    a class for each image, they are classified, too: by `templates`, a sentence each with {} for the class, the mean of
    whose embeddings stands for the class (Radford et al. 2021, section 3.1.4).
    """

    use = 'search RUN "PHRASE"'
    headline = ("val/loss", "val/text_to_image_recall@10", "test/text_to_image_recall@*", "test/image_to_text_recall@*")
    separable = False
    validates_figures = True
    data_type: ClassVar[type] = ImageTextData
    model_type: ClassVar[type] = CLIP
    model: CLIP

    def __init__(
        self,
        model: CLIP,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> None:
        super().__init__(model)
        if loss not in LOSSES:
            raise ValueError(must_be("task.loss", f"one of {', '.join(LOSSES)}", loss))
        wrong = [text for text in templates if text.count(PLACE) != 1]
        if wrong or not templates:
            wanted = "sentences, at least one, each with {} once, where the name of a class goes"
            raise ValueError(must_be("task.templates", wanted, wrong[0] if wrong else list(templates)))
        self.loss, self.templates = loss, tuple(templates)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        parts = choices.get("trainer.accumulate_grad_batches", 1)
        if parts != 1:
            yield (
                "trainer.accumulate_grad_batches: a contrastive loss compares the examples of one batch, so that of "
                f"{parts} smaller ones is another loss; set it to 1 and data.batch_size to what memory holds"
            )
        has_bias, loss = choices.get("model.logit_bias"), choices.get("task.loss")
        if has_bias is False and loss == "sigmoid":
            yield "task.loss: sigmoid needs scores that start far below zero; set model.logit_bias=true (model=siglip)"
        if has_bias is True and loss == "softmax":
            yield "task.loss: softmax sees no bias on all scores; set model.logit_bias=false or task.loss=sigmoid"

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        at = [str(cut) for cut in CUTS]
        return [LOSS, *(metric.on("val", "test", at=at) for metric in (TEXT_TO_IMAGE, IMAGE_TO_TEXT)), ZERO_SHOT]

    # --- training

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings (B, E) of a batch's images and of its texts."""
        texts_BE = self.model.encode_texts(batch["tokens"], mask_of(batch["is_token"]))
        return self.model.encode_images(batch["images"]), texts_BE

    def loss_sums(self, batch: Batch) -> LossSums:
        images_BE, texts_BE = self.embed(batch)
        pairs = Pairs.alone(images_BE, texts_BE)
        if self.model.training and self._trainer is not None and self.trainer.world_size > 1:
            everything = (_Gathered.apply(images_BE), _Gathered.apply(texts_BE))  # type: ignore[no-untyped-call]
            pairs = Pairs(images_BE, texts_BE, *everything, first=len(images_BE) * self.global_rank)
        return LossSums(LOSSES[self.loss](self.model.scores, pairs), len(images_BE))

    def _loss(self, batch: Batch) -> Tensor:
        # Where a training diverges, each rank looks for the reason by itself, and may not wait for others.
        return LOSSES[self.loss](self.model.scores, Pairs.alone(*self.embed(batch)))

    # --- evaluation

    def kept_of(self, batch: Batch) -> Kept:
        return Kept(batch["ids"].tolist(), *self.embed(batch))

    def figures_of_kept(self, kept: list[Any]) -> dict[str, float]:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        return self._retrieval(data.split("validation"), self._in_order(kept))[0]

    def figures(self, data: ImageTextData, split: str) -> dict[str, float]:
        part, prefix = data.split(split), prefix_of(split)
        with self.evaluating():
            pairs = self._in_order([self.kept_of(self.on_device(batch)) for batch in data.evaluation_loader(split)])
            found, lines = self._retrieval(part, pairs)
            if part.labels is not None and data.classes is not None:
                found[ZERO_SHOT.name] = self._zero_shot(data, data.classes, part.labels, pairs)
        candidates = f"comparison with {len(pairs.images_BE):,} candidates"
        self.notes |= {f"{prefix}/{name}": candidates for name in found if "recall" in name}
        self.outputs[f"{split}.retrieval.tsv"] = "".join(f"{line}\n" for line in lines)
        return found

    def samples(self, data: ImageTextData, split: str = "test") -> Table | None:
        """The first texts, with how many wrong images stand before theirs, and the text of the first image."""
        lines = self.outputs.get(f"{split}.retrieval.tsv", "").split("\n")[:-1]
        rows = [line.split("\t", 2) for line in lines[:NUM_SAMPLES]]
        return Table(
            ("text", "wrong images before its own", "text of the first image"),
            [(text, int(before), first) for before, text, first in rows],
        )

    def _in_order(self, kept: Sequence[Kept]) -> Pairs:
        """All examples that all ranks have embedded, in the order of the split."""
        here = [Kept(one.ids, one.images_BE.cpu(), one.texts_BE.cpu()) for one in kept]
        parts = [one for rank in self.of_all_ranks(here) for one in rank]
        order_N = torch.tensor([number for part in parts for number in part.ids]).argsort()
        images_NE = torch.cat([part.images_BE for part in parts])[order_N]
        texts_NE = torch.cat([part.texts_BE for part in parts])[order_N]
        return Pairs.alone(images_NE.to(self.device), texts_NE.to(self.device))

    def _retrieval(self, part: CaptionedRows, pairs: Pairs) -> tuple[dict[str, float], list[str]]:
        """The figures of a split, and of each text how many wrong images stand before its own, itself, and the text of
        the first image.
        """
        captions, count = list(part.captions), len(pairs.images_BE)
        groups = [numbered(keys, self.device) for keys in (captions, part.image_of)]
        losses, firsts = [], []
        before: dict[str, list[Tensor]] = {TEXT_TO_IMAGE.name: [], IMAGE_TO_TEXT.name: []}
        for block in pairs.blocks():
            losses.append(LOSSES[self.loss](self.model.scores, block))
            right_RN = torch.stack([group_N[block.targets_B, None] == group_N for group_N in groups]).any(dim=0)
            of_texts_RN = self.model.scores(pairs.images_BE, block.texts_BE).t()
            firsts += of_texts_RN.argmax(dim=1).tolist()
            before[TEXT_TO_IMAGE.name].append(placed(of_texts_RN, right_RN))
            before[IMAGE_TO_TEXT.name].append(placed(self.model.scores(block.images_BE, pairs.texts_BE), right_RN))
        figures = {"loss": float(torch.stack(losses).double().sum()) / count}
        for name, found in before.items():
            figures |= {f"{name}@{cut}": float((torch.cat(found) < cut).double().mean()) for cut in CUTS}
        shown = [" ".join(caption.split()) for caption in captions]
        numbers = torch.cat(before[TEXT_TO_IMAGE.name]).tolist()
        rows = zip(numbers, shown, firsts, strict=True)
        return figures, [f"{number}\t{text}\t{shown[first]}" for number, text, first in rows]

    def _zero_shot(self, data: ImageTextData, classes: Sequence[str], labels_N: np.ndarray, pairs: Pairs) -> float:
        sums_LE = torch.zeros(len(classes), pairs.texts_BE.shape[1], device=self.device)
        for template in self.templates:
            tokens_LT, is_token_LT = data.encode_texts([template.replace(PLACE, name) for name in classes])
            sums_LE += self.model.encode_texts(tokens_LT.to(self.device), mask_of(is_token_LT.to(self.device)))
        predicted_N = (pairs.images_BE @ F.normalize(sums_LE, dim=1).t()).argmax(dim=1)
        return float((predicted_N.cpu() == torch.from_numpy(labels_N)).double().mean())


def numbered(keys: Iterable[object], device: torch.device) -> Tensor:
    """A number for each, (N,), the same one for what is equal."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], device=device)


class _Gathered(torch.autograd.Function):
    """The rows (N, E) of all ranks, which have as many each, in the order of ranks. The gradient is that of the sum of
    all ranks' losses, of which each has its part.
    """

    @staticmethod
    def forward(ctx: Any, own_BE: Tensor) -> Tensor:
        parts = [torch.empty_like(own_BE) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient_NE = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient_NE)
        return gradient_NE.chunk(dist.get_world_size())[dist.get_rank()]
