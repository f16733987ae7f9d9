"""Writes synthetic studies with planted effects, in the format of real run directories."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.reader import load_study
from attnlab.training.run_directory import FORMAT

POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "relative_bias", "none"]
# Nats at 1, 2, 4 and 8 times the training length.
PLANTED = {
    "sinusoidal": (2.318, 2.444, 2.673, 2.843),
    "learned": (2.313,),
    "rotary": (2.138, 2.210, 2.413, 2.636),
    "alibi": (2.207, 2.205, 2.209, 2.211),
    "relative_bias": (2.272, 2.329, 2.422, 2.512),
    "none": (2.336, 2.394, 2.476, 2.543),
}


def write_plan(root: Path, **plan: Any) -> Path:
    """plan.json of a study; the folder."""
    root.mkdir(parents=True, exist_ok=True)
    defaults = {
        "study": root.name,
        "question": "",
        "factors": {},
        "baseline": {},
        "cells": [],
        "seeds": [],
        "claims": [],
        "shared": [],
    }
    defaults |= {"code": {"commit": "0123456789abcdef", "dirty": False}}
    (root / "plan.json").write_text(json.dumps({**defaults, **plan}))
    return root


def cell(choices: Mapping[str, Any], skip: str | None = None) -> dict[str, Any]:
    """A plan's cell."""
    overrides = [f"{name}={value}" for name, value in choices.items()]
    return {"name": ",".join(overrides), "choices": dict(choices), "overrides": overrides, "skip": skip}


def write_run(
    root: Path,
    choices: Mapping[str, Any],
    seed: int,
    final: Mapping[str, float | None],
    state: str = "finished",
    unavailable: Mapping[str, str] | None = None,
    error: str | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
    parameters: int = 150_000,
    **record: Any,
) -> Path:
    """One run directory."""
    name = cell(choices)["name"]
    directory = root / name / f"seed={seed}"
    directory.mkdir(parents=True, exist_ok=True)
    tree: dict[str, Any] = {"seed": seed, "model": {"d_model": 64, "num_layers": 3}}
    for key, value in choices.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    run = {"format": FORMAT, "study": root.name, "cell": dict(choices), "cell_name": name, "seed": seed, "config": tree}
    run |= {"parameters": {"total": parameters, "non_embedding": parameters - 5000}, "flops_per_token": 6 * parameters}
    run |= {
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "precision": {"used": "32"},
        "device": {"type": "cpu"},
    }
    run |= {"command": f"attnlab train {' '.join(f'{k}={v}' for k, v in choices.items())} seed={seed}", **record}
    (directory / "run.json").write_text(json.dumps(run))
    status = {
        "state": state,
        "attempt": 0,
        "step": 800,
        "max_steps": 800,
        "tokens": 1_638_400,
        "seconds": 21.5,
        "error": error,
    }
    status |= {
        "final": dict(final),
        "unavailable": dict(unavailable or {}),
        "best": {"metric": "val/loss", "value": 2.3, "step": 800},
    }
    (directory / "status.json").write_text(json.dumps(status))
    if curve:
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    return directory


def write_image_study(root: Path) -> Path:
    """Runs on images without a plan; alibi classifies better, and its best validation is its last."""
    for position, level in (("none", 0.6), ("alibi", 0.9)):
        for seed in range(3):
            share = level + 0.01 * seed
            values = {"val/loss": 1 - share, "val/accuracy": share, "train/loss": 1 - share}
            curve = [
                {"step": k, "tokens": 100 * k, "seconds": k, "values": {**values, "val/accuracy": share * k / 8}}
                for k in (4, 8)
            ]
            final = {**values, "test/accuracy": share}
            directory = write_run(
                root, {"position": position}, seed, final, curve=curve, data={"unit": "image", "fingerprint": "x"}
            )
            status = json.loads((directory / "status.json").read_text())
            status["best"] = {"metric": "val/accuracy", "value": share, "step": 8}
            (directory / "status.json").write_text(json.dumps(status))
    return root


