"""Every run of a study for the page: settings and figures, what its model gives, axes of parallel coordinates."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.parse import quote

from attnlab.analysis.comparison import IDENTITY, Comparison
from attnlab.analysis.file_cache import flatten, mapping
from attnlab.analysis.formatting import listing, quantity
from attnlab.analysis.reader import Run, Study, short
from attnlab.training.metrics import natural
from attnlab.training.run_directory import ATTENTION, OUTPUTS, SAMPLES, last_lines, open_to_read, plain
from attnlab.training.study_fields import is_finite, same

LINES, LINES_OF_LOST = 6, 40  # of a run's log
CHARACTERS, CHARACTERS_OF_LOST = 800, 6000
MOST_OF_LOGS = 2_000_000  # characters of all logs together
MOST_OF_SAMPLES = 3_000_000  # characters of all samples together, and as many of all pictures
MOST_OF_TEXT, LARGEST_FILE = 2_000, 4_000_000
PNG = b"\x89PNG\r\n\x1a\n"
MOST_AXES, MOST_VALUES = 8, 40  # of an axis of words
FEW_NUMBERS = 12  # so many are drawn as words are
PLUMBING = ("_target_", "_partial_", "_convert_", "_recursive_")
PROGRESS = ("step", "tokens", "seconds", "attempt", "host")
FACTS = ["attnlab", "git", "versions", "sources", "repositories", "machine", "device", "precision"]
FACTS += ["compile", "parameters", "flops_per_token", "training", "data"]


class RunEntry(TypedDict):
    """A run. Its settings and facts ("settings/optimizer.lr", "facts/git.commit") are those that are shared with `own`
    put over them and `lacks` taken out. `values` stand in the order of the study's metrics; `censored` are
    the costs of which it is known alone that they are "> 800", say; `href` leads to its directory."""

    cell: str
    seed: int
    state: str
    path: str
    href: NotRequired[str]
    values: NotRequired[list[float | None]]
    censored: NotRequired[dict[str, str]]
    own: NotRequired[dict[str, object]]
    lacks: NotRequired[list[str]]
    command: NotRequired[str]
    error: NotRequired[str]
    log: NotRequired[str]


Value = str | int | float | dict[str, str]  # of a sample: {"png": base64} is a picture


class Sample(TypedDict):
    """What one run of a cell left to look at; `left` counts the rows that were left out to keep the page small."""

    cell: str
    run: str
    seed: int
    split: NotRequired[str]
    columns: list[str]
    rows: list[list[Value]]
    left: NotRequired[int]
    attention: NotRequired[str]
    caption: NotRequired[str]


class Axis(TypedDict):
    """A choice or setting: its words in order, None for numbers, and {run: index or number}."""

    name: str
    values: list[str] | None
    of: dict[str, float]


def path_of(run: Run) -> str:
    return f"{run.directory.parent.name}/{run.directory.name}"


def run_entries(comparison: Comparison, root: str | None = None) -> tuple[dict[str, object], list[RunEntry]]:
    """What most runs share, and every run. root: the study's directory from where the page stands; None: no links."""
    study = comparison.study
    order = {cell.name: place for place, cell in enumerate(study.cells)}
    runs = sorted(study.runs.values(), key=lambda run: (order[run.cell], run.seed))
    described = [describe(run) for run in runs]
    shared = most_common(described)
    labels = {cell.cell.name: cell.label for cell in comparison.cells}
    entries: list[RunEntry] = []
    room = MOST_OF_LOGS
    for run, facts in zip(runs, described, strict=True):
        path, log = path_of(run), _log(run, room)
        room -= len(log)
        entry: RunEntry = {"cell": labels.get(run.cell, run.cell), "seed": run.seed, "state": run.state, "path": path}
        if root is not None:
            entry["href"] = f"{quote(root)}/{quote(path, safe='/=,+')}/"
        if run.final:
            found = (run.final.get(name) for name in study.metrics)
            entry["values"] = [None if value is None else float(f"{value:.6g}") for value in found]
        if censored := {name: str(cost) for name, cost in run.costs.items() if not cost.is_exact}:
            entry["censored"] = censored
        if own := {k: v for k, v in facts.items() if k not in shared or (type(v), v) != (type(shared[k]), shared[k])}:
            entry["own"] = own
        if lacks := [key for key in shared if key not in facts] if facts else []:
            entry["lacks"] = lacks
        if command := str(run.record.get("command") or ""):
            entry["command"] = command
        if run.error:
            entry["error"] = run.error
        if log:
            entry["log"] = log
        entries.append(entry)
    return shared, entries


