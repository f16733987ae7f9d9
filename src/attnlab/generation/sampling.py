"""Sampling with a key-value cache. Legend: B batch, T length, V vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from attnlab.models.base import LanguageModel, evaluating
from attnlab.ranges import Interval, NonNegativeFloat, PositiveInt, Probability, check_ranges, must_be

NO_NUMBERS = (
    "are no numbers (NaN or inf), as after a training that diverged; take earlier weights (--checkpoint best), "
    "or train with a smaller optimizer.lr"
)


@check_ranges
@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from the logits; each filter acts on what the one before it left, in this order.

    temperature: divides the logits; 0 takes the most probable token. top_k: keeps the k most probable (Fan et al.
    2018). top_p: keeps the fewest that hold at least p of the probability (Holtzman et al. 2020). min_p: keeps those at
    least min_p times as probable as the best (Nguyen et al. 2024, arXiv 2407.01082). Raises ValueError for a setting
    that leaves no token.
    """

    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None
    min_p: Probability | None = None

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """What tokens are drawn from, (B, V), in float64 on the CPU. Raises ValueError for NaN and inf."""
        logits_BV = logits_BV.double().cpu()
        if logits_BV.isnan().any() or logits_BV.isposinf().any():
            raise ValueError(f"the model's scores of the next token {NO_NUMBERS}")
        if self.temperature == 0:
            return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(dim=1, keepdim=True), 1.0)
        # A stable order, so that of equals the first stays, whatever the batch.
        sorted_BV, order_BV = (logits_BV / self.temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
        if self.top_k is not None:
            sorted_BV[:, self.top_k :] = 0.0
        if self.top_p is not None:
            sorted_BV = sorted_BV / sorted_BV.sum(dim=1, keepdim=True)
            sorted_BV = sorted_BV.masked_fill(sorted_BV.cumsum(dim=1) - sorted_BV >= self.top_p, 0.0)
        if self.min_p is not None:
            sorted_BV = sorted_BV.masked_fill(sorted_BV < self.min_p * sorted_BV[:, :1], 0.0)
        kept_BV = torch.zeros_like(logits_BV).scatter_(1, order_BV, sorted_BV)
        return kept_BV / kept_BV.sum(dim=1, keepdim=True)

    def __call__(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """One token a row, (B), on the CPU; row i draws one number from generators[i] (none where greedy)."""
        probabilities_BV = self.probabilities(logits_BV)
        if self.temperature == 0:
            return probabilities_BV.argmax(dim=1)
        drawn_B = torch.cat([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
        reached_BV = probabilities_BV.cumsum(dim=1)
        # The first token whose cumulative probability exceeds the draw; scaled, for sums that rounding leaves below 1.
        return torch.searchsorted(reached_BV, (drawn_B * reached_BV[:, -1])[:, None], right=True)[:, 0]


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    ends: Collection[int] = (),
    use_cache: bool = True,
) -> list[list[int]]:
    """Continues each prompt by up to `max_new_tokens` tokens; gives the new ones, ending with one of `ends` where it
    came.

    Prompts of unequal length are padded on the left and row i draws with the seed `seed + i`, so each gets what it
    would get alone with that seed. Raises ValueError, before the first step, for an empty prompt, a token outside the
    vocabulary, or more positions than the model's encoding can serve.
    """
    _check(model, prompts, max_new_tokens)
    if not prompts:
        return []
    sampler, device = sampler or Sampler(), next(model.parameters()).device
    tokens_BT, is_token_BT = pad_left(prompts)
    cache = model.new_cache(tokens_BT.shape[1] + max_new_tokens) if use_cache else None
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    generated: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # of the prompts, those that are still going on
    with evaluating(model):
        for _ in range(max_new_tokens):
            mask_BT = None if is_token_BT.all() else is_token_BT.to(device)
            logits_BTV = model(tokens_BT.to(device), is_token_BT=mask_BT, cache=cache)
            next_B = sampler(logits_BTV[:, -1], [generators[row] for row in rows])
            for row, token in zip(rows, next_B.tolist(), strict=True):
                generated[row].append(token)
            going_B = ~torch.isin(next_B, torch.tensor(sorted(ends), dtype=next_B.dtype))
            if not going_B.any():
                break
            if not going_B.all():
                rows = [row for row, going in zip(rows, going_B.tolist(), strict=True) if going]
                tokens_BT, is_token_BT, next_B = tokens_BT[going_B], is_token_BT[going_B], next_B[going_B]
                if cache is not None:
                    cache.select(going_B.to(device))
            new_BT, real_BT = next_B[:, None], torch.ones(len(rows), 1, dtype=torch.bool)
            if cache is not None:
                tokens_BT, is_token_BT = new_BT, real_BT
            else:
                tokens_BT, is_token_BT = torch.cat([tokens_BT, new_BT], dim=1), torch.cat([is_token_BT, real_BT], dim=1)
    return generated


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The prompts as tokens (B, T), short ones padded on the left, and where they are real (B, T)."""
    longest = max(map(len, prompts))
    tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    is_token_BT = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        is_token_BT[row, longest - len(prompt) :] = True
    return tokens_BT, is_token_BT


def _check(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 0:
        raise ValueError(must_be("max_new_tokens", "at least 0", max_new_tokens))
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty; accepted: prompts of one token or more")
        outside = [token for token in prompt if not 0 <= token < model.vocabulary_size]
        if outside:
            raise ValueError(f"prompt {row} holds token {outside[0]}; accepted: 0 to {model.vocabulary_size - 1}")
        needed = len(prompt) + max_new_tokens - 1  # the last new token is not read again
        if model.longest is not None and needed > model.longest:
            raise ValueError(
                f"prompt {row} of {len(prompt)} tokens and {max_new_tokens} new ones need {needed} positions; "
                f"the model's position encoding has {model.longest}"
            )
