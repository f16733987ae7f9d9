"""Convolutional models of one text, and of translation.

Legend: B batch, T length (of a target), S source length, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.baselines import HALF, ConvolutionStack, weigh
from attnlab.layers.cache import DecodingState
from attnlab.layers.init import FanIn, Init
from attnlab.layers.pointwise import Dropout
from attnlab.layers.positions import Learned
from attnlab.models.base import Encoder, LanguageModel, Seq2Seq, Tables, TextModel
from attnlab.parts import Choices, short_table
from attnlab.ranges import PositiveInt, Rate, check_ranges


class ConvolutionalFields(TypedDict, total=False):
    """What describes a convolutional model. dropout: on embeddings, on the input of every convolution and
    at the end.
    """

    d_model: PositiveInt
    num_layers: PositiveInt
    kernel_size: PositiveInt
    dropout: Rate
    init: Callable[..., Init]


class ConvolutionalModel(TextModel):
    """What convolutional models share; `defaults` are those of a family."""

    defaults: ClassVar[ConvolutionalFields] = {
        "d_model": 128,
        "num_layers": 6,
        "kernel_size": 3,
        "dropout": 0.1,
        "init": FanIn,
    }

    def __init__(self, vocabulary_size: int, fields: ConvolutionalFields) -> None:
        super().__init__()
        self.vocabulary_size, self.d_model = vocabulary_size, fields["d_model"]
        self.dropout = Dropout(fields["dropout"])

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from short_table(choices)

    def new_stack(self, fields: ConvolutionalFields, causal: bool, num_layers: int | None = None) -> ConvolutionStack:
        """Convolutions of these fields, or of another number of layers."""
        num_layers = fields["num_layers"] if num_layers is None else num_layers
        return ConvolutionStack(self.d_model, num_layers, fields["kernel_size"], causal, fields["dropout"])


@dataclass(eq=False)
class ConvolutionCache(DecodingState):
    """The last inputs of every layer, which the next tokens' windows reach back to."""

    inputs: list[Tensor] = field(default_factory=list)


@check_ranges
class ConvolutionalLanguageModel(ConvolutionalModel, LanguageModel):
    """Gated convolutions over the tokens before (Dauphin et al. 2017, arXiv 1612.08083), on the residual stream of
    Gehring et al. 2017, without the weight normalisation of both. A token sees num_layers (kernel_size - 1) tokens
    before it. tie_embeddings: the output is the embedding's transpose.
    """

    defaults: ClassVar[ConvolutionalFields] = {**ConvolutionalModel.defaults, "kernel_size": 4}

    def __init__(
        self, vocabulary_size: PositiveInt, tie_embeddings: bool = True, **fields: Unpack[ConvolutionalFields]
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)
        self.tables = Tables(vocabulary_size, self.d_model, tie_embeddings)
        self.stack = self.new_stack(fields, causal=True)
        self.draw(fields["init"])

    def new_cache(self, capacity: int) -> ConvolutionCache:
        """An empty cache, which takes any number of tokens."""
        return ConvolutionCache()

    def forward(
        self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, cache: ConvolutionCache | None = None
    ) -> Tensor:
        """Logits. Padding stands before the first token or after the last."""
        x_BTD = self.stack(self.tables.embed(tokens_BT), is_token_BT, None if cache is None else cache.inputs)
        return self.tables.logits(self.dropout(x_BTD))


class PositionedEmbedding(nn.Module):
    """Dropout on token embeddings with a learned position each (Gehring et al. 2017, section 3.1)."""

    def __init__(self, d_model: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.position, self.dropout = Learned(d_model, max_length), Dropout(dropout)

    def forward(self, x_BTD: Tensor, start: int = 0) -> Tensor:
        """The first of the tokens stands at position `start`. Raises ValueError past the table."""
        self.position.check(start + x_BTD.shape[1] - 1)
        positions_1T = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)[None]
        embedded_BTD: Tensor = self.dropout(self.position.embed(x_BTD, positions_1T))
        return embedded_BTD


