"""`attnlab lr-range`, `batch-size` and `coordinate-check`: a run's learning rate, the size of its batches, and how its
activations go with the width, by its own first steps. None leaves anything in the folder of runs."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.main import CONFIG_DIR, command, option, refused, settings
from attnlab.config import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attnlab.analysis.table import Table
    from attnlab.config.compose import Composed
    from attnlab.runs.coordinates import Sizes
    from attnlab.runs.tuning import RangeTest, Tried

LEAST_STEPS, ROWS, GB = 10, 20, 1e9
WIDTHS = "64,128,256,512,1024"


@command(
    "lr-range",
    "look for a learning rate: train a few steps while it rises, and print the losses",
    option("--from", "the first rate (default: 1e-6)", type=float, default=1e-6, dest="first"),
    option("--to-rate", "the last rate (default: 1)", type=float, default=1.0),
    option("--steps", "steps between them (default: 100)", type=int, default=100),
    option("--to", "a folder for all rates and losses (lr-range.csv) and a figure of them (.pdf, .png)"),
    *(CONFIG_DIR, settings),
)
def lr_range(arguments: Namespace) -> int:
    """Prints rates, losses and the setting of the rate at which the loss falls fastest; exit status 1 where it falls at
    none. Raises: UsageError."""
    if not 0 < arguments.first < math.inf:
        raise refused("--from", "above 0", arguments.first)
    if not arguments.first < arguments.to_rate < math.inf:
        raise refused("--to-rate", f"above --from={arguments.first:g}", arguments.to_rate)
    if arguments.steps < LEAST_STEPS:
        raise refused("--steps", f"at least {LEAST_STEPS}", arguments.steps)
    with _composed(arguments) as composed:
        from attnlab.runs.tuning import range_test

        found = range_test(composed, arguments.first, arguments.to_rate, arguments.steps)
    if arguments.to:
        _write_rates(Path(arguments.to), found)
    print(_rates(found, ROWS).to_text())
    if len(found.rates) < arguments.steps:
        print(f"the loss diverged in step {len(found.rates)} of {arguments.steps}")
    rate = found.suggestion()
    if rate is None:
        raise ValueError("the smoothed loss falls nowhere between these rates: give other ones, or more --steps")
    print(f"it falls fastest at optimizer.lr={rate:.2g}")
    return 0


@command(
    "batch-size",
    "look for the size of batches: double it until memory ends, and print memory and pace",
    option(
        "--most-gb", "the most memory, in GB (default: of a GPU all, of a machine 80%% of what is there)", type=float
    ),
    option("--most", "the largest size to try", type=int),
    *(CONFIG_DIR, settings),
)
def batch_size(arguments: Namespace) -> int:
    """Prints what each size takes, and the settings of the largest that fits and of the fastest. Raises: UsageError."""
    if arguments.most_gb is not None and not arguments.most_gb > 0:
        raise refused("--most-gb", "above 0", arguments.most_gb)
    with _composed(arguments) as composed:
        from attnlab.runs.tuning import batch_sizes, size_field

        field, unit = f"data.{size_field(composed)}", composed.get(f"data.{size_field(composed)}")
        if arguments.most is not None and arguments.most < unit:
            raise refused("--most", f"at least {field}={unit}, from which on sizes are tried", arguments.most)
        tried = []
        for one in batch_sizes(composed, arguments.most_gb and arguments.most_gb * GB, arguments.most):
            tried.append(one)
            if composed.progress != "off":
                print(f"{field}={one.size}: {one.said}", file=sys.stderr)
    print(_sizes(field, tried).to_text())
    fitting = [one for one in tried if one.fits]
    if tried[-1].fits:
        print(f"{field}={2 * tried[-1].size} was not tried: it is above --most, or the training part has no more")
    if not fitting:
        raise ValueError(f"{field}={tried[0].size}: {tried[0].said}; no size from there on fits")
    print(f"largest that fits: {field}={fitting[-1].size}")
    print(f"fastest: {field}={max(fitting, key=lambda one: one.pace).size}")
    return 0


@command(
    "coordinate-check",
    "train a few steps at several widths and print how large activations are: whether a rate serves all of them",
    option("--widths", f"values of model.d_model (default: {WIDTHS})", default=WIDTHS),
    option("--steps", "steps of each training (default: 10)", type=int, default=10),
    option("--seeds", "seeds of each width, over which sizes are means (default: 1)", type=int, default=1),
    option(
        "--changes", "how activations have changed since the start, in the place of their sizes", action="store_true"
    ),
    option("--to", "a folder for all steps (coordinate-check.csv) and a figure of them (.pdf, .png)"),
    *(CONFIG_DIR, settings),
)
def coordinate_check(arguments: Namespace) -> int:
    """Prints root mean squares by width and how they grow; exit status 1 where any grows. Raises: UsageError."""
    words = arguments.widths.split(",")
    widths = sorted({int(word) for word in words if word.isascii() and word.isdigit()} - {0})
    if len(widths) < max(2, len(words)):
        raise refused("--widths", "two widths or more, as in 64,128,256", arguments.widths)
    for name in ("steps", "seeds"):
        if getattr(arguments, name) < 1:
            raise refused(f"--{name}", "at least 1", getattr(arguments, name))
    if given := [word for word in arguments.overrides if word.startswith("model.d_model=")]:
        raise UsageError(f"{given[0]}: --widths sets it; leave it out")
    runs: dict[int, list[Composed]] = {width: [] for width in widths}
    first = 0
    for width in widths:
        more = [f"model.d_model={width}", "progress=off"]
        with _composed(Namespace(**{**vars(arguments), "overrides": [*arguments.overrides, *more]})) as composed:
            first = composed.seed
            runs[width] = [
                replace(composed, raw={**composed.raw, "seed": first + seed}) for seed in range(arguments.seeds)
            ]
    from attnlab.runs.coordinates import coordinate_check as check

    found = check(runs, arguments.steps)
    if arguments.to:
        _write_sizes(Path(arguments.to), found)
    sizes = found[1 if arguments.changes else 0]
    print(_by_width(sizes).to_text())
    if sizes.grows:
        print(f"grows with the width: {', '.join(sizes.grows)}; a rate tuned at one width serves no other")
        return 1
    print("nothing grows with the width")
    return 0


def _by_width(sizes: Sizes) -> Table:
    """A row for each place: its size at each width after the last step, and how it goes with the width."""
    from attnlab.analysis.table import Column, Entry, Table

    last = sizes.steps

    def of_width(index: int) -> Column[str]:
        def entry(place: str) -> Entry:
            size = sizes.of[place][last][index]
            return Entry(f"{size:.4g}", size)

        return Column(str(sizes.widths[index]), entry)

    columns = [
        Column[str](f"after {last} steps", lambda place: place, "l"),
        *map(of_width, range(len(sizes.widths))),
        Column[str]("grows as width to the", lambda p: Entry(f"{sizes.slope(p, last):+.2f}", sizes.slope(p, last))),
        Column[str]("off the mean at most", lambda p: Entry(f"{100 * sizes.spread(p, last):.0f}%", None)),
        Column[str]("verdict", lambda place: sizes.verdict(place, last), "l"),
    ]
    return Table.of(columns, list(sizes.of))


def _write_sizes(folder: Path, found: Sequence[Sizes]) -> None:
    """Sizes and changes of all steps as CSV, and the sizes as a figure; says so."""
    from attnlab.report.figures.inspection import coordinates_figure

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "coordinate-check.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["quantity", "place", "step", "d_model", "rms"])
        for quantity, sizes in zip(("size", "change"), found, strict=True):
            for place, of_steps in sizes.of.items():
                for step, of_widths in enumerate(of_steps):
                    rows.writerows([quantity, place, step, *one] for one in zip(sizes.widths, of_widths, strict=True))
    _draw(folder, "coordinate-check", lambda: coordinates_figure(found[0].widths, found[0].of))


def _write_rates(folder: Path, found: RangeTest) -> None:
    """All rates and losses as CSV and as a figure; says so."""
    from attnlab.report.figures.inspection import rates_figure

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lr-range.csv").write_text(_rates(found).to_csv(), encoding="utf-8")
    _draw(folder, "lr-range", lambda: rates_figure(found.rates, found.losses, found.smoothed, found.suggestion()))


def _draw(folder: Path, name: str, figure: Callable[[], Figure]) -> None:
    """Writes a figure beside its CSV; says what is there."""
    from attnlab.report.figures.style import paper_style, write_figure

    with paper_style():
        drawn = figure()
        for ending in ("pdf", "png"):
            write_figure(drawn, folder / f"{name}.{ending}")
    print(f"{folder}: {name}.csv, {name}.pdf, {name}.png")


def _rates(found: RangeTest, most: int | None = None) -> Table:
    """Rate, loss and smoothed loss of each step, or of so many of them."""
    from attnlab.analysis.table import Column, Entry, Table

    last = len(found.rates) - 1
    rows = min(most or last + 1, last + 1)
    columns = [
        Column[int]("learning rate", lambda i: Entry(f"{found.rates[i]:.2e}", found.rates[i])),
        Column[int]("loss", lambda i: Entry(f"{found.losses[i]:.4f}", found.losses[i])),
        Column[int]("smoothed loss", lambda i: Entry(f"{found.smoothed[i]:.4f}", found.smoothed[i])),
    ]
    return Table.of(columns, [i * last // max(1, rows - 1) for i in range(rows)])


def _sizes(field: str, tried: Sequence[Tried]) -> Table:
    """What each size takes; field: of the configuration."""
    from attnlab.analysis.table import Column, Entry, Table

    columns: list[Column[Tried]] = [
        Column(field, lambda one: one.size, "l"),
        Column("memory, GB", lambda one: Entry(f"{one.bytes / GB:.2f}", one.bytes / GB)),
        Column("ms a step", lambda one: None if one.why else Entry(f"{1000 * one.step:.1f}", 1000 * one.step)),
        Column("tokens a second", lambda one: None if one.why else Entry(f"{one.pace:,.0f}", one.pace)),
        Column("", lambda one: one.why or ("" if one.fits else "more than the limit"), "l"),
    ]
    return Table.of(columns, tried)


@contextlib.contextmanager
def _composed(arguments: Namespace) -> Iterator[Composed]:
    """The run that the settings make, checked as before a training. Raises: UsageError."""
    from attnlab.config.check import check
    from attnlab.config.compose import ConfigSpace
    from attnlab.config.engine import split_hydra
    from attnlab.config.identity import INIT_FROM, folders_of_start, inherit, readable
    from attnlab.runs.build import dry_build, refuse_for_this_machine
    from attnlab.training.processes import leaving

    own, hydra_own, places = split_hydra(inherit(readable(arguments.overrides)))
    if hydra_own:
        raise UsageError(f"{hydra_own[0]}: one run is tried, in this process; leave out what is Hydra's")
    given: Sequence[str] = [*arguments.config_dir, *places]
    with leaving(), ConfigSpace(given or folders_of_start(own), "" if given else INIT_FROM) as space:
        composed = space.compose(own)
        check(composed)
        dry_build(composed.resolved)
        refuse_for_this_machine(composed.resolved)
        yield composed
