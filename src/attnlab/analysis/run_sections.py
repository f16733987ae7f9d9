"""The sections of the page that are about single runs: all of them, two side by side, lines through their choices, and what their models give."""

from __future__ import annotations

from typing import Any

from attnlab.analysis import wording
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.markup import Html, join, prose, table, tag


def runs_section(comparison: Comparison, data: dict[str, Any]) -> Html | None:
    """Every run with its state, value and directory; page.js unfolds its command and the end of its log."""
    runs = data["runs"]
    if not runs:
        return None
    metric = comparison.metric if comparison.metric and comparison.metric.name in data["metrics"] else None
    decimals = wording.decimals_for(cell.interval for cell in comparison.cells)
    rows = []
    for run in runs:
        value = run["values"][data["metrics"].index(metric.name)] if metric and "values" in run else None
        figure = prose("-") if value is None else tag("span", prose(wording.number(value, decimals)), data_value=value)
        state = tag("span", run["state"], class_=f"state {run['state']}")
        rows.append([run["cell"], str(run["seed"]), state, *([figure] if metric else []), _directory(run)])
    head = ["cell", "seed", "state", *([metric.name] if metric else []), "directory"]
    lead = "Unfold a run for its figures, the command that repeats it and the end of its log."
    keys = [run["path"] for run in runs]
    return join(
        [tag("p", lead, class_="lead"), filter_box("runs"), table(head, rows, "Every run", "sortable", keys, "runs")]
    )


def _directory(run: dict[str, Any]) -> Html:
    return tag("a", run["path"], href=run["href"]) if "href" in run else tag("code", run["path"])


def filter_box(of: str) -> Html:
    """Where page.js puts the boxes that choose among the rows of a table."""
    return tag("div", class_="controls filter", data_filter=of)


def pair_section(data: dict[str, Any]) -> Html | None:
    """Two runs side by side."""
    if sum("own" in run or "values" in run for run in data["runs"]) < 2:
        return None
    lead = "What is different between two runs: settings, final figures, and what they ran on. Everything else is the same."
    return join([tag("p", lead, class_="lead"), interactive("pair")])


def parallel_section(data: dict[str, Any]) -> Html | None:
    """A line a run through its choices to its value."""
    if not data["axes"]:
        return None
    lead = "One line a finished run, through its choices to its value: the better, the higher and the greener. Choose words on an axis to see only the runs that go through them. The same figures stand in the table of every run."
    return join([tag("p", lead, class_="lead"), interactive("parallel")])


def samples_section(data: dict[str, Any]) -> Html | None:
    """What models of two cells give for the same examples, and what their heads attend to."""
    if not data["samples"]:
        return None
    lead = "Of one run a cell. Samples show what a model does; how good it is, the figures say."
    return join([tag("p", lead, class_="lead"), interactive("samples")])


def interactive(kind: str) -> Html:
    """Where a script of the page draws."""
    nothing = tag("noscript", tag("p", "This part needs JavaScript.", class_="soft"))
    return tag(
        "div", tag("div", class_="controls"), tag("div", class_="panels"), nothing, class_="chart", data_part=kind
    )
