"""Tokenizers in the files that Hugging Face's AutoTokenizer reads, with the numbers that they have here."""

import json
from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal

from attnlab.data.marian_tokenizer import MarianTokenizer
from attnlab.data.pretrained_tokenizer import PretrainedTokenizer
from attnlab.data.tokenizers import BPE, Byte, Character, Subwords, Tokenizer, Unigram, WithEndOfText
from attnlab.data.vocabulary import Vocabulary

MARKS = ("<pad>", "<s>", "</s>", "<mask>", "<sep>")  # by number
SPECIAL = {
    **dict(zip(("pad_token", "bos_token", "eos_token", "mask_token", "sep_token"), MARKS, strict=True)),
    "cls_token": "<s>",
}
FRAMES = {"text": ("<s> $A </s>", "<s> $A <sep> $B:1 </s>:1"), "source": ("$A </s>", None)}
NEVER = -1e6  # the score of a piece that no text is to be cut into


def write_tokenizer(
    tokenizer: Tokenizer | Vocabulary,
    folder: str | Path,
    frame: Literal["text", "source"] = "text",
    segments: bool = False,
) -> None:
    """
    Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and, where there is one, chat_template.jinja.

    A tokenizer by itself, as language models have it, becomes one that encodes a text as `encode` does and puts no
    mark around it. A vocabulary encodes as `encode_text` does (an empty text to nothing), behind its marks, and puts
    those around a text that an encoder (text) or a sequence-to-sequence model (source) sees. Where a text spells a
    mark, there stands the mark: `<mask>` in a text hides a token. A pretrained one is written as it was read.
    segments: whether the model is told which of two texts a token is of.
    """
    own = tokenizer.tokenizer if isinstance(tokenizer, Vocabulary) else tokenizer
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(own, MarianTokenizer):
        own.write(folder)
        marian = {"tokenizer_class": "MarianTokenizer", **own.special}
        (folder / "tokenizer_config.json").write_text(json.dumps(marian, indent=2), encoding="utf-8")
        return
    if isinstance(own, PretrainedTokenizer):
        rules, special, template = json.loads(own.rules), dict(own.special), own.chat_template
        splits = own.splits_marks
    else:
        marks: list[str] = []
        if isinstance(tokenizer, Vocabulary):
            marks = [*MARKS, *(f"<extra_id_{i}>" for i in range(tokenizer.num_sentinels))]
        rules, special, template = _rules(own, marks, frame), dict(SPECIAL) if marks else {}, None
        if isinstance(own, WithEndOfText):
            special = dict.fromkeys(("bos_token", "eos_token"), own.spelling)
        splits = False  # a text that spells a mark has the mark: that is how clients ask for one, such as <mask>
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": splits,
        "model_input_names": ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
        **special,
    }
    for name, content in {"tokenizer": rules, "tokenizer_config": settings, "special_tokens_map": special}.items():
        text = json.dumps(content, ensure_ascii=False, indent=None if name == "tokenizer" else 2)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _rules(tokenizer: Tokenizer, marks: list[str], frame: Literal["text", "source"]) -> dict[str, Any]:
    """The tokenizer.json of one of attnlab's own, its numbers after those of the marks."""
    from tokenizers import AddedToken, Regex, normalizers, processors
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(moved(tokenizer, marks)))
    if marks:
        # The library puts the lead before a mark, too, where it looks for marks in the text behind its lead.
        a_mark = Regex(rf"\A{tokenizer.text_lead}(?=(?:{'|'.join(marks)})\z)")
        lead = normalizers.Prepend(tokenizer.text_lead)
        library.normalizer = normalizers.Sequence([lead, normalizers.Replace(a_mark, "")])
        numbers = [(mark, marks.index(mark)) for mark in MARKS]
        single, pair = FRAMES[frame]
        template = {"single": single, "special_tokens": numbers, **({"pair": pair} if pair else {})}
        library.post_processor = processors.TemplateProcessing(**template)
        in_place_of_words = {*marks} - {"<pad>", "<s>", "</s>", "<sep>"} if isinstance(tokenizer, Subwords) else {}
        # A sub-word begins with the blank before it, and so does what stands in its place.
        library.add_special_tokens(
            [AddedToken(mark, special=True, normalized=True, lstrip=mark in in_place_of_words) for mark in marks]
        )
    rules: dict[str, Any] = json.loads(library.to_str())
    return rules


@singledispatch
def moved(tokenizer: Tokenizer, marks: list[str]) -> Mapping[str, Any]:
    """The library's rules of a tokenizer whose numbers begin after those of the marks."""
    raise NotImplementedError(f"the tokenizer {tokenizer.name} has no form in Hugging Face's files")


@moved.register
def _(tokenizer: Character, marks: list[str]) -> Mapping[str, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.WordLevel(_numbered([*marks, *tokenizer.alphabet])))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    return _as_rules(library)


@moved.register
def _(tokenizer: Byte, marks: list[str]) -> Mapping[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE(_numbered([*marks, *byte_letters()]), []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return _as_rules(library)


@moved.register
def _(tokenizer: BPE, marks: list[str]) -> Mapping[str, Any]:
    rules = json.loads(tokenizer.rules)
    pieces = {piece: number + len(marks) for piece, number in rules["model"]["vocab"].items()}
    rules["model"]["vocab"] = _numbered(marks) | pieces
    return rules


@moved.register
def _(tokenizer: Unigram, marks: list[str]) -> Mapping[str, Any]:
    rules = json.loads(tokenizer.rules)
    rules["model"]["vocab"] = [*((mark, NEVER) for mark in marks), *rules["model"]["vocab"]]
    return rules


@moved.register
def _(tokenizer: WithEndOfText, marks: list[str]) -> Mapping[str, Any]:
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(moved(tokenizer.own, marks)))
    library.add_special_tokens([tokenizer.spelling])
    assert library.token_to_id(tokenizer.spelling) == len(marks) + tokenizer.end
    return _as_rules(library)


def byte_letters() -> list[str]:
    """The letters that the library spells the bytes 0 to 255 with: the printable ones of Latin-1, and those from U+0100 on for the rest."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(letters)) for byte in range(256)]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _as_rules(library: Any) -> Mapping[str, Any]:
    rules: dict[str, Any] = json.loads(library.to_str())
    return rules
