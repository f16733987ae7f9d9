"""The data of every choice as digests: the facts of each data set, and every field of its first batches."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from measures.choices import Choice, choices
from measures.files import write_files

ALL, SOME = 100, 25  # batches of a choice as it is, and of it with other settings, and on the second of two ranks
Columns = dict[str, list[str]]


def measure(
    root: Path, scratch: Path, data: Path | None, match: list[str]
) -> tuple[dict[str, Columns], dict[str, str]]:
    """The columns of every choice and setting, and what is left out with its reason."""
    write_files(scratch / "files")
    known = choices(str(scratch / "files"), str(data))
    shipped = {path.stem for path in (root / "conf" / "data").glob("*.yaml")}
    found: dict[str, Columns] = {}
    left_out = dict.fromkeys(
        shipped - {c.name for c in known}, "experiments/frozen/measures/choices.py does not know it"
    )
    for choice in known:
        if match and not any(text in choice.name for text in match):
            continue
        if choice.own and not (data and (data / choice.own).exists()):
            left_out[choice.name] = f"{choice.own} is not in --data-dir"
            continue
        for label, words in settings_of(choice):
            started = time.monotonic()
            found[label] = columns_of(root, words, ALL if label == choice.name else SOME)
            print(f"data {label}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return found, left_out


def settings_of(choice: Choice) -> Iterator[tuple[str, list[str]]]:
    """Each setting's name and its words on a command line; the later of two of one field holds."""
    yield choice.name, [f"data={choice.name}", *choice.words]
    for about, words in choice.others.items():
        replaced = {word.split("=", 1)[0] for word in words}
        kept = [word for word in choice.words if word.split("=", 1)[0] not in replaced]
        yield f"{choice.name}, {about}", [f"data={choice.name}", *kept, *words]


# --- what this tool knows of attnlab: conf/train.yaml is composed by Hydra, and `data` of it is a Lightning data module.


def columns_of(root: Path, words: list[str], count: int) -> Columns:
    """Facts, and the fields of training, validation and test batches, for one process and for the second of two."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        module: Any = instantiate(compose("train", words).data, _convert_="all")
    module.prepare_data()
    module.setup()
    found = {f"facts {name}": [repr(value)] for name, value in leaves(module.facts()) if "remarks" not in name}
    found |= fields("train", module.train_dataloader(), count)
    found |= fields("validation", module.val_dataloader(), count)
    found |= fields("test", test_batches(module), SOME)
    module.trainer = SimpleNamespace(global_rank=1, world_size=2, accumulate_grad_batches=2)
    found |= fields("second rank, train", module.train_dataloader(), SOME)
    return found | fields("second rank, validation", module.val_dataloader(), SOME)


def test_batches(module: Any) -> Iterable[Any]:
    """The batches of the test part; of a running text those of windows of the training length."""
    if hasattr(module, "max_validation_tokens") and not hasattr(module, "vocabulary"):
        return module.evaluation_loader("test", module.context_length)  # type: ignore[no-any-return]
    return module.evaluation_loader("test")  # type: ignore[no-any-return]


# --- digests


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in nested mappings, by dotted names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def fields(name: str, batches: Iterable[Any], count: int) -> Columns:
    """The digest of each field of each of the first batches, a column a field."""
    found: Columns = {}
    number = 0
    for number, batch in enumerate(islice(batches, count), start=1):
        for key, value in members(batch):
            found.setdefault(f"{name}.{key}", []).append(f"{number} {digest(value)}")
    return {f"{name} batches": [str(number)], **found}


def members(batch: Any) -> list[tuple[str, Any]]:
    """The fields of a batch, whatever holds them."""
    if isinstance(batch, Mapping):
        return [(str(key), value) for key, value in batch.items()]
    if dataclasses.is_dataclass(batch):
        return [(field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    names = getattr(batch, "_fields", None) or map(str, range(len(batch)))
    return list(zip(names, batch, strict=True))


def digest(value: Any) -> str:
    """Of a tensor its bytes, dtype and shape; of other values their text."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().numpy()
    if isinstance(value, np.ndarray):
        content = f"{value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes()
    else:
        content = repr(plain(value)).encode()
    return hashlib.sha256(content).hexdigest()[:24]


def plain(value: Any) -> Any:
    """Nested values without the names of classes and fields."""
    if isinstance(value, Tensor | np.ndarray):
        return digest(value)
    if isinstance(value, Mapping):
        return [plain(item) for item in value.values()]
    if dataclasses.is_dataclass(value):
        return [plain(item) for _, item in members(value)]
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
