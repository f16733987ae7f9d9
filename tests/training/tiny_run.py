"""A task small enough to train in a test, and how to train it in a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from attnlab.training import (
    Checkpoints,
    DivergenceCheck,
    JsonLines,
    LossSums,
    Metric,
    Optimization,
    RunDirectory,
    StatusWriter,
    StopRequest,
    Task,
    TrainerSettings,
    adamw,
    resolve,
)
from attnlab.training.metrics import LOSS
from attnlab.training.schedules import Cosine
from attnlab.training.trainer import build_trainer

VOCABULARY = 17


class TinyModel(nn.Module):
    """Two hidden layers with dropout, one embedding, one untied output."""

    d_model = 16

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])
        self.norm, self.dropout, self.output = nn.LayerNorm(16), nn.Dropout(dropout), nn.Linear(16, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + self.dropout(torch.relu(layer(x)))
        return self.output(self.norm(x))


class TinyTask(Task):
    """Predicts targets; negative ones are not scored. `poison` makes the loss of that batch (from 0) not a number."""

    poison = -1
    count_as_tensor = False

    @classmethod
    def metrics(cls, config: Any) -> list[Metric]:
        return [LOSS]

    def loss_sums(self, batch: dict[str, Any]) -> LossSums:
        logits = self.model(batch["tokens"]).flatten(0, 1)
        nats = nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="sum", ignore_index=-1)
        count = (batch["targets"] >= 0).sum()
        if batch.get("index") == self.poison:
            nats = nats * float("nan")
        return LossSums(nats, count if self.count_as_tensor else int(count))


class Stream:
    """Endless batches, each a function of its index, with unequal numbers of scored tokens; its place can be saved."""

    def __init__(self, batch_size: int = 4, rank: int = 0, world_size: int = 1, limit: int | None = None) -> None:
        self.batch_size, self.rank, self.world_size, self.limit, self.seen = batch_size, rank, world_size, limit, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.limit is not None:
            self.seen = 0
        while self.limit is None or self.seen < self.limit:
            index = self.seen * self.world_size + self.rank
            self.seen += 1
            rows = [row(index * self.batch_size + i) for i in range(self.batch_size)]
            yield {
                "tokens": torch.stack([r[0] for r in rows]),
                "targets": torch.stack([r[1] for r in rows]),
                "index": index,
            }

    def __len__(self) -> int:
        return self.limit or 1 << 40

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen = state_dict["seen"]


def row(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(0, VOCABULARY, (8,), generator=generator)
    targets = (tokens * 3 + 1) % VOCABULARY
    targets[: index % 5] = -1
    return tokens, targets


class TinyData(pl.LightningDataModule):
    """The stream as a data module that knows its place."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size, self.place = batch_size, 0
        self.stream: Stream | None = None

    def train_dataloader(self) -> Stream:
        trainer: Any = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self.stream = Stream(self.batch_size, rank, world)
        self.stream.seen = self.place
        return self.stream

    def val_dataloader(self) -> Stream:
        return Stream(4, limit=3)

    def state_dict(self) -> dict[str, int]:
        return {"seen": 0 if self.stream is None else self.stream.seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.place = state_dict["seen"]


def make_task(
    optimizer: Callable[..., Any] = adamw, dropout: float = 0.1, kind: type[TinyTask] = TinyTask, **more: Any
) -> TinyTask:
    torch.manual_seed(3)
    task = kind(TinyModel(dropout), **more)
    task.optimization = Optimization(partial(optimizer, lr=1e-2), partial(Cosine, warmup_steps=3))
    return task


def train(
    path: Path,
    task: TinyTask,
    data: TinyData | None = None,
    resume: Path | None = None,
    callbacks: tuple[Any, ...] = (),
    configuration: dict[str, Any] | None = None,
    stop: StopRequest | None = None,
    **settings: Any,
) -> RunDirectory:
    """Trains `task` in the directory `path` with all that watches a run; `callbacks` come last."""
    directory = RunDirectory(path)
    assert isinstance(directory.claim(even_if_over=True), int)
    defaults: dict[str, Any] = {"max_steps": 20, "device": "cpu", "val_check_interval": 5, "precision": "32"}
    defaults["checkpoint_budget_gb"] = 0.0
    chosen = TrainerSettings(**defaults | settings)
    every, budget = chosen.checkpoint_every_seconds, chosen.checkpoint_budget_gb
    watchers = [
        StatusWriter(directory),
        DivergenceCheck(chosen.plateau_share, chosen.max_steps),
        Checkpoints(directory.checkpoints, every, budget, configuration, stop),
        *callbacks,
    ]
    loggers = [JsonLines(directory.metrics, directory.attempt or 0)]
    trainer = build_trainer(chosen, resolve(chosen.precision, "cpu"), loggers, watchers, path)
    torch.manual_seed(
        5 if resume is None else 99
    )  # what a new process happens to hold is of no consequence to a resumed run
    try:
        trainer.fit(task, datamodule=data or TinyData(), ckpt_path=resume, weights_only=True)
        watchers[0].finish()
    finally:
        directory.release()
    return directory


def weights(task: TinyTask) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
