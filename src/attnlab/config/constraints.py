"""What cannot be combined: by what each part says of itself, and by the few rules that belong to no part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from attnlab.config.compose import Composed, shipped
from attnlab.config.overrides import key_and_value
from attnlab.config.seams import load
from attnlab.parts import Choices

# Of a model, and the last one of data, which may not have each of them.
SEAMS = ("position", "residual", "norm", "attention", "feed_forward", "init", "augmentation")


def choices_of(composed: Composed) -> Choices:
    """A composed configuration as its parts see it. Raises: UsageError for a part that cannot be loaded."""
    nodes = {group: node for group, node in composed.resolved.items() if isinstance(node, dict) and "_target_" in node}
    parts = {group: load(group, node) for group, node in nodes.items()}
    return Choices(composed.resolved, dict(map(key_and_value, composed.overrides)), composed.names, parts)


def broken_rules(composed: Composed) -> list[str]:
    """The rules that a configuration breaks, a line each, which begins with the field that it is about."""
    choices = choices_of(composed)
    found = [*_other_kind(choices), *_without_effect(choices)]
    for group, part in choices.parts.items():
        says = getattr(part, "incompatible", None)
        if says is not None and (group not in SEAMS or choices.takes(group)):
            found += says(choices)
    return list(dict.fromkeys(found))


def _other_kind(choices: Choices) -> Iterator[str]:
    """Data and model have to be of the kind that the task declares; what is no class cannot be told."""
    task: Any = choices.parts["task"]
    for group, or_else in (
        ("data", "choose one of them, or the model's own (leave task and data out)"),
        ("model", "choose one of them, or leave task out to get the model's own"),
    ):
        needed: type = getattr(task, f"{group}_type", object)
        chosen = choices.parts[group]
        if isinstance(chosen, type) and not issubclass(chosen, needed):
            fitting = ", ".join(_choices_for(group, needed))
            wanted = _in_words(needed) if group == "data" else "another model"
            yield (
                f"task: task={choices.name('task')} needs {wanted} ({fitting}), got {group}={choices.name(group)}; "
                f"{or_else}"
            )


def _in_words(needed: type) -> str:
    """MaskedTextData as masked-text data."""
    *kind, noun = re.findall(r"[A-Z0-9][a-z]*", needed.__name__) or [needed.__name__]
    return f"{'-'.join(kind)} {noun}".lower().strip()


@cache
def _choices_for(group: str, needed: type) -> list[str]:
    """Attnlab's choices of a group that are of a kind."""
    found = []
    for path in sorted((shipped("conf") / group).glob("*.yaml")):
        kind = load(group, {"_target_": _target_of(path)})
        if isinstance(kind, type) and issubclass(kind, needed):
            found.append(path.stem)
    return found


def _target_of(path: Path) -> str:
    """The class that a choice's file names, or the file that it builds on."""
    choice: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    built_on = [word for word in choice.get("defaults", []) if isinstance(word, str) and word != "_self_"]
    return choice.get("_target_") or _target_of(path.with_name(f"{built_on[0].split('@')[0]}.yaml"))


def _without_effect(choices: Choices) -> Iterator[str]:
    """What is set of a seam that the model, or the data, do not have."""
    for seam in SEAMS:
        holder = "data" if seam == "augmentation" else "model"
        given = " ".join(f"{key}={value}" for key, value in choices.given.items() if key.split(".")[0] == seam)
        if given and not choices.takes(seam):
            yield (
                f"{seam}: {holder}={choices.name(holder)} has no {seam}, so {given} would have no effect; leave it out"
            )
