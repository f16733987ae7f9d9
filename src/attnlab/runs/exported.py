"""A run as a folder that Hugging Face transformers loads, tried before it is called one."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnlab.config import UsageError
from attnlab.data import MarianTokenizer, Tokenizer, write_tokenizer
from attnlab.data.special_tokens import END, START, SpecialTokens, add_special_tokens
from attnlab.data.tokenizer_files import LEADING
from attnlab.data.vocabulary import Vocabulary
from attnlab.interop import HEADS, CannotConvert, Head, architecture_for, compare, to_folder, tokenizer_there
from attnlab.interop.convert import Given
from attnlab.interop.remote_code import described, write_folder
from attnlab.models import Encoder, LanguageModel, Seq2Seq, Whisper
from attnlab.models.heads import EncoderHead, SequenceClassifier
from attnlab.runs.clients import OLD_END, Exported, labels, notes, preprocessor, token_fields
from attnlab.runs.record import Record, read_record, settings_of
from attnlab.runs.trained import load_task

TEXTS, LONGEST = 4, 48  # that an export is tried on, and how many tokens of each at most
SOURCES, TARGETS = "source_tokenizer.json", "tokenizer.json"


def export_run(
    directory: Path,
    checkpoint: str,
    target: Path,
    architecture: str | None,
    card: Callable[[Exported], str] | None = None,
) -> tuple[list[str], list[str]]:
    """Writes config.json, safetensors and the tokenizer's files; says what was written, and what clients may miss.

    target: a folder that is new or empty. architecture: None: the one that computes the same, else code that imports
    attnlab. card: what README.md says of it. Raises: UsageError.
    """
    found = _read(directory, checkpoint)
    left: list[str] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "model"
        try:
            found, left = _decided(found, architecture)
            written = _write(found, folder)
            tried = _tried(found, folder)
        except CannotConvert as error:
            raise UsageError(f"{directory}: {error}") from error
        if card is not None:
            (folder / "README.md").write_text(card(found), encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        shutil.move(folder, target)
    size = sum(parameter.numel() for parameter in found.model.parameters())
    return [f"{target}: {written}, {size:,} parameters; {tried}"], [*left, *notes(found)]


def _read(directory: Path, checkpoint: str) -> Exported:
    """What a run is to be written as. Raises: UsageError."""
    record = read_record(directory)
    task, _ = load_task(directory, checkpoint)
    try:
        settings = settings_of(record, directory)
    except UsageError:  # of a model of the user's own the class and what the data told it are known
        settings = {"model": type(task.model).__name__, **record.get("widths", {})}
    rows = record.get("widths", {})
    tokenizer, special_tokens = _tokenizer(directory / TARGETS, rows.get("vocabulary_size"))
    found = Exported(directory, record, settings, task.model, None, tokenizer, special_tokens)
    if not (directory / SOURCES).is_file():
        return found
    of_source, _ = _tokenizer(directory / SOURCES, rows.get("source_vocabulary_size"))
    return replace(found, tokenizer=of_source, target_tokenizer=tokenizer)


def _decided(found: Exported, architecture: str | None) -> tuple[Exported, list[str]]:
    """What it is written as, and a note on what is left out, or on why no architecture there computes the same.

    Raises: UsageError, and CannotConvert where it cannot be the architecture that was asked for.
    """
    if architecture is not None:
        settings_of(found.record, found.directory)  # for the words of its refusal
        as_known, lacks = _as_architecture(found, architecture)
        return as_known, [f"left out: output.weight, output.bias ({lacks})"] if lacks else []
    try:
        as_known, why = _as_architecture(found, None)
    except (CannotConvert, KeyError) as error:
        why = str(error)
    if not why:
        return as_known, []
    reason, *differences = why.split("\n")
    why = " ".join([reason, "; ".join(differences)]).strip()
    how = f"it is loaded with trust_remote_code=True, where Python finds {found.packages}"
    return found, [f"note: {how} ({why})"]


def _as_architecture(found: Exported, name: str | None) -> tuple[Exported, str]:
    """As an architecture of transformers, the one of this name or one that computes the same; and why the output of the
    run's task is left out, or "". Raises CannotConvert with what differs.
    """
    if found.target_tokenizer is not None:
        raise CannotConvert(
            "source and target have a tokenizer each, and no architecture that is written has two; train with "
            "data.joint_vocabulary=true"
        )
    lacks = ""
    if isinstance(found.model, EncoderHead):
        head = _head(found.record, found.model)
        lacks = head if isinstance(head, str) else ""
        found = replace(found, model=found.model.encoder) if isinstance(head, str) else replace(found, head=head)
    if found.has_old_end and isinstance(found.tokenizer, Vocabulary):
        found = _exchanged(found)
    if found.has_old_end:
        raise CannotConvert(
            f"a text of this run ends in the token {OLD_END}, which transformers' CLIP takes for the sign of old files "
            "and does not look for; accepted: another tokenizer, such as attnlab's own (tokenizer=bpe), or model=siglip"
        )
    return replace(found, known=architecture_for(found.settings, name, _said(found))), lacks


def _head(record: Record, model: EncoderHead) -> Head | str:
    """The output of a run's task, as transformers has it; or why it has not."""
    if isinstance(model, SequenceClassifier) and model.pooling != "first":
        return "it reads the mean of the states, and that of transformers the first one: task.pooling=first"
    name = str(record["config"].get("task", {}).get("_target_", "")).rpartition(".")[2]
    return HEADS.get(name, "the output of this run's task has no counterpart there")


