"""The training itself: model, task and trainer put together, watched, evaluated and recorded."""

from __future__ import annotations

import fnmatch
import random
import sys
import traceback
from typing import Any

import numpy as np
import torch

from attnlab.cli.build import Parts
from attnlab.cli.compose import Composed, identity
from attnlab.cli.examples import examples_of, leave_examples
from attnlab.cli.init_from import FIELD, start
from attnlab.cli.pretrained import refuse_other_tokenizer
from attnlab.cli.records import plain_widths
from attnlab.cli.run import make_record, write_record
from attnlab.cli.search import pruning
from attnlab.cli.views import show_media
from attnlab.models import Size, measure_size
from attnlab.training import (
    Checkpoints,
    Diverged,
    DivergenceCheck,
    Inside,
    Progress,
    RunDirectory,
    Sink,
    StatusWriter,
    StopRequest,
    TokenTask,
    apply_to_model,
    build_trainer,
    find_resume,
    resolve,
)
from attnlab.training.callbacks import in_words
from attnlab.training.media import OUTPUTS
from attnlab.training.pruning import Pruned
from attnlab.training.random_state import draw_apart
from attnlab.training.run_directory import write_text
from attnlab.training.run_log import RunLog
from attnlab.training.stop_request import Interrupted
from attnlab.training.trackers import RunName, build_loggers, finishing

LOGGED_SECONDS = 60.0  # a line of progress in the run's log


