"""sacreBLEU's paired bootstrap over the test sentences of runs: against sacreBLEU called by hand, and with outputs that are no good."""

from __future__ import annotations

import io
import json
import random

import pytest
import sacrebleu
from rich.console import Console
from sacrebleu.significance import PairedTest
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import compare, load_study, print_comparison, to_csv
from attnlab.report.page import render

WORDS = [
    "the",
    "a",
    "dog",
    "runs",
    "over",
    "green",
    "grass",
    "barks",
    "at",
    "one",
    "old",
    "man",
    "near",
    "his",
    "house",
]


def sentences(count: int = 60) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(count)]


def spoilt(lines: list[str], share: float, seed: int) -> list[str]:
    """The lines with a share of their words replaced."""
    draw = random.Random(seed)
    return [" ".join(w if draw.random() > share else draw.choice(WORDS) for w in line.split()) for line in lines]


def write_outputs(directory, translations, references) -> None:
    (directory / "outputs").mkdir()
    for name, lines in (("translations", translations), ("references", references)):
        if lines is not None:
            (directory / "outputs" / f"test.{name}.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def write(tmp_path):
    """Writes a study of {position: {seed: (translations, references)}}; returns its comparison."""

    def make(cells, **plan):
        root = write_plan(
            tmp_path / "s",
            **{
                "factors": {"position": list(cells)},
                "baseline": {"position": next(iter(cells))},
                "cells": [cell({"position": name}) for name in cells],
                "seeds": [0, 1],
                "metric": {"name": "test/bleu", "better": "higher"},
                **plan,
            },
        )
        for name, runs in cells.items():
            for seed, (translations, references) in runs.items():
                directory = write_run(root, {"position": name}, seed, {"test/bleu": 20.0 + seed})
                if translations is not None or references is not None:
                    write_outputs(directory, translations, references)
        return compare(load_study(root))

    return make


def test_figures_are_those_of_sacrebleu(write):
    references = sentences()
    runs = {
        "base": {seed: (spoilt(references, 0.3, seed), references) for seed in (0, 1)},
        "near": {seed: (spoilt(references, 0.31, 10 + seed), references) for seed in (0, 1)},
        "far": {seed: (spoilt(references, 0.6, 20 + seed), references) for seed in (0, 1)},
    }
    comparison = write(runs).with_resampled_sentences(resamples=100)
    found = {(one.label, one.score): one for one in comparison.sentences.differences}
    assert list(found) == [("near", "bleu"), ("far", "bleu"), ("near", "chrf"), ("far", "chrf")]
    for seed in (0, 1):
        named = [(name, of[seed][0]) for name, of in runs.items()]
        metrics = {"BLEU": sacrebleu.BLEU(), "chrF2": sacrebleu.CHRF()}
        signatures, scores = PairedTest(named, metrics, [references], test_type="bs", n_samples=100)()
        for score, name in (("bleu", "BLEU"), ("chrf", "chrF2")):
            base, near, far = scores[name]
            assert found["near", score].p_values[seed] == near.p_value
            assert found["far", score].differences[seed] == pytest.approx(far.score - base.score)
            assert comparison.sentences.signatures[score] == str(signatures[name])
    assert found["far", "bleu"].sure() == 2
    assert found["far", "bleu"].mean < -10
    assert comparison.sentences.left_out == []
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=120))
    assert "far   bleu" in out.getvalue()
    assert "at most 0.05 in 2 of 2 seeds" in out.getvalue()
    assert "Other test sentences" in render(comparison)
    header, *rows = [line.split(",") for line in to_csv(comparison).splitlines()]
    column = header.index("p_bleu_sentences seed=1")
    assert rows[0][column] == ""
    assert float(rows[1][column]) == pytest.approx(found["near", "bleu"].p_values[1])


def test_translations_that_are_all_alike_are_no_difference(write):
    """sacreBLEU alone would give p = 1 / (resamples + 1)."""
    references = sentences(10)
    same = {0: (spoilt(references, 0.3, 0), references)}
    comparison = write({"base": same, "copy": same}).with_resampled_sentences(resamples=20)
    assert {(one.mean, one.p_values[0]) for one in comparison.sentences.differences} == {(0.0, 1.0)}


def test_runs_that_cannot_be_compared_are_named_with_the_reason(write):
    references = sentences(12)
    own = spoilt(references, 0.3, 0)
    comparison = write(
        {
            "base": {0: (own, references), 1: (own, None)},
            "good": {0: (spoilt(references, 0.5, 1), references), 1: (own, references)},
            "other": {0: (own, [*references[1:], "one more"])},
            "short": {0: (own[1:], references)},
            "old": {0: (own, None)},
        }
    )
    found = comparison.with_resampled_sentences(resamples=20).sentences
    assert {one.label for one in found.differences} == {"good"}
    assert [list(one.p_values) for one in found.differences] == [[0], [0]]
    assert found.left_out == [
        "seed 0: other references than the baseline (other)",
        "seed 0: 11 translations and 12 references (short)",
        "seed 0: no outputs/test.references.txt (old)",
        "seed 1: the baseline has no outputs/test.references.txt",
    ]


@pytest.mark.parametrize(
    ("plan", "message"),
    [({"baseline": {}}, "names no baseline"), ({}, "no translations to compare: seed 0: the baseline has no outputs")],
)
def test_a_study_without_translations_says_so(write, plan, message):
    comparison = write({"base": {0: (None, None)}, "other": {0: (None, None)}}, **plan)
    with pytest.raises(ValueError, match=message):
        comparison.with_resampled_sentences()
    assert json.dumps(comparison.caveats)


def test_no_run_of_the_baseline_with_a_seed_of_the_others(write):
    with pytest.raises(ValueError, match=r"no finished run of another cell has the seed"):
        write({"base": {0: (["a"], ["a"])}, "other": {1: (["a"], ["a"])}}).with_resampled_sentences()


def test_bleu_is_resampled_by_the_tokenizer_that_the_runs_recorded(write, tmp_path):
    references = [
        "".join(pair)
        for pair in zip(
            "一只小狗在草地上跑这本书很有意思我喜欢它", "昨天晚上下了一场大雨请把门关上再走开吧", strict=False
        )
    ]
    references = [f"{a}{b}{c}" for a, b, c in zip(references, references[3:], references[7:], strict=False)]
    far = [f"{text[:3]}大大大" for text in references]
    near = [f"{text[:5]}大" for text in references]
    cells = {"base": {0: (far, references)}, "near": {0: (near, references)}, "other": {0: (near, references)}}
    write(cells)
    root = tmp_path / "s"
    for name, tokenize in {"base": "zh", "near": "zh", "other": "char"}.items():
        path = root / f"position={name}" / "seed=0" / "status.json"
        status = json.loads(path.read_text())
        path.write_text(
            json.dumps(status | {"notes": {"test/bleu": f"nrefs:1|case:mixed|tok:{tokenize}|version:2.6.0"}})
        )
    found = compare(load_study(root)).with_resampled_sentences(50).sentences
    by_hand = [sacrebleu.corpus_bleu(lines, [references], tokenize="zh").score for lines in (far, near)]
    [bleu] = [one for one in found.differences if one.score == "bleu"]
    assert bleu.label == "near"
    assert bleu.differences[0] == pytest.approx(by_hand[1] - by_hand[0])
    assert bleu.differences[0] > 5
    assert "|tok:zh|" in found.signatures["bleu"]
    assert found.left_out == ["seed 0: BLEU by the tokenizer char, the baseline's by zh (other)"]
