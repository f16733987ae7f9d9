"""The ranks that cells may hold among each other, from the same paired tests as everything else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import bdtr, stdtrit

from attnlab.analysis.differences import ALPHA, DECIDED
from attnlab.analysis.reader import Metric
from attnlab.analysis.statistics import ROUNDING


def places(
    values: Mapping[str, Mapping[int, float]],
    asked: Mapping[str, set[int]],
    metric: Metric,
    baseline: str | None = None,
    verdicts: Mapping[str, str] | None = None,
    size: int = 0,
    alpha: float = ALPHA,
) -> dict[str, tuple[int, int]]:
    """The ranks that each of `values` ({cell: {seed: value}}) may hold, (best, worst): behind those surely better, before those surely worse.

    Differences to the baseline and ranks are one family: together they hold a false word in at most a share `alpha` of studies. A pair with
    the baseline is what `verdicts` say of it ({cell: verdict}, `size` tests at alpha / size each). The other pairs are tested at what these
    leave: alpha times the share of the baseline's tests that were decided, over the number of pairs. (If m0 of the m differences to the
    baseline are truly none, a false one is found there with a chance of at most alpha m0 / m; and where none is found, the other pairs
    have at most alpha (m - m0) / m.) Without a baseline the pairs have alpha whole. asked: the seeds that were asked of each cell;
    those without a value count against every finding.
    """
    names = list(values)
    ahead = np.zeros((len(names), len(names)), dtype=bool)
    rest = [i for i, name in enumerate(names) if name != baseline]
    others = sum(cell != baseline for cell in asked)
    pairs = others * (others - 1) / 2
    decided = {name: verdict for name, verdict in (verdicts or {}).items() if verdict in DECIDED}
    left = alpha * len(decided) / max(1, size) if baseline is not None else alpha
    if left and pairs:
        tables = [values[names[i]] for i in rest], [asked[names[i]] for i in rest]
        ahead[np.ix_(rest, rest)] = _ahead(*tables, metric, left / pairs)
    if baseline in names:
        base = names.index(baseline)
        for name, verdict in decided.items():
            first, second = (names.index(name), base) if verdict == "better" else (base, names.index(name))
            ahead[first, second] = True
    before, behind = ahead.sum(axis=0), ahead.sum(axis=1)
    return {name: (1 + int(before[i]), len(names) - int(behind[i])) for i, name in enumerate(names)}


def _ahead(rows: list[Mapping[int, float]], asked: list[set[int]], metric: Metric, share: float) -> np.ndarray:
    """Which row is surely better than which, (rows, rows), each pair at the level `share`; for thousands of pairs at once."""
    seeds = sorted(set().union(*asked, *rows))
    sign = 1.0 if metric.better == "lower" else -1.0
    table_RS = np.array([[sign * row.get(seed, np.nan) for seed in seeds] for row in rows]).reshape(len(rows), -1)
    asked_RS = np.array([[seed in of or seed in row for seed in seeds] for of, row in zip(asked, rows, strict=True)])
    return np.array(
        [_row_ahead(i, table_RS, asked_RS.reshape(table_RS.shape), metric.margin, share) for i in range(len(rows))]
    )


def _row_ahead(row: int, table_RS: np.ndarray, asked_RS: np.ndarray, margin: float, share: float) -> np.ndarray:
    """Of which rows this one is surely ahead: by the t interval, with missing runs by the sign test at its worst."""
    differences = table_RS[row] - table_RS
    scale = np.maximum(np.abs(table_RS[row]), np.abs(table_RS))
    differences = np.where(np.abs(differences) <= ROUNDING * scale, 0.0, differences)
    known = np.isfinite(differences)
    n, missing = known.sum(axis=1), (asked_RS[row] & asked_RS & ~known).sum(axis=1)
    with np.errstate(all="ignore"):
        mean = np.where(known, differences, 0.0).sum(axis=1) / n
        deviation = np.sqrt((np.where(known, differences - mean[:, None], 0.0) ** 2).sum(axis=1) / (n - 1))
        low = np.where(known, differences, np.inf).min(axis=1)
        high = np.where(known, differences, -np.inf).max(axis=1)
        spread = (high - low > ROUNDING * np.maximum(np.abs(low), np.abs(high))) & (deviation > 0)
        half = stdtrit(n - 1, 1 - share / 2) * deviation / np.sqrt(n)
        by_t = spread & (mean + half < 0) & (mean - half < -margin)
        p_sign = 2 * bdtr(n - (known & (differences < 0)).sum(axis=1) + missing, n + missing, 0.5)
    return np.where(missing > 0, (n > 0) & (p_sign <= share), (n > 1) & by_t)
