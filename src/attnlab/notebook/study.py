"""A study in a notebook: its runs and curves as frames, its comparison as a table, its figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from markupsafe import Markup
from rich.console import Console

from attnlab import analysis
from attnlab.analysis.across_words import arms_table, caveats, print_aggregate, rows_of, sentences
from attnlab.analysis.formatting import describe
from attnlab.analysis.frames import curves_frame, runs_frame
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import Cell, Choice, Metric
from attnlab.analysis.table import typographic
from attnlab.analysis.terminal import bullet, print_cells
from attnlab.report import page
from attnlab.report.across import write_across

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, LONGEST = 110, 2000  # characters of a line, and of all that stands for a comparison
OF_OWN_METRIC = ("lengths", "curves")  # figures that have metrics beside the one that is compared


@dataclass(frozen=True, repr=False)
class Comparison(analysis.Comparison):
    """What the cells of a study amount to, which a notebook shows as a table. See `attnlab.analysis.Comparison`."""

    @classmethod
    def of(cls, found: analysis.Comparison) -> Comparison:
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def __repr__(self) -> str:
        """What was set apart, and the terminal's table of cells; at most 2,000 characters of it."""
        out = io.StringIO()
        plain = _plain(out)
        for sentence in self.study.apart:
            bullet(plain, sentence, "! ")
        print_cells(self, plain)
        lines = [line.rstrip() for line in out.getvalue().strip().split("\n")]
        if not self.measured or self.is_all_censored:
            lines = [*self.study.apart, *headline(self)]
        return _cut(lines, f"{self.study.name}: see attnlab.write_report(comparison, PATH) for all")

    def _repr_html_(self) -> str:
        """What came out in words, the page's table of cells, and what to know before trusting it."""
        study, metric = self.study, self.metric
        what = f"{metric.name}: {describe(metric.name, study)}; {metric.better} is better" if metric else ""
        head = Markup("<p><b>{}</b> {}</p>{}").format(study.name, what, _list(headline(self)))
        return str(head + page.table_of_cells(self).to_html() + _list(self.caveats))


@dataclass(frozen=True, repr=False)
class Aggregate(analysis.Aggregate):
    """What the arms of a study amount to over its tasks, which a notebook shows as a table. See
    `attnlab.analysis.Aggregate`."""

    @classmethod
    def of(cls, found: analysis.Aggregate) -> Aggregate:
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    @cached_property
    def frame(self) -> pl.DataFrame:
        """A row an arm: seeds, lost runs, the aggregates with both ends, the difference to the baseline, the average
        rank, why it lacks an aggregate, and its mean normalised score on each task. What is not known is null."""
        return pl.DataFrame(rows_of(self), infer_schema_length=None)

    @cached_property
    def scores(self) -> pl.DataFrame:
        """A row a run that counts: arm, task, seed and its normalised score."""
        labels = [task.label for task in self.used]
        rows = [
            (arm.label, label, seed, float(score))
            for arm in self.arms
            for seed, of_seed in zip(arm.seeds, arm.scores, strict=True)
            for label, score in zip(labels, of_seed, strict=True)
        ]
        types = {"arm": pl.String, "task": pl.String, "seed": pl.Int64, "score": pl.Float64}
        return pl.DataFrame(rows, schema=types, orient="row")

    def __repr__(self) -> str:
        """What the terminal says over all tasks; at most 2,000 characters of it."""
        out = io.StringIO()
        print_aggregate(self, _plain(out))
        lines = [line.rstrip() for line in out.getvalue().strip().split("\n")]
        return _cut(lines, f"{self.study.name}: see attnlab.write_report(study, PATH) for all")

    def _repr_html_(self) -> str:
        """What came out in words, the table of arms, and what to know before trusting it."""
        what = f"{len(self.tasks)} tasks, normalised scores; higher is better"
        head = Markup("<p><b>{}</b> {}</p>{}").format(self.study.name, what, _list(sentences(self)))
        table = Markup("") if self.problem else arms_table(self).to_html()
        return str(head + table + _list(caveats(self)))


def _plain(out: io.StringIO) -> Console:
    # rich itself would show the lines in a notebook, one by one.
    return Console(file=out, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)


