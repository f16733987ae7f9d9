"""The model card of an exported run, in the hub's format: what was asked, what came out, how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from attnlab.analysis import Comparison, compare, load_study, parts_of_study
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.formatting import decimals_for, describe, interval_text, verdict
from attnlab.analysis.reader import Run
from attnlab.analysis.table import Column, Table
from attnlab.config import UsageError
from attnlab.config.identity import key_and_text
from attnlab.interop.remote_code import kind_of
from attnlab.models import idle_parameters
from attnlab.runs.clients import Exported
from attnlab.runs.exported import export_run
from attnlab.training.metrics import parts_of

GROUPS = ("model", "task", "data", "optimizer", "schedule", "averaging")  # of a configuration, that a card shows
RAMPS = ("batch_ramp", "length_ramp")
STEPS = ("max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision")  # of its trainer


def export_with_card(
    directory: Path, checkpoint: str, target: Path, architecture: str | None
) -> tuple[list[str], list[str]]:
    """`export_run`, with a card that knows the study that the run stands in. Raises: UsageError."""
    return export_run(directory, checkpoint, target, architecture, partial(card, checkpoint, _study_of(directory)))


def export_study(folder: Path, checkpoint: str, target: Path, architecture: str | None) -> tuple[list[str], list[str]]:
    """Writes each finished run of a study to CELL/seed=N in `target`, see `export_run`; what is left out is named.

    Raises: UsageError where nothing can be written.
    """
    told: list[str] = []
    said: list[str] = []
    for part in parts_of_study(load_study(folder)):
        comparison = compare(part)
        said += [f"left out: {cell.name} ({cell.skip})" for cell in part.cells if cell.skip is not None]
        for run in part.runs.values():
            place = Path(run.directory.parent.name, run.directory.name)
            if run.state != "finished":
                said.append(f"left out: {place} ({run.state}{f': {run.problem}' if run.problem else ''})")
                continue
            try:
                about = partial(card, checkpoint, (comparison, run))
                one, notes = export_run(run.directory, checkpoint, target / place, architecture, about)
            except UsageError as error:
                one, notes = [], [f"left out: {error}"]
            told, said = [*told, *one], [*said, *notes]
    if not told:
        raise UsageError("\n".join([f"{folder}: no run can be written", *dict.fromkeys(said)]))
    return told, list(dict.fromkeys(said))


def _study_of(directory: Path) -> tuple[Comparison, Run] | None:
    """The comparison of the study that a run stands in, and the run in it; None where it stands in none."""
    try:
        study = load_study(directory.parent.parent)
    except ValueError:
        return None
    there = directory.resolve()
    for part in parts_of_study(study):
        found = next((run for run in part.runs.values() if run.directory.resolve() == there), None)
        if found is not None:
            return compare(part), found
    return None


def card(checkpoint: str, of_study: tuple[Comparison, Run] | None, found: Exported) -> str:
    """The text of README.md, front matter included. of_study: the comparison of the run's study, and the run in it."""
    comparison, run = of_study or (None, None)
    name = str(found.record.get("name") or found.directory.name)
    about = [f"# {name}"]
    if comparison is not None and comparison.study.question:
        about += [f"An arm of the study `{comparison.study.name}`:", f"> {comparison.study.question}"]
    about += [*_what_it_is(found, comparison, run), *_figures(comparison, run)]
    about += ["## Loading it", *_loading(found)]
    about += ["## Making it again", f"```bash\n{found.record.get('command', '')}\n```", *_code(found, checkpoint)]
    front = yaml.safe_dump(_front(found, name, run), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(about) + "\n"


def _front(found: Exported, name: str, run: Run | None) -> dict[str, Any]:
    kind = _pipeline(found)
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": kind, "tags": ["attnlab"]}
    figures = [
        {"type": parts_of(metric)[1], "name": metric, "value": value}
        for metric, value in (run.final if run else {}).items()
    ]
    if figures:
        data = _data(found)
        result = {"task": {"type": kind}, "dataset": {"type": data, "name": data}, "metrics": figures}
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _pipeline(found: Exported) -> str:
    task = str(found.record["config"].get("task", {}).get("_target_", ""))
    return "translation" if task.endswith(".Translation") else kind_of(found.model)[1]


def _data(found: Exported) -> str:
    """What the data are called: the choice, else the class of their source."""
    given = dict(map(key_and_text, found.record.get("overrides", [])))
    source = found.record["config"].get("data", {}).get("source") or {}
    return given.get("data") or str(source.get("_target_", "unknown")).rpartition(".")[2]


def _what_it_is(found: Exported, comparison: Comparison | None, run: Run | None) -> Iterator[str]:
    size, idle = sum(parameter.numel() for parameter in found.model.parameters()), idle_parameters(found.model)
    active = f" ({size - idle:,} active for a token)" if idle else ""
    cell = found.record.get("cell") or {}
    labels = {key: comparison.study.choice_label(key, value) for key, value in cell.items()} if comparison else cell
    choices = ", ".join(f"`{key}={value}`" for key, value in labels.items())
    yield "## What it is"
    yield (
        f"{type(found.model).__name__}, {size:,} parameters{active}, seed {found.record['seed']}, trained on "
        f"`{_data(found)}`" + (f". Its choices: {choices}" if choices else "") + "."
    )
    config = found.record["config"]
    shown = {group: _plain(config[group]) for group in GROUPS if config.get(group)}
    shown |= {group: _plain(config[group]) for group in RAMPS if len(config.get(group) or ()) > 1}  # none has no field
    shown["trainer"] = {name: config["trainer"][name] for name in STEPS if name in config.get("trainer", {})}
    yield f"```yaml\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}```"


def _plain(node: object) -> object:
    """A node as people read it: classes by their names, nothing that was left out."""
    if not isinstance(node, Mapping):
        return node
    target = {"class": str(node["_target_"]).removeprefix("attnlab.")} if "_target_" in node else {}
    given = {key: _plain(value) for key, value in node.items() if not key.startswith("_") and value is not None}
    return {**target, **given} if given or not target else target["class"]


def _figures(comparison: Comparison | None, run: Run | None) -> Iterator[str]:
    if comparison is None or run is None or not run.final:
        return
    yield "## Figures"
    row = next((row for row in comparison.cells if row.cell.name == run.cell), None)
    if comparison.metric is not None and row is not None and row.interval is not None:
        yield _compared(comparison, row)
    columns = [
        Column[tuple[str, float]]("figure of this run", lambda item: item[0], "l"),
        Column[tuple[str, float]]("value", lambda item: f"{item[1]:.6g}"),
    ]
    yield Table.of(columns, run.final.items()).to_markdown().strip()


def _compared(comparison: Comparison, row: CellSummary) -> str:
    """The cell's mean with its interval, and how it stands to the baseline."""
    metric, decimals = comparison.metric, decimals_for(cell.interval for cell in comparison.measured)
    assert metric is not None
    assert row.interval is not None
    n, level = len(row.values), row.interval.level
    said = (
        f"`{metric.name}`, {describe(metric.name, comparison.study)} ({metric.better} is better): "
        f"**{interval_text(row.interval, decimals)}**, the {'share' if row.interval.counted else 'mean'} of "
        f"{n} seed{'s' if n != 1 else ''}" + (f" and its {level:.0%} interval" if row.interval.is_bounded else "")
    )
    if row.is_baseline:
        return f"{said}. It is the baseline of the study."
    if row.difference is None or comparison.baseline is None:
        return f"{said}."
    found = row.difference.interval
    apart = interval_text(found, decimals_for([found]), sign=True)
    return f"{said}. Against the baseline {comparison.baseline.label}: {apart}, {verdict(row.difference)}."


def _loading(found: Exported) -> Iterator[str]:
    name = f"AutoModelFor{kind_of(found.model)[0]}"
    trust = "" if found.known else ", trust_remote_code=True"
    if not found.known:
        yield f"Where Python finds {found.packages}: `modeling_attnlab.py` imports attnlab, and holds nothing else."
    beside = {"AutoTokenizer": found.tokenizer is not None, "AutoImageProcessor": "image_size" in found.settings}
    kinds = [kind for kind, there in beside.items() if there]
    lines = [f"from transformers import {', '.join([name, *kinds])}", ""]
    lines += [f'model = {name}.from_pretrained("FOLDER"{trust})']
    lines += [f'{kind.removeprefix("Auto").lower()} = {kind}.from_pretrained("FOLDER"{trust})' for kind in kinds]
    if found.target_tokenizer is not None:
        lines += ['of_targets = AutoTokenizer.from_pretrained("FOLDER/target")']
    yield "```python\n" + "\n".join(lines) + "\n```"


def _code(found: Exported, checkpoint: str) -> Iterator[str]:
    git = found.record.get("git", {})
    commit = f", commit `{git['commit']}`" + (" with changes" if git.get("dirty") else "") if git.get("commit") else ""
    yield f"attnlab {git.get('version', '')}{commit}; the checkpoint `{checkpoint}`."
