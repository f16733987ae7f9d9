"""`attnlab attention`, `positions` and `reach`: what heads attend to, and what models do with positions."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.main import CHECKPOINT, CONFIG_DIR, RUN, TEXTS, command, flag, option, refused, repeatable
from attnlab.config import UsageError, usage_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attnlab.inspection.positions import Curve, Encoding, Field
    from attnlab.runs.trained import InspectedModel

DEFAULT_LENGTH, DEFAULT_BEYOND = 128, 4
HEAD = ("encoding", "quantity", "head", "distance", "mean", "least", "most", "bucket", "within_training")
MODELS = (
    option(
        "words", "directories of runs, or settings such as position=rotary,alibi and attention.window=16", nargs="*"
    ),
    option("--to", "a folder for the figure (.pdf and .png) and its numbers (.csv)"),
    *(CHECKPOINT, CONFIG_DIR),
)


@command(
    "attention",
    "show what the heads of a trained run attend to, and what each does",
    *RUN,
    *TEXTS,
    repeatable("--target", "of a text to translate; by default the model's own translation"),
    repeatable("--image", "a file, of a run on images"),
    repeatable("--audio", "a file, of a run on speech; --target says what is said in it"),
    option("--dependencies", "sentences with dependency trees in CoNLL-U: which heads follow which relation"),
    option(
        "--ablate",
        "mask each head and say what it does to the loss, on the run's validation data or on the texts given",
        nargs="?",
        const="validation",
        choices=("validation", "text"),
    ),
    option("--batches", "of the validation data, for --ablate (256 examples at most)", type=int, default=4),
    flag("--figures", "write figures for a paper, as PNG and PDF"),
    option("--head", "the head that the figures show, LAYER.HEAD from 0 (default: the one whose role is clearest)"),
    option("--to", "a folder for the page and the tables (default: attention in the run's directory)"),
)
def attention(arguments: Namespace) -> int:
    """Prints which heads do what, and writes the page, the tables and perhaps figures. Raises: UsageError."""
    _refuse(arguments)
    from attnlab.report.attention import MOST_EXAMPLES, print_heads, print_syntax, write_page
    from attnlab.runs.inspected import InspectedRun

    directory = Path(arguments.run)
    run = InspectedRun(directory, arguments.checkpoint)
    if arguments.image:
        found = run.look_at_images(arguments.image)
    elif arguments.audio:
        found = run.look_at_recordings(arguments.audio, arguments.target)
    else:
        lines, trees = (Path(given) if given else None for given in (arguments.input, arguments.dependencies))
        found = run.look_at_texts(arguments.text, arguments.target, lines, trees, MOST_EXAMPLES)
    found = run.with_effects(found, arguments.ablate, arguments.batches)
    head = found.head(arguments.head)
    folder = Path(arguments.to) if arguments.to else directory / "attention"
    write_page(folder / "attention.html", run.name, found.examples, found.scores, found.effects, found.syntax)
    found.write_tables(folder)
    if arguments.figures:
        from attnlab.report.figures.attention import write_figures  # draws, which costs start-up time

        print(*write_figures(folder / "figures", found.examples[0], found.scores, head), sep="\n")
    print_heads(found.scores, found.effects)
    print_syntax(found.syntax)
    print(folder / "attention.html")
    return 0


def _refuse(arguments: Namespace) -> None:
    texts = bool(arguments.text or arguments.input or arguments.dependencies)
    kinds = [bool(arguments.image), bool(arguments.audio), texts]
    if sum(kinds) > 1:
        raise UsageError(
            "--image is for runs on images, --audio for runs on speech, --text, --input and --dependencies for runs on "
            "texts; give one kind"
        )
    if not any(kinds):
        raise UsageError(
            "give what the model is to look at: --text TEXT, --input FILE (one text a line), --image FILE or --audio "
            "FILE"
        )
    if not all(text.strip() for text in arguments.text):
        raise UsageError("--text is empty; give one token or more to attend to")
    named, others = ("--audio", arguments.audio) if arguments.audio else ("--text", arguments.text)
    if arguments.target and len(arguments.target) != len(others):
        given = f"{len(arguments.target)} times --target and {len(others)} times {named}"
        raise UsageError(f"{given}; give a target for each {'recording' if arguments.audio else 'text'}, or none")
    if arguments.batches < 1:
        raise refused("--batches", "at least 1", arguments.batches)
    if arguments.head and not arguments.figures:
        raise UsageError("--head says which head the figures show; add --figures")


@command(
    "positions",
    "show what position encodings do to scores by distance, beyond the training length, too",
    option("--length", "positions in training (default: of the run or settings, as data.context_length)", type=int),
    option("--beyond", "how many times as far to look (default: 4)", type=int, default=DEFAULT_BEYOND),
    *MODELS,
)
def positions(arguments: Namespace) -> int:
    """Prints the tables, and writes positions.{csv,pdf,png} where a folder is given. Raises: UsageError."""
    from attnlab.inspection.positions import curves_of
    from attnlab.runs.trained import models_of

    models = models_of(arguments.words, arguments.checkpoint, arguments.config_dir)
    trained = arguments.length or next((model.context for model in models if model.context), DEFAULT_LENGTH)
    farthest = trained * arguments.beyond
    for name, given, least in (("--length", trained, 2), ("--beyond", arguments.beyond, 1)):
        if given < least:
            raise refused(name, f"at least {least}", given)
    with usage_errors(after="; give a smaller --length or --beyond"):
        shown = [(name, one, curves_of(one, farthest)) for model in models for name, one in _encodings(model)]
    _refuse_nothing(shown, models, "there is no stack with a position encoding; give a Transformer, such as model=gpt")
    for name, encoding, curves in shown:
        print("\n".join(_lines(name, encoding, curves, trained)))
    if arguments.to:
        from attnlab.report.figures.inspection import positions_figure

        named = [(name, curves) for name, _, curves in shown]
        rows = (row for name, curves in named for curve in curves for row in _rows(name, curve, trained))
        draw = (lambda: positions_figure(named, trained, farthest)) if any(curves for _, curves in named) else None
        _write(arguments.to, "positions", [HEAD, *rows], draw)
    return 0


@command(
    "reach",
    "count which positions can reach an output, layer by layer, through windows and kernels",
    option("--length", "positions (default: somewhat more than what can be reached)", type=int),
    *MODELS,
)
def reach(arguments: Namespace) -> int:
    """Prints a table a stack, and writes reach.{csv,pdf,png} where a folder is given. Raises: UsageError."""
    from attnlab.inspection.positions import fields_of
    from attnlab.runs.trained import models_of

    models = models_of(arguments.words, arguments.checkpoint, arguments.config_dir)
    with usage_errors():
        found = [(model, fields_of(model.model, arguments.length)) for model in models]
    shown = [(_name(model, field, fields), field) for model, fields in found for field in fields]
    nothing = "there is no stack of attention or convolution; a recurrence is reached by all before"
    _refuse_nothing(shown, models, nothing)
    for name, field in shown:
        where = f"position {field.at} of {len(field.reached[0])}"
        print(f"{name}: {field.kind}; positions that reach the output at {where}")
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
    return f"{model.name}, {one.name.partition('.')[0]}" if len(several) > 1 else model.name


def _encodings(model: InspectedModel) -> Iterator[tuple[str, Encoding]]:
    from attnlab.inspection.positions import encodings_of

    found = encodings_of(model.model)
    for encoding in found:
        random = not model.trained and any(True for _ in encoding.module.parameters())
        yield _name(model, encoding, found) + (" (not trained: drawn at random)" if random else ""), encoding


def _lines(name: str, encoding: Encoding, curves: Sequence[Curve], trained: int) -> Iterator[str]:
    from attnlab.analysis.formatting import number
    from attnlab.inspection.positions import QUANTITIES

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


def _write(to: str, name: str, rows: Iterable[Sequence[object]], draw: Callable[[], Figure] | None) -> None:
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
