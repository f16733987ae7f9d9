"""Beam search with a sequence-to-sequence model, all sentences of a batch at once.

Legend: N sentences still searched, K open hypotheses of each, R = N K rows, C candidates, M finished ones kept, T
length, S source length, V vocabulary.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from attnlab.generation.sampling import NO_NUMBERS
from attnlab.layers.cache import DecodingState
from attnlab.models.base import Seq2Seq, evaluating
from attnlab.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, check_ranges, must_be

BLOCK = 64  # scores whose maximum is looked at first
NOTHING = -math.inf
Length = TypeVar("Length", float, Tensor)


@dataclass(frozen=True)
class Hypothesis:
    """A target without its end mark; log_probability in nats, the end's too; score: that over the length penalty."""

    tokens: list[int]
    score: float
    log_probability: float


@check_ranges
@dataclass(frozen=True)
class BeamSearch:
    """How hypotheses are searched for; num_beams=1 is greedy.

    length_penalty: alpha of ((5 + |Y|) / 6)^alpha, which divides the log-probability (Wu et al. 2016, arXiv 1609.08144,
    eq. 14); |Y| counts the end mark. max_extra_length: a target has at most so many tokens more than its source
    (Vaswani et al. 2017, section 6.1). num_best: hypotheses given of each sentence. Raises ValueError for a setting
    that finds nothing.
    """

    num_beams: PositiveInt = 5
    length_penalty: NonNegativeFloat = 0.6
    max_extra_length: NonNegativeInt = 50
    num_best: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.num_best > self.num_beams:
            raise ValueError(must_be("num_best", f"at most {self.num_beams}, the number of beams", self.num_best))

    def penalty(self, length: Length) -> Length:
        """What divides the log-probability of a target of this length (a number or a tensor of them)."""
        penalty: Length = ((5 + length) / 6) ** self.length_penalty
        return penalty


