"""Real tasks, small enough to train in a test, whose batches can be split over ranks and micro-batches."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.processes import ranks_from_server

from attnlab.data import (
    Character,
    GeometricRamp,
    LinearRamp,
    MaskedTextData,
    Masking,
    ParallelText,
    Ramps,
    TextData,
    TextFiles,
    TranslationData,
)
from attnlab.data.module import DataModule
from attnlab.layers import ALiBi, MixtureOfExperts, PreNorm, RelativeBias
from attnlab.models import GPT, T5, Bert, EncoderDecoder
from attnlab.parts import build_part
from attnlab.tasks import CausalLanguageModelling, MaskedLanguageModelling, Translation
from attnlab.training import (
    EMA,
    Averaging,
    Checkpoints,
    Constant,
    Cosine,
    Diagnostics,
    Diverged,
    JsonLines,
    Optimization,
    Task,
    TrainerSettings,
    adamw,
    build_trainer,
    muon,
    ranks,
    resolve,
    schedule_free,
)

TASKS = ("causal_lm", "masked_lm", "translation", "experts")
STEPS = 20
RAMPS = Ramps(GeometricRamp(0.25, 13), LinearRamp(0.25, 15))
SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 2, "dropout": 0.0}
# A bias of keys has no gradient but rounding, as softmax does not see it; Adam's usual eps makes whole steps of that.
STEADY_ADAMW = partial(adamw, eps=1e-6)
WORDS = ["ein", "kleiner", "Hund", "läuft", "über", "die", "Wiese", "und", "bellt", "laut", "heute"]


def write_texts(folder: Path) -> None:
    """A text with words of unequal lengths, and pairs of sentences of unequal lengths; no split is a multiple of two."""
    (folder / "text.txt").write_text(" ".join(WORDS[i * i % 11][: 2 + i % 7] for i in range(1460)))
    for name, count in {"train": 23, "validation": 5, "test": 7}.items():
        pairs = [[WORDS[(i + 3 * k) % 11] for k in range(2 + i % 6)] for i in range(count)]
        lines = [f"{' '.join(words)}\t{' '.join(words[::-1]).upper()}\n" for words in pairs]
        (folder / f"{name}.tsv").write_text("".join(lines))


def make(kind: str, folder: Path, halves: int, optimizer: Any = STEADY_ADAMW) -> tuple[DataModule, Task]:
    """Data whose batches are those of a step in `halves` parts, and a task on them; the same weights each time."""
    given = {"cache": str(folder / "cache"), "path": str(folder / "text.txt")}
    schedule = Constant if optimizer is schedule_free else partial(Cosine, warmup_steps=3)
    optimization = Optimization(partial(optimizer, lr=1e-2), schedule)
    data: DataModule
    task: Task
    if kind in ("translation", "shared_layers"):
        source = partial(ParallelText, validation_path=folder / "validation.tsv", test_path=folder / "test.tsv")
        data = TranslationData(
            source,
            Character(),
            "de-en",
            batch_tokens=400 // halves,
            max_length=80,
            **given | {"path": str(folder / "train.tsv")},
        )
    elif kind == "masked_lm":
        masking = Masking(0.3, whole_words=True)
        data = MaskedTextData(TextFiles, Character(), masking, context_length=20, batch_size=8 // halves, **given)
    else:
        data = TextData(TextFiles, Character(), context_length=16, batch_size=8 // halves, **given)
    data.setup()
    torch.manual_seed(0)
    widths = data.dims()
    if isinstance(data, TranslationData):
        family = partial(EncoderDecoder, residual=PreNorm) if kind == "translation" else partial(T5, share_layers=True)
        translator = build_part(partial(family, max_length=90, **SIZES), **widths)
        task = Translation(translator, data.vocabulary.special_tokens, num_beams=2, max_extra_length=2)
    elif isinstance(data, MaskedTextData):
        task = MaskedLanguageModelling(Bert(max_length=32, position=RelativeBias, **SIZES, **widths))
    else:
        added: dict[str, Any] = {}
        if kind.startswith("experts"):
            mixture = partial(MixtureOfExperts, num_experts=4, d_expert=16, balance_coefficient=0.1, z_coefficient=0.1)
            mixture = partial(mixture, balance="bias" if kind == "experts_bias" else "loss")
            added = {"feed_forward": mixture, "extra_heads": 1}
        model = GPT(max_length=16, position=ALiBi, tie_embeddings=True, **SIZES, **widths, **added)
        task = CausalLanguageModelling(model, (1, 2), z_loss=0.01 if added else 0.0)
    task.optimization = optimization
    return data, task


class Shares(pl.Callback):
    """How many numbers of the weights and of the optimizer's state this rank has, and how many there are."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        [optimizer] = trainer.optimizers
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim]
        tensors = [*pl_module.parameters(), *state]
        self.mine = sum(getattr(tensor, "_local_tensor", tensor).numel() for tensor in tensors)
        self.all = sum(tensor.numel() for tensor in tensors)


