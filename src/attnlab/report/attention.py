"""What heads attend to: one self-contained interactive HTML page with maps in few bytes, and tables in the terminal.

Legend: L layers, H heads, T queries, S keys.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from rich.console import Console

from attnlab import __version__
from attnlab.analysis.table import Column, Content, Table
from attnlab.inspection.ablation import Effect
from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import POOLING, Head, visible
from attnlab.inspection.heads import RULE, Role, Score, Scores, clearest, role_of
from attnlab.inspection.syntactic_agreement import Agreement
from attnlab.report.document import POLICY, document, json_script, part, resource, script
from attnlab.training.run_directory import write_text

STEPS = 65535  # a weight is kept as a whole number of these, to 0.00001
MOST_WEIGHTS = 4_000_000  # on a page: 11 MB
MOST_EXAMPLES = 50
TITLE = 80  # characters
NAMES = {
    "entropy": "entropy (nats)",
    "relative_entropy": "entropy over its most",
    "distance": "mean distance (tokens)",
    "previous": "to the token before",
    "next": "to the token after",
    "first": "to the first token",
    "last": "to the last token",
    "marks": "to special tokens",
    "current": "to itself",
    "same": "to the same token elsewhere",
    "induction": "to what followed it before",
    "repeats": "the same, in repeated random tokens",
    "diagonal": "along the diagonal",
    "monotonic": "moves forward",
}
MOST_HEADS = 64  # that are shown one by one
EACH = 5  # heads of a role, where there are more
MOST_RELATIONS = 12
FEWEST_PAIRS = 10  # of a relation that is shown
COLUMNS = {
    "previous": "prev",
    "next": "next",
    "current": "self",
    "first": "first",
    "last": "last",
    "marks": "marks",
    "same": "same",
    "repeats": "repeat",
    "induction": "induc",
    "diagonal": "diag",
    "monotonic": "mono",
    "relative_entropy": "entr",
    "distance": "dist",
}


class KindData(TypedDict):
    """The maps of one kind of attention on an example; `cut`: the whole size, where a page holds less.
    `numbers`: of the layers that have them."""

    name: str
    layers: int
    numbers: list[int]
    heads: int
    queries: list[str]
    keys: list[str]
    cut: list[int] | None
    square: bool
    grid: list[int] | None
    before: int
    offset: int
    weights: str
    hidden: str | None


class ExampleData(TypedDict):
    """What the page's script shows of one text or image."""

    title: str
    kinds: list[KindData]
    size: NotRequired[list[int]]
    pixels: NotRequired[str]


