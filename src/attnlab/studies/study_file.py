"""From a study.yaml to its plan: the grid of cells, and every check that needs no run."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnlab.config import UsageError, absolute, usage_errors
from attnlab.config.check import FOLDER_NAME, incompatible, is_folder_name
from attnlab.config.compose import MANY_JOBS, ConfigSpace, read_yaml
from attnlab.config.identity import (
    NotThere,
    as_value,
    cell_name,
    for_hydra,
    key_and_text,
    key_and_value,
    outside_identity,
    parse_word,
    readable,
    refuse_drift,
    twins,
)
from attnlab.ranges import must_be
from attnlab.studies.plan import Cell, Plan, find_study, runs_of
from attnlab.studies.reported import refuse_unreported
from attnlab.studies.trunks import branches_of
from attnlab.training.across import checked_across
from attnlab.training.looks import Looks, stages_of
from attnlab.training.published import published_of
from attnlab.training.run_directory import read_json
from attnlab.training.study_fields import checked_seeds, checked_study, did_you_mean, is_finite, same
from attnlab.training.tuning_fields import Tuned, checked_tune

MOST_CELLS = 1000
MOST_NAMED = 6  # cells in a message
OF_NAMES = ("factors", "tune.search")  # tables by the names of fields, of which each has several values
OF_A_STUDY = ["study.name", "study.seeds", "study.on_end"]  # what the command line sets of a study


class Waiting(UsageError):
    """A study takes choices over from a run of a study that it needs (`model.init_from`), which is not there yet.

    plan: its own, with cells that nobody has checked. run: the directory of that run, below `runs_dir`.
    """

    def __init__(self, missing: NotThere, plan: Plan, runs_dir: Path) -> None:
        super().__init__(str(missing))
        self.plan, self.run, self.runs_dir = plan, missing.run, runs_dir


def load_plan(path: Path, overrides: Sequence[str], space: ConfigSpace) -> Plan:
    """Reads a study and compiles it under further overrides; cells of incompatible parts carry the reason.

    Raises: UsageError for a study.yaml that cannot be read or names what does not exist; Waiting.
    """
    own = dict(key_and_text(o) for o in overrides if o.startswith("study.") and "=" in o)
    name = own.get("study.name", path.parent.name if path.name == "study.yaml" else path.stem)
    if not is_folder_name(name):
        raise UsageError(must_be("study.name", FOLDER_NAME, name))
    with usage_errors(f"{path}: "):
        raw = _read(path)
        _refuse_identity(raw)
        cells = _cells(raw)
        across = checked_across(raw["across"], raw["factors"], raw["metric"], bool(raw["cells"]))
        named = _in_a_task(raw["baseline"], across, cells) if across else raw["baseline"]
        baseline = _choices_of("baseline", named or cells[0].choices, cells)
        claims = [_of_cells(claim, cells) for claim in raw["claims"]]
        published = _published(raw, baseline, cells)
    _refuse_overrides(overrides, cells)
    is_staged = raw["stop"] is not None and "study.seeds" not in own  # seeds that are asked for are run at once
    plan = Plan(
        study=name,
        question=raw["question"],
        factors=raw["factors"] or {"cell": [cell.name for cell in cells]},
        baseline=baseline,
        cells=cells,
        seeds=_seeds(own["study.seeds"]) if "study.seeds" in own else raw["seeds"],
        metric=raw["metric"],
        claims=claims,
        shared=readable([*raw["shared"], *(o for o in overrides if not o.startswith("study."))]),
        needs=raw["needs"],
        config_dirs=space.config_dirs,
        looks=Looks(stages_of(len(raw["seeds"]), raw["stop"]["step"], raw["stop"]["at_most"]))
        if is_staged
        else Looks(),
        across=across,
        published=published,
    )
    needed = [find_study(name, beside=path).parent.name for name in plan.needs]
    try:
        return _with_reasons(plan, path, space, raw["trunk"])
    except NotThere as missing:
        runs_dir = space.compose([word for word in plan.shared if key_and_value(word)[0] == "runs_dir"]).runs_dir
        if any(missing.run.absolute().is_relative_to((runs_dir / name).absolute()) for name in needed):
            raise Waiting(missing, plan, runs_dir) from missing
        raise


def config_dirs_of(path: Path, overrides: Sequence[str], given: Sequence[str]) -> tuple[list[str], str]:
    """The folders of a study's own groups, and who names them where none is `given`: its last plan, and its study.yaml,
    which has them relative to itself. Raises: UsageError as `load_plan`."""
    with usage_errors(f"{path}: "):
        raw = _read(path)
    own = dict(key_and_text(word) for word in [*raw["shared"], *overrides] if "=" in word)
    written = Path(own.get("runs_dir", "runs"), own.get("study.name", path.parent.name), "plan.json")
    named = [absolute(folder, path.parent) for folder in raw["config_dirs"]]
    if given:
        return [*given, *named], ""
    before = (read_json(written) or {}).get("config_dirs", [])
    return [*before, *named], " or ".join(map(str, [*[path] * bool(named), *[written] * bool(before)]))


def tune_of(path: Path) -> Tuned | None:
    """What a study searches in each of its cells before they are compared. Raises: UsageError."""
    with usage_errors(f"{path}: "):
        tune: Tuned | None = _read(path)["tune"]
    return tune


def on_end_of(path: Path) -> str | None:
    """The command that a study runs at its end, which is no part of its plan. Raises: UsageError."""
    with usage_errors(f"{path}: "):
        command: str | None = _read(path)["on_end"]
    return command


def refuse_changed_cells(plan: Plan, runs_dir: Path, space: ConfigSpace) -> None:
    """Refuses cells whose configuration is not that of the runs under this study's name. Raises: UsageError."""
    cells = {cell.name: cell for cell in plan.cells}
    for (name, seed), directory in runs_of(plan, runs_dir).items():
        if (directory / "run.json").is_file():
            refuse_drift(directory, space.compose(plan.overrides(cells[name])).with_seed(seed))