def _exchanged(found: Exported) -> Exported:
    """The same model of images and texts with the numbers of the start, which none of its texts has, and the end
    exchanged."""
    numbers = torch.arange(found.settings["vocabulary_size"])
    numbers[START], numbers[END] = END, START
    model = copy.deepcopy(found.model)
    table = model.get_submodule("text.embedding")
    assert isinstance(table, nn.Embedding)
    table.weight = nn.Parameter(table.weight.detach()[numbers])
    frame: Any = ((), (START,))
    other = replace(found.special_tokens, start=END, end=START, ends=(START,), source=frame)
    names = tuple(LEADING[number] for number in numbers[: len(LEADING)].tolist())
    return replace(found, model=model, special_tokens=other, names=names)


def _tokenizer(path: Path, rows: object) -> tuple[Tokenizer | Vocabulary | None, SpecialTokens]:
    """A tokenizer of the run, behind its special tokens where the model's numbers have them before the text's. rows: of
    the model's table."""
    if not path.is_file():
        return None, SpecialTokens()
    tokenizer = Tokenizer.load(path)
    if tokenizer.special_tokens is not None:
        return tokenizer, tokenizer.special_tokens
    assert isinstance(rows, int)
    before = rows - tokenizer.vocabulary_size
    if not before:
        return tokenizer, SpecialTokens()
    vocabulary = Vocabulary(tokenizer)
    vocabulary = Vocabulary(tokenizer, before - vocabulary.first_text)
    return vocabulary, vocabulary.special_tokens


def _said(found: Exported) -> dict[str, object]:
    """What config.json says beside the model: numbers of special tokens, names of classes."""
    return ({} if found.tokenizer is None else token_fields(found)) | labels(found)


def _write(found: Exported, folder: Path) -> str:
    """Writes all files; says which architecture and class it is. Raises CannotConvert."""
    fields, tokens = _said(found), found.whisper_tokens
    if found.known is None:
        name, written = "attnlab", _write_own(found, folder, fields)
    else:
        name = found.known.name
        to_folder(folder, found.settings, found.tensors, name, found.head, found.output, **fields)
        written = found.head.class_of(name) if found.head else found.known.class_of(found.settings)
    _write_tokenizers(found, folder)
    if found.tokenizer is not None and not isinstance(found.model, Encoder | EncoderHead):
        numbers = token_fields(found) | (tokens.generation() if tokens else {})
        if found.known is None and isinstance(found.model, Seq2Seq) and tokens is None:
            numbers["suppress_tokens"] = list(found.special_tokens.suppressed) or None
        _write_json(folder / "generation_config.json", numbers)
    if (read := preprocessor(found)) is not None:
        _write_json(folder / "preprocessor_config.json", read)
    return f"{name} ({written})"


