"""Measures this checkout: its data, its studies, its parity with transformers and its statistics, as numbers to the last bit."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("data", "studies", "parity", "statistics")
Found = tuple[dict[str, Any], dict[str, str]]  # columns of numbers by item, and what is left out with its reason


def data(scratch: Path, folder: Path | None, match: list[str]) -> Found:
    """Every choice in conf/data."""
    from measures import batches

    return batches.measure(ROOT, scratch, folder, match)


def studies(scratch: Path, folder: Path | None, match: list[str]) -> Found:
    """The first cell of every study."""
    from measures import studies as trained

    return trained.measure(ROOT, scratch, folder, match)


def parity(scratch: Path, folder: Path | None, match: list[str]) -> Found:
    """The differences between attnlab and transformers that experiments/parity/measure.py finds, before they are rounded."""
    import runpy

    import torch

    torch.set_num_threads(1)
    names = runpy.run_path(str(ROOT / "experiments" / "parity" / "measure.py"))
    found = {}
    for case in names["CASES"]:
        values = names["measure"](case).items()
        found[case.name] = {check: ["-" if value is None else float(value).hex()] for check, value in values}
    return found, {}


def statistics(scratch: Path, folder: Path | None, match: list[str]) -> Found:
    """What a comparison says of stored studies."""
    from measures import stored

    return stored.measure(scratch), {}


MEASURES: dict[str, Callable[[Path, Path | None, list[str]], Found]] = {
    "data": data,
    "studies": studies,
    "parity": parity,
    "statistics": statistics,
}


def main() -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="the file of numbers")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; give it several times for several")
    parser.add_argument(
        "--data-dir", type=Path, help="a folder with published data: multi30k, sst2, tinyshakespeare, wnut17, xquad"
    )
    parser.add_argument(
        "--match", action="append", default=[], help="of data and studies only those with this in their names"
    )
    arguments = parser.parse_args()
    out, folder = arguments.out.resolve(), arguments.data_dir and arguments.data_dir.resolve()
    found: dict[str, Any] = {"machine": machine(), "parts": {}, "left_out": {}}
    use_one_thread_and_this_checkout()
    with tempfile.TemporaryDirectory(prefix="attnlab-frozen-") as name:
        scratch = Path(name).resolve()
        own_cache(scratch)
        os.chdir(scratch)
        for part in arguments.only or PARTS:
            started, used = time.monotonic(), sum(os.times()[:4])
            found["parts"][part], found["left_out"][part] = MEASURES[part](scratch, folder, arguments.match)
            seconds = f"{time.monotonic() - started:.0f} s, {sum(os.times()[:4]) - used:.0f} s of processor time"
            print(f"{part}: {seconds}", file=sys.stderr, flush=True)
            out.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n")
        os.chdir(ROOT)
    return 0


def use_one_thread_and_this_checkout() -> None:
    """Before anything is imported."""
    for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    os.environ |= {"RAYON_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "src"), str(ROOT)]


def own_cache(scratch: Path) -> None:
    """A new cache, so that everything is prepared by this checkout; only what is pinned by its sha256 comes from the usual one."""
    usual = Path(os.environ.get("ATTNLAB_CACHE") or "~/.cache/attnlab").expanduser() / "downloads"
    usual.mkdir(parents=True, exist_ok=True)
    (scratch / "cache").mkdir()
    (scratch / "cache" / "downloads").symlink_to(usual)
    os.environ |= {"ATTNLAB_CACHE": str(scratch / "cache"), "HF_HOME": str(scratch / "hub"), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)


def machine() -> dict[str, str]:
    """Where the numbers are from: they are comparable on one machine with one set of libraries alone."""
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("torch", "numpy", "tokenizers", "lightning", "transformers", "scipy")}
    return {"system": platform.platform(), "processor": platform.processor() or platform.machine(), **libraries}


if __name__ == "__main__":
    sys.exit(main())
