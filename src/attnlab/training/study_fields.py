"""What a study says of itself, in study.yaml and in plan.json: its fields, and what each of them accepts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from attnlab.training.metrics import better_of, known_better

FIELDS = ("question", "needs", "shared", "factors", "cells", "baseline", "seeds", "metric", "claims")
METRIC_FIELDS = ("name", "better", "margin")
AGAINST_FIELDS = ("cell", "metric")
CELL_FIELDS = ("name", "overrides")
BOUNDS = ("within", "below", "above", "between", "cannot", "state")
CLAIM_FIELDS = ("says", "cell", "metric", "against", "source", "strength", *BOUNDS)
ENDS = ("finished", "failed", "diverged")
STRENGTHS = ("must", "should")
LARGEST_SEED, MOST_SEEDS = 1 << 32, 1000


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """` Did you mean X?`, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def checked_study(raw: Any) -> dict[str, Any]:
    """The fields of a study as its file has them, each with its default where it is left out; `baseline` is then empty.

    Raises: ValueError that names the first field which is none, or holds what it does not accept.
    """
    study = _table(raw, "a study", FIELDS)
    question = study.get("question", "")
    if not isinstance(question, str):
        raise _refused("question", "text", question)
    factors = {str(name): _choices(f"factors.{name}", values) for name, values in _mapping(study, "factors").items()}
    return {
        "question": question,
        "needs": [_text(f"needs[{at}]", name) for at, name in enumerate(_list(study, "needs"))],
        "shared": _overrides("shared", _list(study, "shared")),
        "factors": factors,
        "cells": [_single_cell(at, cell) for at, cell in enumerate(_list(study, "cells"))],
        "baseline": _mapping(study, "baseline"),
        "seeds": checked_seeds(study.get("seeds", 4)),
        "metric": checked_metric(study.get("metric")),
        "claims": [_claim(claim, at) for at, claim in enumerate(_list(study, "claims"))],
    }


def check_plan(plan: Mapping[str, Any]) -> None:
    """Checks what plan.json holds, as far as a comparison rests on it; claims are judged one by one, and better follows
    from the metric where it is left out.

    Raises: ValueError that names the field.
    """
    for key in ("factors", "baseline"):
        _mapping(plan, key)
    for key in ("cells", "seeds", "claims", "shared"):
        _list(plan, key)
    for seed in plan.get("seeds") or ():
        if not _is_whole(seed):
            raise _refused("seeds", "whole numbers", seed)
    for at, cell in enumerate(plan.get("cells") or ()):
        if not isinstance(cell, Mapping) or not isinstance(cell.get("name"), str):
            raise _refused(f"cells[{at}]", "a table with a name", cell)
    metric = plan.get("metric")
    if metric is not None:
        name = metric.get("name") if isinstance(metric, Mapping) else None
        checked_metric({"better": better_of(str(name)), **metric} if isinstance(metric, Mapping) else metric)


def checked_seeds(given: Any) -> list[int]:
    """The seeds that a number of them or a list means. Raises: ValueError."""
    if _is_whole(given) and 1 <= given <= MOST_SEEDS:
        return list(range(given))
    listed = given if isinstance(given, list) and 0 < len(given) <= MOST_SEEDS else []
    is_list = all(_is_whole(seed) and 0 <= seed < LARGEST_SEED for seed in listed) and len(set(listed)) == len(listed)
    if not listed or not is_list:
        raise ValueError(
            f"seeds must be how many seeds (a whole number from 1 to {MOST_SEEDS:,}), or a list of different whole "
            f"numbers from 0, below 2^32, got {_given(given)}"
        )
    return listed


def checked_metric(raw: Any) -> dict[str, Any]:
    """The primary metric: `name`, `better` and `margin`, None where every difference counts. Raises: ValueError."""
    example = "as in {name: test/nats@1x, better: lower, margin: 0.02}"
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"metric must be a table with a name and better: lower or higher, {example}, got {_given(raw)}"
        )
    metric = _table(raw, "metric", METRIC_FIELDS)
    name, better, margin = (metric.get(key) for key in METRIC_FIELDS)
    _text("metric.name", name)
    if better not in ("lower", "higher"):
        raise _refused("metric.better", "lower or higher", better)
    known = known_better(str(name))
    if known is not None and better != known:
        raise ValueError(
            f"metric.better must be {known}, for of {name} {known} values are better, got {better}; "
            f"write better: {known}"
        )
    if margin is not None and not (is_finite(margin) and margin >= 0):
        raise _refused("metric.margin", "a finite number from 0, or left out", margin)
    return {"name": name, "better": better, "margin": margin}


def check_claim(claim: Any) -> None:
    """Checks a claim: what it says, of which cell and metric, held against what, with exactly one bound.

    Raises: ValueError.
    """
    _table(claim, "a claim", CLAIM_FIELDS)
    _text("says", claim.get("says"))
    for key in ("source", "metric"):
        if key in claim:
            _text(key, claim[key])
    if "strength" in claim and claim["strength"] not in STRENGTHS:
        raise _refused("strength", " or ".join(STRENGTHS), claim["strength"])
    if not isinstance(claim.get("cell", {}), Mapping):
        raise _refused("cell", "a table of choices, as in {position: alibi}", claim["cell"])
    bounds = [bound for bound in BOUNDS if bound in claim]
    if len(bounds) != 1:
        raise ValueError(f"there must be exactly one of {', '.join(BOUNDS)}, got {', '.join(bounds) or 'none'}")
    _check_bound(bounds[0], claim[bounds[0]])
    beside = {"state": ("metric", "against"), "cannot": ("against",)}.get(bounds[0], ())
    if idle := [key for key in beside if key in claim]:
        raise ValueError(f"{idle[0]} has no meaning beside {bounds[0]}; leave it out")
    if "against" in claim:
        _check_against(claim["against"], claim)


