"""What a study says of itself, in study.yaml and in plan.json: its fields, and what each of them accepts."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, TypedDict, TypeGuard

from attnlab.training.looks import FEWEST_SEEDS, check_looks
from attnlab.training.metrics import better_of, known_better
from attnlab.training.run_directory import ENDED
from attnlab.training.targets import FIELDS as TARGET_FIELDS
from attnlab.training.targets import checked, target_in, target_of

FIELDS = (
    *("question", "needs", "config_dirs", "shared", "factors", "cells", "baseline", "seeds", "metric", "claims"),
    *("trunk", "tune", "on_end", "stop", "across", "published"),
)
STOP_FIELDS = ("when", "at_most", "step")
METRIC_FIELDS = ("name", "better", "margin", *TARGET_FIELDS)
AGAINST_FIELDS = ("cell", "metric")
CELL_FIELDS = ("name", "overrides")
BOUNDS = ("within", "below", "above", "between", "unavailable", "state")
AUTOMATIC = ("precision", "compile")  # fields of the trainer that may be auto, settled for all runs of a plan
CLAIM_FIELDS = ("says", "cell", "metric", "against", "source", "strength", *BOUNDS)
ENDS = tuple(state for state in ENDED if state != "pruned")  # that a claim may speak of
STRENGTHS = ("must", "should")
EXAMPLES = {
    "factors": "{position: [rotary, alibi]}",
    "published": "{effect: ..., source: ..., figure: ..., minutes: 10}",
}
LARGEST_SEED, MOST_SEEDS = 1 << 32, 1000


class PrimaryMetric(TypedDict):
    """What a study is judged by; margin: None where every difference counts."""

    name: str
    better: str
    margin: float | None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """` Did you mean X?`, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def checked_study(raw: object) -> dict[str, Any]:
    """The fields of a study as its file has them, each with its default where it is left out; `baseline` is then empty.
    `across` stays as it is: see `across.checked_across`.

    Raises: ValueError that names the first field which is none, or holds what it does not accept.
    """
    study = checked_table(raw, "a study", FIELDS)
    if study.get("stop") is not None and study.get("across") is not None:
        raise ValueError("stop must stand in a study without across: over tasks, no look before the last is planned")
    question = study.get("question", "")
    if not isinstance(question, str):
        raise _refused("question", "text", question)
    factors = {name: _choices(f"factors.{name}", values) for name, values in _mapping(study, "factors").items()}
    return {
        "question": question,
        "needs": [_text(f"needs[{at}]", name) for at, name in enumerate(_list(study, "needs"))],
        "config_dirs": [_text(f"config_dirs[{at}]", name) for at, name in enumerate(_list(study, "config_dirs"))],
        "shared": _overrides("shared", _list(study, "shared")),
        "factors": factors,
        "cells": [_single_cell(at, cell) for at, cell in enumerate(_list(study, "cells"))],
        "baseline": _mapping(study, "baseline"),
        "seeds": checked_seeds(study.get("seeds", 4)),
        "metric": checked_metric(study.get("metric")),
        "claims": [_claim(claim, at) for at, claim in enumerate(_list(study, "claims"))],
        "trunk": _flag("trunk", study.get("trunk", False)),
        "tune": study.get("tune"),  # checked by tuning_fields
        "on_end": checked_command(study["on_end"]) if study.get("on_end") is not None else None,
        "stop": _stop(study["stop"], study.get("seeds", 4)) if study.get("stop") is not None else None,
        "across": study.get("across"),
        "published": _mapping(study, "published"),
    }


def check_plan(plan: Mapping[str, object]) -> None:
    """Checks what plan.json holds, as far as a comparison rests on it; claims are judged one by one, and better follows
    from the metric where it is left out. Raises: ValueError that names the field."""
    for key in ("factors", "baseline", "branches", "tuned", "published"):
        _mapping(plan, key)
    for key, one in _mapping(plan, "automatic").items():
        if key not in AUTOMATIC or not isinstance(one, Mapping) or not {"used", "asked", "reason"} <= one.keys():
            raise _refused(f"automatic.{key}", f"one of {', '.join(AUTOMATIC)}, with used, asked and reason", one)
    for key in ("claims", "shared", "config_dirs"):
        _list(plan, key)
    for seed in _list(plan, "seeds"):
        if not _is_whole(seed):
            raise _refused("seeds", "whole numbers", seed)
    if wanted := check_looks(looks := _mapping(plan, "looks"), len(_list(plan, "seeds"))):
        raise _refused("looks", wanted, looks)
    for at, cell in enumerate(_list(plan, "cells")):
        if not isinstance(cell, Mapping) or not isinstance(cell.get("name"), str):
            raise _refused(f"cells[{at}]", "a table with a name", cell)
    metric = plan.get("metric")
    if isinstance(metric, Mapping):
        metric = {"better": better_of(str(metric.get("name"))), **metric}
    if metric is not None:
        checked_metric(metric)


