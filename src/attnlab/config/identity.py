"""Overrides as words (which values Hydra's grammar reads, which stand for themselves, how any value is written), and
the identity of the run that they make: its cell's name, what decides its numbers, what `model.init_from=RUN` brings to
it."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnlab.config import LISTS, UsageError
from attnlab.config.loader import parse_one
from attnlab.training.run_directory import differences, other_format, read_json

WRITTEN = "An override is written name=value, as in model.d_model=128."
# How the names of fields end that hold a path: what exists is meant there, also where Hydra would read a number.
PLACES = ("path", "dir", "from", "pretrained", "cache")
NO_REASON = re.compile(r"\^?$|(object_type|reference_type|full_key)\b|See https")  # what stands around what was wrong
MOST_REASONS = 6  # lines
NO_TEXT = ("null", "true", "false", "nan", "inf")  # words that mean something else
# The part of one of a model's towers, named as a field of it: `model.image.position=alibi`.
PART_OF_TOWER = re.compile(r"model\.\w+\.(position|residual|norm|attention|feed_forward)")


def parse_word(override: str) -> Override:
    """One override as Hydra's grammar reads it. Raises: UsageError for what it cannot read."""
    try:
        return parse_one(override)
    except HydraException as error:
        raise UsageError(f"{reason_of(error)} {WRITTEN}") from error


def value_of(text: str) -> object:
    """The value that a text means. Raises: HydraException where it means none."""
    return parse_one(f"key={text}").value()


def text_of(value: str) -> str:
    """The text that a value as an override has it means: without quotes."""
    try:
        read = value_of(value)
    except HydraException:
        return value
    if not isinstance(read, str):
        return value
    return re.sub(r"(\\+)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", read)


def key_and_value(override: str) -> tuple[str, str]:
    """The name that an override sets, without the signs that add or remove, and its value as it was written."""
    key, _, value = override.partition("=")
    return field_of(key), value


def field_of(key: str) -> str:
    """The field that the name of an override means, which may be a group's at a place of its own (`group@field`)."""
    return key.lstrip("+~").rpartition("@")[2]


def for_hydra(override: str) -> str:
    """The choice of a tower's part by Hydra's name, `position@model.image.position=alibi`; others as they are."""
    key, _, value = override.partition("=")
    part, words = PART_OF_TOWER.fullmatch(key), value.removeprefix("choice(").removesuffix(")").split(",")
    is_choice = part and all(word.strip().isidentifier() and word.lower() not in NO_TEXT for word in words)
    return f"{part[1]}@{override}" if part and is_choice else override


def key_and_text(override: str) -> tuple[str, str]:
    """The same, with the text that the value means: without the quotes that Hydra needs."""
    key, value = key_and_value(_readable(override, multirun=False))
    return key, text_of(value)


def quoted(text: str) -> str:
    """Text as the value that Hydra reads as this text, whatever signs it holds; `${...}` in it is an interpolation."""
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and text.lower() not in NO_TEXT
    return text if is_plain else QuotedString(text, Quote.double).with_quotes()


def literal(text: str) -> str:
    """The same, where `${` stands for itself, too."""
    return quoted(without_interpolation(text))


def as_value(value: object) -> str:
    """A value of a YAML file as an override's; a text is quoted where it needs it, and within a list or table."""
    if isinstance(value, str):
        return quoted(value)
    return Override._get_value_element_as_str(_each_leaf(value, _in_quotes), True)  # type: ignore[arg-type]


def _each_leaf(node: object, change: Callable[[object], object]) -> object:
    if isinstance(node, Mapping):
        return {key: _each_leaf(value, change) for key, value in node.items()}
    return [_each_leaf(value, change) for value in node] if isinstance(node, list) else change(node)


def _in_quotes(leaf: object) -> object:
    if isinstance(leaf, bool):
        return str(leaf).lower()
    return QuotedString(leaf, Quote.double) if isinstance(leaf, str) else leaf


