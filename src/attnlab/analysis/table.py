"""One table of figures for every place that shows some: a terminal, a pipe, CSV, Markdown, LaTeX and HTML.

A table is headings, rows and notes. What stands in one place of it is text, a number, or an `Entry`: text with the
number behind it, a mood (better, worse, ...: a colour in a terminal, a class in HTML), a note in small print, a link.
What is markup already (it has `__html__`) stays as it is in HTML.
"""

from __future__ import annotations

import csv
import io
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from markupsafe import Markup, escape
from rich.console import Console
from rich.markup import escape as without_markup
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from jinja2 import Template

# {mood: (rich's style, a sign that needs no colour)}
MOODS = {
    "better": ("green", "\u25b2"),
    "worse": ("red", "\u25bc"),
    "same": ("cyan", "="),
    "undecided": ("dim", "?"),
    "met": ("green", "\u2713"),
    "not met": ("red", "\u2717"),
    "open": ("yellow", "?"),
    "depends": ("yellow", "\u2195"),
    "soft": ("dim", ""),
}
UNLIMITED = 10_000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LATEX = {
    "\\": r"\textbackslash{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "*": "{*}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
TEXT, LETTER, GAP = 345.0, 4.25, 6.0  # points: the text of an article across, a letter at 8 points, between columns
NARROWEST, LONG = 50.0, 16  # points of a column that is broken; letters of a word that may be broken anywhere
LATEX |= {
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
RAGGED = r"\raggedright\let\\\tabularnewline "  # \raggedright takes \\ for the end of its own lines
ENTRY = """
{%- macro shown(entry) -%}
{%- if entry.is_code %}<code>{{ entry.text }}</code>
{%- elif entry.value is not none %}<span data-value="{{ entry.value }}">{{ typographic(entry.text) }}</span>
{%- else %}{{ entry.text }}{% endif -%}
{%- endmacro -%}
{%- set sign = moods.get(entry.mood, ("", ""))[1] -%}
{%- if entry.link %}<a href="{{ entry.link }}">{{ shown(entry) }}</a>
{%- elif entry.mood == "soft" %}<span class="soft">{{ shown(entry) }}</span>
{%- elif entry.mood %}<span class="chip {{ entry.mood | replace(" ", "-") }}">
{%- if sign %}<span aria-hidden="true">{{ sign }}</span> {% endif %}{{ shown(entry) }}</span>
{%- else %}{{ shown(entry) }}{% endif -%}
{%- if entry.note %}<span class="soft">{{ typographic(" " ~ entry.note) }}</span>{% endif -%}
"""
TABLE = """
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}">
<table class="{{ ("figures " ~ kind) | trim }}"{% if of %} data-of="{{ of }}"{% endif %}>
<thead><tr>{% for text in table.headings %}
{%- set is_left = sides[loop.index0] == "l" and not loop.first %}<th scope="col"{{ left if is_left }}>{{ text }}</th>
{%- endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr{% if table.keys %} data-row="{{ table.keys[loop.index0] }}"{% endif %}>
{%- for content in row %}{% if loop.first %}<th scope="row">{{ html(content) }}</th>
{%- else %}<td{{ left if sides[loop.index0] == "l" }}>{{ html(content) }}</td>{% endif %}{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- for note in table.notes %}
<p class="soft">{{ typographic(note) }}</p>
{%- endfor %}
"""
T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)


class HasHtml(Protocol):
    """What says itself how it stands in HTML, such as a `Markup`."""

    @abstractmethod
    def __html__(self) -> str:
        """Its markup."""


@dataclass(frozen=True)
class Entry:
    """Text in a table. value: the number behind it, for CSV and for sorting; mood: a key of MOODS, or ""; note: what is
    said beside it in small print; link: where it leads to."""

    text: str
    value: float | None = None
    mood: str = ""
    note: str = ""
    link: str = ""
    is_code: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, [self.text, self.note]))

    def __html__(self) -> str:
        return str(_template(ENTRY).render(entry=self))