@torch.no_grad()
def decode(
    model: Seq2Seq,
    source_BS: Tensor,
    is_source_BS: Tensor | None = None,
    search: BeamSearch | None = None,
    start: int = 1,
    end: int = 2,
    never: Sequence[int] = (0, 1),
    use_cache: bool = True,
    max_length: int | None = None,
    prefix: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """The `num_best` hypotheses of each sentence, the best first.

    A hypothesis ends where `end` is among the `num_beams` best continuations of its sentence; `num_beams` others go on,
    until none can still score better than the last of the `num_best` (greedy: at the first end). At the greatest
    length, which is the source's plus `max_extra_length`, less where the model's positions end before it, every
    hypothesis has to end, at the price of `end`. Equal scores go to the earlier beam and the smaller token. `never`:
    tokens that are not produced; their probability is lost. use_cache=False computes every prefix anew. max_length: of
    a target, its start included, where it has nothing to do with the source's, as in speech. prefix: what every target
    has behind its start, which hypotheses leave out. Raises ValueError for tokens outside the vocabulary, and for
    scores that are NaN or inf.
    """
    search = search or BeamSearch()
    _check_marks(model.vocabulary_size, start, end, never)
    if not len(source_BS):
        return []
    limits_N = _limits(source_BS, is_source_BS, search, model.longest, max_length)
    told = [start, *prefix]
    with evaluating(model):
        maker: Any = model if use_cache else _Recomputing(model)
        state = maker.start(source_BS, is_source_BS, capacity=int(limits_N.max()) + 1)
        beams = _Beams(search, limits_N - len(prefix), end, never)
        for token in told[:-1]:
            maker.step(torch.full((len(source_BS),), token, device=source_BS.device), state)
        tokens_R = torch.full((len(source_BS),), told[-1], device=source_BS.device)
        while len(tokens_R):
            tokens_R, rows_R, sentences_N = beams.extend(maker.step(tokens_R, state))
            if len(tokens_R) and rows_R is not None:
                state.select(rows_R, sentences_N)
    return beams.found


class _Beams:
    """The open hypotheses of the sentences that are still searched, and what is finished of all."""

    def __init__(self, search: BeamSearch, limits_N: Tensor, end: int, never: Sequence[int]) -> None:
        count, longest, device = len(limits_N), int(limits_N.max()) + 1, limits_N.device
        self.search, self.end, self.never = search, end, list(never)
        self.limits_N, self.first_limit, self.length = limits_N, int(limits_N.min()), 0
        self.sentences_N = torch.arange(count, device=device)
        self.log_p_NK = torch.zeros(count, 1, device=device)
        self.tokens_NKT = torch.zeros(count, 1, longest, dtype=torch.long, device=device)
        self.scores_NM = torch.full((count, search.num_best), NOTHING, device=device)
        self.sums_NM = self.scores_NM.clone()
        self.lengths_NM = torch.zeros(count, search.num_best, dtype=torch.long, device=device)
        self.finished_NMT = self.tokens_NKT.repeat(1, search.num_best, 1)
        self.found: list[list[Hypothesis]] = [[] for _ in range(count)]

    def extend(self, logits_RV: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """One more token: those of the rows that go on, which row each continues (None: the same as before), and which
        of the sentences go on.
        """
        beams = self.search.num_beams
        sums_NC, parents_NC, tokens_NC = self._candidates(logits_RV)
        ends_NC = tokens_NC == self.end
        self.length += 1
        ended_NK = (ends_NC & sums_NC.isfinite())[:, :beams]
        if ended_NK.any():
            self._finish(sums_NC[:, :beams].where(ended_NK, NOTHING), parents_NC[:, :beams])
        open_NK = ends_NC.sort(dim=1, stable=True).indices[:, :beams]  # those that do not end, the best first
        self.log_p_NK = sums_NC.where(~ends_NC, NOTHING).gather(1, open_NK)
        parents_NK, next_NK = parents_NC.gather(1, open_NK), tokens_NC.gather(1, open_NK)
        self.tokens_NKT = _rows(self.tokens_NKT, parents_NK)
        self.tokens_NKT[:, :, self.length - 1] = next_NK
        before = len(logits_RV) // len(next_NK)
        rows_NK = torch.arange(len(next_NK), device=next_NK.device)[:, None] * before + parents_NK
        going_N = ~self._done()
        sentences_N = going_N.nonzero()[:, 0]
        if len(sentences_N) < len(going_N):
            self._leave(going_N)
            rows_NK, next_NK = rows_NK[sentences_N], next_NK[sentences_N]
        rows_R = rows_NK.flatten()
        same = len(rows_R) == len(logits_RV) and bool((rows_R == torch.arange(len(rows_R), device=rows_R.device)).all())
        return next_NK.flatten(), None if same else rows_R, sentences_N

    def _candidates(self, logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each sentence: summed log-probabilities, beams, tokens, (N, C) each. Twice as many
        as num_beams: each beam can end once, so at least `num_beams` of them go on.
        """
        count, width = self.log_p_NK.shape
        log_p_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(dim=1)
        log_p_RV[:, self.never] = NOTHING
        if self.length >= self.first_limit:
            last_R1 = (self.limits_N <= self.length).repeat_interleave(width)[:, None]
            others_V = torch.arange(log_p_RV.shape[1], device=log_p_RV.device) != self.end
            log_p_RV.masked_fill_(last_R1 & others_V, NOTHING)
        vocabulary_size = log_p_RV.shape[1]
        sums_NX = log_p_RV.add_(self.log_p_NK.reshape(-1, 1)).view(count, width * vocabulary_size)
        sums_NC, places_NC = top(sums_NX, min(2 * self.search.num_beams, sums_NX.shape[1]))
        if sums_NC.isnan().any():  # one that is NaN or inf makes NaN of its whole row, and NaN sorts as the greatest
            raise ValueError(f"the model's scores of token {self.length + 1} of a target {NO_NUMBERS}")
        return sums_NC, places_NC // vocabulary_size, places_NC % vocabulary_size

    def _finish(self, sums_NK: Tensor, parents_NK: Tensor) -> None:
        """Keeps the best of what is finished and of what ends now; -inf stands for nothing."""
        scores_NX = torch.cat([self.scores_NM, sums_NK / self.search.penalty(self.length)], dim=1)
        tokens_NKT = _rows(self.tokens_NKT, parents_NK)
        tokens_NKT[:, :, self.length - 1] = self.end
        self.scores_NM, kept_NM = _sorted(scores_NX, self.search.num_best)
        self.sums_NM = torch.cat([self.sums_NM, sums_NK], dim=1).gather(1, kept_NM)
        lengths_NK = torch.full_like(parents_NK, self.length)
        self.lengths_NM = torch.cat([self.lengths_NM, lengths_NK], dim=1).gather(1, kept_NM)
        self.finished_NMT = _rows(torch.cat([self.finished_NMT, tokens_NKT], dim=1), kept_NM)

    def _done(self) -> Tensor:
        """Where no open hypothesis can still be among the best, (N). A log-probability only falls, and its penalty is
        greatest at the greatest length: the score of whatever an open hypothesis becomes is at most its log-probability
        now over that penalty.
        """
        reachable_N = self.log_p_NK[:, 0] / self.search.penalty(self.limits_N + 1)
        done_N: Tensor = self.scores_NM[:, -1] >= reachable_N
        return done_N.logical_or(self.scores_NM[:, 0].isfinite()) if self.search.num_beams == 1 else done_N

    def _leave(self, going_N: Tensor) -> None:
        """Takes the sentences that are done out of the batch."""
        done_N = ~going_N
        fields = (self.finished_NMT, self.lengths_NM, self.scores_NM, self.sums_NM)
        columns = [x[done_N].tolist() for x in (self.sentences_N, *fields)]
        for sentence, tokens, lengths, scores, sums in zip(*columns, strict=True):
            found = zip(tokens, lengths, scores, sums, strict=True)
            self.found[sentence] = [Hypothesis(t[: n - 1], score, s) for t, n, score, s in found if n]
        self.sentences_N, self.limits_N = self.sentences_N[going_N], self.limits_N[going_N]
        self.log_p_NK, self.tokens_NKT = self.log_p_NK[going_N], self.tokens_NKT[going_N]
        self.finished_NMT, self.lengths_NM, self.scores_NM, self.sums_NM = (x[going_N] for x in fields)


class _Recomputing:
    """Decoding by the whole forward pass over every prefix."""

    def __init__(self, model: Seq2Seq) -> None:
        self.model = model

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None, capacity: int) -> _Prefixes:
        """The sources, and no prefix yet."""
        return _Prefixes(source_BS, is_source_BS, source_BS.new_empty(len(source_BS), 0, dtype=torch.long))

    def step(self, tokens_B: Tensor, state: _Prefixes) -> Tensor:
        """Appends a token to each prefix and gives the logits (B, V) of the next."""
        state.target_BT = torch.cat([state.target_BT, tokens_B[:, None]], dim=1)
        logits_BTV: Tensor = self.model(state.source_BS, state.target_BT, state.is_source_BS)
        return logits_BTV[:, -1]


@dataclass
class _Prefixes(DecodingState):
    source_BS: Tensor
    is_source_BS: Tensor | None
    target_BT: Tensor


def top(values_NX: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row and their places, the greatest first, of equal ones the first. Only blocks with
    one of the `count` greatest maxima, of equal ones the first, can hold them; so little is sorted.
    """
    rows, size = values_NX.shape
    whole = size // BLOCK * BLOCK
    if size <= 4 * BLOCK or count * BLOCK >= size:
        return _sorted(values_NX, count)
    maxima = [values_NX[:, :whole].view(rows, -1, BLOCK).amax(dim=2)]
    if whole < size:
        maxima.append(values_NX[:, whole:].amax(dim=1, keepdim=True))
    blocks_NC = _sorted(torch.cat(maxima, dim=1), count)[1].sort(dim=1).values
    places_NY = (blocks_NC[:, :, None] * BLOCK + torch.arange(BLOCK, device=values_NX.device)).flatten(1)
    outside_NY = places_NY >= size
    chosen_NY = values_NX.gather(1, places_NY.clamp(max=size - 1)).masked_fill(outside_NY, NOTHING)
    values_NC, found_NC = _sorted(chosen_NY, count)
    return values_NC, places_NY.gather(1, found_NC)


def _sorted(values_NX: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row and their places, the greatest first, of equal ones the first."""
    if count < values_NX.shape[1]:
        # A tenth of the time of sorting; which ones it takes is settled where the next one is not as great as the last.
        best_NC, places_NC = values_NX.topk(count + 1, dim=1)
        if not (best_NC[:, count - 1] == best_NC[:, count]).any():
            places_NC = places_NC[:, :count].sort(dim=1).values
            best_NC, order_NC = values_NX.gather(1, places_NC).sort(dim=1, descending=True, stable=True)
            return best_NC, places_NC.gather(1, order_NC)
    values_NX, places_NX = values_NX.sort(dim=1, descending=True, stable=True)
    return values_NX[:, :count], places_NX[:, :count]


def _rows(tokens_NKT: Tensor, chosen_NC: Tensor) -> Tensor:
    return tokens_NKT.gather(1, chosen_NC[:, :, None].expand(-1, -1, tokens_NKT.shape[2]))


def _limits(
    source_BS: Tensor, is_source_BS: Tensor | None, search: BeamSearch, longest: int | None, max_length: int | None
) -> Tensor:
    """How many tokens the target of each sentence may have, before its end mark."""
    if max_length is not None:
        limits_N = torch.full((len(source_BS),), max_length - 1, device=source_BS.device)
    elif is_source_BS is None:
        limits_N = torch.full((len(source_BS),), source_BS.shape[1] + search.max_extra_length, device=source_BS.device)
    else:
        limits_N = is_source_BS.sum(dim=1) + search.max_extra_length
    return limits_N if longest is None else limits_N.clamp(max=longest - 1)


def _check_marks(vocabulary_size: int, start: int, end: int, never: Sequence[int]) -> None:
    outside = [token for token in (start, end, *never) if not 0 <= token < vocabulary_size]
    if outside:
        raise ValueError(f"token {outside[0]} is outside the vocabulary; accepted: 0 to {vocabulary_size - 1}")
    if end in never:
        raise ValueError(f"never={list(never)} holds the end mark {end}, without which no target ends; leave it out")
