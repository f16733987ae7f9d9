"""Batches before they are asked for: made on a thread, in memory that a GPU copies from while the host goes on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Full, Queue

import torch
from torch import Tensor

from attnlab.data.order import Batch, Endless, TrainingLoader

Position = dict[str, int]
Made = tuple[Batch, Position] | BaseException
PATIENCE = 0.05  # seconds until a thread whose batches nobody takes looks whether it shall end


class BatchesAhead(Endless):
    """The batches of a loader after `ready`, up to `depth` of them made on a thread before they are asked for.

    Its position is that after the batch given out last, whatever has been made. The thread begins with the first batch;
    it ends by `close`, with this object, or by an error, which is raised where its batch would have come.
    """

    def __init__(self, loader: TrainingLoader, ready: Callable[[Batch], Batch], depth: int = 2) -> None:
        self._made: Queue[Made] = Queue(depth)
        self._ended = threading.Event()
        self._position = loader.position()
        # Nothing that the thread holds is this object, which nobody else would ever let go of.
        given = (loader, ready, self._made, self._ended)
        self._thread = threading.Thread(target=_make, args=given, name="batches ahead", daemon=True)
        weakref.finalize(self, self._ended.set)

    def __next__(self) -> Batch:
        assert not self._ended.is_set(), "these batches were closed"
        if self._thread.ident is None:
            self._thread.start()
        made = self._made.get()
        if isinstance(made, BaseException):
            self.close()
            raise made
        batch, self._position = made
        return batch

    def position(self) -> Position:
        """The order's position after the batch given out last."""
        return self._position

    def close(self) -> None:
        """Ends the thread and waits for its end; batches that were made and not given out are lost."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()


def _make(loader: TrainingLoader, ready: Callable[[Batch], Batch], made: Queue[Made], ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            one: Made = (ready(next(loader)), loader.position())
        except BaseException as error:
            one = error
        while not ended.is_set():
            try:
                made.put(one, timeout=PATIENCE)
                break
            except Full:
                continue
        if isinstance(one, BaseException):
            return


def pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch in page-locked memory for this GPU, from where copies to it need not wait."""
    with torch.cuda.device(device):
        return {name: x.pin_memory() if isinstance(x, Tensor) else x for name, x in batch.items()}
