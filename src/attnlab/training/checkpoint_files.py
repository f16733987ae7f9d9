"""Files of checkpoints: written whole or not at all, checked by a checksum that is part of the file, read without
running code in them.

A file is torch's zip archive with a comment, which says SHA-256 of all bytes before the digest. It appears under its
name by one rename, so no instant has a checkpoint without its checksum; `torch.load` and any reader of zip archives
take it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

import attnlab
from attnlab.training.run_directory import differences, open_to_read, write_bytes

# Of what a checkpoint holds under which names. Raise it when that changes: a file of another format is refused.
FORMAT = 2
MARK = b"attnlab sha256 "
DIGEST = 64  # characters of SHA-256 in hexadecimal
CHUNK = 1 << 20
CUT_SHORT = "is damaged: it was cut short, or is no checkpoint at all"
SHOWN = 20  # fields of a configuration that differ


class UnusableCheckpoint(ValueError):
    """A checkpoint that cannot be gone on from, with the reason and what to do."""


class DamagedCheckpoint(UnusableCheckpoint):
    """One that was cut short or altered after it was written; the one before may be whole."""


def versions() -> dict[str, str]:
    """What a checkpoint is written by."""
    return {"attnlab": attnlab.__version__, "torch": str(torch.__version__)}


def write_checkpoint(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Replaces `path` atomically by `content` (tensors and primitives). Raises CannotWrite; the old file then stays."""
    buffer = io.BytesIO()
    torch.save({**content, "format": FORMAT, "versions": versions()}, buffer)
    _seal(buffer)
    write_bytes(Path(path), buffer.getbuffer())


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_checkpoint` was given, with tensors on the CPU, and its `format` and `versions`.

    Raises FileNotFoundError; DamagedCheckpoint; UnusableCheckpoint for a file of another format, or one with code in
    it.
    """
    path = Path(path)
    try:
        mark, digest = _digests(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error
    if mark and mark != digest:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its checksum")
    content = _load(path)
    found = content.get("format", 1) if isinstance(content, dict) else 1
    if found != FORMAT:
        by = content.get("versions", {}).get("attnlab") if isinstance(content, dict) else None
        raise UnusableCheckpoint(
            f"{path} is of checkpoint format {found}, this attnlab ({attnlab.__version__}) reads format {FORMAT}; use "
            f"the attnlab that wrote it{f' ({by})' if by else ''}, or train again under another name (study.name=NAME)"
        )
    if not mark:
        raise DamagedCheckpoint(f"{path} is damaged: its end, the checksum, was altered")
    assert isinstance(content, dict)
    return content


def refuse_other_configuration(path: Path, content: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    """Raises UnusableCheckpoint, with the differences, where a checkpoint is of another configuration."""
    changes = differences(content.get("configuration", {}), configuration)
    if changes:
        shown = "\n  ".join(changes[:SHOWN])
        raise UnusableCheckpoint(
            f"{path} is of a run of another configuration (there -> now):\n  {shown}\n"
            "Give this run another name (study.name=NAME), or move the checkpoints away."
        )


def say_other_versions(content: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Says where a checkpoint was written by other versions than these."""
    now = versions()
    other = [f"{name} {old}, now {now[name]}" for name, old in content["versions"].items() if now.get(name) != old]
    if other:
        say(f"the checkpoint was written by {'; '.join(other)}: from here on the last bits may differ")


class CheckpointFiles(CheckpointIO):
    """How Lightning writes and reads checkpoints, on the CPU and without running code whatever it asks for."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _seal(buffer: io.BytesIO) -> None:
    """Puts the checksum behind an archive, as its comment: its last two bytes are the length of one."""
    assert bytes(buffer.getbuffer()[-2:]) == b"\0\0", "torch's archive has a comment of its own"
    buffer.seek(-2, os.SEEK_END)
    buffer.write((len(MARK) + DIGEST).to_bytes(2, "little") + MARK)
    buffer.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def _digests(path: Path) -> tuple[str, str]:
    """The checksum that a file says (empty where it says none) and that of its content."""
    with open_to_read(path, within=os.sep) as file:  # wherever a link leads: to a store of checkpoints, say
        left = file.seek(0, os.SEEK_END) - DIGEST
        file.seek(max(0, left - len(MARK)))
        end = file.read()
        if left < len(MARK) or not end.startswith(MARK):
            return "", ""
        file.seek(0)
        digest = hashlib.sha256()
        while left > 0:
            chunk = file.read(min(CHUNK, left))
            digest.update(chunk)
            left -= len(chunk)
    return end[len(MARK) :].decode("latin-1"), digest.hexdigest()


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of the protocols of pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL:? (\S+)", str(error))
        if named is None and not _is_pickle_with_code(path):
            raise DamagedCheckpoint(f"{path} {CUT_SHORT}") from error
        raise UnusableCheckpoint(
            f"{path} is refused: it holds more than tensors and numbers{f' ({named[1]})' if named else ''}, and to "
            "load that could run code. Nothing of it was run; take a checkpoint that attnlab wrote"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedCheckpoint(f"{path} {CUT_SHORT}") from error


def _is_pickle_with_code(path: Path) -> bool:
    """Whether a file is a bare pickle that names functions or classes; it is read, not run."""
    with open(path, "rb") as file:
        try:
            names = {operation.name for operation, _, _ in pickletools.genops(file)}
        except Exception:  # whatever stops the reading: it is no pickle
            return False
    return bool(names & {"GLOBAL", "STACK_GLOBAL", "INST"})
