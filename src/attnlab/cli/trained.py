"""`attnlab evaluate`, `generate` and `translate`: what a trained run can do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from attnlab.cli.build import Parts, build
from attnlab.cli.compose import Mistake
from attnlab.cli.overrides import as_it_stands
from attnlab.cli.provenance import source_changes
from attnlab.cli.records import checkpoint_of, plain_widths, read_record, widths_of
from attnlab.cli.views import show_evaluation
from attnlab.data import PretrainedTokenizer, Tokenizer, TranslationData
from attnlab.data.marks import Marks
from attnlab.data.pairs import lines_of, read_lines
from attnlab.data.sources import refuse_half_characters
from attnlab.generation import Sampler, generate
from attnlab.models import LanguageModel, Seq2Seq
from attnlab.tasks import Translation
from attnlab.training import TokenTask, UnusableCheckpoint, load_weights
from attnlab.training.run_directory import plain

NAMED = 10  # lines whose numbers are told
READ = "attnlab.data.read_tokenizer"


def use(arguments: argparse.Namespace) -> int:
    """Dispatches the three; returns the exit status."""
    directory = Path(arguments.run)
    if arguments.command == "generate":
        return continue_prompts(arguments, *load_model(directory, arguments.checkpoint))
    parts, task = load_run(directory, arguments.checkpoint)
    return {"evaluate": evaluate, "translate": translate_lines}[arguments.command](arguments, parts, task)


def load_run(directory: Path, checkpoint: str) -> tuple[Parts, TokenTask]:
    """
    The parts and the trained task of a run, its data ready to be read.

    Raises: Mistake where there is no run, it has no checkpoint yet, or the data are others than those that it was trained on.
    """
    record, path = read_record(directory), checkpoint_of(directory, checkpoint)
    parts = _parts(record, directory)
    parts.data.setup()
    _refuse_other_data(record, parts.data.widths(), directory)
    return parts, _load(parts.build_task(parts.data.widths()), path)


def _refuse_other_data(record: dict[str, Any], widths: dict[str, Any], directory: Path) -> None:
    """The data of a model that was made elsewhere may be none that it can read. Raises: Mistake."""
    there = widths_of(record) if "imported" in record else {}
    other = [
        f"{name}: {value} there, {plain_widths(widths)[name]} here"
        for name, value in there.items()
        if plain_widths(widths).get(name, value) != value
    ]
    if other:
        raise Mistake(
            f"{directory}: the model was not made for these data: {', '.join(other)}. Import it with data that are as it knows them "
            "(attnlab import ... data=...), or train it on these first: attnlab train model.init_from=RUN"
        )


def load_model(directory: Path, checkpoint: str) -> tuple[torch.nn.Module, Tokenizer | None]:
    """
    The trained model of a run and its tokenizer, where it has one; the data are not needed.

    Raises: Mistake where there is no run, or it has no checkpoint yet.
    """
    record, path = read_record(directory), checkpoint_of(directory, checkpoint)
    parts = _parts(record, directory)
    task = _load(parts.build_task({**parts.data.rehearsal_widths(), **widths_of(record)}), path)
    tokenizer = directory / "tokenizer.json"
    return task.model, Tokenizer.load(tokenizer) if tokenizer.is_file() else None


def _parts(record: dict[str, Any], directory: Path) -> Parts:
    parts = build(OmegaConf.create(as_it_stands(with_own_tokenizer(record["config"], directory))))
    if changes := source_changes(record, record["config"]):
        print(
            f"attnlab: {directory} was trained with another source of your own parts ({', '.join(changes)}): what follows is of the code "
            "that is there now",
            file=sys.stderr,
        )
    return parts


def _load(task: TokenTask, path: Path) -> TokenTask:
    other = f"--checkpoint {'best' if path.stem == 'last' else 'last'} takes the other one"
    try:
        load_weights(task, path)
    except UnusableCheckpoint as error:
        raise Mistake(f"{error}; {other}") from error
    except ValueError as error:
        raise Mistake(f"{error}. The file was altered, or the data have changed since the training; {other}") from error
    return task.eval()


def with_own_tokenizer(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The configuration of a run whose tokenizer was read from elsewhere, with the run's own copy instead: the other may be gone."""

    def own(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if node.get("_target_") == READ:
            return {"_target_": READ, "path": str(directory)}
        return {name: own(value) for name, value in node.items()}

    found = {name: own(value) for name, value in config.items()}
    if found["data"].get("tokenizer_from"):
        found["data"]["tokenizer_from"] = str(directory)
    return found


def evaluate(arguments: argparse.Namespace, parts: Parts, task: TokenTask) -> int:
    """Prints the run's metrics on a split as JSON; W&B gets them where it has the run."""
    task.check_split(parts.data, arguments.split)
    figures = task.evaluate(parts.data, arguments.split)
    for name, reason in task.cannot.items():
        print(f"{name} cannot: {reason}", file=sys.stderr)
    for name, note in task.notes.items():
        print(f"{name} by {note}", file=sys.stderr)
    if not figures:
        other = "validation" if arguments.split == "test" else "test"
        raise Mistake(f"the {arguments.split} part is too small to be scored; --split {other} takes the other one")
    print(json.dumps(plain(figures), indent=1))
    show_evaluation(Path(arguments.run), parts.tracking, figures, arguments)
    return 0


def continue_prompts(arguments: argparse.Namespace, model: torch.nn.Module, tokenizer: Tokenizer | None) -> int:
    """Prints each prompt with its continuation, or the answer to it alone."""
    if not isinstance(model, LanguageModel) or tokenizer is None:
        instead = "translate" if isinstance(model, Seq2Seq) else "evaluate"
        raise Mistake(f"{arguments.run}: {type(model).__name__} continues no text; attnlab {instead} may be meant")
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p)
    if not all(arguments.prompt):
        raise Mistake("--prompt is empty; give at least one character to go on from")
    for prompt in arguments.prompt:
        refuse_half_characters(prompt, "--prompt")
    if arguments.system is not None and not arguments.chat:
        raise Mistake("--system tells a model how to answer messages; add --chat")
    marks = tokenizer.marks or Marks()
    if arguments.chat:
        prompts = [_conversation(arguments, tokenizer, prompt) for prompt in arguments.prompt]
    else:
        prompts = [[*marks.text[0], *tokenizer.encode(prompt).tolist()] for prompt in arguments.prompt]
    with torch.inference_mode():
        rows = generate(model, prompts, arguments.max_new_tokens, sampler, seed=arguments.seed, ends=marks.ends)
    rows = [row[:-1] if row and row[-1] in marks.ends else row for row in rows]
    if arguments.chat:
        print("\n\n".join(map(tokenizer.decode, rows)))
        return 0
    texts = zip(arguments.prompt, prompts, rows, strict=True)
    print("\n\n".join(text + continuation(tokenizer, prompt, row) for text, prompt, row in texts))
    return 0


