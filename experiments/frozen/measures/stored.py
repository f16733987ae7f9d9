"""Three stored studies, written as runs leave them on disk, and every number that `attnlab compare` says of them."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measures import command

NUMBER = re.compile(r"(?<![A-Za-z_@])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
FORMS = {
    "terminal": [], "csv": ["--format", "csv"], "markdown": ["--format", "md"], "latex": ["--format", "tex"],
    "runs": ["--runs"], "runs csv": ["--runs", "--format", "csv"],
}  # fmt: skip
CODE = {"commit": "0123456789abcdef", "dirty": False}


def measure(scratch: Path) -> dict[str, dict[str, list[str]]]:
    """Numbers and words of every form, a column each, by study."""
    command.preload()
    os.environ |= {"COLUMNS": "160", "LINES": "60", "NO_COLOR": "1", "TERM": "dumb"}
    studies = {"lengths": lengths, "interactions": interactions, "failures": failures}
    return {name: numbers(scratch, write(scratch / "stored" / name)) for name, write in studies.items()}


def numbers(scratch: Path, study: Path) -> dict[str, list[str]]:
    """What is said of one study."""
    found: dict[str, list[str]] = {}
    for form, words in FORMS.items():
        text = command.attnlab(scratch, "compare", str(study), *words).replace(str(scratch), "")
        found[form] = NUMBER.findall(text)
        found[f"{form}, words"] = [line.strip() for line in NUMBER.sub("#", text).splitlines() if line.strip()]
    return found


# --- what this tool knows of a study on disk


def write_plan(root: Path, factors: dict[str, list[Any]], cells: Sequence[Mapping[str, Any]], **more: Any) -> None:
    root.mkdir(parents=True)
    named = [{"name": named_by(c), "choices": dict(c), "overrides": words(c), "skip": None} for c in cells]
    plan = {
        "study": root.name,
        "question": "Which is best?",
        "factors": factors,
        "cells": named,
        "claims": [],
        "code": CODE,
    }
    plan |= {"shared": ["model=gpt", "data=kjv", "model.num_layers=3"], **more}
    (root / "plan.json").write_text(json.dumps(plan))


def words(choices: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in choices.items()]


def named_by(choices: Mapping[str, Any]) -> str:
    return ",".join(words(choices))


def write_run(
    root: Path, choices: Mapping[str, Any], seed: int, final: Mapping[str, float], parameters: int, /, **ended: Any
) -> None:
    """A run's directory: run.json, metrics.jsonl and status.json."""
    folder = root / named_by(choices) / f"seed={seed}"
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"seed": seed, "model": {"d_model": 64, "num_layers": 3}}
    for key, value in choices.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    run = {
        "format": 2,
        "study": root.name,
        "cell": dict(choices),
        "cell_name": named_by(choices),
        "seed": seed,
        "config": config,
    }
    run |= {"parameters": {"total": parameters, "non_embedding": parameters - 5000}, "flops_per_token": 6 * parameters}
    run |= {
        "git": CODE,
        "precision": {"used": "32"},
        "device": {"type": "cpu"},
        "data": {"unit": "token", "fingerprint": "x"},
    }
    run["command"] = f"attnlab train {' '.join(words(choices))} seed={seed}"
    (folder / "run.json").write_text(json.dumps(run))
    level = final.get("val/loss", 3.0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve(level, seed, parameters)))
    status = {
        "state": "finished",
        "attempt": 0,
        "step": 400,
        "max_steps": 400,
        "tokens": 819_200,
        "seconds": 20.0 + seed,
    }
    status |= {
        "error": None,
        "unavailable": {},
        "final": dict(final),
        "best": {"metric": "val/loss", "value": level, "step": 400},
    }
    (folder / "status.json").write_text(json.dumps(status | ended))


