"""Tokenizers out of Hugging Face's files, with all that these say of marks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnlab.data.cache import DataError
from attnlab.data.marian_tokenizer import read_marian
from attnlab.data.old_tokenizers import library_of_old_files
from attnlab.data.pretrained_tokenizer import PretrainedTokenizer
from attnlab.data.tokenizers import TOKENIZERS, Tokenizer
from attnlab.ranges import PositiveInt, check_ranges

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MARIAN = ("source.spm", "target.spm", "vocab.json")
GENERATION = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")
BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
GPT2 = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
T5 = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
ALBERT = {
    "bos": "[CLS]",
    "eos": "[SEP]",
    "unk": "<unk>",
    "sep": "[SEP]",
    "pad": "<pad>",
    "cls": "[CLS]",
    "mask": "[MASK]",
}
# What the library's class of each kind of model calls its tokens, where the files, as old ones do, leave it out.
USUAL = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert"), BERT),
    **dict.fromkeys(("roberta", "bart", "xlm-roberta", "longformer", "camembert", "led"), ROBERTA),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), GPT2),
    **dict.fromkeys(("t5", "mt5", "marian"), T5),
    **dict.fromkeys(("llama", "mistral"), LLAMA),
    "albert": ALBERT,
}
CONVERT = "python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')\""


@check_ranges
def read_tokenizer(path: str, vocabulary_size: PositiveInt | None = None) -> Tokenizer:
    """
    The tokenizer in a folder of Hugging Face's files, or in the directory of a run.

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
    files = {name: _json(folder / f"{name}.json") for name in ("tokenizer_config", "config", "generation_config")}
    config, settings = files["config"], files["tokenizer_config"]
    there = [name for name in MARIAN if (folder / name).is_file()]
    if not rules and (len(there) == len(MARIAN) or config.get("model_type") == "marian"):
        if lost := [name for name in MARIAN if name not in there]:
            raise DataError(
                f"{folder} lacks {', '.join(lost)}, which a Marian's tokenizer is made of; fetch them from where the model came from"
            )
        return _marian(folder, {**config, **_given(files["generation_config"])}, settings, vocabulary_size)
    library = _library(folder, rules, config, settings)
    special = _special_tokens(library, {**_json(folder / "special_tokens_map.json"), **_given(settings)}, files)
    generation = {**config, **_given(files["generation_config"])}
    ends = generation.get("eos_token_id")
    return PretrainedTokenizer(
        vocabulary_size=_rows(path, library, config, vocabulary_size),
        rules=library.to_str(),
        special=special,
        decoder_start=generation.get("decoder_start_token_id"),
        also_ends=[] if ends is None else sorted(ends) if isinstance(ends, list) else [ends],
        splits_marks=bool(settings.get("split_special_tokens")),
        chat_template=_chat_template(folder, settings),
        generation=_told(generation),
    )


def _told(generation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: generation[name] for name in GENERATION if generation.get(name) is not None}


def _marian(
    folder: Path, generation: Mapping[str, Any], settings: Mapping[str, Any], vocabulary_size: int | None
) -> Tokenizer:
    if settings.get("separate_vocabs"):
        raise DataError(
            f"{folder}: source and target have a vocabulary each (separate_vocabs), and here they share one"
        )
    numbers = _json(folder / "vocab.json")
    usual = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special = {name: _text(settings.get(name)) or text for name, text in usual.items()}
    rows = vocabulary_size or generation.get("vocab_size") or len(numbers)
    needed = max(numbers.values(), default=0) + 1
    if rows < needed:
        raise DataError(f"{folder / 'vocab.json'} has tokens up to number {needed - 1}, and the model has {rows} rows")
    start = generation.get("decoder_start_token_id")
    return read_marian(folder, rows, numbers, special, start, _told(generation))


def _tokenizer_of_run(folder: Path, vocabulary_size: int | None) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'tokenizer.json'} cannot be read: {error}; take that of another run") from error
    if vocabulary_size not in (None, tokenizer.vocabulary_size):
        raise DataError(
            f"tokenizer.vocabulary_size={vocabulary_size}: that run's tokenizer has {tokenizer.vocabulary_size}; leave it out"
        )
    return tokenizer.of_text


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it again from where the model came from") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no table of names and values; fetch it again from where the model came from")
    return found


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _library(folder: Path, rules: dict[str, Any], config: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The library's tokenizer, which neither cuts nor fills; tokens that only tokenizer_config.json has are added, as transformers does."""
    from tokenizers import Tokenizer as Library

    if rules:
        try:
            library = Library.from_str(json.dumps(rules))
        except Exception as error:  # the library raises nothing more particular
            raise DataError(
                f"{folder / 'tokenizer.json'} is none that the library tokenizers reads: {error}; write it anew: "
                + CONVERT.format(path=folder)
            ) from error
    else:
        library = library_of_old_files(folder, config.get("model_type"), settings)
    if library is None:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"tokenizer.path={folder}: there is no tokenizer.json (but {there}); make one where transformers is installed: "
            + CONVERT.format(path=folder)
        )
    library.no_padding()
    library.no_truncation()
    for _, token in sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda entry: int(entry[0])):
        known = {added.content for added in library.get_added_tokens_decoder().values()}
        if token["content"] not in known:
            library.add_tokens([_added(token, bool(token.get("special")))])
    return library


def _added(token: Any, special: bool) -> Any:
    """The library's form of a token that files give as a text or as a table."""
    from tokenizers import AddedToken

    fields = token if isinstance(token, dict) else {}
    options = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(_text(token), special=special, normalized=bool(fields.get("normalized", not special)), **options)


def _special_tokens(library: Any, fields: Mapping[str, Any], files: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """The texts of the special tokens by name, each one that the library knows as such from then on."""
    config = files["config"]
    kind = str(fields.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer").lower()
    usual = USUAL.get(config.get("model_type", ""), USUAL.get(kind, {}))
    found: dict[str, Any] = {}
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
    """A token's text, in files of today and of before."""
    return token.get("content") if isinstance(token, dict) else token if isinstance(token, str) else None


def _rows(path: str, library: Any, config: Mapping[str, Any], asked: int | None) -> int:
    """How many rows the model's table has."""
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


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    given = settings.get("chat_template")
    if isinstance(given, list):  # several, by name
        given = next((entry["template"] for entry in given if entry.get("name") == "default"), None)
    return given
