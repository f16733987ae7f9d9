"""Figures that stand on the page as in a paper: the forest of differences, the grid of a factorial study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from attnlab.analysis import formatting as wording
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import Judged
from attnlab.analysis.reader import Metric, short
from attnlab.analysis.statistics import Interval
from attnlab.analysis.table import MOODS, typographic
from attnlab.report.figures.style import (
    LETTER,
    LINE,
    PAGE,
    SAYS,
    as_svg,
    broken,
    colour,
    heat,
    new_figure,
    paper_style,
    widest,
)
from attnlab.training.study_fields import same

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 40  # of a forest in a paper; the page has all
ROW, REST = 0.31, 0.62  # inches of a row, and of the axis below
WIDE, HIGH = 0.95, 0.36  # inches of a cell of the grid at the most, and its height
MOST_LETTERS = 24  # of a baseline in the name of an axis


@dataclass(frozen=True)
class ForestRow:
    """A mean difference with its interval, the single values behind it by their names, a verdict and a note."""

    label: str
    interval: Interval
    values: Mapping[str, float]
    verdict: str
    note: str


@dataclass(frozen=True)
class Forest:
    """Rows from top to bottom on one axis: interval, single values and mean, with figures, verdict and note in words
    beside them.

    what: names the axis; name: the figure, for who cannot see it.
    """

    rows: Sequence[ForestRow]
    metric: Metric
    what: str
    name: str

    def figure(self, most: int | None = None) -> Figure:
        """The first `most` rows, all by default; to be drawn within `paper_style`."""
        shown, margin = self.rows[:most], self.metric.margin
        figure = new_figure(PAGE, ROW * len(shown) + REST)
        axes = figure.subplots()
        low, high = limits_of(shown, margin)
        decimals = wording.decimals_for(row.interval for row in self.rows)
        if margin > 0:
            axes.axvspan(-margin, margin, color=colour("strip"), linewidth=0)
        axes.axvline(0, color=colour("soft"), linewidth=0.7)
        for place, row in enumerate(shown):
            _draw_row(axes, place, row, (low, high), decimals)
        axes.set_yticks(range(len(shown)), [broken(row.label) for row in shown])
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(low, high))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        sides = ("better", "worse") if self.metric.better == "lower" else ("worse", "better")
        more = f"\n{len(self.rows) - len(shown)} more rows are on the page" if len(self.rows) > len(shown) else ""
        axes.set_xlabel(f"\u2190 {sides[0]}    {self.what}    {sides[1]} \u2192{more}")
        return figure

    def svg(self) -> Markup:
        decimals = wording.decimals_for(row.interval for row in self.rows)
        said = [f"{row.label}: {', '.join([*_words(row, decimals), row.note])}." for row in self.rows]
        with paper_style():
            return as_svg(self.figure(), self.name, " ".join(said))


def differences(comparison: Comparison) -> Forest | None:
    """The differences to the baseline, best mean first; None where nothing was compared."""
    rows = []
    for cell in comparison.measured:
        found = cell.difference
        if found is None:
            continue
        if not found.contrast.is_mean:
            test, dots = ("sign test", _by_seed(found)) if comparison.target else ("Fisher", {})
            notes = [found.contrast.counts, f"p {wording.p_text(found.p_adjusted)} ({test})"]
            rows.append(_row(cell.label, found, found.verdict, dots, *notes))
            continue
        notes = [f"{wording.wins_text(found)} seeds"]
        if found.contrast.missing and not found.contrast.is_open:
            notes.append(f"p {wording.p_text(found.p_adjusted)} (sign test)")
        elif found.n > 1 and not found.contrast.is_open:
            sign_flip = wording.p_text(found.p_sign_flip_adjusted)
            notes.append(f"p {wording.p_text(found.p_adjusted)}, sign flip {sign_flip}")
        rows.append(_row(cell.label, found, found.verdict, _by_seed(found), *notes))
    baseline = comparison.baseline
    to = baseline.label if baseline and len(baseline.label) < MOST_LETTERS else "the baseline"
    name = f"{'Differences of shares' if comparison.is_proportion else 'Paired differences'} to the baseline"
    return _forest(comparison, rows, f"difference to {to}", name)


def effects(comparison: Comparison) -> Forest | None:
    """What each choice of each factor changes on average; the small dots are the settings of the other factors."""
    decimals = wording.decimals_for(effect.interval for effect in comparison.effects)
    rows = []
    for one in comparison.effects:
        low, high = (wording.number(value, decimals, sign=True) for _, value in one.ends)
        note = f"{low} to {high} over {len(one.by_setting)} settings"
        rows.append(_row(one.label, one, one.word, one.by_setting, note))
    return _forest(comparison, rows, "change", "Average effects of the factors")


def interactions(comparison: Comparison) -> Forest | None:
    """What two choices change beyond the sum of what each changes alone, the largest first; small dots are seeds."""
    rows = []
    for one in sorted(comparison.interactions, key=lambda one: -abs(one.interval.mean)):
        used, seeds, planned = len(one.by_setting), len(one.values), one.contrast.planned
        settings = f"{used} settings" if used == planned else f"{used} of {planned} settings"
        notes = [f"{seeds} seed{'s' * (seeds != 1)}", settings if planned > 1 else ""]
        label = one.label.replace(" x ", " \u00d7 ")
        rows.append(_row(label, one, one.verdict, _by_seed(one), *notes, f"p {wording.p_text(one.p_adjusted)}"))
    return _forest(comparison, rows, "interaction", "Interactions of two factors")


def _by_seed(judged: Judged) -> dict[str, float]:
    return {f"seed {seed}": value for seed, value in judged.values.items()}


def _row(label: str, judged: Judged, verdict: str, values: Mapping[str, float], *notes: str) -> ForestRow:
    note = " \u00b7 ".join(filter(None, [*notes, judged.reason]))
    return ForestRow(label, judged.interval, values, verdict, note)


def _forest(comparison: Comparison, rows: Sequence[ForestRow], what: str, name: str) -> Forest | None:
    metric = comparison.metric
    if metric is None or not rows:
        return None
    return Forest(rows, metric, f"{what} in {wording.unit(metric.name, comparison.study)}", name)


def limits_of(rows: Sequence[ForestRow], margin: float) -> tuple[float, float]:
    """Zero, the margin and every value lie between; an interval far wider than its values runs off the edge."""
    shown = [value for row in rows for value in (*row.values.values(), row.interval.position) if math.isfinite(value)]
    low, high = min(0.0, -margin, *shown), max(0.0, margin, *shown)
    room = (high - low) or 1.0
    ends = [end for row in rows if _has_bar(row.interval) for end in (row.interval.low, row.interval.high)]
    low = min([low, *(max(end, low - 0.5 * room) for end in ends)])
    high = max([high, *(min(end, high + 0.5 * room) for end in ends)])
    return low - 0.04 * room, high + 0.04 * room


def _has_bar(interval: Interval) -> bool:
    """Whether an interval has an end: where it has one alone, its bar runs off the picture."""
    return math.isfinite(interval.low) or math.isfinite(interval.high)


def _words(row: ForestRow, decimals: int) -> list[str]:
    """ "−0.629 (−0.648 to −0.609)" and "better"."""
    figures = wording.interval_text(row.interval, decimals, sign=True)
    return [typographic(figures), wording.VERDICTS.get(row.verdict, row.verdict)]


def _draw_row(axes: Axes, place: int, row: ForestRow, limits: tuple[float, float], decimals: int) -> None:
    tone, (figures, verdict) = colour(row.verdict), _words(row, decimals)
    if _has_bar(row.interval):
        low, high = max(row.interval.low, limits[0]), min(row.interval.high, limits[1])
        axes.plot([low, high], [place, place], color=tone, linewidth=2, alpha=0.6, zorder=2)
        for end, drawn, sign in ((row.interval.low, low, "<"), (row.interval.high, high, ">")):
            if end != drawn:  # the interval runs off the picture
                axes.plot([drawn], [place], marker=sign, color=tone, markersize=4, clip_on=False, zorder=3)
    dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgewidth": 0}
    for name, value in row.values.items():
        said = f"{SAYS}{name}: {typographic(wording.number(value, decimals, sign=True))}"
        axes.plot([value], [place + 0.27], color=colour("soft"), markersize=2.4, alpha=0.8, gid=said, **dots)
    if math.isfinite(row.interval.position):
        is_open = math.isnan(row.interval.mean)  # known to one side alone
        look = {"markerfacecolor": colour("surface"), "markeredgewidth": 1.2} if is_open else {}
        axes.plot([row.interval.position], [place], color=tone, markersize=4.5, zorder=4, **{**dots, **look})
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 7}
    text = axes.text(1.02, place - 0.05, figures, va="bottom", **beside)
    sign = MOODS.get(row.verdict, ("", ""))[1]
    after: dict[str, Any] = {"xycoords": text, "textcoords": "offset points", "fontsize": 7, "color": tone}
    axes.annotate(f"{sign} {verdict}", (1, 0), (6, 0), va="bottom", **after)
    axes.text(1.02, place + 0.03, typographic(row.note), va="top", color=colour("soft"), **{**beside, "fontsize": 6})


@dataclass(frozen=True)
class Grid:
    """The cells of a factorial study by their choices, `found[row][column]`; of the factors the last stand across."""

    comparison: Comparison
    factors: Sequence[str]
    down: Sequence[Sequence[Any]]
    across: Sequence[Sequence[Any]]
    found: Sequence[Sequence[CellSummary | None]]
    name = "The grid"

    @classmethod
    def of(cls, comparison: Comparison) -> Grid | None:
        """For two to four varying factors, None otherwise, and where nothing was measured."""
        study = comparison.study
        factors = [name for name in study.factors if name in study.varying]
        cells = [cell for cell in comparison.cells if all(name in cell.cell.choices for name in factors)]
        is_measured = comparison.metric is not None and any(cell.interval for cell in cells)
        if not 2 <= len(factors) <= 4 or not is_measured:
            return None
        half = len(factors) - len(factors) // 2
        sides = (factors[:half], factors[half:])
        down, across = (list(itertools.product(*(study.factors[name] for name in side))) for side in sides)
        found = [[_find(cells, factors, (*row, *column)) for column in across] for row in down]
        return cls(comparison, factors, down, across, found)

    def figure(self) -> Figure:
        """The mean of every cell with its interval's half-width, to be drawn within `paper_style`. Turned,
        or with broken names, where it would be wider than a page."""
        shapes = [(grid, *grid._names(end)) for end in (" ", "\n") for grid in (self, self._turned)]
        grid, rows, columns = next((shape for shape in shapes if _width_of(*shape[1:]) <= PAGE), shapes[-1])
        width = min(PAGE, _width_of(rows, columns))
        figure = new_figure(width, 0.75 + HIGH * len(rows) + LINE * max(name.count("\n") for name in columns))
        axes = figure.subplots()
        for y, x in itertools.product(range(len(rows)), range(len(columns))):
            grid._draw(axes, x, y)
        axes.set_xticks([k + 0.5 for k in range(len(columns))], columns)
        axes.set_yticks([k + 0.5 for k in range(len(rows))], rows)
        axes.set(xlim=(-0.02, len(columns) + 0.02), ylim=(len(rows) + 0.02, -0.02))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        what = "runs of which it is 1" if self.comparison.is_proportion else "mean and half-width of its 95% interval"
        what = "median with its 95% interval" if self.comparison.target else what
        said = f"{self.metric}: {what}; more colour is worse"
        axes.set_xlabel(broken(said, int((width - _side_of(rows)) / LETTER), 5))
        return figure

    @property
    def metric(self) -> str:
        return self.comparison.metric.name if self.comparison.metric else ""

    @property
    def _turned(self) -> Grid:
        half = len(self.factors) - len(self.across[0])
        factors = [*self.factors[half:], *self.factors[:half]]
        return Grid(self.comparison, factors, self.across, self.down, list(zip(*self.found, strict=True)))

    def _names(self, between: str) -> tuple[list[str], list[str]]:
        """Of rows and columns; what stands between a factor and its choice."""
        half = len(self.factors) - len(self.across[0])
        sides = ((self.factors[:half], self.down), (self.factors[half:], self.across))
        rows, columns = (["\n".join(_names(factors, one, between)) for one in side] for factors, side in sides)
        return rows, columns

    @property
    def behind(self) -> Sequence[CellSummary]:
        split = self.comparison.clusters
        return split.worse if split else []

    def _draw(self, axes: Axes, x: int, y: int) -> None:
        from matplotlib.patches import Rectangle

        cell = self.found[y][x]
        is_behind = cell is not None and cell in self.behind
        look: dict[str, Any] = {"facecolor": colour("surface"), "edgecolor": colour("line"), "linewidth": 0.6}
        if cell is not None and cell.interval:
            look["facecolor"] = heat(self._share(cell.interval.position))
            look |= {"edgecolor": colour("text"), "linewidth": 1.2} if is_behind else {}
        else:
            look["linestyle"] = (0, (3, 2))
        said = f"{SAYS}{self._said(cell)}{', far behind' * is_behind}" if cell else None
        axes.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, gid=said, clip_on=False, **look))
        shade = colour("text" if cell and cell.interval else "soft")
        axes.text(x + 0.5, y + 0.5, self._text(cell), ha="center", va="center", fontsize=6.5, color=shade)

    def _share(self, mean: float) -> float:
        """How far from the best mean (0) to the worst (1); what is nowhere is there, too."""
        means = [cell.interval.position for row in self.found for cell in row if cell and cell.interval]
        means = [position for position in means if math.isfinite(position)] or [mean]
        best, worst = min(means), max(means)
        if self.comparison.metric and self.comparison.metric.better == "higher":
            best, worst = worst, best
        if math.isinf(mean):
            return 1.0
        return 0.0 if best == worst else (mean - best) / (worst - best)

    def _text(self, cell: CellSummary | None) -> str:
        if cell is None:
            return "\u2013"
        if cell.interval is None:
            return cell.outcome
        decimals = wording.decimals_for(one.interval for row in self.found for one in row if one)
        lost = f"{cell.n_failed} of {sum(cell.states.values())} lost" if cell.n_failed else ""
        figures = cell.interval.counted or wording.spread_text(cell.interval, decimals)
        lines = [typographic(figures), lost, "baseline" * cell.is_baseline]
        return "\n".join(filter(None, lines))

    def _said(self, cell: CellSummary) -> str:
        return ", ".join([f"{cell.label}: {self._text(cell)}", *filter(None, [cell.reason])]).replace("\n", ", ")

    def svg(self) -> Markup:
        said = [f"{self._said(cell)}." for row in self.found for cell in row if cell]
        with paper_style():
            return as_svg(self.figure(), self.name, " ".join(said))


def _names(factors: Sequence[str], choices: Sequence[Any], between: str) -> list[str]:
    named = zip(factors, choices, strict=True)
    return [broken(f"{short(name)} {choice}", most_lines=1).replace(" ", between) for name, choice in named]


def _side_of(rows: Sequence[str]) -> float:
    return max(map(widest, rows)) + 0.3


def _width_of(rows: Sequence[str], columns: Sequence[str]) -> float:
    return _side_of(rows) + len(columns) * max(WIDE, *map(widest, columns))


def _find(cells: Sequence[CellSummary], factors: Sequence[str], choices: Sequence[Any]) -> CellSummary | None:
    wanted = list(zip(factors, choices, strict=True))
    return next((c for c in cells if all(same(c.cell.choices[key], value) for key, value in wanted)), None)