def write_page(
    path: Path,
    name: str,
    examples: Sequence[Attended],
    scores: Scores,
    effects: Mapping[Head, Effect] | None = None,
    syntax: Sequence[Agreement] = (),
) -> Path:
    """Writes the page, atomically, and returns its file.

    It holds the first examples, up to 50 and 4 million weights; where one alone has more, its first tokens. Weights are
    exact to 0.00001. Raises CannotWrite.
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
    kept = fitting(examples)
    shown = part(
        "attention.html",
        "body",
        name,
        len(examples) - len(kept),
        _all_heads(scores, effects),
        RULE,
        bool(effects),
        _syntax(syntax),
        __version__,
        json_script(page_data(kept, scores)),
    )
    title, styles = f"What the heads of {name} attend to - attnlab", ("page.css", "attention_page.css")
    return document(title, [shown, script(resource("attention_page.js"))], styles, POLICY.removesuffix(" blob:"))


def _all_heads(scores: Scores, effects: Mapping[Head, Effect] | None) -> Table:
    def masked(head: Head) -> str:
        effect = (effects or {}).get(head)
        if effect is None:
            return ""
        bounds = f" [{effect.low:+.4f}, {effect.high:+.4f}]" if math.isfinite(effect.high) else ""
        return f"{effect.change:+.4f}{bounds} {effect.verdict}"

    def value(name: str, head: Head) -> str:
        return short(scores[head][name].value) if name in scores[head] else ""

    columns = [
        Column[Head]("head", partial(part, "attention.html", "head_button")),
        Column("role", lambda head: role.name if (role := role_of(scores[head])) else ""),
        *([Column("loss when masked", masked)] if effects else []),
    ]
    names = dict.fromkeys(key for named in scores.values() for key in named)
    columns += [Column(name.replace("_", " "), partial(value, name)) for name in names]
    return Table.of(columns, scores, "Which heads do what")


def _syntax(found: Sequence[Agreement]) -> Table:
    columns = [
        Column[Agreement]("relation", lambda one: one.relation),
        Column("direction", lambda one: one.direction),
        Column("pairs", lambda one: one.count),
        Column("best head", lambda one: str(one.best)),
        Column("it finds", lambda one: f"{one.shares[one.best]:.0%}"),
        Column("best fixed offset finds", lambda one: f"{one.baseline:.0%}"),
        Column("offset", lambda one: f"{one.offset:+d}"),
    ]
    return Table.of(columns, found, "Syntax")


def page_data(examples: Sequence[Attended], scores: Scores) -> dict[str, object]:
    limit = MOST_WEIGHTS if len(examples) == 1 else None
    heads = {}
    for head, named in scores.items():
        role = role_of(named)
        statistics = {key: [short(one.value), short(one.chance)] for key, one in named.items()}
        heads[str(head)] = {"role": role.name if role else "", "statistics": statistics}
    shown = [_example(example, limit) for example in examples]
    return {"examples": shown, "heads": heads, "names": NAMES, "start": _start(examples[0], scores)}


def quantised(weights: np.ndarray) -> str:
    """Weights from 0 to 1 as base64 of 16-bit numbers, each off by less than 0.00001."""
    steps = np.round(np.clip(weights, 0, 1) * STEPS).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode()


def _bits(flags: np.ndarray) -> str:
    """Flags as base64 of their bits, the first one highest."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def fitting(examples: Sequence[Attended]) -> list[Attended]:
    """The first examples, as many as a page holds, at least one."""
    total, kept = 0, 0
    for example in examples[:MOST_EXAMPLES]:
        total += sum(one.weights_HTS.numel() for one in example.maps)
        if kept and total > MOST_WEIGHTS:
            break
        kept += 1
    return list(examples[:kept])


def _example(example: Attended, limit: int | None) -> ExampleData:
    total = sum(one.weights_HTS.numel() for one in example.maps)
    share = 1.0 if limit is None or total <= limit else (limit / total) ** 0.5
    kinds = [_kind(example, kind, share) for kind in example.kinds]
    title = visible(example.title).replace("\u2423", " ")
    found: ExampleData = {"title": title if len(title) <= TITLE else f"{title[: TITLE - 1]}\u2026", "kinds": kinds}
    if example.pixels_YXC is not None:
        found["size"] = list(example.pixels_YXC.shape[:2])
        found["pixels"] = base64.b64encode(example.pixels_YXC.astype(np.uint8).tobytes()).decode()
    return found


def _kind(example: Attended, kind: str, share: float) -> KindData:
    queries, keys = example.axes[kind]
    weights_LHTS = np.stack([one.weights_HTS.numpy() for one in example.of_kind(kind)])
    labels, offset = list(queries.labels), queries.before
    if queries.grid is not None and "[class]" not in labels and POOLING not in example.kinds:
        # Nothing stands for the whole image but the mean of the patches, which is what the model classifies.
        mean_LH1S = weights_LHTS[:, :, queries.before :].mean(axis=2, keepdims=True)
        weights_LHTS = np.concatenate([mean_LH1S, weights_LHTS], axis=2)
        labels, offset = ["[mean of patches]", *labels], offset + 1
    hidden_LTS = np.stack([~one.allowed_TS.numpy() for one in example.of_kind(kind)])
    full = weights_LHTS.shape[2:]
    num_queries, num_keys = (max(1, int(count * share)) for count in full)
    weights_LHTS = weights_LHTS[:, :, :num_queries, :num_keys]
    return {
        "name": kind,
        "layers": len(weights_LHTS),
        "numbers": [one.layer for one in example.of_kind(kind)],
        "heads": weights_LHTS.shape[1],
        "queries": labels[:num_queries],
        "keys": keys.labels[:num_keys],
        "cut": list(full) if share < 1 else None,
        "square": queries is keys,
        "grid": None if queries.grid is None else list(queries.grid),
        "before": keys.before,
        "offset": offset,
        "weights": quantised(weights_LHTS),
        "hidden": _bits(hidden_LTS[:, :num_queries, :num_keys]) if hidden_LTS.any() else None,
    }


