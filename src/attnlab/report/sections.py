"""The sections of the page, in reading order. Each function prepares what the macro of its name in
templates/sections.html shows, and gives None where the study has nothing for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from markupsafe import Markup

from attnlab.analysis import formatting as wording
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.formatting import MULTIPLE, quantity
from attnlab.analysis.headline import headline
from attnlab.analysis.lengths import WORDS, LengthCurve
from attnlab.analysis.sentence_bootstrap import p_summary, sentences_of
from attnlab.analysis.statistics import BOOTSTRAP_HOLDS, mean_interval
from attnlab.analysis.table import Column, Content, Contents, Entry, Table, typographic
from attnlab.analysis.warnings import power_sentence, time_note
from attnlab.report.document import part
from attnlab.report.figures import forest
from attnlab.report.page_data import PageData
from attnlab.report.run_data import RunEntry

MOST_COLUMNS = 6  # of metrics at once
MOST_INTERACTIONS = 10  # that are not folded away
LONG_LABEL = 24  # letters of a baseline that no heading names

word = partial(part, "page.html", "word")


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    key: str
    title: str
    content: Markup


def all_sections(c: Comparison, data: PageData) -> list[Section]:
    """Every section that the study has something for."""
    baseline = c.baseline.label if c.baseline else ""
    to = baseline if 0 < len(baseline) < LONG_LABEL else "the baseline"
    found: dict[str, tuple[str, object]] = {
        "short": ("In short", headline(c)),
        "trust": ("Before you trust it", c.caveats),
        "lengths": ("Beyond the training length", lengths(c)),
        "grid": ("The grid", forest.Grid.of(c)),
        "factors": ("What each choice changes", forest.effects(c)),
        "interactions": ("What depends on what", interactions(c)),
        "differences": (f"Difference to {to}", forest.differences(c)),
        "claims": ("Claims made beforehand", [Entry(claim.verdict, mood=claim.verdict) for claim in c.claims]),
        "curves": ("Learning curves", data["curves"]),
        "cells": ("All cells", cells(c, data)),
        "evidence": ("How sure", evidence(c)),
        "sentences": ("Other test sentences", sentences(c)),
        "parallel": ("Runs through their choices", data["axes"]),
        "samples": ("What the models give", data["samples"]),
        "cost": ("What each cell cost", cost(c)),
        "settings": ("Settings that differ", settings(c)),
        "pair": ("Two runs side by side", sum("own" in run or "values" in run for run in data["runs"]) > 1),
        "problems": ("Runs missing or failed", problems(c)),
        "runs": ("Every run", runs(c, data)),
        "repeat": ("Repeat it", c.study),
        "reading": ("How to read this", BOOTSTRAP_HOLDS),
    }
    order = list(found)
    if c.metric is None or not MULTIPLE.fullmatch(c.metric.name):  # it is not about length
        order.insert(order.index("differences"), order.pop(order.index("lengths")))
    # The first picture stands before what to know before trusting it.
    first = next((key for key in order[2:7] if found[key][1]), "lengths")
    order.insert(1, order.pop(order.index(first)))
    shown = ((key, *found[key]) for key in order if found[key][1])
    return [Section(key, title, part("sections.html", key, c, given)) for key, title, given in shown]


def lengths(c: Comparison) -> Mapping[str, object] | None:
    """The metric against length: the chart, and the figures with a word for each cell."""
    curves = c.primary_lengths
    if not curves:
        return None
    multiples = sorted({k for curve in curves for k in (*curve.points, *curve.cannot)})
    decimals = wording.decimals_for(point for curve in curves for point in curve.points.values())

    def label(curve: LengthCurve) -> Contents:
        words = WORDS
        text = wording.verdict_text(curve.change, words) if curve.change else words[curve.verdict]
        return [curve.label, word(text, f"chip {'better' if curve.verdict == 'same' else wording.slug(curve.verdict)}")]

    def at(multiple: float, curve: LengthCurve) -> Content:
        if multiple not in curve.points:
            return Entry("cannot" if multiple in curve.cannot else "-", mood="soft")
        mean = curve.points[multiple].mean
        return Entry(wording.number(mean, max(0, decimals - 1)), mean)

    def change(curve: LengthCurve) -> str:
        interval = curve.change.interval if curve.change else None
        return typographic(wording.interval_text(interval, decimals, sign=True))

    columns = [Column("cell", label), *(Column(f"{k:g}\u00d7", partial(at, k)) for k in multiples)]
    columns.append(Column(f"change {multiples[0]:g}\u00d7 to {multiples[-1]:g}\u00d7", change))
    return {
        "multiples": multiples,
        "unit": wording.unit(curves[0].prefix, c.study),
        "table": Table.of(columns, curves, "The metric at each length"),
        "reasons": dict.fromkeys(f"{curve.label}: {reason}" for curve in curves for reason in curve.cannot.values()),
    }


def interactions(c: Comparison) -> Mapping[str, forest.Forest] | None:
    """The forest of interactions, the largest first, and that of those to fold away."""
    drawn = forest.interactions(c)
    if drawn is None:
        return None
    rest = replace(drawn, rows=drawn.rows[MOST_INTERACTIONS:], name="Smaller interactions of two factors")
    return {"largest": replace(drawn, rows=drawn.rows[:MOST_INTERACTIONS]), "smaller": rest}


def cells(c: Comparison, data: PageData) -> Mapping[str, object] | None:
    """Every cell with every final metric, and the primary one by seed, each value a link to its run's directory."""
    if not c.cells:
        return None
    names, by_seed = c.study.metrics, None
    family = [name for name in names if c.metric and name.partition("@")[0] == c.metric.name.partition("@")[0]]
    main = names if len(names) <= MOST_COLUMNS else (family if len(family) > 1 else names)[:MOST_COLUMNS]
    others = [name for name in names if name not in main]
    if c.metric:
        decimals = wording.decimals_for(cell.interval for cell in c.cells)
        links = {(run["cell"], run["seed"]): run.get("href", "") for run in data["runs"]}

        def of_seed(seed: int, cell: CellSummary) -> Content:
            value = cell.values.get(seed)
            text = "-" if value is None else wording.number(value, decimals)
            return Entry(text, value, link=links.get((cell.label, seed), ""))

        seeds = [Column(f"seed {seed}", partial(of_seed, seed)) for seed in c.study.seeds]
        by_seed = Table.of([Column[CellSummary]("cell", lambda cell: cell.label), *seeds], c.cells, "By seed")
    return {
        "main": _means(c, main, "All cells"),
        "others": _means(c, others, "Other metrics") if others else None,
        "num_others": len(others),
        "by_seed": by_seed,
    }


