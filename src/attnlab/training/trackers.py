"""Views of a run beside its own files: Weights & Biases and TensorBoard. The JSON lines are always written; nothing here can fail a training."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.training.media import Picture, Table, Thumbnail

if TYPE_CHECKING:
    from lightning.pytorch.loggers.logger import Logger

    from attnlab.training.run_directory import RunDirectory

MODES = ("online", "offline", "disabled", "shared")
LONGEST_ID = 96  # W&B takes 128 characters, but names a run's tables by its id and their own names, in 128 in all
LONGEST_PART = 31
EVALUATE = "-evaluate-"
PATIENCE_SECONDS = 20.0  # for a server that does not answer
_silent: set[str] = set()  # modes that could not be opened in this process: its next run does not wait for them again


@dataclass
class Tracking:
    """Which views a run has. `project`, `entity`, `tags` and `mode` are W&B's; auto is resolved once a command (see `resolve_wandb_mode`).

    attention_maps: the views show a picture of what the heads attend to on one batch. Raises ValueError for an unknown mode.
    """

    wandb: bool = False
    tensorboard: bool = False
    project: str = "attnlab"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str = "auto"
    attention_maps: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("auto", *MODES):
            raise ValueError(f"logger.mode={self.mode}: accepted are auto, {', '.join(MODES)}")


@dataclass(frozen=True)
class RunName:
    """A run's identity: its study, its cell's name and choices, and its seed; `part`, what was done with it later (see `evaluation_part`)."""

    study: str
    cell: str
    seed: int
    choices: Mapping[str, Any] = field(default_factory=dict)
    job_type: str = "train"
    part: str = ""


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
    import hashlib

    return f"{readable[: longest - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def resolve_wandb_mode(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """W&B's mode and why: WANDB_MODE if set, else online only where a key is, else offline. Raises ValueError for an unknown mode."""
    asked = environ.get("WANDB_MODE", "").strip().lower()
    if asked:
        mode = {"dryrun": "offline", "run": "online"}.get(asked, asked)
        if mode not in MODES:
            raise ValueError(f"WANDB_MODE={asked}: accepted are {', '.join(MODES)}")
        return mode, "WANDB_MODE is set"
    if environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    if _netrc_has_key(environ):
        return "online", "a key is stored in the netrc file"
    return "offline", "no key was found"


def _netrc_has_key(environ: Mapping[str, str]) -> bool:
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "~")).expanduser() / ".netrc")
    host = re.sub(r"^https?://", "", environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).split("/")[0]
    try:
        return re.search(rf"machine\s+{re.escape(host)}\b", path.read_text()) is not None
    except OSError:
        return False


def build_loggers(
    tracking: Tracking,
    directory: RunDirectory,
    name: RunName,
    runs_dir: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Logger]:
    """The run's loggers: the JSON lines first, then those views that could be opened; `say` is told of one that could not."""
    from lightning.pytorch.utilities import rank_zero_only

    from attnlab.training.json_lines import JsonLines

    say = say or (lambda line: print(line, file=sys.stderr))
    loggers: list[Logger] = [JsonLines(directory.metrics, directory.attempt or 1)]
    if getattr(rank_zero_only, "rank", 0):
        return loggers
    if tracking.tensorboard:
        loggers += _tensorboard(directory, say)
    if tracking.wandb:
        loggers += _wandb(tracking, name, Path(runs_dir), config or {}, say)
    return loggers


def log_evaluation(
    tracking: Tracking,
    name: RunName,
    runs_dir: Path,
    config: Mapping[str, Any],
    figures: Mapping[str, float],
    step: int,
    say: Callable[[str], None],
) -> None:
    """Hands figures of a trained run to W&B, as a run of their own in the study's group. Never fails: `say` is told why nothing is kept."""
    try:
        with finishing():
            for sink in _wandb(tracking, name, runs_dir, config, say):
                sink.log_metrics(dict(figures), step)
    except Exception as error:
        say(f"wandb: {type(error).__name__}: {_first_line(error)}; the figures are not logged")


