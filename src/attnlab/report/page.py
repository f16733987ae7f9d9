"""The comparison as one self-contained HTML page: it opens from a file and loads nothing from anywhere.

Its sections stand here in reading order. Each function prepares what the macro of its name in templates/sections.html
shows, and gives None where the study has nothing for it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from attnlab import __version__
from attnlab.analysis import formatting as wording
from attnlab.analysis.budgets import some_idle, time_note
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison, compare, parts_of_study
from attnlab.analysis.formatting import decimals_for, listing, number, quantity
from attnlab.analysis.headline import headline, length_verdict
from attnlab.analysis.lengths import OF_SAME_RUNS, LengthCurve, multiples_of
from attnlab.analysis.proportions import described
from attnlab.analysis.reached import reached_table
from attnlab.analysis.reader import Study
from attnlab.analysis.sentence_bootstrap import p_summary, sentences_of
from attnlab.analysis.size_trends import size_table
from attnlab.analysis.statistics import BOOTSTRAP_HOLDS
from attnlab.analysis.table import Column, Content, Contents, Entry, Table, typographic
from attnlab.analysis.tables import name_columns
from attnlab.analysis.tuning import budget_sentence, choices_table, equal_settings_table
from attnlab.report.document import document, json_script, part, resource, script
from attnlab.report.evidence import evidence
from attnlab.report.figures import forest
from attnlab.report.page_data import PageData, page_data
from attnlab.report.run_data import RunEntry, is_plumbing, origin
from attnlab.training.run_directory import write_text

SCRIPTS = ("page.js", "charts.js", "runs.js", "tables.js", "pair.js", "parallel.js", "samples.js")
MOST_COLUMNS = 6  # of metrics at once
MOST_INTERACTIONS = 10  # that are not folded away
LONG_LABEL = 24  # letters of a baseline that no heading names

word = partial(part, "page.html", "word")


def write_report(source: Study | Comparison, path: str | Path) -> Path:
    """Writes the page of a study to `path` (a file; a folder gets index.html), atomically, and returns the file.

    Raises CannotWrite where the disk is full or read-only, or permission is missing.
    """
    comparison = compare(parts_of_study(source)[0]) if isinstance(source, Study) else source
    path = Path(path)
    path = path / "index.html" if path.is_dir() or not path.suffix else path
    root = os.path.relpath(comparison.study.path, path.parent)
    write_text(path, render(comparison, root if root.startswith(".") else f"./{root}"), durable=False)
    return path


def render(comparison: Comparison, root: str | None = None) -> str:
    """The page as HTML text. root: the study's directory from where the page stands; None: runs are not linked."""
    data = page_data(comparison, root)
    has_charts = any(data[kind] for kind in ("lengths", "curves", "pareto", "tuning", "axes"))
    return document(f"{comparison.study.name} - attnlab", [body(comparison, data), *scripts(has_charts)])


def body(comparison: Comparison, data: PageData) -> Markup:
    name = comparison.study.name
    made = f"Made by attnlab {__version__} from {name}. Every number comes from its run directories."
    return part("page.html", "body", _header(comparison), all_sections(comparison, data), made, json_script(data))


def scripts(has_charts: bool = True, named: Sequence[str] = SCRIPTS) -> list[Markup]:
    """What serves the tables and draws the charts, if any. The tables need not wait for the library that draws."""
    own = script("".join([*map(resource, named), "attnlab.start();"]))
    return [own, script(_plotly()), script("attnlab.start();")] if has_charts else [own]


def _plotly() -> str:
    """plotly.js: the basic bundle, which draws all that a page has; where the installation has none, the whole."""
    own = files("attnlab.report").joinpath("plotly-basic.min.js")
    whole = files("plotly.package_data").joinpath("plotly.min.js")
    return (own if own.is_file() else whole).read_text(encoding="utf-8")


def _header(comparison: Comparison) -> Markup:
    study, metric, states = comparison.study, comparison.metric, comparison.states
    others = "".join(f", {n} {state}" for state, n in sorted(states.items()) if state != "finished")
    facts = [
        *origin(study),
        _count(len(study.cells), "cell"),
        _count(len(study.seeds), "seed"),
        f"{states.get('finished', 0)} of {_count(len(study.runs), 'run')} finished{others}",
    ]
    if study.code.get("commit"):
        facts.append(f"code {str(study.code['commit'])[:10]}{' with changes' if study.code.get('dirty') else ''}")
    # No line of the title ends within a word such as warm-up.
    title = re.split(r"(\s+)", study.question or study.name)
    missing = listing(study.metrics) if metric and study.metrics and metric.name not in study.metrics else ""
    description = wording.describe(metric.name, study) if metric else ""
    return part("page.html", "header", study, title, facts, metric, description, missing)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    key: str
    title: str
    content: Markup


