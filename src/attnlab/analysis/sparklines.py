"""Learning curves as one line of characters each, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from attnlab.analysis.reader import Study
from attnlab.training.metrics import curve_of

WIDTH = 10
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = ".:-=+*%#"
EARLY = 0.25  # the first quarter falls so far that nothing else could be told apart on its scale


@dataclass(frozen=True)
class Sparklines:
    """`levels`: the heights of each cell's curve from 0 (`low`) to 7 (`high`), None where it has no value."""

    metric: str
    steps: tuple[float, float]
    low: float
    high: float
    levels: Mapping[str, list[int | None]]

    def text(self, cell: str, encoding: str) -> str:
        """A cell's curve, in blocks where `encoding` has them; empty for a cell without one."""
        characters = characters_in(encoding)
        return "".join(" " if level is None else characters[level] for level in self.levels.get(cell, []))


def characters_in(encoding: str) -> str:
    """Eight characters of rising height that `encoding` can write."""
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return BLOCKS


def sparklines(study: Study, width: int = WIDTH) -> Sparklines | None:
    """The validation curves of the primary measure, or of the loss where there are none; None where a study has
    neither.

    Each is the mean over the cell's finished seeds (over all while none is), where all of these have a value. The scale
    reaches from the lowest value of any cell to the highest after the first quarter of the training; what is above it
    is drawn as its top.
    """
    name = curve_name(study)
    if name is None:
        return None
    means = _mean_curves(study, name)
    first, last = (
        float(bound) for bound in (min(x[0] for x, _ in means.values()), max(x[-1] for x, _ in means.values()))
    )
    grid = np.linspace(first, last, width)
    drawn = {cell: np.interp(grid, x, y, left=np.nan, right=np.nan) for cell, (x, y) in means.items()}
    late = np.concatenate([y[x >= first + EARLY * (last - first)] for x, y in means.values()])
    every = np.concatenate([y for _, y in means.values()])
    low, high = float(every.min()), float((late if late.size else every).max())
    return Sparklines(name, (first, last), low, high, {cell: _levels(y, low, high) for cell, y in drawn.items()})


def curve_name(study: Study) -> str | None:
    """The validation curve of the primary measure, else of the loss, else the training loss, else None."""
    own = [curve_of(study.metric.name)] if study.metric else []
    return next((name for name in (*own, "val/loss", "train/loss") if name in study.curves.columns), None)


def _mean_curves(study: Study, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    finished = {(run.cell, run.seed) for run in study.runs.values() if run.state == "finished"}
    some = {cell for cell, _ in finished}
    rows = study.curves.select("cell", "seed", "step", value=pl.col(name)).drop_nulls("value")
    pairs = rows.select("cell", "seed").unique().rows()
    wanted = [pair for pair in pairs if pair in finished or pair[0] not in some]
    schema = {"cell": pl.String, "seed": pl.Int64}
    rows = rows.join(pl.DataFrame(wanted, schema=schema, orient="row"), on=["cell", "seed"])
    by_step = rows.group_by("cell", "step").agg(pl.col("value").mean(), n=pl.len())
    whole = by_step.filter(pl.col("n") == pl.col("n").max().over("cell")).sort("cell", "step")
    return {
        str(cell): (of_cell["step"].to_numpy(), of_cell["value"].to_numpy())
        for (cell,), of_cell in whole.group_by(["cell"], maintain_order=True)
    }


def _levels(values: np.ndarray, low: float, high: float) -> list[int | None]:
    share = (values - low) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.0)
    top = len(BLOCKS) - 1
    return [None if np.isnan(value) else int(np.clip(round(value * top), 0, top)) for value in share.tolist()]
