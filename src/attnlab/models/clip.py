"""Images and texts in one space: a tower of patches, a tower of tokens, on the seams.

Legend: B batch (N where texts and images are of different numbers), C channels, Y and X rows and columns of pixels,
T tokens or patches, D model width, E width of the common space.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.init import GPT2Init, Init
from attnlab.layers.memory import Memory
from attnlab.layers.residuals import norm_of
from attnlab.layers.stack import Stack, StackFields, TowerFields, tower_fields, without_window
from attnlab.models.base import Model
from attnlab.models.vit import PatchEncoder, ViT
from attnlab.parts import Choices, build_part, unsharded
from attnlab.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges, must_be

Pooling = Literal["class", "mean", "attention"]
POOLINGS = ("class", "mean", "attention")


class AttentionPool(nn.Module):
    """One learned query that attends to all states, then a feed-forward layer on the residual stream: x + f(norm(x))
    (Zhai et al. 2022, arXiv 2106.04560, section 3.4; SigLIP's head); (B, T, D) to (B, D). Parts are a tower's own.
    """

    def __init__(self, fields: StackFields, num_states: PositiveInt) -> None:
        super().__init__()
        d_ff = fields["d_ff"] or 4 * fields["d_model"]
        dims = {**fields, "d_ff": d_ff, "causal": False, "max_length": num_states}
        self.probe = nn.Embedding(1, fields["d_model"])
        self.attention = build_part(without_window(fields["attention"]), **dims)
        self.feed_forward = build_part(fields["feed_forward"], **dims)
        normed = self.feed_forward.is_sublayer
        self.norm = build_part(norm_of(fields["residual"]), **dims) if normed else nn.Identity()

    def forward(self, states_BTD: Tensor) -> Tensor:
        # Copies: torch's counter of operations takes no view of a parameter.
        probe_B1D = self.probe.weight.to(states_BTD.dtype).repeat(len(states_BTD), 1, 1)
        x_B1D = Memory(states_BTD).attend(self.attention, probe_B1D)
        pooled_B1D: Tensor = x_B1D + self.feed_forward(self.norm(x_B1D))
        return pooled_B1D[:, 0]


class ImageTower(PatchEncoder):
    """A ViT without its head, its states pooled; images (B, C, Y, X) to (B, D)."""

    def __init__(
        self,
        fields: StackFields,
        image_size: PositiveInt | Sequence[PositiveInt],
        channels: PositiveInt,
        patch_size: PositiveInt,
        pooling: Pooling,
        registers: NonNegativeInt,
        patch_bias: bool,
    ) -> None:
        super().__init__(fields, image_size, channels, patch_size, registers + (pooling == "class"), patch_bias)
        self.pooling = pooling
        self.pool = AttentionPool(fields, self.grid[0] * self.grid[1]) if pooling == "attention" else None

    def forward(self, images_BCYX: Tensor) -> Tensor:
        states_BTD = self.encode(images_BCYX)
        if self.pooling == "class":
            return states_BTD[:, 0]
        patches_BTD = states_BTD[:, self.num_before :]
        pooled_BD: Tensor = patches_BTD.mean(dim=1) if self.pool is None else self.pool(patches_BTD)
        return pooled_BD


class TextTower(nn.Module):
    """A Transformer of text, pooled at each text's last token; tokens (B, T) to (B, D)."""

    def __init__(
        self, fields: StackFields, vocabulary_size: PositiveInt, max_length: PositiveInt, causal: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, fields["d_model"])
        self.stack = Stack(fields, causal=causal, max_length=max_length)
        self.longest = self.stack.position.longest

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D); is_token_BT is False at padding, which stands on the right (None: nowhere). Raises
        ValueError past the last position that the tower can serve.
        """
        # Where every token sees what stands before it alone, none sees padding on the right: no mask is built.
        seen_BT = None if self.stack.causal else is_token_BT
        states_BTD: Tensor = self.stack(self.embedding(tokens_BT), is_token_BT=seen_BT)
        return states_BTD

    def forward(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        states_BTD = self.encode(tokens_BT, is_token_BT)
        if is_token_BT is None:
            return states_BTD[:, -1]
        last_B = is_token_BT.sum(dim=1).clamp(min=1) - 1
        return states_BTD[torch.arange(len(last_B), device=last_B.device), last_B]


@check_ranges
class CLIP(Model):
    """CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP (Zhai et al. 2023, arXiv 2303.15343): embeddings of
    images and of texts, alike where the two belong together; images and tokens to scores (B, N) of each pair.

    The text tower is causal and pooled at each text's last token, which is to be its end-of-text token; causal_text:
    False: every token sees all others. pooling: of the image tower: the class token's state, the mean of the patches',
    or by attention. registers, patch_size: see ViT. patch_bias: of the embedding of patches. projection: linear maps
    into the common space; both: of either tower, without bias (CLIP); text: of texts alone, with bias, into the image
    tower's own width (SigLIP). embedding_size: of the common space; None: the image tower's width. A score is a cosine
    times exp(log_scale), which is learned and starts at `initial_scale`; `logit_bias` adds a learned number, from -10
    on. initial_scale: None: 1/0.07, or 10 beside a bias, as published. max_scale: what the scale is held to
    after each step (Radford et al. 2021, section 2.5); None: nothing. fields: see StackFields, of both towers;
    image, text: those that differ in one. Raises ValueError where a part refuses a width.
    """

    sees_both_sides = True
    towers: ClassVar[Mapping[str, Sequence[str]]] = {
        "image": ("image_size", "channels", "patch_size", "patch_bias", "pooling", "registers"),
        "text": ("vocabulary_size", "max_length", "causal_text"),
    }
    defaults: ClassVar[StackFields] = ViT.defaults

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt,
        image_size: PositiveInt | Sequence[PositiveInt],
        channels: PositiveInt = 3,
        patch_size: PositiveInt = 4,
        embedding_size: PositiveInt | None = None,
        pooling: Pooling = "class",
        registers: NonNegativeInt = 0,
        patch_bias: bool = False,
        projection: Literal["both", "text"] = "both",
        causal_text: bool = True,
        logit_bias: bool = False,
        initial_scale: PositiveFloat | None = None,
        max_scale: PositiveFloat | None = 100.0,
        image: TowerFields | None = None,
        text: TowerFields | None = None,
        init: Callable[..., Init] = GPT2Init,
        **fields: Unpack[StackFields],
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling}: there is no such pooling; accepted: {', '.join(POOLINGS)}")
        fields = self.described(self.defaults, fields)
        of_image, of_text = tower_fields(fields, image), tower_fields(fields, text)
        embedding_size = embedding_size or of_image["d_model"]
        if projection == "text" and embedding_size != of_image["d_model"]:
            wanted = f"null or the image tower's width, {of_image['d_model']}, where texts alone are projected"
            raise ValueError(must_be("model.embedding_size", wanted, embedding_size))
        super().__init__()
        self.vocabulary_size, self.d_model, self.embedding_size = vocabulary_size, fields["d_model"], embedding_size
        self.image = ImageTower(of_image, image_size, channels, patch_size, pooling, registers, patch_bias)
        self.text = TextTower(of_text, vocabulary_size, max_length, causal_text)
        self.image_projection = nn.Identity() if projection == "text" else _projection(of_image, embedding_size)
        self.text_projection = _projection(of_text, embedding_size, bias=projection == "text")
        scale = initial_scale or (10.0 if logit_bias else 1 / 0.07)
        self.log_scale, self.max_scale = nn.Parameter(torch.tensor(math.log(scale))), max_scale
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if logit_bias else None
        self.draw(init)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from unsharded(choices, "model")

    def encode_images(self, images_BCYX: Tensor) -> Tensor:
        """Embeddings (B, E) of length 1, fp32. Raises ValueError for images of another size."""
        return _unit(self.image_projection(self.image(images_BCYX)))

    def encode_texts(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of length 1, fp32; is_token_BT is False at padding, which stands on the right. Raises
        ValueError past the last position that the text tower can serve.
        """
        return _unit(self.text_projection(self.text(tokens_BT, is_token_BT)))

    def scores(self, images_BE: Tensor, texts_NE: Tensor) -> Tensor:
        """The score (B, N) of each image with each text, of their embeddings, in fp32 whatever the precision."""
        with torch.autocast(images_BE.device.type, enabled=False):
            cosines_BN = images_BE.float() @ texts_NE.float().t()
            scores_BN = cosines_BN * self.log_scale.float().exp()
            return scores_BN if self.logit_bias is None else scores_BN + self.logit_bias.float()

    def forward(self, images_BCYX: Tensor, tokens_NT: Tensor, is_token_NT: Tensor | None = None) -> Tensor:
        """Scores (B, N), in the model's type."""
        images_BE, texts_NE = self.encode_images(images_BCYX), self.encode_texts(tokens_NT, is_token_NT)
        return self.scores(images_BE, texts_NE).to(self.log_scale.dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Holds the learned scale to at most `max_scale`."""
        if self.max_scale is not None:
            self.log_scale.clamp_(max=math.log(self.max_scale))

    def compile(self, *given: Any, **named: Any) -> None:
        """Compiles the towers: what trains the model calls them, not `forward`."""
        for tower in (self.image, self.text):
            tower.compile(*given, **named)

    def at_size(self, image_size: PositiveInt | Sequence[PositiveInt]) -> CLIP:
        """A copy that takes images of another size; see PatchEncoder."""
        other = copy.deepcopy(self)
        other.image = self.image.at_size(image_size)
        return other


def _projection(fields: StackFields, embedding_size: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(fields["d_model"], embedding_size, bias=bias)


def _unit(x_BE: Tensor) -> Tensor:
    return F.normalize(x_BE.float(), dim=1)