class Losses(pl.Callback):
    """The loss and the gradient's norm of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(pl_module.latest["train/loss"])
            self.norms.append(pl_module.latest["train/gradient_norm"])


def train(
    kind: str,
    folder: Path,
    accumulate_grad_batches: int = 1,
    resume: Path | None = None,
    checkpoints: Path | None = None,
    callbacks: tuple[Any, ...] = (),
    loggers: tuple[Any, ...] = (),
    averaging: Averaging | None = None,
    poison: int | None = None,
    optimizer: Any = STEADY_ADAMW,
    ramps: Ramps | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a task and evaluates it; `devices` and `accumulate_grad_batches` say in how many parts a step's batch comes. Gives what came out."""
    torch.set_num_threads(1)
    defaults: dict[str, Any] = {"max_steps": STEPS, "device": "cpu", "val_check_interval": 10, "precision": "32"}
    defaults["log_every_n_steps"] = 1
    chosen = TrainerSettings(**defaults | {"accumulate_grad_batches": accumulate_grad_batches} | settings)
    data, task = make(kind, folder, accumulate_grad_batches * chosen.devices, optimizer)
    task.optimization.averaging = averaging or Averaging()
    data.ramps = ramps or Ramps()
    if poison is not None:
        spoil(task, poison)
    losses = Losses()
    watchers = [losses, *callbacks, *([] if checkpoints is None else [Checkpoints(checkpoints, 3600.0)])]
    trainer = build_trainer(chosen, resolve(chosen.precision, chosen.device_type), loggers, watchers, folder)
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    validated = {name: value for name, value in task.latest.items() if name.startswith("val/")}
    final = task.evaluate(data, "test")
    return {
        "losses": losses.losses,
        "norms": losses.norms,
        "tokens": task.tokens,
        "validated": validated,
        "final": final,
        "outputs": task.outputs,
        "weights": whole_weights(task),
    }


def spoil(task: Task, step: int) -> None:
    """Makes an output of the second layer infinite at a step (from 0), on the second of two ranks alone."""

    def after(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if task.global_step == step and task.global_rank == 1:
            return torch.full_like(output, torch.inf) + output
        return output

    stack: Any = task.model.stack  # of GPT
    stack.layers[1].register_forward_hook(after)


def train_together(folder: Path, path: list[str]) -> None:
    """All that two ranks train in the tests, in one pair of processes; each writes what came out."""
    sys.path[:] = path
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp2"):
        both = partial(train, folder=folder, devices=2, strategy=strategy)
        shares = Shares()
        found[strategy] = {}
        for kind in TASKS:
            loggers = (JsonLines(folder / f"{strategy}-{kind}.jsonl"),)
            found[strategy][kind] = both(kind, callbacks=(Diagnostics(7), shares), loggers=loggers)
        found[strategy]["share"] = shares.mine / shares.all
        try:
            both("causal_lm", poison=3)
        except Diverged as error:
            found[strategy]["diverged"] = (error.step, error.layer)
    sharded = partial(train, folder=folder, devices=2, strategy="fsdp2")
    for name, given in RESUMED.items():
        straight = sharded(checkpoints=folder / name, **given())
        resumed = sharded(resume=folder / name / "step=10.ckpt", **given())
        from_one = sharded(resume=folder / f"{name}-of-one" / "step=10.ckpt", **given())
        found[name] = {"straight": straight, "resumed": resumed, "from_one": from_one}
    torch.save(found, folder / f"rank{os.environ['RANK']}.pt")


# What a checkpoint has to keep in ways of their own: averages, weights that are not those to evaluate, two optimizers in one, weights that
# have two names.
RESUMED: dict[str, Any] = {
    "ema": lambda: {"kind": "causal_lm", "averaging": EMA(0.9)},
    "schedule_free": lambda: {"kind": "causal_lm", "optimizer": schedule_free},
    "ramps": lambda: {"kind": "causal_lm", "ramps": RAMPS},
    "muon": lambda: {"kind": "causal_lm", "optimizer": muon},
    "shared_layers": lambda: {"kind": "shared_layers"},
}


def run_together(folder: Path) -> None:
    """`train_together` on each of two ranks."""
    for kind in TASKS:
        make(kind, folder, 1)  # the caches, which one process makes
    with ranks_from_server():
        ranks.start(TrainerSettings(devices=2, device="cpu"), train_together, folder, sys.path)


def whole_weights(task: Task) -> dict[str, torch.Tensor]:
    """The weights as plain tensors, on every rank."""
    state = task.state_dict()
    return {name: getattr(value, "full_tensor", lambda v=value: v)().detach().clone() for name, value in state.items()}


def assert_same_numbers(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Losses to 1e-6, weights to 1e-5, and every example evaluated once."""
    assert len(one["losses"]) == STEPS
    assert one["tokens"] == other["tokens"]
    assert one["losses"] == pytest.approx(other["losses"], abs=1e-6)
    assert one["norms"] == pytest.approx(other["norms"], abs=1e-5)
    for name, value in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], value, atol=1e-5, rtol=0)
    for figures in ("validated", "final"):
        assert one[figures] == pytest.approx(other[figures], rel=1e-5, abs=1e-5)
    assert one["outputs"] == other["outputs"]
