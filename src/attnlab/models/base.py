"""What the families of models offer to tasks and to decoding, the ends of those of text without stacks, and what is
measured of a model by running it: its size, what training it costs, which inputs reach an output.

Legend: B batch, T length (of a target, of outputs), S source length (of inputs), D model width, V vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from attnlab.layers.attention import DotProductAttention
from attnlab.layers.backends import BACKENDS, Backend, Scores
from attnlab.layers.cache import DecodingState
from attnlab.layers.experts import MixtureOfExperts
from attnlab.layers.init import Init, draw_seed
from attnlab.layers.linear_attention import StateMixer
from attnlab.layers.linear_recurrence import counted
from attnlab.layers.pointwise import Ends, Sides
from attnlab.layers.positions import ContextBias
from attnlab.layers.scope import Mask
from attnlab.layers.stack import wrong_pattern
from attnlab.parts import Choices, Part, build_part
from attnlab.ranges import PositiveInt, check_ranges

Fields = TypeVar("Fields", bound=Mapping[str, object])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Model(Part, nn.Module):
    """A model whose weights are drawn at the end of its constructor, by `draw`. d_model: the width of its stream.

    sees_both_sides: whether some of its layers do. has_memory: whether it has a decoder that attends to an encoder.
    towers: of a model with several stacks, the field of each (TowerFields), with the model's own fields that are of it
    alone. sides: of its own layers, by name, but for `head`; None: nobody knows how the model goes with the width.
    """

    d_model: int
    sees_both_sides: ClassVar[bool] = False
    has_memory: ClassVar[bool] = False
    towers: ClassVar[Mapping[str, Sequence[str]]] = {}
    sides: ClassVar[Mapping[str, Sides] | None] = None

    def __init__(self) -> None:
        super().__init__()
        # Before any part draws, so that models that differ in one part share the others' weights.
        self._seed = draw_seed()

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        pattern, entries = choices.get("model.pattern") or [], choices.get("model.layers") or {}
        if entries and not pattern:
            yield "model.layers: without model.pattern its entries would have no effect; set model.pattern=[NAME,...]"
        drawn, (row, field) = choices.get("model.random_positions"), choices.longest_row()
        if drawn is not None and drawn < row:
            why = f"{drawn} positions are fewer than the {row} tokens of a row ({field})"
            yield f"model.random_positions: {why}; draw from more"
        for depth in ("num_layers", "num_decoder_layers"):
            if layers := choices.get(f"model.{depth}"):
                yield from (f"model.{reason}" for reason in wrong_pattern(pattern, entries, layers))

    @classmethod
    def described(cls, defaults: Fields, fields: Fields) -> Fields:
        """The fields over the family's defaults. Raises TypeError, as Python does, for one that there is not."""
        if unknown := sorted(fields.keys() - defaults.keys()):
            raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument {unknown[0]!r}")
        return cast(Fields, {**defaults, **fields})

    def draw(self, init: Callable[..., Init]) -> None:
        """Draws the first weights."""
        build_part(init)(self, self._seed)

    def after_step(self) -> None:
        """What becomes of the weights after every step of their training."""
        return


class TextModel(Model):
    """A model of text. vocabulary_size: of its output. longest: how many positions it can serve; None: any number."""

    vocabulary_size: int
    longest: int | None = None


class LanguageModel(TextModel):
    """A model of the next token."""

    @abstractmethod
    def new_cache(self, capacity: int) -> DecodingState:
        """An empty cache for decoding up to `capacity` tokens."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, cache: Any = None) -> Tensor:
        """Logits (B, T, V) of the token after each, in the model's type; is_token_BT is False at padding."""


class Encoder(TextModel):
    """A model of what each token means among all others."""

    @abstractmethod
    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D); is_token_BT is False at padding (None: nowhere), segments_BT tells two texts apart.
        Raises ValueError past the last position that the model can serve.
        """


class Seq2Seq(TextModel):
    """A model of a target sequence given a source. longest: of a source, and of a target."""

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if choices.get("model.share_embeddings") is True and choices.get("data.joint_vocabulary") is False:
            yield (
                "model.share_embeddings: one table for source and target needs one vocabulary; "
                "set data.joint_vocabulary=true or model.share_embeddings=false"
            )

    @abstractmethod
    def forward(self, source_BS: Tensor, target_BT: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `target_BT`, in the model's type; is_source_BS is False at
        padding. Padding on the right of a target needs no mask: no real token looks that far.
        """

    @abstractmethod
    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> DecodingState:
        """The state from which up to `capacity` target tokens are decoded."""

    @abstractmethod
    def step(self, tokens_B: Tensor, state: Any) -> Tensor:
        """Appends a token to each row and gives the logits (B, V) of the next. Raises ValueError past the capacity."""