def _start(example: Attended, scores: Scores) -> dict[str, int]:
    """What is shown first: of the first kind the head whose role is clearest."""
    kind = example.kinds[0]
    best = clearest(scores, kind)
    numbers = [one.layer for one in example.of_kind(kind)]
    layer, head = (numbers.index(best.layer), best.head) if best else (0, 0)
    return {"layer": layer, "head": head, "query": len(example.axes[kind][0]) // 2}


def short(value: float) -> str:
    return f"{value:.3f}"


# --- in the terminal


def print_heads(scores: Scores, effects: Mapping[Head, Effect] | None) -> None:
    """A table of each kind, a line a head, of very many the clearest of each role; below, what masking does."""
    console = Console()
    roles = {head: role_of(named) for head, named in scores.items()}
    shown = list(scores) if len(scores) <= MOST_HEADS else _clearest_of_each(roles)
    for kind in dict.fromkeys(head.kind for head in shown):
        table = _heads_of_kind([head for head in shown if head.kind == kind], scores, roles)
        console.print(table.to_rich(), highlight=False)
        console.print()
    if len(shown) < len(scores):
        counts = Counter("no role" if role is None else role.name for role in roles.values())
        listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        line = f"{len(scores)} heads: {listed}. Above are the {EACH} clearest of each role; heads.csv has all."
        console.print(line, markup=False, highlight=False)
    console.print(RULE, markup=False, highlight=False)
    if effects:
        _print_effects(console, effects)


def _clearest_of_each(roles: Mapping[Head, Role | None]) -> list[Head]:
    found: dict[str, list[tuple[float, Head]]] = {}
    for head, role in roles.items():
        if role is not None:
            found.setdefault(role.name, []).append((role.strength, head))
    return [head for its in found.values() for _, head in sorted(its, key=lambda one: -one[0])[:EACH]]


def _heads_of_kind(heads: Sequence[Head], scores: Scores, roles: Mapping[Head, Role | None]) -> Table:
    names = [name for name in COLUMNS if any(name in scores[head] for head in heads)]
    # Repeated random tokens tell induction from the habits of a text, which the text itself cannot.
    names = [name for name in names if name != "induction" or "repeats" not in names]
    rows = [
        [f"{head.layer}.{head.head}", _role_text(roles[head]), *(_score_text(scores[head].get(name)) for name in names)]
        for head in heads
    ]
    return Table([heads[0].kind, "role", *(COLUMNS[name] for name in names)], rows, align="ll" + "r" * len(names))


def _print_effects(console: Console, effects: Mapping[Head, Effect]) -> None:
    """The effects from the most needed head to the least, and what the intervals are of."""
    rows = []
    for head, effect in sorted(effects.items(), key=lambda item: -item[1].change)[:MOST_HEADS]:
        half = f"{effect.high - effect.change:.4f}" if math.isfinite(effect.high) else ""
        rows.append([str(head), f"{effect.change:+.4f}", half, effect.verdict])
    one = next(iter(effects.values()))
    console.print()
    console.print(Table(["masked", "loss", "+-", ""], rows, align="lrrl").to_rich(), highlight=False)
    unsure = "" if math.isfinite(one.high) else "; with one example nothing is known of the spread"
    console.print(
        f"The change of the loss, {one.before:.4f} nats a target over {one.examples} examples, when a head's output "
        f"is zeroed; intervals hold together at 95%{unsure}.",
        markup=False,
        highlight=False,
    )


def _role_text(role: Role | None) -> str:
    return "" if role is None else f"{role.name} {role.strength:.2f}"


def _score_text(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.{1 if abs(score.value) >= 10 else 2}f}"


def print_syntax(found: Sequence[Agreement]) -> None:
    """The relations with most pairs, each with the head that finds it best and the best fixed offset."""
    shown = [one for one in found if one.count >= FEWEST_PAIRS][:MOST_RELATIONS]
    if not shown:
        if found:
            print(f"no relation comes {FEWEST_PAIRS} times; syntax.csv has all")
        return
    rows: list[list[Content]] = [
        [
            one.relation,
            one.direction,
            one.count,
            str(one.best),
            f"{one.shares[one.best]:.0%}",
            f"{one.offset:+d}",
            f"{one.baseline:.0%}",
        ]
        for one in shown
    ]
    console = Console()
    headings = ["relation", "direction", "pairs", "best head", "finds", "offset", "finds"]
    console.print(Table(headings, rows, align="llrrrrr").to_rich(), highlight=False)
    console.print("Head and offset are each the best of many on these pairs: a small lead says little.", markup=False)
