"""Tokenizers of files from before tokenizer.json: what they give, and which files are refused."""

import json

import pytest
from tests.huggingface import TEXT, save, train_sentencepiece
from tokenizers import Tokenizer

from attnlab.data import DataError, read_tokenizer
from attnlab.data.slow_tokenizers import sentencepiece

ENGLISH = "the quick brown fox jumps over the lazy dog, and then it sleeps well under the old trees; isn't it so?"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_old_files_give_what_the_new_ones_give(tmp_path, kind):
    new, old = save(kind, tmp_path / "new"), tmp_path / "old"
    old.mkdir()
    Tokenizer.from_file(str(new / "tokenizer.json")).model.save(str(old))
    (old / "config.json").write_text(json.dumps({"model_type": kind}))
    one, other = (read_tokenizer(str(folder)) for folder in (old, new))
    for text in (*TEXT[:2], "", "  two\n\nlines ", "日本", "a<mask>b [MASK]<|endoftext|>"):
        assert one.encode(text).tolist() == other.encode(text).tolist()
        assert one.locate(text)[1].tolist() == other.locate(text)[1].tolist()
        assert one.decode(one.encode(text)) == other.decode(other.encode(text))
    for name in ("text", "pair", "mask", "end"):
        assert getattr(one.special_tokens, name) == getattr(other.special_tokens, name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "bpe"}, "is no plain unigram model of SentencePiece"),
        ({"byte_fallback": True, "vocab_size": 400}, "is no plain unigram model of SentencePiece"),
        ({"user_defined_symbols": ["fox"]}, "is no plain unigram model of SentencePiece"),
        ({"treat_whitespace_as_suffix": True}, "is no plain unigram model of SentencePiece"),
    ],
)
def test_a_model_that_cuts_otherwise_is_refused(tmp_path, options, said):
    pytest.importorskip("sentencepiece")
    train_sentencepiece(ENGLISH, tmp_path / "source.spm", **{"vocab_size": 90, **options})
    with pytest.raises(DataError, match=said):
        sentencepiece((tmp_path / "source.spm").read_bytes(), "source.spm")


def test_a_damaged_file_is_one_message(tmp_path):
    pytest.importorskip("sentencepiece")
    train_sentencepiece(ENGLISH, tmp_path / "source.spm", vocab_size=90)
    content = (tmp_path / "source.spm").read_bytes()
    for damaged in (content[:-7], content[: len(content) // 2], b"", b"not a model at all", b"\xff" * 50):
        with pytest.raises(DataError, match=r"source\.spm is no"):
            sentencepiece(damaged, "source.spm")
