"""`attnlab evaluate`, `generate`, `translate` and `embed`: what a trained run can do. Legend: N texts, D width."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.options import Command, add_repeatable, add_run, add_texts
from attnlab.config import UsageError
from attnlab.ranges import must_be

if TYPE_CHECKING:
    from attnlab.data import Tokenizer

NAMED = 10  # lines whose numbers are told
SHOWN = 60  # characters of a text


def _evaluate_options(evaluate: ArgumentParser) -> None:
    add_run(evaluate)
    evaluate.add_argument("--split", default="test", help="validation, test, or another that the data have")
    evaluate.add_argument("--wandb", action="store_true", help="log the figures to W&B, as where the run itself was")


def evaluate(arguments: Namespace) -> int:
    """Prints the run's metrics on a split as JSON; W&B gets them where it has the run."""
    from attnlab.runs.trained import load_run
    from attnlab.runs.views import show_evaluation
    from attnlab.training.run_directory import plain

    directory, split = Path(arguments.run), arguments.split
    parts, task = load_run(directory, arguments.checkpoint)
    task.check_split(parts.data, split)
    figures = task.evaluate(parts.data, split)
    for name, reason in task.cannot.items():
        print(f"{name} cannot: {reason}", file=sys.stderr)
    for name, note in task.notes.items():
        print(f"{name} by {note}", file=sys.stderr)
    if not figures:
        other = "validation" if split == "test" else "test"
        raise UsageError(f"the {split} part is too small to be scored; --split {other} takes the other one")
    print(json.dumps(plain(figures), indent=1))
    show_evaluation(directory, parts.tracking, figures, split, arguments.checkpoint, arguments.wandb)
    return 0


def _generate_options(generate: ArgumentParser) -> None:
    add_run(generate)
    add_repeatable(generate, "--prompt", "the text to continue", required=True)
    chat = "take each prompt as a message, by the tokenizer's chat template; print the answers alone"
    generate.add_argument("--chat", action="store_true", help=chat)
    generate.add_argument("--system", help="with --chat: how the messages are to be answered")
    generate.add_argument("--max-new-tokens", type=int, default=200)
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--min-p", type=float)
    generate.add_argument("--seed", type=int, default=0)


def generate(arguments: Namespace) -> int:
    """Prints each prompt with its continuation, or the answer to it alone."""
    import torch

    from attnlab.data.readers import refuse_half_characters
    from attnlab.data.special_tokens import SpecialTokens
    from attnlab.generation import Sampler
    from attnlab.generation import generate as continued
    from attnlab.models import LanguageModel, Seq2Seq
    from attnlab.runs.trained import load_model

    model, tokenizer = load_model(Path(arguments.run), arguments.checkpoint)
    if not isinstance(model, LanguageModel) or tokenizer is None:
        instead = "translate" if isinstance(model, Seq2Seq) else "evaluate"
        raise UsageError(f"{arguments.run}: {type(model).__name__} continues no text; attnlab {instead} may be meant")
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p)
    if not all(arguments.prompt):
        raise UsageError("--prompt is empty; give at least one character to go on from")
    for prompt in arguments.prompt:
        refuse_half_characters(prompt, "--prompt")
    if arguments.system is not None and not arguments.chat:
        raise UsageError("--system tells a model how to answer messages; add --chat")
    marks = tokenizer.special_tokens or SpecialTokens()
    if arguments.chat:
        prompts = [_conversation(arguments, tokenizer, prompt) for prompt in arguments.prompt]
    else:
        prompts = [[*marks.text[0], *tokenizer.encode(prompt).tolist()] for prompt in arguments.prompt]
    with torch.inference_mode():
        rows = continued(model, prompts, arguments.max_new_tokens, sampler, seed=arguments.seed, ends=marks.ends)
    rows = [row[:-1] if row and row[-1] in marks.ends else row for row in rows]
    if arguments.chat:
        print("\n\n".join(map(tokenizer.decode, rows)))
        return 0
    texts = zip(arguments.prompt, prompts, rows, strict=True)
    print("\n\n".join(text + continuation(tokenizer, prompt, row) for text, prompt, row in texts))
    return 0


