"""The field `tune` of study.yaml: what is searched in every cell alike, how, within which budget, on which seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from attnlab.ranges import must_be
from attnlab.training.metrics import SLIDING, known_better, parts_of
from attnlab.training.study_fields import checked_seeds, checked_table, did_you_mean, is_finite
from attnlab.training.targets import target_of

TUNE_FIELDS = ("search", "how", "trials", "seeds", "metric")
RANGE_FIELDS = ("low", "high", "scale")
HOW, SCALES = ("grid", "random", "tpe"), ("linear", "log")
FIRST_SEED = 10_000  # of a tuning that is given only how many: far from those of comparisons, which count from 0
MOST_TRIALS = 1000
Setting = str | int | float | bool | None
EXAMPLE = "as in optimizer.lr: [1e-4, 1e-3] or {low: 1e-4, high: 1e-2, scale: log}"


class Range(TypedDict):
    """Numbers between two ends; whole ones where both ends are."""

    low: float
    high: float
    scale: str


class Tuned(TypedDict):
    """What `tune` says. search: the values of each field, or the range that they are drawn from; trials: of each cell;
    seeds: of each trial; metric: its `name`, and which values are `better`."""

    search: dict[str, list[Setting] | Range]
    how: str
    trials: int
    seeds: list[int]
    metric: dict[str, str]


class RunOfTrial(TypedDict):
    """What became of one run of a trial: its state, its final values of the tuned metric and of those that the study
    and its claims are about, and what is known of its costs to targets among these: [low, high], None for infinity."""

    state: str
    final: dict[str, float]
    costs: NotRequired[dict[str, list[float | None]]]


class Trial(TypedDict):
    """A setting that was tried in a cell, by the fields searched, and its runs by their seeds."""

    settings: dict[str, Setting]
    runs: dict[str, RunOfTrial]


class TunedCell(TypedDict):
    """What plan.json keeps of a cell: its own setting, all that was tried, and what was chosen."""

    default: dict[str, Setting]
    trials: list[Trial]
    chosen: NotRequired[dict[str, Setting]]


def checked_tune(study: Mapping[str, Any]) -> Tuned | None:
    """What the field `tune` of a study (otherwise checked) says, with its defaults; None where there is none.

    Raises: ValueError that names the field.
    """
    raw = study["tune"]
    if raw is None:
        return None
    tune = checked_table(raw, "tune", TUNE_FIELDS)
    search, how = _search(tune.get("search"), study), tune.get("how", "grid")
    if how not in HOW:
        accepted = f"one of {', '.join(HOW)}"
        raise ValueError(f"{must_be('tune.how', accepted, how)}.{did_you_mean(str(how), HOW)}")
    if study["trunk"]:
        raise ValueError(
            "tune and trunk exclude each other: cells that share their first steps have one setting; leave one out"
        )
    seeds = _seeds(tune.get("seeds", 1))
    refuse_shared_seeds(seeds, study["seeds"])
    return {
        "search": search,
        "how": str(how),
        "trials": _trials(tune.get("trials"), str(how), search),
        "seeds": seeds,
        "metric": _metric(tune.get("metric"), study["metric"]),
    }


def refuse_shared_seeds(seeds: Sequence[int], compared: Sequence[int]) -> None:
    """Raises: ValueError where a seed both tunes and compares: the luck that chose a setting would count again."""
    if shared := sorted(set(seeds) & set(compared)):
        raise ValueError(
            f"tune.seeds must be other seeds than those compared, got {shared[0]} in both: what was chosen by a run's "
            "luck would look better by the same luck; give tune.seeds others, or leave it out"
        )


def _search(raw: object, study: Mapping[str, Any]) -> dict[str, list[Setting] | Range]:
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(key, str) for key in raw):
        raise ValueError(must_be("tune.search", f"a table of what is searched, {EXAMPLE}", raw))
    owners = dict.fromkeys(study["factors"], "factors") | {
        word.partition("=")[0].lstrip("+~"): f"cell {cell['name']!r}"
        for cell in study["cells"]
        for word in cell["overrides"]
    }
    for key in raw:
        if key in owners:
            raise ValueError(
                f"tune.search must not search {key}, in which cells differ ({owners[key]}): a choice that is compared "
                "is not chosen; leave it out of one of them"
            )
    return {key: _values(f"tune.search.{key}", values) for key, values in raw.items()}


def _values(name: str, raw: object) -> list[Setting] | Range:
    if isinstance(raw, Mapping):
        table = checked_table(raw, name, RANGE_FIELDS)
        low, high, scale = table.get("low"), table.get("high"), table.get("scale", "linear")
        if not (is_finite(low) and is_finite(high) and low < high):
            raise ValueError(must_be(name, "a range from low to a larger high, both finite numbers", dict(raw)))
        if scale not in SCALES or (scale == "log" and low <= 0):
            raise ValueError(must_be(f"{name}.scale", "linear, or log where low is above 0", scale))
        return {"low": low, "high": high, "scale": str(scale)}
    scalars = [one for one in raw if one is None or isinstance(one, str | int | float)] if isinstance(raw, list) else []
    different = {(isinstance(one, bool), one) for one in scalars}
    if not scalars or scalars != raw or len(different) < len(scalars):
        raise ValueError(must_be(name, f"a list of different values or a range, {EXAMPLE}", raw))
    return scalars


def _trials(raw: object, how: str, search: Mapping[str, list[Setting] | Range]) -> int:
    product = math.prod(map(_count, search.values()))
    if how == "grid":
        if ranged := [key for key, values in search.items() if not isinstance(values, list)]:
            raise ValueError(f"tune.how must be random or tpe, for tune.search.{ranged[0]} is a range, got grid")
        if raw not in (None, product):
            raise ValueError(
                f"tune.trials must be {product}, how many settings the grid has, got {raw!r}; leave it out"
            )
        raw = product
    most = min(product, MOST_TRIALS)
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= most:
        accepted = f"how many settings are tried in each cell, a whole number from 1 to {most:,}"
        raise ValueError(must_be("tune.trials", accepted, raw))
    return raw


def _count(values: list[Setting] | Range) -> float:
    """How many settings there are."""
    if isinstance(values, list):
        return len(values)
    is_whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    return values["high"] - values["low"] + 1 if is_whole else math.inf


def _seeds(raw: object) -> list[int]:
    try:
        seeds = checked_seeds(raw)
    except ValueError as error:
        raise ValueError(f"tune.{error}") from error
    return seeds if isinstance(raw, list) else [FIRST_SEED + seed for seed in seeds]


def _metric(raw: object, compared: Mapping[str, Any]) -> dict[str, str]:
    """By default the counterpart on the validation part of the metric that is compared, which a cost has not."""
    if raw is None and (target := target_of(str(compared["name"]))):
        wanted = f"{{name: {target.metric}, better: {known_better(target.metric) or 'lower'}}}"
        raise ValueError(
            "tune.metric must say by which figure of the validation part settings are chosen, for a trial ends with no "
            f"{compared['name']}; write metric: {wanted}"
        )
    if raw is None:
        raw = {"name": f"val/{parts_of(compared['name'])[1].removeprefix(SLIDING)}", "better": compared["better"]}
    metric = checked_table(raw, "tune.metric", ("name", "better"))
    name = metric.get("name")
    if not isinstance(name, str) or not name.startswith("val/"):
        accepted = "a figure of the validation part, as val/loss is: what the test part chose, it no longer tests"
        raise ValueError(must_be("tune.metric.name", accepted, name))
    better = metric.get("better", known_better(name))
    known = known_better(name)
    if better not in ("lower", "higher") or known not in (None, better):
        raise ValueError(must_be("tune.metric.better", known or "lower or higher", better))
    return {"name": name, "better": str(better)}
