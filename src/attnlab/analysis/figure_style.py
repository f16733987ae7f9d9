"""How figures for a paper look and are written: column widths, the page's colours, embedded fonts, the same bytes each time."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.analysis.markup import prose
from attnlab.training.run_directory import cannot_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.35, 6.9  # inches: one column, and both
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1.5)), (0, (7, 1, 1, 1)))
MARKERS = "osD^vP*X"
TOKEN = re.compile(r"--([\w-]+):\s*(#[0-9a-fA-F]{6})")

SAME_CONTRAST = 0.179  # the luminance on which black and white are read as well as each other

# Names are text whatever is in them: parse_math off. Fonts are embedded whole glyph by glyph (42), as publishers ask.
OWN: dict[str, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """seaborn's ticks in the sizes of a paper, while figures are made and written; nothing of matplotlib stays changed."""
    import matplotlib
    import seaborn

    style: Any = {**seaborn.axes_style("ticks"), **seaborn.plotting_context("paper"), **OWN}
    with matplotlib.rc_context(style):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, of matplotlib's own classes: pyplot would keep it and ask for a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """
    Writes a figure to `path`, by its ending; the same figure gives the same bytes, as no time is written.

    Raises CannotWrite where the disk is full or may not be written to.
    """
    kind = path.suffix.removeprefix(".")
    memory = io.BytesIO()
    figure.savefig(memory, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    try:
        path.write_bytes(memory.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from error


@cache
def colours() -> dict[str, str]:
    """The page's colours by the names that its style sheet gives them, those of the light theme."""
    sheet = files("attnlab.analysis").joinpath("page.css").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for name, colour in TOKEN.findall(sheet):
        found.setdefault(name, colour)
    return found


def colour(name: str) -> str:
    """One of the page's colours; a verdict without one of its own has that of undecided."""
    return colours().get(name, colours()["undecided"])


def line_look(index: int) -> dict[str, Any]:
    """The colour, dash and marker of the index-th line: the page's colours, told apart without colour, too."""
    series = sum(re.fullmatch(r"c\d", name) is not None for name in colours())
    look = {"color": colour(f"c{index % series}"), "linestyle": DASHES[index // series % len(DASHES)]}
    return {**look, "marker": MARKERS[index % len(MARKERS)]}


def luminance(shade: Sequence[float]) -> float:
    """The relative luminance of a colour (red, green, blue from 0 to 1), as WCAG 2 has it."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shade[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def readable(axes: Axes, columns: int) -> None:
    """Writes what stands in the cells of a heat map in black or white, whichever can be read better there."""
    (mesh,) = axes.collections[:1]
    mesh.update_scalarmappable()
    shades = mesh.get_facecolors()  # type: ignore[attr-defined]
    for text in axes.texts:
        x, y = text.get_position()
        shade = shades[int(y) * columns + int(x)]
        dark = shade[3] == 0 or luminance(shade) > SAME_CONTRAST
        text.set_color("#000000" if dark else "#ffffff")


def words(text: str) -> str:
    """A sentence with true signs, as the page writes it."""
    return html.unescape(prose(text))


def plain_log_ticks(axes: Axes, which: str, values: list[float], texts: list[str]) -> None:
    """A logarithmic axis with these ticks alone."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(values, texts)
    axis.set_ticks([], minor=True)
