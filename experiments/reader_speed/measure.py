"""How long reading a study of thousands of runs takes, cold and again, and how large and how quick the page of hundreds is.

python experiments/reader_speed/measure.py [--runs 2000] [--lines 500] [--page-runs 500] [--grown 8] [--rounds 3]

Cold is a new reader, with the files in the system's cache as they are after they were written; the start of Python and its imports is not counted. The
curves are read each time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from attnlab.analysis import StudyReader, compare
from attnlab.config.compose import ConfigSpace
from attnlab.report.page import write_report

SEEDS = 4
POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "relative_bias"]
MEASURES = ("loss", "bits_per_byte", "perplexity", "word_perplexity")
FINAL = [f"test/{kind}{name}@{k}x" for kind in ("", "sliding_") for name in MEASURES for k in (1, 2, 4, 8)]
BROWSER = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def make_study(root: Path, runs: int, lines: int) -> Path:
    """A study of so many runs, five positions by as many learning rates as that takes, by four seeds; each with so many lines of metrics."""
    with ConfigSpace() as space:
        config = OmegaConf.to_container(space.compose(["model=gpt", "data=kjv"]).config, resolve=False)
    rates = -(-runs // (SEEDS * len(POSITIONS)))
    cells = [
        {"position": position, "optimizer.lr": f"{number + 1}e-4"} for number in range(rates) for position in POSITIONS
    ]
    names = [",".join(f"{key}={value}" for key, value in cell.items()) for cell in cells]
    plan = {"study": root.name, "question": "How fast is reading?", "baseline": cells[0], "seeds": list(range(SEEDS))}
    plan["factors"] = {"position": POSITIONS, "optimizer.lr": [f"{number + 1}e-4" for number in range(rates)]}
    plan["cells"] = [
        {"name": name, "choices": cell, "overrides": [], "skip": None} for name, cell in zip(names, cells, strict=True)
    ]
    plan["metric"] = {"name": "test/loss@8x", "better": "lower", "margin": 0.02}
    root.mkdir(parents=True)
    (root / "plan.json").write_text(json.dumps(plan, indent=1))
    noise = np.random.default_rng(0)
    places = [(number, seed) for number in range(len(cells)) for seed in range(SEEDS)][:runs]
    for number, seed in places:
        make_run(root / names[number] / f"seed={seed}", names[number], cells[number], seed, config, lines, noise)
    return root


def make_run(
    directory: Path,
    name: str,
    choices: dict[str, Any],
    seed: int,
    config: Any,
    lines: int,
    noise: np.random.Generator,
) -> None:
    """A finished run, with all files that its reading touches."""
    (directory / "attempts").mkdir(parents=True)
    (directory / "attempts" / "1.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "process_start": "1"}))
    end = 2.2 + 0.2 * POSITIONS.index(choices["position"]) + 0.02 * float(noise.standard_normal())
    record = {"study": directory.parent.parent.name, "cell": choices, "cell_name": name, "seed": seed, "config": config}
    record |= {"git": {"commit": "0" * 40, "dirty": False}, "precision": {"used": "32"}, "device": {"type": "cpu"}}
    record |= {"parameters": {"total": 150_000, "non_embedding": 145_000}, "flops_per_token": 900_000}
    (directory / "run.json").write_text(json.dumps(record, indent=1))
    logged = list(metrics(end, lines, noise))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    status = {"state": "finished", "attempt": 1, "max_steps": logged[-1]["step"], "error": None, "unavailable": {}}
    status |= {key: logged[-1][key] for key in ("step", "tokens", "seconds")} | {"final": logged[-1]["values"]}
    (directory / "status.json").write_text(json.dumps(status, indent=1))


def metrics(end: float, lines: int, noise: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Nine lines of training to one of validation, and the figures of the test at the end."""
    draws = noise.standard_normal(lines).tolist()
    for number, draw in enumerate(draws, 1):
        loss = end + 2 * float(np.exp(-5 * number / lines)) + 0.01 * draw
        if number == lines:
            values = {f"val/{name}": loss for name in MEASURES} | dict.fromkeys(FINAL, end)
        elif number % 10 == 0:
            values = {f"val/{name}": loss + 0.02 for name in MEASURES}
        else:
            values = {"train/loss": loss, "train/lr": 1e-3 / number, "train/gradient_norm": 1 + 0.1 * draw}
        step = 10 * (number - (number % 10 == 0))
        yield {
            "step": step,
            "tokens": 2048 * step,
            "seconds": 0.03 * step + 1e-3 * abs(draw),
            "attempt": 1,
            "values": values,
        }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, seconds of processor time)."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - worked


