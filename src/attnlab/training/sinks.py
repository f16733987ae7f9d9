"""A view of a run as a Lightning logger that cannot fail: its first error is told, and it stays silent from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from attnlab.training.media import Picture, Table


class Sink(Logger):
    """Hands values to `log(values, step)`, tables and pictures to `show(name, item, step)`; `flush` is called when a training ends; `say` is told of the first error."""

    def __init__(
        self,
        name: str,
        log: Callable[[Mapping[str, float], int | None], None],
        show: Callable[[str, Table | Picture, int], None],
        flush: Callable[[], None] | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._name, self._log, self._show, self._flush, self._say = name, log, show, flush, say
        self.broken = False

    @property
    def name(self) -> str:
        """What the view is called."""
        return self._name

    @property
    def version(self) -> str:
        """None is told apart."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration was handed over when the view was opened."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Passes values on."""
        self._try(lambda: self._log(metrics, step))

    def show(self, items: Mapping[str, Table | Picture], step: int) -> None:
        """Passes tables and pictures on, by their names."""
        for name, item in items.items():
            self._try(partial(self._show, name, item, step))

    def finalize(self, status: str) -> None:
        """Flushes."""
        if self._flush is not None:
            self._try(self._flush)

    def _try(self, action: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            action()
        except Exception as error:
            self.broken = True
            self._say(f"{self._name}: {type(error).__name__}: {error}; this run goes on without it")