def _means(c: Comparison, names: Sequence[str], title: str) -> Table:
    values = {
        (cell.label, name): list(c.study.values(cell.cell.name, name).values()) for name in names for cell in c.cells
    }
    intervals = {key: mean_interval(found) if found else None for key, found in values.items()}

    def mean(name: str, decimals: int, cell: CellSummary) -> Content:
        interval = intervals[cell.label, name]
        if interval is None:
            cannot = any(name in run.cannot for run in c.study.runs_of(cell.cell.name))
            return Entry("cannot" if cannot else cell.outcome if cell.outcome != "measured" else "-", mood="soft")
        note = f"\u00b1{interval.high - interval.mean:.{decimals}f}" if interval.is_bounded else ""
        return Entry(wording.number(interval.mean, decimals), interval.mean, note=note)

    def label(cell: CellSummary) -> Contents:
        return [cell.label, Entry("baseline", mood="soft")] if cell.is_baseline else cell.label

    def seeds(cell: CellSummary) -> str:
        total, finished = sum(cell.states.values()), cell.states.get("finished", 0)
        return str(total) if finished == total else f"{finished} of {total}"

    columns = [Column("cell", label), Column("seeds", seeds)]
    if any(cell.rank_interval for cell in c.cells):
        columns.append(Column("place", lambda cell: wording.rank_text(cell.rank_interval).replace("-", "\u2013")))
    for name in names:
        decimals = wording.decimals_for(intervals[cell.label, name] for cell in c.cells)
        columns.append(Column(name, partial(mean, name, decimals)))
    return replace(Table.of(columns, c.cells, title), keys=[cell.label for cell in c.cells])


def evidence(c: Comparison) -> Mapping[str, object] | None:
    """One row a comparison with every figure that speaks for or against it."""
    compared = [cell for cell in c.cells if cell.difference or cell.failures]
    if c.metric is None or not compared:
        return None
    decimals = wording.decimals_for(cell.difference.interval for cell in compared if cell.difference)
    head = ["cell", "effect size", "P(better)", "p", "p (sign flip)", *(["p (same)"] if c.metric.margin > 0 else [])]
    head += ["bootstrap", "smallest seen", "seeds to settle"]
    rows = [[cell.label, *map(typographic, _figures(cell, decimals, c.metric.margin > 0))] for cell in compared]
    if any(cell.failures for cell in compared):  # "4 of 4 (p 0.029)"
        head.append("lost runs")
        for row, cell in zip(rows, compared, strict=True):
            row.append(wording.failures_text(cell).replace(" runs lost", "") or "-")
    return {"power": power_sentence(c.cells, c.metric), "table": Table(head, rows, "How sure each comparison is")}