def _tensorboard(directory: RunDirectory, say: Callable[[str], None]) -> list[Logger]:
    from attnlab.training.sinks import Sink

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("tensorboard is not installed (pip install 'attnlab[tensorboard]'); this run is logged without it")
        return []

    def log(values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def show(name: str, item: Table | Picture, step: int) -> None:
        if isinstance(item, Table):
            writer.add_text(name, item.as_markdown(), step)
        else:
            writer.add_image(name, item.pixels_HW, step, dataformats="HW")

    writer = SummaryWriter(str(directory.path / "tensorboard"))
    return [Sink("tensorboard", log, show, writer.flush, say)]


def _wandb(
    tracking: Tracking,
    name: RunName,
    runs_dir: Path,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[Logger]:
    """W&B's sink in the resolved mode, or offline, or none."""
    from attnlab.training.sinks import Sink

    # W&B's own step is the optimizer's: what a requeued run repeats replaces itself there.
    def log(values: Mapping[str, float], step: int | None) -> None:
        run.log(dict(values), step=step)

    def show(name: str, item: Table | Picture, step: int) -> None:
        run.log({name: _as_wandb(item)}, step=step)

    mode = resolve_wandb_mode()[0] if tracking.mode == "auto" else tracking.mode
    if mode in _silent:
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")) if mode != "disabled" else ():
        try:
            run = _open_wandb(tracking, name, runs_dir, config, attempt)
            return [Sink("wandb", log, show, None, say)]
        except Exception as error:  # whatever W&B raises, a run is not lost for a view of it
            _forget_wandb()
            _silent.add(attempt)
            instead = "this run goes on without it" if attempt == "offline" else "this run is logged offline"
            say(f"wandb: {type(error).__name__}: {_first_line(error)}; {instead}")
    return []


def _open_wandb(tracking: Tracking, name: RunName, runs_dir: Path, config: Mapping[str, Any], mode: str) -> Any:
    import wandb

    (runs_dir / "wandb").mkdir(parents=True, exist_ok=True)
    return wandb.init(
        mode=mode,  # type: ignore[arg-type]
        dir=str(runs_dir),
        project=tracking.project,
        entity=tracking.entity,
        id=run_id(name.study, name.cell, name.seed) + name.part,
        name=f"{name.cell} seed {name.seed}{name.part.replace('-', ' ')}",
        group=name.study,
        job_type=name.job_type,
        tags=list(tracking.tags),
        resume="allow",
        config=_without_dots({**config, "cell": dict(name.choices), "cell_name": name.cell, "seed": name.seed}),
        settings=wandb.Settings(silent=True, console="off", init_timeout=PATIENCE_SECONDS, finish_timeout=60),
    )


def _without_dots(node: Any) -> Any:
    """The same with / in place of the dots in keys, which W&B reads as nesting."""
    if isinstance(node, Mapping):
        return {str(key).replace(".", "/"): _without_dots(value) for key, value in node.items()}
    return [_without_dots(value) for value in node] if isinstance(node, list | tuple) else node


def _as_wandb(item: Table | Picture) -> Any:
    import wandb

    if isinstance(item, Table):
        return wandb.Table(columns=list(item.columns), data=[list(map(_as_wandb_cell, row)) for row in item.rows])
    return wandb.Image(item.pixels_HW, caption=item.caption or None)


def _as_wandb_cell(value: Any) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(value.png))) if isinstance(value, Thumbnail) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _finish_wandb(exit_code: int) -> None:
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(Exception):
            wandb.finish(exit_code=exit_code)


def _forget_wandb() -> None:
    """Ends W&B's helper process, in which the id of a run that could not be opened stays taken."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(Exception):
            wandb.teardown(exit_code=1)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Around a run: closes W&B's run whatever happens, so that the next run of the process is a run of its own."""
    try:
        yield
    except SystemExit:  # a training that has saved and stops, to go on later
        with contextlib.suppress(Exception):
            sys.modules["wandb"].run.mark_preempting()
        _finish_wandb(1)
        raise
    except BaseException:
        _finish_wandb(1)
        raise
    _finish_wandb(0)
