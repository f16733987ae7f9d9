"""HTML documents from templates: what is not markup already is escaped, and nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnlab.analysis.table import typographic
from attnlab.analysis.tables import effects_table, interactions_table

# Style, scripts and pictures stand in the document itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def document(
    title: str, parts: Sequence[Markup], styles: Sequence[str] = ("page.css",), policy: str = POLICY, head: str = ""
) -> str:
    """A document whose body is `parts`. styles: style sheets of this package, which are written into it; head: more."""
    text = Markup("".join(map(resource, styles)))
    return (
        _templates()
        .get_template("document.html")
        .render(title=title, parts=parts, policy=policy, head=head, style=text)
    )


def part(template: str, macro: str, *given: object, **named: object) -> Markup:
    made: Markup = getattr(_templates().get_template(template).module, macro)(*given, **named)
    return made


def script(text: str) -> Markup:
    assert "</script" not in text.lower()
    return Markup(f"<script>{text}</script>")


def json_script(data: object) -> Markup:
    """Data for scripts, as #data; < is written as an escape, so that no text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="data">{text}</script>')


def resource(name: str) -> str:
    """A style sheet or script by its path in `attnlab.report`."""
    return files("attnlab.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    loader = PackageLoader("attnlab.report", "templates")
    templates = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    templates.filters["typographic"] = typographic
    templates.globals |= {"effects_table": effects_table, "interactions_table": interactions_table}
    return templates
