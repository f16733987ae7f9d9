"""A published model as the directory of a run, which trains, generates and evaluates like any other."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from attnlab.config import UsageError
from attnlab.config.check import check, is_folder_name
from attnlab.config.compose import Composed, ConfigSpace, read_yaml, shipped
from attnlab.config.identity import flatten
from attnlab.config.overrides import as_value, key_and_text, literal, readable
from attnlab.data import DataError, Tokenizer, read_tokenizer
from attnlab.interop import Imported, Settings, canonical, different, nested
from attnlab.ranges import must_be
from attnlab.runs.build import build
from attnlab.runs.published import name_of, published
from attnlab.runs.record import make_record, plain_widths, write_record
from attnlab.training import RunDirectory, StatusWriter, Task, save_weights
from attnlab.training.run_directory import Held, write_text

SEAMS = ("position", "residual", "norm", "attention", "feed_forward")
MODELS = {"GPT": "gpt", "Bert": "bert", "EncoderDecoder": "encoder_decoder", "T5": "t5", "ViT": "vit"}
OF_THE_DATA = ("vocabulary_size", "source_vocabulary_size", "num_classes", "image_size", "channels", "next_sentence")


def import_model(
    source: str,
    name: str | None,
    revision: str | None,
    ignore: Sequence[str],
    overrides: Sequence[str],
    config_dirs: Sequence[str],
) -> tuple[list[str], list[str]]:
    """
    Reads the model and makes the run's directory; returns in words what was taken, and notes on what was not.

    source: see `published`. name: the run's; None: the source's. overrides: of the data, say. Raises: UsageError.
    """
    cell = name or name_of(source)
    if not is_folder_name(cell):
        raise UsageError(must_be("--name", "the name of one folder, without / and not starting with a dot", cell))
    given = readable(overrides)
    _refuse_parts(given)
    with published(source, revision, ignore) as (imported, folder, facts), ConfigSpace(config_dirs) as space:
        own = [word for word in given if not word.startswith("tokenizer")]
        words = [*overrides_of(imported.settings, own, space), "study.name=imported", f"cell={literal(cell)}", *own]
        tokenizer, folder = _tokenizer(imported, folder, [word for word in given if word not in own])

        def composed(tokenizer_at: Path) -> Composed:
            read = ["tokenizer=pretrained", f"tokenizer.path={literal(str(tokenizer_at))}"]
            rows = f"tokenizer.vocabulary_size={imported.settings.get('vocabulary_size')}"
            return space.compose([*words, *([*read, rows] if tokenizer is not None else [])])

        task = _task(composed(folder), imported)
        directory = RunDirectory(composed(folder).run_dir)
        named = [*(["--name", name] if name else []), *(["--revision", revision] if revision else [])]
        left = [word for field in ignore for word in ("--ignore", field)]
        command = shlex.join(["attnlab", "import", source, *named, *left, *overrides])
        _write(
            composed(directory.path), directory, task, tokenizer, {"command": command, **_facts(imported, task, facts)}
        )
    return _told(imported, directory.path, tokenizer)


def _refuse_parts(given: Sequence[str]) -> None:
    """A model is imported as it was published."""
    for word in given:
        if word.lstrip("+~").partition("=")[0].split(".")[0] in ("model", *SEAMS):
            raise UsageError(
                f"{word}: a model is imported as it was published; change it in training: attnlab train "
                f"model.init_from=RUN {word}"
            )


def _task(composed: Composed, imported: Imported) -> Task:
    """The task around the model that was read, by the configuration that will be kept. Raises: UsageError."""
    check(composed)
    torch.manual_seed(composed.seed)
    parts = build(composed.resolved)
    widths = _widths(imported)
    task = parts.build_task({**parts.data.placeholder_dims(), **widths})
    if type(task.model).__name__ != imported.settings["model"]:
        raise UsageError(
            f"{type(task).__name__} puts an output of its own on the model, which the files have not; leave "
            "task out, and train it from the "
            "imported run: attnlab train model.init_from=RUN task=..."
        )
    changes = different(canonical(composed.resolved["model"], **widths), imported.settings)
    if changes:
        raise UsageError(
            "with these settings another model would be built than the one that was read: "
            f"{'; '.join(changes)}. Leave out what changes "
            "the model, and change it in training: attnlab train model.init_from=RUN ..."
        )
    imported.load(task.model)
    return task


def _widths(imported: Imported) -> dict[str, Any]:
    """What data would tell the model."""
    return {name: imported.settings[name] for name in OF_THE_DATA if name in imported.settings}


def _facts(imported: Imported, task: Task, source: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the model and of where it came from."""
    return {
        "widths": plain_widths(_widths(imported)),
        "parameters": {"total": sum(parameter.numel() for parameter in task.model.parameters())},
        "imported": {
            **source,
            "architecture": imported.architecture.name,
            "fresh": imported.fresh,
            "ignored": imported.ignored,
        },
    }