def _write_own(found: Exported, folder: Path, fields: Mapping[str, object]) -> str:
    """The model with code that imports attnlab; the name of its class. Raises CannotConvert."""
    config = found.record["config"]
    places = found.settings.get("max_length") or config.get("data", {}).get("context_length")
    known = {"max_position_embeddings": places} if places and isinstance(found.model, LanguageModel) else {}
    description = described(found.model, config["model"], found.record.get("widths", {}))
    return write_folder(folder, found.model, description, {**known, **fields})


def _write_tokenizers(found: Exported, folder: Path) -> None:
    frame: Any = "source" if found.as_source else "text"
    loaded_as = "PreTrainedTokenizerFast" if found.whisper_tokens is None else "WhisperTokenizer"
    segments = found.settings.get("num_segments", 0) > 1
    if found.tokenizer is not None:
        write_tokenizer(found.tokenizer, folder, frame, segments, loaded_as, found.names)
    if found.target_tokenizer is not None:
        write_tokenizer(found.target_tokenizer, folder / "target", frame)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tried(found: Exported, folder: Path) -> str:
    """In words, how transformers does with the folder: the same numbers of texts, and the same logits. Raises
    CannotConvert."""
    if find_spec("transformers") is None:
        return 'not checked: transformers is not installed (pip install "attnlab[transformers]")'
    difference = compare(folder, found.model, _given(found, folder))
    has_images, has_texts = "image_size" in found.settings, "vocabulary_size" in found.settings
    what = " and ".join(["images"] * has_images + ["speech"] * isinstance(found.model, Whisper) + ["texts"] * has_texts)
    how = "" if found.known else " with trust_remote_code=True"
    return f"transformers loads it{how}, and gives the same on {what} (logits differ by {difference:.0e} at most)"


def _given(found: Exported, folder: Path) -> list[Given]:
    """What the model is tried on: images or sounds of noise, texts as the written tokenizer encodes them. Raises
    CannotConvert for other numbers."""
    images: Given = ()
    if "image_size" in found.settings:
        shape = (2, found.settings["channels"], *found.settings["image_size"])
        images = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
        if "vocabulary_size" not in found.settings:
            return [images]
    rows = list(_rows(found, folder))
    if images:  # a row that was cut ends in the mark again, for there a text is seen
        ends = [found.special_tokens.end] * (found.special_tokens.end is not None)
        return [(*images, torch.cat([row_1T[:, : -len(ends) or None], torch.tensor([ends])], dim=1)) for row_1T in rows]
    if isinstance(found.model, Whisper):
        shape = (1, found.settings["num_mels"], found.settings["num_frames"])
        features_1MF = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return [(features_1MF, row_1T) for row_1T in rows]
    if not found.is_pair:
        return [(row_1T,) for row_1T in rows]
    start = torch.tensor([[found.special_tokens.target_start or 0]])
    return [(row_1S, torch.cat([start, row_1S.flip(1)[:, :5]], dim=1)) for row_1S in rows]


def _rows(found: Exported, folder: Path) -> Iterator[Tensor]:
    longest = min(LONGEST, found.settings.get("max_length") or LONGEST)
    random = np.random.Generator(np.random.Philox(0))
    if found.tokenizer is None:
        yield torch.from_numpy(random.integers(0, found.settings["vocabulary_size"], (1, longest)))
        return
    tokenizer = found.tokenizer if isinstance(found.tokenizer, Vocabulary) else found.tokenizer.of_source
    # The library's tokenizer of a Marian needs one more library, and its files are written as they were read.
    can_be_read = not isinstance(tokenizer, MarianTokenizer) or find_spec("sentencepiece")
    there = tokenizer_there(folder) if can_be_read else None
    for _ in range(TEXTS):
        text = tokenizer.decode(random.choice(tokenizer.text_tokens, longest))
        encoded = tokenizer.encode_text(text) if isinstance(tokenizer, Vocabulary) else tokenizer.encode(text)
        ours = add_special_tokens(found.frame, encoded.astype(np.int64)).tolist()
        theirs = ours if there is None else there(text)["input_ids"]
        if ours != theirs:
            raise CannotConvert(
                f"transformers reads the text {text[:60]!r} as other tokens ({theirs[:12]}) than the run does "
                f"({ours[:12]}): nothing was written. Please report this, with the run's tokenizer.json"
            )
        yield torch.tensor([ours[:longest]])
