"""A fitted law as JSON (everything) and CSV (an entry a run)."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from attnlab.analysis.scaling.report import CountedLaw, Scaling


def to_json(scaling: Scaling) -> str:
    """The law in both counts with intervals, advice, prediction, runs and caveats; what is not a number is null."""
    data = {
        "study": scaling.study,
        "metric": scaling.metric,
        "form": "L = E + A / N^alpha + B / D^beta",
        "count": scaling.count,
        "laws": {name: _law(law) for name, law in scaling.laws.items()},
        "seed_scatter": scaling.seed_scatter,
        "runs": rows(scaling),
        "notes": scaling.notes,
    }
    return json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"


def _law(law: CountedLaw) -> dict[str, Any]:
    return {
        "parameters": asdict(law.law),
        "intervals": {name: [interval.low, interval.high] for name, interval in law.intervals.items()},
        "objective": law.fit.objective,
        "r_squared": law.r_squared,
        "misfit": law.scatter,
        "resamples": len(law.thetas),
        "optimum_exponents": dict(zip(("parameters", "tokens"), law.law.exponents, strict=True)),
        "advice": [asdict(advice) for advice in law.advice],
        "foretold": [{**asdict(one), "error": one.error, "is_inside": one.is_inside} for one in law.foretold],
    }


def rows(scaling: Scaling) -> list[dict[str, Any]]:
    """An entry a run: what it is, what it cost, its loss, and what the law in the chosen count says of it."""
    found = []
    for run, residual in zip(scaling.runs, scaling.law.residuals, strict=True):
        found.append(
            {
                "cell": run.cell,
                "seed": run.seed,
                **{f"parameters_{name}": value for name, value in run.parameters.items()},
                "tokens": run.tokens,
                "epochs": run.epochs,
                "operations_6ND": run.six_ND(scaling.count),
                "operations_exact": run.operations,
                "loss": run.loss,
                "fitted": run.loss / math.exp(residual),
                "log_residual": float(residual),
            }
        )
    return found


def to_csv(scaling: Scaling) -> str:
    """`rows` as CSV."""
    entries, text = rows(scaling), io.StringIO()
    writer = csv.DictWriter(text, list(entries[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
