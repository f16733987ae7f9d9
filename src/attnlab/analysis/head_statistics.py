"""What each head does, in numbers, beside what uniform attention would give. Legend: T queries, S keys, H heads.

A statistic is a mean over queries. Most are the weight that a query gives to certain keys; `chance` is what it would give them if it
attended to all keys alike that it may attend to.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from attnlab.analysis.attended import Attended
from attnlab.analysis.attention_maps import CROSS, LayerMap
from attnlab.analysis.token_axis import Axis

DIAGONAL_WIDTH = 0.2  # g of Tachibana et al. 2018


class Head(NamedTuple):
    """One head of a model; layer and head count from 0."""

    kind: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}.{self.head}"


@dataclass(frozen=True)
class Score:
    """A statistic of a head, what uniform attention would give, and over how many queries it is a mean."""

    value: float
    chance: float
    queries: int


Scores = dict[Head, dict[str, Score]]


class _Measured(NamedTuple):
    """A statistic of every query: values (H, T), uniform attention's (T,), and which queries have it (T,)."""

    values_HT: np.ndarray
    chance_T: np.ndarray
    has_T: np.ndarray


def head_scores(examples: Iterable[Attended]) -> Scores:
    """
    The statistics of every head over examples, by name; rollouts have none. See `mass_targets` and `shape_measures`.

    A statistic that no query has (no token came twice, say) is missing.
    """
    sums: dict[Head, dict[str, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(3)))
    for example in examples:
        for one in example.maps:
            if one.kind.endswith("rollout"):
                continue
            for name, measured in measure(one, *example.axes[one.kind]).items():
                count, chance = measured.has_T.sum(), measured.chance_T[measured.has_T].sum()
                for head, values_T in enumerate(measured.values_HT):
                    total = values_T[measured.has_T].sum()
                    sums[Head(one.kind, one.layer, head)][name] += (total, chance, count)
    return {
        head: {
            name: Score(float(total / n), float(chance / n), int(n)) for name, (total, chance, n) in named.items() if n
        }
        for head, named in sums.items()
    }


def measure(one: LayerMap, queries: Axis, keys: Axis) -> dict[str, _Measured]:
    """Every statistic of one map, query by query."""
    weights_HTS, allowed_TS = one.weights_HTS.double().numpy(), one.allowed_TS.numpy()
    counts_T = allowed_TS.sum(axis=1)
    found = shape_measures(weights_HTS, allowed_TS, one.kind == CROSS)
    if keys.grid is not None:
        found["distance"] = _distance_of_patches(weights_HTS, keys)
    for name, wanted_TS in mass_targets(one.kind, allowed_TS, queries, keys).items():
        mass_HT = (weights_HTS * wanted_TS).sum(axis=2)
        wanted_T = (wanted_TS & allowed_TS).sum(axis=1)
        # A query that may attend to one key alone attends to it, whatever the head.
        has_T = (wanted_T > 0) & (counts_T > 1)
        found[name] = _Measured(mass_HT, wanted_T / np.maximum(counts_T, 1), has_T)
    return found


def mass_targets(kind: str, allowed_TS: np.ndarray, queries: Axis, keys: Axis) -> dict[str, np.ndarray]:
    """
    Which keys (T, S) each of the weights is of:

    previous, next: the token before and after the query (positional heads: Voita et al. 2019, arXiv 1905.09418, section 5.1; Clark et al. 2019, arXiv
    1906.04341, section 3.1). first: the first token, an attention sink (Xiao et al. 2024, arXiv 2309.17453, section 3.1). current: the query itself.
    same: other occurrences of the query's token, earlier ones where the map is causal (duplicate-token heads: Wang et al. 2023, arXiv 2211.00593,
    section 3). induction: tokens that follow an earlier occurrence of the query's token and stand before the query (prefix matching: Olsson
    et al. 2022, arXiv 2209.11895, "Argument 2"). marks: tokens that are no text, such as start, end and separator (Clark et al. 2019, section 3.2).
    In cross-attention first, last and marks alone; in images first, marks and current: patches stand in no row.
    """
    offsets_TS = np.arange(len(keys))[None] - np.arange(len(queries))[:, None]
    everywhere_TS = np.ones_like(allowed_TS)
    first_TS = everywhere_TS & (np.arange(len(keys)) == 0)
    found = {"first": first_TS, "marks": everywhere_TS & keys.is_mark_N}
    if kind == CROSS:
        return found | {"last": everywhere_TS & (np.arange(len(keys)) == len(keys) - 1)}
    if keys.grid is not None:
        return found | {"current": offsets_TS == 0}
    same_TS = queries.numbers_N[:, None] == keys.numbers_N[None]
    follows_TS = np.zeros_like(same_TS)
    follows_TS[:, 1:] = same_TS[:, :-1]
    return found | {
        "previous": offsets_TS == -1,
        "next": offsets_TS == 1,
        "current": offsets_TS == 0,
        "same": same_TS & (offsets_TS != 0),
        "induction": follows_TS & (offsets_TS < 0),
    }


