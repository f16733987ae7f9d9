"""BLEU's tokenizers: by language, out of a signature, and where what they need is not there."""

import sys

import pytest
import sacrebleu

from attnlab.training.bleu import TOKENIZERS, corpus_scores, metrics, tokenizer_for, tokenizer_in


@pytest.mark.parametrize(
    ("language", "tokenize"),
    [
        ("zh", "zh"), ("zh_CN", "zh"), ("zho_Hans", "zh"), ("ZH-tw", "zh"), ("ja", "ja-mecab"), ("jpn_Jpan", "ja-mecab"),
        ("ko", "ko-mecab"), ("th", "char"), ("khm_Khmr", "char"), ("de", "13a"), ("class", "13a"), ("text", "13a"),
    ],
)  # fmt: skip
def test_a_language_has_its_tokenizer(language, tokenize):
    assert tokenizer_for(language) == tokenize
    assert tokenize in sacrebleu.BLEU.TOKENIZERS


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "intl", "none"])
def test_a_signature_gives_it_back(tokenize):
    scores, signatures = corpus_scores(["a b c d"], ["a b c d"], tokenize)
    assert tokenizer_in(signatures["bleu"]) == tokenize
    assert scores["chrf"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("named", "tokenize"),
    [("ja-mecab-0.996-IPA", "ja-mecab"), ("ko-mecab-0.996/ko-0.9.2-KO", "ko-mecab"), ("13a", "13a")],
)
def test_versions_in_a_signature_are_no_part_of_the_name(named, tokenize):
    assert tokenizer_in(f"nrefs:1|case:mixed|eff:no|tok:{named}|smooth:exp|version:2.6.0") == tokenize
    assert tokenizer_in("") == "13a"


@pytest.mark.parametrize(("tokenize", "library"), [("ja-mecab", "MeCab"), ("ko-mecab", "mecab_ko")])
def test_what_is_missing_is_named(monkeypatch, tokenize, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"sacrebleu.tokenizers.tokenizer_{tokenize.replace('-', '_')}", raising=False)
    with pytest.raises(ValueError, match=rf'{tokenize} needs .*: pip install "sacrebleu\[{tokenize[:2]}\]"'):
        metrics(tokenize)
    with pytest.raises(ValueError, match=r"task.bleu_tokenize=nope: accepted are none, .*, or null"):
        metrics("nope")
    assert set(TOKENIZERS.values()) <= set(sacrebleu.BLEU.TOKENIZERS)
