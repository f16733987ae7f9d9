"""`attnlab attention`: what the heads of a trained run attend to, what each does, and what is lost without it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from attnlab.cli.options import Command, add_repeatable, add_run, add_texts
from attnlab.config import UsageError
from attnlab.ranges import must_be


def _options(attention: ArgumentParser) -> None:
    add_run(attention)
    add_texts(attention)
    add_repeatable(attention, "--target", "of a text to translate; by default the model's own translation")
    add_repeatable(attention, "--image", "a file, of a run on images")
    trees = "sentences with dependency trees in CoNLL-U: which heads follow which relation"
    attention.add_argument("--dependencies", help=trees)
    ablate = "mask each head and say what it does to the loss, on the run's validation data or on the texts given"
    attention.add_argument("--ablate", nargs="?", const="validation", choices=("validation", "text"), help=ablate)
    batches = "of the validation data, for --ablate (256 examples at most)"
    attention.add_argument("--batches", type=int, default=4, help=batches)
    attention.add_argument("--figures", action="store_true", help="write figures for a paper, as PNG and PDF")
    head = "the head that the figures show in detail, LAYER.HEAD from 0 (default: the one whose role is clearest)"
    attention.add_argument("--head", help=head)
    attention.add_argument(
        "--to", help="a folder for the page and the tables (default: attention in the run's directory)"
    )


def attention(arguments: Namespace) -> int:
    """Prints which heads do what, and writes the page, the tables and perhaps figures. Raises: UsageError."""
    _refuse(arguments)
    from attnlab.report.attention_page import MOST_EXAMPLES, write_page
    from attnlab.report.attention_table import print_heads, print_syntax
    from attnlab.runs.inspected import InspectedRun

    directory = Path(arguments.run)
    run = InspectedRun(directory, arguments.checkpoint)
    if arguments.image:
        found = run.look_at_images(arguments.image)
    else:
        lines = Path(arguments.input) if arguments.input else None
        trees = Path(arguments.dependencies) if arguments.dependencies else None
        found = run.look_at_texts(arguments.text, arguments.target, lines, trees, MOST_EXAMPLES)
    found = run.with_effects(found, arguments.ablate, arguments.batches)
    head = found.head(arguments.head)
    folder = Path(arguments.to) if arguments.to else directory / "attention"
    write_page(folder / "attention.html", run.name, found.examples, found.scores, found.effects, found.syntax)
    found.write_tables(folder)
    if arguments.figures:
        from attnlab.report.figures.attention import write_figures  # draws, which costs start-up time

        for path in write_figures(folder / "figures", found.examples[0], found.scores, head):
            print(path)
    print_heads(found.scores, found.effects)
    print_syntax(found.syntax)
    print(folder / "attention.html")
    return 0


def _refuse(arguments: Namespace) -> None:
    """Words that do not go together. Raises: UsageError."""
    texts = bool(arguments.text or arguments.input or arguments.dependencies)
    if arguments.image and texts:
        raise UsageError(
            "--image is for runs on images, --text, --input and --dependencies for runs on texts; give one kind"
        )
    if not arguments.image and not texts:
        raise UsageError(
            "give what the model is to look at: --text TEXT, --input FILE (one text a line) or --image FILE"
        )
    if not all(text.strip() for text in arguments.text):
        raise UsageError("--text is empty; give one token or more to attend to")
    if arguments.target and len(arguments.target) != len(arguments.text):
        given = f"{len(arguments.target)} times --target and {len(arguments.text)} times --text"
        raise UsageError(f"{given}; give a target for each text, or none")
    if arguments.batches < 1:
        raise UsageError(must_be("--batches", "at least 1", arguments.batches))
    if arguments.head and not arguments.figures:
        raise UsageError("--head says which head the figures show; add --figures")


COMMANDS = {
    "attention": Command("show what the heads of a trained run attend to, and what each does", _options, attention)
}
