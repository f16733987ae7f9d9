"""What a study's runs say: cells, paired differences, ranks, what changes with length, effects, claims and caveats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from attnlab.analysis.cells import CellSummary, summarize
from attnlab.analysis.claims import Claim, check_claims
from attnlab.analysis.differences import ALPHA
from attnlab.analysis.factors import Effect, Factorial, Interaction, factor_effects, interactions, unmatched
from attnlab.analysis.lengths import LengthCurve, length_curves, primary_lengths
from attnlab.analysis.outcomes import Outcomes
from attnlab.analysis.reader import Choice, Metric, Run, Study, same
from attnlab.analysis.sentence_bootstrap import RESAMPLES, SentenceResult, resample_sentences
from attnlab.analysis.warnings import caveats_of

IDENTITY = ("study", "cell", "seed", "run_dir", "runs_dir", "hydra")
FEWEST_CELLS = 6  # that may fall into clusters


@dataclass(frozen=True)
class Clusters:
    """Two groups of cells that no run bridges, each best first.

    `common` are the choices that all of `worse` share and not all cells do.
    """

    better: list[CellSummary]
    worse: list[CellSummary]
    common: dict[str, Choice]


@dataclass(frozen=True)
class Comparison:
    """All that the terminal, the tables and the page say about a study.

    `sentences` is there where it was asked for (see `with_resampled_sentences`).
    """

    study: Study
    metric: Metric | None
    cells: list[CellSummary]
    claims: list[Claim]
    lengths: list[LengthCurve]
    effects: list[Effect]
    settings: dict[str, dict[str, Any]]
    problems: list[Run]
    caveats: list[str]
    interactions: list[Interaction] = field(default_factory=list)
    sentences: SentenceResult | None = None

    @property
    def baseline(self) -> CellSummary | None:
        """The baseline's cell."""
        return next((cell for cell in self.cells if cell.is_baseline), None)

    @property
    def measured(self) -> list[CellSummary]:
        """The cells with a value, best mean first, then those of which runs failed: for reading, no ranking."""
        sign = -1 if self.metric and self.metric.better == "higher" else 1
        found = [cell for cell in self.cells if cell.interval is not None]
        return sorted(found, key=lambda cell: (cell.n_failed > 0, sign * cell.interval.mean if cell.interval else 0.0))

    @property
    def states(self) -> dict[str, int]:
        """How many runs of the plan are in which state."""
        return dict(Counter(run.state for run in self.study.runs.values()))

    def with_resampled_sentences(self, resamples: int = RESAMPLES) -> Comparison:
        """The comparison with `sentences` computed: a few seconds for every run, most of them for chrF.

        Raises:
            ValueError: the study has no baseline to hold translations against, or no run with translations, or the
                tokenizer that its BLEU was computed with cannot be loaded.
        """
        return replace(self, sentences=resample_sentences(self.study, resamples))

    @cached_property
    def primary_lengths(self) -> list[LengthCurve]:
        """See `lengths.primary_lengths`."""
        return primary_lengths(self.lengths, self.metric)

    @cached_property
    def clusters(self) -> Clusters | None:
        """The two groups that the cells fall into, such as those that train and those that plateau; None where they do
        not.

        Groups are apart where the widest step between neighbouring means is more than half of the whole range, and
        every run of the one group is better than every run of the other. `worse` is the smaller group or half of the
        cells. Cells that are all alike are parted in at most 5% of studies (see `_chance`).
        """
        cells = self.measured
        if len(cells) < FEWEST_CELLS:
            return None
        means = [cell.interval.mean for cell in cells if cell.interval]
        steps = [abs(after - before) for before, after in pairwise(means)]
        at = max(range(len(steps)), key=lambda index: steps[index]) + 1
        better, worse = cells[:at], cells[at:]
        is_wide = steps[at - 1] > sum(steps) / 2 and len(worse) <= len(better)
        if not is_wide or not _apart(better, worse) or _chance(cells, len(worse)) > ALPHA:
            return None
        shared = {
            name: choice
            for name, choice in worse[0].cell.choices.items()
            if all(same(cell.cell.choices.get(name), choice) for cell in worse)
            and not all(same(cell.cell.choices.get(name), choice) for cell in cells)
        }
        return Clusters(better, worse, shared)


def compare(study: Study, alpha: float = ALPHA) -> Comparison:
    """Compares the cells of a study on its primary metric. `alpha` is the chance of any false word in a family."""
    outcomes = Outcomes(study, alpha)
    factorial = Factorial(outcomes)
    cells, cross = summarize(outcomes), interactions(factorial)
    return Comparison(
        study,
        study.metric,
        cells,
        claims=check_claims(outcomes),
        lengths=length_curves(outcomes),
        effects=factor_effects(factorial, cross),
        settings=differing_settings(study),
        problems=[run for run in study.runs.values() if run.state != "finished" or run.non_finite],
        caveats=caveats_of(study, cells, unmatched(factorial), alpha),
        interactions=cross,
    )


def _chance(cells: list[CellSummary], worse: int) -> float:
    """A bound on the chance that some `worse` of cells which are all alike are the worst with every seed, for every
    number of them there may be.

    The cells of a seed are exchangeable then. Seeds that not all cells have may have been chosen in the worst way.
    """
    seeds = len(set.intersection(*(set(cell.values) for cell in cells)))
    asked = max(sum(cell.states.values()) for cell in cells)
    if seeds < 2:
        return 1.0
    chances = [math.comb(len(cells), n) ** (1.0 - seeds) for n in range(1, len(cells) // 2 + 1)]
    # Of every number together, or a share of the 5% for each: which is smaller follows from cells and seeds alone.
    return float(min(sum(chances), len(chances) * chances[worse - 1]) * math.comb(asked, seeds))


def _apart(first: list[CellSummary], second: list[CellSummary]) -> bool:
    runs = [[value for cell in group for value in cell.values.values()] for group in (first, second)]
    return max(runs[0]) < min(runs[1]) or min(runs[0]) > max(runs[1])


def differing_settings(study: Study) -> dict[str, dict[str, Any]]:
    """{configuration key: {cell label: value}} of keys that differ between cells, and not between a cell's seeds."""
    configs: dict[str, dict[str, Any]] = {}
    varying: set[str] = set()
    for cell in study.cells:
        of_runs = [run.config for run in study.runs_of(cell.name) if run.record]
        for key in dict.fromkeys(key for config in of_runs for key in config):
            found = [config.get(key) for config in of_runs]
            if key.split(".")[0] in IDENTITY:
                continue
            configs.setdefault(key, {})[study.label(cell)] = found[0]
            if any(value != found[0] for value in found):
                varying.add(key)
    cells = {label for of_cells in configs.values() for label in of_cells}
    apart = {
        key: of_cells
        for key, of_cells in configs.items()
        if key not in varying and (len({repr(v) for v in of_cells.values()}) > 1 or set(of_cells) != cells)
    }
    return {key: of_cells for key, of_cells in apart.items() if not _is_copy(key, apart)}


def _is_copy(key: str, settings: Mapping[str, dict[str, Any]]) -> bool:
    """Whether model.position.base only repeats position.base."""
    tails = (key.split(".", i)[-1] for i in range(1, key.count(".") + 1))
    return any(settings.get(tail) == settings[key] for tail in tails)
