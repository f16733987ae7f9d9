"""`attnlab positions`: what position encodings do to scores by distance, as a table, CSV and figure."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from attnlab.analysis.position_curves import QUANTITIES, Curve, Encoding, curves_of, encodings_of
from attnlab.analysis.wording import number
from attnlab.cli.compose import Mistake
from attnlab.cli.looked_at import LookedAt, models_of

DEFAULT_LENGTH, DEFAULT_BEYOND = 128, 4
HEAD = ("encoding", "quantity", "head", "distance", "mean", "least", "most", "bucket", "within_training")


def positions(arguments: argparse.Namespace) -> int:
    """Prints the tables, and writes positions.{csv,pdf,png} where a folder is given; returns the exit status. Raises: Mistake."""
    models = models_of(arguments.words, arguments.checkpoint, arguments.config_dir)
    trained = arguments.length or next((model.context for model in models if model.context), DEFAULT_LENGTH)
    farthest = trained * arguments.beyond
    if trained < 2 or arguments.beyond < 1:
        raise Mistake(
            f"--length {trained} --beyond {arguments.beyond}: accepted are lengths from 2 on, and 1 or more times as long"
        )
    shown = [(name, encoding, _curves(encoding, farthest)) for model in models for name, encoding in _named(model)]
    if not shown:
        names = ", ".join(type(model.model).__name__ for model in models)
        raise Mistake(f"{names}: there is no stack with a position encoding; give a Transformer, such as model=gpt")
    for name, encoding, curves in shown:
        print("\n".join(_lines(name, encoding, curves, trained)))
    if arguments.to:
        _write(Path(arguments.to), [(name, curves) for name, _, curves in shown], trained, farthest)
    return 0


def _named(model: LookedAt) -> Iterator[tuple[str, Encoding]]:
    """The encodings of a model; only those of several stacks need the stack's name."""
    found = encodings_of(model.model)
    for encoding in found:
        name = f"{model.name}, {encoding.name.partition('.')[0]}" if len(found) > 1 else model.name
        random = not model.trained and any(True for _ in encoding.module.parameters())
        yield name + (" (not trained: drawn at random)" if random else ""), encoding


def _curves(encoding: Encoding, farthest: int) -> list[Curve]:
    try:
        return curves_of(encoding, farthest)
    except ValueError as error:
        raise Mistake(f"{error}; give a smaller --length or --beyond") from error


def _lines(name: str, encoding: Encoding, curves: Sequence[Curve], trained: int) -> Iterator[str]:
    yield f"{name}: {type(encoding.module).__name__}; * is beyond the {trained} positions of training"
    if not curves:
        yield "  does nothing: scores do not know of positions, but for what a causal mask shows"
    for quantity in dict.fromkeys(curve.quantity for curve in curves):
        own = [curve for curve in curves if curve.quantity == quantity]
        distances = _some(own[0].distances)
        yield f"  {QUANTITIES[quantity]}"
        yield f"  {'distance':9}" + "".join(f"{f'{m}*' if abs(m) >= trained else m:>9}" for m in distances)
        for curve in own:
            at = dict(zip(curve.distances, curve.mean, strict=True))
            yield f"  {'' if curve.head is None else f'head {curve.head}':9}" + "".join(
                f"{number(at[m], 3):>9}" for m in distances
            )
    slow = encoding.slow_pairs(trained)
    if slow:
        yield f"  {slow[0]} of {slow[1]} pairs do not turn once within {trained} positions: beyond them, their angles are new"
    end = max(curves[0].distances) + 1 if curves else 0
    if curves and encoding.farthest(end + 1) == end:
        yield f"  it ends at {end} positions"


def _some(distances: Sequence[int]) -> list[int]:
    """0, the powers of two on both sides, and the ends."""
    wanted = {0, distances[0], distances[-1], *(sign * 2**k for sign in (1, -1) for k in range(13))}
    return [m for m in distances if m in wanted]


def _write(folder: Path, shown: Sequence[tuple[str, Sequence[Curve]]], trained: int, farthest: int) -> None:
    from attnlab.analysis.figure_positions import positions_figure
    from attnlab.analysis.figure_style import paper_style, write_figure

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "positions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for name, curves in shown:
            writer.writerows(row for curve in curves for row in _rows(name, curve, trained))
    written = ["positions.csv"]
    if any(curves for _, curves in shown):
        with paper_style():
            figure = positions_figure(shown, trained, farthest)
            for ending in ("pdf", "png"):
                write_figure(figure, folder / f"positions.{ending}")
                written.append(f"positions.{ending}")
    print(f"{folder}: {', '.join(written)}")


def _rows(name: str, curve: Curve, trained: int) -> Iterator[list[object]]:
    head = "" if curve.head is None else curve.head
    buckets: Sequence[object] = curve.buckets or [""] * len(curve.distances)
    for m, mean, low, high, bucket in zip(curve.distances, curve.mean, curve.low, curve.high, buckets, strict=True):
        yield [name, curve.quantity, head, m, mean, low, high, bucket, abs(m) < trained]
