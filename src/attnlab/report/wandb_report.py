"""A study as a report at W&B, by the library wandb-workspaces: what it asks and what came out in words, its table, and
curves and bars of the runs that W&B has of it, each cell's seeds averaged."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from attnlab.analysis import Comparison, to_markdown
from attnlab.analysis.file_cache import mapping
from attnlab.analysis.headline import headline
from attnlab.training.metrics import curve_of, parts_of
from attnlab.training.targets import target_of

LONGEST_TITLE = 128  # characters, of W&B's
MOST_BARS = 6  # metrics of the test part beside the primary one
BY_CELL = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}  # a run's group is its cell


def build_report(comparison: Comparison, project: str | None = None, entity: str | None = None) -> Any:
    """The report, which its `save` sends. project, entity: where the runs are; None: as they were logged, else W&B's
    default. Raises ImportError without the library, and what W&B's API raises where it is asked for the default."""
    # By their names: the packages say no types of what they pass on.
    wr, expr = map(import_module, ("wandb_workspaces.reports.v2", "wandb_workspaces.expr"))
    study = comparison.study
    logged = [mapping(run.section("config").get("logger")) for run in study.runs.values()]
    project = project or _first(one.get("project") for one in logged) or "attnlab"
    # Without an entity the library asks W&B for that of the key.
    place: dict[str, Any] = {"project": project}
    if entity := entity or _first(one.get("entity") for one in logged):
        place["entity"] = entity
    report = wr.Report(**place, title=study.name[:LONGEST_TITLE], description=study.question)
    runs = wr.Runset(
        entity=report.entity,
        project=project,
        name=study.name,
        filters=[expr.Config("study") == study.name, expr.Metric("JobType") == "train"],
        groupby=["group"],
    )
    curves, bars = _metrics(comparison)
    panels = [wr.LinePlot(title=name, x="Step", y=[name], **BY_CELL) for name in curves]
    panels += [wr.BarPlot(title=name, metrics=[name], **BY_CELL) for name in bars]
    said = "\n".join(f"- {sentence}" for sentence in [*headline(comparison), *comparison.caveats])
    verdicts = "\n".join(f"- {claim.verdict}: {claim.says}" for claim in comparison.claims)
    report.blocks = [
        wr.H2(text=study.question or study.name),
        wr.MarkdownBlock(text=said),
        *([wr.H2(text="Claims made beforehand"), wr.MarkdownBlock(text=verdicts)] if verdicts else []),
        wr.H2(text="Cells"),
        wr.MarkdownBlock(text=to_markdown(comparison)),
        wr.H2(text="Curves and final figures, the mean of each cell's seeds with its standard error"),
        wr.PanelGrid(runsets=[runs], panels=panels),
    ]
    return report


def _metrics(comparison: Comparison) -> tuple[list[str], list[str]]:
    """What is drawn as curves, and what as bars: of what the runs have, the primary metric and its relations first."""
    primary = comparison.metric.name if comparison.metric else ""
    measure = parts_of(primary)[1]
    final = dict.fromkeys(name for run in comparison.study.runs.values() for name in run.final)
    validated = [name for name in final if name.startswith("val/")]
    curves = dict.fromkeys(name for name in (curve_of(primary), "val/loss") if name in validated)
    alike = [name for name in final if name.startswith("test/") and parts_of(name)[1] == measure and name != primary]
    return [*curves, "train/loss"], [
        *([primary] if primary in final and not target_of(primary) else []),
        *alike[:MOST_BARS],
    ]


def _first(values: Iterable[object]) -> str | None:
    return next((str(value) for value in values if value), None)