def _list(sentences: Sequence[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>").format(typographic(sentence)) for sentence in sentences)
    return Markup("<ul>{}</ul>").format(items) if sentences else items


def _cut(lines: list[str], more: str) -> str:
    """As many whole lines as `LONGEST` holds, with a word on what was left out."""
    whole = "\n".join(lines)
    if len(whole) <= LONGEST:
        return whole
    kept: list[str] = []
    for line in lines:
        last = f"... {len(lines) - len(kept) - 1} more lines of {more}"
        if sum(map(len, kept)) + len(kept) + len(line) + 1 + len(last) > LONGEST:
            break
        kept.append(line)
    return "\n".join([*kept, f"... {len(lines) - len(kept)} more lines of {more}"])


class Study:
    """A study as its run directories tell it at the time of reading.

    `as_read` is what the rest of attnlab takes: every run with its record and status, cells, claims.
    """

    def __init__(self, as_read: analysis.Study) -> None:
        self.as_read = as_read

    @property
    def path(self) -> Path:
        return self.as_read.path

    @property
    def name(self) -> str:
        return self.as_read.name

    @property
    def question(self) -> str:
        return self.as_read.question

    @property
    def factors(self) -> dict[str, list[Choice]]:
        """The choices of each factor, by its name in the configuration."""
        return self.as_read.factors

    @property
    def baseline(self) -> dict[str, Choice]:
        """The choices of the cell that the others are compared with."""
        return self.as_read.baseline

    @property
    def cells(self) -> list[Cell]:
        return self.as_read.cells

    @property
    def seeds(self) -> list[int]:
        return self.as_read.seeds

    @property
    def metric(self) -> Metric | None:
        """The metric that the study compares on."""
        return self.as_read.metric

    @property
    def metrics(self) -> list[str]:
        """Every final metric of any run, the primary one first."""
        return self.as_read.metrics

    @cached_property
    def runs(self) -> pl.DataFrame:
        """A row a run, those that were planned and are missing too, in the plan's order.

        Columns: cell, seed; one a factor, by its name in the configuration, with numbers as numbers; state; one a final
        metric, null where the run has no finite value; parameters (of the whole model), step, tokens and seconds;
        problem (why there is no result, else ""); directory. What is not known is null.
        """
        return runs_frame(self.as_read)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """A row a logged step of a run, by cell, seed and step.

        Columns: cell, seed; one a factor, as in `runs`; step (of the optimizer), tokens and seconds up to it; one a
        metric that was logged, null at steps at which it was not.
        """
        return curves_frame(self.as_read)

    def compare(
        self,
        metric: str | None = None,
        baseline: str | Mapping[str, Choice] | None = None,
        task: Choice = None,
    ) -> Comparison:
        """The cells compared, of a study of several kinds of runs those of the baseline's kind.

        metric: a final metric, by default the study's own, which alone has its margin. baseline: a cell by its label or
        name, or by its choices. task: of a study across its tasks the one to compare; `aggregate` is of all. Raises
        ValueError for a metric, a cell or a task that the study does not have, and across its tasks for none.
        """
        parts = analysis.asked(self.as_read, metric, baseline)
        across = self.as_read.across
        if across is None and task is not None:
            raise ValueError(f"task must be left out: the study {self.name} is not across tasks, got {task!r}")
        if across is not None:
            there = {str(part.factors[across.factor][0]): part for part in parts}
            if str(task) not in there:
                raise ValueError(
                    f"task must be one of {', '.join(there)} in a study across its tasks, got {task!r}; "
                    "aggregate() is over all of them"
                )
            parts = [there[str(task)]]
        return Comparison.of(analysis.compare(parts[0]))

    def aggregate(self, metric: str | None = None, baseline: str | Mapping[str, Choice] | None = None) -> Aggregate:
        """What came out over all tasks of a study across them; metric and baseline as in `compare`. Raises ValueError
        for another study."""
        return Aggregate.of(analysis.aggregate_of(analysis.as_asked(self.as_read, metric, baseline)))

    def plot(
        self,
        kind: str,
        metric: str | None = None,
        baseline: str | Mapping[str, Choice] | None = None,
        task: Choice = None,
    ) -> Figure:
        """A figure in the style of a paper; `savefig` writes it in that style.

        kind: "differences" to the baseline, average "effects" of factors, their "interactions", the metric at other
        "lengths" than that of training, learning "curves", the "pareto" picture of results over costs, or the "grid" of
        all cells; over the tasks of a study across them the performance "profiles", or average "ranks". metric: a final
        one, of curves one that was logged, of lengths one measured at several. baseline, task: see `compare`. Raises
        ValueError for what the study does not have.
        """
        from attnlab.report.figures.across import KINDS, draw_aggregate  # loads matplotlib
        from attnlab.report.figures.study import draw

        if kind in KINDS:
            return draw_aggregate(self.aggregate(metric, baseline), kind)
        own = kind in OF_OWN_METRIC
        return draw(self.compare(None if own else metric, baseline, task), kind, metric if own else None)

    def __repr__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self.runs["state"].value_counts(sort=True).rows())
        size = f"{len(self.cells)} cells x {len(self.seeds)} seeds"
        return f"Study({str(self.path)!r}: {size}; runs: {states or 'none'}; metric: {_name(self.metric)})"


def _name(metric: Metric | None) -> str:
    return metric.name if metric else "none"


def load_study(path: str | Path) -> Study:
    """Reads runs/<study> as it is now. Raises ValueError where the path holds neither a plan nor a run, where its plan
    is none, or its runs are of another version of attnlab."""
    return Study(analysis.load_study(path))


def compare(
    study: Study,
    metric: str | None = None,
    baseline: str | Mapping[str, Choice] | None = None,
    task: Choice = None,
) -> Comparison:
    """`Study.compare`."""
    return study.compare(metric, baseline, task)


def write_report(source: Study | analysis.Comparison, path: str | Path) -> Path:
    """Writes the page of a study to `path` (a file; a folder gets index.html), atomically, and returns the file. Of a
    study across its tasks it is that of all of them, with those of the tasks beside it.

    Raises CannotWrite where the disk is full or read-only, or permission is missing.
    """
    if isinstance(source, Study) and source.as_read.across is not None:
        path = Path(path)
        path = path / "index.html" if path.is_dir() or not path.suffix else path
        return write_across(analysis.compare_tasks(source.as_read), path)[0]
    return page.write_report(source.as_read if isinstance(source, Study) else source, path)
