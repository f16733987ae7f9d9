"""How figures look and are written: column widths, the page's colours, embedded fonts, the same bytes each time."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from attnlab.analysis.reader import JOINT
from attnlab.report.document import resource
from attnlab.training.run_directory import cannot_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.35, 6.9  # inches: one column, and both
LETTER, LINE, HANDLE = 0.062, 0.15, 0.45  # inches of a letter, of a line of text, of what a legend shows beside a name
MOST_LETTERS, MOST_TICKS = 38, 6  # of a label, of a logarithmic axis
REM = 63 / (72 * PAGE)  # of the page for a point of a figure, of which one over both columns fills it
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1.5)), (0, (7, 1, 1, 1)))
MARKERS = "osD^vP*X"
TOKEN = re.compile(r"--([\w-]+):\s*(#[0-9a-fA-F]{6})")
HEX = re.compile(r"#[0-9a-f]{6}")
NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
SAYS = "says "  # a group of this name is explained by what follows
SVG = "{http://www.w3.org/2000/svg}"

INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")


@contextmanager
def paper_style() -> Iterator[None]:
    """The sizes of a paper and the page's colours, while figures are made and written; nothing stays changed."""
    import matplotlib

    sheet = matplotlib.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False)
    inked: Any = dict.fromkeys(INKED, colour("text"))
    with matplotlib.rc_context({**sheet, **inked}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, without pyplot, which would keep it and ask for a screen."""
    return _figure_class()(figsize=(width, height), layout="constrained")


@cache
def _figure_class() -> type[Figure]:
    """Made at its first use, as matplotlib takes long to load."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class PaperFigure(Figure):
        """Matplotlib's figure, written in the paper's style wherever that is done, and shown by a notebook as what a
        cell ends with: notebooks find other figures through pyplot alone."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            FigureCanvasAgg(self)

        def savefig(self, *given: Any, **named: Any) -> None:
            with paper_style():
                super().savefig(*given, **named)

        def _repr_png_(self) -> bytes:
            memory = io.BytesIO()
            self.savefig(memory, format="png")
            return memory.getvalue()

    return PaperFigure


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure to `path`, by its ending; the same figure gives the same bytes, as no time is written.

    Raises CannotWrite where the disk is full or may not be written to.
    """
    kind = path.suffix.removeprefix(".")
    memory = io.BytesIO()
    figure.savefig(memory, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    try:
        path.write_bytes(memory.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from error


def write_figures(
    figures: Iterable[tuple[str, Figure]], folder: Path, endings: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Writes (name, figure) each as a PDF with vector text and as PNG, and returns the files; without figures there is
    no folder. `figures` is read within `paper_style`.

    Raises CannotWrite where the disk is full or may not be written to.
    """
    written = []
    with paper_style():
        for name, figure in figures:
            folder.mkdir(parents=True, exist_ok=True)
            for ending in endings:
                written.append(folder / f"{name}.{ending}")
                write_figure(figure, written[-1])
                figure.set_layout_engine("none")  # one for both: it settles further each time
    return written


def as_svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure for the page: its text stays text in the page's font, its colours follow the theme, the same figure
    gives the same bytes.

    name, description: for who cannot see it. What an artist's gid says after `SAYS` is shown under the pointer.
    """
    import matplotlib

    memory = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(memory, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(NO_XML.sub("\ufffd", memory.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
                parent.remove(child)
        _adapt(parent)
    wide, high = root.attrib["viewBox"].split()[2:]
    root.attrib = {"viewBox": f"0 0 {wide} {high}", "class": "figure", "role": "img", "aria-label": name}
    root.attrib["style"] = f"max-width: {float(wide) * REM:.4g}rem"  # letters are of one size in all figures
    title, said = ElementTree.Element("title"), ElementTree.Element("desc")
    title.text, said.text = name, NO_XML.sub("\ufffd", description)
    root[:0] = [title, said]
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element) -> None:
    element.tag = element.tag.removeprefix(SVG)
    element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
    given, element.attrib = element.attrib, {}
    for key, value in given.items():
        if key.endswith("}href"):
            element.attrib["href"] = value
        elif key == "style":
            style = re.sub(r"font-family:[^;]*;?|(font:[^;']*)'[^;]*", r"\1", value)
            element.attrib["style"] = HEX.sub(lambda found: themed().get(found[0], found[0]), style)
        elif key == "d":
            element.attrib["d"] = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.5g}", value.replace("\n", ""))
        elif key == "id" and value.startswith(SAYS):
            title = ElementTree.Element("title")
            title.text = value.removeprefix(SAYS)
            element.insert(0, title)  # a title is known by its place
        elif key != "clip-path" and (key != "id" or element.tag == "path"):  # ids of paths are referred to
            element.attrib[key] = value


@cache
def colours() -> dict[str, str]:
    """The page's colours by the names that its style sheet gives them, those of the light theme."""
    found: dict[str, str] = {}
    for name, shade in TOKEN.findall(resource("page.css")):
        found.setdefault(name, shade)
    return found


def colour(name: str) -> str:
    """One of the page's colours; a verdict without one of its own has that of undecided."""
    return colours().get(name, colours()["undecided"])


def heat(share: float) -> str:
    """From hardly any (0) to much (1) of the page's colour of heat on its surface, in steps of one per cent."""
    percent = round(8 + 50 * share)
    hot, cold = (bytes.fromhex(colour(name)[1:]) for name in ("heat", "surface"))
    return "#" + "".join(
        f"{round((percent * a + (100 - percent) * b) / 100):02x}" for a, b in zip(hot, cold, strict=True)
    )


@cache
def themed() -> dict[str, str]:
    """{a colour in light: the same in the theme of whoever looks}, in CSS."""
    mixed = {heat((p - 8) / 50): f"color-mix(in srgb, var(--heat) {p}%, var(--surface))" for p in range(8, 59)}
    return mixed | {shade: f"var(--{name})" for name, shade in colours().items()}


def line_look(index: int) -> dict[str, Any]:
    """The colour, dash and marker of the index-th line: the page's colours, told apart without colour, too."""
    series = sum(re.fullmatch(r"c\d", name) is not None for name in colours())
    look = {"color": colour(f"c{index % series}"), "linestyle": DASHES[index // series % len(DASHES)]}
    return {**look, "marker": MARKERS[index % len(MARKERS)]}


def broken(label: str, letters: int = MOST_LETTERS, most_lines: int = 2) -> str:
    """A label in lines of so many letters, that leaves room for the figure; what does not fit is left out."""
    parts = label.split(JOINT)  # none of them is broken while there are several
    whole = [part.replace(" ", "\0") if len(parts) > 1 else part for part in parts]
    lines = [line.replace("\0", " ") for line in textwrap.wrap(f"\0{JOINT[1:]}".join(whole), letters)]
    if len(lines) > most_lines:
        lines[most_lines - 1] = f"{lines[most_lines - 1][: letters - 1]}\u2026"
    return "\n".join(lines[:most_lines])


def widest(lines: str) -> float:
    """About how many inches text takes across."""
    return LETTER * max(map(len, lines.split("\n")))


def legend_below(figure: Figure, axes: Axes) -> None:
    """The legend of `axes` in columns that fit, below the picture, which keeps its height."""
    handles, names = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    shown, columns = _legend(names, width)
    figure.set_size_inches(width, height + LINE * -(-len(shown) // columns))
    figure.legend(handles, shown, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1)


def legend_above(axes: Axes, title: str, room: float) -> float:
    """The legend of a panel of so many inches across above it, where it hides no line; returns its height."""
    handles, names = axes.get_legend_handles_labels()
    shown, columns = _legend(names, room)
    named: dict[str, Any] = {"title": title, "alignment": "left", "handlelength": 2.2, "columnspacing": 1}
    axes.legend(handles, shown, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0, **named)
    return LINE * (2 - (-len(shown) // columns))


def _legend(names: Sequence[str], room: float) -> tuple[list[str], int]:
    """The names as a legend shows them, and in how many columns, three at the most."""
    shown = [broken(name, most_lines=1) for name in names]
    return shown, max(1, min(3, len(shown), int(room / (max(map(widest, shown)) + HANDLE))))


def name_ticks(axes: Axes, names: Sequence[str], room: float) -> float:
    """Names of places 0, 1, ... across, in so many inches: slanted where they would cover each other. Returns the
    height that this takes more."""
    shown = [broken(name, 24, 1) for name in names]
    longest, each = max(map(widest, shown)), room / len(names)
    if longest + LETTER <= each:
        axes.set_xticks(range(len(names)), shown)
        return 0.0
    angle = 90 if each < 2 * LINE else 35
    axes.set_xticks(range(len(names)), shown, rotation=angle, ha="right", rotation_mode="anchor")
    if angle == 90:
        for label in axes.get_xticklabels():
            label.set_verticalalignment("center")
    return longest * math.sin(math.radians(angle))


def luminance(shade: Sequence[float]) -> float:
    """The relative luminance of a colour (red, green, blue from 0 to 1), as WCAG 2 has it."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shade[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def plain_log_ticks(axes: Axes, which: str, values: list[float], texts: list[str]) -> None:
    """A logarithmic axis with these ticks alone."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(values, texts)
    axis.set_ticks([], minor=True)


def decade_ticks(axes: Axes, which: str) -> None:
    """A logarithmic axis with ticks at powers of ten, as figures: the style writes no mathematics. Where fewer than two
    lie within what is drawn, at 1, 2 and 5 times them, or closer."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), range(1, 10), range(10, 100)):
        ticks = [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]
        if len(ticks) > 1:
            break
    ticks = ticks[:: max(1, math.ceil(len(ticks) / MOST_TICKS))]
    plain_log_ticks(axes, which, ticks, [f"{tick:g}" if 1e-4 <= tick < 1e5 else f"{tick:.0e}" for tick in ticks])
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
