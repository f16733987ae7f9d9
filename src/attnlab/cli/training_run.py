"""The training itself: model, task and trainer put together, watched, evaluated and recorded."""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from attnlab.cli.build import Parts
from attnlab.cli.compose import Composed
from attnlab.cli.run import write_record
from attnlab.models import gpt_size
from attnlab.tasks import CausalLanguageModelling
from attnlab.training import (
    Checkpoints,
    Diverged,
    Progress,
    RunDirectory,
    StatusWriter,
    apply_to_model,
    build_trainer,
    find_resume,
    resolve,
)
from attnlab.training.trackers import RunName, build_loggers, finishing


class TrainingRun:
    """One attempt at a run whose directory this process owns."""

    def __init__(self, composed: Composed, parts: Parts, directory: RunDirectory) -> None:
        self.composed, self.parts, self.directory = composed, parts, directory
        self.config, self.settings = composed.config, parts.trainer
        self.status = StatusWriter(directory)
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
            self._say(f"diverged: {error}")
        except BaseException as error:
            self.status.fail(error)
            raise
        return self.status.status

    def _train_and_evaluate(self) -> None:
        task = self._task()
        record = write_record(self.directory, self.composed, self._facts(task))
        self._announce(record)
        loggers = self._loggers(record)
        callbacks: list[Any] = [
            self.status,
            Checkpoints(self.directory.checkpoints, self.settings.checkpoint_every_seconds),
        ]
        if not self.quiet:
            callbacks.append(Progress(live=False if self.config.progress == "plain" else None))
        trainer = build_trainer(self.settings, self.precision, loggers, callbacks, self.directory.path)
        resume = find_resume(self.directory.path)
        if resume is not None:
            self._say(f"going on from {resume}")
        trainer.fit(task, datamodule=self.parts.data, ckpt_path=resume, weights_only=True)
        final = task.validate(self.parts.data) | task.evaluate(self.parts.data, "test")
        if final:
            task.report(final)
        for logger in loggers:
            logger.finalize("success")
        self.status.finish(final, task.cannot)
        self._show(final, task.cannot)

    def _task(self) -> CausalLanguageModelling:
        seed = int(self.config.seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        task = self.parts.build_task(self.parts.data.vocabulary_size)
        apply_to_model(self.settings, task.model)
        return task

    def _facts(self, task: CausalLanguageModelling) -> dict[str, Any]:
        """What run.json says beyond the configuration: sizes, precision, device, the plan in steps and tokens."""
        settings, data = self.settings, self.parts.data
        size = gpt_size(**self.parts.model.keywords, vocabulary_size=data.vocabulary_size)
        ranks = settings.devices * settings.num_nodes
        tokens_per_step = data.tokens_per_batch * settings.accumulate * ranks
        return {
            "precision": {"asked": self.precision.asked, "used": self.precision.used, "reason": self.precision.reason},
            "device": {
                "type": settings.device_type,
                "name": _device_name(settings.device_type),
                "threads": settings.threads or torch.get_num_threads(),
            },
            "parameters": {"total": size.parameters, "non_embedding": size.non_embedding_parameters},
            "flops_per_token": size.flops_per_token,
            "data": {
                "fingerprint": data.corpus.fingerprint,
                "vocabulary_size": data.vocabulary_size,
                "train_tokens": data.corpus.train.num_tokens,
            },
            "training": {
                "steps": settings.max_steps,
                "tokens_per_step": tokens_per_step,
                "tokens": tokens_per_step * settings.max_steps,
                "epochs": tokens_per_step * settings.max_steps / max(1, data.corpus.train.num_tokens),
            },
        }

    def _announce(self, record: dict[str, Any]) -> None:
        plan, parameters, device = record["training"], record["parameters"], record["device"]
        self._say(f"{record['name']} in {self.directory.path}, attempt {self.directory.attempt}")
        self._say(
            f"model: {parameters['total']:,} parameters ({parameters['non_embedding']:,} without embeddings), {record['flops_per_token']:,} training FLOPs a token"
        )
        self._say(
            f"data: {record['data']['train_tokens']:,} training tokens, vocabulary {record['data']['vocabulary_size']:,}"
        )
        self._say(f"plan: {plan['steps']:,} steps of {plan['tokens_per_step']:,} tokens = {plan['epochs']:.2f} epochs")
        self._say(
            f"precision {self.precision.used} ({self.precision.reason}); {device['name']}, {device['threads']} threads"
        )

    def _show(self, final: dict[str, float], cannot: dict[str, str]) -> None:
        for name, value in final.items():
            if name.startswith("val/") or "/nats@" in name or "/sliding_nats@" in name:
                self._say(f"{name} {value:.4f}")
        for name, reason in cannot.items():
            self._say(f"{name} cannot: {reason}")

    def _say(self, line: str) -> None:
        if not self.quiet and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(line, file=sys.stderr)

    def _loggers(self, record: dict[str, Any]) -> list[Any]:
        name = RunName(record["study"], record["cell_name"], record["seed"], record["cell"])
        tracking = instantiate(self.config.logger)
        return build_loggers(tracking, self.directory, name, self.config.runs_dir, record, say=self._say)


def _device_name(device_type: str) -> str:
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    return device_type