def shape_measures(weights_HTS: np.ndarray, allowed_TS: np.ndarray, crosses: bool) -> dict[str, _Measured]:
    """
    What does not depend on the tokens:

    entropy: of a query's weights, in nats. relative_entropy: over its maximum, the logarithm of the number of keys that the query may attend to.
    distance (self-attention): the mean number of tokens to the keys; in images, from patches to patches in widths of a patch (Dosovitskiy et
    al. 2021, arXiv 2010.11929, section D.8). In cross-attention diagonal: the weight on keys, each counted by
    exp(-(s/(S-1) - t/(T-1))^2 / 2g^2), g = 0.2, which is 1 on the diagonal (guided attention: Tachibana et al. 2018, arXiv 1710.08969, section
    4.1); monotonic: Pearson's correlation of a query's place with the mean place of its keys, 1 where the alignment moves forward at one
    speed, 0 for uniform attention.
    """
    num_queries, num_keys = allowed_TS.shape
    counts_T = allowed_TS.sum(axis=1)
    all_T = counts_T > 0
    logs = np.log(np.where(weights_HTS > 0, weights_HTS, 1.0))
    entropy_HT = -(weights_HTS * logs).sum(axis=2)
    most_T = np.log(np.maximum(counts_T, 1))
    found = {
        "entropy": _Measured(entropy_HT, most_T, all_T),
        "relative_entropy": _Measured(entropy_HT / np.maximum(most_T, 1e-12), np.ones(num_queries), counts_T > 1),
    }
    if not crosses:
        distance_TS = np.abs(np.arange(num_keys)[None] - np.arange(num_queries)[:, None])
        return found | {"distance": _weighted(weights_HTS, distance_TS, allowed_TS, counts_T > 1)}
    if num_queries > 1 and num_keys > 1:
        apart_TS = np.linspace(0, 1, num_keys)[None] - np.linspace(0, 1, num_queries)[:, None]
        near_TS = np.exp(-(apart_TS**2) / (2 * DIAGONAL_WIDTH**2))
        found["diagonal"] = _weighted(weights_HTS, near_TS, allowed_TS, all_T)
        found["monotonic"] = _monotonic(weights_HTS)
    return found


def _weighted(weights_HTS: np.ndarray, values_TS: np.ndarray, allowed_TS: np.ndarray, has_T: np.ndarray) -> _Measured:
    """The mean of a value of the keys, by the weights and by uniform ones."""
    chance_T = (values_TS * allowed_TS).sum(axis=1) / np.maximum(allowed_TS.sum(axis=1), 1)
    return _Measured((weights_HTS * values_TS).sum(axis=2), chance_T, has_T)


def _distance_of_patches(weights_HTS: np.ndarray, axis: Axis) -> _Measured:
    """The mean distance between middles of patches, in patches, by the weights that patches give to patches; every patch sees all."""
    assert axis.grid is not None
    rows, columns = axis.grid
    places_N2 = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    apart_NN = np.sqrt(((places_N2[:, None] - places_N2[None]) ** 2).sum(axis=2))
    patches_HNN = weights_HTS[:, axis.before :, axis.before :]
    total_HN = np.maximum(patches_HNN.sum(axis=2), 1e-12)
    values_HT, chance_T = np.zeros(weights_HTS.shape[:2]), np.zeros(weights_HTS.shape[1])
    values_HT[:, axis.before :] = (patches_HNN * apart_NN).sum(axis=2) / total_HN
    chance_T[axis.before :] = apart_NN.mean(axis=1)
    return _Measured(values_HT, chance_T, np.arange(len(chance_T)) >= axis.before)


def _monotonic(weights_HTS: np.ndarray) -> _Measured:
    """One value a head, the same for every query, so that a mean over examples weighs them by their length."""
    num_queries = weights_HTS.shape[1]
    places_HT = weights_HTS @ np.arange(weights_HTS.shape[2])
    centred_HT = places_HT - places_HT.mean(axis=1, keepdims=True)
    time_T = np.arange(num_queries) - (num_queries - 1) / 2
    scale_H = np.sqrt((centred_HT**2).sum(axis=1) * (time_T**2).sum())
    # Attention that does not move at all, but for rounding, follows nothing.
    moves_H = scale_H > 1e-6 * num_queries
    values_H = np.where(moves_H, centred_HT @ time_T / np.where(moves_H, scale_H, 1.0), 0.0)
    values_HT = np.repeat(values_H[:, None], num_queries, axis=1)
    return _Measured(values_HT, np.zeros(num_queries), np.ones(num_queries, dtype=bool))


def merged(scores: Scores, others: Mapping[Head, dict[str, Score]]) -> Scores:
    """The scores, with further ones by head."""
    return {head: {**named, **others.get(head, {})} for head, named in scores.items()}
