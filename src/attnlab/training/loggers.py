"""Loggers of a run: its own JSON lines, which are always written, and views of it, Weights & Biases and TensorBoard,
which cannot fail a training."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from attnlab.training.run_directory import AppendedLines, RunDirectory
from attnlab.training.tracking import Picture, RunName, Table, Thumbnail, Tracking, resolve_wandb_mode, run_id

PATIENCE_SECONDS = 20.0  # for a server that does not answer
_silent: set[str] = set()  # modes that could not be opened in this process: its next run does not wait for them again

Say = Callable[[str], None]


class RunLogger(Logger):
    """A logger of one run, told apart by nothing, and told the configuration when it was made."""

    name, version = "", ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        return None


class JsonLines(RunLogger):
    """Appends {"step", "tokens", "seconds", "attempt", "values"} lines to metrics.jsonl, each by one write; a value
    that is not finite is null, and named in "non_finite". `tokens` and `seconds` are taken out of the values. Raises
    CannotWrite."""

    def __init__(self, path: str | os.PathLike[str], attempt: int = 1) -> None:
        self.path, self.attempt = Path(path), attempt
        self._file = AppendedLines(self.path)
        super().__init__()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        found = {name: float(value) for name, value in metrics.items() if name not in ("tokens", "seconds")}
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        line = {"step": step, "tokens": metrics.get("tokens"), "seconds": metrics.get("seconds")}
        more = {"attempt": self.attempt, "values": {**found, **dict.fromkeys(wrong)}}
        self._file.append(json.dumps(line | more | ({"non_finite": wrong} if wrong else {})).encode() + b"\n")

    def save(self) -> None:
        self._file.save()

    def finalize(self, status: str) -> None:
        self._file.close()


class View(RunLogger):
    """A view of a run: values go to `log(values, step)`, tables and pictures to `show(name, item, step)`; `flush` is
    called when a training ends. Its first error is told to `say`, and it stays silent from then on."""

    def __init__(
        self,
        name: str,
        log: Callable[[Mapping[str, float], int | None], None],
        show: Callable[[str, Table | Picture, int], None],
        flush: Callable[[], None] | None,
        say: Say,
    ) -> None:
        super().__init__()
        self.title, self._log, self._show, self._flush, self._say = name, log, show, flush or (lambda: None), say
        self.broken = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(partial(self._log, metrics, step))

    def show(self, items: Mapping[str, Table | Picture], step: int) -> None:
        """Passes tables and pictures on, by their names."""
        for name, item in items.items():
            self._try(partial(self._show, name, item, step))

    def finalize(self, status: str) -> None:
        self._try(self._flush)

    def _try(self, action: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            action()
        except Exception as error:
            self.broken = True
            self._say(f"{self.title}: {type(error).__name__}: {error}; this run goes on without it")


def build_loggers(
    tracking: Tracking,
    directory: RunDirectory,
    name: RunName,
    runs_dir: str | os.PathLike[str],
    config: Mapping[str, object] | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> list[RunLogger]:
    """The run's loggers: the JSON lines first, then those views that could be opened; `say` is told of those that could
    not."""
    loggers: list[RunLogger] = [JsonLines(directory.metrics, directory.attempt or 1)]
    if getattr(rank_zero_only, "rank", 0):
        return loggers
    if tracking.tensorboard:
        loggers += _tensorboard(directory, say)
    if tracking.wandb:
        loggers += wandb_views(tracking, name, Path(runs_dir), config or {}, say)
    return loggers


def _tensorboard(directory: RunDirectory, say: Say) -> list[View]:
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
    return [View("tensorboard", log, show, writer.flush, say)]


def wandb_views(
    tracking: Tracking, name: RunName, runs_dir: Path, config: Mapping[str, object], say: Say
) -> list[View]:
    """W&B's view in the resolved mode, or offline, or none."""

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
            return [View("wandb", log, show, None, say)]
        except Exception as error:  # whatever W&B raises, a run is not lost for a view of it
            # Its helper process keeps the id of a run that could not be opened.
            _tell_wandb(lambda wandb: wandb.teardown(exit_code=1))
            _silent.add(attempt)
            instead = "this run goes on without it" if attempt == "offline" else "this run is logged offline"
            say(f"wandb: {type(error).__name__}: {first_line(error)}; {instead}")
    return []


def _open_wandb(tracking: Tracking, name: RunName, runs_dir: Path, config: Mapping[str, object], mode: str) -> Any:
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


def _without_dots(node: object) -> Any:
    """The same with / in place of the dots in keys, which W&B reads as nesting."""
    if isinstance(node, Mapping):
        return {str(key).replace(".", "/"): _without_dots(value) for key, value in node.items()}
    return [_without_dots(value) for value in node] if isinstance(node, list | tuple) else node


def _as_wandb(item: object) -> object:
    """A table, a picture, or what stands in a table, as W&B shows it."""
    import wandb
    from PIL import Image

    match item:
        case Table():
            return wandb.Table(columns=list(item.columns), data=[list(map(_as_wandb, row)) for row in item.rows])
        case Picture():
            return wandb.Image(item.pixels_HW, caption=item.caption or None)
        case Thumbnail():
            return wandb.Image(Image.open(io.BytesIO(item.png)))
    return item


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _tell_wandb(what: Callable[[Any], object]) -> None:
    """Does something with W&B where it is loaded, whatever it raises."""
    with contextlib.suppress(Exception):
        what(sys.modules["wandb"])


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Around a run: closes W&B's run whatever happens, so that the next run of the process is a run of its own."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    except SystemExit:  # a training that has saved and stops, to go on later
        _tell_wandb(lambda wandb: wandb.run.mark_preempting())
        raise
    finally:
        _tell_wandb(lambda wandb: wandb.finish(exit_code=exit_code))
