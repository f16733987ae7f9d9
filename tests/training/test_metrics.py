"""What the name of a metric says."""

import json
import sys

import pytest
import sacrebleu

from attnlab.training.metrics import (
    LOSS,
    TOKENIZERS,
    Metric,
    better_of,
    corpus_scores,
    known_better,
    known_metric,
    parts_of,
    text_metrics,
    tokenizer_for,
    tokenizer_in,
)


@pytest.mark.parametrize(
    ("metric", "parts", "better"),
    [
        ("test/loss@8x", ("test", "loss", "8x"), "lower"),
        ("test/sliding_loss@1x", ("test", "sliding_loss", "1x"), "lower"),
        ("val/next_sentence_loss", ("val", "next_sentence_loss", ""), "lower"),
        ("val/next_sentence_accuracy", ("val", "next_sentence_accuracy", ""), "higher"),
        ("val/bits_per_byte", ("val", "bits_per_byte", ""), "lower"),
        ("test/bleu@6-10", ("test", "bleu", "6-10"), "higher"),
        ("test/f1@person", ("test", "f1", "person"), "higher"),
        ("test/macro_f1", ("test", "macro_f1", ""), "higher"),
        ("test/exact_match", ("test", "exact_match", ""), "higher"),
        ("chrf", ("", "chrf", ""), "higher"),
    ],
)
def test_the_parts_and_the_direction(metric, parts, better):
    assert parts_of(metric) == parts
    assert known_better(metric) == better_of(metric) == better


def test_a_metric_says_where_it_is_reported():
    regret = Metric("regret", "higher", "regret a {unit}")
    assert regret.names() == ["val/regret", "test/regret"]
    assert regret.on("test", at=["1x", "*"]).names() == ["test/regret@1x", "test/regret@*"]
    with pytest.raises(ValueError, match=r"metric regret must be lower or higher, got 'up'"):
        Metric("regret", "up")


def test_what_a_run_has_recorded_of_a_metric_comes_before_what_is_known():
    said = {
        "regret": Metric("regret", "higher", "regret a {unit}", any_tokenizer=True).record(),
        "loss": {"better": "up"},
    }
    assert known_metric("test/regret@4x", said) == Metric("regret", "higher", "regret a {unit}", any_tokenizer=True)
    assert not known_metric("test/regret@4x", said).is_proportion
    solved = Metric("solved", "higher", is_proportion=True)
    assert known_metric("test/solved@2x", {"solved": solved.record()}) == solved
    loss, percent = Metric("loss", "lower"), Metric("accuracy", "higher", range=(0.0, 100.0))
    for own in (loss, percent):  # a name that attnlab knows, with another range
        assert known_metric(f"test/{own.name}", {own.name: json.loads(json.dumps(own.record()))}) == own
    old = {"better": "higher", "words": "", "any_tokenizer": True}
    assert known_metric("test/accuracy", {"accuracy": old}).limits == (0, 1)
    assert known_metric("test/sliding_regret", said).name == "regret"
    assert better_of("test/regret", said) == "higher"
    assert known_metric("val/loss", said).better == "lower"  # a record that says nothing usable
    assert known_metric("val/loss", {"loss": 3}) == known_metric("val/loss") == LOSS


def test_a_measure_of_ones_own_may_go_either_way():
    assert known_better("test/regret") is None
    assert better_of("test/regret") == "lower"


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
        text_metrics(tokenize)
    with pytest.raises(ValueError, match=r"task.bleu_tokenize=nope: accepted are none, .*, or null"):
        text_metrics("nope")
    assert set(TOKENIZERS.values()) <= set(sacrebleu.BLEU.TOKENIZERS)