def _read(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    try:
        json.dumps(raw)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"a study must hold texts, numbers, lists and tables alone: {error}") from error
    study = checked_study(raw)
    return study | {"tune": checked_tune(study)}


def _refuse_identity(raw: Mapping[str, Any]) -> None:
    """What a run is called, where it stands and what launches it follow from the study, and are no setting in it."""
    places = {"shared": raw["shared"], "factors": [f"{key}=x" for key in raw["factors"]]}
    places["tune.search"] = [f"{key}=x" for key in raw["tune"]["search"]] if raw["tune"] else []
    places |= {f"cell {cell['name']!r}": cell["overrides"] for cell in raw["cells"]}
    for place, words in places.items():
        for word in words:
            key = _key_of_one_choice(place, word)
            if key == "seed":
                raise ValueError(f"{place} must not set seed, for seeds says which seeds every cell has; leave it out")
            if key in ("cell", "run_dir") or key.split(".")[0] == "study" or (key == "runs_dir" and place != "shared"):
                raise ValueError(f"{place} must not set {key}, which every run has of its own; leave it out")
            if key.startswith("hydra"):
                raise ValueError(f"{place} must not set {key}, which belongs on the command line of `attnlab sweep`")
            if place in OF_NAMES and outside_identity(key):
                raise ValueError(f"{place} must not set {key}, which changes nothing that a run computes")


def _key_of_one_choice(place: str, word: str) -> str:
    """The field that a word sets, or takes away. Raises: ValueError for what is no setting of one value."""
    wanted = f"{place} must set fields by their names, as in model.d_model=64, got {word!r}"
    try:
        parsed = parse_word(readable([word])[0])
    except UsageError as error:
        raise ValueError(wanted) from error
    if parsed.is_sweep_override():
        raise ValueError(f"{place} must set one value of each field, got {word!r}; choices to compare are factors")
    if not parsed.key_or_group or (place in OF_NAMES and parsed.is_delete()):
        raise ValueError(wanted)
    return parsed.key_or_group


