"""`attnlab positions` and `attnlab reach`: what models do with positions, as tables, CSV and figures."""

from __future__ import annotations

import csv
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.cli.options import Command, add_checkpoint, add_config_dir
from attnlab.config import UsageError
from attnlab.ranges import must_be

if TYPE_CHECKING:
    from attnlab.inspection.position_curves import Curve, Encoding
    from attnlab.inspection.receptive_fields import Field
    from attnlab.runs.trained import InspectedModel

DEFAULT_LENGTH, DEFAULT_BEYOND = 128, 4
HEAD = ("encoding", "quantity", "head", "distance", "mean", "least", "most", "bucket", "within_training")


def _options(parser: ArgumentParser) -> None:
    words = "directories of runs, or settings such as position=rotary,alibi and attention.window=16"
    parser.add_argument("words", nargs="*", help=words)
    parser.add_argument("--to", help="a folder for the figure (.pdf and .png) and its numbers (.csv)")
    add_checkpoint(parser)
    add_config_dir(parser)


def _positions_options(positions: ArgumentParser) -> None:
    length = "positions in training (default: those of the run or settings, such as data.context)"
    positions.add_argument("--length", type=int, help=length)
    positions.add_argument(
        "--beyond", type=int, default=DEFAULT_BEYOND, help="how many times as far to look (default: 4)"
    )
    _options(positions)


def _reach_options(reach: ArgumentParser) -> None:
    reach.add_argument("--length", type=int, help="positions (default: somewhat more than what can be reached)")
    _options(reach)


def positions(arguments: Namespace) -> int:
    """Prints the tables, and writes positions.{csv,pdf,png} where a folder is given. Raises: UsageError."""
    from attnlab.inspection.position_curves import curves_of
    from attnlab.runs.trained import models_of

    models = models_of(arguments.words, arguments.checkpoint, arguments.config_dir)
    trained = arguments.length or next((model.context for model in models if model.context), DEFAULT_LENGTH)
    farthest = trained * arguments.beyond
    for name, given, least in (("--length", trained, 2), ("--beyond", arguments.beyond, 1)):
        if given < least:
            raise UsageError(must_be(name, f"at least {least}", given))
    try:
        shown = [(name, one, curves_of(one, farthest)) for model in models for name, one in _encodings(model)]
    except ValueError as error:
        raise UsageError(f"{error}; give a smaller --length or --beyond") from error
    _refuse_nothing(shown, models, "there is no stack with a position encoding; give a Transformer, such as model=gpt")
    for name, encoding, curves in shown:
        print("\n".join(_lines(name, encoding, curves, trained)))
    if arguments.to:
        from attnlab.report.figures.inspection import positions_figure

        named = [(name, curves) for name, _, curves in shown]
        rows = (row for name, curves in named for curve in curves for row in _rows(name, curve, trained))
        drawn = any(curves for _, curves in named)
        _write(
            arguments.to,
            "positions",
            [HEAD, *rows],
            (lambda: positions_figure(named, trained, farthest)) if drawn else None,
        )
    return 0


def reach(arguments: Namespace) -> int:
    """Prints a table a stack, and writes reach.{csv,pdf,png} where a folder is given. Raises: UsageError."""
    from attnlab.inspection.receptive_fields import fields_of
    from attnlab.runs.trained import models_of

    models = models_of(arguments.words, arguments.checkpoint, arguments.config_dir)
    try:
        found = [(model, fields_of(model.model, arguments.length)) for model in models]
    except ValueError as error:
        raise UsageError(str(error)) from error
    shown = [(_name(model, field, fields), field) for model, fields in found for field in fields]
    _refuse_nothing(
        shown, models, "there is no stack of attention or convolution; a recurrence is reached by all before"
    )
    for name, field in shown:
        print(
            f"{name}: {field.kind}; positions that reach the output at position {field.at} of {len(field.reached[0])}"
        )
        print("  layers  counted  formula")
        for layer, (counted, expected) in enumerate(zip(field.counted, field.expected, strict=True), start=1):
            print(f"  {layer:6}  {counted:7}  {expected:7}")
    if arguments.to:
        from attnlab.report.figures.inspection import fields_figure

        rows = [
            (name, layer, position, reaches)
            for name, field in shown
            for layer, row in enumerate(field.reached, start=1)
            for position, reaches in enumerate(row)
        ]
        _write(arguments.to, "reach", [("stack", "layers", "position", "reaches"), *rows], lambda: fields_figure(shown))
    return 0


def _refuse_nothing(shown: Sequence[object], models: Sequence[InspectedModel], why: str) -> None:
    if not shown:
        raise UsageError(f"{', '.join(type(model.model).__name__ for model in models)}: {why}")


def _name(model: InspectedModel, one: Encoding | Field, several: Sequence[object]) -> str:
    """Only those of several stacks need the stack's name."""
    return f"{model.name}, {one.name.partition('.')[0]}" if len(several) > 1 else model.name


def _encodings(model: InspectedModel) -> Iterator[tuple[str, Encoding]]:
    """The encodings of a model by their names."""
    from attnlab.inspection.position_curves import encodings_of

    found = encodings_of(model.model)
    for encoding in found:
        random = not model.trained and any(True for _ in encoding.module.parameters())
        yield _name(model, encoding, found) + (" (not trained: drawn at random)" if random else ""), encoding


def _lines(name: str, encoding: Encoding, curves: Sequence[Curve], trained: int) -> Iterator[str]:
    from attnlab.analysis.formatting import number
    from attnlab.inspection.position_curves import QUANTITIES

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
            head = "" if curve.head is None else f"head {curve.head}"
            yield f"  {head:9}" + "".join(f"{number(at[m], 3):>9}" for m in distances)
    slow = encoding.slow_pairs(trained)
    if slow:
        yield (
            f"  {slow[0]} of {slow[1]} pairs do not turn once within {trained} positions: beyond them, "
            "their angles are new"
        )
    end = max(curves[0].distances) + 1 if curves else 0
    if curves and encoding.farthest(end + 1) == end:
        yield f"  it ends at {end} positions"


def _some(distances: Sequence[int]) -> list[int]:
    """0, the powers of two on both sides, and the ends."""
    wanted = {0, distances[0], distances[-1], *(sign * 2**k for sign in (1, -1) for k in range(13))}
    return [m for m in distances if m in wanted]


def _rows(name: str, curve: Curve, trained: int) -> Iterator[list[object]]:
    head = "" if curve.head is None else curve.head
    buckets: Sequence[object] = curve.buckets or [""] * len(curve.distances)
    for m, mean, low, high, bucket in zip(curve.distances, curve.mean, curve.low, curve.high, buckets, strict=True):
        yield [name, curve.quantity, head, m, mean, low, high, bucket, abs(m) < trained]


def _write(to: str, name: str, rows: Iterable[Sequence[object]], draw: Any) -> None:
    """NAME.csv and, where there is something to draw, NAME.pdf and NAME.png in a folder; says so."""
    from attnlab.report.figures.style import paper_style, write_figure

    folder, written = Path(to), [f"{name}.csv"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / written[0], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    if draw is not None:
        with paper_style():
            figure = draw()
            for ending in ("pdf", "png"):
                written.append(f"{name}.{ending}")
                write_figure(figure, folder / written[-1])
    print(f"{folder}: {', '.join(written)}")


COMMANDS = {
    "positions": Command(
        "show what position encodings do to scores by distance, beyond the training length, too",
        _positions_options,
        positions,
    ),
    "reach": Command(
        "count which positions can reach an output, layer by layer, through windows and kernels", _reach_options, reach
    ),
}
