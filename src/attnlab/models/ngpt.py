"""nGPT, a language model on the hypersphere.

Legend: B batch, T length, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.normalized import (
    NormalizedAttention,
    NormalizedResidual,
    NormalizedSwiGLU,
    Scale,
    of_length_1,
)
from attnlab.layers.pointwise import Sides
from attnlab.layers.rotary import Rotary
from attnlab.models.transformer import GPT, TransformerFields
from attnlab.parts import Choices, unsharded, unwrapped
from attnlab.ranges import PositiveInt, check_ranges

# Rows that stand in the space of the stream, columns that write to it: what has length 1 of a layer's matrices.
ROWS, COLUMNS = ("query", "key", "value", "up", "gate"), ("output", "down")


@check_ranges
class NGPT(GPT):
    """nGPT, the normalized Transformer (Loshchilov et al. 2024, arXiv 2410.01131): GPT whose states have length 1, and
    whose matrices have, along the stream's width, at first and after every step; logits are cosines times a learned
    scale of each token. Its layers are those of `attnlab.layers.normalized`; biases, a norm of the embedding and tied
    embeddings it has not. The paper trains it without weight decay and warm-up, which a run says. fields: see GPT.
    Raises ValueError for what is not nGPT's.
    """

    sides: ClassVar[Mapping[str, Sides] | None] = None
    defaults: ClassVar[TransformerFields] = {
        **GPT.defaults,
        "position": Rotary,
        "residual": NormalizedResidual,
        "attention": NormalizedAttention,
        "feed_forward": NormalizedSwiGLU,
        "tie_embeddings": False,
    }

    def __init__(
        self, vocabulary_size: PositiveInt, max_length: PositiveInt, **fields: Unpack[TransformerFields]
    ) -> None:
        fields = self.described(self.defaults, fields)
        for name in ("bias", "embedding_norm", "tie_embeddings", "scale_embedding", "pattern"):
            if fields[name]:
                raise ValueError(f"{name} must be {self.defaults[name]} in NGPT, got {fields[name]}")
        _check("residual", fields["residual"], NormalizedResidual)
        _check("attention", fields["attention"], NormalizedAttention)
        _check("feed_forward", fields["feed_forward"], NormalizedSwiGLU)
        super().__init__(vocabulary_size, max_length, **fields)
        self.logit_scale = Scale(vocabulary_size, 1.0, self.d_model**-0.5)
        self.after_step()

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from unsharded(choices, "model", "divides whole matrices by their lengths")
        if choices.name("optimizer") == "schedule_free":
            yield (
                "optimizer: schedule_free trains an average of weights, and those of model=ngpt are put back on the "
                "sphere after every step; choose another"
            )

    def logits(self, x_BTD: Tensor, bias_V: Tensor | None = None) -> Tensor:
        scaled_BTV: Tensor = super().logits(x_BTD, bias_V) * self.logit_scale()
        return scaled_BTV

    @torch.no_grad()
    def after_step(self) -> None:
        """Divides the matrices by the lengths of their rows, or columns."""
        assert self.head is not None
        for table in (self.embedding.weight, self.head.weight):
            table.copy_(of_length_1(table))
        for name, module in self.stack.layers.named_modules():
            kind = name.rpartition(".")[2]
            if isinstance(module, nn.Linear) and kind in (*ROWS, *COLUMNS):
                module.weight.copy_(of_length_1(module.weight, dim=1 if kind in ROWS else 0))


def _check(name: str, part: Callable[..., object], kind: type) -> None:
    if not issubclass(unwrapped(part), kind):
        raise ValueError(f"{name} must be {kind.__name__} in NGPT, got {unwrapped(part).__name__}")
