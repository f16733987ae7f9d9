"""Residuals whose stream is more than one state of each token.

Legend: B batch, T length, D model width, N streams, C = N + 2 connections of a stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.pointwise import Sides, without_autocast
from attnlab.layers.residuals import PreNorm, Residual, ResidualFields, Stream, Sublayer
from attnlab.parts import Choices, unsharded
from attnlab.ranges import Interval, PositiveInt, check_ranges


@check_ranges
class EmbeddingResidual(PreNorm):
    """Pre-LN on a x + b x0, x0 the embedded input and a, b learned for each layer from 1 and `start` on (modded-nanogpt
    2024; nanochat 2025).
    """

    def __init__(
        self, d_model: PositiveInt, start: Annotated[float, Interval()] = 0.0, **fields: Unpack[ResidualFields]
    ) -> None:
        super().__init__(d_model, **fields)
        self.of_stream, self.of_embedding = nn.Parameter(torch.ones(())), nn.Parameter(torch.tensor(float(start)))

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from unsharded(choices, "residual")

    def forward(self, stream: Stream, *sublayers: Sublayer) -> Stream:
        x_BTD, embedded_BTD = stream
        return super().forward(self.of_stream * x_BTD + self.of_embedding * embedded_BTD, *sublayers), embedded_BTD

    def enter(self, x_BTD: Tensor) -> Stream:
        return x_BTD, x_BTD

    def leave(self, stream: Stream) -> Tensor:
        out_BTD: Tensor = stream[0]
        return out_BTD


@check_ranges
class StaticHyperConnections(Residual):
    """N streams, all the embedded input at first. A sublayer reads their sum weighted by A_m, behind a norm; they are
    mixed by A_r, and its output is added to each by a weight in B: H becomes A_r^T H + B^T f(norm(A_m^T H)). Their sum
    leaves the last layer, before a norm. Weights are learned for each sublayer; at first sublayer k reads stream k mod
    N, and the function is Pre-LN's (SHC; Zhu et al. 2024, arXiv 2409.19606, sections 2 and 3, equation 14; without the
    scaling of output weights by the root of N).
    """

    final_norm = True

    def __init__(self, d_model: PositiveInt, num_streams: PositiveInt = 4, **fields: Unpack[ResidualFields]) -> None:
        super().__init__(d_model, **fields)
        self.num_streams, count = num_streams, len(self.norms)
        # Flat, as what has one dimension has no weight decay, as in the paper.
        self.weights = nn.ParameterList(
            _start(num_streams, self.layer_index * count + index).flatten() for index in range(count)
        )

    def enter(self, x_BTD: Tensor) -> Stream:
        return x_BTD[:, :, None].expand(-1, -1, self.num_streams, -1)

    def leave(self, stream: Stream) -> Tensor:
        streams_BTND: Tensor = stream
        return streams_BTND.sum(dim=2)

    def kind_of_stream(self) -> Hashable:
        return StaticHyperConnections, self.num_streams

    def connections(self, streams_BTND: Tensor, index: int) -> Tensor:
        """Of each stream the weights A_m, A_r and B, (B, T, N, C) or (N, C)."""
        weights_NC: Tensor = self.weights[index].view(self.num_streams, -1)
        return weights_NC

    def join(self, streams_BTND: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        # Not in half precision, in which autocast would leave the streams.
        with without_autocast(streams_BTND):
            streams_BTND = streams_BTND.to(torch.promote_types(streams_BTND.dtype, self.weights[index].dtype))
            weights_BTNC = self.connections(streams_BTND, index).to(streams_BTND.dtype)
            mixed_BTXD = weights_BTNC[..., :-1].mT @ streams_BTND  # first what is read, then the streams
        out_BTD = self.dropout(sublayer(self.norms[index](mixed_BTXD[:, :, 0])))
        joined_BTND: Tensor = mixed_BTXD[:, :, 1:] + weights_BTNC[..., -1:] * out_BTD[:, :, None]
        return joined_BTND


@check_ranges
class HyperConnections(StaticHyperConnections):
    """Static hyper-connections with weights that also depend on the streams: s tanh(norm(h) W) is added to those of
    stream h, W from 0 on, a norm without a gain, and s from 0.01 on, one for A_m and A_r and one for B (DHC; Zhu et al.
    2024, arXiv 2409.19606, section 2.3 and algorithm 2).
    """

    sides: ClassVar[Mapping[str, Sides]] = {"dynamic": "in"}

    def __init__(self, d_model: PositiveInt, num_streams: PositiveInt = 4, **fields: Unpack[ResidualFields]) -> None:
        super().__init__(d_model, num_streams, **fields)
        self.dynamic = nn.ParameterList(torch.zeros(d_model, num_streams + 2) for _ in self.norms)
        self.mixing_scales = nn.ParameterList(torch.tensor(0.01) for _ in self.norms)
        self.output_scales = nn.ParameterList(torch.tensor(0.01) for _ in self.norms)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from unsharded(choices, "residual")

    def connections(self, streams_BTND: Tensor, index: int) -> Tensor:
        normed_BTND = F.layer_norm(streams_BTND, streams_BTND.shape[-1:])
        dynamic_DC = self.dynamic[index].to(normed_BTND.dtype)
        mixing_scale, output_scale = self.mixing_scales[index], self.output_scales[index]
        scale_C = torch.cat([mixing_scale.expand(self.num_streams + 1), output_scale[None]])
        return super().connections(streams_BTND, index) + scale_C * torch.tanh(normed_BTND @ dynamic_DC)


def _start(num_streams: int, sublayer: int) -> Tensor:
    """(N, C): A_m reads one stream, A_r leaves them as they are, B adds to all."""
    identity = torch.eye(num_streams)
    return torch.cat([identity[sublayer % num_streams][:, None], identity, torch.ones(num_streams, 1)], dim=1)
