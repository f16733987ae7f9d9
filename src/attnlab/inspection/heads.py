"""What each head does: statistics beside those of uniform attention, a word where they are clear, the table of all.

A statistic is a mean over queries, mostly of the weight given to certain keys; `chance` is its value if a query
attended alike to all keys that it may attend to. Legend: B sequences, T queries, S keys, H heads, N tokens.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from attnlab.data.special_tokens import SpecialTokens
from attnlab.data.tokenizers import Tokenizer
from attnlab.inspection.ablation import Effect
from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import CROSS, SELF, Axis, Head, LayerMap, layer_maps
from attnlab.models.base import LanguageModel

DIAGONAL_WIDTH = 0.2  # g of Tachibana et al. 2018
SEQUENCES = 8
LONGEST = 50  # random tokens, before they are repeated
SHORTEST = 4
BAR = 0.5  # how far from uniform attention (0) to all of the weight (1) a role has to be
EVEN = 0.9  # of the greatest entropy: attention to everything alike
EVENLY = "even"
FEWEST = 8  # queries that a role is read from
ROLES = {
    "repeats": "induction",
    "induction": "induction",
    "previous": "previous token",
    "next": "next token",
    "same": "same token",
    "current": "current token",
    "first": "first token",
    "last": "last token",
    "marks": "marks",
    "diagonal": "diagonal",
}
RULE = (
    f"A role is given where a head's weight lies at least {BAR:.0%} of the way from uniform attention to all of the "
    f"weight, over at least {FEWEST} queries; of several the clearest, but induction on repeated random tokens before "
    "all others, since heads that do it rest elsewhere where nothing is repeated. Even: no role, and at least "
    f"{EVEN:.0%} of the greatest entropy."
)


@dataclass(frozen=True)
class Score:
    """A statistic of a head, what uniform attention would give, and over how many queries it is a mean."""

    value: float
    chance: float
    queries: int


Scores = dict[Head, dict[str, Score]]


class _Measured(NamedTuple):
    """A statistic of every query."""

    values_HT: np.ndarray
    chance_T: np.ndarray  # of uniform attention
    has_T: np.ndarray  # which queries have it


def head_scores(examples: Iterable[Attended]) -> Scores:
    """The statistics of every head over examples, by name; rollouts have none. See `mass_targets` and `shape_measures`.
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
    return {head: {name: _score(*three) for name, three in named.items() if three[2]} for head, named in sums.items()}


def _score(total: float, chance: float, count: float) -> Score:
    return Score(float(total / count), float(chance / count), int(count))


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
    """Which keys (T, S) each of the weights is of.

    previous, next: the token before and after the query (positional heads: Voita et al. 2019, arXiv 1905.09418, section
    5.1). first: an attention sink (Xiao et al. 2024, arXiv 2309.17453, section 3.1). current: the query itself. same:
    other occurrences of its token, earlier ones where the map is causal (duplicate-token heads: Wang et al. 2023, arXiv
    2211.00593, section 3). induction: tokens that follow an earlier occurrence of the query's token and stand before
    the query (prefix matching: Olsson et al. 2022, arXiv 2209.11895, "Argument 2"). marks: start, end, separator (Clark
    et al. 2019, arXiv 1906.04341, section 3.2). In cross-attention first, last and marks alone; in images, where
    patches stand in no row, first, marks and current.
    """
    offsets_TS = np.arange(len(keys))[None] - np.arange(len(queries))[:, None]
    everywhere_TS = np.ones_like(allowed_TS)
    first_TS = everywhere_TS & (np.arange(len(keys)) == 0)
    found = {"first": first_TS, "marks": everywhere_TS & keys.is_mark_N}
    if kind == CROSS:
        return found | {"last": everywhere_TS & (np.arange(len(keys)) == len(keys) - 1)}
    found["current"] = offsets_TS == 0
    if keys.grid is not None:
        return found
    same_TS = queries.numbers_N[:, None] == keys.numbers_N[None]
    follows_TS = np.zeros_like(same_TS)
    follows_TS[:, 1:] = same_TS[:, :-1]
    return found | {
        "previous": offsets_TS == -1,
        "next": offsets_TS == 1,
        "same": same_TS & (offsets_TS != 0),
        "induction": follows_TS & (offsets_TS < 0),
    }


