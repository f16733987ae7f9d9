"""The images of a split that a trained model of images and texts finds closest to a phrase.

Legend: N images, B images of a batch, C channels, Y and X rows and columns of pixels, T tokens, E embedding's width.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from attnlab.config import UsageError
from attnlab.data import ImageTextData
from attnlab.ranges import must_be
from attnlab.runs.trained import load_run

BATCH = 256  # images that are embedded at once
MOST = 200  # images that a picture can show


@runtime_checkable
class EmbedsBoth(Protocol):
    """A model whose embeddings of images and of texts, each of length 1, are compared by their products."""

    encode_images: Callable[[Tensor], Tensor]  # (B, C, Y, X) to (B, E)
    encode_texts: Callable[[Tensor, Tensor], Tensor]  # tokens (B, T) and where they are (B, T) to (B, E)


@dataclass(frozen=True)
class Hit:
    """An image with its caption (the first, where it has several) and its cosine with the phrase."""

    score: float
    caption: str
    pixels_CYX: np.ndarray


@dataclass(frozen=True)
class Search:
    """The images closest to a phrase, best first, out of so many; what the model has not seen of the phrase is cut."""

    hits: list[Hit]
    candidates: int
    is_cut: bool


def search(directory: Path, checkpoint: str, phrase: str, split: str, top: int) -> Search:
    """The `top` images of a split for a phrase, each once. Raises: UsageError for a run that cannot be searched."""
    if not phrase.strip():
        raise UsageError("the phrase is empty; say what to look for, such as 'a lock with a plus'")
    if not 1 <= top <= MOST:
        raise UsageError(must_be("--top", f"from 1 to {MOST}", top))
    parts, task = load_run(directory, checkpoint)
    data, model = parts.data, task.model
    if not isinstance(data, ImageTextData) or not isinstance(model, EmbedsBoth):
        kind = type(model).__name__
        raise UsageError(
            f"{directory}: {kind} finds no images for a text; give a run of one that does, such as model=clip"
        )
    part = data.split(split)
    _, rows_N = np.unique(part.image_of, return_index=True)
    with torch.inference_mode():
        batches = (data.images_of(split, rows_B) for rows_B in np.split(rows_N, range(BATCH, len(rows_N), BATCH)))
        images_NE = torch.cat([model.encode_images(images_BCYX) for images_BCYX in batches])
        [phrase_E] = model.encode_texts(*data.encode_texts([phrase]))
        scores_N = (images_NE.float() @ phrase_E.float()).cpu()
    best = torch.sort(scores_N, descending=True, stable=True).indices[:top].tolist()
    hits = [Hit(float(scores_N[n]), part.captions[rows_N[n]], part.pixels[rows_N[n]]) for n in best]
    return Search(hits, len(rows_N), bool(data.texts_cut([phrase])))
