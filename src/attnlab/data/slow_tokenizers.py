"""Tokenizers of files from before tokenizer.json: a BERT's vocab.txt, a GPT-2's merges, a Marian's SentencePiece."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.data.cache import DataError

if TYPE_CHECKING:
    import tokenizers as hf

BLANK = "▁"
# Kinds of a piece and of a model, as SentencePiece numbers them.
NORMAL, UNIGRAM = 1, 1
CONTROL = (2, 3, 5)  # the unknown piece, special and unused ones: none of them is found in a text


def of_model_type(folder: Path, model_type: str | None, settings: Mapping[str, Any]) -> hf.Tokenizer | None:
    """The tokenizer of a type of model, with the rules that transformers gives it; None where there is none to make."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words, pieces, merges = (folder / name for name in ("vocab.txt", "vocab.json", "merges.txt"))
    if model_type in ("bert", "distilbert", "electra") and words.is_file():
        library = Tokenizer(models.WordPiece.from_file(str(words), unk_token="[UNK]"))
        library.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        )
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece()
        library.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(text, library.token_to_id(text)) for text in ("[CLS]", "[SEP]")],
        )
        return library
    if model_type == "gpt2" and pieces.is_file() and merges.is_file():
        library = Tokenizer(models.BPE.from_file(str(pieces), str(merges)))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
        library.decoder = decoders.ByteLevel()
        library.post_processor = processors.ByteLevel(trim_offsets=False)
        return library
    return None


def sentencepiece(content: bytes, name: str) -> hf.Tokenizer:
    """What cuts as a unigram model of SentencePiece does (Kudo 2018, arXiv 1804.10959), blanks and letters included.

    Raises DataError for another kind of model, and for options that cut otherwise.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        message = _message(content)
        trainer, normaliser = (_message(message[number][-1]) for number in (2, 3))
        pieces = [_piece(_message(piece)) for piece in message.get(1, [])]
    except (struct.error, LookupError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is no model of SentencePiece ({error}); fetch it again") from error
    kinds = {kind for _, _, kind in pieces} - {NORMAL, *CONTROL}
    plain = {3: UNIGRAM, 35: 0, 24: 0}  # the kind of model; bytes for unknown letters; blanks behind words
    usual = {3: 1, 4: 1, 5: 1}  # a blank before the text; no blanks beside each other; blanks as ▁
    options = [trainer.get(n, [v])[-1] == v for n, v in plain.items()]
    options += [normaliser.get(n, [v])[-1] == v for n, v in usual.items()]
    if not pieces or kinds or not all(options):
        raise DataError(
            f"{name} is no plain unigram model of SentencePiece, as Marian's are, and is not read; give a folder "
            "with a tokenizer.json (tokenizer.path=FOLDER)"
        )
    # A special piece is none of a text: it is spelt with a blank, and there are none where pieces are looked for.
    vocabulary = [
        (text, score) if kind == NORMAL else (f" {number}", 0.0) for number, (text, score, kind) in enumerate(pieces)
    ]
    unknown = next(number for number, (_, _, kind) in enumerate(pieces) if kind == 2)
    library = Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    letters = normaliser.get(2, [b""])[-1]
    steps: list[Any] = [normalizers.Precompiled(letters)] if letters else []
    steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    library.normalizer = normalizers.Sequence(steps)
    library.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="always")
    return library


def _piece(message: Mapping[int, Sequence[Any]]) -> tuple[str, float, int]:
    (score,) = struct.unpack("<f", message[2][-1]) if 2 in message else (0.0,)
    return message[1][-1].decode(), score, message.get(3, [NORMAL])[-1]


def _message(content: bytes) -> dict[int, list[Any]]:
    """The fields of a message in Protocol Buffers' wire format by number: whole numbers, and bytes of all else."""
    found: dict[int, list[Any]] = {}
    for number, value in _fields(content):
        found.setdefault(number, []).append(value)
    return found


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(content, place)
        else:
            size = {1: 8, 5: 4}.get(kind, len(content) + 1)
        if place + size > len(content):
            raise IndexError("it ends in the middle of a field")
        yield key >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