def checked_seeds(given: object) -> list[int]:
    """The seeds that a number of them or a list means. Raises: ValueError."""
    if _is_whole(given) and 1 <= given <= MOST_SEEDS:
        return list(range(given))
    seeds = [seed for seed in given if _is_whole(seed) and 0 <= seed < LARGEST_SEED] if isinstance(given, list) else []
    if seeds != given or not 0 < len(set(seeds)) == len(seeds) <= MOST_SEEDS:
        raise ValueError(
            f"seeds must be how many seeds (a whole number from 1 to {MOST_SEEDS:,}), or a list of different whole "
            f"numbers from 0, below 2^32, got {_given(given)}"
        )
    return seeds


def _stop(raw: object, seeds: object) -> dict[str, Any]:
    """When a study that adds seeds in stages stops; `step` is the first stage's where it is left out."""
    stop = {"step": seeds, **checked_table(raw, "stop", STOP_FIELDS)}
    if not _is_whole(seeds) or seeds < FEWEST_SEEDS:
        raise _refused(
            "seeds", f"how many seeds the first stage has, from {FEWEST_SEEDS}, where there is a stop", seeds
        )
    if stop.get("when") != "settled":
        raise _refused("stop.when", "settled", stop.get("when"))
    at_most, step = stop.get("at_most"), stop["step"]
    if not (_is_whole(at_most) and seeds < at_most <= MOST_SEEDS):
        raise _refused("stop.at_most", f"a whole number above seeds ({seeds}), to {MOST_SEEDS:,}", at_most)
    if not (_is_whole(step) and step >= 1):
        raise _refused("stop.step", "a whole number from 1", step)
    return stop


def checked_command(raw: object) -> str:
    """A command in words that a shell could split. Raises: ValueError."""
    command = _text("on_end", raw)
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"on_end must be a command in words, got {_given(raw)}: {error}") from error
    return command


def checked_metric(raw: object) -> PrimaryMetric:
    """The primary metric. Raises: ValueError."""
    if not isinstance(raw, Mapping):
        example = (
            "as in {name: test/loss@1x, better: lower, margin: 0.02}, or a cost, as in {steps_to: {val/loss: 2.0}}"
        )
        raise _refused("metric", f"a table with a name and better: lower or higher, {example}", raw)
    metric = checked_table(raw, "metric", METRIC_FIELDS)
    margin = metric.get("margin")
    if target := target_in("metric", metric):
        metric = {"name": str(target), "better": "lower", **metric}
    name, better = _metric_name("metric.name", metric.get("name")), metric.get("better")
    if better not in ("lower", "higher"):
        raise _refused("metric.better", "lower or higher", better)
    known = known_better(name)
    if known is not None and better != known:
        raise ValueError(
            f"metric.better must be {known}, for of {name} {known} values are better, got {better}; "
            f"write better: {known}"
        )
    if margin is not None and not (is_finite(margin) and margin >= 0):
        raise _refused("metric.margin", "a finite number from 0, or left out", margin)
    return {"name": name, "better": str(better), "margin": margin}


def check_claim(raw: object) -> None:
    """Checks a claim: what it says, of which cell and metric, held against what, with exactly one bound. Raises:
    ValueError."""
    claim = checked_table(raw, "a claim", CLAIM_FIELDS)
    _text("says", claim.get("says"))
    if "source" in claim:
        _text("source", claim["source"])
    own = _metric_name("metric", claim["metric"]) if "metric" in claim else None
    if "strength" in claim and claim["strength"] not in STRENGTHS:
        raise _refused("strength", " or ".join(STRENGTHS), claim["strength"])
    _check_cell("cell", claim)
    bounds = [bound for bound in BOUNDS if bound in claim]
    if len(bounds) != 1:
        raise ValueError(f"there must be exactly one of {', '.join(BOUNDS)}, got {', '.join(bounds) or 'none'}")
    _check_bound(bounds[0], claim[bounds[0]])
    beside = {"state": ("metric", "against"), "unavailable": ("against",)}.get(bounds[0], ())
    if idle := [key for key in beside if key in claim]:
        raise ValueError(f"{idle[0]} has no meaning beside {bounds[0]}; leave it out")
    if "against" in claim:
        other = checked_table(claim["against"], "against", AGAINST_FIELDS)
        theirs = _metric_name("against.metric", other["metric"]) if "metric" in other else own
        _check_cell("against.cell", other)
        if not other.get("cell") and theirs == own:
            raise ValueError("against must name another cell or another metric, got what the claim itself is about")