def _figures(cell: CellSummary, decimals: int, has_equivalence: bool) -> list[str]:
    found, chance = cell.difference, wording.number(cell.probability_better, 2)
    if found is None:
        return ["-", chance, *["-"] * (5 + has_equivalence)]
    tests = [found.p_adjusted, found.p_sign_flip_adjusted]
    tests += [found.p_equivalence_adjusted] if has_equivalence else []
    bounds = (wording.number(end, decimals, sign=True) for end in (found.bootstrap.low, found.bootstrap.high))
    return [
        wording.number(found.effect_size, 1, sign=True),
        chance,
        *map(wording.p_text, tests),
        " to ".join(bounds) if found.bootstrap.is_bounded else "-",
        wording.number(found.smallest_effect, decimals),
        wording.seeds_text(found.seeds_to_settle),
    ]


def sentences(c: Comparison) -> Mapping[str, object] | None:
    """The differences on resampled test sentences, where they were asked for."""
    found = c.sentences
    if found is None:
        return None
    rows: list[list[Contents]] = [
        [one.label, one.score, Entry(wording.number(one.mean, 2, sign=True), one.mean), p_summary(one)]
        for one in found.differences
    ]
    table = Table(["cell", "score", "difference", "p by seed"], rows, "Other test sentences")
    return {"lead": sentences_of(found), "table": table, "signatures": found.signatures.values()}


def cost(c: Comparison) -> Mapping[str, object] | None:
    """The budget of every cell."""
    if not any(cell.budget.steps > 0 for cell in c.cells):
        return None
    columns = [
        Column[CellSummary]("cell", lambda cell: cell.label),
        Column("steps", lambda cell: quantity(cell.budget.steps)),
        Column(f"{c.study.unit}s", lambda cell: quantity(cell.budget.tokens)),
        Column("parameters", lambda cell: quantity(cell.budget.parameters)),
        Column("training FLOPs", lambda cell: quantity(cell.budget.flops)),
        Column("seconds a run", lambda cell: wording.number(cell.budget.seconds, 1)),
    ]
    note = time_note({cell.cell.name: cell.budget for cell in c.cells})
    return {"table": Table.of(columns, c.cells, "What each cell cost"), "note": note}


def settings(c: Comparison) -> Mapping[str, Table | None] | None:
    """The configuration keys that differ between cells, beside those that all share by the study's word."""
    if not c.settings:
        return {"table": None} if c.study.shared else None
    labels = [cell.label for cell in c.cells if cell.states]

    def value(label: str, values: Mapping[str, object]) -> Entry:
        found = values.get(label)
        return Entry("-" if found is None else str(found), is_code=True)

    rows: list[list[Contents]] = [
        [label, *(value(label, values) for values in c.settings.values())] for label in labels
    ]
    table = Table(["cell", *c.settings], rows, "Settings that differ")
    # Few cells: a column each, so that long names of settings stand in rows.
    return {"table": table.transposed() if len(labels) <= MOST_COLUMNS + 2 else table}


def problems(c: Comparison) -> Table | None:
    """Runs that are missing, failed, diverged or not finished, and cells that were skipped, with the reason."""
    skipped = [cell for cell in c.cells if cell.outcome == "skipped"]
    rows: list[list[Contents]] = [["skipped", cell.label, "", cell.reason, ""] for cell in skipped]
    for run in c.problems:
        reason = run.problem
        command = Entry(str(run.record.get("command") or ""), is_code=True)
        rows.append([run.state, run.cell, run.seed, reason, command])
    return Table(["state", "cell", "seed", "reason", "command"], rows, "Runs missing or failed") if rows else None


def runs(c: Comparison, data: PageData) -> Table | None:
    """Every run with its state, value and directory; tables.js unfolds its command and the end of its log."""
    if not data["runs"]:
        return None
    decimals = wording.decimals_for(cell.interval for cell in c.cells)

    def value(place: int, run: RunEntry) -> Content:
        found = run["values"][place] if "values" in run else None
        return Entry("-") if found is None else Entry(wording.number(found, decimals), found)

    def directory(run: RunEntry) -> Content:
        return Entry(run["path"], link=run["href"]) if "href" in run else Entry(run["path"], is_code=True)

    columns = [
        Column[RunEntry]("cell", lambda run: run["cell"]),
        Column("seed", lambda run: run["seed"]),
        Column("state", lambda run: word(run["state"], f"state {run['state']}")),
    ]
    if c.metric and c.metric.name in data["metrics"]:
        columns.append(Column(c.metric.name, partial(value, data["metrics"].index(c.metric.name))))
    columns.append(Column("directory", directory))
    return replace(Table.of(columns, data["runs"], "Every run"), keys=[run["path"] for run in data["runs"]])
