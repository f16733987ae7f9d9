"""`attnlab attention`: what the heads of a trained run attend to, what each does, and what is lost without it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from attnlab.analysis.ablation import Effect, TaskLosses, ablate, heads_of, text_losses
from attnlab.analysis.attended import Attended, Reader, read_image
from attnlab.analysis.attention_page_data import MOST_EXAMPLES as ON_A_PAGE
from attnlab.analysis.conllu import Sentence, read_sentences
from attnlab.analysis.head_roles import as_csv, as_json
from attnlab.analysis.head_statistics import Head, Scores, head_scores, merged
from attnlab.analysis.repeated import repeat_scores
from attnlab.analysis.syntactic_agreement import Agreement, agreement
from attnlab.analysis.syntactic_agreement import as_csv as syntax_as_csv
from attnlab.cli.attention_table import print_heads, print_syntax
from attnlab.cli.compose import Mistake
from attnlab.cli.records import read_record
from attnlab.cli.trained import load_model, load_run
from attnlab.data import Tokenizer
from attnlab.data.image_files import read_pixels
from attnlab.data.pairs import read_lines
from attnlab.generation.beam import BeamSearch
from attnlab.models import LanguageModel, Seq2Seq
from attnlab.models.vit import ViT
from attnlab.training.run_directory import write_json, write_text

MOST_EXAMPLES = 256  # that heads are masked on
TRANSLATES = "a sequence-to-sequence model, such as model=encoder_decoder"


@dataclass(frozen=True)
class Found:
    """All that was found out about a run."""

    examples: list[Attended]
    scores: Scores
    effects: dict[Head, Effect] | None
    syntax: list[Agreement]


def attention(arguments: argparse.Namespace) -> int:
    """Prints which heads do what, and writes the page, the tables and perhaps figures; returns the exit status. Raises: Mistake."""
    directory = Path(arguments.run)
    _refuse(arguments)
    record = read_record(directory)
    model, tokenizer = load_model(directory, arguments.checkpoint)
    try:
        found = _look(arguments, record, model, tokenizer)
    except ValueError as error:
        raise Mistake(f"{directory}: {error}") from error
    head = _asked_head(arguments.head, found)
    folder = Path(arguments.to) if arguments.to else directory / "attention"
    _write(folder, str(record.get("name", directory.name)), found)
    if arguments.figures:
        from attnlab.analysis.attention_figures import write_figures  # draws, which costs start-up time

        for path in write_figures(folder / "figures", found.examples[0], found.scores, head):
            print(path)
    print_heads(found.scores, found.effects)
    print_syntax(found.syntax)
    print(folder / "attention.html")
    return 0


def _refuse(arguments: argparse.Namespace) -> None:
    """Words that do not go together. Raises: Mistake."""
    texts = bool(arguments.text or arguments.input or arguments.dependencies)
    if arguments.image and texts:
        raise Mistake(
            "--image is for runs on images, --text, --input and --dependencies for runs on texts; give one kind"
        )
    if not arguments.image and not texts:
        raise Mistake("give what the model is to look at: --text TEXT, --input FILE (one text a line) or --image FILE")
    if not all(text.strip() for text in arguments.text):
        raise Mistake("--text is empty; give one token or more to attend to")
    if arguments.target and len(arguments.target) != len(arguments.text):
        raise Mistake(
            f"{len(arguments.target)} times --target and {len(arguments.text)} times --text; give a target for each text, or none"
        )
    if arguments.batches < 1:
        raise Mistake(f"--batches {arguments.batches}: accepted is 1 or more")
    if arguments.head and not arguments.figures:
        raise Mistake("--head says which head the figures show; add --figures")


def _look(
    arguments: argparse.Namespace, record: dict[str, Any], model: nn.Module, tokenizer: Tokenizer | None
) -> Found:
    examples: list[Attended] = []
    syntax: list[Agreement] = []
    if arguments.image:
        examples = _images(arguments, record, model)
        scores = head_scores(examples)
    else:
        reader = _reader(arguments, record, model, tokenizer)
        sentences = read_sentences(Path(arguments.dependencies)) if arguments.dependencies else []
        scores = head_scores(_read(reader, _given(arguments, sentences), examples))
        # Read once more, one by one: all maps together may be more than memory holds.
        syntax = agreement((reader.read(sentence.text) for sentence in sentences), sentences)
    if isinstance(model, LanguageModel) and tokenizer is not None:
        scores = merged(scores, repeat_scores(model, tokenizer, record["config"]["data"].get("context")))
    return Found(examples, scores, _effects(arguments, model, examples), syntax)


def _reader(
    arguments: argparse.Namespace, record: dict[str, Any], model: nn.Module, tokenizer: Tokenizer | None
) -> Reader:
    """What reads the run's texts, and translates them as the run was evaluated. Raises: Mistake."""
    if isinstance(model, ViT) or tokenizer is None:
        raise Mistake(f"{arguments.run}: {type(model).__name__} reads no text; give it --image FILE")
    if arguments.target and not isinstance(model, Seq2Seq):
        raise Mistake(f"{arguments.run}: {type(model).__name__} takes no --target; it belongs to {TRANSLATES}")
    own = Path(arguments.run) / "source_tokenizer.json"
    settings = record["config"]["task"]
    fields = {name: settings[name] for name in ("beams", "length_penalty", "max_extra") if name in settings}
    return Reader(model, tokenizer, Tokenizer.load(own) if own.is_file() else None, BeamSearch(**fields))