def _claim(claim: object, at: int) -> dict[str, object]:
    says = claim.get("says") if isinstance(claim, Mapping) else None
    try:
        check_claim(claim)
    except ValueError as error:
        name = f"claim {says!r}" if isinstance(says, str) and says.strip() else f"claims[{at}]"
        raise ValueError(f"{name}: {error}") from error
    return _with_names(checked_table(claim, "a claim", CLAIM_FIELDS))


def _with_names(claim: dict[str, object]) -> dict[str, object]:
    """A claim, or what it is held against, whose metrics are names."""
    if "metric" in claim:
        claim["metric"] = _metric_name("metric", claim["metric"])
    against = claim.get("against")
    return claim | {"against": _with_names(dict(against))} if isinstance(against, Mapping) else claim


def _metric_name(where: str, given: object) -> str:
    """The name of a metric, which is given by it or, of the cost to a target, as a table. Raises: ValueError."""
    if isinstance(given, Mapping):
        target = target_in(where, checked_table(given, where, TARGET_FIELDS))
        if target is None:
            raise _refused(where, "a name, or a table as in {steps_to: {val/loss: 2.0}}", given)
        return str(target)
    name = _text(where, given)
    named = target_of(name)
    return str(checked(named, where)) if named else name


def _check_cell(where: str, holder: Mapping[str, object]) -> None:
    if not isinstance(holder.get("cell", {}), Mapping):
        raise _refused(where, "a table of choices, as in {position: alibi}", holder["cell"])


def _check_bound(bound: str, value: object) -> None:
    pair = value if isinstance(value, list | tuple) and len(value) == 2 and all(map(is_finite, value)) else (1, 0)
    accepted = {
        "within": ("a finite number from 0", is_finite(value) and value >= 0),
        "below": ("a finite number", is_finite(value)),
        "above": ("a finite number", is_finite(value)),
        "between": ("two finite numbers, the lower first", pair[0] <= pair[1]),
        "unavailable": ("true", value is True),
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


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number; a truth value is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _single_cell(at: int, raw: object) -> dict[str, object]:
    cell = checked_table(raw, f"cells[{at}]", CELL_FIELDS)
    if not cell.keys() >= set(CELL_FIELDS):
        raise _refused(f"cells[{at}]", "a table with name and overrides", raw)
    name, overrides = str(cell["name"]) if _is_whole(cell["name"]) else cell["name"], cell["overrides"]
    where = f"cell {name!r}: overrides" if isinstance(name, str) else f"cells[{at}]: overrides"
    if not isinstance(overrides, list):
        raise _refused(where, "a list, as in [model.num_layers=4]", overrides)
    return {"name": _text(f"cells[{at}].name", name), "overrides": _overrides(where, overrides)}


def _overrides(where: str, words: list[object]) -> list[str]:
    keys: list[str] = []
    for word in words:
        if not isinstance(word, str) or not ("=" in word or word.startswith("~")):
            raise ValueError(f"{where} must hold settings as name=value, as in model.d_model=64, got {_given(word)}")
    for key in (str(word).partition("=")[0].lstrip("+~") for word in words):
        if key in keys:
            raise ValueError(f"{where} must set each field once, got {key} twice")
        keys.append(key)
    return [str(word) for word in words]


def _choices(name: str, values: object) -> list[object]:
    if not isinstance(values, list) or not values:
        raise _refused(name, "a list of choices, as in [rotary, alibi]", values)
    for at, value in enumerate(values):
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:at]):
            raise ValueError(f"{name} must list different choices, got {_given(value)} twice")
    return values


def checked_table(raw: object, name: str, known: Sequence[str]) -> dict[str, Any]:
    """A table that has known fields alone. Raises: ValueError."""
    if not isinstance(raw, Mapping):
        raise _refused(name, f"a table with the fields {', '.join(known)}", raw)
    for key in raw:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ValueError(f"{name} must have known fields ({', '.join(known)}), got {key!r}.{near}")
    return dict(raw)


def _mapping(study: Mapping[str, object], key: str) -> dict[str, object]:
    value = study.get(key)
    if value is not None and not isinstance(value, Mapping):
        example = EXAMPLES.get(key, "{position: alibi}")
        raise _refused(key, f"a table, as in {example}", value)
    for name in value or {}:
        if not isinstance(name, str):
            raise _refused(key, "a table by the names of fields", name)
    return dict(value or {})


def _list(study: Mapping[str, object], key: str) -> list[object]:
    value = study.get(key)
    if value is not None and not isinstance(value, list):
        raise _refused(key, f"a list, as in {key}: [...]", value)
    return value or []


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _refused(name, "text", value)
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused(name, "true or false", value)
    return value


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _refused(name: str, accepted: str, given: object) -> ValueError:
    return ValueError(f"{name} must be {accepted}, got {_given(given)}")


def _given(value: object) -> str:
    return "nothing" if value is None else shorten(repr(value), 120, placeholder=" ...")
