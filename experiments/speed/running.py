"""What is measured of whole processes: start-up, the first step of a run, the next run of a process, and a sweep.

A sweep is as quick as its machine where its clock is what its runs compute, over the cores: `of_its_runs` compares both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL = ["model.num_layers=1", "model.d_model=32", "data.context_length=32", "data.batch_size=8", "trainer.threads=1"]
SMALL += ["data=text", "data.path=text.txt", "data.max_validation_tokens=256", "trainer.precision='32'", "progress=off"]
# Says when a run has taken its first step, and when the next one begins.
CHILD = """
import sys, time
from attnlab.cli.main import main
from attnlab.training.task import Task
step = Task.optimizer_step
def stepped(self, *given, **named):
    step(self, *given, **named)
    print("step", time.time(), flush=True)
Task.optimizer_step = stepped
for seed in (0, 1):
    print("begin", time.time(), flush=True)
    main(["train", *sys.argv[1:], "trainer.max_steps=1", f"seed={seed}"])
"""
STUDY = """
question: How quick is a sweep?
shared: {shared}
factors: {{position: [sinusoidal, rotary, alibi]}}
baseline: {{position: alibi}}
seeds: {seeds}
metric: {{name: test/loss@1x, better: lower}}
"""


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder with a text, and a cache of its own."""
    with tempfile.TemporaryDirectory() as name:
        text = "".join(f"{number} is followed by {number + 1}, and then there are more.\n" for number in range(4000))
        Path(name, "text.txt").write_text(text)
        yield Path(name)


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "ATTNLAB_CACHE": str(folder / "cache"), "WANDB_MODE": "disabled"}


def starts(rounds: int) -> dict[str, list[float]]:
    """Seconds of processes in turn, and of the first steps of two runs of one, by what was done."""
    attnlab = str(Path(sys.executable).with_name("attnlab"))
    commands = {
        "import torch, lightning": [sys.executable, "-c", "import torch, lightning"],
        "python -c pass": [sys.executable, "-c", "pass"],
        "import attnlab": [sys.executable, "-c", "import attnlab"],
        "attnlab --help": [attnlab, "--help"],
    }
    found: dict[str, list[float]] = {}
    with _folder() as folder:
        for number in range(rounds + 1):  # the first one fills caches
            taken = {name: _seconds(lambda words=words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))
                     for name, words in commands.items()}  # fmt: skip
            taken |= _first_steps(folder, number)
            for name, seconds in taken.items() if number else ():
                found.setdefault(name, []).append(seconds)
    return found


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _first_steps(folder: Path, number: int) -> dict[str, float]:
    started = time.time()
    words = [sys.executable, "-c", CHILD, *SMALL, f"study.name=round_{number}"]
    done = subprocess.run(words, cwd=folder, env=_environ(folder), capture_output=True, text=True, check=True)
    events = [line.split() for line in done.stdout.splitlines() if line.startswith(("begin ", "step "))]
    (_, _), (_, first), (_, again), (_, second) = events
    return {
        "first step of a process": float(first) - started,
        "first step of its next run": float(second) - float(again),
    }


def sweep(runs: int, steps: int) -> dict[str, float]:
    """Seconds of a sweep of so many small runs by the clock, and of its runs: training, and all that they did."""
    with _folder() as folder:
        (folder / "quick").mkdir()
        shared = json.dumps([*SMALL[:-1], f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"])
        (folder / "quick/study.yaml").write_text(STUDY.format(shared=shared, seeds=max(1, runs // 3)))
        attnlab, environ = str(Path(sys.executable).with_name("attnlab")), _environ(folder)
        subprocess.run(
            [attnlab, "sweep", "quick", "study.seeds=1"], cwd=folder, env=environ, check=True, capture_output=True
        )
        started = time.perf_counter()
        words = [attnlab, "sweep", "quick", "study.name=again"]
        subprocess.run(words, cwd=folder, env=environ, check=True, capture_output=True)
        clock = time.perf_counter() - started
        statuses = [json.loads(path.read_text()) for path in (folder / "runs/again").glob("*/seed=*/status.json")]
    assert len(statuses) == 3 * max(1, runs // 3)
    return {"clock": clock, "training": sum(one["seconds"] for one in statuses), "runs": len(statuses)}
