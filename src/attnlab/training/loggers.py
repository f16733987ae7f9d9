"""Loggers of a run: its own JSON lines, which are always written, and views of it, which cannot fail a training:
Weights & Biases, TensorBoard, and any logger of Lightning's."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from attnlab.parts import Config, accepts, unwrapped
from attnlab.training.metrics import known_better, parts_of
from attnlab.training.run_directory import AppendedLines, RunDirectory, read_json, write_json
from attnlab.training.tracking import Picture, RunName, Table, Thumbnail, Tracking, resolve_wandb_mode, run_id

if TYPE_CHECKING:
    import lightning.pytorch as pl

PATIENCE_SECONDS = 20.0  # for a server that does not answer
# MLflow would wait for one for minutes, and say where each run is and what it makes first.
MLFLOW = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
MLFLOW |= {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
SERVERS = "loggers.json"  # in a run's directory: the ids that its run has on servers, by logger
LONGEST_TAG = 64  # of W&B's
AXES = ("tokens", "seconds", "flops")  # beside the step
_silent: set[str] = set()  # modes that could not be opened in this process: its next run does not wait for them again

Say = Callable[[str], None]
WITHOUT = "this run goes on without it"


class RunLogger(Logger):
    """A logger of one run, told apart by nothing, and told the configuration when it was made.

    A task's lines have their step, and tokens among their values. Lightning's callbacks have neither: they count
    batches from 0. Once `step_now` says what step a training is in, values of theirs stand at that one: those that come
    before the task's own line of it wait for that line, and later ones take its tokens and seconds.
    """

    name, version = "", ""
    step_now: Callable[[], int] | None = None
    _last: tuple[int | None, Mapping[str, float]] = (None, {})
    _waiting: tuple[int | None, Mapping[str, float]] = (None, {})

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        return None

    @abstractmethod
    def write(self, values: Mapping[str, float], step: int | None) -> None:
        """Takes in the values of one line."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        is_own = "tokens" in metrics or self.step_now is None
        step = step if is_own or self.step_now is None else self.step_now()
        if is_own or step != self._last[0]:
            if self._waiting[0] != step:
                self.flush()
            metrics = {**self._waiting[1], **metrics}
            self._waiting = (None, {}) if is_own else (step, metrics)
        if is_own:
            self._last = step, {axis: metrics[axis] for axis in ("tokens", "seconds") if axis in metrics}
        if is_own or step == self._last[0]:
            self.write({**metrics, **self._last[1]}, step)

    def flush(self) -> None:
        """Writes what waits for a line that does not come."""
        (step, values), self._waiting = self._waiting, (None, {})
        if values:
            self.write(values, step)


def follow(loggers: Iterable[Logger], trainer: pl.Trainer) -> None:
    """Tells a run's loggers by a trainer which optimizer step, counted from 1, it is in or has just made."""

    def step_now() -> int:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        is_within = progress.ready > progress.processed or progress.ready % trainer.accumulate_grad_batches > 0
        return trainer.global_step + bool(is_within)

    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.step_now = step_now


class JsonLines(RunLogger):
    """Appends {"step", "tokens", "seconds", "attempt", "values"} lines to metrics.jsonl, each by one write; a value
    that is not finite is null, and named in "non_finite". `tokens` and `seconds` are taken out of the values. Raises
    CannotWrite."""

    def __init__(self, path: str | os.PathLike[str], attempt: int = 1) -> None:
        self.path, self.attempt = Path(path), attempt
        self._file = AppendedLines(self.path)
        super().__init__()

    def write(self, values: Mapping[str, float], step: int | None) -> None:
        found = {name: float(value) for name, value in values.items() if name not in ("tokens", "seconds")}
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        line = {"step": step, "tokens": values.get("tokens"), "seconds": values.get("seconds")}
        more = {"attempt": self.attempt, "values": {**found, **dict.fromkeys(wrong)}}
        self._file.append(json.dumps(line | more | ({"non_finite": wrong} if wrong else {})).encode() + b"\n")

    def save(self) -> None:
        self._file.save()

    def finalize(self, status: str) -> None:
        self.flush()
        self._file.close()


