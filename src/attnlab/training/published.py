"""The published effect that a study reproduces, as study.yaml and plan.json say it; a study with one is in the
gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attnlab.ranges import must_be
from attnlab.training.study_fields import checked_table, is_finite

PUBLISHED_FIELDS = ("effect", "source", "figure", "figures", "law", "minutes", "size")
FIGURE_FIELDS = ("cell", "metric", "value", "of", "better", "beside")
LAW_FIELDS = ("E", "A", "alpha", "B", "beta")  # L = E + A / N^alpha + B / D^beta


@dataclass(frozen=True)
class PublishedFigure:
    """A number of a paper: the study's choices that it belongs to, its metric and data in the paper's words.

    better: which values of it are better; beside: the final metric of the study's runs that it stands beside. Both are
    those of the study's primary metric where they are "".
    """

    cell: Mapping[str, str | int | float | bool | None]
    metric: str
    value: float
    of: str
    better: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Published:
    """An effect in one sentence and where it was published.

    figure: its size in the paper, in words; minutes: what the study takes on 2 cores; size: the factor whose two values
    are the two sizes of a model; law: numbers of a scaling law in the paper, by the names of LAW_FIELDS.
    """

    effect: str
    source: str
    minutes: float
    figure: str = ""
    figures: Sequence[PublishedFigure] = field(default_factory=tuple)
    size: str = ""
    law: Mapping[str, float] = field(default_factory=dict)


def published_of(raw: object) -> Published | None:
    """What a study has as `published`; None where it has nothing. Raises: ValueError that names the first field which
    is none, or holds what it does not accept."""
    if raw is None or raw == {}:
        return None
    table = checked_table(raw, "published", PUBLISHED_FIELDS)
    figures = table.get("figures", [])
    if not isinstance(figures, list):
        raise _refused("published.figures", "a list of tables", figures)
    found = Published(
        effect=_text("published.effect", table.get("effect")),
        source=_text("published.source", table.get("source")),
        minutes=_minutes(table.get("minutes")),
        figure=_text("published.figure", table["figure"]) if "figure" in table else "",
        figures=[_figure(f"published.figures[{at}]", one) for at, one in enumerate(figures)],
        size=_text("published.size", table["size"]) if "size" in table else "",
        law=_law(table.get("law", {})),
    )
    if not (found.figure or found.figures or found.law):
        raise _refused("published", "a table with figure (in words), figures (a list) or law (a table)", sorted(table))
    return found


def _law(raw: object) -> dict[str, float]:
    """Raises: ValueError for a name that the law does not have, or what is no positive number."""
    if raw == {}:
        return {}
    table = checked_table(raw, "published.law", LAW_FIELDS)
    for name, value in table.items():
        if not is_finite(value) or value <= 0:
            raise _refused(f"published.law.{name}", "a number above 0", value)
    return {name: float(value) for name, value in table.items()}


def _figure(where: str, raw: object) -> PublishedFigure:
    table = checked_table(raw, where, FIGURE_FIELDS)
    cell, value, better = table.get("cell"), table.get("value"), table.get("better", "")
    if not isinstance(cell, Mapping) or not cell:
        raise _refused(f"{where}.cell", "a table of choices, as in {position: alibi}", cell)
    if not is_finite(value):
        raise _refused(f"{where}.value", "a finite number", value)
    if better not in ("", "lower", "higher"):
        raise _refused(f"{where}.better", "lower or higher, or left out", better)
    beside = _text(f"{where}.beside", table["beside"]) if "beside" in table else ""
    metric, of = (_text(f"{where}.{key}", table.get(key)) for key in ("metric", "of"))
    return PublishedFigure(dict(cell), metric, float(value), of, str(better), beside)


def _minutes(value: object) -> float:
    if not is_finite(value) or value <= 0:
        raise _refused("published.minutes", "a number of minutes above 0", value)
    return float(value)


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _refused(where, "text", value)
    return value


def _refused(where: str, accepted: str, given: object) -> ValueError:
    return ValueError(must_be(where, accepted, given))
