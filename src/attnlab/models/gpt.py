"""A decoder-only language model on the seams. Legend: B batch, T length, D model width, V vocabulary."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from attnlab.layers.cache import KeyValueCache
from attnlab.layers.init import GPT2Init
from attnlab.layers.positions import Sinusoidal
from attnlab.layers.stack import Stack
from attnlab.models.base import LanguageModel, Transformer, TransformerFields
from attnlab.ranges import PositiveInt, check_ranges


@check_ranges
class GPT(Transformer, LanguageModel):
    """A causal Transformer language model (Radford et al. 2019); tokens (B, T) to the next tokens' logits (B, T, V).

    fields: see TransformerFields. Raises ValueError for sizes below 1 and where a part refuses a width.
    """

    defaults: ClassVar[TransformerFields] = {
        **Transformer.defaults,
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 4,
        "position": Sinusoidal,
        "init": GPT2Init,
    }

    def __init__(
        self, vocabulary_size: PositiveInt, max_length: PositiveInt, **fields: Unpack[TransformerFields]
    ) -> None:
        fields = self.described(fields)
        super().__init__(vocabulary_size, fields)
        self.max_length = max_length
        self.stack = Stack(fields, causal=True, max_length=max_length)
        self.longest = self.stack.position.longest
        self.head = self.new_head(fields)
        self.draw(fields["init"])

    def new_cache(self, capacity: int) -> KeyValueCache:
        return KeyValueCache(len(self.stack.layers), capacity)

    def forward(
        self,
        tokens_BT: Tensor,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits. Positions default to 0.. (after what is cached, padding not counted).

        Raises ValueError past the last position that the encoding can serve.
        """
        return self.logits(self.stack(self.embed(tokens_BT), positions_BT, is_token_BT, cache))
