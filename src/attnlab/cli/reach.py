"""`attnlab reach`: which positions can reach an output of a model, layer by layer, as a table, CSV and figure."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from attnlab.analysis.receptive_fields import Field, fields_of
from attnlab.cli.compose import Mistake
from attnlab.cli.looked_at import models_of


def reach(arguments: argparse.Namespace) -> int:
    """Prints a table a stack, and writes reach.{csv,pdf,png} where a folder is given; returns the exit status. Raises: Mistake."""
    models = models_of(arguments.words, arguments.checkpoint, arguments.config_dir)
    try:
        found = [(model, fields_of(model.model, arguments.length)) for model in models]
    except ValueError as error:
        raise Mistake(str(error)) from error
    shown = [
        (f"{model.name}, {field.name.partition('.')[0]}" if len(fields) > 1 else model.name, field)
        for model, fields in found
        for field in fields
    ]
    if not shown:
        names = ", ".join(type(model.model).__name__ for model in models)
        raise Mistake(f"{names}: there is no stack of attention or convolution; a recurrence is reached by all before")
    for name, field in shown:
        print("\n".join(_lines(name, field)))
    if arguments.to:
        _write(Path(arguments.to), shown)
    return 0


def _lines(name: str, field: Field) -> Iterator[str]:
    yield f"{name}: {field.kind}; positions that reach the output at position {field.at} of {len(field.reached[0])}"
    yield "  layers  counted  formula"
    for layer, (counted, expected) in enumerate(zip(field.counted, field.expected, strict=True), start=1):
        yield f"  {layer:6}  {counted:7}  {expected:7}"


def _write(folder: Path, shown: Sequence[tuple[str, Field]]) -> None:
    from attnlab.analysis.figure_fields import fields_figure
    from attnlab.analysis.figure_style import paper_style, write_figure

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "reach.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("stack", "layers", "position", "reaches"))
        for name, field in shown:
            for layer, row in enumerate(field.reached, start=1):
                writer.writerows((name, layer, position, reaches) for position, reaches in enumerate(row))
    with paper_style():
        figure = fields_figure(shown)
        for ending in ("pdf", "png"):
            write_figure(figure, folder / f"reach.{ending}")
    print(f"{folder}: reach.csv, reach.pdf, reach.png")
