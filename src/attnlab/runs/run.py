"""One run, from its composed configuration to a finished run directory: claimed, trained, evaluated, recorded."""

from __future__ import annotations

import fnmatch
import random
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from attnlab import training
from attnlab.config.check import check, incompatible
from attnlab.config.compose import Composed
from attnlab.config.engine import instantiate
from attnlab.config.identity import INIT_FROM, identity, refuse_drift
from attnlab.parts import Prepared, find
from attnlab.runs.build import Parts, build, refuse_other_tokenizer, start
from attnlab.runs.record import (
    make_record,
    plain_widths,
    read_record,
    refuse_other_source,
    size_of,
    trials_of,
    write_record,
)
from attnlab.runs.settled import settle_run
from attnlab.runs.views import examples_of
from attnlab.training import ranks
from attnlab.training.branching import KeptCheckpoints, find_branch
from attnlab.training.callbacks import (
    Debugging,
    DivergenceCheck,
    Progress,
    Pruned,
    Pruning,
    StatusWriter,
    duration,
    in_words,
)
from attnlab.training.checkpoints import draw_apart
from attnlab.training.diagnostics import reported
from attnlab.training.loggers import View, build_loggers, finishing
from attnlab.training.loss import Diverged
from attnlab.training.processes import Interrupted, StopRequest, descendants, end_with_ancestors, leaving, slurm_job
from attnlab.training.ranks import Ranks
from attnlab.training.run_directory import (
    METRICS,
    OUTPUTS,
    SETTLED,
    Held,
    RunDirectory,
    RunLog,
    effective_state,
    read_json,
    write_text,
)
from attnlab.training.task import Task
from attnlab.training.tracking import RunName
from attnlab.training.trainer import apply_to_model, build_trainer

LOOK_AGAIN_SECONDS = 3.0
LOGGED_SECONDS = 60.0  # a line of progress in the run's log
PLAN = ("steps", "tokens_per_step", "tokens", "epochs")


def run(composed: Composed) -> dict[str, object]:
    """Trains and evaluates one run, or goes on with it where it was stopped, and returns its last status.

    A finished run is left as it is, one that another process owns is left to it, and a job of a multirun whose parts
    are incompatible is skipped. Raises: UsageError, DataError, CannotWrite, Interrupted, or what the training raised;
    the run's status says so too.
    """
    end_with_ancestors()
    with leaving():
        if composed.is_multirun and incompatible(composed):  # the command has said why
            return {"state": "skipped"}
        check(composed)
        directory, parts = RunDirectory(composed.run_dir), build(composed.resolved)
        must_start = ranks.are_missing(parts.trainer)
        together = Ranks() if must_start else ranks.join(parts.trainer)
        if together.decide(lambda: is_over(composed)):
            if together.rank == 0:
                say_over(composed)
        elif must_start:
            with descendants():
                ranks.start(parts.trainer, _as_rank, composed, sys.path)
        else:
            return _train(composed, parts, directory, together)
        return dict(read_json(directory.status_json, {}))


def _as_rank(composed: Composed, path: list[str]) -> None:
    """One rank of a run in a process of its own."""
    sys.path[:] = path
    run(composed)


def is_over(composed: Composed) -> bool:
    """Whether nothing is left to do. Raises: UsageError where another configuration or other own code ran there.

    What a debug preset ran before is removed: it is to run each time.
    """
    if composed.get("debug") is not None:
        if effective_state(composed.run_dir) != "running":
            shutil.rmtree(composed.run_dir, ignore_errors=True)
        return False
    refuse_drift(composed.run_dir, composed.resolved)
    refuse_other_source(composed)
    return effective_state(composed.run_dir) in SETTLED


def say_over(composed: Composed) -> None:
    """Says of a run that is over that nothing is left to do."""
    _say(composed, f"{composed.run_dir}: {effective_state(composed.run_dir)} already; nothing to do")


def _say(composed: Composed, line: str) -> None:
    if composed.progress != "off":
        print(line, file=sys.stderr)


