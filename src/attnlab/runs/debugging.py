"""The debug presets: every loop once, one batch until it is known, where the time goes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import Profiler, PyTorchProfiler

from attnlab.data import Ramps
from attnlab.data.order import Endless
from attnlab.parts import Prepared
from attnlab.training.callbacks import Debugging
from attnlab.training.metrics import prefix_of
from attnlab.training.task import Batch, Task, as_task

KNOWN_SHARE = 0.1  # of its first loss that a batch which is known has


class Fast(Debugging):
    """Evaluates one batch of each part, by its loss and what is reported beside it."""

    def evaluate(self, task: Task, data: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for split, loader in (("validation", data.val_dataloader()), ("test", data.evaluation_loader("test"))):
            # Not the task's figures, some of which divide by the size of the whole part.
            means = task.score(islice(loader, 1))
            found |= {f"{prefix_of(split)}/{name}": value for name, value in means.items()}
        return found

    def lines(self, folder: Path) -> list[str]:
        return ["debug=fast: every loop ran once; these figures are of one batch each"]


class Repeated(Endless):
    """One batch without end."""

    def __init__(self, batch: Prepared) -> None:
        self.batch = batch

    def __next__(self) -> Prepared:
        return dict(self.batch)


class Overfit(Debugging, pl.Callback):
    """Trains on one batch, and stops where its loss is a tenth of the first one."""

    def __init__(self) -> None:
        self.callbacks = (self,)
        self.losses: list[float] = []

    def before(self, data: Any) -> None:
        data.ramps = Ramps()  # the batch is a full one
        batch = next(iter(data.train_dataloader()))
        data.train_dataloader = lambda: Repeated(batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        task = as_task(pl_module)
        assert task.sums.last is not None
        self.losses.append(float(task.cross_entropy(task.sums.last)) / max(1, int(task.sums.last.tokens)))
        trainer.should_stop = trainer.should_stop or self.is_known

    @property
    def is_known(self) -> bool:
        return self.losses[-1] <= KNOWN_SHARE * self.losses[0]

    def fault(self) -> str | None:
        if self.is_known:
            return None
        wanted = f"to a tenth, {KNOWN_SHARE * self.losses[0]:.3f}"
        advice = "look for a fault, or give optimizer.lr, trainer.max_steps or model.dropout=0"
        return f"debug=overfit: the batch is NOT known: its loss went {self._fell}, and not {wanted}; {advice}"

    def lines(self, folder: Path) -> list[str]:
        return [f"debug=overfit: the batch is known: its loss fell {self._fell}"]

    @property
    def _fell(self) -> str:
        return f"from {self.losses[0]:.3f} to {self.losses[-1]:.3f} in {len(self.losses)} batches"


class Profile(Debugging):
    """Runs torch's profiler over the training, by Lightning's PyTorchProfiler."""

    def profiler(self, folder: Path) -> Profiler:
        self.made = PyTorchProfiler(dirpath=folder, filename="profile", row_limit=30)
        return self.made

    def lines(self, folder: Path) -> list[str]:
        traces = sorted(path.name for path in folder.glob("*.pt.trace.json"))
        tables = sorted(path.name for path in folder.glob("*profile.txt"))
        return [f"debug=profile: {folder / name}" for name in [*tables, *traces]]


PRESETS: dict[str, type[Debugging]] = {"fast": Fast, "overfit": Overfit, "profile": Profile}