class TrainingRun:
    """One attempt at a run: by the process that owns its directory, or by one that trains with it."""

    def __init__(self, composed: Composed, parts: Parts, directory: RunDirectory) -> None:
        self.composed, self.parts, self.directory = composed, parts, directory
        self.config, self.settings = composed.config, parts.trainer
        self.status = StatusWriter(directory)
        self.log = RunLog(directory.path)
        device = self.settings.device_type
        self.precision = resolve(self.settings.precision, device, int(self.config.model.get("d_model", 0)))
        self.quiet = self.config.progress == "off"

    def go(self) -> dict[str, Any]:
        """Trains, evaluates, and returns the last status. Raises: what the training raised, once the status says so."""
        self.status.start()
        try:
            with finishing():
                self._train_and_evaluate()
        except Diverged as error:
            self.status.fail(error)
            self._warn(
                f"{self.directory.path}: diverged: {error}"
            )  # also where progress is off: it is why there are no figures
        except Pruned as error:
            self.status.fail(error)
            self._say(str(error))
        except Interrupted as error:
            self.status.fail(error)
            self._warn(str(error))
            raise
        except BaseException as error:
            self.status.fail(error)
            self._log("".join(traceback.format_exception(error)))
            told = in_words(error)
            if told is not error:
                raise told from error
            raise
        return self.status.status

    def _train_and_evaluate(self) -> None:
        self._refuse_other_tokenizers()
        task = self._task()
        for split in ("train", "validation", "test"):  # now, and not when the training is over
            task.check_split(self.parts.data, split)
        record = make_record(self.composed, self.directory, self._facts(task))
        if self.directory.owned:
            write_record(self.directory, self.composed, record)
            for name, tokenizer in self.parts.data.tokenizers().items():
                write_text(self.directory.path / name, tokenizer.as_json())
        self._announce(record)
        loggers = self._loggers(record)
        trainer = build_trainer(self.settings, self.precision, loggers, self._callbacks(), self.directory.path)
        resume = find_resume(self.directory.path, identity(self.composed.resolved), self._warn)
        if resume is not None:
            self._say(f"going on from {resume}")
        else:
            self._initialise(task)
            draw_apart(int(self.config.seed), trainer.global_rank)
        trainer.fit(task, datamodule=self.parts.data, ckpt_path=resume, weights_only=True)
        self.status.note(trainer, task)  # a run that was stopped after its last step has trained nothing now
        final = task.validate(self.parts.data) | task.evaluate(self.parts.data, "test")
        if final:
            task.report(final)
        tracking, examples = self.parts.tracking, examples_of(task, self.parts.data, self._log)
        if tracking.attention_maps and not examples.attention:
            self._warn(f"logger.attention_maps: {type(task.model).__name__} has no heads to show")
        sinks = [logger for logger in loggers if isinstance(logger, Sink)]
        show_media(sinks, task.global_step, final, examples, tracking.attention_maps)
        for logger in loggers:
            logger.finalize("success")
        for name, text in task.outputs.items() if self.directory.owned else ():
            write_text(self.directory.path / OUTPUTS / name, text)
        if self.directory.owned:
            leave_examples(examples, self.directory.path, self._warn)
        self.status.finish(final, task.cannot, task.notes)
        self._show(final, task)

    def _callbacks(self) -> list[Any]:
        settings = self.settings
        checkpoints = Checkpoints(
            self.directory.checkpoints,
            settings.checkpoint_every_seconds,
            settings.checkpoint_budget_gb,
            identity(self.composed.resolved),
            StopRequest(self._say),
        )
        # What a step adds to the state of the others is saved with it: the checkpoints come after them.
        callbacks: list[Any] = [self.status, DivergenceCheck(settings.plateau_share, settings.max_steps)]
        if settings.diagnostics_every is not None:
            callbacks.append(Inside(settings.diagnostics_every))
        callbacks.append(checkpoints)
        callbacks += pruning(self.config, self.directory)
        unit = self.parts.data.unit
        if self.directory.owned:
            callbacks.append(Progress(live=False, every_seconds=LOGGED_SECONDS, stream=self.log, unit=unit))
        if not self.quiet:
            live = False if self.config.progress == "plain" else None
            callbacks.append(Progress(live=live, unit=unit))
        return callbacks

    def _task(self) -> TokenTask:
        seed = int(self.config.seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        task = self.parts.build_task(self.parts.data.widths())
        apply_to_model(self.settings, task.model)
        return task

    def _refuse_other_tokenizers(self) -> None:
        """Now, and not when the run has said what it is: mended words may have its name then."""
        for run, field in (
            (self.config.task.get("pretrained"), "task.pretrained"),
            (self.config.model.get("init_from"), FIELD),
        ):
            if run is not None:
                refuse_other_tokenizer(run, self.parts.data.tokenizers(), field)

    def _initialise(self, task: TokenTask) -> None:
        for line in task.initialise():
            self._say(line)
        node = self.composed.resolved["model"]
        if node.get("init_from") is not None:
            for line in start(task.model, node, self.parts.data.widths()):
                self._say(line)

    def _facts(self, task: TokenTask) -> dict[str, Any]:
        """What run.json says beyond the configuration: sizes, precision, device, the plan in steps and tokens."""
        settings, data = self.settings, self.parts.data
        size = self._size(task)
        tokens_per_step = data.tokens_per_step(settings.accumulate * settings.devices * settings.num_nodes)
        return {
            "precision": {"asked": self.precision.asked, "used": self.precision.used, "reason": self.precision.reason},
            "device": {
                "type": settings.device_type,
                "name": _device_name(settings.device_type),
                "threads": settings.threads or torch.get_num_threads(),
            },
            "widths": plain_widths(data.widths()),
            "parameters": {"total": size.parameters, "non_embedding": size.non_embedding_parameters},
            "flops_per_token": size.flops_per_token,
            "data": {"unit": data.unit, **data.facts()},
            "training": {
                "steps": settings.max_steps,
                "tokens_per_step": tokens_per_step,
                "tokens": tokens_per_step * settings.max_steps,
                "epochs": tokens_per_step * settings.max_steps / max(1, data.train_tokens),
            },
        }

    def _size(self, task: TokenTask) -> Size:
        """Of the model, measured on a batch; nothing that the training draws is touched."""
        batch = self.parts.data.example_batch()
        return measure_size(task.model, lambda: int(task.all_sums(batch)[1]))

    def _announce(self, record: dict[str, Any]) -> None:
        plan, parameters, device = record["training"], record["parameters"], record["device"]
        unit = self.parts.data.unit
        self._say(f"{record['name']} in {self.directory.path}, attempt {self.directory.attempt}")
        self._say(
            f"model: {parameters['total']:,} parameters ({parameters['non_embedding']:,} without embeddings), {record['flops_per_token']:,} training FLOPs per {unit}"
        )
        self._say(f"data: {self.parts.data.describe()}")
        self._announce_vocabulary()
        self._say(f"plan: {plan['steps']:,} steps of {plan['tokens_per_step']:,} {unit}s = {plan['epochs']:.2f} epochs")
        self._say(
            f"precision {self.precision.used} ({self.precision.reason}); {device['name']}, {device['threads']} threads"
        )

    def _announce_vocabulary(self) -> None:
        """Says where the text has not given as many tokens as were asked for."""
        asked = self.config.tokenizer.get("vocabulary_size")
        if asked is None or self.config.data.get("tokenizer_from") is not None:
            return
        for tokenizer in self.parts.data.tokenizers().values():
            if tokenizer.vocabulary_size < asked:
                got = f"the training text gives no more than {tokenizer.vocabulary_size:,} tokens"
                self._say(f"tokenizer.vocabulary_size={asked}: {got}, which the tokenizer has now")

    def _show(self, final: dict[str, float], task: TokenTask) -> None:
        for name, value in final.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in task.headline):
                self._say(f"{name} {value:.4f}")
        for name, reason in task.cannot.items():
            self._say(f"{name} cannot: {reason}")

    def _say(self, line: str) -> None:
        if self.quiet:
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

    def _loggers(self, record: dict[str, Any]) -> list[Any]:
        name = RunName(record["study"], record["cell_name"], record["seed"], record["cell"])
        return build_loggers(self.parts.tracking, self.directory, name, self.config.runs_dir, record, say=self._warn)


def _device_name(device_type: str) -> str:
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    return device_type
