"""The families that a part is tried in: tiny models with weights that make a wrong mask or position show, and what must
hold of each, whatever part is in it.

Legend: B batch, T length, S source length, V vocabulary, C channels, Y and X rows and columns of pixels, M mel
bins, F frames.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers import PositionEncoding, TowerFields
from attnlab.layers.added import collecting
from attnlab.models import CLIP, GPT, Bert, EncoderDecoder, ViT, Whisper
from attnlab.parts import accepts
from attnlab.testing.experts import choose_as, of_some_tokens

VOCABULARY, LENGTH, LONGEST = 13, 12, 16
DIMS: dict[str, Any] = {"d_model": 16, "num_heads": 4, "num_layers": 2}
TOLERANCE = 1e-5  # of sums in another order
ENDS = (0,), (-1,)  # of a text
CORNERS = [(slice(None), corner, corner) for corner in (slice(0, 4), slice(-4, None))]  # of an image: a patch each

Method = TypeVar("Method", bound=Callable[..., None])


def holds(method: Method) -> Method:
    """Marks a method of a family as a property; its name is what a reader sees."""
    method.__dict__["is_property"] = True
    return method


def properties(family: Family) -> dict[str, Callable[[], None]]:
    """A family's properties by the names that a reader sees, a base's before those of the family itself."""
    names = dict.fromkeys(name for kind in reversed(type(family).__mro__) for name in vars(kind))
    marked = [name for name in names if hasattr(getattr(type(family), name), "is_property")]
    return {name.replace("_", " ").replace("bf16 is", "bfloat16 is"): getattr(family, name) for name in marked}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Tokens of the tiny vocabulary."""
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def changed(rows: Tensor, *place: int | slice) -> Tensor:
    """The rows with other tokens, pixels or features at a place."""
    rows = rows.clone()
    rows[:, *place] += 1
    return rows if rows.is_floating_point() else rows % VOCABULARY