def _conversation(arguments: Namespace, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a conversation of one message, and perhaps of how to answer it."""
    from attnlab.data import PretrainedTokenizer

    if not isinstance(tokenizer, PretrainedTokenizer) or tokenizer.chat_template is None:
        raise UsageError(
            f"{arguments.run}: --chat needs a tokenizer with a chat template, and this run's has none; leave "
            "--chat out, "
            "or take a run of a published model that answers messages"
        )
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    text = tokenizer.render_chat([*system, {"role": "user", "content": prompt}])
    return tokenizer.encode(text).tolist()


def continuation(tokenizer: Tokenizer, prompt: list[int], row: list[int]) -> str:
    """The text of new tokens after a prompt's: by themselves, some tokenizers leave out the blank before them."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *row])
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(row)


def _translate_options(translate: ArgumentParser) -> None:
    add_run(translate)
    translate.add_argument("--input", help="a text file, one sentence a line (default: standard input)")
    translate.add_argument("--beams", type=int, help="1 is greedy (default: as the run was evaluated)")
    translate.add_argument("--length-penalty", type=float, help="alpha of ((5 + length) / 6)^alpha")
    best = "translations of each line, best first, each after the line's number where they are several"
    translate.add_argument("--num-best", type=int, default=1, help=best)
    scores = "print score and log-probability before each, with tabs"
    translate.add_argument("--scores", action="store_true", help=scores)


def translate(arguments: Namespace) -> int:
    """Prints a translation of each line, an empty line for an empty one; of several, each after its line's number."""
    from attnlab.data import TranslationData
    from attnlab.data.pairs import read_lines
    from attnlab.data.readers import lines_of
    from attnlab.runs.trained import load_run
    from attnlab.tasks import Translation

    parts, task = load_run(Path(arguments.run), arguments.checkpoint)
    if not isinstance(task, Translation) or not isinstance(parts.data, TranslationData):
        raise UsageError(
            f"{arguments.run}: a run of {type(task).__name__} translates nothing; give one of task=translation"
        )
    beams = max(task.search.beams, arguments.num_best) if arguments.beams is None else arguments.beams
    alpha = task.search.length_penalty if arguments.length_penalty is None else arguments.length_penalty
    search = replace(task.search, beams=beams, length_penalty=alpha, num_best=arguments.num_best)
    if arguments.input:
        lines = read_lines(Path(arguments.input))
    else:  # bytes, so that every machine reads UTF-8 whatever its language settings
        lines = lines_of(sys.stdin.buffer.read(), "standard input")
    if cut := parts.data.texts_cut(lines):
        numbers = ", ".join(str(place + 1) for place in cut[:NAMED]) + (", ..." if len(cut) > NAMED else "")
        limit = parts.data.max_length
        print(f"{len(cut)} of {len(lines)} lines cut at {limit} tokens (data.max_length): {numbers}", file=sys.stderr)
    for number, found in enumerate(task.translate(parts.data, lines, search), start=1):
        for text, hypothesis in found:
            place = f"{number}\t" if arguments.num_best > 1 else ""
            scores = f"{hypothesis.score:.4f}\t{hypothesis.log_probability:.4f}\t" if arguments.scores else ""
            print(f"{place}{scores}{text}")
    return 0


def _embed_options(embed: ArgumentParser) -> None:
    add_run(embed)
    add_texts(embed)
    embed.add_argument(
        "--pooling", choices=("mean", "first"), default="mean", help="of the states: their mean, or the first"
    )
    embed.add_argument("--to", help="a .npy file for the embeddings, a normalised row a text")
    embed.add_argument("--picture", help="a .png or .pdf file: how alike they are, or a map of more than 30")


def embed(arguments: Namespace) -> int:
    """Prints how alike the texts are, or writes their embeddings or a picture of them. Raises: UsageError."""
    import numpy as np

    from attnlab.data.pairs import read_lines
    from attnlab.inspection.embeddings import embeddings, encode
    from attnlab.models.base import Encoder
    from attnlab.models.heads import EncoderHead
    from attnlab.runs.trained import load_model

    picture = Path(arguments.picture) if arguments.picture else None
    if picture and (picture.suffix not in (".pdf", ".png") or not picture.parent.is_dir()):
        wanted = "a file that ends in .pdf or .png, in a folder that is there"
        raise UsageError(must_be("--picture", wanted, str(picture)))
    texts = [*arguments.text, *(read_lines(Path(arguments.input)) if arguments.input else [])]
    if not texts or not all(text.strip() for text in texts):
        raise UsageError("give one text or more that are not empty, with --text TEXT or --input FILE (one a line)")
    model, tokenizer = load_model(Path(arguments.run), arguments.checkpoint)
    encoder = model.encoder if isinstance(model, EncoderHead) else model
    if not isinstance(encoder, Encoder) or tokenizer is None:
        raise UsageError(
            f"{arguments.run}: {type(model).__name__} is no encoder of texts; give a run of one, such as model=bert"
        )
    rows, cut = encode(tokenizer, texts, encoder.longest)
    if nothing := [text for text, row in zip(texts, rows, strict=True) if not len(row)]:
        raise UsageError(f"{nothing[0]!r} has no token in this run's tokenizer; leave it out")
    if cut:
        print(f"{len(cut)} of {len(texts)} texts cut at {encoder.longest} tokens", file=sys.stderr)
    embeddings_ND = embeddings(encoder, rows, arguments.pooling)
    if picture:
        from attnlab.report.figures.inspection import embeddings_figure
        from attnlab.report.figures.style import paper_style, write_figure

        with paper_style():
            write_figure(embeddings_figure(embeddings_ND.numpy(), texts), picture)
        print(f"{picture}: {len(texts)} texts")
    if arguments.to:
        with open(arguments.to, "wb") as file:  # by its name, numpy would put .npy behind it
            np.save(file, embeddings_ND.numpy())
        print(f"{arguments.to}: {len(texts)} rows of {embeddings_ND.shape[1]} numbers")
    for row, text in enumerate(texts if not (arguments.to or picture) else ()):
        alike = " ".join(f"{value:6.3f}" for value in (embeddings_ND @ embeddings_ND[row]).tolist())
        print(f"{row + 1:3} {alike}  {text[:SHOWN]}")
    return 0


COMMANDS = {
    "evaluate": Command("evaluate a trained run on one of its splits", _evaluate_options, evaluate),
    "generate": Command("continue a prompt with a trained run", _generate_options, generate),
    "translate": Command("translate lines with a trained run", _translate_options, translate),
    "embed": Command("embed texts with a trained encoder, and say how alike they are", _embed_options, embed),
}
