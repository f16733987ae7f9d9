"""Which runs of a study can be compared at all: those of one task, data set, tokenizer and unit.

A loss in nats a token says nothing beside one of another tokenizer, nor one of images beside one of texts. Where a
study varies the data or the tokenizer on purpose, measures that do not depend on how a text is cut (accuracy, BLEU,
bits a byte) are compared all the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnlab.analysis.formatting import listing
from attnlab.analysis.reader import Run, Study, metric_of

ON_PURPOSE = ("data", "tokenizer")


@dataclass(frozen=True)
class Kind:
    """What a run's figures are of. data and tokenizer are None where the metric compares across them."""

    task: str
    unit: str | None
    data: str | None
    tokenizer: str | None
    words: str = field(compare=False)


def parts_of_study(study: Study) -> list[Study]:
    """
    The study in parts whose runs can be compared, that of the baseline first, then the largest, each with a note on the
    others; a study of one kind as it is.

    A run that has no record yet counts as its cell's others, or as most runs do. Claims stay with the part that has all
    of their cells.
    """
    across = _compares_across(study)
    kinds = {key: kind for key, run in study.runs.items() if (kind := _kind(run, across)) is not None}
    sizes = Counter(kinds.values())
    if len(sizes) < 2:
        return [study]
    of_cells = {cell: kinds[cell, seed] for cell, seed in sorted(kinds, reverse=True)}
    of_baseline = of_cells.get(study.baseline_cell.name) if study.baseline_cell else None
    most = sorted(sizes, key=lambda kind: (kind != of_baseline, -sizes[kind]))
    belongs = {key: kinds.get(key, of_cells.get(key[0], most[0])) for key in study.runs}
    skipped = {cell.name: of_cells.get(cell.name, most[0]) for cell in study.cells}
    parts = [_part(study, kind, belongs, skipped) for kind in most]
    for part, kind in zip(parts, most, strict=True):
        others = [f"{other.words} ({sizes[other]})" for other in most if other is not kind]
        part.apart.append(
            f"Compared here are runs of {kind.words} ({sizes[kind]}) alone: figures of another task, data set, "
            "tokenizer or unit cannot be "
            f"compared with theirs. Set apart are runs of {listing(others)}."
        )
    return parts


def _compares_across(study: Study) -> bool:
    """Whether data or tokenizer vary on purpose, and the metric compares across them."""
    varies = any(name.split(".")[0] in ON_PURPOSE for name in study.varying)
    known = study.known_metric(study.metric.name) if study.metric else None
    return _is_planned(study) and varies and known is not None and known.any_tokenizer


def _is_planned(study: Study) -> bool:
    return (Path(study.path) / "plan.json").is_file()


def _kind(run: Run, across: bool) -> Kind | None:
    """The kind of a run; None where its record does not say."""
    config, data = run.record.get("config"), run.record.get("data")
    if not isinstance(config, Mapping) or not isinstance(data, Mapping) or "fingerprint" not in data:
        return None
    data_config = config["data"] if isinstance(config.get("data"), Mapping) else {}
    task = _target(config.get("task"))
    source = _target(data_config.get("source")) or _target(config.get("data"))
    tokenizer = _target(config.get("tokenizer")) if "vocabulary_size" in data else ""
    size = f" of {data['vocabulary_size']}" if tokenizer else ""
    words = f"{task} on {source}{f' with {tokenizer}{size}' if tokenizer else ''}"
    if across:
        return Kind(task, None, None, None, task)
    cut = [config.get("tokenizer"), data_config.get("tokenizer_from"), data_config.get("joint")]
    known = json.dumps(cut, sort_keys=True, default=str) if tokenizer else None
    return Kind(task, str(data.get("unit") or "token"), str(data["fingerprint"]), known, words)


def _part(study: Study, kind: Kind, belongs: Mapping[tuple[str, int], Kind], skipped: Mapping[str, Kind]) -> Study:
    runs = {key: run for key, run in study.runs.items() if belongs[key] == kind}
    there = {cell for cell, _ in runs} | {c.name for c in study.cells if c.skip is not None and skipped[c.name] == kind}
    cells = [cell for cell in study.cells if cell.name in there]
    part = replace(study, cells=cells, runs=runs, apart=[], claims=[])
    if not _is_planned(study):  # what was made up of all runs is made up of these
        part.seeds = sorted({run.seed for run in runs.values() if run.record})
        part.runs = {key: run for key, run in runs.items() if run.seed in part.seeds}
        part.metric = metric_of(None, part.runs.values())
    part.claims = [claim for claim in study.claims if all(part.matching(cell) for cell in _cells_of(claim))]
    return part


def _cells_of(claim: Any) -> list[Any]:
    """The choices of every cell that a claim speaks of."""
    if not isinstance(claim, Mapping):
        return []
    return [*([claim["cell"]] if isinstance(claim.get("cell"), Mapping) else []), *_cells_of(claim.get("against"))]


def _target(node: Any) -> str:
    """The class that a node of a configuration names, without its package."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""