class Family(ABC):
    """A tiny model of one family with the part in it, run on the family's own inputs, the same each time."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[Tensor, ...]]

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    @abstractmethod
    def build(self) -> nn.Module:
        """A freshly initialised model."""

    def logits(self, model: nn.Module) -> Tensor:
        """(..., classes)."""
        dtype = next(model.parameters()).dtype
        logits: Tensor = model(*(each.to(dtype) if each.is_floating_point() else each for each in self.inputs))
        return logits

    def fresh(self, seed: int = 0) -> nn.Module:
        """A new model off its initial values, so that a scale that starts at zero (ReZero) hides nothing."""
        torch.manual_seed(seed)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model.eval()

    @cached_property
    def model(self) -> Any:
        """One model for all properties that only read it."""
        return self.fresh()

    def loss(self, model: nn.Module) -> Tensor:
        """A cross-entropy that depends on every output."""
        logits = self.logits(model).flatten(0, -2)
        targets = torch.arange(len(logits)) % logits.shape[-1]
        return F.cross_entropy(logits, targets)

    @holds
    def gradients_reach_every_parameter(self) -> None:
        model = self.fresh().train()
        self.loss(model).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        idle = of_some_tokens(model)
        unreached = [n for n, grad in gradients.items() if grad is None or not (n in idle or grad.abs().max() > 0)]
        assert not unreached, f"no gradient reaches {', '.join(unreached)}"
        assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None), "a gradient is not finite"

    @holds
    def bf16_is_finite_and_near_fp32(self) -> None:
        """Near: within 5% of the logits' spread, or within five times what rounding the weights alone does to them,
        which no computation undoes and which may be much where a part amplifies it.
        """
        with collecting() as added:
            expected = self.logits(self.model)
        model, rounded = self.fresh().bfloat16(), self.fresh().bfloat16().float()
        for other in (model, rounded):
            choose_as(added, self.model, other)
        logits = self.logits(model)
        assert logits.dtype == torch.bfloat16, f"the logits of a bfloat16 model are {logits.dtype}"
        off, spread = (logits.float() - expected).std(), expected.std()
        allowed = max(0.05 * spread, 5 * (self.logits(rounded) - expected).std())
        found = f"off by {off / spread:.2g} of the logits' spread, where {allowed / spread:.2g} is rounding"
        assert off < allowed, f"bfloat16 is far from fp32: {found}"
        self.loss(model).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), "a gradient is not finite"

    @holds
    def a_state_dict_gives_the_same_model(self) -> None:
        other = self.fresh(seed=9)
        assert not torch.allclose(self.logits(other), self.logits(self.model), atol=1e-3), "weights change nothing"
        other.load_state_dict(self.model.state_dict())
        assert torch.equal(self.logits(other), self.logits(self.model)), "the state dict does not hold all of the state"

    def check_causality(self, tokens_BT: Tensor, *before: Tensor) -> None:
        """Of a target after what stands before it."""
        first, second = (self.model(*before, x_BT) for x_BT in (tokens_BT, changed(tokens_BT, slice(7, None))))
        assert_close(second[:, :7], first[:, :7])
        assert not torch.allclose(second[:, 7:], first[:, 7:], atol=1e-3), "a changed token changes nothing"

    def check_seen(self, number: int, what: str, *places: tuple[int | slice, ...]) -> None:
        """What an input has at these places changes what comes out."""
        before = self.logits(self.model)
        for place in places:
            inputs = list(self.inputs)
            inputs[number] = changed(inputs[number], *place)
            assert not torch.allclose(self.model(*inputs), before, atol=1e-4), f"{what} changes nothing: {place}"

    def check_padding(self, tokens_BT: Tensor, *sides: str, targets: Tensor | None = None) -> None:
        """Rows of several lengths, padded on a side, give what each gives alone."""
        lengths = (tokens_BT.shape[1], 7, 1)
        after = () if targets is None else (targets,)
        for side in sides:
            padded_BT, is_token_BT = pad(tokens_BT, lengths, side)
            logits_BTV = self.model(padded_BT, *after, is_token_BT)
            assert logits_BTV.isfinite().all(), f"logits are not finite with padding on the {side}"
            for row, length in enumerate(lengths):
                rows = slice(row, row + 1)
                alone_1TV = self.model(tokens_BT[rows, :length], *(target_BT[rows] for target_BT in after))
                kept = slice(None) if targets is not None else is_token_BT[row]
                assert_close(logits_BTV[row][kept], alone_1TV[0])


class InGPT(Family):
    """Causal: cached decoding, and padding on either side."""

    name = "gpt"
    tokens_BT = draw(3, LENGTH)
    inputs = (tokens_BT,)

    def build(self) -> GPT:
        return GPT(vocabulary_size=VOCABULARY, max_length=LONGEST, **DIMS, **self.parts)

    @holds
    def logits_have_the_shape_of_the_tokens(self) -> None:
        assert self.logits(self.model).shape == (*self.tokens_BT.shape, VOCABULARY)

    @holds
    def later_tokens_do_not_change_earlier_logits(self) -> None:
        self.check_causality(self.tokens_BT)

    @holds
    def cached_decoding_equals_full_decoding(self) -> None:
        with torch.no_grad():
            full = self.model(self.tokens_BT)
            for steps in ([1] * LENGTH, [5, 1, 1, 5], [LENGTH]):  # one by one, in chunks, at once
                cache = self.model.new_cache(LENGTH)
                pieces = [self.model(tokens, cache=cache) for tokens in self.tokens_BT.split(steps, dim=1)]
                assert_close(torch.cat(pieces, dim=1), full)

    @holds
    def padding_changes_nothing(self) -> None:
        self.check_padding(self.tokens_BT, "left", "right")

    @holds
    def padded_rows_decode_with_a_cache_as_each_alone(self) -> None:
        starts = (0, 3, 8)
        is_token_BT = torch.arange(LENGTH) >= torch.tensor(starts)[:, None]  # padding on the left
        cache, first = self.model.new_cache(LENGTH), LENGTH - 3
        with torch.no_grad():
            pieces = [self.model(self.tokens_BT[:, :first], is_token_BT=is_token_BT[:, :first], cache=cache)]
            pieces += [self.model(self.tokens_BT[:, i : i + 1], cache=cache) for i in range(first, LENGTH)]
            cached = torch.cat(pieces, dim=1)
            for row, start in enumerate(starts):
                assert_close(cached[row, start:], self.model(self.tokens_BT[row : row + 1, start:])[0])


class InBert(Family):
    """Bidirectional: every position sees every other, and padding on either side changes nothing."""

    name = "bert"
    tokens_BT = draw(3, LENGTH)
    inputs = (tokens_BT,)

    def build(self) -> Bert:
        return Bert(vocabulary_size=VOCABULARY, max_length=LONGEST, dropout=0.0, **DIMS, **self.parts)

    @holds
    def every_token_changes_every_logit(self) -> None:
        before = self.model(self.tokens_BT)
        for position in (0, LENGTH - 1):
            difference_BT = (self.model(changed(self.tokens_BT, position)) - before).abs().amax(dim=-1)
            assert (difference_BT > 1e-6).all(), f"some position does not see token {position}"

    @holds
    def padding_changes_nothing(self) -> None:
        self.check_padding(self.tokens_BT, "left", "right")


class WithMemory(Family):
    """A causal decoder that attends to what is read of a source; the inputs are both."""

    @holds
    def later_target_tokens_do_not_change_earlier_logits(self) -> None:
        source, target_BT = self.inputs
        self.check_causality(target_BT, source)

    @holds
    def decoding_step_by_step_equals_decoding_at_once(self) -> None:
        source, target_BT = self.inputs
        with torch.no_grad():
            state = self.model.start(source, capacity=LENGTH)
            steps = [self.model.step(tokens_B, state) for tokens_B in target_BT.unbind(dim=1)]
            assert_close(torch.stack(steps, dim=1), self.model(source, target_BT))


class InEncoderDecoder(WithMemory):
    """A causal decoder that attends to an encoder: a target decodes step by step as at once, whatever pads
    its source.
    """

    name = "encoder_decoder"
    source_BS, target_BT = draw(3, LENGTH - 3, seed=1), draw(3, LENGTH)
    inputs = (source_BS, target_BT)

    def build(self) -> EncoderDecoder:
        return EncoderDecoder(vocabulary_size=VOCABULARY, max_length=LONGEST, dropout=0.0, **DIMS, **self.parts)

    @holds
    def every_source_token_changes_the_logits(self) -> None:
        self.check_seen(0, "a source token", *ENDS)

    @holds
    def padding_of_the_source_changes_nothing(self) -> None:
        self.check_padding(self.source_BS, "right", targets=self.target_BT)


class InViT(Family):
    """Patches of an image: every patch counts, and an image of another size is taken."""

    name = "vit"
    images_BCYX = torch.rand(3, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    inputs = (images_BCYX,)

    def build(self) -> ViT:
        return ViT(num_classes=5, image_size=(12, 16), channels=1, patch_size=4, **DIMS, **self.parts)

    @holds
    def every_patch_changes_the_logits(self) -> None:
        self.check_seen(0, "a patch", *CORNERS)

    @holds
    def an_image_of_another_size_is_taken(self) -> None:
        assert torch.equal(self.logits(self.model.at_size((12, 16))), self.logits(self.model))
        larger = self.model.at_size((16, 24))
        logits_BL = larger(torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(1)))
        assert logits_BL.isfinite().all(), "logits of a larger image are not finite"


class InCLIP(Family):
    """Images and texts, a tower each; a part of images alone is in their tower. Padding of a text changes nothing."""

    name = "clip"
    # Sixteen of each: the spread of a few cosines may be small beside the rounding of any one of them.
    images_BCYX = torch.randn(16, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    tokens_BT = draw(16, LENGTH)
    inputs = (images_BCYX, tokens_BT)

    def build(self) -> CLIP:
        parts, of_images = dict(self.parts), TowerFields()
        if accepts(self.parts.get("position", PositionEncoding), "grid"):
            of_images["position"] = parts.pop("position")
        parts |= DIMS | {"num_layers": 1, "image": of_images, "pooling": "attention", "registers": 1}
        return CLIP(vocabulary_size=VOCABULARY, max_length=LONGEST, image_size=(12, 16), channels=1, **parts)

    @holds
    def every_patch_and_every_token_changes_the_scores(self) -> None:
        self.check_seen(0, "a patch", *CORNERS)
        self.check_seen(1, "a token", *ENDS)

    @holds
    def padding_of_a_text_changes_nothing(self) -> None:
        lengths = (LENGTH, 7, 1)
        padded_BT, is_token_BT = pad(self.tokens_BT[:3], lengths, "right")
        embedded_BE = self.model.encode_texts(padded_BT, is_token_BT)
        for row, length in enumerate(lengths):
            assert_close(embedded_BE[row], self.model.encode_texts(self.tokens_BT[row : row + 1, :length])[0])

    @holds
    def images_of_another_size_are_taken(self) -> None:
        assert torch.equal(self.logits(self.model.at_size((12, 16))), self.logits(self.model))
        larger = self.model.at_size((16, 24))
        images_BCYX = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(1))
        assert larger.encode_images(images_BCYX).isfinite().all(), "embeddings of a larger image are not finite"


class InWhisper(WithMemory):
    """Features of speech, and a causal decoder that attends to them: every frame counts but those that are padding."""

    name = "whisper"
    features_BMF = torch.randn(3, 5, 2 * LENGTH, generator=torch.Generator().manual_seed(0))
    target_BT = draw(3, LENGTH)
    inputs = (features_BMF, target_BT)

    def build(self) -> Whisper:
        sizes = DIMS | {"num_layers": 1, "num_mels": 5, "num_frames": 2 * LENGTH, "max_length": LENGTH}
        return Whisper(vocabulary_size=VOCABULARY, **sizes, **self.parts)

    @holds
    def every_frame_changes_the_logits(self) -> None:
        self.check_seen(0, "a frame", (slice(None), 0), (slice(None), -1))

    @holds
    def padding_of_the_features_changes_nothing(self) -> None:
        lengths = (2 * LENGTH, 7, 1)
        is_frame_BF = torch.arange(2 * LENGTH) < torch.tensor(lengths)[:, None]
        logits_BTV = self.model(self.features_BMF, self.target_BT, is_frame_BF)
        for row, length in enumerate(lengths):
            rows = slice(row, row + 1)
            assert_close(logits_BTV[rows], self.model(self.features_BMF[rows, :, :length], self.target_BT[rows]))


FAMILIES: tuple[type[Family], ...] = (InGPT, InBert, InEncoderDecoder, InViT, InCLIP, InWhisper)


def pad(tokens_BT: Tensor, lengths: tuple[int, ...], side: str) -> tuple[Tensor, Tensor]:
    """The first tokens of each row, as many as its length says, in rows of LONGEST; and where they stand."""
    padded_BT = torch.full((len(tokens_BT), LONGEST), 3)
    is_token_BT = torch.zeros(padded_BT.shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        span = slice(LONGEST - length, LONGEST) if side == "left" else slice(0, length)
        padded_BT[row, span], is_token_BT[row, span] = tokens_BT[row, :length], True
    return padded_BT, is_token_BT
