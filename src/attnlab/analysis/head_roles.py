"""Which heads do what: a word for each head where its attention is clear, and the table of all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnlab.analysis.ablation import Effect
from attnlab.analysis.head_statistics import Head, Score, Scores

BAR = 0.5  # how far from uniform attention (0) to all of the weight (1) a role has to be
EVEN = 0.9  # of the greatest entropy: attention to everything alike
EVENLY = "even"
FEWEST = 8  # queries that a role is read from
ROLES = {
    "repeats": "induction",
    "induction": "induction",
    "previous": "previous token",
    "next": "next token",
    "same": "same token",
    "current": "current token",
    "first": "first token",
    "last": "last token",
    "marks": "marks",
    "diagonal": "diagonal",
}
RULE = (
    f"A role is given where a head's weight lies at least {BAR:.0%} of the way from uniform attention to all of the weight, over at least "
    f"{FEWEST} queries; of several the clearest, but induction on repeated random tokens before all others, since heads that do it rest elsewhere "
    f"where nothing is repeated. Even: no role, and at least {EVEN:.0%} of the greatest entropy."
)


@dataclass(frozen=True)
class Role:
    """What a head does, by which statistic, and how clearly, 0 being uniform attention and 1 all of the weight."""

    name: str
    statistic: str
    strength: float


def strength(score: Score) -> float:
    """How far a weight lies from uniform attention (0) to all of the weight (1); negative below chance."""
    return (score.value - score.chance) / (1 - score.chance) if score.chance < 1 else 0.0


def role_of(scores: Mapping[str, Score]) -> Role | None:
    """The clearest role of a head, or None where none clears the bar."""
    measured = [(name, scores[name]) for name in ROLES if name in scores and scores[name].queries >= FEWEST]
    roles = [Role(ROLES[name], name, strength(score)) for name, score in measured]
    clear = [role for role in roles if role.strength >= BAR]
    if clear:
        # An induction head attends to the first token, say, in texts where nothing comes again. Of equals the first, which says more.
        return max(clear, key=lambda role: (role.statistic == "repeats", role.strength))
    even = scores.get("relative_entropy")
    if even is not None and even.queries >= FEWEST and even.value >= EVEN:
        return Role(EVENLY, "relative_entropy", even.value)
    return None


def clearest(scores: Scores, kind: str) -> Head | None:
    """The head of a kind whose role is clearest, leaving out those that attend evenly; None where none has a role."""
    found = {
        head: role.strength
        for head, named in scores.items()
        if head.kind == kind and (role := role_of(named)) is not None and role.name != EVENLY
    }
    return max(found, key=lambda head: found[head], default=None)


def roles(scores: Scores) -> dict[Head, Role | None]:
    """The role of every head."""
    return {head: role_of(named) for head, named in scores.items()}


def table(scores: Scores, effects: Mapping[Head, Effect] | None = None) -> tuple[list[str], list[list[Any]]]:
    """Columns and a row a head: its place, its role and how clear it is, every statistic, and what masking it does."""
    names = list(dict.fromkeys(name for named in scores.values() for name in named))
    columns = ["kind", "layer", "head", "role", "strength", *names]
    columns += ["masked", "masked_low", "masked_high", "masked_verdict"] if effects else []
    rows = []
    for head, named in scores.items():
        role = role_of(named)
        row: list[Any] = [*head, role.name if role else "", role.strength if role else None]
        row += [named[name].value if name in named else None for name in names]
        if effects:
            effect = effects.get(head)
            row += [None] * 3 + [""] if effect is None else [effect.change, effect.low, effect.high, effect.verdict]
        rows.append(row)
    return columns, rows


def as_csv(scores: Scores, effects: Mapping[Head, Effect] | None = None) -> str:
    """The table as CSV, numbers with six digits."""
    columns, rows = table(scores, effects)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()


def as_json(scores: Scores, effects: Mapping[Head, Effect] | None = None) -> dict[str, Any]:
    """Everything about every head: value, chance and number of queries of each statistic, the role, what masking it does."""
    heads = []
    for head, named in scores.items():
        role, effect = role_of(named), (effects or {}).get(head)
        heads.append(
            {
                **head._asdict(),
                "role": None if role is None else vars(role),
                "statistics": {name: vars(score) for name, score in named.items()},
                **({} if effect is None else {"masked": {**vars(effect), "verdict": effect.verdict}}),
            }
        )
    return {"rule": RULE, "heads": heads}
