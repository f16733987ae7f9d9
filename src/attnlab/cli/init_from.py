"""`model.init_from=RUN`: another run's choices are the defaults of this one, and its weights the start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.cli.compose import Mistake, cell_name
from attnlab.training.run_directory import read_json

if TYPE_CHECKING:
    from torch import nn

    from attnlab.data import Tokenizer

FIELD = "model.init_from"
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
OWN = (FIELD, "task.pretrained", "data.tokenizer_from")


def inherit(overrides: Sequence[str]) -> list[str]:
    """
    The overrides with those of the run in `model.init_from` before them, as far as they do not choose anew; themselves where there is none.

    Raises: Mistake where that directory holds no run.
    """
    words = [_key_and_value(override) for override in overrides]
    run = next((value.strip("\"'") for key, value in words if key == FIELD), None)
    if run in (None, "", "null"):
        return [*overrides]
    record = read_json(Path(str(run)).expanduser() / "run.json", {})
    if not record:
        raise Mistake(
            f"{FIELD}={run}: there is no run (no run.json); give the directory of a run, or of an imported model"
        )
    keys = {key for key, _ in words}
    groups = {key for key in keys if "." not in key}
    theirs = [override for override in record["overrides"] if _is_inherited(_key_and_value(override)[0], keys, groups)]
    if "data" in groups and "tokenizer" not in groups and (Path(str(run)).expanduser() / "tokenizer.json").is_file():
        theirs = [override for override in theirs if _key_and_value(override)[0].split(".")[0] != "tokenizer"]
        theirs += ["tokenizer=pretrained", f"tokenizer.path={json.dumps(str(run))}"]
    named = [] if "cell" in keys else [f"cell={json.dumps(_cell(words, record))}"]
    return [*theirs, *overrides, *named]


def _is_inherited(key: str, keys: set[str], groups: set[str]) -> bool:
    top = key.split(".")[0]
    return top in INHERITED and key not in keys and top not in groups and key not in OWN


def _cell(words: Sequence[tuple[str, str]], record: dict[str, Any]) -> str:
    """The name of the cell: this run's own choices, and the other run by its name."""
    own = [f"{key}={value}" for key, value in words if key != FIELD]
    return cell_name([*own, f"init_from={record['cell_name']}"])


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def start(
    model: nn.Module, node: dict[str, Any], widths: dict[str, Any], tokenizers: dict[str, Tokenizer]
) -> list[str]:
    """
    Gives a new model the weights of the run in its node's `init_from`; says in lines what was kept, converted, fresh and left.

    node: the model's in the resolved configuration. widths, tokenizers: the data's. Raises: Mistake where the two do not fit.
    """
    from attnlab.cli.pretrained import refuse_other_tokenizer
    from attnlab.cli.records import plain_widths, read_record, read_tensors, settings_of
    from attnlab.interop import CannotConvert, canonical, different, start_from
    from attnlab.tasks.pretrained import weights_file

    run = str(node["init_from"])
    directory = Path(run).expanduser()
    record = read_record(directory)
    refuse_other_tokenizer(run, tokenizers, FIELD)
    try:
        path = weights_file(run, FIELD)
    except ValueError as error:
        raise Mistake(str(error)) from error
    there = settings_of(record, directory)
    try:
        here = canonical(node, **plain_widths(widths))
        begun = start_from(model, here, read_tensors(path), there)
    except KeyError as error:
        raise Mistake(f"{FIELD}={run}: {error.args[0]}, so nothing is known of what it computes") from error
    except CannotConvert as error:
        raise Mistake(f"{FIELD}={run}: {error}") from error
    changes = different(here, there)
    told = [f"this model and that one differ in {'; '.join(changes)}"] if changes else []
    return [f"started from {path}", *told, *begun.lines()]
