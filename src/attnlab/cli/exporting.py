"""`attnlab export`: a run as a folder that Hugging Face transformers loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from attnlab.cli.compose import Mistake
from attnlab.cli.records import checkpoint_of, read_record, read_tensors, settings_of, widths_of
from attnlab.data import Tokenizer, write_tokenizer
from attnlab.data.marks import Marks
from attnlab.data.vocabulary import Vocabulary
from attnlab.interop import CannotConvert, to_folder

TOKEN_FIELDS = {
    "pad_token_id": "pad",
    "bos_token_id": "start",
    "eos_token_id": "end",
    "decoder_start_token_id": "target_start",
}
PAIRS = ("EncoderDecoder", "T5")  # models of a source and a target


def export(arguments: argparse.Namespace) -> int:
    """Writes config.json, safetensors and the tokenizer's files; returns the exit status. Raises: Mistake."""
    directory, target = Path(arguments.run), Path(arguments.to)
    record = read_record(directory)
    settings = settings_of(record, directory)
    tensors, left = _encoder_alone(read_tensors(checkpoint_of(directory, arguments.checkpoint)))
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise Mistake(f"--to {target}: there is something already; give a folder that is new or empty")
    tokenizer, marks = _tokenizer(directory, widths_of(record))
    fields = {} if tokenizer is None else _fields(marks, settings["model"])
    try:
        known = to_folder(target, settings, tensors, arguments.architecture, **fields)
    except CannotConvert as error:
        raise Mistake(f"{directory}: {error}") from error
    if tokenizer is not None:
        write_tokenizer(tokenizer, target, "source" if settings["model"] in PAIRS else "text")
    written = f"{target}: {known.name} ({known.classes[0]}), {sum(t.numel() for t in tensors.values()):,} parameters"
    print(f"{written}; transformers.AutoModel.from_pretrained({str(target)!r}) loads it")
    if left:
        print(f"left out: {', '.join(left)} (the output of this run's task has no counterpart there)", file=sys.stderr)
    return 0


def _encoder_alone(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the model that a task's output stands on, and the names of the output's."""
    if "encoder.embedding.weight" not in tensors:
        return tensors, []
    inner = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    return inner, [name for name in tensors if not name.startswith("encoder.")]


def _tokenizer(directory: Path, widths: dict[str, Any]) -> tuple[Tokenizer | Vocabulary | None, Marks]:
    """The run's tokenizer, behind its marks where the model's numbers have them before the text's."""
    path = directory / "tokenizer.json"
    if (directory / "source_tokenizer.json").is_file():
        raise Mistake(
            f"{directory}: source and target have a tokenizer each, and no architecture that is written has two; train with data.joint=true"
        )
    if not path.is_file():
        return None, Marks()
    tokenizer = Tokenizer.load(path)
    if tokenizer.marks is not None:
        return tokenizer, tokenizer.marks
    before = widths["vocabulary_size"] - tokenizer.vocabulary_size
    if not before:
        return tokenizer, Marks()
    vocabulary = Vocabulary(tokenizer)
    vocabulary = Vocabulary(tokenizer, before - vocabulary.first_text)
    return vocabulary, vocabulary.marks


def _fields(marks: Marks, model: str) -> dict[str, Any]:
    """The numbers of the marks, as config.json has them: null for those that are not there, for each architecture has defaults of its own."""
    numbers: dict[str, Any] = {field: getattr(marks, name) for field, name in TOKEN_FIELDS.items()}
    if len(marks.ends) > 1:
        numbers["eos_token_id"] = list(marks.ends)
    if model not in PAIRS:
        del numbers["decoder_start_token_id"]
    else:
        numbers["forced_eos_token_id"] = None
    return numbers
