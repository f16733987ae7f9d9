"""Which run a configuration is: its cell's name, what decides its numbers, what `model.init_from=RUN` brings to it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from attnlab.config import UsageError
from attnlab.config.overrides import key_and_text, key_and_value, literal, parse_word, text_of, value_of
from attnlab.training.run_directory import differences, read_json

# What may differ between two runs of one identity: where they stand and how they are watched, never what they compute.
OUTSIDE_IDENTITY = (
    *("cell", "study", "run_dir", "runs_dir", "progress", "logger", "data.cache", "mixed_code"),
    *("trainer.threads", "trainer.checkpoint_every_seconds", "trainer.checkpoint_budget_gb"),
)
LONGEST_NAME = 120  # bytes of a cell's name, which is a folder's
INIT_FROM = "model.init_from"
# The groups whose choices a run takes over from the one that it starts from, and the fields in them that stay its own.
INHERITED = (
    "model",
    "position",
    "residual",
    "norm",
    "attention",
    "feed_forward",
    "task",
    "data",
    "tokenizer",
    "augmentation",
)
NOT_INHERITED = (INIT_FROM, "task.pretrained", "data.tokenizer_from")


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries as (dotted key, value)."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def find(fields: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested dictionaries, or `default` where there is none."""
    for word in path.split("."):
        if not isinstance(fields, Mapping) or word not in fields:
            return default
        fields = fields[word]
    return fields


def targets_of(node: Any) -> Iterator[str]:
    """Every _target_ in a configuration."""
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        yield node["_target_"]
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    for value in children:
        yield from targets_of(value)


def outside_identity(key: str) -> bool:
    """Whether a setting decides where a run stands or how it is watched (or its seed), not which cell it is."""
    key = key.lstrip("+~")
    return key == "seed" or any(key == out or key.startswith(f"{out}.") for out in (*OUTSIDE_IDENTITY, "hydra"))


def identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the numbers, as flat `a.b.c` keys."""
    return {key: value for key, value in flatten(resolved) if key == "seed" or not outside_identity(key)}


def twins(named: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, str] | None:
    """The names of the first two that are the same run, however their overrides are written, or None."""
    seen: dict[str, str] = {}
    for name, resolved in named:
        pairs = identity(resolved).items()
        run = repr(sorted((key, float(value) if type(value) is int else value) for key, value in pairs))
        if run in seen:
            return seen[run], name
        seen[run] = name
    return None


def refuse_drift(directory: Path, resolved: Mapping[str, Any]) -> None:
    """Raises: UsageError where a directory holds a run of another configuration: two under one name are not mixed."""
    record = read_json(directory / "run.json")
    changes = differences(identity(record["config"]), identity(resolved)) if record else []
    if changes:
        shown = "\n  ".join(changes[:20])
        raise UsageError(
            f"{directory} holds a run of another configuration (there -> now):\n  {shown}\n"
            "Give this one another name (study.name=NAME), or move the old runs away."
        )


def run_name(study: str, cell: str, seed: int) -> str:
    """What a run is called among those of all studies."""
    return f"{study}-{cell}-s{seed}"


def run_path(cell: str, seed: int) -> str:
    """Where a run stands in its study's folder, as `run_dir` in conf/train.yaml has it."""
    return f"{cell}/seed={seed}"


def choice_overrides(overrides: Sequence[str]) -> list[str]:
    """Those overrides that tell a run from its neighbours: not where it stands, nor its seed."""
    return [word for word in overrides if "=" in word and not outside_identity(word.split("=", 1)[0])]