def _train(composed: Composed, parts: Parts, directory: RunDirectory, together: Ranks) -> dict[str, object]:
    together.first_on_each_node(parts.data.prepare_data)
    parts.data.setup()
    parts.data.order_seed = composed.seed
    parts = replace(parts, trainer=parts.trainer.in_steps(parts.data.steps_in))
    number = together.decide(lambda: _claim(directory))
    if isinstance(number, Held):
        if together.rank == 0:
            _say(composed, f"{directory.path}: {number}; left to it")
        return {"state": number.state}
    try:
        return TrainingRun(composed, parts, directory, together).go()
    finally:
        directory.release()


def _claim(directory: RunDirectory) -> int | Held:
    """Claims a run for this process.

    Slurm may start a job again before the owner that it has just killed on another node counts as dead; a live owner is
    known by its next heartbeat.
    """
    number, beat = directory.claim(), directory.last_beat()
    while isinstance(number, Held) and number.state == "running" and slurm_job() and directory.last_beat() == beat:
        time.sleep(LOOK_AGAIN_SECONDS)
        number = directory.claim()
    return number


def debugging_of(preset: str | None) -> Debugging:
    """What a debug preset adds to a run; nothing where none is chosen."""
    if preset is None:
        return Debugging()
    from attnlab.runs.debugging import PRESETS

    return PRESETS[preset]()