def _refuse_overrides(overrides: Sequence[str], cells: Sequence[Cell]) -> None:
    """A further override changes all cells alike: not what tells them from one another, nor a run's own identity."""
    varied = {key_and_value(o)[0] for cell in cells for o in cell.overrides}
    for override in overrides:
        key, _ = key_and_value(override)
        if key.startswith("study.") and key not in OF_A_STUDY:
            near = did_you_mean(key, OF_A_STUDY)
            raise UsageError(f"{override}: of a study, study.name, study.seeds and study.on_end can be set here.{near}")
        if key == "seed":
            raise UsageError(f"{override}: a study's seeds are set together, as in study.seeds=4 or study.seeds=[0,1]")
        if key in ("run_dir", "cell"):
            raise UsageError(f"{override}: every run of a study has its own; set runs_dir or study.name")
        if key in varied:
            raise UsageError(
                f"{override}: {key} is what the cells of this study differ in; change study.yaml, or set another field"
            )


def _seeds(given: str) -> list[int]:
    with usage_errors("study."):
        return checked_seeds(parse_word(f"study.seeds={given}").value())


def _cells(raw: Mapping[str, Any]) -> list[Cell]:
    factors = raw["factors"]
    count = len(raw["cells"]) + (math.prod(map(len, factors.values())) if factors else 0)
    if not 1 <= count <= MOST_CELLS:
        raise ValueError(
            f"factors and cells must make 1 to {MOST_CELLS:,} cells, got {count:,}; "
            + ("list the cells worth comparing under cells" if count else "a study needs factors or cells")
        )
    cells = []
    for values in itertools.product(*factors.values()) if factors else ():
        choices = dict(zip(factors, values, strict=True))
        overrides = [for_hydra(f"{key}={as_value(value)}") for key, value in choices.items()]
        cells.append(Cell(cell_name(overrides), choices, overrides))
    for name, overrides in ((single["name"], single["overrides"]) for single in raw["cells"]):
        if not is_folder_name(name):
            raise ValueError(must_be("cells: name", FOLDER_NAME, name))
        cells.append(Cell(name, {"cell": name}, readable(overrides)))
    name, times = Counter(cell.name for cell in cells).most_common(1)[0]
    if times > 1:
        raise ValueError(f"each cell must have a name of its own, got {name} twice")
    return cells


def _with_reasons(plan: Plan, path: Path, space: ConfigSpace, trunk: bool) -> Plan:
    """The plan with the reason of each cell of incompatible parts, and where a `trunk` is shared with what branches off
    it. Raises: UsageError, also for equal cells."""
    if len(plan.cells) > MANY_JOBS:
        print(f"{plan.study}: checking {len(plan.cells):,} cells", file=sys.stderr)
    composed = {cell.name: space.compose(plan.overrides(cell)) for cell in plan.cells}
    cells = [replace(cell, skip="; ".join(incompatible(composed[cell.name])) or None) for cell in plan.cells]
    with usage_errors(f"{path}: "):
        if alike := twins((cell.name, composed[cell.name].resolved) for cell in cells if cell.skip is None):
            both = " and ".join(alike)
            raise ValueError(f"{both} must be different cells, and are one configuration; leave one out")
        plan = replace(plan, cells=cells, baseline=_one_of(plan.baseline, cells))
        refuse_unreported(plan, composed)
        if trunk:
            can_run = {cell.name: composed[cell.name] for cell in cells if cell.skip is None}
            plan = replace(plan, branches=branches_of(can_run))
    return plan


