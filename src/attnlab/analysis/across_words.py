"""The aggregate over a study's tasks in tables and sentences, and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from attnlab.analysis.across import NAME, Aggregate, Arm, Tasks
from attnlab.analysis.aggregates import AGGREGATES
from attnlab.analysis.differences import DECIDED
from attnlab.analysis.formatting import interval_text, listing, number, p_text, spread_text, verdict
from attnlab.analysis.statistics import BOOTSTRAP_HOLDS, Interval
from attnlab.analysis.table import Column, Content, Entry, Table, plain
from attnlab.analysis.terminal import (
    Shape,
    bullet,
    note,
    print_cells,
    print_claims,
    print_first_that_fits,
    title,
    turned,
)
from attnlab.training.run_directory import write_text

IQM, DECIMALS = "IQM", 3
DIGITS = 10  # of exact figures


def print_aggregate(found: Aggregate, console: Console) -> None:
    """Prints what came out over all tasks: the arms, their scores on each task, sentences and caveats."""
    study = found.study
    console.print(f"[bold]{plain(study.name)}[/bold]  {plain(study.question)}", highlight=False)
    console.print(f"{len(found.tasks)} tasks x {len(study.seeds)} seeds, normalised scores", highlight=False)
    if not found.problem:
        print_arms(found, console)
        title(console, "Mean score on each task")
        by_task = tasks_table(found)
        print_first_that_fits([[(by_task, 2)], [(by_task, 1)], turned(by_task, console, 1)], console)
        for sentence in notes(found):
            note(console, sentence)
    console.print()
    for sentence in sentences(found):
        bullet(console, sentence)
    for caveat in caveats(found):
        bullet(console, caveat, "[yellow]![/yellow] ")


def print_tasks(found: Tasks, console: Console) -> None:
    """Prints what came out over all tasks, then a short table a task."""
    print_aggregate(found.aggregate, console)
    for part, (label, task) in enumerate(zip(found.labels, found.tasks, strict=True), start=1):
        console.rule(f"{label} (--part {part})")
        print_cells(task, console)
        print_claims(task, console)


def print_arms(found: Aggregate, console: Console) -> None:
    """Prints the arms with their aggregates, as many of them as there is room for."""
    title(console, "All tasks, higher is better, with 95% bootstrap intervals")
    shapes: list[Shape] = [[(arms_table(found, detail), gap)] for detail in (2, 1, 0) for gap in (2, 1)]
    print_first_that_fits(shapes, console)


def arms_table(found: Aggregate, detail: int = 2) -> Table:
    """A row an arm, the best interquartile mean first. detail: 2 has every aggregate with its interval, 0 the fewest
    columns."""

    def figure(name: str, arm: Arm) -> Content:
        interval = arm.figures.get(name)
        return _entry(interval, DECIMALS, detail == 2 or name == IQM)

    ranks = _ranks(found)
    names = list(AGGREGATES) if detail else [IQM]
    columns: list[Column[Arm]] = [Column("arm", lambda arm: arm.label, "l")]
    columns += [Column(name, partial(figure, name)) for name in names]
    if ranks:
        columns.append(Column("rank", lambda arm: number(ranks.get(arm.label, math.nan), 2)))
    if detail and any(arm.improvement for arm in found.arms):
        columns.append(Column("P(better)", lambda arm: _entry(arm.improvement, 2, detail == 2)))
    if any(arm.difference for arm in found.arms):
        columns.append(Column("diff", _change))
    if detail and any(arm.difference for arm in found.arms):
        columns.append(Column("p", lambda arm: p_text(arm.difference.p_adjusted) if arm.difference else ""))
    return Table.of([*columns, Column("", _word, "l")], found.best_first, "All tasks")


def _entry(interval: Interval | None, decimals: int, is_whole: bool) -> Content:
    if interval is None:
        return ""
    return Entry(interval_text(interval, decimals) if is_whole else number(interval.mean, decimals), interval.mean)


def _difference(arm: Arm) -> str:
    return spread_text(arm.difference.interval, DECIMALS, sign=True) if arm.difference else ""


def _change(arm: Arm) -> Content:
    return Entry(_difference(arm), arm.difference.interval.mean) if arm.difference else ""


def _word(arm: Arm) -> Content:
    if arm.difference:
        return verdict(arm.difference)
    return "baseline" if arm.is_baseline and arm.figures else Entry(arm.lacks, mood="soft")


def _ranks(found: Aggregate) -> dict[str, float]:
    labels = [arm.label for arm in found.ranked]
    return dict(zip(labels, found.ranks.average, strict=True)) if found.ranks else {}


def tasks_table(found: Aggregate) -> Table:
    """The mean normalised score of each arm on each task."""

    def on(at: int, arm: Arm) -> Content:
        mean = float(arm.scores[:, at].mean()) if arm.seeds else math.nan
        return Entry(number(mean, DECIMALS), mean)

    columns: list[Column[Arm]] = [Column("arm", lambda arm: arm.label, "l")]
    columns += [Column(task.label, partial(on, at)) for at, task in enumerate(found.used)]
    return Table.of(columns, found.best_first, "Mean score on each task")


def to_csv(found: Aggregate) -> str:
    """A row an arm: see `rows_of`."""
    rows = rows_of(found)
    headings = dict.fromkeys(["arm", *(name for row in rows for name in row)])
    return Table([*headings], [[row.get(name) for name in headings] for row in rows]).to_csv(DIGITS)


def rows_of(found: Aggregate) -> list[dict[str, str | float | None]]:
    """Of each arm the aggregates with both ends, the difference to the baseline, the mean score on each task."""
    ranks = _ranks(found)
    rows = []
    for arm in found.arms:
        row: dict[str, str | float | None] = {"arm": arm.label, "seeds": len(arm.seeds), "lost": arm.lost}
        intervals = {name.replace(" ", "_"): arm.figures.get(name) for name in AGGREGATES}
        intervals |= {"probability_better": arm.improvement}
        intervals |= {"difference": arm.difference.interval if arm.difference else None}
        for name, one in intervals.items():
            ends = (one.mean, one.low, one.high) if one else (None, None, None)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        row |= {"p_adjusted": arm.difference.p_adjusted if arm.difference else None}
        row |= {"verdict": arm.difference.verdict if arm.difference else "baseline" if arm.is_baseline else ""}
        row |= {"average_rank": ranks.get(arm.label), "lacks": arm.lacks}
        scores = arm.scores.mean(axis=0).tolist() if arm.seeds else [None] * len(found.used)
        row |= {f"score {task.label}": score for task, score in zip(found.used, scores, strict=True)}
        rows.append(row)
    return rows


def to_markdown(found: Aggregate) -> str:
    """Both tables, what their figures are, and what came out."""
    said = [*sentences(found), *notes(found), *caveats(found)]
    tables = [] if found.problem else [arms_table(found).to_markdown(), tasks_table(found).to_markdown()]
    return "\n".join([*tables, *(f"- {sentence}\n" for sentence in said)])


def to_latex(found: Aggregate) -> str:
    """Both tables, with what their figures are as comments."""
    said = "".join(f"% {sentence}\n" for sentence in [*notes(found), *caveats(found)])
    if found.problem:
        return said
    shapes = [arms_table(found, detail) for detail in (2, 1, 0)]
    arms = next((table for table in shapes if table.fits_article), shapes[-1])
    return f"{arms.to_latex()}\n{tasks_table(found).to_latex()}{said}"


FORMS: dict[str, Callable[[Aggregate], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex}


def write_aggregate(found: Aggregate, folder: Path) -> list[Path]:
    """Writes tasks.csv, tasks.md and tasks.tex, each atomically; returns the files. Raises CannotWrite."""
    files = {folder / f"tasks.{ending}": form(found) for ending, form in FORMS.items()}
    for path, text in files.items():
        write_text(path, text, durable=False)
    return list(files)


def sentences(found: Aggregate) -> list[str]:
    """What came out, in plain sentences."""
    if found.problem:
        return [f"There is no aggregate over the tasks: {found.problem}."]
    measured = found.measured
    if not measured:
        return ["No arm has a score on every task yet."]
    best = measured[0].figures[IQM]
    first = [arm.label for arm in measured if arm.figures[IQM].mean == best.mean]
    has = "has the highest" if len(first) == 1 else "share the highest"
    over = f"{len(found.used)} tasks ({listing([task.label for task in found.used])})"
    said = [f"Over {over}, {listing(first)} {has} interquartile mean, {interval_text(best, DECIMALS)}."]
    return [*said, *_against_baseline(found), *_of_ranks(found)]


def _against_baseline(found: Aggregate) -> list[str]:
    base, judged = found.baseline, [arm for arm in found.best_first if arm.difference]
    if base is None or not judged:
        return []
    words = []
    for verdict_word, text in (("better", "better"), ("worse", "worse"), ("same", "not different by what counts")):
        names = [f"{arm.label} ({_difference(arm)})" for arm in judged if _verdict(arm) == verdict_word]
        words += [f"{listing(names)} {'is' if len(names) == 1 else 'are'} {text}"] if names else []
    rest = [arm.label for arm in judged if _verdict(arm) not in (*DECIDED, "same")]
    words += [f"{listing(rest)} {'is' if len(rest) == 1 else 'are'} undecided"] if rest else []
    return [f"Against {base.label}, by the {NAME}: {'; '.join(words)}."]


def _verdict(arm: Arm) -> str:
    return arm.difference.verdict if arm.difference else ""


def _of_ranks(found: Aggregate) -> list[str]:
    ranks = found.ranks
    if ranks is None:
        return []
    arms, names = len(ranks.average), [arm.label for arm in found.ranked]
    apart = f"two arms are told apart by a difference of {ranks.critical_difference:.2f} (Nemenyi)"
    if ranks.tasks < ranks.fewest_tasks:
        return [
            f"Average ranks over {ranks.tasks} tasks tell nothing apart: of {arms} arms, {apart}, which takes at least "
            f"{ranks.fewest_tasks} tasks."
        ]
    said = f"Average ranks over {ranks.tasks} tasks: {apart}"
    if arms > 2:
        said += f"; Friedman's test that all arms are alike gives p {p_text(ranks.p)}"
        if ranks.p > ranks.alpha:
            return [f"{said}, so the ranks tell none apart."]
    alike = [listing([names[at] for at in group]) for group in ranks.groups]
    return [f"{said}. Not told apart: {'; '.join(alike) or 'none'}."]


def notes(found: Aggregate) -> list[str]:
    """What the figures are."""
    if found.problem:
        return []
    alike: dict[str, list[str]] = {}
    for task in found.used:
        alike.setdefault(f"{task.metric.name}, {task.ends.words}." if task.ends else "", []).append(task.label)
    said = [f"{listing(labels)}: {what}" for what, labels in alike.items()]
    said.append(
        "IQM: mean of the middle half of all runs of all tasks; optimality gap: how far runs stay below 1. Intervals "
        "resample seeds within each task, and take the tasks as given."
    )
    if (base := found.baseline) and base.figures:
        said.append(f"P(better): that a run beats one of {base.label}, ties half, averaged over the tasks.")
    tests = next((arm.difference.tests for arm in found.arms if arm.difference), 0)
    if tests:
        said.append(
            f"diff: {NAME} minus the baseline's, by seed, with its t interval; p and the words are adjusted "
            f"(Bonferroni) for {tests} comparison{'s' * (tests > 1)}."
        )
    return said


def caveats(found: Aggregate) -> list[str]:
    """What to know before trusting the figures."""
    said = []
    fewest = min((len(arm.seeds) for arm in found.measured), default=BOOTSTRAP_HOLDS)
    if fewest < BOOTSTRAP_HOLDS:
        said.append(
            f"Bootstrap intervals of few seeds are too narrow ({fewest} here; at 95% they hold the truth in about 87% "
            "of cases with 4 seeds, 93% with 8); no word rests on them."
        )
    if not found.problem and found.why_unjudged:
        said.append(f"No word judges the aggregate: {found.why_unjudged}. The tasks are judged, each by itself.")
    lost = {arm.label: arm.lost for arm in found.arms if arm.lost}
    if lost:
        named = listing([f"{label} {number}" for label, number in lost.items()])
        said.append(f"Runs that ended without a value count as 0, the lower end: {named}.")
    lacking = [f"{arm.label} ({arm.lacks})" for arm in found.arms if arm.lacks]
    if lacking:
        said.append(f"Without an aggregate: {listing(lacking)}.")
    left = [task.label for task in found.tasks if task not in found.used]
    if left:
        said.append(f"Left out are tasks that not every arm has: {listing(left)}.")
    waiting = {arm.label: list(arm.outcomes.values()).count("pending") for arm in found.arms}
    if open_arms := [label for label, count in waiting.items() if count]:
        said.append(f"Not over: {listing(open_arms)}; figures are of the seeds that have ended on every task.")
    return said