def _given(arguments: argparse.Namespace, sentences: Sequence[Sentence]) -> list[tuple[str, str | None]]:
    """The texts with the targets that were given, last those of the dependency file. Raises: Mistake where there is none."""
    lines = [line for line in read_lines(Path(arguments.input)) if line.strip()] if arguments.input else []
    texts = [*arguments.text, *lines, *(sentence.text for sentence in sentences)]
    if not texts:
        raise Mistake(f"--input {arguments.input} holds no text")
    return list(zip(texts, [*arguments.target, *[None] * (len(texts) - len(arguments.target))], strict=True))


def _read(reader: Reader, given: Sequence[tuple[str, str | None]], examples: list[Attended]) -> Iterator[Attended]:
    """Text by text; `examples` keeps the maps of those that a page may show, and of the others the tokens alone."""
    for text, target in given:
        example = reader.read(text, target)
        examples.append(example if len(examples) < ON_A_PAGE else replace(example, maps=[]))
        yield example


def _images(arguments: argparse.Namespace, record: dict[str, Any], model: nn.Module) -> list[Attended]:
    if not isinstance(model, ViT):
        raise Mistake(f"{arguments.run}: {type(model).__name__} looks at no image; give it --text TEXT")
    mean_C, deviation_C = _moments(arguments, record)
    rows, columns = model.image_size
    found = []
    for name in arguments.image:
        pixels_CYX = read_pixels(name, partial(Image.open, name), rows if rows == columns else None, model.channels)
        if pixels_CYX.shape[1:] != (rows, columns):
            size = "{} x {}".format(*pixels_CYX.shape[1:])
            raise Mistake(f"--image {name} has {size} pixels (rows x columns); accepted: {rows} x {columns}")
        found.append(read_image(model, pixels_CYX, mean_C, deviation_C, Path(name).name))
    return found


def _moments(arguments: argparse.Namespace, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What the run's images were normalised by: its record says it, or its data do."""
    facts = record.get("data", {})
    if "mean" in facts and "deviation" in facts:
        return np.array(facts["mean"]), np.array(facts["deviation"])
    parts, _ = load_run(Path(arguments.run), arguments.checkpoint)
    data: Any = parts.data
    return data.mean_C, data.deviation_C


def _effects(
    arguments: argparse.Namespace, model: nn.Module, examples: Sequence[Attended]
) -> dict[Head, Effect] | None:
    """What masking each head does, on the texts that were given or on the run's validation data."""
    if arguments.ablate is None:
        return None
    if arguments.ablate == "text":
        of_texts = text_losses(model, examples)
        _say(len(heads_of(model)), len(examples), "texts given")
        return ablate(model, of_texts)
    parts, task = load_run(Path(arguments.run), arguments.checkpoint)
    loader: Any = parts.data.val_dataloader()
    # The longest come first in some loaders: batches from all over are like the whole.
    places = set(np.linspace(0, len(loader) - 1, min(arguments.batches, len(loader))).round().astype(int).tolist())
    batches = [batch for place, batch in enumerate(loader) if place in places]
    losses = TaskLosses(task, batches, MOST_EXAMPLES)
    _say(len(heads_of(task.model)), losses.count, "validation examples")
    return ablate(task.model, losses)


def _say(heads: int, examples: int, of_what: str) -> None:
    print(f"masking {heads} heads, one at a time; {of_what}: {examples}", file=sys.stderr)


def _asked_head(words: str | None, found: Found) -> Head | None:
    """The head that --head names. Raises: Mistake."""
    if words is None:
        return None
    known = {f"{head.layer}.{head.head}": head for head in reversed(found.scores)} | {
        str(head): head for head in found.scores
    }
    if words not in known:
        raise Mistake(
            f"--head {words}: there is no such head; accepted are LAYER.HEAD, as in {', '.join(list(known)[:4])}, with or without a kind"
        )
    return known[words]


def _write(folder: Path, name: str, found: Found) -> None:
    from attnlab.analysis.attention_page import write_page

    write_page(folder / "attention.html", name, found.examples, found.scores, found.effects, found.syntax)
    effects: Mapping[Head, Effect] | None = found.effects
    write_text(folder / "heads.csv", as_csv(found.scores, effects), durable=False)
    write_json(folder / "heads.json", as_json(found.scores, effects), durable=False)
    if found.syntax:
        write_text(folder / "syntax.csv", syntax_as_csv(found.syntax), durable=False)