def _choices_of(where: str, wanted: Mapping[str, object], cells: Sequence[Cell]) -> dict[str, object]:
    """The choices that are wanted, as the cells write them. Raises: ValueError where no cell has them."""
    if found := [cell for cell in cells if cell.has(wanted)]:
        return {key: found[0].choices[key] for key in wanted}
    known = sorted({key for cell in cells for key in cell.choices})
    for key, value in wanted.items():
        if key not in known:
            near = did_you_mean(key, known)
            raise ValueError(f"{where} must name factors of the study ({', '.join(known)}), got {_in_line(key)}.{near}")
        if not any(cell.has({key: value}) for cell in cells):
            values = list(dict.fromkeys(_in_line(cell.choices[key]) for cell in cells if key in cell.choices))
            given, near = _in_line(value), did_you_mean(_in_line(value), values)
            raise ValueError(
                f"{where} must be one of the cells: {key} is one of {', '.join(values)}, got {given}.{near}"
            )
    raise ValueError(f"{where} must be one of the cells, and none has {_shown(wanted)}")


def _in_a_task(
    baseline: Mapping[str, object], across: Mapping[str, Any], cells: Sequence[Cell]
) -> Mapping[str, object]:
    """The baseline's arm in the first task, where it names none: it is the same one in each."""
    factor = across["factor"]
    return {**baseline, factor: cells[0].choices[factor]} if baseline and factor not in baseline else baseline


def _one_of(baseline: Mapping[str, object], cells: Sequence[Cell]) -> Mapping[str, object]:
    """The choices of the baseline's cell. Raises: ValueError where several that can be run have those it names: which
    one is meant is not for the first to say."""
    named = [cell for cell in cells if cell.has(baseline)]
    found = [cell for cell in named if cell.skip is None]
    if len(found) > 1:
        left = " and ".join(key for key in found[0].choices if key not in baseline)
        shown = "; ".join(cell.name for cell in found[:MOST_NAMED]) + ("; ..." if len(found) > MOST_NAMED else "")
        raise ValueError(
            f"baseline must be one cell, and {_shown(baseline)} is {len(found)} of them ({shown}); name {left}, too"
        )
    return found[0].choices if found and len(named) > 1 else baseline


def _of_cells(claim: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """A claim whose choices are written as the cells write them. Raises: ValueError where there are none."""
    where, against = f"claim {claim['says']!r}", claim.get("against", {})
    if claim.get("cell"):
        claim = claim | {"cell": _choices_of(f"{where}: cell", claim["cell"], cells)}
    if not against.get("cell"):
        return claim
    other = _choices_of(f"{where}: against.cell", against["cell"], cells)
    speaks_of = [cell for cell in cells if cell.has(claim.get("cell", {}))]
    for cell in speaks_of:
        wanted = {**cell.choices, **other}
        if not any(one.choices == wanted for one in cells):
            raise ValueError(f"{where}: against.cell must be one of the cells, and none has {_shown(wanted)}")
    if "metric" not in against and all(cell.has(other) for cell in speaks_of):
        raise ValueError(f"{where}: against must name another cell, got {_shown(other)}, which is the claim's own")
    return claim | {"against": against | {"cell": other}}


def _published(raw: Mapping[str, Any], baseline: Mapping[str, object], cells: Sequence[Cell]) -> dict[str, Any]:
    """The published effect, its cells written as the cells write them. Raises: ValueError where there are none, and for
    a size that is not two numbers, or of which the baseline has the larger."""
    published, found = raw["published"], published_of(raw["published"])
    if found is None:
        return {}
    if found.size:
        sizes = raw["factors"].get(found.size)
        if sizes is None or len(sizes) != 2 or not all(map(is_finite, sizes)):
            raise ValueError(must_be("published.size", "a factor of the study that is two numbers", found.size))
        if not same(baseline.get(found.size), min(sizes)):
            raise ValueError(must_be("baseline", f"of the smaller {found.size}, the size of published", baseline))
    figures = [
        {**one, "cell": _choices_of(f"published.figures[{at}].cell", one["cell"], cells)}
        for at, one in enumerate(published.get("figures", []))
    ]
    return {**published, "figures": figures}


def _shown(choices: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={_in_line(value)}" for key, value in choices.items())


def _in_line(value: object) -> str:
    return " ".join(str(value).split())