def without_interpolation(text: str) -> str:
    """A text in which `${` is to stand for itself."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def readable(overrides: Sequence[str], multirun: bool = False) -> list[str]:
    """The same overrides as Hydra reads them.

    A value that is the path of something that exists stands for itself, whatever signs are in it, and so does one that
    Hydra's grammar cannot read. In a multirun a comma parts choices, unless the whole value is such a path.
    """
    return [for_hydra(_readable(override, multirun)) for override in overrides]


def _readable(override: str, multirun: bool) -> str:
    key, sign, value = override.partition("=")
    if not sign or not value:
        return override
    if multirun and "," in value and not re.search(r"[\"'\[\]{}()\\]", value) and not _is_there(value):
        return f"{key}=" + ",".join(_one_value(key, choice) for choice in value.split(","))
    return f"{key}={_one_value(key, value)}"


def _one_value(key: str, value: str) -> str:
    try:
        read = value_of(value)
    except HydraException:
        return quoted(value) if value.strip() else value
    is_word = read is None or (isinstance(read, int | float) and not key.endswith(PLACES))
    if is_word or not _is_there(value) or (read == value and "${" not in value):
        return value
    return literal(value)


def _is_there(path: str) -> bool:
    return os.path.lexists(os.path.expanduser(path))


def reason_of(error: BaseException) -> str:
    """All that Hydra or OmegaConf say of an error and its causes, in one line; a usage error within it, as it is."""
    said: list[str] = []
    link: BaseException | None = error
    while link is not None and len(said) < MOST_REASONS:
        if isinstance(link, UsageError):
            return str(link)
        lines = [line.strip() for line in (str(link).strip() or type(link).__name__).splitlines()]
        said += [line for line in lines if not NO_REASON.match(line) and line not in said]
        if (field := getattr(link, "full_key", None)) and not any(field in line for line in said):
            said.append(f"The field is {field}.")
        link = link.__cause__
    return " ".join(line if line.endswith((".", "!", "?", ":")) else f"{line}." for line in said)


# --- the identity

# What may differ between two runs of one identity: where they stand and how they are watched, never what they compute.
OUTSIDE_IDENTITY = (
    *("cell", "study", "run_dir", "runs_dir", "progress", "logger", "data.cache", "mixed_code"),
    *("trainer.threads", "trainer.checkpoint_every_seconds", "trainer.checkpoint_budget_gb"),
    *("trainer.keep_checkpoints", "trainer.branch_from"),
)
LONGEST_NAME = 120  # bytes of a cell's name, which is a folder's
INIT_FROM = "model.init_from"
# The groups whose choices a run takes over from the one that it starts from, and the fields in them that stay its own.
INHERITED = (
    *("model", "position", "residual", "norm", "attention", "feed_forward"),
    *("task", "data", "tokenizer", "augmentation"),
)
NOT_INHERITED = (INIT_FROM, "task.pretrained", "data.tokenizer_from")
# What can stand in it as ${...}, and its value where it is left out, as conf/train.yaml has it.
IN_INIT_FROM: dict[str, object] = {"runs_dir": "runs", "seed": 0}


class NotThere(UsageError):
    """The run in `model.init_from` is not there; `run` is its directory."""

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message)
        self.run = run


def flatten(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dictionaries as (dotted key, value)."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def targets_of(node: object) -> Iterator[str]:
    """Every _target_ in a configuration."""
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        yield node["_target_"]
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    for value in children:
        yield from targets_of(value)


def outside_identity(key: str) -> bool:
    """Whether a setting decides where a run stands or how it is watched (or its seed), not which cell it is."""
    return key == "seed" or any(key == out or key.startswith(f"{out}.") for out in (*OUTSIDE_IDENTITY, "hydra"))


def identity(resolved: Mapping[str, object]) -> dict[str, object]:
    """The part of a resolved configuration that decides the numbers, as flat `a.b.c` keys; an empty table does not."""
    decides = (pair for pair in flatten(resolved) if pair[0] == "seed" or not outside_identity(pair[0]))
    return {key: value for key, value in decides if value != {}}


def twins(named: Iterable[tuple[str, Mapping[str, object]]]) -> tuple[str, str] | None:
    """The names of the first two that are the same run, however their overrides are written, or None."""
    seen: dict[str, str] = {}
    for name, resolved in named:
        pairs = identity(resolved).items()
        run = repr(sorted((key, float(value) if type(value) is int else value) for key, value in pairs))
        if run in seen:
            return seen[run], name
        seen[run] = name
    return None


def record_in(directory: Path) -> dict[str, Any]:
    """A run's run.json, empty where there is none. Raises: UsageError where another version of attnlab wrote it."""
    read = read_json(directory / "run.json")
    record: dict[str, Any] = read if isinstance(read, dict) else {}
    if reason := other_format(record, directory):
        raise UsageError(reason)
    return record


def refuse_drift(directory: Path, resolved: Mapping[str, object]) -> None:
    """Raises: UsageError where a directory holds a run of another configuration: two under one name are not mixed."""
    record = record_in(directory)
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


def run_path(cell: str, seed: int | str) -> str:
    """Where a run stands in its study's folder, as `run_dir` in conf/train.yaml has it."""
    return f"{cell}/seed={seed}"


def _choices(overrides: Sequence[str]) -> list[str]:
    """Those overrides that tell a run from its neighbours: not where it stands, nor its seed."""
    return [word for word in overrides if "=" in word and not outside_identity(key_and_value(word)[0])]


