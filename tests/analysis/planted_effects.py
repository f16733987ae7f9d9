"""Studies in memory whose effects at two sizes are planted, for what is said of sizes and of published figures."""

from pathlib import Path

from attnlab.analysis.reader import Cell, Metric, Run, Study
from attnlab.training.published import published_of

SIZES = (32, 64)
CHOICES = ("relu", "glu")


def planted(values, margin=0.01, better="lower", figures=(), failed=()):
    """The study of {(choice, size): one value a seed}; failed: (choice, size, seed) of runs that diverged."""
    cells, runs = [], {}
    for (choice, size), of_seeds in values.items():
        choices = {"feed_forward": choice, "model.d_model": size}
        name = f"{choice}-{size}"
        cells.append(Cell(name, choices))
        for seed, value in enumerate(of_seeds):
            is_lost = (choice, size, seed) in failed
            status = {} if is_lost else {"final": {"test/loss": float(value)}}
            runs[name, seed] = Run(name, seed, Path(name), "diverged" if is_lost else "finished", {}, status)
    published = {
        "effect": "e",
        "source": "s",
        "minutes": 1,
        "size": "model.d_model",
        "figure": "f",
        "figures": [*figures],
    }
    return Study(
        path=Path("planted"),
        name="planted",
        question="",
        factors={"feed_forward": list(CHOICES), "model.d_model": list(SIZES)},
        baseline={"feed_forward": "relu", "model.d_model": 32},
        cells=cells,
        seeds=list(range(len(of_seeds))),
        metric=Metric("test/loss", better, margin),
        claims=[],
        shared=[],
        code={},
        runs=runs,
        published=published_of(published),
    )
