"""What a metric's name says: its split, its measure, what it is restricted to, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Iterable

LOWER = frozenset(
    ("nats", "smoothed_nats", "loss", "perplexity", "token_perplexity", "word_perplexity", "bits_per_byte")
)
HIGHER = frozenset(("accuracy", "precision", "recall", "f1", "macro_f1", "exact", "exact_match", "bleu", "chrf"))


def parts_of(metric: str) -> tuple[str, str, str]:
    """("test", "bleu", "6-10") of test/bleu@6-10; what a name lacks is empty."""
    name, _, restriction = metric.partition("@")
    split, _, measure = name.rpartition("/")
    return split, measure, restriction


def of_both_parts(measures: Iterable[str]) -> list[str]:
    """The metrics that measures are of the validation and of the test part, at the end of a run."""
    return [f"{part}/{measure}" for measure in measures for part in ("val", "test")]


def known_better(metric: str) -> str | None:
    """ "higher" or "lower": which values of a metric are better; None of a measure that attnlab has not."""
    measure = parts_of(metric)[1].removeprefix("sliding_")
    if measure in HIGHER or measure.endswith("_accuracy"):
        return "higher"
    return "lower" if measure in LOWER or measure.endswith("_nats") else None


def better_of(metric: str) -> str:
    """The same; of an unknown measure "lower"."""
    return known_better(metric) or "lower"