class View(RunLogger):
    """A view of a run: values go to `log(values, step)`, tables and pictures to `show(name, item, step)`; `end(status)`
    is called when a training ends, and once more when it is evaluated. Its first error is told to `say`, and it stays
    silent from then on."""

    def __init__(
        self,
        name: str,
        log: Callable[[Mapping[str, float], int | None], None],
        show: Callable[[str, Table | Picture, int], None],
        end: Callable[[str], None] | None,
        say: Say,
    ) -> None:
        super().__init__()
        self.title, self._log, self._show, self._end, self._say = name, log, show, end or (lambda status: None), say
        self.broken = False

    def write(self, values: Mapping[str, float], step: int | None) -> None:
        self._try(partial(self._log, values, step))

    def show(self, items: Mapping[str, Table | Picture], step: int) -> None:
        """Passes tables and pictures on, by their names."""
        for name, item in items.items():
            self._try(partial(self._show, name, item, step))

    def finalize(self, status: str) -> None:
        self.flush()
        self._try(partial(self._end, status))

    def _try(self, action: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            action()
        except Exception as error:
            self.broken = True
            self._say(f"{self.title}: {type(error).__name__}: {error}; {WITHOUT}")


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
        loggers += _tensorboard(directory, name, say)
    if tracking.wandb:
        loggers += wandb_views(tracking, name, Path(runs_dir), config or {}, say)
    chosen = {**name.factors(), "seed": name.seed, "config": (config or {}).get("config", {})}
    for title, make in tracking.others.items():
        loggers += _of_lightning(title, make, directory, chosen, say)
    return loggers


def _is_final(name: str) -> bool:
    """Whether a metric is of the test part, which is evaluated once, when the training is over."""
    return parts_of(name)[0] == "test"


def _tensorboard(directory: RunDirectory, run: RunName, say: Say) -> list[View]:
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        say("tensorboard is not installed (pip install 'attnlab[tensorboard]'); this run is logged without it")
        return []

    writer = SummaryWriter(str(directory.path / "tensorboard"))
    events: Any = writer.file_writer
    chosen = {key: value if isinstance(value, int | float) else str(value) for key, value in run.factors().items()}
    chosen["seed"] = run.seed

    def log(values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        if any(map(_is_final, values)):  # what HParams shows of the run, by the names of its scalars
            experiment, _, ended = hparams(chosen, {name: value for name, value in values.items() if "/" in name})
            for summary in (experiment, ended):
                events.add_summary(summary)

    def show(name: str, item: Table | Picture, step: int) -> None:
        if isinstance(item, Table):
            writer.add_text(name, item.as_markdown(), step)
        else:
            writer.add_image(name, item.pixels_HW, step, dataformats="HW")

    events.add_summary(hparams(chosen, {})[1])  # not add_hparams, which writes a run of its own for it
    return [View("tensorboard", log, show, lambda status: writer.flush(), say)]


def _of_lightning(
    title: str, make: Callable[..., Logger], directory: RunDirectory, chosen: Mapping[str, object], say: Say
) -> list[View]:
    """The view by a logger of Lightning; one that has runs by their ids on a server goes on with that of the run."""
    with_id, is_mlflow = accepts(make, "run_id"), "mlflow" in unwrapped(make).__module__
    before = read_json(directory.path / SERVERS, {}) if with_id else {}
    for key, value in MLFLOW.items() if is_mlflow else ():
        os.environ.setdefault(key, value)
    try:
        logger = make(run_id=before[title]) if title in before else make()
        if is_mlflow:
            logging.getLogger(type(logger).__module__).setLevel(logging.ERROR)
            with contextlib.suppress(Exception):  # of runs that begin together, one makes their experiment
                assert logger.version
        if title not in before:  # what a server keeps of a run's settings it keeps for good
            logger.log_hyperparams(dict(chosen))
        if with_id:
            write_json(directory.path / SERVERS, {**before, title: logger.version})
    except Exception as error:  # whatever it raises, a run is not lost for a view of it
        say(f"{title}: {type(error).__name__}: {first_line(error)}; {WITHOUT}")
        return []
    at = "_at_" if is_mlflow else "@"  # a sign that MLflow does not take

    def log(values: Mapping[str, float], step: int | None) -> None:
        logger.log_metrics({name.replace("@", at): float(value) for name, value in values.items()}, step)

    return [View(title, log, lambda name, item, step: None, logger.finalize, say)]


class _WandB:
    """What W&B is told of a run: curves, each by the optimizer's step, and beside them single figures in the summary.

    Of a validated metric the summary has the last and the best value; what is evaluated once is no curve of one point.
    """

    def __init__(self, run: Any, config: Config, is_over: bool) -> None:
        self.run, self.metrics, self.flops = run, config.get("metrics"), config.get("flops_per_token")
        self.is_over, self._defined = is_over, set(AXES)
        for axis in AXES:
            run.define_metric(axis, hidden=True)

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        single = {name: value for name, value in values.items() if self.is_over or _is_final(name)}
        curves = {name: value for name, value in values.items() if name not in single}
        if single:
            self.run.summary.update(single)
        if not curves.keys() - {*AXES}:
            return
        for name in curves.keys() - self._defined:
            better = known_better(name, self.metrics) if name.startswith("val/") else None
            if better is not None:
                self.run.define_metric(name, summary="min,last" if better == "lower" else "max,last")
            self._defined.add(name)
        if self.flops and "tokens" in curves:
            curves["flops"] = self.flops * curves["tokens"]
        # W&B's own step is the optimizer's: what a requeued run repeats replaces itself there.
        self.run.log(curves, step=step)

    def show(self, name: str, item: Table | Picture, step: int) -> None:
        self.run.log({name: _as_wandb(item)}, step=step)


def wandb_views(
    tracking: Tracking, name: RunName, runs_dir: Path, config: Mapping[str, object], say: Say
) -> list[View]:
    """W&B's view in the resolved mode, or offline, or none."""
    mode = resolve_wandb_mode()[0] if tracking.mode == "auto" else tracking.mode
    if mode in _silent:
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")) if mode != "disabled" else ():
        try:
            view = _WandB(_open_wandb(tracking, name, runs_dir, config, attempt), config, name.job_type != "train")
            return [View("wandb", view.log, view.show, None, say)]
        except Exception as error:  # whatever W&B raises, a run is not lost for a view of it
            # Its helper process keeps the id of a run that could not be opened.
            _tell_wandb(lambda wandb: wandb.teardown(exit_code=1))
            _silent.add(attempt)
            instead = WITHOUT if attempt == "offline" else "this run is logged offline"
            say(f"wandb: {type(error).__name__}: {first_line(error)}; {instead}")
    return []


def _open_wandb(tracking: Tracking, name: RunName, runs_dir: Path, config: Mapping[str, object], mode: str) -> Any:
    import wandb

    (runs_dir / "wandb").mkdir(parents=True, exist_ok=True)
    given = (name.study, name.job_type, " ".join(name.question.split()), *tracking.tags)
    tags = dict.fromkeys(tag[:LONGEST_TAG].strip() for tag in given)
    return wandb.init(
        mode=mode,  # type: ignore[arg-type]
        dir=str(runs_dir),
        project=tracking.project,
        entity=tracking.entity,
        id=run_id(name.study, name.cell, name.seed) + name.part,
        name=f"{name.cell} seed {name.seed}{name.part.replace('-', ' ')}",
        group=name.cell,  # whose seeds average into one curve
        job_type=name.job_type,
        tags=[tag for tag in tags if tag],
        notes=name.question or None,
        resume="allow",
        config=_without_dots({**config, **name.factors(), "cell": name.cell, "seed": name.seed}),
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