def is_plumbing(key: str) -> bool:
    """Whether a key of a configuration says to Hydra how a part is made, which its choice says to people."""
    return key.rpartition(".")[2] in PLUMBING


def _repeats_seed(key: str, run: Run) -> bool:
    return "." in key and short(key) == "seed" and run.config[key] == run.seed


def origin(study: Study) -> list[str]:
    """When the last run ended, on what they ran, and on which data; of each what is known."""
    runs = [run for run in study.runs.values() if run.record]
    ends = [float(run.status["ended"]) for run in runs if is_finite(run.status.get("ended"))]  # type: ignore[arg-type]
    date = [f"{datetime.fromtimestamp(max(ends), UTC):%d %B %Y}".lstrip("0")] if ends else []
    parts = (dict.fromkeys(filter(None, map(of, runs))) for of in (_hardware, _data))
    return date + [listing([*found], 3) for found in parts if found]


def _hardware(run: Run) -> str:
    device, machine = run.section("device"), run.section("machine")
    name, cores = str(device.get("name") or device.get("type") or ""), machine.get("cores")
    if name != "cpu":
        return name
    return f"{machine.get('processor') or ''} CPU".strip() + (f" with {cores} cores" if cores else "")


def _data(run: Run) -> str:
    """ "kjv (3.73M training tokens)": the choice of data, else the class of its source."""
    data, config = run.section("data"), mapping(run.section("config").get("data"))
    given = run.record.get("overrides")
    chosen = [str(one)[5:] for one in given if str(one).startswith("data=")] if isinstance(given, list) else []
    source = str(mapping(config.get("source")).get("_target_") or config.get("_target_") or "")
    name, size = (chosen or [source.rpartition(".")[2]])[-1], data.get("train_tokens")
    unit = data.get("unit") or "token"
    return f"{name} ({quantity(float(size))} training {unit}s)" if name and is_finite(size) else name


def describe(run: Run) -> dict[str, object]:
    """Everything that a run's files say of it, flat: its choices and settings, without where it stands and what repeats
    another, and its facts."""
    settings = run.section("cell") | {
        key: value
        for key, value in run.config.items()
        if key == "seed" or not (key.split(".")[0] in IDENTITY or is_plumbing(key) or _repeats_seed(key, run))
    }
    facts = flatten({name: run.record[name] for name in FACTS if name in run.record})
    facts |= {name: run.status[name] for name in PROGRESS if run.status.get(name) is not None}
    named = {f"settings/{key}": value for key, value in settings.items()} | {f"facts/{k}": v for k, v in facts.items()}
    values = {key: plain(value) for key, value in named.items()}
    return {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in values.items()}