class TrainingRun:
    """One attempt at a run: by the process that owns its directory, or by one that trains with it."""

    def __init__(self, composed: Composed, parts: Parts, directory: RunDirectory, together: Ranks) -> None:
        self.composed, self.parts, self.directory, self.together = composed, parts, directory, together
        self.data, self.settings = parts.data, parts.trainer
        self.status = StatusWriter(directory)
        self.log = RunLog(directory.path)

    def go(self) -> dict[str, object]:
        """Trains, evaluates, and returns the last status. Raises: what the training raised, once the status says so."""
        self.status.start()
        try:
            with finishing():
                self._train_and_evaluate()
        except BaseException as error:
            self.status.fail(error)
            match error:
                case Diverged():  # said also where progress is off: it is why there are no figures
                    self._warn(f"{self.directory.path}: diverged: {error}")
                case Pruned():
                    self._say(str(error))
                case Interrupted():
                    self._warn(str(error))
                    raise
                case _:
                    self._log("".join(traceback.format_exception(error)))
                    if (told := in_words(error)) is not error:
                        raise told from error
                    raise
        return self.status.status

    def _train_and_evaluate(self) -> None:
        for field in ("task.pretrained", INIT_FROM):  # before the run says what it is: mended words may have its name
            if (start_from := self.composed.get(field)) is not None:
                refuse_other_tokenizer(start_from, self.data.tokenizers(), field)
        task = self._task()
        for split in ("train", "validation", "test"):  # now, and not when the training is over
            task.check_split(self.data, split)
        batch = self.data.example_batch()
        arithmetic = self.together.decide(lambda: settle_run(self.composed, self.parts, batch))
        facts = self._facts(task, batch) | arithmetic.record()
        apply_to_model(replace(self.settings, compile=arithmetic.compilation.used), task.model)
        record = make_record(self.composed, self.directory, facts)
        if self.directory.owned:
            write_record(self.directory, self.composed, record)
            for name, tokenizer in self.data.tokenizers().items():
                write_text(self.directory.path / name, tokenizer.as_json())
        self._announce(record)
        name, runs_dir = RunName.of(record), self.composed.runs_dir
        loggers = build_loggers(self.parts.tracking, self.directory, name, runs_dir, record, say=self._warn)
        debugging, callbacks = debugging_of(self.composed.get("debug")), self._callbacks()
        trainer = build_trainer(
            self.settings,
            arithmetic.precision,
            loggers,
            [*callbacks, *debugging.callbacks],
            self.directory.path,
            debugging.profiler(self.directory.path),
        )
        debugging.before(self.data)
        resume = training.find_resume(self.directory.path, identity(self.composed.resolved), self._warn)
        if resume is None and self.settings.branch_from is not None:
            resume = self._branch(Path(self.settings.branch_from).expanduser(), record, loggers)
        if resume is not None:
            self._say(f"going on from {resume}")
        else:
            lines = task.initialise()
            if self.composed.get(INIT_FROM) is not None:
                lines = [*lines, *start(task.model, self.composed.resolved["model"], self.data.dims())]
            for line in lines:
                self._say(line)
            draw_apart(self.composed.seed, trainer.global_rank)
        trainer.fit(task, datamodule=self.data, ckpt_path=resume, weights_only=True)
        self.status.note(trainer, task)  # a run that was stopped after its last step has trained nothing now
        if trainer.global_step < trainer.max_steps:
            from attnlab.training.lightning_options import why_stopped

            self.status.status["stopped"] = why = why_stopped(self.parts.callbacks)
            self._say(f"stopped at step {trainer.global_step} of {trainer.max_steps}: {why}")
        if (fault := debugging.fault()) is not None:
            raise ValueError(fault)
        self._evaluate(task, loggers, debugging)
        for line in debugging.lines(self.directory.path):
            self._warn(line)

    def _branch(self, trunk: Path, record: Mapping[str, Any], loggers: Sequence[Logger]) -> Path | None:
        """The checkpoint of the trunk to go on from, with what came before it in this run's directory; or None."""
        read_record(trunk)
        computes = {path: find(record, path) for path in ("precision.used", "compile.used", "device.name")}
        own, width = identity(self.composed.resolved), int(self.composed.get("model.d_model") or 1)
        shared = partial(self.parts.shared_steps, d_model=width)
        branch = find_branch(trunk, own, shared, computes, self.settings.plateau_share, self._warn)
        if branch is not None and self.directory.owned:
            branch.bring(self.directory.checkpoints, loggers)
        return None if branch is None else branch.checkpoint

    def _task(self) -> Task:
        seed = self.composed.seed
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return self.parts.build_task(self.data.dims())

    def _callbacks(self) -> list[pl.Callback]:
        settings, unit = self.settings, self.data.unit
        callbacks: list[pl.Callback] = [self.status, DivergenceCheck(settings.plateau_share, settings.steps)]
        if settings.diagnostics_every is not None:
            callbacks.append(training.Diagnostics(settings.diagnostics_every))
        callbacks += self.parts.callbacks
        every, budget = settings.checkpoint_every_seconds, settings.checkpoint_budget_gb
        stop, same = StopRequest(self._say), identity(self.composed.resolved)
        # What a step adds to the state of the others is saved with it: the checkpoints come after them.
        kept = settings.keep_checkpoints
        callbacks.append(KeptCheckpoints(self.directory.checkpoints, every, budget, same, stop, kept))
        if self.composed.search is not None:
            sweeper = self.composed.sweeper
            pruner = instantiate(sweeper["pruner"], "hydra.sweeper.pruner")
            callbacks.append(Pruning(pruner, sweeper["metric"], sweeper["better"], self.directory.metrics, self._peers))
        if self.directory.owned:
            callbacks.append(Progress(live=False, every_seconds=LOGGED_SECONDS, stream=self.log, unit=unit))
        if self.composed.progress != "off":
            callbacks.append(Progress(live=False if self.composed.progress == "plain" else None, unit=unit))
        return callbacks

    def _peers(self) -> Iterator[Path]:
        """metrics.jsonl of the other trials of the same search that have finished."""
        for path in trials_of(self.directory.path.parent.parent, str(self.composed.search)):
            if path != self.directory.path and effective_state(path) == "finished":
                yield path / METRICS

    def _evaluate(self, task: Task, loggers: Sequence[Logger], debugging: Debugging) -> None:
        final = debugging.evaluate(task, self.data)
        for callback in task.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it elsewhere
            final |= callback.figures(task) if isinstance(callback, training.Diagnostics) else {}
        if final:
            task.report(final)
        with_maps, examples = self.parts.tracking.attention_maps, examples_of(task, self.data, self._log)
        if with_maps and not examples.attention:
            self._warn(f"logger.attention_maps: {type(task.model).__name__} has no heads to show")
        views = [logger for logger in loggers if isinstance(logger, View)]
        examples.show(views, task.global_step, final, with_maps)
        for logger in loggers:
            logger.finalize("success")
        if self.directory.owned:
            for name, text in task.outputs.items():
                write_text(self.directory.path / OUTPUTS / name, text)
            examples.leave(self.directory.path, self._warn)
        self.status.finish(final=final, unavailable=task.unavailable, notes=task.notes)
        for name, value in final.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in task.headline):
                self._say(f"{name} {value:.4f}")
        for name, reason in task.unavailable.items():
            self._say(f"{name} unavailable: {reason}")
        run = shlex.quote(str(self.directory.path))
        self._say(f"finished in {run}, after {duration(task.seconds)} of training")
        self._say(f"next: attnlab {task.use.replace('RUN', run)}")

    def _facts(self, task: Task, batch: Prepared) -> dict[str, Any]:
        """What run.json says beyond the configuration: sizes, device, the plan in steps and tokens."""
        settings, data = self.settings, self.data
        steps, parts, kind = (
            settings.steps,
            settings.accumulate_grad_batches * settings.world_size,
            settings.device_type,
        )
        size = size_of(task, data, batch, steps, parts)  # it touches nothing that training draws
        tokens_per_step, tokens = data.tokens_per_step(parts), data.tokens_in(steps, parts)
        epochs = tokens / max(1, data.train_tokens)
        name = torch.cuda.get_device_name() if kind == "cuda" else kind
        return {
            "device": {"type": kind, "name": name, "threads": settings.threads or torch.get_num_threads()},
            "widths": plain_widths(data.dims()),
            "parameters": size.counts(),
            "flops_per_token": size.flops_per_token,
            "metrics": {metric.name: metric.record() for metric in reported(type(task), self.composed.resolved)},
            "data": {"unit": data.unit, **data.facts()},
            "training": dict(zip(PLAN, (steps, tokens_per_step, tokens, epochs), strict=True)),
        }

    def _announce(self, record: Mapping[str, Any]) -> None:
        plan, parameters, device = record["training"], record["parameters"], record["device"]
        unit = self.data.unit
        self._say(f"{record['name']} in {self.directory.path}, attempt {self.directory.attempt}")
        active = f", {parameters['active_total']:,} active for a token" if "active_total" in parameters else ""
        without = f"{parameters['non_embedding']:,} without embeddings{active}"
        flops = f"{record['flops_per_token']:,} training FLOPs per {unit}"
        self._say(f"model: {parameters['total']:,} parameters ({without}), {flops}")
        self._say(f"data: {self.data.describe()}")
        asked = self.composed.get("tokenizer.vocabulary_size")
        if asked is not None and self.composed.get("data.tokenizer_from") is None:
            for size in (tokenizer.vocabulary_size for tokenizer in self.data.tokenizers().values()):
                if size < asked:
                    got = f"the training text gives no more than {size:,} tokens"
                    self._say(f"tokenizer.vocabulary_size={asked}: {got}, which the tokenizer has now")
        epochs = f" = {plan['epochs']:.2f} epochs" if plan["epochs"] >= 0.005 else ""  # none where all rows are new
        ramped = f" or, in the first {n:,}, fewer: {plan['tokens']:,} in all" if (n := self.data.ramps.steps) else ""
        self._say(f"plan: {plan['steps']:,} steps of {plan['tokens_per_step']:,} {unit}s{ramped}{epochs}")
        threads = f"{device['name']}, {device['threads']} threads"
        self._say(f"precision {record['precision']['used']} ({record['precision']['reason']}); {threads}")
        if record["compile"]["asked"] == "auto":
            self._say(f"compile {str(record['compile']['used']).lower()} ({record['compile']['reason']})")

    def _say(self, line: str) -> None:
        if self.composed.progress == "off":
            self._log(line)
        else:
            self._warn(line)

    def _warn(self, line: str) -> None:
        self._log(line)
        if self.directory.owned:
            print(line, file=sys.stderr)

    def _log(self, text: str) -> None:
        if self.directory.owned:
            self.log.say(text)
