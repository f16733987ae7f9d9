"""Tokenizers from and to the files of Hugging Face's AutoTokenizer, with all that these say of special tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnlab.data.cache import DataError
from attnlab.data.pretrained_tokenizers import MarianTokenizer, PretrainedTokenizer
from attnlab.data.slow_tokenizers import of_model_type
from attnlab.data.tokenizers import BPE, TOKENIZERS, Byte, Character, Subwords, Tokenizer, Unigram, WithEndOfText
from attnlab.data.vocabulary import Vocabulary
from attnlab.ranges import PositiveInt, check_ranges

if TYPE_CHECKING:
    import tokenizers as hf

Fields = dict[str, Any]  # what a JSON file holds

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MARIAN = ("source.spm", "target.spm", "vocab.json")
GENERATION = (
    *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("suppress_tokens", "begin_suppress_tokens", "is_multilingual"),
)
BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
ALBERT = {**BERT, "bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"}
GPT2 = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
# What the library's class of each kind of model calls its tokens, where the files, as old ones do, leave it out.
USUAL = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert"), BERT),
    **dict.fromkeys(("roberta", "bart", "xlm-roberta", "longformer", "camembert", "led"), ROBERTA),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), GPT2),
    **dict.fromkeys(("t5", "mt5", "marian"), T5),
    **dict.fromkeys(("llama", "mistral"), LLAMA),
    "albert": ALBERT,
}
FETCH = "fetch it again from where the model came from"
CONVERT = (
    'python -c "from transformers import AutoTokenizer; '
    "AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')\""
)

# Of attnlab's own, where they are written: the special tokens by number, their names, and how they frame a text.
LEADING = ("<pad>", "<s>", "</s>", "<mask>", "<sep>")
SPECIAL = {
    **dict(zip(("pad_token", "bos_token", "eos_token", "mask_token", "sep_token"), LEADING, strict=True)),
    "cls_token": "<s>",
}
FRAMES = {"text": ("<s> $A </s>", "<s> $A <sep> $B:1 </s>:1"), "source": ("$A </s>", None)}
NEVER = -1e6  # the score of a piece that no text is to be cut into


# --- reading


@check_ranges
def read_tokenizer(path: str, vocabulary_size: PositiveInt | None = None) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face's files, or in the directory of a run.

    Of Hugging Face's files it reads tokenizer.json and, as far as they are there, tokenizer_config.json,
    special_tokens_map.json, config.json, generation_config.json and chat_template.jinja; without tokenizer.json, the
    vocab.txt of a BERT, the vocab.json and merges.txt of a GPT-2, or the source.spm, target.spm and vocab.json of a
    Marian. vocabulary_size: rows of the model's table. Raises DataError.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"tokenizer.path={path}: there is no such folder; give one with a tokenizer.json, or the directory of a run"
        )
    rules = _json(folder / "tokenizer.json")
    if rules.get("name") in TOKENIZERS:
        return _tokenizer_of_run(folder, vocabulary_size)
    settings, config, told = (
        _json(folder / f"{name}.json") for name in ("tokenizer_config", "config", "generation_config")
    )
    generation = {**config, **_given(told)}
    kept: Fields = {
        "decoder_start": generation.get("decoder_start_token_id"),
        "generation": _given({name: generation.get(name) for name in GENERATION}),
    }
    there = [name for name in MARIAN if (folder / name).is_file()]
    if not rules and (len(there) == len(MARIAN) or config.get("model_type") == "marian"):
        if lost := [name for name in MARIAN if name not in there]:
            what = f"{folder} lacks {', '.join(lost)}, which a Marian's tokenizer is made of"
            raise DataError(f"{what}; fetch them from where the model came from")
        return _marian(folder, settings, vocabulary_size or generation.get("vocab_size"), kept)
    library = _library(folder, rules, config, settings)
    special = _special_tokens(library, {**_json(folder / "special_tokens_map.json"), **_given(settings)}, config)
    ends = generation.get("eos_token_id")
    return PretrainedTokenizer(
        vocabulary_size=_rows(path, library, config, vocabulary_size),
        rules=library.to_str(),
        special=special,
        also_ends=[] if ends is None else sorted(ends) if isinstance(ends, list) else [ends],
        splits_marks=bool(settings.get("split_special_tokens")),
        chat_template=_chat_template(folder, settings),
        **kept,
    )


def _marian(folder: Path, settings: Fields, rows: int | None, kept: Fields) -> MarianTokenizer:
    if settings.get("separate_vocabs"):
        raise DataError(
            f"{folder}: source and target have a vocabulary each (separate_vocabs), and here they share one"
        )
    numbers = _json(folder / "vocab.json")
    special = {f"{name}_token": _text(settings.get(f"{name}_token")) or text for name, text in T5.items()}
    rows, needed = rows or len(numbers), max(numbers.values(), default=0) + 1
    if rows < needed:
        raise DataError(f"{folder / 'vocab.json'} has tokens up to number {needed - 1}, and the model has {rows} rows")
    if lost := [text for text in special.values() if text not in numbers]:
        raise DataError(f"{folder / 'vocab.json'} lacks {', '.join(lost)}; {FETCH}")
    source, target = (base64.b64encode((folder / name).read_bytes()).decode() for name in MARIAN[:2])
    found = MarianTokenizer(
        vocabulary_size=rows, source=source, target=target, numbers=numbers, special=special, **kept
    )
    for tokenizer in (found, found.of_source):
        tokenizer.encode("")  # reads the files
    return found


def _tokenizer_of_run(folder: Path, vocabulary_size: int | None) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'tokenizer.json'} cannot be read: {error}; take that of another run") from error
    if vocabulary_size not in (None, tokenizer.vocabulary_size):
        raise DataError(
            f"tokenizer.vocabulary_size={vocabulary_size}: that run's tokenizer has {tokenizer.vocabulary_size}; "
            "leave it out"
        )
    return tokenizer.of_text


def _json(path: Path) -> Fields:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; {FETCH}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no table of names and values; {FETCH}")
    return found


def _given(fields: Mapping[str, Any]) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def _library(folder: Path, rules: Fields, config: Fields, settings: Fields) -> hf.Tokenizer:
    """What neither cuts nor fills; tokens that only tokenizer_config.json has are added, as transformers does."""
    from tokenizers import Tokenizer as Library

    try:
        found = Library.from_str(json.dumps(rules)) if rules else None
    except Exception as error:  # the library raises nothing more particular
        raise DataError(
            f"{folder / 'tokenizer.json'} is none that the library tokenizers reads: {error}; write it anew: "
            + CONVERT.format(path=folder)
        ) from error
    library = of_model_type(folder, config.get("model_type"), settings) if found is None else found
    if library is None:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"tokenizer.path={folder}: there is no tokenizer.json (but {there}); make one where transformers is "
            "installed: " + CONVERT.format(path=folder)
        )
    library.no_padding()
    library.no_truncation()
    for _, token in sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda entry: int(entry[0])):
        known = {added.content for added in library.get_added_tokens_decoder().values()}
        if token["content"] not in known:
            library.add_tokens([_added(token, bool(token.get("special")))])
    return library


def _added(token: Any, special: bool) -> hf.AddedToken:
    from tokenizers import AddedToken

    fields = token if isinstance(token, dict) else {}
    options = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(_text(token), special=special, normalized=bool(fields.get("normalized", not special)), **options)


def _special_tokens(library: hf.Tokenizer, fields: Fields, config: Fields) -> dict[str, str]:
    """The texts of the special tokens by name, each one that the library knows as such from then on."""
    kind = str(fields.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer").lower()
    usual = USUAL.get(config.get("model_type", ""), USUAL.get(kind, {}))
    found: Fields = {}
    for name in NAMES:
        number = config.get(f"{name}_id")
        by_number = library.id_to_token(number) if isinstance(number, int) and number >= 0 else None
        candidate = usual.get(name.removesuffix("_token"))
        candidate = candidate if library.token_to_id(candidate or "") is not None else by_number
        token = fields[name] if _text(fields.get(name)) else candidate
        if token:
            found[name] = token
    more = fields.get("additional_special_tokens") or fields.get("extra_special_tokens") or []
    tokens = [*found.values(), *filter(_text, more.values() if isinstance(more, dict) else more)]
    known = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    missing = {text: token for token in tokens if (text := _text(token)) not in known}
    library.add_special_tokens([_added(token, True) for token in missing.values()])
    return {name: str(_text(token)) for name, token in found.items()}


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token if isinstance(token, str) else None


def _rows(path: str, library: hf.Tokenizer, config: Fields, asked: int | None) -> int:
    needed = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    said = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    rows = asked if asked is not None else said if said is not None else needed
    if not isinstance(rows, int) or rows < needed:
        where = "tokenizer.vocabulary_size" if asked is not None else f"vocab_size of {path}/config.json"
        raise DataError(
            f"{where} is {rows}, and the tokenizer has tokens up to number {needed - 1}; accepted: {needed} or more "
            "(tokenizer.vocabulary_size), as many as the model's table has rows"
        )
    return rows


def _chat_template(folder: Path, settings: Fields) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    given = settings.get("chat_template")
    if isinstance(given, list):  # several, by name
        given = next((entry["template"] for entry in given if entry.get("name") == "default"), None)
    return given


# --- writing


def write_tokenizer(
    tokenizer: Tokenizer | Vocabulary,
    folder: str | Path,
    frame: Literal["text", "source"] = "text",
    segments: bool = False,
    tokenizer_class: str = "PreTrainedTokenizerFast",
    names: Sequence[str] = LEADING,
) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and any chat_template.jinja.

    A tokenizer by itself, as language models have it, becomes one that encodes a text as `encode` does and puts nothing
    around it. A vocabulary encodes as `encode_text` does (an empty text to nothing), behind its special tokens, and
    puts those around a text that an encoder (text) or a sequence-to-sequence model (source) sees. Where a text spells
    one, there stands that one: `<mask>` in a text hides a token. A pretrained one is written as it was read. segments:
    whether the model is told which of two texts a token is of. tokenizer_class: what transformers loads it as. names:
    of a vocabulary's special tokens, by number.
    """
    own = tokenizer.tokenizer if isinstance(tokenizer, Vocabulary) else tokenizer
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(own, MarianTokenizer):
        own.write(folder)
        _write_json(folder, tokenizer_config={"tokenizer_class": "MarianTokenizer", **own.special})
        return
    # A text that spells a special token has it: that is how clients ask for one, such as <mask>.
    splits, template = False, None
    if isinstance(own, PretrainedTokenizer):
        rules, special, template = json.loads(own.rules), dict(own.special), own.chat_template
        splits = own.splits_marks
    else:
        tokens: list[str] = []
        if isinstance(tokenizer, Vocabulary):
            tokens = [*names, *(f"<extra_id_{i}>" for i in range(tokenizer.num_sentinels))]
        rules, special = _rules(own, tokens, frame), dict(SPECIAL) if tokens else {}
        if isinstance(own, WithEndOfText):
            special = dict.fromkeys(("bos_token", "eos_token"), own.spelling)
    settings = {
        "tokenizer_class": tokenizer_class,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": splits,
        "model_input_names": ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
        **special,
    }
    (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
    _write_json(folder, tokenizer_config=settings, special_tokens_map=special)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(folder: Path, **contents: Fields) -> None:
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _rules(tokenizer: Tokenizer, tokens: list[str], frame: Literal["text", "source"]) -> Fields:
    from tokenizers import AddedToken, Regex, normalizers, processors
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(moved(tokenizer, tokens)))
    if tokens:
        # The library puts the lead before a special token, too, where it looks for those in the text behind it.
        behind_lead = Regex(rf"\A{tokenizer.text_lead}(?=(?:{'|'.join(tokens)})\z)")
        lead = normalizers.Prepend(tokenizer.text_lead)
        library.normalizer = normalizers.Sequence([lead, normalizers.Replace(behind_lead, "")])
        single, pair = FRAMES[frame]
        template = {"single": single, **({"pair": pair} if pair else {})}
        library.post_processor = processors.TemplateProcessing(
            special_tokens=[(token, tokens.index(token)) for token in LEADING], **template
        )
        in_place_of_words = {*tokens} - {"<pad>", "<s>", "</s>", "<sep>"} if isinstance(tokenizer, Subwords) else {}
        # A sub-word begins with the blank before it, and so does what stands in its place.
        library.add_special_tokens(
            [AddedToken(token, special=True, normalized=True, lstrip=token in in_place_of_words) for token in tokens]
        )
    return _rules_of(library)


