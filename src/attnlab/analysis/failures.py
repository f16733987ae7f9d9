"""Whether more runs of a cell failed than of the baseline, beyond chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.analysis.statistics import holm


@dataclass(frozen=True)
class Failures:
    """How many ended runs of a cell failed, those of the baseline, and Fisher's exact p that both fail at one rate."""

    failed: int
    ended: int
    baseline_failed: int
    baseline_ended: int
    p: float
    p_holm: float

    @property
    def excess(self) -> int:
        """Above 0 where a larger share failed than of the baseline, below where a smaller one."""
        return self.failed * self.baseline_ended - self.baseline_failed * self.ended


def compare_failures(counts: Mapping[str, tuple[int, int]], baseline: str) -> dict[str, Failures]:
    """Judges the failures of every cell ({cell: (failed, ended)}) against the baseline's, as one family.

    A cell is left out where no run of it has ended, and where none failed of it or of the baseline: given that, no
    outcome could have been a finding (Tarone 1990). Runs are taken as independent (Fisher's exact test, two-sided).
    """
    base = counts.get(baseline, (0, 0))
    others = {
        cell: pair for cell, pair in counts.items() if cell != baseline and pair[1] and base[1] and pair[0] + base[0]
    }
    if not others:
        return {}
    from scipy.stats import fisher_exact  # costs as much as the rest of this package together, and runs seldom fail

    tables = [[[failed, ended - failed] for failed, ended in (pair, base)] for pair in others.values()]
    p_values = [min(1.0, float(fisher_exact(table).pvalue)) for table in tables]
    rows = zip(others.items(), p_values, holm(p_values), strict=True)
    return {cell: Failures(*pair, *base, p, p_holm) for (cell, pair), p, p_holm in rows}