def learning_curve(end: float, seed: int, steps: int = 800, every: int = 20) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that fall from 4.2 to about `end`."""
    noise = np.random.default_rng(seed)
    lines = []
    for step in range(every, steps + 1, every):
        value = end + (4.2 - end) * np.exp(-5 * step / steps)
        values = {"train/loss": value + 0.03 * noise.standard_normal()}
        if step % (5 * every) == 0:
            values["val/loss"] = value + 0.02 + 0.004 * noise.standard_normal()
        lines.append({"step": step, "tokens": step * 2048, "seconds": step * 0.027, "attempt": 1, "values": values})
    return lines


def write_position_study(root: Path, seeds: int = 4, spread: float = 0.005) -> Path:
    """The study of position encodings, with the figures of PLANTED and seeds that share their noise."""
    claims = [
        {
            "says": "ALiBi does not decay",
            "cell": {"position": "alibi"},
            "metric": "test/loss@8x",
            "against": {"metric": "test/loss@1x"},
            "within": 0.02,
            "source": "Press et al. 2022",
            "strength": "must",
        },
        {
            "says": "rotary is best in length",
            "cell": {"position": "rotary"},
            "metric": "test/loss@1x",
            "against": {"cell": {"position": "sinusoidal"}},
            "below": 0.0,
            "source": "pilot",
            "strength": "must",
        },
        {
            "says": "sinusoidal degrades",
            "cell": {"position": "sinusoidal"},
            "metric": "test/loss@8x",
            "against": {"metric": "test/loss@1x"},
            "between": [0.4, 0.6],
            "source": "pilot",
            "strength": "must",
        },
        {
            "says": "learned positions cannot exceed their table",
            "cell": {"position": "learned"},
            "metric": "test/loss@8x",
            "unavailable": True,
            "source": "by construction",
            "strength": "must",
        },
        {
            "says": "no positions at all work causally",
            "cell": {"position": "none"},
            "metric": "test/loss@1x",
            "against": {"cell": {"position": "sinusoidal"}},
            "within": 0.05,
            "source": "Haviv et al. 2022",
            "strength": "must",
        },
    ]
    write_plan(
        root,
        question="Which position encoding generalises beyond the training length?",
        factors={"position": POSITIONS},
        baseline={"position": "sinusoidal"},
        cells=[cell({"position": name}) for name in POSITIONS],
        seeds=list(range(seeds)),
        metric={"name": "test/loss@8x", "better": "lower", "margin": 0.02},
        claims=claims,
        shared=["model=gpt", "data=kjv", "model.num_layers=3", "trainer.max_steps=800"],
    )
    for (index, name), seed in itertools.product(enumerate(POSITIONS), range(seeds)):
        common = np.random.default_rng(seed).standard_normal()
        own = np.random.default_rng((seed, index)).standard_normal(4)
        final: dict[str, float | None] = {}
        for k, planted, noise in zip((1, 2, 4, 8), PLANTED[name], own, strict=False):
            final[f"test/loss@{k}x"] = planted + spread * (common + 0.5 * noise)
            final[f"test/sliding_loss@{k}x"] = planted - 0.03 * (1 - 1 / k) + spread * (common + 0.5 * noise)
        final |= {"val/loss": PLANTED[name][0] + spread * common, "val/bits_per_byte": PLANTED[name][0] / np.log(2)}
        reason = "the learned table ends at 64 positions; position 65 was asked for"
        missing = (
            {f"test/{kind}loss@{k}x": reason for kind in ("", "sliding_") for k in (2, 4, 8)}
            if name == "learned"
            else {}
        )
        parameters = 150_000 + (4096 if name == "learned" else 128 if name == "relative_bias" else 0)
        write_run(
            root,
            {"position": name},
            seed,
            final,
            unavailable=missing,
            curve=learning_curve(PLANTED[name][0], seed),
            parameters=parameters,
        )
    return root


def write_grid_study(root: Path, seeds: int = 3) -> Path:
    """residual x depth x learning rate x warm-up: Post-LN stays near 3.3 nats without warm-up where depth x rate is large."""
    factors: dict[str, list[Any]] = {
        "residual": ["post_ln", "pre_ln"],
        "model.num_layers": [6, 12],
        "optimizer.lr": ["1e-3", "3e-3"],
        "schedule.warmup_steps": [0, 200],
    }
    combinations = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    write_plan(
        root,
        question="When does Post-LN need warm-up, and does Pre-LN?",
        factors=factors,
        baseline={"residual": "pre_ln", "model.num_layers": 6, "optimizer.lr": "1e-3", "schedule.warmup_steps": 0},
        cells=[cell(choices) for choices in combinations],
        seeds=list(range(seeds)),
        metric={"name": "val/loss", "better": "lower", "margin": 0.02},
        claims=[
            {
                "says": "deep Post-LN without warm-up plateaus",
                "cell": {"residual": "post_ln", "model.num_layers": 12, "schedule.warmup_steps": 0},
                "metric": "val/loss",
                "against": {"cell": {"residual": "pre_ln"}},
                "above": 0.5,
                "source": "Xiong et al. 2020",
                "strength": "must",
            },
        ],
    )
    for (index, choices), seed in itertools.product(enumerate(combinations), range(seeds)):
        stuck = (
            choices["residual"] == "post_ln"
            and choices["schedule.warmup_steps"] == 0
            and (choices["model.num_layers"] == 12 or choices["optimizer.lr"] == "3e-3")
        )
        base = (
            3.33
            if stuck
            else 2.34
            + 0.02 * (choices["residual"] == "post_ln")
            - 0.03 * (choices["model.num_layers"] == 12)
            + 0.05 * (choices["optimizer.lr"] == "3e-3")
        )
        value = (
            base
            + 0.012 * np.random.default_rng(seed).standard_normal()
            + 0.006 * np.random.default_rng((seed, index)).standard_normal()
        )
        diverged = stuck and choices["optimizer.lr"] == "3e-3" and choices["model.num_layers"] == 12 and seed == 1
        write_run(
            root,
            choices,
            seed,
            {} if diverged else {"val/loss": value},
            state="diverged" if diverged else "finished",
            error="loss is not finite at step 120" if diverged else None,
            curve=learning_curve(base, seed),
            parameters=25_000 * int(choices["model.num_layers"]),
        )
    return root


def write_crossed_study(root: Path, factors: Mapping[str, Sequence[Any]], seeds: int = 3) -> Path:
    """Every pair of choices, each a little worse than the one before, at 1, 2 and 8 times the training length."""
    cells = [dict(zip(factors, choices, strict=True)) for choices in itertools.product(*factors.values())]
    write_plan(
        root,
        question="Which of the choices earns its place?",
        factors={name: list(choices) for name, choices in factors.items()},
        baseline=cells[0],
        cells=[cell(choices) for choices in cells],
        seeds=list(range(seeds)),
        metric={"name": "test/loss@8x", "better": "lower", "margin": 0.02},
    )
    for (index, choices), seed in itertools.product(enumerate(cells), range(seeds)):
        level = 2.2 + 0.3 * index / len(cells)
        noise = 0.02 * np.random.default_rng((index, seed)).standard_normal(3)
        final = {f"test/loss@{k}x": level + 0.05 * np.log2(k) + own for k, own in zip((1, 2, 8), noise, strict=True)}
        write_run(root, choices, seed, final, curve=learning_curve(level, seed, every=40))
    return root


ARMS, TASKS = ("none", "rotary", "alibi"), ("copy", "sort", "kjv")
ACROSS: dict[str, Any] = {"factor": "data", "metric": {"kjv": {"name": "test/bits_per_byte@1x", "better": "lower"}}}
ACROSS |= {"ends": {"kjv": [4.0, 2.0], "sort": [0.2, 1.0]}}
BASE = {"copy": 0.5, "sort": 0.6, "kjv": 3.0}
GAIN = {"none": 0.0, "rotary": 0.3, "alibi": 0.0}


def write_task_study(
    root: Path,
    across: object = ACROSS,
    lost: Collection[tuple[str, str, int]] = (),
    skip: Collection[tuple[str, str]] = (),
    seeds: int = 4,
    claims: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Three positions on three tasks: rotary is better on each, alibi is not; `lost` runs diverge, `skip` cells have none."""
    choices = [{"data": task, "position": arm} for task, arm in itertools.product(TASKS, ARMS)]
    reasons = dict.fromkeys(skip, "makes no sense")
    write_plan(
        root,
        factors={"data": list(TASKS), "position": list(ARMS)},
        baseline={"data": "copy", "position": "none"},
        cells=[cell(one, reasons.get((one["data"], one["position"]))) for one in choices],
        seeds=list(range(seeds)),
        metric={"name": "test/accuracy@1x", "better": "higher"},
        across=across,
        claims=list(claims),
    )
    for number, (one, seed) in enumerate(itertools.product(choices, range(seeds))):
        task, arm = one["data"], one["position"]
        if (task, arm) in reasons:
            continue
        value = BASE[task] + GAIN[arm] * (-2 if task == "kjv" else 1) + 0.01 * np.random.default_rng(number).random()
        name = "bits_per_byte" if task == "kjv" else "accuracy"
        final = {f"test/{name}@1x": float(value)} | ({"test/chance@1x": 0.1} if task != "kjv" else {})
        gone = (task, arm, seed) in lost
        write_run(
            root,
            one,
            seed,
            {} if gone else final,
            state="diverged" if gone else "finished",
            data={"fingerprint": task, "unit": "token"},
            config={"task": {"_target_": f"tasks.{name}"}, "data": {"_target_": task}},
        )
    return root


@pytest.fixture(scope="session")
def position(tmp_path_factory) -> Comparison:
    """The comparison of the synthetic study of position encodings."""
    return compare(load_study(write_position_study(tmp_path_factory.mktemp("runs") / "position_length")))


@pytest.fixture(scope="session")
def grid_comparison(tmp_path_factory) -> Comparison:
    """The comparison of the synthetic residual x depth x rate x warm-up grid."""
    return compare(load_study(write_grid_study(tmp_path_factory.mktemp("runs") / "norm_warmup")))
