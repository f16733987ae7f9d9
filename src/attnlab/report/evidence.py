"""Every comparison with the baseline on the page, with all the figures that speak for or against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import Difference
from attnlab.analysis.formatting import decimals_for, failures_text, interval_text, number, p_text
from attnlab.analysis.statistics import MOST_SEEDS
from attnlab.analysis.table import Column, Table, typographic
from attnlab.analysis.warnings import power_sentence


def evidence(c: Comparison) -> Mapping[str, object] | None:
    """One row a comparison with every figure that speaks for or against it."""
    compared = [cell for cell in c.best_first if cell.difference or cell.failures]
    if c.metric is None or not compared:
        return None
    decimals = decimals_for(cell.difference.interval for cell in compared if cell.difference)

    def of(heading: str, say: Callable[[Difference], str]) -> Column[CellSummary]:
        return Column(heading, lambda cell: typographic(say(cell.difference)) if cell.difference else "-")

    def bootstrap(found: Difference) -> str:
        bounds = (number(end, decimals, sign=True) for end in (found.bootstrap.low, found.bootstrap.high))
        return " to ".join(bounds) if found.bootstrap.is_bounded else "-"

    def seeds(found: Difference) -> str:
        needed = found.seeds_to_settle
        return "-" if math.isnan(needed) else f"{needed:.0f}" if math.isfinite(needed) else f"> {MOST_SEEDS}"

    same = [of("p (same)", lambda found: p_text(found.p_equivalence_adjusted))] if c.metric.margin > 0 else []
    of_means = [
        of("effect size", lambda found: number(found.effect_size, 1, sign=True)),
        Column("P(better)", lambda cell: number(cell.probability_better, 2)),
        of("p", lambda found: p_text(found.p_adjusted)),
        of("p (sign flip)", lambda found: p_text(found.p_sign_flip_adjusted)),
        *same,
        of("bootstrap", bootstrap),
        of("smallest seen", lambda found: number(found.smallest_effect, decimals)),
        of("seeds to settle", seeds),
    ]
    of_shares = [
        of("runs, and of the baseline", lambda found: found.contrast.counts),
        of("difference (interval)", lambda found: interval_text(found.interval, decimals, sign=True)),
        of("p (Fisher)", lambda found: p_text(found.p_adjusted)),
    ]
    of_costs = [
        of("seeds", lambda found: found.contrast.counts),
        Column("P(better)", lambda cell: number(cell.probability_better, 2)),
        of("difference (interval)", lambda found: interval_text(found.interval, decimals, sign=True)),
        of("p (sign test)", lambda found: p_text(found.p_adjusted)),
    ]
    name = Column[CellSummary]("cell", lambda cell: cell.label)
    columns = [name, *{"mean": of_means, "median": of_costs, "share": of_shares}[c.average]]
    if any(cell.failures for cell in compared):  # "4 of 4 (p 0.029)"
        columns.append(Column("lost runs", lambda cell: failures_text(cell).replace(" runs lost", "") or "-"))
    table = Table.of(columns, compared, "Statistical evidence for each comparison")
    return {"power": power_sentence(c.cells, c.metric), "table": table}
