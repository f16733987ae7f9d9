"""A study whose losses follow a planted law, written as real run directories are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.analysis.scaling import Law
from attnlab.training.run_directory import FORMAT

LAW = Law(E=1.15, A=60.0, B=300.0, alpha=0.42, beta=0.42)
WIDTHS = (16, 24, 32, 48, 64, 96, 128)
STEPS = (450, 900, 1800, 3600)
VOCABULARY, CONTEXT, LAYERS = 66, 64, 3


def counts(width: int) -> tuple[int, int, int]:
    """(without embeddings, with them, operations a token) of a GPT of three layers."""
    N = 12 * LAYERS * width**2 + 14 * width
    embedding = VOCABULARY * width
    return N, N + embedding, 6 * (12 * LAYERS * width**2 + embedding) + 12 * LAYERS * width * CONTEXT


def write_scaling_study(
    root: Path,
    widths: tuple[int, ...] = WIDTHS,
    steps: tuple[int, ...] = STEPS,
    seeds: int = 2,
    noise: float = 0.006,
    law: Law = LAW,
) -> Path:
    """runs/<study> of all widths and budgets; the folder."""
    random = np.random.default_rng(1)
    cells = [{"model.d_model": width, "trainer.max_steps": step} for width, step in itertools.product(widths, steps)]
    names = [",".join(f"{key}={value}" for key, value in choices.items()) for choices in cells]
    plan: dict[str, Any] = {"study": root.name, "question": "How does loss fall?", "seeds": list(range(seeds))}
    plan["cells"] = [
        {"name": n, "choices": c, "overrides": [], "skip": None} for n, c in zip(names, cells, strict=True)
    ]
    plan["metric"] = {"name": "test/loss@1x", "better": "lower", "margin": 0.01}
    root.mkdir(parents=True)
    (root / "plan.json").write_text(json.dumps(plan))
    for (name, choices), seed in itertools.product(zip(names, cells, strict=True), range(seeds)):
        N, total, cost = counts(choices["model.d_model"])
        tokens = 1024 * choices["trainer.max_steps"]
        loss = float(law.loss(N, tokens)) * float(np.exp(noise * random.standard_normal()))
        config = {
            "seed": seed,
            "model": {"d_model": choices["model.d_model"], "num_layers": LAYERS},
            "trainer": {"max_steps": choices["trainer.max_steps"]},
            "data": {"context_length": CONTEXT, "seed": seed},
            "optimizer": {"lr": 0.01},
        }
        record = {
            "format": FORMAT,
            "cell_name": name,
            "cell": choices,
            "seed": seed,
            "config": config,
            "flops_per_token": cost,
        }
        record |= {"parameters": {"total": total, "non_embedding": N}, "training": {"epochs": tokens / 3_725_079}}
        final = {"test/loss@1x": loss, "val/loss": loss - 0.05}
        write(root / name / f"seed={seed}", record, {"state": "finished", "tokens": tokens, "final": final})
    return root


def write(run: Path, record: dict[str, Any], status: dict[str, Any]) -> None:
    """The two files of a run that the fit reads."""
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(record))
    (run / "status.json").write_text(json.dumps(status))


def change(run: Path, file: str, **values: Any) -> None:
    """Sets fields of run.json or status.json; a name with dots goes inside."""
    data = json.loads((run / file).read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (run / file).write_text(json.dumps(data))