Content = Entry | str | int | float | HasHtml | None
Contents = Content | Sequence[Content]  # several are shown one beside the other


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column by what it says of an item; see `Table.of`."""

    heading: str
    of: Callable[[Item], Contents]
    align: Literal["l", "r"] = "r"


@dataclass(frozen=True)
class Table:
    """Headings, and as many entries in every row; the first column names the row.

    title: what it is, said above it in a terminal and to screen readers in HTML; align: l or r for each column, by
    default the first left and the others right; notes: sentences below it; keys: of its rows, for the page's scripts.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Contents]]
    title: str = ""
    align: str = ""
    notes: Sequence[str] = ()
    keys: Sequence[str] = field(default=(), kw_only=True)

    @classmethod
    def of(cls, columns: Sequence[Column[T]], items: Iterable[T], title: str = "", notes: Sequence[str] = ()) -> Table:
        rows = [[column.of(item) for column in columns] for item in items]
        return cls([column.heading for column in columns], rows, title, "".join(c.align for c in columns), notes)

    def transposed(self) -> Table:
        headings, *rows = zip(self.headings, *self.rows, strict=True)
        return replace(self, headings=[str(heading) for heading in headings], rows=rows, align="", keys=())

    def part(self, first: int, end: int) -> Table:
        """The columns from `first` to before `end`, behind that of the rows' names."""
        places = [0, *range(first, end)]
        rows = [[row[place] for place in places] for row in self.rows]
        sides = "".join(self._sides[place] for place in places)
        return replace(self, headings=[self.headings[place] for place in places], rows=rows, align=sides)

    @property
    def _sides(self) -> str:
        return self.align or "l" + "r" * (len(self.headings) - 1)

    def to_rich(self, gap: int = 2) -> RichTable:
        """For `rich`, without title and notes. gap: blanks between columns."""
        table = RichTable(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for heading, side in zip(self.headings, self._sides, strict=True):
            justify: Literal["left", "right"] = "right" if side == "r" else "left"
            table.add_column(plain(heading), justify=justify, no_wrap=side == "r", vertical="bottom")
        for row in self.rows:
            table.add_row(*map(_coloured, row))
        return table

    def to_text(self) -> str:
        """Aligned columns however long the lines become, without title, notes and colours."""
        out = io.StringIO()
        Console(file=out, width=UNLIMITED, color_system=None, force_jupyter=False).print(
            self.to_rich(), highlight=False
        )
        return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())

    def to_csv(self, digits: int | None = None) -> str:
        """Headings and rows alone, numbers to the last bit or with so many `digits`; empty where there is none."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([_exact(content, digits) for content in row] for row in self.rows)
        return out.getvalue()

    def to_markdown(self) -> str:
        """In GitHub's Markdown, the notes below."""
        rule = ["---:" if side == "r" else "---" for side in self._sides]
        body = [[" ".join(map(_markdown, _each(content))) for content in row] for row in self.rows]
        lines = [[_plain_markdown(heading) for heading in self.headings], rule, *body]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *map(_plain_markdown, self.notes)]) + "\n"

    @property
    def fits_article(self) -> bool:
        """Whether `to_latex` is about no wider than the text of an article, without breaking a column."""
        return sum(self._points) - GAP <= TEXT

    @property
    def _points(self) -> list[float]:
        """About how wide each column is in LaTeX, with the gap beside it."""
        texts = [[" ".join(map(str, _each(content))).replace("+-", "\u00b1") for content in row] for row in self.rows]
        columns = zip(self.headings, *texts, strict=True)
        return [max(map(len, column)) * LETTER + GAP for column in columns]

    def to_latex(self) -> str:
        """A booktabs tabular in footnotes' size, no wider than the text of an article where its widest column of words
        can be broken so far; the notes as comments below."""
        rows = [[latex(" ".join(map(str, _each(content)))) for content in row] for row in self.rows]
        sides, points = [*self._sides], self._points
        words = [column for column, side in enumerate(sides) if side == "l"]
        if words and not self.fits_article:
            at = max(words, key=lambda column: points[column])
            sides[at] = f"p{{{max(TEXT + points[at] - sum(points) + GAP, NARROWEST):.0f}pt}}"
            for row, shown in zip(self.rows, rows, strict=True):
                shown[at] = RAGGED + _breakable(" ".join(map(str, _each(row[at]))))
        lines = [
            rf"{{\footnotesize\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}%",
            rf"\begin{{tabular}}{{@{{}}{''.join(sides)}@{{}}}}",
            r"\toprule",
            _latex_row(map(latex, self.headings)),
            r"\midrule",
        ]
        lines += [*map(_latex_row, rows), r"\bottomrule", r"\end{tabular}}"]
        return "".join(f"{line}\n" for line in [*lines, *(f"% {' '.join(note.split())}" for note in self.notes)])

    def to_html(self, kind: str = "", of: str = "") -> Markup:
        """Scrolls sideways by itself where it is too wide. kind: more classes ("sortable", "text"); of: what the page's
        scripts take its rows for."""
        return Markup(_template(TABLE).render(table=self, sides=self._sides, kind=kind, of=of))

    def __html__(self) -> str:
        return self.to_html().__html__()


