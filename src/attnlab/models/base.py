"""What the families of models offer to tasks and to decoding, and what they are built on.

Legend: B batch, T length (of a target), S source length, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from attnlab.layers.init import Init, Xavier, draw_seed
from attnlab.layers.pointwise import Ends
from attnlab.layers.stack import Stack, StackFields
from attnlab.parts import Choices, Part, build_part
from attnlab.ranges import PositiveInt, check_ranges


class Model(Part, nn.Module):
    """A model whose weights are drawn at the end of its constructor, by `draw`. d_model: the width of its stream."""

    d_model: int

    def __init__(self) -> None:
        super().__init__()
        self._seed = (
            draw_seed()
        )  # before any part draws, so that models that differ in one part share the others' weights

    @classmethod
    def refuse_unknown(cls, fields: Mapping[str, object], known: Mapping[str, object]) -> None:
        """Raises TypeError, as Python does, for a field that the description of a model has not."""
        if unknown := sorted(fields.keys() - known.keys()):
            raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument {unknown[0]!r}")

    def draw(self, init: Callable[..., Init]) -> None:
        """Draws the first weights."""
        build_part(init)(self, self._seed)


class TextModel(Model):
    """A model of text. vocabulary_size: of its output. longest: how many positions it can serve; None: any number."""

    vocabulary_size: int
    longest: int | None = None


class LanguageModel(TextModel):
    """A model of the next token."""

    @abstractmethod
    def new_cache(self, capacity: int) -> Any:
        """An empty cache for decoding up to `capacity` tokens; it has `select(rows)`."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, cache: Any = None) -> Tensor:
        """Logits (B, T, V) of the token after each, in the model's type; is_token_BT is False at padding."""


class Encoder(TextModel):
    """A model of what each token means among all others."""

    @abstractmethod
    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D); is_token_BT is False at padding (None: nowhere), segments_BT tells two texts apart."""


class Seq2Seq(TextModel):
    """A model of a target sequence given a source. longest: of a source, and of a target."""

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """One table of embeddings has one vocabulary."""
        yield from super().incompatible(choices)
        if choices.get("model.share_embeddings") is True and choices.get("data.joint") is False:
            yield (
                "model.share_embeddings: one table for source and target needs one vocabulary; "
                "set data.joint=true or model.share_embeddings=false"
            )

    @abstractmethod
    def forward(self, source_BS: Tensor, target_BT: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `target_BT`, in the model's type; is_source_BS is False at
        padding.

        Padding on the right of a target needs no mask: no real token looks that far.
        """

    @abstractmethod
    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> Any:
        """The state from which up to `capacity` target tokens are decoded.

        Its `select(rows)` keeps these rows of the batch in this order; rows are indices, which may stand several times,
        or a bool mask.
        """

    @abstractmethod
    def step(self, tokens_B: Tensor, state: Any) -> Tensor:
        """Appends a token to each row and gives the logits (B, V) of the next. Raises ValueError past the capacity."""


@check_ranges
class Tables(Ends, nn.Module):
    """The embedding and the output, and of two texts the source's embedding.

    source_vocabulary_size: None: there is no source, or it has the target's vocabulary. share_embeddings: one table for
    source and target; a language model has but one. tied, scale_embedding: see TransformerFields. Raises ValueError for
    sizes below 1 and for a shared table of two vocabularies.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        d_model: PositiveInt,
        tied: bool = True,
        share_embeddings: bool = True,
        source_vocabulary_size: PositiveInt | None = None,
        scale_embedding: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_scale = math.sqrt(d_model) if scale_embedding else 1.0
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.source_embedding = source_table(vocabulary_size, source_vocabulary_size, share_embeddings, d_model)
        self.head = None if tied else nn.Linear(d_model, vocabulary_size, bias=False)


def source_table(size: int, source_size: int | None, share: bool, d_model: int) -> nn.Embedding | None:
    """The source's own embedding; None where target and source share one. Raises ValueError where they cannot."""
    source_size = size if source_size is None else source_size
    if share and source_size != size:
        raise ValueError(
            f"share_embeddings=true needs one vocabulary; the source has {source_size} tokens and the target "
            f"{size}: make it joint, or set share_embeddings=false"
        )
    return None if share else nn.Embedding(source_size, d_model)


class TransformerFields(StackFields, total=False):
    """What describes a Transformer of text: its stacks, and what is at their ends.

    tied: the output is the embedding's transpose (Press & Wolf 2017, arXiv 1608.05859). scale_embedding: times
    sqrt(d_model) (Vaswani et al. 2017, section 3.4), so that sinusoids do not swamp small embeddings. init: the first
    weights.
    """

    tied: bool
    scale_embedding: bool
    init: Callable[..., Init]


class Transformer(Ends, TextModel):
    """A model of text on stacks, described by TransformerFields; `defaults` are those of its family."""

    defaults: ClassVar[TransformerFields] = {
        **Stack.defaults,
        "tied": True,
        "scale_embedding": False,
        "init": Xavier,
    }

    def __init__(self, vocabulary_size: int, fields: TransformerFields) -> None:
        super().__init__()
        self.vocabulary_size, self.d_model = vocabulary_size, fields["d_model"]
        self.embedding = nn.Embedding(vocabulary_size, self.d_model)
        self.embedding_scale = math.sqrt(self.d_model) if fields["scale_embedding"] else 1.0

    @classmethod
    def described(cls, fields: TransformerFields) -> TransformerFields:
        """The fields given, with the family's defaults. Raises TypeError for one that there is not."""
        cls.refuse_unknown(fields, cls.defaults)
        return cls.defaults | fields

    def new_head(self, fields: TransformerFields) -> nn.Linear | None:
        """The output's weights; None where they are the embedding's."""
        return None if fields["tied"] else nn.Linear(self.d_model, self.vocabulary_size, bias=False)
