"""What a study's tuning found in each cell: the choice, what else was tried, how much that matters; and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.differences import DECIDED, Outcomes, verdict_of
from attnlab.analysis.file_cache import listed, mapping
from attnlab.analysis.formatting import decimals_for, interval_text, listing, number
from attnlab.analysis.reader import short
from attnlab.analysis.regrets import Axis, axes_of, trials_of
from attnlab.analysis.table import Column, Contents, Entry, Table

MOST_NAMES = 3


@dataclass(frozen=True)
class TunedCell:
    """A cell's tuning: its different settings, the values of each by seed (K settings, S seeds), NaN where a run has
    none, and of each setting whether a run of it diverged or has no value for another reason. `regret` bounds by how
    much the choice may be worse than the best, in the study's metric (see `regrets`)."""

    label: str
    settings: list[dict[str, object]]
    values: np.ndarray
    chosen: int
    default: dict[str, object]
    diverged: list[bool]
    regret: float

    @cached_property
    def means(self) -> list[float]:
        """The mean of each setting over its seeds, NaN where one has no value."""
        return [float(row.mean()) for row in self.values]

    @property
    def choice(self) -> dict[str, object]:
        """The setting that was chosen."""
        return self.settings[self.chosen]

    @property
    def usable(self) -> list[int]:
        """The places of the settings that can be compared, by a value or because they diverged."""
        return [at for at, mean in enumerate(self.means) if math.isfinite(mean) or self.diverged[at]]

    def at_edge(self, axes: Sequence[Axis]) -> Iterator[str]:
        """Of which fields the choice is the last value on its side that was tried and did not fail."""
        for axis in axes:
            tried = sorted({axis.at(self.settings[at][axis.name]) for at in self.usable})
            here = axis.at(self.choice[axis.name])
            if len(tried) > 1 and here in (tried[0], tried[-1]):
                side = "smallest" if here == tried[0] else "largest"
                yield f"{short(axis.name)}={self.choice[axis.name]} is the {side} tried"


@dataclass(frozen=True)
class TuningSummary:
    """A study's tuning: how, with how many trials a cell, on which seeds, by which metric; its cells in their order."""

    how: str
    trials: int
    seeds: list[object]
    metric: str
    better: str
    search: dict[str, object]
    cells: list[TunedCell]

    @cached_property
    def axes(self) -> list[Axis]:
        """The numeric fields that were searched."""
        return axes_of(self.search)

    @cached_property
    def is_alike(self) -> bool:
        """Whether all cells have tried the same settings."""
        return len({frozenset(map(repr, cell.settings)) for cell in self.cells}) == 1

    @cached_property
    def worst(self) -> float:
        """The worst value of any setting of any cell, for which those stand that diverged."""
        known = [mean for cell in self.cells for mean in cell.means if math.isfinite(mean)]
        return (max if self.better == "lower" else min)(known, default=math.nan)

    def sensitivity(self, cell: TunedCell) -> float:
        """By how much the mean over all settings tried is worse than the best of them; settings that diverged count as
        the worst of any cell. The learning-rate sensitivity of Wortsman et al. (2023, arXiv 2309.14322, section 3.1),
        whose losses are at most that at initialisation. NaN where cells tried different settings."""
        values = [cell.means[at] if math.isfinite(cell.means[at]) else self.worst for at in cell.usable]
        if not values or not self.is_alike:
            return math.nan
        return abs(sum(values) / len(values) - (min if self.better == "lower" else max)(values))

    def curve(self, cell: TunedCell, field: str) -> list[tuple[object, int]]:
        """Values of a field, each with the place of the best setting that has it, in order."""
        best: dict[str, tuple[object, int]] = {}
        sign = 1 if self.better == "lower" else -1
        for at in sorted(range(len(cell.means)), key=lambda at: sign * cell.means[at]):
            if math.isfinite(cell.means[at]):
                best.setdefault(repr(cell.settings[at][field]), (cell.settings[at][field], at))
        axis = next((axis for axis in self.axes if axis.name == field), None)
        return sorted(best.values(), key=lambda pair: axis.at(pair[0]) if axis else 0.0)


