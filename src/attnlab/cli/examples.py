"""What a run leaves to look at when its training is over: samples of what its model gives, and what its heads attend to on one example."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from attnlab.analysis.attention_maps import attention_maps, picture
from attnlab.training import Picture, Table, TokenTask
from attnlab.training.media import ATTENTION, OUTPUTS, SAMPLES, Thumbnail
from attnlab.training.run_directory import CannotWrite, write_bytes, write_json

T = TypeVar("T")
MOST_POSITIONS = 64  # of the example whose attention is shown


@dataclass(frozen=True)
class Examples:
    """Samples of a split, and a picture of the heads; None for what a task or model does not have."""

    split: str = "test"
    samples: Table | None = None
    attention: Picture | None = None

    def leave(self, directory: Path) -> None:
        """Writes outputs/samples.json and outputs/attention.png. Raises CannotWrite."""
        folder, table = directory / OUTPUTS, self.samples
        if self.attention:
            write_bytes(folder / ATTENTION, self.attention.as_png(), durable=False)
        if table or self.attention:
            rows = [[_plain(value) for value in row] for row in table.rows] if table else []
            told: dict[str, Any] = {"split": self.split, "columns": list(table.columns) if table else [], "rows": rows}
            told["attention"] = self.attention.caption if self.attention else None
            write_json(folder / SAMPLES, told, durable=False)


def _plain(value: Any) -> Any:
    return {"png": base64.b64encode(value.png).decode()} if isinstance(value, Thumbnail) else value


def examples_of(task: TokenTask, data: Any, say: Callable[[str], None]) -> Examples:
    """Those of a model that was evaluated. Never fails: what cannot be shown is told to `say`. A model that is split needs all ranks."""
    return Examples("test", _try(lambda: _samples(task, data), say), _try(lambda: _attention(task, data), say))


def _try(make: Callable[[], T], say: Callable[[str], None]) -> T | None:
    try:
        return make()
    except Exception as error:  # an example is not worth a run
        say(f"nothing to show: {type(error).__name__}: {error}")
        return None


def _samples(task: TokenTask, data: Any) -> Table | None:
    with task.evaluating():
        return task.samples(data)


def _attention(task: TokenTask, data: Any) -> Picture | None:
    batch = task.on_device(first_example(data.example_batch()))
    with task.evaluating():
        maps = attention_maps(task.model, lambda: task.all_sums(batch))
    return picture(maps) if maps else None


def first_example(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The first example of a batch, cut off after MOST_POSITIONS positions; one that answers point into stays as long as it is."""
    tensors = {name: value[:1] if isinstance(value, Tensor) else value for name, value in batch.items()}
    if "answers" in batch:
        return tensors
    is_text = {
        name: isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point()
        for name, value in tensors.items()
    }
    return {name: value[:, :MOST_POSITIONS] if is_text[name] else value for name, value in tensors.items()}


def leave_examples(examples: Examples, directory: Path, say: Callable[[str], None]) -> None:
    """Writes them into a run's directory; one that cannot be written is told."""
    try:
        examples.leave(directory)
    except CannotWrite as error:
        say(str(error))