def all_sections(c: Comparison, data: PageData) -> list[Section]:
    baseline = c.baseline.label if c.baseline else ""
    to = baseline if 0 < len(baseline) < LONG_LABEL else "the baseline"
    found: dict[str, tuple[str, object]] = {
        "short": ("Summary", headline(c)),
        "trust": ("Caveats", c.caveats),
        "grid": ("The grid", forest.Grid.of(c)),
        "factors": ("Main effects", forest.effects(c)),
        "interactions": ("Interactions", interactions(c)),
        "differences": (f"Difference to {to}", forest.differences(c)),
        "lengths": ("Beyond the training length", lengths(c)),
        "sizes": ("Grows or shrinks with size", size_table(c.size_trends)),
        "reached": ("Reaching the target", reached_table(c)),
        "tuning": ("Tuning", tuning(c, data)),
        "claims": ("Claims made beforehand", [Entry(claim.verdict, mood=claim.verdict) for claim in c.claims]),
        "curves": ("Learning curves", data["curves"]),
        "cells": ("All cells", cells(c, data)),
        "evidence": ("Statistical evidence", evidence(c)),
        "sentences": ("Other test sentences", sentences(c)),
        "parallel": ("Parallel coordinates", data["axes"]),
        "samples": ("Samples", data["samples"]),
        "pareto": ("Result against cost", data["pareto"]),
        "cost": ("What each cell cost", cost(c)),
        "settings": ("Settings that differ", settings(c)),
        "pair": ("Two runs side by side", sum("own" in run or "values" in run for run in data["runs"]) > 1),
        "problems": ("Runs missing or failed", problems(c)),
        "runs": ("Every run", runs(c, data)),
        "repeat": ("Reproduce", c.study),
        "reading": ("How to read this", BOOTSTRAP_HOLDS),
    }
    order = list(found)
    # The answer, a picture of the primary metric, stands before what to know before trusting it.
    first = next((key for key in order[2:7] if found[key][1]), "lengths")
    order.insert(1, order.pop(order.index(first)))
    shown = ((key, *found[key]) for key in order if found[key][1])
    return [Section(key, title, part("sections.html", key, c, given)) for key, title, given in shown]


def lengths(c: Comparison) -> Mapping[str, object] | None:
    """The metric against length: the chart, and the figures with a word for each cell."""
    curves = c.primary_lengths
    if not curves:
        return None
    multiples = multiples_of(curves)
    decimals = decimals_for(point for curve in curves for point in curve.points.values())

    def at(multiple: float, curve: LengthCurve) -> Content:
        if multiple not in curve.points:
            return Entry("unavailable" if multiple in curve.unavailable else "-", mood="soft")
        point = curve.points[multiple]
        return Entry(wording.mean_text(point, max(0, decimals - 1)), point.mean)

    def change(curve: LengthCurve) -> str:
        interval = curve.change.interval if curve.change else None
        return typographic(wording.interval_text(interval, decimals, sign=True))

    is_share = any(curve.change and not curve.change.contrast.is_mean for curve in curves)
    columns = [
        Column("cell", lambda curve: [curve.label, length_verdict(curve)]),
        *(Column(f"{k:g}\u00d7", partial(at, k)) for k in multiples),
    ]
    columns.append(Column(f"change {multiples[0]:g}\u00d7 to {multiples[-1]:g}\u00d7", change))
    return {
        "multiples": multiples,
        "unit": wording.unit(curves[0].prefix, c.study),
        "table": Table.of(columns, curves, "The metric at each length", [OF_SAME_RUNS] if is_share else []),
        "reasons": dict.fromkeys(
            f"{curve.label}: {reason}" for curve in curves for reason in curve.unavailable.values()
        ),
    }


def tuning(c: Comparison, data: PageData) -> Mapping[str, object] | None:
    """The curves of all cells over what was searched, their choices, and what they came to at equal settings."""
    if c.tuning is None:
        return None
    tables = {"choices": choices_table(c.tuning, c.cells), "equal": equal_settings_table(c.tuning)}
    return {"budget": budget_sentence(c.tuning), "has_curves": bool(data["tuning"]), **tables}


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
    main, by_seed = _main_metrics(c), None
    others = [name for name in c.study.metrics if name not in main]
    if c.metric:
        decimals = decimals_for(cell.interval for cell in c.cells)
        links = {(run["cell"], run["seed"]): run.get("href", "") for run in data["runs"]}

        def of_seed(seed: int, cell: CellSummary) -> Content:
            value, cost = cell.values.get(seed), cell.costs.get(seed)
            text = "-" if value is None else number(value, decimals)
            text = str(cost) if cost and not cost.is_exact else text
            return Entry(text, value, link=links.get((cell.label, seed), ""))

        seeds = [Column(f"seed {seed}", partial(of_seed, seed)) for seed in c.study.seeds]
        by_seed = Table.of([Column[CellSummary]("cell", lambda cell: cell.label), *seeds], c.best_first, "By seed")
    return {
        "main": table_of_cells(c),
        "others": _means(c, others, "Other metrics") if others else None,
        "num_others": len(others),
        "by_seed": by_seed,
    }