def summarize_tuning(outcomes: Outcomes) -> TuningSummary | None:
    """The tuning that a study's plan keeps; None where it was not tuned."""
    study = outcomes.study
    tuned, metric = study.tuned, mapping(study.tuned.get("metric"))
    if not tuned:
        return None
    regrets = (outcomes.regrets(study.metric.name) if study.metric else None) or {}
    found, name = [], str(metric.get("name"))
    for cell in study.cells:
        record = mapping(mapping(tuned.get("cells")).get(cell.name))
        settings, values_KS, chosen = trials_of(record, name)
        if chosen >= 0:
            diverged = _diverged(record, settings, values_KS)
            default, regret = mapping(record.get("default")), regrets.get(cell.name, math.inf)
            found.append(TunedCell(study.label(cell), settings, values_KS, chosen, default, diverged, regret))
    how, trials, better = str(tuned.get("how")), tuned.get("trials"), str(metric.get("better"))
    seeds, search = listed(tuned.get("seeds")), mapping(tuned.get("search"))
    return TuningSummary(how, trials if isinstance(trials, int) else 0, seeds, name, better, search, found)


def _diverged(record: Mapping[str, object], settings: Sequence[object], values_KS: np.ndarray) -> list[bool]:
    """Of each setting whether a run of it ended without a number and none failed."""
    states: dict[str, set[object]] = {}
    for trial in map(mapping, listed(record.get("trials"))):
        runs = map(mapping, mapping(trial.get("runs")).values())
        states[repr(trial.get("settings"))] = {run.get("state") for run in runs}
    known = np.isfinite(values_KS).all(axis=1)
    return [
        not is_known and states[repr(one)] <= {"diverged", "finished"}
        for one, is_known in zip(settings, known, strict=True)
    ]


# --- in words


def budget_sentence(found: TuningSummary) -> str:
    """What every cell was given."""
    fields = listing([*found.search])
    how = {"grid": "a grid", "random": "draws at random", "tpe": "TPE"}.get(found.how, found.how)
    runs = found.trials * len(found.seeds)
    return (
        f"Every cell had the same search for {fields}: {how} of {found.trials} settings x {len(found.seeds)} "
        f"seed{'s' * (len(found.seeds) != 1)} ({runs} runs), by {found.metric}, on seeds that are not compared."
    )


def tuning_caveats(found: TuningSummary | None, cells: Sequence[CellSummary]) -> list[str]:
    """What a reader must know of choices: those on an edge, budgets that came out unequal, and words that they cost."""
    if found is None:
        return []
    edges = [f"{cell.label} ({', '.join(at)})" for cell in found.cells if (at := [*cell.at_edge(found.axes)])]
    caveats = []
    if edges:
        caveats.append(
            f"Settings were chosen on the edge of what was searched, so a better one may lie beyond: "
            f"{listing(edges, MOST_NAMES)}. Let tune.search go further."
        )
    counts = [(cell.label, len(cell.settings) - len(cell.usable), len(cell.settings)) for cell in found.cells]
    short_of = [f"{lost} of {asked} of {label}" for label, lost, asked in counts if lost]
    if short_of:
        caveats.append(
            "Cells were not tuned alike: settings that were to be tried have no value (failed, or their parts are "
            f"incompatible), {listing(short_of, MOST_NAMES)}. A cell with fewer may look worse than it is."
        )
    compared = [cell.difference for cell in cells if cell.difference]
    if any(not one.contrast.is_mean for one in compared):
        caveats.append(
            f"What the choice of a setting may have missed has no bound in {compared[0].metric.name}, so no tuned cell "
            "is called better or worse: its figures are those at the settings chosen."
        )
    elif lost := [cell.label for cell in cells if _loses_its_word(cell)]:
        caveats.append(
            f"At the settings chosen {listing(lost, MOST_NAMES)} would be told from the baseline; that it holds at the "
            "best settings, too, so few trials cannot show (see the bound on what each choice may have missed). More "
            "tune.seeds would."
        )
    return caveats


def _loses_its_word(cell: CellSummary) -> bool:
    """Whether a difference is sure at the settings chosen and not at the best ones."""
    found = cell.difference
    if found is None or found.verdict in DECIDED or found.contrast.beyond_chance:
        return False
    return verdict_of(found.contrast.at_choices(1 - found.share), found.metric) in DECIDED


# --- tables


