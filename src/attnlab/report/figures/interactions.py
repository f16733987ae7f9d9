"""Two factors at once: the metric at every pair of their choices, a line a choice. Parallel lines: no interaction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis import formatting as wording
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.reader import Choice, Study, short
from attnlab.analysis.statistics import Interval, ended, mean_interval
from attnlab.analysis.table import typographic
from attnlab.report.figures.style import PAGE, legend_above, line_look, name_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = MOST_LINES = 6
HEIGHT, WIDTH = 2.0, 2.3  # inches of a panel
TICK = 0.14  # inches of a choice at the least
SPREAD = 0.3  # of the points at one choice, where the distance to the next choice is 1


@dataclass(frozen=True)
class Crossing:
    """The metric at each pair of choices of two factors, over the `settings` of the others that have all of the pairs.

    `points` has the mean of each pair, with its 95% interval over seeds; of `planned` settings the study asks for.
    """

    across: str
    lines: str
    points: dict[tuple[Choice, Choice], Interval]
    settings: int
    planned: int


def interactions_figure(comparison: Comparison) -> Figure | None:
    """A panel for each two factors, those that depend on one another most first, up to six; to be drawn within
    `paper_style`. None where fewer than two factors vary, no seed has all cells of a panel, or the metric is 0 or 1 a
    run."""
    study = comparison.study
    if comparison.is_proportion:
        return None
    factors = [name for name in study.factors if name in study.varying]
    largest = {
        one.factors: abs(one.interval.mean)
        for one in sorted(comparison.interactions, key=lambda one: abs(one.interval.mean))
    }
    pairs = sorted(itertools.combinations(factors, 2), key=lambda pair: -largest.get(pair, 0.0))
    # More lines than can be told apart are places, and the other factor is the lines.
    pairs = [(b, a) if len(study.factors[b]) > max(MOST_LINES, len(study.factors[a])) else (a, b) for a, b in pairs]
    found = [one for pair in pairs if (one := crossing(study, *pair))][:MOST_PANELS]
    if comparison.metric is None or not found:
        return None
    room = max(WIDTH, 0.5 + TICK * max(len(study.factors[one.across]) for one in found))
    columns = max(1, min(3, len(found), int(PAGE / room)))
    rows = math.ceil(len(found) / columns)
    width = PAGE * columns / 3 if columns > 1 else max(PAGE / 2, min(PAGE, room))
    figure = new_figure(width, HEIGHT)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    above = [_draw(axes, study, one, width / columns - 0.5) for axes, one in zip(grid.flat, found, strict=False)]
    figure.set_size_inches(width, (HEIGHT + max(above)) * rows)
    for axes in grid[:, 0]:
        axes.set_ylabel(typographic(wording.unit(comparison.metric.name, study)))
    for axes in list(grid.flat)[len(found) :]:
        axes.set_visible(False)
    return figure


def crossing(study: Study, across: str, lines: str) -> Crossing | None:
    """The study's metric at the choices of two factors, one value a seed: its mean over the same settings of all other
    factors at every pair of choices. None where no seed has a value in all cells of a setting."""
    pairs = list(itertools.product(study.factors[across], study.factors[lines]))
    settings: dict[Hashable, dict[tuple[Choice, Choice], dict[int, float]]] = {}
    asked = set()
    for pair in pairs:
        for cell in study.matching({across: pair[0], lines: pair[1]}):
            if cell.skip is None and study.metric is not None:
                asked.add(pair)
                rest = frozenset(
                    (name, str(value)) for name, value in cell.choices.items() if name not in (across, lines)
                )
                settings.setdefault(rest, {})[pair] = study.values(cell.name, study.metric.name)
    whole = [of for of in settings.values() if of.keys() == asked and all(of.values())]
    seeds = set.intersection(*(set(by_seed) for of in whole for by_seed in of.values())) if whole else set()
    if not seeds or study.metric is None:
        return None
    limits = study.limits(study.metric.name)
    points = {
        pair: ended(
            mean_interval([float(np.mean([of[pair][seed] for of in whole])) for seed in sorted(seeds)]), *limits
        )
        for pair in pairs
        if pair in asked
    }
    return Crossing(across, lines, points, len(whole), len(settings))


def _draw(axes: Axes, study: Study, one: Crossing, room: float) -> float:
    """Draws a panel of so many inches across; returns the height of its legend and slanted names."""
    across, lines = study.factors[one.across], study.factors[one.lines]
    sizes: dict[str, Any] = {"linewidth": 1.2, "markersize": 3, "capsize": 1.5, "elinewidth": 0.8}
    for index, choice in enumerate(lines):
        known = [(place, one.points[at, choice]) for place, at in enumerate(across) if (at, choice) in one.points]
        if not known:
            continue
        aside = SPREAD * ((index + 0.5) / len(lines) - 0.5)
        mean = np.array([interval.mean for _, interval in known])
        half = [interval.high - interval.mean if interval.is_bounded else math.nan for _, interval in known]
        axes.errorbar([place + aside for place, _ in known], mean, half, label=str(choice), **line_look(index), **sizes)
    below = name_ticks(axes, list(map(str, across)), room)
    axes.set_xlim(-0.5, len(across) - 0.5)
    cut = "" if one.settings == one.planned else f"\n{one.settings} of {one.planned} settings"
    axes.set_xlabel(short(one.across) + cut)
    return below + legend_above(axes, short(one.lines), room)
