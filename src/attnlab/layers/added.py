"""What a training adds to the loss of its task: parts of a model and the task itself leave it during a forward pass,
where somebody collects it.

Nobody collects in an evaluation, nor when activations are computed once more in a backward pass: nothing is left then.
Legend: B batch, N any number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn


class Addition(ABC):
    """What a part leaves of one forward pass. `batch`: what the task was given, for what the part itself is not told,
    such as where targets are padding.
    """

    part: nn.Module

    @abstractmethod
    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the names that they are reported under, with gradient, each row's mean over its real terms, (B)."""

    def counts(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """What the part is told of a step once it is over, summed over its passes and ranks (`after_step`), (N)."""
        return None


@dataclass
class Added:
    """What was left. sums: losses that are summed over target tokens already, by name."""

    additions: list[Addition] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.additions or self.sums)

    def add(self, name: str, loss: Tensor) -> None:
        self.sums[name] = self.sums[name] + loss if name in self.sums else loss


_collecting: ContextVar[Added | None] = ContextVar("added", default=None)


@contextmanager
def collecting() -> Iterator[Added]:
    """Inside, what is added to the loss is kept in what this gives."""
    token = _collecting.set(added := Added())
    try:
        yield added
    finally:
        _collecting.reset(token)


def collected() -> Added | None:
    """Where to leave what is added; None where nobody collects."""
    return _collecting.get()
