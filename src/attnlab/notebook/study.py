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
from attnlab.analysis.formatting import describe
from attnlab.analysis.frames import curves_frame, runs_frame
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import Cell, Choice, Metric
from attnlab.analysis.table import typographic
from attnlab.analysis.terminal import bullet, print_cells
from attnlab.report import page

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
        # rich itself would show the lines in a notebook, one by one.
        plain = Console(file=out, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
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

    def compare(self, metric: str | None = None, baseline: str | Mapping[str, Choice] | None = None) -> Comparison:
        """The cells compared, of a study of several kinds of runs those of the baseline's kind.

        metric: a final metric, by default the study's own, which alone has its margin. baseline: a cell by its label or
        name, or by its choices. Raises ValueError for a metric or a cell that the study does not have.
        """
        return Comparison.of(analysis.compare(analysis.asked(self.as_read, metric, baseline)[0]))

    def plot(self, kind: str, metric: str | None = None, baseline: str | Mapping[str, Choice] | None = None) -> Figure:
        """A figure in the style of a paper; `savefig` writes it in that style.

        kind: "differences" to the baseline, average "effects" of factors, their "interactions", the metric at other
        "lengths" than that of training, learning "curves", the "pareto" picture of results over costs, or the "grid" of
        all cells. metric: a final one, of curves one that was logged, of lengths one measured at several. baseline: see
        `compare`. Raises ValueError for what the study does not have.
        """
        from attnlab.report.figures.study import draw  # loads matplotlib

        own = kind in OF_OWN_METRIC
        return draw(self.compare(None if own else metric, baseline), kind, metric if own else None)

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


def compare(study: Study, metric: str | None = None, baseline: str | Mapping[str, Choice] | None = None) -> Comparison:
    """`Study.compare`."""
    return study.compare(metric, baseline)


def write_report(source: Study | analysis.Comparison, path: str | Path) -> Path:
    """Writes the page of a study to `path` (a file; a folder gets index.html), atomically, and returns the file.

    Raises CannotWrite where the disk is full or read-only, or permission is missing.
    """
    return page.write_report(source.as_read if isinstance(source, Study) else source, path)
