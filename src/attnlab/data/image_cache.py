"""Images of a source that is always the same, kept in the cache as arrays, so that the next run need not decode them again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from attnlab.data.cache import cache_root, publish, scratch_folder, writing_to
from attnlab.data.images import Images, ImageSource

FORMAT = 1


def read_images(source: ImageSource, cache: str | Path | None = None) -> dict[str, Images]:
    """The splits of a source; of one that is fetched out of the cache, where they are there. Raises DataError."""
    if not source.fetched:
        return source.read(cache)
    key = hashlib.sha256(json.dumps([FORMAT, source.name, source.version()]).encode()).hexdigest()
    folder = cache_root(cache) / "images" / f"{source.name}-{key[:16]}"
    kept = load(folder)
    if kept is None:
        kept = source.read(cache)
        with scratch_folder(folder) as scratch, writing_to(folder):
            save(kept, scratch)
            publish(scratch, folder, lambda there: load(there) is not None)
    return kept


def save(splits: dict[str, Images], folder: Path) -> None:
    """Writes pixels and classes of each split."""
    for name, part in splits.items():
        np.savez(folder / f"{name}.npz", pixels=part.pixels, labels=np.array(part.labels, dtype=np.str_))
    (folder / "splits.json").write_text(json.dumps(list(splits)))


def load(folder: Path) -> dict[str, Images] | None:
    """What `save` wrote, or None where it is not there, or not whole."""
    try:
        splits = {}
        for name in json.loads((folder / "splits.json").read_text()):
            with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
                splits[name] = Images(arrays["pixels"], arrays["labels"].tolist())
        return splits
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