@check_ranges
class ConvolutionalEncoder(ConvolutionalModel, Encoder):
    """Gated convolutions over windows around each token: the encoder of Gehring et al. 2017 (arXiv 1705.03122, section
    3), without its weight normalisation and the linear layers between two widths. A state sees num_layers (kernel_size
    - 1) / 2 tokens on either side. max_length: positions that the table has. Raises ValueError for an even kernel.
    """

    defaults: ClassVar[ConvolutionalFields] = {**ConvolutionalModel.defaults, "num_layers": 8}

    def __init__(
        self, vocabulary_size: PositiveInt, max_length: PositiveInt = 256, **fields: Unpack[ConvolutionalFields]
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)
        self.longest = max_length
        self.embedding = nn.Embedding(vocabulary_size, self.d_model)
        self.placed = PositionedEmbedding(self.d_model, max_length, fields["dropout"])
        self.stack = self.new_stack(fields, causal=False)
        self.draw(fields["init"])

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states; padding stands on the right. Segments are not looked at. Raises ValueError past the table."""
        states_BTD = self.stack(self.placed(self.embedding(tokens_BT)), is_token_BT)
        encoded_BTD: Tensor = self.dropout(states_BTD)
        return encoded_BTD


@check_ranges
class ConvolutionalSeq2Seq(ConvolutionalModel, Seq2Seq):
    """Convolutions that read the source around each token and the target before it; every decoder layer attends to the
    source (Gehring et al. 2017, arXiv 1705.03122, section 3; sums and gradients scaled as in the authors' code, without
    weight normalisation and with one width throughout).

    num_decoder_layers: None: as many as the encoder has. kernel_size: odd; the decoder's windows end at their token.
    max_length: positions of the source's table and of the target's. share_embeddings, tie_embeddings: as in
    EncoderDecoder. Raises ValueError for an even kernel.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        num_decoder_layers: PositiveInt | None = None,
        share_embeddings: bool = True,
        tie_embeddings: bool = True,
        **fields: Unpack[ConvolutionalFields],
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)
        self.longest, d_model = max_length, self.d_model
        self.tables = Tables(vocabulary_size, d_model, tie_embeddings, share_embeddings, source_vocabulary_size)
        self.placed_source = PositionedEmbedding(d_model, max_length, fields["dropout"])
        self.placed_target = PositionedEmbedding(d_model, max_length, fields["dropout"])
        self.encoder = self.new_stack(fields, causal=False)
        self.decoder = self.new_stack(fields, causal=True, num_layers=num_decoder_layers)
        self.queries = nn.ModuleList(nn.Linear(d_model, d_model) for _ in self.decoder.layers)
        self.draw(fields["init"])

    def forward(self, source_BS: Tensor, target_BT: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        x_BTD = self.placed_target(self.tables.embed(target_BT))
        attend = partial(self._attend, self.start(source_BS, is_source_BS), x_BTD)
        return self.tables.logits(self.dropout(self.decoder(x_BTD, between=attend)))

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> ConvolutionDecoding:
        embedded_BSD = self.placed_source(self.tables.embed(source_BS, self.tables.source_embedding))
        states_BSD = self.encoder(embedded_BSD, is_source_BS)
        # Each attention adds to the gradient of the encoder's layers, so it is scaled down (section 3.5).
        keys_BSD = states_BSD.detach().lerp(states_BSD, 1 / (2 * len(self.queries)))
        return ConvolutionDecoding(keys_BSD, (keys_BSD + embedded_BSD) * HALF, is_source_BS)

    def step(self, tokens_B: Tensor, state: ConvolutionDecoding) -> Tensor:
        x_B1D = self.placed_target(self.tables.embed(tokens_B[:, None]), start=state.length)
        state.length += 1
        attend = partial(self._attend, state, x_B1D)
        return self.tables.logits(self.decoder(x_B1D, before=state.inputs, between=attend)[:, 0])

    def _attend(self, source: ConvolutionDecoding, embedded_BTD: Tensor, index: int, convolved_BTD: Tensor) -> Tensor:
        """What a layer convolved with what its attention finds (section 3.3, eq. 1 and 2)."""
        queries_BTD = (self.queries[index](convolved_BTD) + embedded_BTD) * HALF
        context_BTD = weigh(queries_BTD @ source.keys_BSD.transpose(1, 2), source.values_BSD, source.is_source_BS)
        return (convolved_BTD + context_BTD * source.scale) * HALF


@dataclass(eq=False)
class ConvolutionDecoding(DecodingState):
    """A source's states as keys and, with the embeddings, as values, and the last inputs of every decoder layer."""

    keys_BSD: Tensor  # noqa: N815 - shape suffixes on fields, too
    values_BSD: Tensor  # noqa: N815
    is_source_BS: Tensor | None  # noqa: N815
    length: int = 0
    inputs: list[Tensor] = field(default_factory=list)

    @property
    def scale(self) -> Tensor:
        """The root of the number of tokens, for the variance of their mean (section 3.5), (B or 1, 1, 1)."""
        if self.is_source_BS is None:
            return self.keys_BSD.new_tensor(self.keys_BSD.shape[1]).sqrt()
        return self.is_source_BS.sum(dim=1)[:, None, None].to(self.keys_BSD.dtype).sqrt()
