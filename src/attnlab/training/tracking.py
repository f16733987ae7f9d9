"""What views of a run beside its own files (W&B, TensorBoard) are told: which there are, a run's name there, W&B's
mode, and the tables and pictures that they show. Needs neither torch nor Lightning.

Legend: H rows, W columns, C channels, Y and X rows and columns of an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.training.metrics import parts_of

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from PIL import Image

MODES = ("online", "offline", "disabled", "shared")
LONGEST_ID = 96  # W&B takes 128 characters, but names a run's tables by its id and their own names, in 128 in all
LONGEST_PART = 31
EVALUATE = "-evaluate-"
NUM_SAMPLES = 32  # rows of a table of samples


@dataclass
class Tracking:
    """Which views a run has. `project`, `entity`, `tags` and `mode` are W&B's; auto is resolved once a command.

    attention_maps: the views show what the heads attend to on one batch. others: what makes a logger of Lightning, by
    its name. Raises ValueError for an unknown mode.
    """

    wandb: bool = False
    tensorboard: bool = False
    project: str = "attnlab"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str = "auto"
    attention_maps: bool = False
    others: dict[str, Callable[..., Logger]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.mode not in ("auto", *MODES):
            raise ValueError(f"logger.mode={self.mode}: accepted are auto, {', '.join(MODES)}")


@dataclass(frozen=True)
class RunName:
    """A run's identity: its study, its cell's name, its choices by field and its seed; what the study asks; `part`:
    what was done with it later."""

    study: str
    cell: str
    seed: int
    choices: Mapping[str, object] = field(default_factory=dict)
    job_type: str = "train"
    part: str = ""
    question: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any], job_type: str = "train", part: str = "") -> RunName:
        """That of a run's run.json."""
        choices = {**record.get("choices", {}), **record["cell"]}
        question = record.get("question", "")
        return cls(record["study"], record["cell_name"], record["seed"], choices, job_type, part, question)

    def factors(self) -> dict[str, object]:
        """The choices by the last word of their fields, as far as that tells them apart; numbers are numbers."""
        last = [key.rpartition(".")[2] for key in self.choices]
        short = [one if last.count(one) == 1 else key for key, one in zip(self.choices, last, strict=True)]
        return dict(zip(short, map(_as_number, self.choices.values()), strict=True))


def _as_number(value: object) -> object:
    """A text that is a number or a truth value, as that; others as they are."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        return int(value)
    with contextlib.suppress(ValueError):
        return float(value)
    return {"true": True, "false": False}.get(value.lower(), value)


def run_id(study: str, cell: str, seed: int) -> str:
    """The run's fixed W&B id, `<study>-<cell>-s<seed>` in the characters that W&B takes, at most LONGEST_ID of them."""
    end = f"-s{seed}"
    return _readable(f"{study}-{cell}", f"{study}/{cell}", LONGEST_ID - len(end)) + end


def evaluation_part(split: str, checkpoint: str = "last") -> str:
    """What follows a run's W&B id in that of its evaluation on a split by one of its checkpoints: `-evaluate-test`."""
    which = "" if checkpoint == "last" else f"-{checkpoint}"
    return EVALUATE + _readable(split, split, LONGEST_PART - len(EVALUATE) - len(which)) + which


def _readable(text: str, whole: str, longest: int) -> str:
    """`text` in the characters that W&B takes; where it is too long, cut, with a digest of `whole`."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
    if len(readable) <= longest:
        return readable
    return f"{readable[: longest - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def resolve_wandb_mode(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """W&B's mode and why: WANDB_MODE if set, else online only where a key is, else offline. Raises ValueError."""
    if asked := environ.get("WANDB_MODE", "").strip().lower():
        mode = {"dryrun": "offline", "run": "online"}.get(asked, asked)
        if mode not in MODES:
            raise ValueError(f"WANDB_MODE={asked}: accepted are {', '.join(MODES)}")
        return mode, "WANDB_MODE is set"
    if environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    netrc = Path(environ.get("NETRC") or Path(environ.get("HOME", "~")).expanduser() / ".netrc")
    host = re.sub(r"^https?://", "", environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).split("/")[0]
    with contextlib.suppress(OSError):
        if re.search(rf"machine\s+{re.escape(host)}\b", netrc.read_text()):
            return "online", "a key is stored in the netrc file"
    return "offline", "no key was found"


@dataclass(frozen=True)
class Thumbnail:
    """A small image in a table, as the bytes of a PNG file."""

    png: bytes

    def __str__(self) -> str:
        return "(image)"


def thumbnail(pixels_CYX: np.ndarray, most: int = 48) -> Thumbnail:
    """Of an image in uint8 with one channel or three; one larger than `most` pixels a side is made smaller."""
    from PIL import Image

    image = Image.fromarray(pixels_CYX[0] if len(pixels_CYX) == 1 else np.moveaxis(pixels_CYX[:3], 0, -1))
    image.thumbnail((most, most))
    return Thumbnail(_png(image))


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclass(frozen=True)
class Table:
    """Rows of plain values and thumbnails under the names of their columns."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]

    def as_markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        cells = [[str(value).replace("|", "\\|").replace("\n", " ") for value in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


@dataclass(frozen=True)
class Picture:
    """Grey levels (H, W), 0 to 255, and what they show."""

    pixels_HW: np.ndarray  # noqa: N815 - shape suffixes on fields, too
    caption: str = ""

    def as_png(self) -> bytes:
        """The bytes of a PNG file."""
        from PIL import Image

        return _png(Image.fromarray(self.pixels_HW))


def restricted_figures(figures: Mapping[str, float]) -> dict[str, Table]:
    """The figures that are of a part of a split (test/loss@4x, test/bleu@6-10), as one table a split.

    A row is a restriction (a length, a task), a column a measure; what a row lacks is None.
    """
    by_split: dict[str, dict[tuple[str, str], float]] = {}
    for (split, measure, restriction), value in ((parts_of(name), figures[name]) for name in figures if "@" in name):
        by_split.setdefault(split, {})[restriction, measure] = value
    tables = {}
    for split, found in by_split.items():
        measures = tuple(dict.fromkeys(measure for _, measure in found))
        restrictions = dict.fromkeys(restriction for restriction, _ in found)
        rows = [(restriction, *(found.get((restriction, m)) for m in measures)) for restriction in restrictions]
        tables[f"{split}/by_part"] = Table(("part", *measures), rows)
    return tables