def cell_name(overrides: Sequence[str]) -> str:
    """A readable name of the choices in `overrides`, in an order of its own; `default` where there is none.

    It is a folder's name: the same for the same choices, another for others. `key=value,...` where that is short and
    has no sign of its own meaning, else as near to it as can be, with a digest.
    """
    pairs = sorted(map(_as_named, _choices(overrides)))
    if not pairs:
        return "default"
    full = [field_of(key) for key, _ in pairs]
    last = [key.rsplit(".", 1)[-1] for key in full]
    keys = [short if last.count(short) == 1 else key for key, short in zip(full, last, strict=True)]
    shown = [(key, *_shown(value)) for key, (_, value) in zip(keys, pairs, strict=True)]
    whole = ",".join(f"{key}={value}" for key, _, value in shown)
    safe = re.sub(r"[^\w=.,+-]", "_", unicodedata.normalize("NFC", ",".join(f"{key}={text}" for key, text, _ in shown)))
    if safe == whole and len(whole.encode()) <= LONGEST_NAME:
        return whole
    start = safe.encode()[:100].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(whole.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _as_named(word: str) -> list[str]:
    """An override's field and value; of a group that takes several choices `a+b`, or `none`."""
    key, value = word.removeprefix("++").split("=", 1)
    names = "+".join(name.strip() for name in value.strip("[]").split(","))
    return [key, names or "none"] if key in LISTS else [key, value]


def _shown(value: str) -> tuple[str, str]:
    """A value without quotes, and in the one way of writing it that no other value has."""
    text = text_of(value)
    try:
        read = value_of(text)
    except HydraException:
        return text, literal(text) if set(text) & set(",=") else text
    return text, text if read == text or text == value else literal(text)


def inherit(overrides: Sequence[str]) -> list[str]:
    """The overrides with those of the run in `model.init_from` before them, as far as they do not choose anew. That run
    may follow from this one's own seed, as in `${runs_dir}/before/rotary/seed=${seed}`.

    Raises: NotThere where that directory holds no run; UsageError.
    """
    keys = {key_and_value(override)[0] for override in overrides}
    groups = {key for key in keys if "." not in key}
    theirs = [(key_and_value(override)[0], override) for override in _choices_of_run(overrides)]
    return [*(o for key, o in theirs if key not in keys and key.split(".")[0] not in groups), *overrides]


def folders_of_start(overrides: Sequence[str]) -> list[str]:
    """The folders in which the choices and parts of the run in `model.init_from` are found. Raises: UsageError."""
    start = _start_of(overrides)
    folders: list[str] = record_in(start[1]).get("config_dirs", []) if start else []
    return folders


def own_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides without what `model.init_from` brought, that run by its cell's name. Raises: UsageError."""
    start = _start_of(overrides)
    if start is None:
        return list(overrides)
    brought = {_meaning(override) for override in _choices_of_run(overrides)}
    name = record_in(start[1]).get("cell_name", start[0])
    own = [override for override in overrides if _meaning(override) not in brought]
    return [f"init_from={name}" if key_and_value(override)[0] == INIT_FROM else override for override in own]


def recorded_choices(overrides: Sequence[str]) -> dict[str, str]:
    """A run's cell as run.json has it: its own choices by their fields."""
    return dict(map(key_and_text, _choices(own_choices(overrides))))


def _choices_of_run(overrides: Sequence[str]) -> list[str]:
    """What `inherit` takes from the run in `model.init_from`: choices of parts and data, its copy of its tokenizer."""
    start = _start_of(overrides)
    if start is None:
        return []
    written, directory = start
    record = record_in(directory)
    if not record:
        several = "; of several runs each is a cell of a study" if "," in written else ""
        give = f"give the directory of a run, or of an imported model{several}"
        here = "" if "${" not in written else f" in {directory}"
        raise NotThere(f"{INIT_FROM}={written}: there is no run{here} (no run.json); {give}", directory)
    has_tokenizer = (directory / "tokenizer.json").is_file()
    groups = {*INHERITED} - {"tokenizer"} if has_tokenizer else {*INHERITED}
    keyed = [(key_and_value(word)[0], word) for word in record["overrides"]]
    theirs = [word for key, word in keyed if key.split(".")[0] in groups and key not in NOT_INHERITED]
    return [*theirs, *(["tokenizer=pretrained", f"tokenizer.path={quoted(written)}"] if has_tokenizer else [])]


def _start_of(overrides: Sequence[str]) -> tuple[str, Path] | None:
    """What `model.init_from` says, and the directory that it comes to. Raises: UsageError where it cannot be told."""
    given = [override for override in overrides if key_and_value(override)[0] == INIT_FROM]
    value = parse_word(given[-1]).value() if given else None
    if value in (None, ""):
        return None
    written = str(value)
    own = {key_and_value(o)[0]: parse_word(o) for o in overrides if key_and_value(o)[0] in IN_INIT_FROM}
    for key in own:
        if own[key].is_sweep_override() and f"${{{key}}}" in written:
            raise UsageError(
                f"{INIT_FROM}={written}: {key} must be one value here, as all jobs take over the choices of one run; "
                "start them one by one, or make them a study, which has seeds"
            )
    known = {key: own[key].value() if key in own else default for key, default in IN_INIT_FROM.items()}
    try:
        return written, Path(str(OmegaConf.create({**known, "start": written}).start)).expanduser()
    except OmegaConfBaseException as error:
        names = " and ".join(f"${{{key}}}" for key in IN_INIT_FROM)
        raise UsageError(f"{INIT_FROM}={written}: {names} alone can stand in it: {reason_of(error)}") from error


def _meaning(override: str) -> tuple[str, str]:
    """An override by what it says: a multirun writes the words of its jobs in its own way."""
    return key_and_value(override)[0], repr(parse_word(override).value())