def _write(
    composed: Composed, directory: RunDirectory, task: Task, tokenizer: Tokenizer | None, facts: dict[str, Any]
) -> None:
    """The files of the run, and last that it is finished: one that was cut short is made anew. Raises: UsageError."""
    held = directory.claim()
    if isinstance(held, Held):
        raise UsageError(
            f"{directory.path}: there is a run already ({held}); give another name (--name NAME), or remove it"
        )
    status = StatusWriter(directory)
    try:
        status.start()
        if tokenizer is not None:
            write_text(directory.path / "tokenizer.json", tokenizer.as_json())
        write_record(directory, composed, make_record(composed, directory, facts))
        save_weights(task, directory.checkpoints / "last.ckpt")
        status.finish()
    except BaseException as error:
        status.fail(error)
        raise
    finally:
        directory.release()


def _told(imported: Imported, path: Path, tokenizer: Tokenizer | None) -> tuple[list[str], list[str]]:
    size = sum(tensor.numel() for tensor in imported.tensors.values())
    told, notes = [f"{path}: {imported.architecture.name}, {size:,} parameters"], []
    if tokenizer is not None:
        rows = imported.settings.get("vocabulary_size")
        told.append(f"tokenizer: {len(tokenizer.text_tokens):,} tokens of text; the model has {rows:,} rows")
    if imported.fresh:
        notes.append(f"freshly initialised, for the files have them not: {', '.join(imported.fresh)}")
    if imported.ignored:
        notes.append(f"left out as asked: {', '.join(imported.ignored)}")
    return told, notes


def _tokenizer(imported: Imported, folder: Path, given: Sequence[str]) -> tuple[Tokenizer | None, Path]:
    """
    The model's tokenizer and the folder of its files; none for images.

    Raises: UsageError where there is none, or it has more tokens than the model has rows.
    """
    rows = imported.settings.get("vocabulary_size")
    if rows is None:
        return None, folder
    values = dict(map(key_and_text, given))
    unknown = [word for word in given if word.split("=", 1)[0] != "tokenizer.path" and word != "tokenizer=pretrained"]
    if unknown:
        raise UsageError(
            f"{unknown[0]}: a model keeps the tokenizer that it was trained with; accepted: tokenizer.path=FOLDER"
        )
    folder = Path(values.get("tokenizer.path", str(folder)))
    try:
        return read_tokenizer(str(folder), rows), folder
    except DataError as error:
        raise UsageError(
            f"{folder} has no tokenizer for the {rows} rows of the model: {error}. One that lies elsewhere: "
            "tokenizer.path=FOLDER"
        ) from error


# --- settings as choices of the configuration


def overrides_of(settings: Settings, given: Sequence[str], space: ConfigSpace) -> list[str]:
    """The overrides that give the configuration a model of these settings; `given` are further ones."""
    plain = {key: value for key, value in settings.items() if key not in OF_THE_DATA}
    if plain.get("attention.bias") == plain.get("feed_forward.bias"):
        plain["bias"] = plain.pop("attention.bias", False)
        del plain["feed_forward.bias"]
    if plain.get("attention.d_head", 0) * settings["num_heads"] == settings["d_model"]:
        del plain["attention.d_head"]
    if settings["attention.num_key_value_heads"] in (1, settings["num_heads"]):
        del plain["attention.num_key_value_heads"]
    node = nested(plain)
    choices = [f"model={MODELS[settings['model']]}"]
    fields: list[tuple[str, Any]] = []
    for seam in SEAMS:
        part: Any = node.get("residual", {}).get("norm") if seam == "norm" else node.get(seam)
        if isinstance(part, Mapping):
            choices.append(f"{seam}={_choice(seam, part, settings)}")
            fields += [
                (f"{seam}.{key}", value)
                for key, value in part.items()
                if not isinstance(value, Mapping) and not key.startswith("_")
            ]
    fields += [
        (f"model.{key}", value)
        for key, value in node.items()
        if not isinstance(value, Mapping) and not key.startswith("_")
    ]
    known = dict(flatten(space.compose([*choices, *given]).raw))
    return [*choices, *(word for key, value in fields if (word := _word(key, value, known)))]


def _choice(seam: str, part: Mapping[str, Any], settings: Settings) -> str:
    """The file of the group whose class this is."""
    if seam == "attention":
        shared = settings["attention.num_key_value_heads"]
        return {settings["num_heads"]: "multi_head", 1: "multi_query"}.get(shared, "grouped_query")
    for path in sorted((shipped("conf") / seam).glob("*.yaml")):
        if read_yaml(path).get("_target_") == part["_target_"]:
            return path.stem
    raise AssertionError(f"no file of {seam} names {part['_target_']}")


def _word(key: str, value: Any, known: Mapping[str, Any]) -> str | None:
    """The override of a field, or nothing where the configuration has this value already."""
    if key not in known:
        return None if value in (None, False) else f"+{key}={as_value(value)}"
    is_there = known[key] == value and type(known[key]) is type(value)
    return None if is_there else f"{key}={as_value(value)}"