def table_of_cells(c: Comparison) -> Table:
    """Every cell with its seeds, its place, and the metrics that matter most: all, or up to six of the primary one's
    family."""
    return _means(c, _main_metrics(c), "All cells")


def _main_metrics(c: Comparison) -> list[str]:
    names = c.study.metrics
    family = [name for name in names if c.metric and name.partition("@")[0] == c.metric.name.partition("@")[0]]
    return names if len(names) <= MOST_COLUMNS else (family if len(family) > 1 else names)[:MOST_COLUMNS]


def _means(c: Comparison, names: Sequence[str], title: str) -> Table:
    intervals = {(cell.label, name): described(c.study, cell.cell.name, name) for name in names for cell in c.cells}

    def mean(name: str, decimals: int, cell: CellSummary) -> Content:
        interval = intervals[cell.label, name]
        if interval is None:
            unavailable = any(name in run.unavailable for run in c.study.runs_of(cell.cell.name))
            return Entry(
                "unavailable" if unavailable else cell.outcome if cell.outcome != "measured" else "-", mood="soft"
            )
        note = f"({wording.ends_text(interval, decimals)})"
        if wording.is_even(interval):
            note = f"\u00b1{interval.high - interval.mean:.{decimals}f}" if interval.is_bounded else ""
        position = interval.position if math.isfinite(interval.position) else None
        return Entry(wording.mean_text(interval, decimals), position, note=note)

    def seeds(cell: CellSummary) -> str:
        total, finished = sum(cell.states.values()), cell.states.get("finished", 0)
        return str(total) if finished == total else f"{finished} of {total}"

    names_of: list[Column[CellSummary]] = name_columns(c, lambda cell: cell.cell)
    first, *others = names_of

    def named(cell: CellSummary) -> Contents:
        return [str(first.of(cell)), Entry("baseline", mood="soft")] if cell.is_baseline else first.of(cell)

    columns = [Column(first.heading, named, "l"), *others, Column("seeds", seeds)]
    if any(cell.rank_interval for cell in c.cells):
        columns.append(Column("place", lambda cell: wording.rank_text(cell.rank_interval).replace("-", "\u2013")))
    for name in names:
        decimals = decimals_for(intervals[cell.label, name] for cell in c.cells)
        columns.append(Column(name, partial(mean, name, decimals)))
    return replace(Table.of(columns, c.best_first, title), keys=[cell.label for cell in c.best_first])


def sentences(c: Comparison) -> Mapping[str, object] | None:
    found = c.sentences
    if found is None:
        return None
    rows: list[list[Contents]] = [
        [one.label, one.score, Entry(number(one.mean, 2, sign=True), one.mean), p_summary(one)]
        for one in found.differences
    ]
    table = Table(["cell", "score", "difference", "p by seed"], rows, "Other test sentences")
    return {"lead": sentences_of(found), "table": table, "signatures": found.signatures.values()}


def cost(c: Comparison) -> Mapping[str, object] | None:
    if not any(cell.budget.steps > 0 for cell in c.cells):
        return None

    def active(cell: CellSummary) -> str:
        return quantity(cell.budget.active_parameters)

    columns = [
        Column[CellSummary]("cell", lambda cell: cell.label),
        Column("steps", lambda cell: quantity(cell.budget.steps)),
        Column(f"{c.study.unit}s", lambda cell: quantity(cell.budget.tokens)),
        Column("parameters", lambda cell: quantity(cell.budget.parameters)),
        *([Column("active for a token", active)] if some_idle(cell.budget for cell in c.cells) else []),
        Column("training FLOPs", lambda cell: quantity(cell.budget.flops)),
        Column("seconds a run", lambda cell: number(cell.budget.seconds, 1)),
    ]
    note = time_note({cell.cell.name: cell.budget for cell in c.cells})
    return {"table": Table.of(columns, c.best_first, "What each cell cost"), "note": note}


def settings(c: Comparison) -> Mapping[str, Table | None] | None:
    """The configuration keys that differ between cells, beside those that all share by the study's word."""
    known = {key: values for key, values in c.settings.items() if not (is_plumbing(key) or key in c.study.varying)}
    if not known:
        return {"table": None} if c.study.shared else None
    labels = [cell.label for cell in c.cells if cell.states]

    def value(label: str, values: Mapping[str, object]) -> Entry:
        found = values.get(label)
        return Entry("-" if found is None else str(found), is_code=True)

    rows: list[list[Contents]] = [[label, *(value(label, values) for values in known.values())] for label in labels]
    table = Table(["cell", *known], rows, "Settings that differ")
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
    decimals = decimals_for(cell.interval for cell in c.cells)

    def value(place: int, run: RunEntry) -> Content:
        found = run["values"][place] if "values" in run else None
        censored = run.get("censored", {}).get(data["metrics"][place])
        return Entry(censored or ("-" if found is None else number(found, decimals)), found)

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
