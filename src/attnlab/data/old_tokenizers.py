"""Tokenizers of folders from before tokenizer.json: the vocab.txt of a BERT, the vocab.json and merges.txt of a GPT-2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def library_of_old_files(folder: Path, model_type: str | None, settings: Mapping[str, Any]) -> Any:
    """The library's tokenizer with the rules of this type of model, as transformers makes it; None where there is none to make."""
    if model_type in ("bert", "distilbert", "electra") and (folder / "vocab.txt").is_file():
        return _bert(folder / "vocab.txt", settings)
    if model_type == "gpt2" and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _gpt2(folder, settings)
    return None


def _bert(path: Path, settings: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    library = Tokenizer(models.WordPiece.from_file(str(path), unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    marks = [(text, library.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    library.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=marks
    )
    return library


def _gpt2(folder: Path, settings: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    library = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    return library
