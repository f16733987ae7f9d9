"""Mixtures of experts: feed-forward layers of which a router chooses some for each token.

Legend: B batch, T length, N tokens, D model width, E routed experts, K experts of a token, P pairs of a token and one
of its experts.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.added import Addition, collected
from attnlab.layers.pointwise import GELU, PositionWise, Sides
from attnlab.layers.scope import Scope
from attnlab.parts import build_part
from attnlab.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability, check_ranges


class Balance(nn.Module):
    """What keeps the experts equally busy: here nothing does."""

    def scores(self, gates_NE: Tensor) -> Tensor:
        """What a token's experts are chosen by; their outputs are weighed by the gates whatever it is."""
        return gates_NE

    def loss(self, gates_BTE: Tensor, chosen_BTE: Tensor, is_real_BT: Tensor) -> Tensor | None:
        """What is added to the loss of each row, (B)."""
        return None

    def after_step(self, counts_E: Tensor) -> None:
        """Is told how many tokens of a step each expert had."""
        return


class BalanceLoss(Balance):
    """A loss of E sum_i f_i P_i, 1 where all are equally busy, times `coefficient`: f_i is the share of choices that
    fell on expert i, P_i the mean of its gate where a token's gates add up to 1 (Fedus et al. 2021, arXiv 2101.03961,
    eq. 4 to 6). Within each sequence, the group of GShard (Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1), as
    DeepSeek-V3 has it (arXiv 2412.19437, eq. 17 to 20), so that how sequences are split over batches and ranks changes
    nothing; of a single token there is none.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def loss(self, gates_BTE: Tensor, chosen_BTE: Tensor, is_real_BT: Tensor) -> Tensor:
        num_real_B1 = is_real_BT.sum(dim=1, keepdim=True).clamp(min=1)
        real_BT1 = is_real_BT[:, :, None]
        chosen_BE = (chosen_BTE * real_BT1).sum(dim=1)
        shares_BE = chosen_BE / chosen_BE.sum(dim=1, keepdim=True).clamp(min=1)
        probabilities_BTE = gates_BTE / gates_BTE.sum(dim=-1, keepdim=True)
        means_BE = (probabilities_BTE * real_BT1).sum(dim=1) / num_real_B1
        loss_B = gates_BTE.shape[-1] * (shares_BE * means_BE).sum(dim=1)
        return self.coefficient * loss_B * (num_real_B1[:, 0] > 1)


class BalanceBias(Balance):
    """No loss: a bias on the scores by which experts are chosen, which each step raises by `rate` for those that had
    fewer tokens than the mean and lowers by as much for those that had more (Wang et al. 2024, arXiv 2408.15664,
    algorithm 1).
    """

    bias_E: Tensor

    def __init__(self, num_experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("bias_E", torch.zeros(num_experts))

    def scores(self, gates_NE: Tensor) -> Tensor:
        return gates_NE + self.bias_E

    @torch.no_grad()
    def after_step(self, counts_E: Tensor) -> None:
        self.bias_E += self.rate * (counts_E.double().mean() - counts_E).sign().to(self.bias_E)


@check_ranges
class MixtureOfExperts(PositionWise):
    """Of num_experts feed-forward layers the top_k that a linear router has the largest gates for, weighed by these,
    and shared_experts that every token has beside them (Shazeer et al. 2017, arXiv 1701.06538; Mixtral, Jiang et al.
    2024, arXiv 2401.04088, section 2.1; shared ones: DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066, section 3.2). No
    token is dropped.

    expert: any other feed-forward. d_expert: d_ff of each expert, None: the layer's. gate: softmax over all experts, or
    sigmoid of each (DeepSeek-V3, eq. 15). normalize: the top_k weights add up to 1. balance: "loss" (BalanceLoss, with
    `balance_coefficient`), "bias" (BalanceBias, with `bias_update_rate`) or "none". z_coefficient: of the mean squared
    logsumexp of the router's logits (ST-MoE, Zoph et al. 2022, arXiv 2202.08906, eq. 5), 0: none. The router computes
    in fp32 (Fedus et al. 2021, section 2.4). Raises ValueError for more experts of a token than there are.
    """

    sides: ClassVar[Mapping[str, Sides]] = {"router": "in"}

    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        expert: Callable[..., PositionWise] = GELU,
        num_experts: PositiveInt = 8,
        top_k: PositiveInt = 2,
        shared_experts: NonNegativeInt = 0,
        d_expert: PositiveInt | None = None,
        gate: Literal["softmax", "sigmoid"] = "softmax",
        normalize: bool = True,
        balance: Literal["loss", "bias", "none"] = "loss",
        balance_coefficient: PositiveFloat = 0.01,
        bias_update_rate: PositiveFloat = 0.001,
        z_coefficient: NonNegativeFloat = 0.0,
        bias: bool = False,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        check_choice(num_experts, top_k, normalize)
        dims = {"d_model": d_model, "d_ff": d_expert or d_ff, "bias": bias, "dropout": dropout}
        self.top_k, self.normalize, self.z_coefficient = top_k, normalize, z_coefficient
        gates: dict[str, Callable[[Tensor], Tensor]] = {"softmax": partial(F.softmax, dim=-1), "sigmoid": F.sigmoid}
        self.gate = gates[gate]
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ModuleList(build_part(expert, **dims) for _ in range(num_experts))
        self.shared = nn.ModuleList(build_part(expert, **dims) for _ in range(shared_experts))
        balances: dict[str, Callable[[], Balance]] = {
            "loss": partial(BalanceLoss, balance_coefficient),
            "bias": partial(BalanceBias, num_experts, bias_update_rate),
            "none": Balance,
        }
        self.balance = balances[balance]()

    def within(self, scope: Scope) -> Callable[[Tensor], Tensor]:
        return partial(self, scope=scope)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how many tokens an expert has differs by the step
    def forward(self, x_BTD: Tensor, scope: Scope | None = None) -> Tensor:
        """scope: says which tokens are padding, which count for no balance; None: none is."""
        x_ND = x_BTD.flatten(0, -2)
        with torch.autocast(x_BTD.device.type, enabled=False):
            dtype = torch.promote_types(x_ND.dtype, torch.float32)
            logits_NE = F.linear(x_ND.to(dtype), self.router.weight.to(dtype))
            gates_NE = self.gate(logits_NE)
            chosen_NK = self.balance.scores(gates_NE.detach()).topk(self.top_k, dim=-1).indices
            weights_NK = gates_NE.gather(1, chosen_NK)
            if self.normalize:
                weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        if (added := collected()) is not None:
            by_place = (x.unflatten(0, x_BTD.shape[:-1]) for x in (logits_NE, gates_NE, chosen_NK))
            added.additions.append(Routing(self, scope, *by_place))
        out_ND = self.mix(x_ND, chosen_NK, weights_NK)
        for expert in self.shared:
            out_ND = out_ND + expert(x_ND)
        return out_ND.view_as(x_BTD)

    def mix(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of what each token's experts say; an expert sees all of its tokens at once. One without any
        is called, too: all ranks have the same parameters in their graphs.
        """
        experts_P = chosen_NK.flatten()
        order_P = experts_P.argsort(stable=True)
        counts = torch.bincount(experts_P, minlength=len(self.experts)).tolist()
        parts = x_ND[order_P // self.top_k].split(counts)
        # One product of all experts (torch's grouped_mm, a padded bmm) is 0.9 times as fast on a CPU for 8 experts of
        # 512 tokens each and 1.5 times for 64 of 4, forward and backward; it would serve some classes of experts alone.
        said_PD = torch.cat([expert(part_ND) for expert, part_ND in zip(self.experts, parts, strict=True)])
        # Each token's own again, side by side: a sum in one order, on every device.
        said_NKD = said_PD[order_P.argsort()].unflatten(0, chosen_NK.shape)
        mixed_ND: Tensor = (weights_NK.to(said_NKD.dtype)[:, :, None] * said_NKD).sum(dim=1)
        return mixed_ND

    @property
    def idle_parameters(self) -> int:
        """How many parameters a token does not meet: those of the experts that are not its own."""
        of_one = sum(parameter.numel() for parameter in self.experts[0].parameters())
        return (len(self.experts) - self.top_k) * of_one

    def after_step(self, counts_E: Tensor) -> dict[str, Tensor]:
        """Is told how many tokens of a step each expert had; expert_load is the most over the mean, 1 to E / K."""
        self.balance.after_step(counts_E)
        return {"expert_load": counts_E.max() / counts_E.double().mean()}


def check_choice(num_experts: int, top_k: int, normalize: bool) -> None:
    """Raises ValueError for a number of experts of a token that cannot be."""
    if top_k > num_experts:
        raise ValueError(f"feed_forward.top_k must be at most num_experts={num_experts}, got {top_k}")
    if top_k == 1 and normalize and num_experts > 1:
        raise ValueError(
            "feed_forward.normalize: the weight of a single expert would always be 1, and the router would not learn "
            "by it; set feed_forward.normalize=false (Switch) or feed_forward.top_k=2 or more"
        )


@dataclass
class Routing(Addition):
    """Of one forward pass of a mixture of experts, the router's logits, gates and choices."""

    part: MixtureOfExperts
    scope: Scope | None
    logits_BTE: Tensor
    gates_BTE: Tensor
    chosen_BTK: Tensor

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        is_real_BT, found = self.is_real(batch), {}
        balance_B = self.part.balance.loss(self.gates_BTE, self.chosen_BTE, is_real_BT)
        if balance_B is not None:
            found["balance_loss"] = balance_B
        if self.part.z_coefficient:
            squares_BT = self.logits_BTE.logsumexp(dim=-1).square() * is_real_BT
            found["router_z_loss"] = self.part.z_coefficient * squares_BT.sum(1) / is_real_BT.sum(1).clamp(min=1)
        return found

    def counts(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (self.chosen_BTE * self.is_real(batch)[:, :, None]).sum(dim=(0, 1)).detach()

    def is_real(self, batch: Mapping[str, Tensor]) -> Tensor:
        """False at padding, (B, T). No decoder is told of that of targets, which are the last of a causal stream."""
        is_real_BT = torch.ones_like(self.logits_BTE[:, :, 0], dtype=torch.bool)
        if self.scope is None:
            return is_real_BT
        if self.scope.is_token_BT is not None:
            is_real_BT = is_real_BT & self.scope.is_token_BT
        is_target_BT = batch.get("is_target")
        if is_target_BT is not None and (self.scope.causal or self.scope.prefix_B1 is not None):
            is_real_BT[:, -is_target_BT.shape[1] :] &= is_target_BT
        return is_real_BT

    @property
    def chosen_BTE(self) -> Tensor:
        """1 for a token's experts, 0 for the others."""
        return F.one_hot(self.chosen_BTK, self.logits_BTE.shape[-1]).sum(dim=-2)