def _conversation(arguments: argparse.Namespace, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a conversation of one message, and perhaps of how to answer it."""
    if not isinstance(tokenizer, PretrainedTokenizer) or tokenizer.chat_template is None:
        raise Mistake(
            f"{arguments.run}: --chat needs a tokenizer with a chat template, and this run's has none; leave --chat out, or take a run "
            "of a published model that answers messages"
        )
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    text = tokenizer.render_chat([*system, {"role": "user", "content": prompt}])
    return tokenizer.encode(text).tolist()


def continuation(tokenizer: Tokenizer, prompt: list[int], row: list[int]) -> str:
    """The text of new tokens after those of a prompt: by themselves some tokenizers would leave out the blank before them."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *row])
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(row)


def translate_lines(arguments: argparse.Namespace, parts: Parts, task: TokenTask) -> int:
    """Prints a translation of each line, an empty line for an empty one; of several, each after its line's number."""
    if not isinstance(task, Translation) or not isinstance(parts.data, TranslationData):
        raise Mistake(
            f"{arguments.run}: a run of {type(task).__name__} translates nothing; give one of task=translation"
        )
    beams = max(task.search.beams, arguments.num_best) if arguments.beams is None else arguments.beams
    alpha = task.search.length_penalty if arguments.length_penalty is None else arguments.length_penalty
    search = replace(task.search, beams=beams, length_penalty=alpha, num_best=arguments.num_best)
    # Bytes, so that every machine reads UTF-8 whatever its language settings.
    lines = (
        read_lines(Path(arguments.input)) if arguments.input else lines_of(sys.stdin.buffer.read(), "standard input")
    )
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