def grow(root: Path, number: int, count: int) -> None:
    """A line more in the curves of so many runs, and a new status, as of runs that train."""
    found = sorted(root.glob("*/seed=*"))
    for directory in found[:: max(1, len(found) // count)][:count]:
        line = {
            "step": 10**6 + number,
            "tokens": 1,
            "seconds": 1.0,
            "attempt": 1,
            "values": {"train/loss": 2.0 + number},
        }
        with open(directory / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        new = directory / "new"
        new.write_text((directory / "status.json").read_text())
        new.replace(directory / "status.json")


def reading(root: Path, grown: int, rounds: int) -> None:
    """Prints the seconds of reading a study, cold, again, and again after some runs have grown."""
    cold: list[tuple[float, float]] = []
    again: list[tuple[float, float]] = []
    after: list[tuple[float, float]] = []
    for number in range(rounds):
        reader = StudyReader(root)
        cold.append(timed(lambda reader=reader: reader.read().curves))
        time.sleep(2.1)  # what was written just now is looked at twice
        reader.read()
        again.append(timed(lambda reader=reader: reader.read().curves))
        grow(root, number, grown)
        after.append(timed(lambda reader=reader: reader.read().curves))
    height, width = reader.read().curves.shape
    print(f"{len(reader.read().runs)} runs, curves of {height} rows and {width} columns")
    for name, times in (("cold", cold), ("again", again), (f"again, {grown} runs having grown", after)):
        seconds, worked = zip(*times, strict=True)
        print(
            f"{name}: median {statistics.median(seconds):.3f} s, at most {max(seconds):.3f} s; "
            f"processor time {statistics.median(worked):.3f} s"
        )
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    print(f"most memory held: {kilobytes / 1e6:.2f} GB")


def page(root: Path, rounds: int) -> None:
    """Prints the size of a study's page, and the time until it answers in a headless Chromium."""
    study = StudyReader(root).read()
    began = time.perf_counter()
    path = write_report(compare(study), root / "report.html")
    print(f"page of {len(study.runs)} runs: {path.stat().st_size / 1e6:.2f} MB in {time.perf_counter() - began:.1f} s")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("time to interactive: not measured, Playwright is not installed (pip install playwright)")
        return
    if browser is None:
        print("time to interactive: not measured, Chromium is not installed (Debian: apt-get install chromium)")
        return
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=BROWSER)
        seconds = [time_to_interactive(chromium, path) for _ in range(rounds)]
        chromium.close()
    print(f"time to interactive: median {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")


def time_to_interactive(chromium: Any, path: Path) -> float:
    """Seconds from the start of the navigation until everything has loaded and the page's thread is idle: a click would be answered at once."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(path.as_uri(), wait_until="load")
    milliseconds = opened.evaluate("new Promise(done => requestIdleCallback(() => done(performance.now())))")
    opened.close()
    return float(milliseconds) / 1000


def main() -> None:
    """Makes the two studies and prints what reading and the page cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--page-runs", type=int, default=500)
    parser.add_argument("--grown", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = make_study(Path(name, "large"), arguments.runs, arguments.lines)
        reading(root, arguments.grown, arguments.rounds)
        if arguments.page_runs:
            page(make_study(Path(name, "small"), arguments.page_runs, arguments.lines), arguments.rounds)


if __name__ == "__main__":
    main()
