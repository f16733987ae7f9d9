"""The first cell of every study after a few steps: what metrics.jsonl and status.json say, and the weights, to the last bit."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measures import command
from measures.choices import choices

STEPS = 20
SHORT = [
    f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}", "trainer.log_every_n_steps=1", "trainer.threads=1",
    'trainer.precision="32"', "trainer.device=cpu", "progress=off",
]  # fmt: skip
WARM_UP = "schedule.warmup_steps"
# What keeps a study's first cell at about a minute.
SMALLER = {
    "bottleneck": ["task.max_extra_length=10"],
    "home_assistant": ["model.d_model=48", "data.batch_tokens=512", "task.num_beams=2", "task.max_extra_length=2"],
    "multi30k": [
        "model.d_model=48",
        "model.d_ff=192",
        "data.batch_tokens=512",
        "task.num_beams=2",
        "task.max_extra_length=2",
    ],
    "translation_position": ["task.max_extra_length=10"],
}
ALSO = {"pretrain_finetune": ["pretrained"]}  # cells that start from another study's weights
TIMED = ("seconds",)
Columns = dict[str, list[str]]


def measure(
    root: Path, scratch: Path, data: Path | None, match: list[str]
) -> tuple[dict[str, Columns], dict[str, str]]:
    """Every study's columns, and what is left out with its reason; studies that others need come first."""
    command.preload()
    known = {choice.name: choice for choice in choices("", str(data)) if choice.own}
    found: dict[str, Columns] = {}
    left_out: dict[str, str] = {}
    folders = {path.parent.name: path.parent for path in sorted((root / "experiments").glob("*/study.yaml"))}
    folders = {name: path for name, path in folders.items() if not match or any(text in name for text in match)}
    for study in sorted(folders, key=lambda name: (any("needs:" in line for line in lines(folders[name])), name)):
        started = time.monotonic()
        printed = command.attnlab(scratch, "sweep", str(folders[study]), "--cfg", f"runs_dir={scratch / 'planned'}")
        jobs = [shlex.split(line)[2:] for line in printed.splitlines() if line.startswith("attnlab train ")]
        jobs = [words for words in jobs if f"study.name={study}" in words]
        planned = time.monotonic() - started
        choice = known.get(next((w.removeprefix("data=") for w in jobs[0] if w.startswith("data=")), ""))
        if choice and not (data and (data / choice.own).exists()):
            left_out[study] = f"{choice.own} is not in --data-dir"
            continue
        also = {f"{study}, {name}": next(w for w in jobs if f"cell={name}" in w) for name in ALSO.get(study, [])}
        for label, words in {study: jobs[0], **also}.items():
            started = time.monotonic()
            found[label] = trained(scratch, study, [*words, *(choice.words if choice else [])])
            seconds = f"{planned:.1f} s to plan, {time.monotonic() - started:.1f} s to train"
            print(f"studies {label}: {seconds}", file=sys.stderr, flush=True)
    return found, left_out


def lines(folder: Path) -> Iterable[str]:
    return (folder / "study.yaml").read_text().splitlines()


def trained(scratch: Path, study: str, words: list[str]) -> Columns:
    """The columns of one run. A warm-up that is longer than the training is cut to a quarter of it."""
    before = set((scratch / "runs").rglob("metrics.jsonl"))
    more = [f"runs_dir={scratch / 'runs'}", *SHORT, *SMALLER.get(study, [])]
    if any(float(w.split("=")[1]) > STEPS for w in words if w.startswith(f"{WARM_UP}=") and w.split("=")[1] != "null"):
        more.append(f"{WARM_UP}={STEPS // 4}")
    replaced = {word.split("=", 1)[0] for word in more}
    command.attnlab(scratch, "train", *(w for w in words if w.split("=", 1)[0] not in replaced), *more)
    [metrics] = set((scratch / "runs").rglob("metrics.jsonl")) - before
    return columns_of(metrics.parent)


# --- what this tool knows of a run's directory


def columns_of(run: Path) -> Columns:
    """A column a metric: step and value of each line that has it; then the last figures, and the weights."""
    found: Columns = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in {"tokens": line["tokens"], **line["values"]}.items():
            if name not in TIMED:
                found.setdefault(name, []).append(f"{line['step']} {exact(value)}")
    status = json.loads((run / "status.json").read_text())
    found |= {f"final {name}": [exact(value)] for name, value in status["final"].items() if name not in TIMED}
    found |= {f"best {name}": [exact(value)] for name, value in (status["best"] or {}).items() if name != "metric"}
    found["unavailable"] = sorted(status["unavailable"])
    return found | {"weights": weights(run)}


def exact(value: Any) -> str:
    return float(value).hex() if isinstance(value, int | float) else repr(value)


def weights(run: Path) -> list[str]:
    """The digest of each tensor of the last checkpoint, with its name."""
    import torch

    [last] = run.rglob("last.ckpt")
    state = torch.load(last, map_location="cpu", weights_only=False)["state_dict"]
    digests = {name: hashlib.sha256(t.detach().contiguous().view(-1).numpy().tobytes()) for name, t in state.items()}
    return [f"{name} {found.hexdigest()[:24]}" for name, found in digests.items()]
