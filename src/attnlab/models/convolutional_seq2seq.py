"""Translation by gated convolutions. Legend: B batch, S source length, T target length, D model width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from attnlab.layers.alignment import weigh
from attnlab.layers.dropout import Dropout
from attnlab.layers.gated_convolution import HALF, ConvolutionStack
from attnlab.layers.init import FanIn, Init, draw_seed
from attnlab.layers.parts import complete
from attnlab.models.convolutional import PositionedEmbedding
from attnlab.models.seq2seq import Seq2Seq
from attnlab.models.tables import Tables
from attnlab.ranges import PositiveInt, Rate, check_ranges


@check_ranges
class ConvolutionalSeq2Seq(Seq2Seq):
    """
    Convolutions that read the source around each token and the target before it; every decoder layer attends to the source (Gehring et al.
    2017, arXiv 1705.03122, section 3; sums and gradients scaled as in the authors' code, without weight normalisation and with one width
    throughout).

    num_decoder_layers: None: as many as the encoder has. kernel_size: odd; the decoder's windows end at their token. max_length: positions of
    the source's table and of the target's. share_embeddings, tied: as in EncoderDecoder. dropout: on the embeddings, on the input of every
    convolution and of the output. Raises ValueError for sizes below 1, an even kernel, and a rate outside of 0 to 1.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        d_model: PositiveInt = 128,
        num_layers: PositiveInt = 6,
        num_decoder_layers: PositiveInt | None = None,
        kernel_size: PositiveInt = 3,
        dropout: Rate = 0.1,
        share_embeddings: bool = True,
        tied: bool = True,
        init: Callable[..., Init] = FanIn,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model, self.longest = vocabulary_size, d_model, max_length
        decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        self.tables = Tables(vocabulary_size, d_model, tied, share_embeddings, source_vocabulary_size)
        self.placed_source = PositionedEmbedding(d_model, max_length, dropout)
        self.placed_target = PositionedEmbedding(d_model, max_length, dropout)
        self.encoder = ConvolutionStack(d_model, num_layers, kernel_size, causal=False, dropout=dropout)
        self.decoder = ConvolutionStack(d_model, decoder_layers, kernel_size, causal=True, dropout=dropout)
        self.queries = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(decoder_layers))
        self.dropout = Dropout(dropout)
        complete(init)(self, seed)

    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        is_source_BS: Tensor | None = None,
        is_target_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V), in the model's type. Padding on the right of a target needs no mask: nothing real comes after it."""
        x_BTD = self.placed_target(self.tables.embed(target_BT))
        attend = partial(self._attend, self._read(source_BS, is_source_BS), x_BTD)
        return self.tables.logits(self.dropout(self.decoder(x_BTD, between=attend)))

    def start(
        self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256
    ) -> ConvolutionalDecoding:
        """The encoded source; no target yet."""
        return ConvolutionalDecoding(self._read(source_BS, is_source_BS))

    def step(self, tokens_B: Tensor, state: ConvolutionalDecoding) -> Tensor:
        """Appends a token to each row and gives the logits (B, V) of the next. Raises ValueError past the table of positions."""
        x_B1D = self.placed_target(self.tables.embed(tokens_B[:, None]), start=state.length)
        state.length += 1
        attend = partial(self._attend, state.source, x_B1D)
        return self.tables.logits(self.decoder(x_B1D, before=state.inputs, between=attend)[:, 0])

    def _read(self, source_BS: Tensor, is_source_BS: Tensor | None) -> EncodedSource:
        embedded_BSD = self.placed_source(self.tables.embed_source(source_BS))
        states_BSD = self.encoder(embedded_BSD, is_source_BS)
        # Each attention adds to the gradient of the encoder's layers, so it is scaled down (section 3.5; the factor of the authors' code).
        keys_BSD = states_BSD.detach().lerp(states_BSD, 1 / (2 * len(self.queries)))
        return EncodedSource(keys_BSD, (keys_BSD + embedded_BSD) * HALF, is_source_BS)

    def _attend(self, source: EncodedSource, embedded_BTD: Tensor, index: int, convolved_BTD: Tensor) -> Tensor:
        """What a layer convolved with what its attention finds (section 3.3, eq. 1 and 2)."""
        queries_BTD = (self.queries[index](convolved_BTD) + embedded_BTD) * HALF
        context_BTD = weigh(queries_BTD @ source.keys_BSD.transpose(1, 2), source.values_BSD, source.is_source_BS)
        return (convolved_BTD + context_BTD * source.scale) * HALF


class EncodedSource:
    """A source's states as keys, and with the embeddings as values, (B, S, D) both."""

    def __init__(self, keys_BSD: Tensor, values_BSD: Tensor, is_source_BS: Tensor | None) -> None:
        self.keys_BSD, self.values_BSD, self.is_source_BS = keys_BSD, values_BSD, is_source_BS

    @property
    def scale(self) -> Tensor:
        """The root of the number of tokens, against the smaller variance of their mean (section 3.5), (B or 1, 1, 1)."""
        if self.is_source_BS is None:
            return self.keys_BSD.new_tensor(self.keys_BSD.shape[1]).sqrt()
        return self.is_source_BS.sum(dim=1)[:, None, None].to(self.keys_BSD.dtype).sqrt()

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order."""
        self.keys_BSD, self.values_BSD = self.keys_BSD[rows], self.values_BSD[rows]
        self.is_source_BS = None if self.is_source_BS is None else self.is_source_BS[rows]


class ConvolutionalDecoding:
    """A batch in the middle of decoding: the source, and the last inputs of every decoder layer."""

    def __init__(self, source: EncodedSource) -> None:
        self.source, self.length = source, 0
        self.inputs: list[Tensor] = []

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order. rows: indices or a bool mask."""
        self.source.select(rows)
        self.inputs[:] = [inputs_BPD[rows] for inputs_BPD in self.inputs]