@check_ranges
class Tables(Ends, nn.Module):
    """The embedding and the output, and of two texts the source's embedding.

    source_vocabulary_size: None: there is no source, or it has the target's vocabulary. share_embeddings: one table for
    source and target; a language model has but one. tie_embeddings, scale_embedding: see TransformerFields. Raises
    ValueError for a shared table of two vocabularies.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        d_model: PositiveInt,
        tie_embeddings: bool = True,
        share_embeddings: bool = True,
        source_vocabulary_size: PositiveInt | None = None,
        scale_embedding: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_scale = math.sqrt(d_model) if scale_embedding else 1.0
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.source_embedding = source_table(vocabulary_size, source_vocabulary_size, share_embeddings, d_model)
        self.head = None if tie_embeddings else nn.Linear(d_model, vocabulary_size, bias=False)


def source_table(size: int, source_size: int | None, share: bool, d_model: int) -> nn.Embedding | None:
    """The source's own embedding; None where target and source share one. Raises ValueError where they cannot."""
    source_size = size if source_size is None else source_size
    if share and source_size != size:
        raise ValueError(
            f"share_embeddings=true needs one vocabulary; the source has {source_size} tokens and the target "
            f"{size}: make it joint, or set share_embeddings=false"
        )
    return None if share else nn.Embedding(source_size, d_model)


# --- what is measured of a model by running it

Shape = Sequence[int]


@dataclass(frozen=True)
class Size:
    """Parameters, and floating-point operations to train on one token.

    embedding_parameters: the tables of tokens, positions and distances, and the output matrix where it is untied; the
    rest is non-embedding, the N of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1). flops_per_token: a
    multiplication and an addition are two operations. Only matrix products, convolutions and recurrences count, as in
    that section's table 1: every weight of a linear layer (the output matrix too, tied or not) once a token, and q.k
    and weights.v over all keys, not halved for causality; with a window of w tokens over min(S, w) of S keys, where
    both sides are seen over min(S, 2 w - 1), at the ends of a sequence, too. A state of K by V counts 2 K V for each
    token's write, its read and the second read of the delta rule, however it is computed (in chunks it costs more). Of
    a model with a source, all that is computed on it counts for the target. The backward pass costs twice the forward
    pass, so training is 3 x forward; recomputed activations do not count. active_parameters: those that one token
    meets, fewer where a mixture of experts chooses among its own; operations are those of the active ones.
    """

    parameters: int
    embedding_parameters: int
    non_embedding_parameters: int
    flops_per_token: int
    active_parameters: int

    def counts(self) -> dict[str, int]:
        """Parameters by what is counted, as a run's record has them; active ones where they are fewer."""
        counts = {"total": self.parameters, "non_embedding": self.non_embedding_parameters}
        if idle := self.parameters - self.active_parameters:
            counts |= {f"active_{name}": value - idle for name, value in counts.items()}
        return counts