def most_common(described: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Of every key that most of the runs have, the value that most of them have."""
    counts: dict[str, Counter[tuple[str, object]]] = {}
    for one in described:
        for key, value in one.items():
            counts.setdefault(key, Counter())[(type(value).__name__, value)] += 1
    half = len(described) / 2
    return {key: found.most_common(1)[0][0][1] for key, found in counts.items() if found.total() > half}


def _log(run: Run, room: int) -> str:
    is_lost = run.state in ("failed", "diverged", "interrupted")
    lines, characters = (LINES_OF_LOST, CHARACTERS_OF_LOST) if is_lost else (LINES, CHARACTERS)
    return last_lines(run.directory, lines, min(characters, max(0, room)))


def sample_data(comparison: Comparison) -> list[Sample]:
    """Of each cell the first run that left outputs/samples.json or outputs/attention.png, within a budget of size."""
    found: list[Sample] = []
    for cell in comparison.cells:
        left = (_left_of(cell.label, run) for run in comparison.study.runs_of(cell.cell.name))
        found += [sample for sample in left if sample][:1]
    for sample in found:
        most = MOST_OF_SAMPLES // len(found)
        _cut(sample, most)
        if len(sample.get("attention", "")) > most:
            del sample["attention"]
    return [sample for sample in found if sample["rows"] or sample.get("attention")]


def _left_of(label: str, run: Run) -> Sample | None:
    try:
        told = json.loads(_content(run.directory, SAMPLES) or "null")
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    sample: Sample = {"cell": label, "run": path_of(run), "seed": run.seed, "columns": [], "rows": []}
    if isinstance(told.get("columns"), list) and isinstance(told.get("rows"), list):
        width = len(told["columns"])
        rows = [list(map(_value, row)) for row in told["rows"] if isinstance(row, list) and len(row) == width]
        if rows:
            sample["split"], sample["left"] = str(told.get("split", "")), 0
            sample["columns"], sample["rows"] = [str(column) for column in told["columns"]], rows
    picture = _content(run.directory, ATTENTION)
    if picture.startswith(PNG):
        sample["attention"] = base64.b64encode(picture).decode()
        sample["caption"] = str(told.get("attention") or "")
    return sample if sample["rows"] or "attention" in sample else None


def _content(directory: Path, name: str) -> bytes:
    """One of a run's outputs; empty where it is not there, or is far larger than runs leave it."""
    try:
        with open_to_read(directory / OUTPUTS / name, within=directory) as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError:
        return b""
    return content if len(content) <= LARGEST_FILE else b""


def _value(value: object) -> Value:
    if isinstance(value, dict):
        return {"png": value["png"]} if _is_png(value.get("png")) else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = "" if value is None else str(value)
    return text if len(text) <= MOST_OF_TEXT else f"{text[:MOST_OF_TEXT]}…"


def _is_png(text: object) -> bool:
    try:
        return isinstance(text, str) and base64.b64decode(text, validate=True).startswith(PNG)
    except ValueError:
        return False


def _cut(sample: Sample, most: int) -> None:
    """Takes rows off the end until the rest fits; the first stays where it alone fits."""
    size, fitting = 0, 0
    for row in sample["rows"]:
        size += len(json.dumps(row, ensure_ascii=False))
        if size > most:
            break
        fitting += 1
    if "left" in sample:
        sample["left"] = len(sample["rows"]) - fitting
    sample["rows"] = sample["rows"][:fitting]


def axis_data(comparison: Comparison) -> list[Axis]:
    """One axis a choice or setting in which runs with a value differ; none where they are fewer than two."""
    study, metric = comparison.study, comparison.metric
    runs = [run for run in study.runs.values() if run.record and metric and metric.name in run.final]
    choices = {cell.name: cell.choices for cell in study.cells}
    given = {name: {path_of(run): choices.get(run.cell, {}).get(name) for run in runs} for name in study.varying}
    searched = {name: {path_of(run): run.config.get(name) for run in runs} for name in _searched(comparison)}
    axes = [_axis(name, of, study.factors.get(name, [])) for name, of in (given | searched).items()]
    kept = [axis for axis in axes if axis["values"] is None or 1 < len(axis["values"]) <= MOST_VALUES][:MOST_AXES]
    return kept if len(kept) > 1 and len(runs) > 1 else []


def _searched(comparison: Comparison) -> list[str]:
    """The settings in which runs of one cell differ, as a search leaves them; seeds and copies of others are none."""
    found: dict[str, None] = {}
    for cell in comparison.study.cells:
        runs = [run for run in comparison.study.runs_of(cell.name) if run.record]
        configs = [run.config for run in runs]
        for key in sorted({key for config in configs for key in config}):
            values = [config.get(key) for config in configs]
            repeats = all(key in run.config and _repeats_seed(key, run) for run in runs)
            if (
                not repeats
                and key.split(".")[0] not in IDENTITY
                and any(not same(value, values[0]) for value in values)
            ):
                found[key] = None
    return [key for key in found if not any(key.endswith(f".{other}") for other in found)]


def _axis(name: str, of: Mapping[str, object], order: Sequence[object]) -> Axis:
    numbers = {key: number for key, value in of.items() if (number := _number(value)) is not None}
    if len(numbers) == len(of) and len(set(numbers.values())) > FEW_NUMBERS:
        return {"name": short(name), "values": None, "of": numbers}
    words = {key: "-" if value is None else str(value) for key, value in of.items()}
    planned = ["-" if value is None else str(value) for value in order]
    found = sorted(set(words.values()), key=_by_size)
    values = list(dict.fromkeys([*(word for word in planned if word in found), *found]))
    return {"name": short(name), "values": values, "of": {key: values.index(word) for key, word in words.items()}}


def _by_size(word: str) -> tuple[float, object]:
    number = _number(word)
    return (math.inf, natural(word)) if number is None else (number, ())


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and is_finite(value) else None