def _claim(claim: Any, at: int) -> dict[str, Any]:
    says = claim.get("says") if isinstance(claim, Mapping) else None
    try:
        check_claim(claim)
    except ValueError as error:
        name = f"claim {says!r}" if isinstance(says, str) and says.strip() else f"claims[{at}]"
        raise ValueError(f"{name}: {error}") from error
    return dict(claim)


def _check_against(against: Any, claim: Mapping[str, Any]) -> None:
    other = _table(against, "against", AGAINST_FIELDS)
    if "metric" in other:
        _text("against.metric", other["metric"])
    if not isinstance(other.get("cell", {}), Mapping):
        raise _refused("against.cell", "a table of choices, as in {position: alibi}", other["cell"])
    if not other.get("cell") and other.get("metric", claim.get("metric")) == claim.get("metric"):
        raise ValueError("against must name another cell or another metric, got what the claim itself is about")


def _check_bound(bound: str, value: Any) -> None:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_finite, value))
    accepted = {
        "within": ("a finite number from 0", is_finite(value) and value >= 0),
        "below": ("a finite number", is_finite(value)),
        "above": ("a finite number", is_finite(value)),
        "between": ("two finite numbers, the lower first", is_pair and value[0] <= value[1]),
        "cannot": ("true", value is True),
        "state": (f"one of {', '.join(ENDS)}", value in ENDS),
    }
    what, holds = accepted[bound]
    if not holds:
        near = did_you_mean(value, ENDS) if bound == "state" and isinstance(value, str) else ""
        raise ValueError(f"{_refused(bound, what, value)}{near and '.' + near}")


def same(first: Any, second: Any) -> bool:
    """Whether two choices are the same: 0.001, 1e-3 and "1e-3" are; true and 1 are not."""
    if isinstance(first, bool) != isinstance(second, bool):
        return False
    try:
        return first == second or float(first) == float(second)
    except (TypeError, ValueError):
        return str(first) == str(second)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _single_cell(at: int, raw: Any) -> dict[str, Any]:
    cell = _table(raw, f"cells[{at}]", CELL_FIELDS)
    for key in CELL_FIELDS:
        if key not in cell:
            raise ValueError(f"cells[{at}] must be a table with name and overrides, got {_given(raw)}")
    name = str(cell["name"]) if _is_whole(cell["name"]) else cell["name"]
    where = f"cells[{at}]: overrides" if not isinstance(name, str) else f"cell {name!r}: overrides"
    if not isinstance(cell["overrides"], list):
        raise _refused(where, "a list, as in [model.num_layers=4]", cell["overrides"])
    return {"name": _text(f"cells[{at}].name", name), "overrides": _overrides(where, cell["overrides"])}


def _overrides(where: str, words: list[Any]) -> list[str]:
    for word in words:
        if not isinstance(word, str) or not ("=" in word or word.startswith("~")):
            raise ValueError(f"{where} must hold settings as name=value, as in model.d_model=64, got {_given(word)}")
    keys = [word.partition("=")[0].lstrip("+~") for word in words]
    twice = [key for at, key in enumerate(keys) if key in keys[:at]]
    if twice:
        raise ValueError(f"{where} must set each field once, got {twice[0]} twice")
    return words


def _choices(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a list of choices, as in [rotary, alibi], got {_given(values)}")
    for at, value in enumerate(values):
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:at]):
            raise ValueError(f"{name} must list different choices, got {_given(value)} twice")
    return values


def _table(raw: Any, name: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{name} must be a table with the fields {', '.join(known)}, got {_given(raw)}")
    for key in raw:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ValueError(f"{name} must have known fields ({', '.join(known)}), got {key!r}.{near}")
    return dict(raw)


def _mapping(study: Mapping[str, Any], key: str) -> dict[Any, Any]:
    value = study.get(key)
    if value is not None and not isinstance(value, Mapping):
        example = "{position: [rotary, alibi]}" if key == "factors" else "{position: alibi}"
        raise _refused(key, f"a table, as in {example}", value)
    for name in value or {}:
        if not isinstance(name, str):
            raise _refused(key, "a table by the names of fields", name)
    return dict(value or {})


def _list(study: Mapping[str, Any], key: str) -> list[Any]:
    value = study.get(key)
    if value is not None and not isinstance(value, list):
        raise _refused(key, f"a list, as in {key}: [...]", value)
    return value or []


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _refused(name, "text", value)
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refused(name: str, accepted: str, given: Any) -> ValueError:
    return ValueError(f"{name} must be {accepted}, got {_given(given)}")


def _given(value: Any) -> str:
    return "nothing" if value is None else shorten(repr(value), 120, placeholder=" ...")
