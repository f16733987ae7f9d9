"""Images of a source that is always the same, kept in the cache as arrays, so that the next run need not decode them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from attnlab.data.cache import cache_root, kept, key_of
from attnlab.data.images import Images, ImageSource

FORMAT = 1


def read_images(source: ImageSource, cache: str | Path | None = None) -> dict[str, Images]:
    """The splits of a source; of one that is fetched out of the cache, where they are there. Raises DataError."""
    if not source.fetched:
        return source.read(cache)
    folder = cache_root(cache) / "images" / f"{source.name}-{key_of([FORMAT, source.name, source.version()])}"
    return kept(folder, lambda scratch: save(source.read(cache), scratch), load)


def save(splits: dict[str, Images], folder: Path) -> None:
    """Writes pixels and classes of each split."""
    for name, part in splits.items():
        np.savez(folder / f"{name}.npz", pixels=part.pixels, labels=np.array(part.labels, dtype=np.str_))
    (folder / "splits.json").write_text(json.dumps(list(splits)))


def load(folder: Path) -> dict[str, Images]:
    """What `save` wrote."""
    splits = {}
    for name in json.loads((folder / "splits.json").read_text()):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            splits[name] = Images(arrays["pixels"], arrays["labels"].tolist())
    return splits