@singledispatch
def moved(tokenizer: Tokenizer, tokens: list[str]) -> Fields:
    """The library's rules of a tokenizer whose numbers begin after those of these special tokens."""
    raise NotImplementedError(f"the tokenizer {tokenizer.name} has no form in Hugging Face's files")


@moved.register
def _(tokenizer: Character, tokens: list[str]) -> Fields:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.WordLevel(_numbered([*tokens, *tokenizer.alphabet])))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    return _rules_of(library)


@moved.register
def _(tokenizer: Byte, tokens: list[str]) -> Fields:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE(_numbered([*tokens, *byte_letters()]), []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return _rules_of(library)


@moved.register
def _(tokenizer: BPE, tokens: list[str]) -> Fields:
    rules: Fields = json.loads(tokenizer.rules)
    pieces = {piece: number + len(tokens) for piece, number in rules["model"]["vocab"].items()}
    rules["model"]["vocab"] = _numbered(tokens) | pieces
    return rules


@moved.register
def _(tokenizer: Unigram, tokens: list[str]) -> Fields:
    rules: Fields = json.loads(tokenizer.rules)
    rules["model"]["vocab"] = [*((token, NEVER) for token in tokens), *rules["model"]["vocab"]]
    return rules


@moved.register
def _(tokenizer: WithEndOfText, tokens: list[str]) -> Fields:
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(moved(tokenizer.own, tokens)))
    library.add_special_tokens([tokenizer.spelling])
    assert library.token_to_id(tokenizer.spelling) == len(tokens) + tokenizer.end
    return _rules_of(library)


def byte_letters() -> list[str]:
    """The letters that the library spells bytes with: printable ones of Latin-1, those from U+0100 on for the rest."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(letters)) for byte in range(256)]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _rules_of(library: hf.Tokenizer) -> Fields:
    rules: Fields = json.loads(library.to_str())
    return rules