def measure_size(model: nn.Module, forward: Callable[[], int]) -> Size:
    """The size of a model; `forward` computes a loss with it and returns of how many tokens. Draws no random number."""
    total, embedding = count_parameters(model)
    counter = FlopCounterMode(display=False, custom_mapping=_missing())
    with evaluating(model), _countable(model, counter) as hidden, torch.no_grad(), counter:
        tokens = forward()
    flops = 3 * (counter.get_total_flops() - sum(hidden)) // max(1, tokens)
    return Size(total, embedding, total - embedding, flops, total - idle_parameters(model))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters of a model, with or without memory, and how many of them are of embeddings (see `Size`)."""
    tables = {
        parameter
        for name, module in model.named_modules()
        if _is_table(name, module, model)
        for parameter in module.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters()), sum(table.numel() for table in tables)


def idle_parameters(model: nn.Module) -> int:
    """How many parameters a token does not meet: those of the experts that are not its own."""
    return sum(module.idle_parameters for module in model.modules() if isinstance(module, MixtureOfExperts))


@contextmanager
def _countable(model: nn.Module, counter: FlopCounterMode) -> Iterator[list[int]]:
    """Inside, attention computes all scores and states count token by token, so that what is counted is the same on
    every device and in chunks of any size. Takes what was counted of scores that windows hide.
    """
    attentions = {m: m.backend for m in model.modules() if isinstance(m, DotProductAttention)}
    with_states = {m: m.form for m in model.modules() if isinstance(m, StateMixer)}
    hidden: list[int] = []
    for attention, backend in attentions.items():
        attention.backend = partial(_all_scores, backend, counter, hidden)
    for mixer in with_states:
        mixer.form = counted
    try:
        yield hidden
    finally:
        for attention, backend in attentions.items():
            attention.backend = backend
        for mixer, form in with_states.items():
            mixer.form = form


def _all_scores(
    backend: str | Backend,
    counter: FlopCounterMode,
    hidden: list[int],
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Mask,
    scores: Scores,
) -> Tensor:
    """All scores by one backend without blocks or rows; adds to `hidden` what it counts beyond the window. What a
    position that depends on the content counts is of no key.
    """
    if backend == "auto":
        backend = "math" if scores.soft_cap is not None or scores.explicit else "fused"
    attend, of_no_key = BACKENDS[backend] if isinstance(backend, str) else backend, 0
    context_bias = scores.context_bias

    def counted_bias(*given: Any) -> Tensor:
        nonlocal of_no_key
        before = counter.get_total_flops()
        bias_BHTS = cast(ContextBias, context_bias)(*given)
        of_no_key += counter.get_total_flops() - before
        return bias_BHTS

    before = counter.get_total_flops()
    seen = scores if context_bias is None else scores._replace(context_bias=counted_bias)
    out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, mask, seen)
    of_keys, num_keys = counter.get_total_flops() - before - of_no_key, k_BGSK.shape[2]
    hidden.append(of_keys * (num_keys - mask.most_keys) // num_keys)
    return out_BHTK


def _is_table(name: str, module: nn.Module, model: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        # By its name, too: layers may happen to be as wide as the vocabulary, as with bytes and d_ff=256.
        is_output = name.rpartition(".")[2] == "head"
        return is_output and module.out_features == getattr(model, "vocabulary_size", None)
    return isinstance(module, nn.Embedding)


def _missing() -> dict[object, Callable[..., int]]:
    """What torch's counter does not know, by shapes: its fused attention on a CPU, and recurrent layers."""

    def attention(q: Shape, k: Shape, v: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop(q, k, v))

    def one_layer(x: Shape, inputs: Shape, state: Shape, *_: object, **__: object) -> int:
        return 2 * prod(x[:-1]) * (prod(inputs) + prod(state))

    def layers(x: Shape, *rest: object, **_: object) -> int:
        shapes = [shape for item in rest if isinstance(item, tuple | list) for shape in item]
        matrices = [shape for shape in shapes if isinstance(shape, tuple | list) and len(shape) == 2]
        return 2 * prod(x[:-1]) * sum(prod(shape) for shape in matrices)

    aten = torch.ops.aten
    counts: dict[object, Callable[..., int]] = {aten._scaled_dot_product_flash_attention_for_cpu: attention}
    return counts | {aten.mkldnn_rnn_layer: one_layer, aten.lstm: layers, aten.gru: layers}


def reach(mix: Callable[[Tensor], Tensor], length: int, d_model: int, outputs: Sequence[int] | None = None) -> Tensor:
    """True where an output depends on an input, bool (T, S); `mix` takes states (1, S, D) of fp64 to states of the same
    length. Counted on one random input by the gradients of single outputs: what a mask or a window shuts out has a
    gradient of exactly zero. outputs: the positions that are asked for (None: all).
    """
    x_1SD = torch.randn(
        1, length, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    out_1TD = mix(x_1SD)
    rows = []
    for place in range(length) if outputs is None else outputs:
        (gradient_1SD,) = torch.autograd.grad(out_1TD[0, place].sum(), x_1SD, retain_graph=True)
        rows.append((gradient_1SD[0] != 0).any(dim=-1))
    return torch.stack(rows)