def shape_measures(weights_HTS: np.ndarray, allowed_TS: np.ndarray, crosses: bool) -> dict[str, _Measured]:
    """What does not depend on the tokens.

    entropy: of a query's weights, in nats; relative_entropy: over the logarithm of the number of its keys. distance
    (self-attention): the mean number of tokens to the keys; in images, from patches to patches in widths of a patch
    (Dosovitskiy et al. 2021, arXiv 2010.11929, section D.8). In cross-attention diagonal: the weight on keys, each
    counted by exp(-(s/(S-1) - t/(T-1))^2 / 2g^2), g = 0.2 (guided attention: Tachibana et al. 2018, arXiv 1710.08969,
    section 4.1); monotonic: Pearson's correlation of a query's place with the mean place of its keys, 1 where the
    alignment moves forward at one speed.
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
    """The mean distance between middles of patches, in patches, by the weights that patches give to patches."""
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


def repeated_rows(
    text_tokens_N: np.ndarray, length: int, count: int, before: Sequence[int] = (), seed: int = 0
) -> np.ndarray:
    """`count` rows of `length` random tokens, different where there are so many, and the same again."""
    random = np.random.default_rng(seed)
    again = length > len(text_tokens_N)
    halves = np.stack([random.choice(text_tokens_N, length, replace=again) for _ in range(count)])
    starts = np.broadcast_to(np.array(before, dtype=np.int64), (count, len(before)))
    return np.concatenate([starts, halves, halves], axis=1)


@torch.inference_mode()
def repeat_scores(model: LanguageModel, tokenizer: Tokenizer, room: int | None = None) -> dict[Head, dict[str, Score]]:
    """`repeats`: the induction score of each head (see `mass_targets`) on random tokens that are repeated (Olsson et
    al. 2022, arXiv 2209.11895, "Model Analysis Table"), where no word, no grammar and no other habit of the text can
    help.

    room: the most tokens of a sequence, such as the length trained at. Nothing where a pattern of four does not fit.
    """
    before = (tokenizer.special_tokens or SpecialTokens()).text[0]
    limits = [limit for limit in (room, model.longest) if limit is not None]
    length = min([LONGEST, len(tokenizer.text_tokens), *((limit - len(before)) // 2 for limit in limits)])
    if length < SHORTEST:
        return {}
    rows_BT = repeated_rows(tokenizer.text_tokens, length, SEQUENCES, before)
    examples = [_example(model, row_T, len(before)) for row_T in rows_BT]
    scores = head_scores(examples)
    return {head: {"repeats": named["induction"]} for head, named in scores.items() if "induction" in named}


def _example(model: LanguageModel, row_T: np.ndarray, num_before: int) -> Attended:
    tokens_1T = torch.from_numpy(row_T.astype(np.int64))[None]
    maps = layer_maps(model, lambda: model(tokens_1T))
    is_mark_T = np.arange(len(row_T)) < num_before
    axis = Axis([""] * len(row_T), row_T, is_mark_T, np.full((len(row_T), 2), -1))
    return Attended("", maps, {SELF: (axis, axis)})


@dataclass(frozen=True)
class Role:
    """What a head does, by which statistic, and how clearly, 0 being uniform attention and 1 all of the weight."""

    name: str
    statistic: str
    strength: float


def strength(score: Score) -> float:
    """How far a weight lies from uniform attention (0) to all of the weight (1)."""
    return (score.value - score.chance) / (1 - score.chance) if score.chance < 1 else 0.0


def role_of(scores: Mapping[str, Score]) -> Role | None:
    """The clearest role of a head, or None where none clears the bar."""
    measured = {name: score for name, score in scores.items() if score.queries >= FEWEST}
    roles = [Role(word, name, strength(measured[name])) for name, word in ROLES.items() if name in measured]
    if clear := [role for role in roles if role.strength >= BAR]:
        # An induction head attends to the first token, say, where nothing comes again. Of equals the first says more.
        return max(clear, key=lambda role: (role.statistic == "repeats", role.strength))
    even = measured.get("relative_entropy")
    return Role(EVENLY, "relative_entropy", even.value) if even is not None and even.value >= EVEN else None


def clearest(scores: Scores, kind: str) -> Head | None:
    """The head of a kind whose role is clearest, leaving out those that attend evenly; None where none has a role."""
    found = {
        head: role.strength
        for head, named in scores.items()
        if head.kind == kind and (role := role_of(named)) is not None and role.name != EVENLY
    }
    return max(found, key=lambda head: found[head], default=None)


def heads_csv(scores: Scores, effects: Mapping[Head, Effect] | None = None) -> str:
    """A row a head: its place, its role and how clear it is, every statistic, and what masking it does."""
    names = list(dict.fromkeys(name for named in scores.values() for name in named))
    columns = ["kind", "layer", "head", "role", "strength", *names]
    columns += ["masked", "masked_low", "masked_high", "masked_verdict"] if effects else []
    rows = []
    for head, named in scores.items():
        role, effect = role_of(named), (effects or {}).get(head)
        row: list[str | float | None] = [*head, role.name if role else "", role.strength if role else None]
        row += [named[name].value if name in named else None for name in names]
        if effects:
            row += [effect.change, effect.low, effect.high, effect.verdict] if effect else [None, None, None, ""]
        rows.append(row)
    return csv_of(columns, rows)


def csv_of(columns: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """A table as CSV, numbers with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()


def heads_json(scores: Scores, effects: Mapping[Head, Effect] | None = None) -> dict[str, object]:
    """Everything about every head."""
    heads = []
    for head, named in scores.items():
        role, effect = role_of(named), (effects or {}).get(head)
        statistics = {name: vars(score) for name, score in named.items()}
        told = {**head._asdict(), "role": None if role is None else vars(role), "statistics": statistics}
        heads.append(told if effect is None else told | {"masked": {**vars(effect), "verdict": effect.verdict}})
    return {"rule": RULE, "heads": heads}
