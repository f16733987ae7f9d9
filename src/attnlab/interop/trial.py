"""
A written folder on trial: transformers loads it, and gives what the model here gives. Legend: B batch, T length, S
source length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.interop.fields import CannotConvert
from attnlab.interop.files import read_config
from attnlab.interop.heads import Head
from attnlab.models.heads import TokenClassifier

TOLERANCE = 1e-4  # relative to the largest logit, where that is above 1: fp32 in another order
Given = tuple[Tensor, ...]  # tokens (1, T); source (1, S) and target (1, T); or images (B, C, Y, X)


def tokenizer_there(folder: Path) -> Any:
    """The tokenizer of a folder, as transformers loads it. Raises CannotConvert where it does not."""
    from transformers import AutoTokenizer

    return _attempt("its tokenizer", lambda: AutoTokenizer.from_pretrained(folder))


def compare(folder: Path, model: nn.Module, given: Sequence[Given], head: Head | None = None) -> float:
    """
    The largest difference of logits between a folder, loaded by transformers, and the model here that was written
    there.

    Relative to the largest logit where that is above 1. Raises CannotConvert where transformers fails on it, or the
    logits are others.
    """
    import transformers

    name = read_config(folder)["architectures"][0]
    with _silence():
        there = _attempt(name, lambda: getattr(transformers, name).from_pretrained(folder))
        gaps = [_gap(name, there.eval(), model.eval(), tensors, head) for tensors in given]
    if not max(gaps) <= TOLERANCE:  # nan, too
        raise CannotConvert(
            f"transformers.{name} gives other logits than the model here, by {max(gaps):.1e}: nothing was written. Please report this, "
            f"with the run's configuration and the version of transformers ({transformers.__version__})"
        )
    return max(gaps)


@contextmanager
def _silence() -> Iterator[None]:
    """Lets transformers write nothing beside what the command says."""
    from transformers import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _gap(name: str, there: nn.Module, here: nn.Module, given: Given, head: Head | None) -> float:
    with torch.no_grad():
        found = _attempt(
            name, lambda: there(given[0]) if len(given) == 1 else there(given[0], decoder_input_ids=given[1])
        )
        chosen = (torch.ones_like(given[0], dtype=torch.bool),) if isinstance(here, TokenClassifier) else ()
        ours = here(*given, *chosen)
    theirs = found.logits if head is None and hasattr(found, "logits") else _output(found, head)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs.reshape(ours.shape))]
    return max(float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for a, b in pairs)


def _output(found: Any, head: Head | None) -> Any:
    return found.prediction_logits if head is None else head.logits(found)


def _attempt(what: str, action: Any) -> Any:
    try:
        return action()
    except Exception as error:  # whatever the library raises, the folder does not serve its clients
        import transformers

        first = str(error).strip().splitlines()
        raise CannotConvert(
            f"transformers {transformers.__version__} cannot use what was written ({what}: {type(error).__name__}: "
            f"{first[0] if first else 'no message'}): nothing is kept. Please report this, with the run's configuration"
        ) from error
