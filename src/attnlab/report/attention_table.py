"""Which heads do what, in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console

from attnlab.analysis.table import Content, Table
from attnlab.inspection.ablation import Effect
from attnlab.inspection.heads import RULE, Head, Role, Score, Scores, role_of
from attnlab.inspection.syntactic_agreement import Agreement

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
    """The clearest heads of every role, role by role."""
    found: dict[str, list[tuple[float, Head]]] = {}
    for head, role in roles.items():
        if role is not None:
            found.setdefault(role.name, []).append((role.strength, head))
    return [head for its in found.values() for _, head in sorted(its, key=lambda one: -one[0])[:EACH]]


def _heads_of_kind(heads: Sequence[Head], scores: Scores, roles: Mapping[Head, Role | None]) -> Table:
    """The heads of one kind with the statistics that it has."""
    names = [name for name in COLUMNS if any(name in scores[head] for head in heads)]
    # Repeated random tokens tell induction from the habits of a text, which the text itself cannot.
    names = [name for name in names if name != "induction" or "repeats" not in names]
    rows = [
        [f"{head.layer}.{head.head}", _role(roles[head]), *(_score(scores[head].get(name)) for name in names)]
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


def _role(role: Role | None) -> str:
    return "" if role is None else f"{role.name} {role.strength:.2f}"


def _score(score: Score | None) -> str:
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
