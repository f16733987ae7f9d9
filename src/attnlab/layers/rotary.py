"""Rotary positions, their published scalings to longer contexts, and their variants.

Shapes: B batch, T length, H heads, K head width, R rotated width, P = R / 2 rotated pairs. Angles are computed in fp32
at each forward pass: no buffer to be cast.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor

from attnlab.layers.pointwise import wide, without_autocast
from attnlab.layers.positions import PositionEncoding, Rotation, geometric_frequencies
from attnlab.parts import Choices
from attnlab.ranges import Ge, Gt, Interval, PositiveFloat, PositiveInt, check_ranges, must_be


class RotaryFields(TypedDict, total=False):
    """The fields of every scaling of rotary positions; see Rotary."""

    base: Annotated[float, Gt(1)]
    fraction: Annotated[float, Interval(gt=0, le=1)]
    interleaved: bool


@check_ranges
class Rotary(PositionEncoding):
    """Rotates pairs of query and key dimensions by angles that grow with the position (RoFormer, Su et al. 2021, arXiv
    2104.09864).

    fraction: the leading part of each head that is rotated (partial rotary, GPT-J and GPT-NeoX). interleaved: pairs are
    (0, 1), (2, 3), ... as in the paper; else dimension i pairs with i + half, as in GPT-NeoX and Llama. Raises
    ValueError where the rotated width is odd or zero.
    """

    def __init__(
        self,
        d_head: PositiveInt,
        base: Annotated[float, Gt(1)] = 10000.0,
        fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.width = int(d_head * fraction)
        if self.width % 2 or not 2 <= self.width <= d_head:
            raise ValueError(
                f"rotary positions turn pairs of dimensions: d_head={d_head} with fraction={fraction} rotates "
                f"{self.width}; accepted: an even number from 2 to {d_head}"
            )
        self.base, self.interleaved = base, interleaved

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        d_model, num_heads = choices.get("model.d_model"), choices.get("model.num_heads")
        d_head = choices.get("attention.d_head") or (d_model // num_heads if d_model and num_heads else 2)
        if int(d_head * choices.get("position.fraction", 1.0)) % 2:
            yield (
                f"position: {choices.name('position')} rotates pairs of channels, and a head has an odd number of them "
                f"({d_head}); change model.d_model or model.num_heads"
            )

    def frequencies(self, device: torch.device) -> Tensor:
        """Angle per position of each pair, (P,), fp32."""
        return geometric_frequencies(self.width, self.base, device)

    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied by."""
        return 1.0

    def rotation(self, positions_BT: Tensor) -> Rotation:
        turn = self.turning(positions_BT, self.magnitude())
        return Rotation(turn, turn)

    def turning(self, positions_BT: Tensor, magnitude: float | Tensor) -> Callable[[Tensor], Tensor]:
        """Rotates and multiplies by a magnitude, a number or one of each pair (B or 1, T, P), with cosines and sines
        computed once.
        """
        with without_autocast(positions_BT):
            angles_BTP = self.angles(positions_BT)
            cos_B1TP = (angles_BTP.cos() * magnitude)[:, None]
            sin_B1TP = (angles_BTP.sin() * magnitude)[:, None]
        cos_B1TR, sin_B1TR = (
            torch.stack(halves, dim=-1).flatten(-2) if self.interleaved else torch.cat(halves, dim=-1)
            for halves in ((cos_B1TP, cos_B1TP), (-sin_B1TP, sin_B1TP))
        )
        return partial(apply_rotary, cos_B1TR=cos_B1TR, sin_B1TR=sin_B1TR, interleaved=self.interleaved)

    def angles(self, positions_BT: Tensor) -> Tensor:
        """The angle of each pair at each position, (B or 1, T, P), fp32."""
        return positions_BT[..., None].float() * self.frequencies(positions_BT.device)

    def rotate(self, x_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        return self.rotation(positions_BT).queries(x_BHTK)

    def rotate_keys(self, x_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        return self.rotation(positions_BT).keys(x_BHTK)


@check_ranges
class RotaryLinear(Rotary):
    """Rotary with positions divided by `factor`: position interpolation (Chen et al. 2023, arXiv 2306.15595)."""

    def __init__(
        self, d_head: PositiveInt, factor: Annotated[float, Ge(1)] = 4.0, **rotary: Unpack[RotaryFields]
    ) -> None:
        super().__init__(d_head, **rotary)
        self.factor = factor

    def frequencies(self, device: torch.device) -> Tensor:
        return super().frequencies(device) / self.factor


@check_ranges
class RotaryNTK(Rotary):
    """Rotary with the base raised to base * factor ** (d / (d - 2)), "NTK-aware": the slowest pair slows down by the
    factor, the fastest stays (bloc97 2023; Peng et al. 2023, arXiv 2309.00071, sec. 3.1).
    """

    def __init__(
        self, d_head: PositiveInt, factor: Annotated[float, Ge(1)] = 4.0, **rotary: Unpack[RotaryFields]
    ) -> None:
        super().__init__(d_head, **rotary)
        if self.width < 4:
            raise ValueError(f"NTK-aware scaling needs two pairs: at least 4 rotated dimensions, got {self.width}")
        self.base = self.base * factor ** (self.width / (self.width - 2))


@check_ranges
class RotaryYaRN(Rotary):
    """Rotary with slow pairs interpolated, fast ones kept, and the scores' temperature lowered (Peng et al. 2023, arXiv
    2309.00071).

    Pairs with more than beta_fast turns within original_length (None: the model's max_length) are kept, with fewer than
    beta_slow divided by the factor; in between a ramp, linear in the pair's index with its ends rounded outwards, as in
    the authors' code. attention_factor: None: 0.1 ln(factor) + 1.
    """

    def __init__(
        self,
        d_head: PositiveInt,
        factor: Annotated[float, Ge(1)] = 4.0,
        original_length: PositiveInt | None = None,
        beta_fast: PositiveFloat = 32.0,
        beta_slow: PositiveFloat = 1.0,
        attention_factor: PositiveFloat | None = None,
        max_length: PositiveInt | None = None,
        **rotary: Unpack[RotaryFields],
    ) -> None:
        super().__init__(d_head, **rotary)
        self.factor = factor
        self.original_length = checked_length(original_length, max_length)
        if beta_slow >= beta_fast:
            raise ValueError(must_be("beta_slow", f"below beta_fast={beta_fast}", beta_slow))
        self.beta_fast, self.beta_slow = beta_fast, beta_slow
        self.attention_factor = 0.1 * math.log(factor) + 1.0 if attention_factor is None else attention_factor

    def frequencies(self, device: torch.device) -> Tensor:
        kept_P = super().frequencies(device)
        low = max(math.floor(self._index_of(self.beta_fast)), 0)
        high = min(math.ceil(self._index_of(self.beta_slow)), self.width - 1)
        index_P = torch.arange(self.width // 2, dtype=torch.float32, device=device)
        interpolated_P = ((index_P - low) / max(high - low, 0.001)).clamp(0, 1)
        return kept_P * (1 - interpolated_P) + kept_P / self.factor * interpolated_P

    def magnitude(self) -> float:
        """The square root of the inverse temperature of the softmax, which acts on queries and on keys."""
        return self.attention_factor

    def _index_of(self, turns: float) -> float:
        """The fractional index of the pair that turns so often within the original length."""
        return self.width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.base))


@check_ranges
class RotaryLlama3(Rotary):
    """Rotary with Llama 3.1's scaling by wavelength (Grattafiori et al. 2024, arXiv 2407.21783; rule as in Meta's
    code). Wavelengths above original_length / low_frequency_factor are divided by the factor, those below
    original_length / high_frequency_factor kept, in between blended. original_length: None: the model's max_length.
    """

    defaults: ClassVar[RotaryFields] = {"base": 500000.0}

    def __init__(
        self,
        d_head: PositiveInt,
        factor: Annotated[float, Ge(1)] = 8.0,
        low_frequency_factor: PositiveFloat = 1.0,
        high_frequency_factor: PositiveFloat = 4.0,
        original_length: PositiveInt | None = None,
        max_length: PositiveInt | None = None,
        **rotary: Unpack[RotaryFields],
    ) -> None:
        rotary.setdefault("base", self.defaults["base"])
        super().__init__(d_head, **rotary)
        self.factor = factor
        self.original_length = checked_length(original_length, max_length)
        if low_frequency_factor >= high_frequency_factor:
            wanted = f"below high_frequency_factor={high_frequency_factor}"
            raise ValueError(must_be("low_frequency_factor", wanted, low_frequency_factor))
        self.low_frequency_factor, self.high_frequency_factor = low_frequency_factor, high_frequency_factor

    def frequencies(self, device: torch.device) -> Tensor:
        kept_P = super().frequencies(device)
        turns_P = self.original_length * kept_P / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        kept_share_P = ((turns_P - self.low_frequency_factor) / span).clamp(0, 1)
        return kept_share_P * kept_P + (1 - kept_share_P) * kept_P / self.factor


@check_ranges
class PRotary(Rotary):
    """p-RoPE (Barbero et al. 2024, arXiv 2410.06205): rotary in which the share p of the pairs with the
    highest frequencies rotates, each at its own of rotary's frequencies, and the others keep the angle 0. Unlike a
    `fraction` of the head, which spreads all frequencies over fewer pairs.
    """

    def __init__(
        self, d_head: PositiveInt, p: Annotated[float, Interval(gt=0, le=1)] = 0.75, **rotary: Unpack[RotaryFields]
    ) -> None:
        super().__init__(d_head, **rotary)
        self.num_rotated = int(p * (self.width // 2))
        if not self.num_rotated:
            raise ValueError(f"p={p} of {self.width // 2} pairs rotates none; accepted: at least {2 / self.width}")

    def frequencies(self, device: torch.device) -> Tensor:
        kept_P = super().frequencies(device)
        return kept_P * (torch.arange(len(kept_P), device=device) < self.num_rotated)


@check_ranges
class XPos(Rotary):
    """xPos (Sun et al. 2022, arXiv 2212.10554): rotary whose pair i weighs a key m positions before the
    query by zeta_i^(m / scale_base), zeta_i = (i / (d / 2) + gamma) / (1 + gamma): queries are multiplied by
    zeta^(position / scale_base), keys divided. Raises ValueError where the stack is not causal: keys after the query
    would weigh the more, the farther they are.
    """

    sees_both_sides = False

    def __init__(
        self,
        d_head: PositiveInt,
        gamma: PositiveFloat = 0.4,
        scale_base: PositiveFloat = 512.0,
        causal: bool = True,
        **rotary: Unpack[RotaryFields],
    ) -> None:
        super().__init__(d_head, **rotary)
        if not causal:
            raise ValueError("XPos grows with the distance of keys after the query; accepted: a causal stack")
        self.gamma, self.scale_base = gamma, scale_base
        # Beyond, what divides the keys of the first pair would leave the range of fp32 and bfloat16, about e^88.
        self.longest = int(80 * scale_base / math.log((1 + gamma) / gamma))

    def decay(self, positions_BT: Tensor) -> Tensor:
        """zeta^(position / scale_base) of each pair, (B or 1, T, P), fp32."""
        pairs_P = torch.arange(self.width // 2, dtype=torch.float32, device=positions_BT.device)
        zeta_P = (pairs_P / (self.width / 2) + self.gamma) / (1 + self.gamma)
        return (zeta_P.log() * positions_BT[..., None].float() / self.scale_base).exp()

    def rotation(self, positions_BT: Tensor) -> Rotation:
        decay_BTP = self.decay(positions_BT)
        return Rotation(self.turning(positions_BT, decay_BTP), self.turning(positions_BT, 1 / decay_BTP))


def apply_rotary(x_BHTK: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor, interleaved: bool) -> Tensor:
    """Rotates the leading R dimensions of each head: x cos + partner(x) sin, with the sine's sign in its table.
    Computed in fp32 (fp64 where x is), returned in x's type.
    """
    width = cos_B1TR.shape[-1]
    x_BHTR, kept = wide(x_BHTK[..., :width]), x_BHTK[..., width:]
    if interleaved:
        partner_BHTR = x_BHTR.reshape(*x_BHTR.shape[:-1], width // 2, 2).flip(-1).flatten(-2)
    else:
        partner_BHTR = x_BHTR.roll(width // 2, dims=-1)
    rotated_BHTR = torch.addcmul(x_BHTR * cos_B1TR, partner_BHTR, sin_B1TR).to(x_BHTK.dtype)
    return torch.cat([rotated_BHTR, kept], dim=-1) if kept.shape[-1] else rotated_BHTR


def checked_length(original_length: int | None, max_length: int | None) -> int:
    length = original_length or max_length
    if length is None:
        raise ValueError("original_length must be a number of positions where there is no max_length, got null")
    return length
