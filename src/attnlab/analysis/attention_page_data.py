"""The data of the page of `attnlab attention`: maps in few bytes, labels and statistics. Legend: L layers, H heads, T queries, S keys."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnlab.analysis.attended import Attended
from attnlab.analysis.head_roles import clearest, role_of
from attnlab.analysis.head_statistics import Head, Scores
from attnlab.analysis.token_axis import visible

STEPS = 65535  # a weight is kept as a whole number of these, to 0.00001
MOST_WEIGHTS = 4_000_000  # on a page: 11 MB
MOST_EXAMPLES = 50
TITLE = 80  # characters
NAMES = {
    "entropy": "entropy (nats)",
    "relative_entropy": "entropy over its most",
    "distance": "mean distance (tokens)",
    "previous": "to the token before",
    "next": "to the token after",
    "first": "to the first token",
    "last": "to the last token",
    "marks": "to marks",
    "current": "to itself",
    "same": "to the same token elsewhere",
    "induction": "to what followed it before",
    "repeats": "the same, in repeated random tokens",
    "diagonal": "along the diagonal",
    "monotonic": "moves forward",
}


def page_data(examples: Sequence[Attended], scores: Scores) -> dict[str, Any]:
    """What the script reads."""
    limit = MOST_WEIGHTS if len(examples) == 1 else None
    heads = {}
    for head, named in scores.items():
        role = role_of(named)
        statistics = {key: [short(one.value), short(one.chance)] for key, one in named.items()}
        heads[str(head)] = {"role": role.name if role else "", "statistics": statistics}
    shown = [_example(example, limit) for example in examples]
    return {"examples": shown, "heads": heads, "names": NAMES, "start": _start(examples[0], scores)}


def quantised(weights: np.ndarray) -> str:
    """Weights from 0 to 1 as base64 of 16-bit numbers, each off by less than 0.00001."""
    steps = np.round(np.clip(weights, 0, 1) * STEPS).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode()


def _bits(flags: np.ndarray) -> str:
    """Flags as base64 of their bits, the first one highest."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def fitting(examples: Sequence[Attended]) -> list[Attended]:
    """The first examples, as many as a page holds, at least one."""
    total, kept = 0, 0
    for example in examples[:MOST_EXAMPLES]:
        total += sum(one.weights_HTS.numel() for one in example.maps)
        if kept and total > MOST_WEIGHTS:
            break
        kept += 1
    return list(examples[:kept])


def _example(example: Attended, limit: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"title": _title(example.title)}
    total = sum(one.weights_HTS.numel() for one in example.maps)
    share = 1.0 if limit is None or total <= limit else (limit / total) ** 0.5
    found["kinds"] = [_kind(example, kind, share) for kind in example.kinds]
    if example.pixels_YXC is not None:
        found["size"] = list(example.pixels_YXC.shape[:2])
        found["pixels"] = base64.b64encode(example.pixels_YXC.astype(np.uint8).tobytes()).decode()
    return found


def _kind(example: Attended, kind: str, share: float) -> dict[str, Any]:
    queries, keys = example.axes[kind]
    weights_LHTS = np.stack([one.weights_HTS.numpy() for one in example.of_kind(kind)])
    labels, offset = list(queries.labels), queries.before
    if queries.grid is not None and "[class]" not in labels:
        # Nothing stands for the whole image but the mean of the patches, which is what the model classifies.
        mean_LH1S = weights_LHTS[:, :, queries.before :].mean(axis=2, keepdims=True)
        weights_LHTS = np.concatenate([mean_LH1S, weights_LHTS], axis=2)
        labels, offset = ["[mean of patches]", *labels], offset + 1
    hidden_LTS = np.stack([~one.allowed_TS.numpy() for one in example.of_kind(kind)])
    full = weights_LHTS.shape[2:]
    num_queries, num_keys = (max(1, int(count * share)) for count in full)
    weights_LHTS = weights_LHTS[:, :, :num_queries, :num_keys]
    return {
        "name": kind,
        "layers": len(weights_LHTS),
        "heads": weights_LHTS.shape[1],
        "queries": labels[:num_queries],
        "keys": keys.labels[:num_keys],
        "cut": list(full) if share < 1 else None,
        "square": queries is keys,
        "grid": None if queries.grid is None else list(queries.grid),
        "before": keys.before,
        "offset": offset,
        "weights": quantised(weights_LHTS),
        "hidden": _bits(hidden_LTS[:, :num_queries, :num_keys]) if hidden_LTS.any() else None,
    }


def _start(example: Attended, scores: Scores) -> dict[str, int]:
    """What is shown first: of the first kind the head whose role is clearest."""
    kind = example.kinds[0]
    best = clearest(scores, kind) or Head(kind, 0, 0)
    return {"layer": best.layer, "head": best.head, "query": len(example.axes[kind][0]) // 2}


def short(value: float) -> str:
    """A number with three digits behind the point."""
    return f"{value:.3f}"


def _title(title: str) -> str:
    shown = visible(title).replace("\u2423", " ")
    return shown if len(shown) <= TITLE else shown[: TITLE - 1] + "\u2026"