def setting_text(settings: Mapping[str, object]) -> str:
    """A setting as words: lr=0.003 weight_decay=0.1."""
    return " ".join(f"{short(key)}={value}" for key, value in settings.items())


def choices_table(found: TuningSummary, cells: Sequence[CellSummary]) -> Table:
    """A row a cell: the choice, what it came to, how much settings matter, and the difference at the choices."""
    of_label = {cell.label: cell for cell in cells}
    differences = [one.difference.interval for one in cells if one.difference]
    means = [mean for cell in found.cells for mean in cell.means if math.isfinite(mean)]
    decimals = decimals_for(differences)
    places = max(2, 2 - math.floor(math.log10(np.ptp(means) or 1.0))) if means else 3

    def edge(cell: TunedCell) -> Contents:
        text = setting_text(cell.choice)
        return Entry(text, mood="open", note="edge") if any(cell.at_edge(found.axes)) else Entry(text)

    def at_choices(cell: TunedCell) -> str:
        one = of_label[cell.label].difference
        return interval_text(one.contrast.at_choices(1 - one.share), decimals, sign=True) if one else ""

    columns = [
        Column[TunedCell]("cell", lambda cell: cell.label, "l"),
        Column("chosen", edge, "l"),
        Column(found.metric, lambda cell: Entry(number(cell.means[cell.chosen], places), cell.means[cell.chosen])),
        Column("tried", lambda cell: f"{len(cell.usable)} of {len(cell.settings)}"),
        Column("may have missed", lambda cell: number(cell.regret, max(decimals, places))),
        Column("diff at the choices (interval)", at_choices),
    ]
    if found.is_alike:
        columns.insert(4, Column("sensitivity", lambda cell: number(found.sensitivity(cell), places)))
    notes = [
        "may have missed: bound on how much worse the chosen setting is than the best one, in the study's metric; "
        "words such as better hold for any regrets within these bounds. "
        + "sensitivity: the mean over all settings tried minus the best of them."
        * found.is_alike
    ]
    return Table.of(columns, found.cells, "Tuning", notes)


def equal_settings_table(found: TuningSummary) -> Table | None:
    """A row a setting, a column a cell: what all came to with it; None where they tried different ones, or one."""
    if not found.is_alike or not found.cells or len(found.cells[0].settings) < 2:
        return None
    means = {cell.label: dict(zip(map(repr, cell.settings), cell.means, strict=True)) for cell in found.cells}
    known = [mean for of in means.values() for mean in of.values() if math.isfinite(mean)]
    places = max(2, 2 - math.floor(math.log10(np.ptp(known) or 1.0))) if known else 3
    pick = min if found.better == "lower" else max

    def value(label: str, setting: dict[str, object]) -> Entry:
        mean = means[label][repr(setting)]
        of_row = [of[repr(setting)] for of in means.values() if math.isfinite(of[repr(setting)])]
        is_best = len(of_row) > 1 and mean == pick(of_row)
        return Entry(number(mean, places), mean if math.isfinite(mean) else None, note="best" * is_best)

    columns = [Column[dict[str, object]]("setting", setting_text, "l")]
    columns += [Column(cell.label, partial(value, cell.label)) for cell in found.cells]
    rows = found.cells[0].settings
    title = f"{found.metric} at equal settings"
    return Table.of(columns, rows, title, [_defaults(found)])


def _defaults(found: TuningSummary) -> str:
    """Where each cell would have been untuned."""
    tried = {cell.label: dict(zip(map(repr, cell.settings), cell.means, strict=True)) for cell in found.cells}
    parts = []
    for text in dict.fromkeys(setting_text(cell.default) for cell in found.cells):
        cells = [cell for cell in found.cells if setting_text(cell.default) == text]
        values = [tried[cell.label].get(repr(cell.default), math.nan) for cell in cells]
        came = [f"{c.label} {number(v, 3)}" for c, v in zip(cells, values, strict=True) if math.isfinite(v)]
        parts.append(f"{text} ({', '.join(came) if came else 'not among those tried'})")
    return (
        f"Means over {len(found.seeds)} tuning seed{'s' * (len(found.seeds) != 1)}: described, not judged. Without "
        f"tuning cells would have had {listing(parts)}."
    )