def plain(text: str) -> str:
    """`text` as it is for `rich`: no markup in it counts, and what would act on the terminal is spelled out."""
    return without_markup(CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def coloured(word: str, mood: str | None = None) -> str:
    """`word` in the colour of its mood, which by default is the word, as markup of `rich`."""
    style = MOODS.get(word if mood is None else mood, ("", ""))[0]
    return f"[{style}]{plain(word)}[/]" if style else plain(word)


def typographic(text: str) -> str:
    """Text with true signs for minus, times and plus-minus; no number is parted from its spread."""
    text = re.sub(r" ?\+-(?=\d)", "\u00a0\u00b1", text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text)
    return re.sub(r"(?<![@\d.])(\d+(?:\.\d+)?)x\b", "\\1\u00d7", text)


def latex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in text.replace("\n", " "))
    escaped = re.sub(r" ?\+-(?=\d)", r"~$\\pm$", escaped)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)


def _breakable(text: str) -> str:
    """For a narrow column: words end after signs, too, and long ones wherever they must."""
    words = [re.sub(r"(?<=[_./=,])(?=\w)", "\0", word) for word in text.split(" ")]
    pieces = [piece for word in words for piece in (*word.split("\0"), " ")][:-1]
    pieces = ["\0".join(piece) if len(piece) > LONG else piece for piece in pieces]
    joined = "\0".join(pieces).replace("\0 \0", " ")
    return r"\allowbreak{}".join(map(latex, joined.split("\0")))


def html(contents: Contents) -> Markup:
    return Markup(" ").join(escape(one) for one in _each(contents))


def _each(contents: Contents) -> list[Entry | str | HasHtml]:
    """The one or several contents of a place, numbers as text, nothing left out."""
    several = contents if isinstance(contents, Sequence) and not isinstance(contents, str) else [contents]
    return [
        f"{one:.10g}" if isinstance(one, float) else str(one) if isinstance(one, int) else one
        for one in several
        if one is not None
    ]


def _coloured(contents: Contents) -> str:
    parts = []
    for one in _each(contents):
        if isinstance(one, Entry):
            parts += [coloured(one.text, one.mood), *([coloured(one.note, "soft")] if one.note else [])]
        else:
            parts.append(plain(str(one)))
    return " ".join(parts)


def _exact(contents: Contents, digits: int | None) -> str:
    if isinstance(contents, Sequence) and not isinstance(contents, str):
        return " ".join(_exact(one, digits) for one in contents)
    value = contents.value if isinstance(contents, Entry) else contents
    if isinstance(value, float):
        return "" if not math.isfinite(value) else str(value) if digits is None else f"{value:.{digits}g}"
    return "" if contents is None else str(contents)


def _markdown(content: Entry | str | HasHtml) -> str:
    if not isinstance(content, Entry):
        return _plain_markdown(str(content))
    text = f"`{content.text}`" if content.is_code else _plain_markdown(content.text)
    text = f"[{text}]({content.link})" if content.link else text
    return " ".join(filter(None, [text, _plain_markdown(content.note)]))


def _plain_markdown(text: str) -> str:
    return re.sub(r"([\\|*<>`])", r"\\\1", text).replace("\n", " ")


def _latex_row(texts: Iterable[str]) -> str:
    return f"{' & '.join(texts)} \\\\"


@cache
def _template(source: str) -> Template:
    """Compiled once; everything in it that is not markup is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    environment.globals |= {"left": Markup(' class="left"'), "moods": MOODS, "typographic": typographic, "html": html}
    return environment.from_string(source.lstrip("\n"))
