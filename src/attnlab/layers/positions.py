"""Position encodings: hooks on absolute positions, each the identity unless a class overrides it, and one for positions
that depend on the content.

Shapes: B batch, T target (query) length, S source (key) length, D model width, H heads, G key/value heads, K head
width, P pairs, L places, Y and X rows and columns of a grid of image patches. Angles are computed in fp32 at each
forward pass: no buffer to be cast.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.parts import Choices, Part, short_table
from attnlab.ranges import Gt, NonNegativeInt, PositiveInt, check_ranges

Bias = Callable[[Tensor, Tensor], Tensor | None]  # positions (B or 1, T) and (B or 1, S) to (B or 1, H, T, S)
# Queries (B, H, T, K) times the scale, scores (B, H, T, S) and who may attend to whom (None: all) to (B, H, T, S).
ContextBias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Rotation(NamedTuple):
    """What rotates queries (B, H, T, K) and keys (B, G, T, K) that stand at given positions."""

    queries: Callable[[Tensor], Tensor]
    keys: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Places:
    """Where a position encoding takes the positions of a forward pass to stand: in the rows of a table (L) of growing
    positions, or `step` apart.
    """

    table_L: Tensor | None = None
    step: int = 1

    @classmethod
    def drawn(cls, longest: int, count: int, device: torch.device) -> Places:
        """So many positions drawn from those below `longest`, in order (Ruoss et al. 2023, arXiv 2305.16843). Raises
        ValueError for more than there are.
        """
        if count > longest:
            raise ValueError(f"random_positions={longest} are fewer than the {count} tokens of a row; draw from more")
        return cls(torch.randperm(longest, device=device)[:count].sort().values)

    def __call__(self, positions_BT: Tensor) -> Tensor:
        return positions_BT * self.step if self.table_L is None else self.table_L[positions_BT]

    def biased(self, bias: Bias) -> Bias:
        """A bias of positions that stand there."""

        def of_places(query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor | None:
            return bias(self(query_positions_BT), self(key_positions_BS))

        return of_places


class PositionEncoding(Part, nn.Module):
    """No position encoding (NoPE; Haviv et al. 2022, arXiv 2203.16634), and the base class of all others. longest: how
    many positions, counted from 0, it can serve; None: any number.
    """

    longest: int | None = None
    sees_both_sides: ClassVar[bool] = True  # whether it serves a stack that is not causal

    def __init__(self) -> None:
        super().__init__()  # takes no field, so that a misspelt one is refused

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if getattr(choices.parts.get("model"), "sees_both_sides", False) and not cls.sees_both_sides:
            yield (
                f"position: {choices.name('position')} is of distances to keys before the query, and "
                f"model={choices.name('model')} has layers that see both sides; choose another, or model=gpt"
            )

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """Adds to the embeddings. positions (B or 1, T), here and in every hook."""
        return x_BTD

    def rotate(self, x_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        """Rotates queries which stand at these positions, and keys unless `rotate_keys` is another."""
        return x_BHTK

    def rotate_keys(self, x_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        """Rotates keys which stand at these positions."""
        return self.rotate(x_BHTK, positions_BT)

    def bias(self, query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor | None:
        """A term (B or 1, H, T, S) to add to the scores, or None."""
        return None

    def context_bias(self, q_BHTK: Tensor, scores_BHTS: Tensor, allowed_BHTS: Tensor | None) -> Tensor:
        """A term (B, H, T, S) to add to the scores, of positions that depend on the content. The queries come times the
        scale of the scores; allowed_BHTS: True where a query may attend to a key, None: everywhere.
        """
        return torch.zeros_like(scores_BHTS)

    @property
    def context_bias_if_any(self) -> ContextBias | None:
        """`context_bias`; None where the class has none."""
        return None if type(self).context_bias is PositionEncoding.context_bias else self.context_bias

    @property
    def bias_if_any(self) -> Bias | None:
        """`bias`; None where the class has none."""
        return None if type(self).bias is PositionEncoding.bias else self.bias

    def rotation(self, positions_BT: Tensor) -> Rotation | None:
        """Both at these positions, prepared once for all layers; None where the class does not rotate."""
        if type(self).rotate is PositionEncoding.rotate:
            return None
        return Rotation(*(partial(turn, positions_BT=positions_BT) for turn in (self.rotate, self.rotate_keys)))

    def image_positions(
        self, before: int, grid: tuple[int, int], trained: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """Where the tokens of an image stand, (1, T): `before` tokens, then patches row by row; None: at 0.. in this
        order. Of another grid (rows, columns) than the one trained on, each patch stands where it lies in that one.
        """
        if grid == trained:
            return None
        rows, columns = (stretched(new, old, device) for new, old in zip(grid, trained, strict=True))
        patches = before + (rows[:, None] * trained[1] + columns).flatten()
        return torch.cat([torch.arange(before, device=device, dtype=patches.dtype), patches])[None]

    def set_trained(self, grid: tuple[int, int]) -> None:
        """Takes the grid (rows, columns) that the weights were trained on."""
        return

    def resize(self, before: int, grid: tuple[int, int], new: tuple[int, int]) -> None:
        """Makes what is kept for each patch of a grid serve another grid; `before` tokens stand before it."""
        return

    def check(self, last: int) -> None:
        """Raises ValueError where the encoding cannot serve position `last`, counted from 0."""
        if self.longest is not None and last >= self.longest:
            raise ValueError(
                f"{type(self).__name__} ends at {self.longest} positions; position {last + 1} was asked for: "
                "shorten the sequence, or choose an encoding without a table"
            )

    def check_all(self, positions_BT: Tensor) -> None:
        """The same for these on a CPU; elsewhere reading a value would make the host wait, and `build_scope` checks."""
        if positions_BT.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check(int(positions_BT.max()))


@check_ranges
class Sinusoidal(PositionEncoding):
    """Sines on even and cosines on odd dimensions, added to the embeddings (Vaswani et al. 2017, sec. 3.5).
    interleaved: as in the paper; else all sines, then all cosines, as in its code and Marian's models. inclusive: the
    longest wavelength is 2 pi base itself, as in its code and Whisper's; else the next one would be.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        base: Annotated[float, Gt(1)] = 10000.0,
        interleaved: bool = True,
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"sinusoidal positions pair dimensions: d_model must be even, got {d_model}")
        self.d_model, self.base, self.interleaved, self.inclusive = d_model, base, interleaved, inclusive

    def frequencies(self, device: torch.device) -> Tensor:
        """Radians a position of each pair, (P), fp32."""
        return geometric_frequencies(self.d_model, self.base, device, self.inclusive)

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        frequencies_P = self.frequencies(positions_BT.device)
        return x_BTD + sinusoids(positions_BT, frequencies_P, self.interleaved).to(x_BTD.dtype)