def curve(level: float, *seeds: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    draw, found = random.Random(repr(seeds)), []
    for step in range(20, 401, 20):
        value = level + (4.2 - level) * math.exp(-step / 80)
        values = {"train/loss": value + draw.gauss(0, 0.03)}
        if step % 100 == 0:
            values["val/loss"] = value + draw.gauss(0, 0.004)
        found.append({"step": step, "tokens": step * 2048, "seconds": step * 0.05, "attempt": 1, "values": values})
    return found


# --- the studies


def lengths(root: Path) -> Path:
    """One factor, metrics at several lengths, of which one cell cannot have all; and claims of every form."""
    levels = {
        "sinusoidal": (2.32, 2.44, 2.67, 2.84), "learned": (2.31,), "rotary": (2.14, 2.21, 2.41, 2.64),
        "alibi": (2.21, 2.21, 2.21, 2.21), "none": (2.34, 2.39, 2.48, 2.54),
    }  # fmt: skip
    metric, at_1x = "test/loss@8x", {"metric": "test/loss@1x"}
    common = {"strength": "must", "source": "a pilot"}
    claims: list[dict[str, Any]] = [
        {"says": "alibi holds", "cell": {"position": "alibi"}, "metric": metric, "against": at_1x, "within": 0.02},
        {
            "says": "sinusoidal degrades",
            "cell": {"position": "sinusoidal"},
            "metric": metric,
            "against": at_1x,
            "above": 0.4,
        },
        {
            "says": "rotary degrades so far",
            "cell": {"position": "rotary"},
            "metric": metric,
            "against": at_1x,
            "between": [0.4, 0.5],
        },
        {"says": "learned cannot", "cell": {"position": "learned"}, "metric": metric, "unavailable": True},
        {
            "says": "none is better",
            "cell": {"position": "none"},
            **at_1x,
            "against": {"cell": {"position": "rotary"}},
            "below": 0.0,
        },
        {"says": "rotary is below 2.2", "cell": {"position": "rotary"}, **at_1x, "below": 2.2},
    ]
    cells = [{"position": name} for name in levels]
    write_plan(
        root, {"position": list(levels)}, cells, baseline={"position": "sinusoidal"}, seeds=[0, 1, 2, 3],
        metric={"name": metric, "better": "lower", "margin": 0.02}, claims=[claim | common for claim in claims],
    )  # fmt: skip
    for (place, (name, planted)), seed in itertools.product(enumerate(levels.items()), range(4)):
        draw, shared = random.Random(100 * place + seed), random.Random(seed).gauss(0, 0.01)
        final = {f"test/loss@{2**k}x": level + shared + draw.gauss(0, 0.006) for k, level in enumerate(planted)}
        final |= {"val/loss": planted[0] + shared, "val/bits_per_byte": planted[0] / math.log(2) + shared}
        lacks = (
            {f"test/loss@{k}x": "the learned table ends at 64 positions" for k in (2, 4, 8)}
            if name == "learned"
            else {}
        )
        write_run(root, {"position": name}, seed, final, 150_000 + 4096 * place, unavailable=lacks)
    return root


def interactions(root: Path) -> Path:
    """Two factors that act upon one another."""
    factors = {"residual": ["post_ln", "pre_ln"], "norm": ["layer_norm", "rms_norm", "dynamic_tanh"]}
    cells = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    write_plan(
        root, factors, cells, baseline={"residual": "pre_ln", "norm": "layer_norm"}, seeds=[0, 1, 2, 3, 4],
        metric={"name": "val/loss", "better": "lower", "margin": 0.02},
    )  # fmt: skip
    for (place, choices), seed in itertools.product(enumerate(cells), range(5)):
        bad = 0.3 * (choices["residual"] == "post_ln") * (choices["norm"] == "dynamic_tanh")
        noise = random.Random(seed).gauss(0, 0.02) + random.Random(1000 + 10 * place + seed).gauss(0, 0.01)
        value = 2.4 + 0.05 * (choices["residual"] == "post_ln") + 0.01 * place + bad + noise
        write_run(root, choices, seed, {"val/loss": value, "test/loss@1x": value + 0.03}, 200_000 + 1000 * place)
    return root


def failures(root: Path) -> Path:
    """Cells with runs that failed, diverged, run still or were never made; more is better."""
    rates = [0.001, 0.003, 0.01, 0.03]
    cells = [{"optimizer.lr": rate} for rate in rates]
    claim = {"says": "a high rate is worse", "cell": cells[2], "against": {"cell": cells[0]}, "below": 0.0}
    write_plan(
        root, {"optimizer.lr": rates}, cells, baseline={"optimizer.lr": 0.001}, seeds=list(range(6)),
        metric={"name": "test/accuracy", "better": "higher", "margin": 0.01},
        claims=[claim | {"metric": "test/accuracy", "strength": "should", "source": "a pilot"}],
    )  # fmt: skip
    endings: dict[tuple[float, int], dict[str, Any]] = {
        (0.003, 2): {"state": "failed", "error": "OutOfMemory: memory ran out", "final": {}, "step": 120},
        (0.01, 1): {"state": "diverged", "error": "the loss is not finite at step 120", "final": {}, "step": 120},
        (0.01, 4): {"state": "diverged", "error": "the loss is not finite at step 90", "final": {}, "step": 90},
    }
    endings |= {(0.03, seed): {"state": "diverged", "error": "no step", "final": {}, "step": 20} for seed in range(6)}
    for (place, rate), seed in itertools.product(enumerate(rates), range(6)):
        if (rate, seed) == (0.001, 5):
            continue
        noise = random.Random(seed).gauss(0, 0.01) + random.Random(2000 + 10 * place + seed).gauss(0, 0.008)
        final = {"test/accuracy": 0.8 - 0.03 * place + noise, "val/loss": 0.6 + 0.1 * place - noise}
        write_run(root, {"optimizer.lr": rate}, seed, final, 90_000, **endings.get((rate, seed), {}))
    return root
