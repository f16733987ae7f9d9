"""What heads attend to, as one self-contained interactive HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnlab import __version__
from attnlab.analysis.heads.ablation import Effect
from attnlab.analysis.heads.attended import Attended
from attnlab.analysis.heads.attention_page_data import fitting, page_data, short
from attnlab.analysis.heads.head_roles import RULE, role_of
from attnlab.analysis.heads.head_statistics import Head, Scores
from attnlab.analysis.heads.syntactic_agreement import Agreement
from attnlab.analysis.report.document import resource
from attnlab.analysis.report.markup import Html, details, table, tag
from attnlab.training.run_directory import write_text


def write_page(
    path: Path,
    name: str,
    examples: Sequence[Attended],
    scores: Scores,
    effects: Mapping[Head, Effect] | None = None,
    syntax: Sequence[Agreement] = (),
) -> Path:
    """
    Writes the page, atomically, and returns its file.

    It holds the first examples, up to 50 and 4 million weights; where one alone has more, its first tokens. Weights are exact to 0.00001.
    Raises CannotWrite.
    """
    write_text(path, render(name, examples, scores, effects, syntax), durable=False)
    return path


def render(
    name: str,
    examples: Sequence[Attended],
    scores: Scores,
    effects: Mapping[Head, Effect] | None = None,
    syntax: Sequence[Agreement] = (),
) -> str:
    """The page as HTML text."""
    kept = fitting(examples)
    data = page_data(kept, scores)
    left_out = f" In the statistics alone: {len(examples) - len(kept)} more." if len(kept) < len(examples) else ""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:",
        ),
        tag("title", f"What the heads of {name} attend to - attnlab"),
        tag("style", Html(resource("report/page.css") + resource("heads/attention_page.css"))),
    ]
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = resource("heads/attention_page.js")
    assert "</script" not in script.lower()
    body = [
        tag("header", tag("p", name, class_="study"), tag("h1", "What the heads attend to")),
        tag("main", *_look(left_out), _all_heads(scores, effects), _syntax(syntax)),
        tag("footer", f"Made by attnlab {__version__}. Weights are exact to 0.00001."),
        tag("script", Html(text), type="application/json", id="data"),
        tag("script", Html(script)),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def _look(left_out: str) -> list[Html]:
    """The choices, the overview and one head; the script fills them."""
    choices = [
        tag("label", "Text or image", tag("select", id="example")),
        tag("label", "Attention", tag("select", id="kind")),
        tag("label", "Shades", tag("select", tag("option", "as they are", value="plain"), tag("option", "square root (small weights show)", value="root"), id="shade")),
    ]  # fmt: skip
    overview = tag(
        "div", tag("table", id="overview"), class_="overview", tabindex=0, role="region", aria_label="All heads"
    )
    cells = tag(
        "div",
        tag("canvas", id="cells", role="img"),
        tag("i", id="row"),
        tag("i", id="cell", hidden=True),
        class_="cells",
    )
    grid = tag(
        "div",
        tag("div", "key \u2192", tag("br"), "query \u2193", id="corner", aria_hidden="true"),
        tag("div", id="keys", aria_hidden="true"),
        tag("ul", id="queries", role="listbox", tabindex=0, aria_label="Queries: up and down choose one, left and right a key"),
        cells,
        id="map",
    )  # fmt: skip
    top = _to_fill("top", tag("caption", id="from", aria_live="polite"), ("key", "place", "weight"))
    caption = tag("caption", "This head, over all texts given")
    statistics = _to_fill("statistics", caption, ("statistic", "value", "uniform"))
    detail = tag(
        "div",
        tag("h2", id="title", tabindex=-1),
        tag("div", grid, id="box", tabindex=0, role="region", aria_label="The map of one head"),
        tag("p", "0", tag("i", class_="scale", aria_hidden="true"), tag("b", id="most"), " greatest weight", tag("span", tag("i", class_="no", aria_hidden="true"), " not to be attended to", id="no"), class_="legend"),
        tag("p", id="pair", aria_live="polite"),
        tag("div", id="reading", tabindex=0, role="region", aria_label="The text, shaded by the weights of the chosen query"),
        tag("div", tag("canvas", id="image", role="img"), id="picture"),
        tag("div", tag("div", top), tag("div", statistics), class_="numbers"),
    )  # fmt: skip
    lead = "Each small map is a head: a row is a query, a column a key that it attends to." + left_out
    return [
        tag("p", lead, class_="lead"),
        tag("div", *choices, class_="choices"),
        tag("p", id="cut", class_="soft"),
        tag("section", overview, detail, class_="look", id="look", aria_label="Maps"),
    ]


def _to_fill(id: str, caption: Html, columns: Sequence[str]) -> Html:
    """A table whose rows the script writes."""
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in columns)))
    return tag("table", caption, head, tag("tbody"), id=id, class_="figures")


def _all_heads(scores: Scores, effects: Mapping[Head, Effect] | None) -> Html | None:
    """The table of which heads do what."""
    if not scores:
        return None
    names = list(dict.fromkeys(key for named in scores.values() for key in named))
    columns = ["head", "role", *(["loss when masked"] if effects else []), *(key.replace("_", " ") for key in names)]
    rows = []
    for head, named in scores.items():
        role = role_of(named)
        attributes = {"data_kind": head.kind, "data_layer": head.layer, "data_head": head.head}
        row: list[Any] = [tag("button", str(head), type="button", **attributes), role.name if role else ""]
        if effects:
            effect = effects.get(head)
            row.append("" if effect is None else _effect(effect))
        rows.append([*row, *(short(named[key].value) if key in named else "" for key in names)])
    explained = [tag("p", RULE)]
    if effects:
        explained.append(tag("p", MASKED))
    content = [table(columns, rows, "Which heads do what"), details("How roles are given", Html("".join(explained)))]
    return tag("section", tag("h2", "Which heads do what"), *content, id="heads")


def _effect(effect: Effect) -> str:
    bounds = f" [{effect.low:+.4f}, {effect.high:+.4f}]" if math.isfinite(effect.high) else ""
    return f"{effect.change:+.4f}{bounds} {effect.verdict}"


MASKED = (
    "Loss when masked: the change in nats a target when the head's output is zeroed, paired by example, with an interval that holds at 95% for all "
    "heads together. Needed or harmful where it lies on one side of zero. It is about examples like these, not about trainings."
)


def _syntax(found: Sequence[Agreement]) -> Html | None:
    if not found:
        return None
    rows = [
        [one.relation, one.direction, one.count, str(one.best), f"{one.shares[one.best]:.0%}", f"{one.baseline:.0%}", f"{one.offset:+d}"]
        for one in found
    ]  # fmt: skip
    columns = ["relation", "direction", "pairs", "best head", "it finds", "best fixed offset finds", "offset"]
    note = "The head and the offset are each the best of many on these pairs, so a small lead says little."
    return tag(
        "section", tag("h2", "Syntax"), tag("p", note, class_="lead"), table(columns, rows, "Syntax"), id="syntax"
    )
