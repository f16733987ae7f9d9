"""HTML by construction: everything that is not markup already is escaped."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

VOID = {"meta", "br", "hr", "input", "link"}


class Html(str):
    """Text that is markup and will not be escaped again."""


def escape(text: str) -> Html:
    """Escapes `text` for an element or an attribute."""
    return Html(html.escape(text, quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Children are Html, text (escaped), None (left out) or lists of these; class_ and data_x become class and data-x."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            spelt = key.rstrip("_").replace("_", "-")
            parts.append(spelt if value is True else f'{spelt}="{escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Html(start) if name in VOID else Html(f"{start}{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """The children one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, list | tuple):
            parts.append(str(join(child)))
        elif child is not None:
            parts.append(str(escape(str(child))))
    return Html("".join(parts))


def prose(text: str) -> Html:
    """A sentence with true signs for minus, times and plus-minus, escaped; no number is parted from its spread."""
    text = re.sub(r" ?\+-(?=\d)", "\u00a0\u00b1", text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text)
    return escape(re.sub(r"(?<![@\d.])(\d+(?:\.\d+)?)x\b", "\\1\u00d7", text))


def table(
    head: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    name: str,
    kind: str = "",
    keys: Sequence[str] = (),
    of: str | None = None,
) -> Html:
    """
    A table whose first column names the row; it scrolls sideways by itself where it is too wide.

    keys: of its rows, for the page's scripts, which filter and unfold the rows of a table `of` something.
    """
    header = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in head)))
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", value) for value in row[1:]), data_row=key)
        for row, key in itertools.zip_longest(rows, keys)
    ]
    drawn = tag("table", header, tag("tbody", *lines), class_=f"figures {kind}".strip(), data_of=of)
    return tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label=name)


def details(title: str, content: Html, key: str | None = None) -> Html:
    """Content that is folded away; `key` names the fold where its title may change while a study runs."""
    return tag("details", tag("summary", title), content, data_key=key or title)