@check_ranges
class Learned(PositionEncoding):
    """A learned table of max_length positions (Gehring et al. 2017; Vaswani et al. 2017, table 3 E). offset: rows
    before that of position 0, which nothing reads (2 in the published weights of RoBERTa and BART).
    """

    def __init__(self, d_model: PositiveInt, max_length: PositiveInt, offset: NonNegativeInt = 0) -> None:
        super().__init__()
        self.offset = offset
        self.table = nn.Embedding(max_length + offset, d_model)
        nn.init.normal_(self.table.weight, std=0.02)
        self.longest = max_length

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from short_table(choices)

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        self.check_all(positions_BT)
        rows_BT = positions_BT + self.offset if self.offset else positions_BT
        embedded_BTD: Tensor = x_BTD + self.table(rows_BT).to(x_BTD.dtype)
        return embedded_BTD

    def image_positions(
        self, before: int, grid: tuple[int, int], trained: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """None: `resize` makes a row for each."""
        return None

    def resize(self, before: int, grid: tuple[int, int], new: tuple[int, int]) -> None:
        """Interpolates the rows of patches bicubically over the image (Dosovitskiy et al. 2021, section 3.2)."""
        weight, first = self.table.weight, self.offset + before
        table_DYX = weight[first:].t().reshape(-1, *grid)
        rows = torch.cat([weight[:first], interpolated(table_DYX, new).flatten(1).t()])
        self.table = nn.Embedding.from_pretrained(rows.detach(), freeze=not weight.requires_grad)
        self.longest = len(rows) - self.offset


@check_ranges
class ALiBi(PositionEncoding):
    """Minus a slope per head times the distance either way, added to the scores (Press et al. 2022, arXiv
    2108.12409).
    """

    def __init__(self, num_heads: PositiveInt) -> None:
        super().__init__()
        self.slopes = alibi_slopes(num_heads)

    def bias(self, query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor:
        distance_BTS = (query_positions_BT[:, :, None] - key_positions_BS[:, None, :]).abs().float()
        slopes_H = torch.tensor(self.slopes, device=distance_BTS.device)
        return -slopes_H[:, None, None] * distance_BTS[:, None]


@check_ranges
class RelativeBias(PositionEncoding):
    """A learned bias per head and bucket of distance (T5, Raffel et al. 2020, arXiv 1910.10683, sec. 2.1). Half the
    buckets hold one distance each, the others grow logarithmically up to max_distance, the last takes all beyond. Not
    causal: half of all buckets for keys after the query.
    """

    def __init__(
        self, num_heads: PositiveInt, causal: bool, num_buckets: PositiveInt = 32, max_distance: PositiveInt = 128
    ) -> None:
        super().__init__()
        one_side = num_buckets if causal else num_buckets // 2
        if num_buckets % (2 if causal else 4) or num_buckets < 4:
            raise ValueError(
                f"num_buckets={num_buckets} cannot be halved; accepted: a multiple of {2 if causal else 4}, 4 or more"
            )
        if max_distance <= one_side // 2:
            raise ValueError(
                f"max_distance={max_distance} is within the exact buckets; accepted: more than {one_side // 2}"
            )
        self.causal, self.num_buckets, self.max_distance = causal, num_buckets, max_distance
        self.starts = bucket_starts(one_side, max_distance)
        self.table = nn.Embedding(num_buckets, num_heads)
        nn.init.normal_(self.table.weight, std=0.02)

    def bias(self, query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor:
        buckets_BTS = self.buckets(key_positions_BS[:, None, :] - query_positions_BT[:, :, None])
        biases_BHTS: Tensor = self.table(buckets_BTS).permute(0, 3, 1, 2)
        return biases_BHTS

    def buckets(self, relative: Tensor) -> Tensor:
        """The bucket of each key position minus query position, which is rounded where it is between two."""
        relative = relative.round().long() if relative.is_floating_point() else relative
        starts = torch.tensor(self.starts, device=relative.device)
        if self.causal:
            return torch.bucketize((-relative).clamp(min=0), starts, right=True)
        return torch.bucketize(relative.abs(), starts, right=True) + (relative > 0) * (self.num_buckets // 2)


def stretched(count: int, trained: int, device: torch.device) -> Tensor:
    """Where the middles of `count` equal parts lie in a row of `trained` parts of the same whole length, fp32."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (trained / count) - 0.5


def interpolated(table_DYX: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table (D, rows, columns) at the middles of another grid, bicubic; an axis of the same length stays."""
    across_DYX = _interpolated_rows(table_DYX, grid[1])
    return _interpolated_rows(across_DYX.transpose(1, 2), grid[0]).transpose(1, 2)


def _interpolated_rows(table_DYX: Tensor, length: int) -> Tensor:
    if table_DYX.shape[2] == length:
        return table_DYX
    rows_1N1X = table_DYX.flatten(0, 1).float()[None, :, None]
    # Antialiasing smooths where a grid shrinks, and keeps straight lines straight where it grows. One axis at a time,
    # the last one: torch leaves the axis before one of length 1 as it is.
    there_1N1X = F.interpolate(rows_1N1X, size=(1, length), mode="bicubic", antialias=True)
    return there_1N1X[0, :, 0].view(*table_DYX.shape[:2], length).to(table_DYX.dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """2 ** (-8 i / n), i = 1..n, for n = 2^k heads; else, as in the authors' code, those of the power below and every
    second of the one above.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: num_heads - power]


def bucket_starts(num_buckets: int, max_distance: int) -> list[int]:
    """The first distance of each T5 bucket but the first, one side. Integers instead of logarithms at each forward:
    float logarithms put distances on a bucket's edge on either side.
    """
    exact = num_buckets // 2
    large = num_buckets - exact
    ratio = max_distance / exact
    starts = [math.ceil(exact * ratio ** (i / large) - 1e-9) for i in range(large)]
    return [*range(1, exact), *starts]


def geometric_frequencies(width: int, base: float, device: torch.device, inclusive: bool = False) -> Tensor:
    """base ** (-2 i / width) for each of width / 2 pairs, fp32; inclusive: from 1 down to 1 / base."""
    if inclusive:  # to the bit as in Whisper's code
        pairs_P = torch.arange(width // 2, device=device)
        return torch.exp(-math.log(base) / max(1, width // 2 - 1) * pairs_P)
    return base ** -(torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


def sinusoids(positions_BT: Tensor, frequencies_P: Tensor, interleaved: bool = True) -> Tensor:
    """sin and cos of position * frequency on even and odd dimensions, or on two halves, (B or 1, T, 2 P), fp32."""
    angles_BTP = positions_BT[..., None].float() * frequencies_P
    both = [angles_BTP.sin(), angles_BTP.cos()]
    return torch.stack(both, dim=-1).flatten(-2) if interleaved else torch.cat(both, dim=-1)