def cell_name(overrides: Sequence[str]) -> str:
    """
    A readable name of the choices in `overrides`, in an order of its own; `default` where there is none.

    It is a folder's name: the same for the same choices, another for others. `key=value,...` where that is short and
    has no sign of its own meaning, else as near to it as can be, with a digest.
    """
    pairs = sorted(word.split("=", 1) for word in choice_overrides([word.removeprefix("++") for word in overrides]))
    if not pairs:
        return "default"
    full = [key.lstrip("+~") for key, _ in pairs]
    last = [key.rsplit(".", 1)[-1] for key in full]
    keys = [short if last.count(short) == 1 else key for key, short in zip(full, last, strict=True)]
    shown = [(key, *_shown(value)) for key, (_, value) in zip(keys, pairs, strict=True)]
    whole = ",".join(f"{key}={value}" for key, _, value in shown)
    safe = re.sub(r"[^\w=.,+-]", "_", unicodedata.normalize("NFC", ",".join(f"{key}={text}" for key, text, _ in shown)))
    if safe == whole and len(whole.encode()) <= LONGEST_NAME:
        return whole
    start = safe.encode()[:100].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(whole.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _shown(value: str) -> tuple[str, str]:
    """A value without quotes, and in the one way of writing it that no other value has."""
    text = text_of(value)
    try:
        read = value_of(text)
    except HydraException:
        return text, literal(text) if set(text) & set(",=") else text
    return text, text if read == text or text == value else literal(text)


def inherit(overrides: Sequence[str]) -> list[str]:
    """
    The overrides with those of the run in `model.init_from` before them, as far as they do not choose anew.

    Raises: UsageError where that directory holds no run.
    """
    keys = {key_and_value(override)[0] for override in overrides}
    groups = {key for key in keys if "." not in key}
    theirs = [(key_and_value(override)[0], override) for override in _choices_of_run(overrides)]
    return [*(o for key, o in theirs if key not in keys and key.split(".")[0] not in groups), *overrides]


def own_choices(overrides: Sequence[str]) -> list[str]:
    """
    The overrides without what `model.init_from` brought, that run by its cell's name: what tells a run from others.

    Raises: UsageError as `inherit`.
    """
    run = _start_of(overrides)
    if run is None:
        return list(overrides)
    brought = {_meaning(override) for override in _choices_of_run(overrides)}
    name = read_json(Path(run).expanduser() / "run.json", {}).get("cell_name", run)
    own = [override for override in overrides if _meaning(override) not in brought]
    return [f"init_from={name}" if key_and_value(override)[0] == INIT_FROM else override for override in own]


def recorded_choices(overrides: Sequence[str]) -> dict[str, str]:
    """A run's cell as run.json has it: its own choices by their fields."""
    return dict(map(key_and_text, choice_overrides(own_choices(overrides))))


def _choices_of_run(overrides: Sequence[str]) -> list[str]:
    """What `inherit` takes from the run in `model.init_from`: choices of parts and data, its copy of its tokenizer."""
    run = _start_of(overrides)
    if run is None:
        return []
    directory = Path(run).expanduser()
    record = read_json(directory / "run.json", {})
    if not record:
        several = "; of several runs each is a cell of a study" if "," in run else ""
        raise UsageError(
            f"{INIT_FROM}={run}: there is no run (no run.json); give the directory of a run, or of an imported "
            f"model{several}"
        )
    keyed = [(key_and_value(word)[0], word) for word in record["overrides"]]
    theirs = [(key, word) for key, word in keyed if key.split(".")[0] in INHERITED and key not in NOT_INHERITED]
    if not (directory / "tokenizer.json").is_file():
        return [word for _, word in theirs]
    others = [word for key, word in theirs if key.split(".")[0] != "tokenizer"]
    return [*others, "tokenizer=pretrained", f"tokenizer.path={literal(run)}"]


def _start_of(overrides: Sequence[str]) -> str | None:
    """The directory in `model.init_from`."""
    given = [override for override in overrides if key_and_value(override)[0] == INIT_FROM]
    value = parse_word(given[-1]).value if given else None
    return None if value in (None, "") else str(value)


def _meaning(override: str) -> tuple[str, str]:
    """An override by what it says: a multirun writes the words of its jobs in its own way."""
    return key_and_value(override)[0], repr(parse_word(override).value)
