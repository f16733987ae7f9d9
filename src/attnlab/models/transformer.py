"""Transformers of text on one stack: what their families share, GPT and BERT.

Legend: B batch, T length, D model width, N chosen positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.added import Addition, collected
from attnlab.layers.cache import KeyValueCache
from attnlab.layers.init import GPT2Init, Init, Normal002, Xavier
from attnlab.layers.pointwise import Ends, Sides
from attnlab.layers.positions import Learned, Sinusoidal
from attnlab.layers.residuals import PostNorm, norm_of
from attnlab.layers.stack import Stack, StackFields
from attnlab.models.base import Encoder, LanguageModel, TextModel
from attnlab.parts import Choices, build_part
from attnlab.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges


class TransformerFields(StackFields, total=False):
    """What describes a Transformer of text: its stacks, and what is at their ends. tie_embeddings: the output is the
    embedding's transpose (Press & Wolf 2017, arXiv 1608.05859). scale_embedding: times sqrt(d_model) (Vaswani et al.
    2017, section 3.4), so that sinusoids do not swamp small embeddings. init: the first weights.
    """

    tie_embeddings: bool
    scale_embedding: bool
    init: Callable[..., Init]


class Transformer(Ends, TextModel):
    """A model of text on stacks, described by TransformerFields; `defaults` are those of its family."""

    sides: ClassVar[Mapping[str, Sides] | None] = {}
    defaults: ClassVar[TransformerFields] = {
        **Stack.defaults,
        "tie_embeddings": True,
        "scale_embedding": False,
        "init": Xavier,
    }

    def __init__(self, vocabulary_size: int, fields: TransformerFields) -> None:
        super().__init__()
        self.vocabulary_size, self.d_model = vocabulary_size, fields["d_model"]
        self.embedding = nn.Embedding(vocabulary_size, self.d_model)
        self.embedding_scale = math.sqrt(self.d_model) if fields["scale_embedding"] else 1.0

    def new_head(self, fields: TransformerFields) -> nn.Linear | None:
        """The output's weights; None where they are the embedding's."""
        return None if fields["tie_embeddings"] else nn.Linear(self.d_model, self.vocabulary_size, bias=False)


@check_ranges
class GPT(Transformer, LanguageModel):
    """A causal Transformer language model (Radford et al. 2019); tokens (B, T) to the next tokens' logits (B, T, V).
    extra_heads: so many tokens after the next one are predicted in training, too, each by a layer of its own in the
    place of the last one, with the same norm and output (Gloeckle et al. 2024, arXiv 2404.19737, section 2).
    logit_soft_cap: logits become c tanh(logit / c) (Gemma 2, arXiv 2408.00118, section 2). fields: see
    TransformerFields. Raises ValueError where a part refuses a width.
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
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt,
        extra_heads: NonNegativeInt = 0,
        logit_soft_cap: PositiveFloat | None = None,
        **fields: Unpack[TransformerFields],
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)
        self.max_length, self.extra_heads, self.logit_soft_cap = max_length, extra_heads, logit_soft_cap
        self.stack = Stack(fields, causal=True, max_length=max_length, num_heads_ahead=extra_heads)
        self.longest = self.stack.position.longest
        self.head = self.new_head(fields)
        self.draw(fields["init"])

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if choices.get("model.extra_heads") and not getattr(choices.parts.get("task"), "predicts_ahead", False):
            yield (
                f"model.extra_heads: task={choices.name('task')} has no targets further ahead; accepted there: 0, or "
                "task=causal_lm"
            )

    def new_cache(self, capacity: int) -> KeyValueCache:
        return KeyValueCache(len(self.stack.layers), capacity)

    def forward(
        self,
        tokens_BT: Tensor,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits. Positions default to 0.. (after what is cached, padding not counted). Raises ValueError past the last
        position that the encoding can serve.
        """
        added = collected() if self.extra_heads else None
        if added is None:
            return self.logits(self.stack(self.embed(tokens_BT), positions_BT, is_token_BT, cache))
        ahead: list[Tensor] = []
        states_BTD = self.stack(self.embed(tokens_BT), positions_BT, is_token_BT, cache, ahead=ahead)
        added.additions.append(Ahead(self, ahead))
        return self.logits(states_BTD)


@dataclass
class Ahead(Addition):
    """The states (B, T, D) from which the heads of a language model predict the tokens after the next one."""

    part: GPT
    states: Sequence[Tensor]

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the token 2, 3, ... places ahead, a mean over the places of a row that have one. batch: with
        targets (B, T), the next tokens.
        """
        found = {}
        for further, states_BTD in enumerate(self.states, start=1):
            targets_BT = batch["targets"][:, further:]
            logits_BVT = self.part.logits(states_BTD[:, : targets_BT.shape[1]]).float().transpose(1, 2)
            nats_BT = F.cross_entropy(logits_BVT, targets_BT, reduction="none")
            found[f"loss_{further + 1}_ahead"] = nats_BT.sum(dim=1) / max(1, targets_BT.shape[1])
        return found


@check_ranges
class Bert(Transformer, Encoder):
    """BERT (Devlin et al. 2019, arXiv 1810.04805); tokens (B, T) to logits (B, T, V), or (N, V) of chosen positions.

    num_segments: texts that an input may hold, told apart by an embedding; 0: none is added. pooler: a dense layer and
    tanh on the first token's state. next_sentence: a second output, on the pooler, says whether two segments follow
    each other (section 3.1, task 2). fields: see TransformerFields. As in the authors' code, the embedding has a norm,
    and the output is a dense layer, GELU and a norm, then the embedding's transpose (where `tie_embeddings`) and a
    bias. Raises ValueError where a part refuses a width.
    """

    sees_both_sides = True
    sides: ClassVar[Mapping[str, Sides] | None] = {"transform": "both", "pooler": "both"}
    defaults: ClassVar[TransformerFields] = {
        **Transformer.defaults,
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 4,
        "dropout": 0.1,
        "bias": True,
        "embedding_norm": True,
        "position": Learned,
        "residual": PostNorm,
        "init": Normal002,
    }

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt,
        num_segments: NonNegativeInt = 0,
        pooler: bool = False,
        next_sentence: bool = False,
        **fields: Unpack[TransformerFields],
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)
        d_model = self.d_model
        self.segments = nn.Embedding(num_segments, d_model) if num_segments else None
        self.stack = Stack(fields, causal=False, max_length=max_length)
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = build_part(norm_of(fields["residual"]), d_model=d_model)
        self.head = self.new_head(fields)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.pooler = nn.Linear(d_model, d_model) if pooler or next_sentence else None
        self.next_sentence = nn.Linear(d_model, 2) if next_sentence else None
        self.longest = self.stack.position.longest
        self.draw(fields["init"])

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.embed(tokens_BT)
        if self.segments is not None:
            segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
            x_BTD = x_BTD + self.segments(segments_BT)
        states_BTD: Tensor = self.stack(x_BTD, is_token_BT=is_token_BT)
        return states_BTD

    def forward(
        self,
        tokens_BT: Tensor,
        is_token_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        select_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); with `select_BT`, of the positions where it is True alone, row by row (N, V)."""
        return self.predict(self.encode(tokens_BT, is_token_BT, segments_BT), select_BT)

    def predict(self, states_BTD: Tensor, select_BT: Tensor | None = None) -> Tensor:
        """The output layer on states, as `forward` gives it."""
        states = states_BTD if select_BT is None else states_BTD[select_BT]
        return self.logits(self.transform_norm(F.gelu(self.transform(states))), self.head_bias)

    def follows(self, states_BTD: Tensor) -> Tensor:
        """Logits (B, 2) of whether the second segment does not or does follow the first."""
        assert self.next_sentence is not None, "next_sentence=true builds this output"
        logits_B2: Tensor = self.next_sentence(self.pool(states_BTD))
        return logits_B2

    def pool(self, states_BTD: Tensor) -> Tensor:
        """The first token's state behind a dense layer and tanh, (B, D)."""
        assert self.pooler is not None, "pooler=true builds this layer"
        return torch.tanh(self.pooler(states_BTD[:, 0]))
