"""An HTML document around its body: what it may load and run, its style, its scripts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from attnlab.analysis.markup import Html, tag

# Nothing is loaded from anywhere: style, scripts and pictures stand in the document itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def document(
    title: str, body: Sequence[Html], styles: Sequence[str] = ("page.css",), policy: str = POLICY, *more: Html
) -> str:
    """The document as text. styles: names of style sheets of this package, which are written into it; more: for its head."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        *more,
        tag("style", Html("".join(map(resource, styles)))),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def script(text: str) -> Html:
    """A script that stands in the document."""
    assert "</script" not in text.lower()
    return tag("script", Html(text))


def resource(name: str) -> str:
    """A style sheet or script of this package."""
    return files("attnlab.analysis").joinpath(name).read_text(encoding="utf-8")
