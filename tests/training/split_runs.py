"""Three real tasks, small enough to train in a test, whose batches can be split over ranks and micro-batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from attnlab.data import Character, MaskedTextData, Masking, ParallelText, TextData, TextFiles, TranslationData
from attnlab.data.module import DataModule
from attnlab.layers import ALiBi, PreNorm, RelativeBias
from attnlab.layers.parts import complete
from attnlab.models import GPT, Bert, EncoderDecoder
from attnlab.tasks import CausalLanguageModelling, MaskedLanguageModelling, Translation
from attnlab.training import Checkpoints, Cosine, TokenTask, TrainerSettings, adamw, build_trainer, resolve

TASKS = ("causal_lm", "masked_lm", "translation")
STEPS = 20
SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 2, "dropout": 0.0}
# A bias of keys has no gradient but rounding, as softmax does not see it; Adam's usual eps makes whole steps of that.
STEADY_ADAMW = partial(adamw, eps=1e-6)
WORDS = "ein kleiner Hund läuft über die Wiese und bellt laut heute".split()


def write_texts(folder: Path) -> None:
    """A text with words of unequal lengths, and pairs of sentences of unequal lengths; no split is a multiple of two."""
    (folder / "text.txt").write_text(" ".join(WORDS[i * i % 11][: 2 + i % 7] for i in range(1280)))
    for name, count in {"train": 23, "validation": 5, "test": 7}.items():
        pairs = [[WORDS[(i + 3 * k) % 11] for k in range(2 + i % 6)] for i in range(count)]
        lines = [f"{' '.join(words)}\t{' '.join(words[::-1]).upper()}\n" for words in pairs]
        (folder / f"{name}.tsv").write_text("".join(lines))


def make(kind: str, folder: Path, halves: int, optimizer: Any = STEADY_ADAMW) -> tuple[DataModule, TokenTask]:
    """Data whose batches are those of a step in `halves` parts, and a task on them; the same weights each time."""
    given = {"cache": str(folder / "cache"), "path": str(folder / "text.txt")}
    schedule = partial(Cosine, warmup_steps=3)
    optimizer = partial(optimizer, lr=1e-2)
    data: DataModule
    if kind == "translation":
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
        data = MaskedTextData(TextFiles, Character(), masking, context=20, batch_size=8 // halves, **given)
    else:
        data = TextData(TextFiles, Character(), context=16, batch_size=8 // halves, **given)
    data.setup()
    torch.manual_seed(0)
    widths = data.widths()
    if isinstance(data, TranslationData):
        translator = complete(partial(EncoderDecoder, max_length=90, residual=PreNorm, **SIZES), **widths)
        return data, Translation(translator, optimizer, schedule, data.vocabulary.marks, beams=2, max_extra=2)
    if isinstance(data, MaskedTextData):
        bert = Bert(max_length=32, position=RelativeBias, **SIZES, **widths)
        return data, MaskedLanguageModelling(bert, optimizer, schedule)
    gpt = GPT(max_length=16, position=ALiBi, tied=True, **SIZES, **widths)
    return data, CausalLanguageModelling(gpt, optimizer, schedule, (1, 2))


class Losses(pl.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(pl_module.latest["train/nats"])


def train(
    kind: str,
    folder: Path,
    accumulate: int = 1,
    resume: Path | None = None,
    checkpoints: Path | None = None,
    callbacks: tuple[Any, ...] = (),
    averaging: Any = None,
    optimizer: Any = STEADY_ADAMW,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a task and evaluates it; `devices` and `accumulate` say in how many parts a step's batch comes. Gives what came out."""
    torch.set_num_threads(1)
    defaults: dict[str, Any] = {"max_steps": STEPS, "device": "cpu", "validate_every": 10, "precision": "32"}
    chosen = TrainerSettings(**defaults | {"accumulate": accumulate} | settings)
    data, task = make(kind, folder, accumulate * chosen.devices, optimizer)
    task.log_every = 1
    if averaging is not None:
        task.averaging = averaging
    losses = Losses()
    watchers = [losses, *([] if checkpoints is None else [Checkpoints(checkpoints, 3600.0)]), *callbacks]
    trainer = build_trainer(chosen, resolve(chosen.precision, "cpu", 16), callbacks=watchers, directory=folder)
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    validated = {name: value for name, value in task.latest.items() if name.startswith("val/")}
    final = task.evaluate(data, "test")
    return {
        "losses": losses.losses,
        "tokens": task.tokens,
        "validated": validated,
        "final": final,
        "outputs": task.outputs,
        "weights": whole_weights(task),
    }


def whole_weights(task: TokenTask) -> dict[str, torch.Tensor]:
    """The weights as plain tensors, on every rank."""
    state = task.state_dict()
    return {name: getattr(value, "full_tensor", lambda v=value: v)().detach().clone() for name, value in state.items()}
