"""`attnlab compare` and `report` with --bootstrap-sentences."""

import pytest
from tests.analysis.studies import cell, write_plan, write_run

REFERENCES = [f"the {what} runs over the grass {number}" for number, what in enumerate(["dog", "cat", "man"] * 8)]


@pytest.fixture
def translated(here):
    """A study of two cells in `runs`, of which one has lost every third word."""
    names = ["sinusoidal", "none"]
    root = write_plan(
        here / "runs" / "translated",
        factors={"position": names},
        baseline={"position": names[0]},
        cells=[cell({"position": name}) for name in names],
        seeds=[0],
        metric={"name": "test/bleu", "better": "higher"},
    )
    spoilt = [" ".join(word for i, word in enumerate(line.split()) if i % 3) for line in REFERENCES]
    for name, lines in zip(names, (REFERENCES, spoilt), strict=True):
        outputs = write_run(root, {"position": name}, 0, {"test/bleu": 50.0}) / "outputs"
        outputs.mkdir()
        for kind, texts in (("translations", lines), ("references", REFERENCES)):
            (outputs / f"test.{kind}.txt").write_text("".join(f"{line}\n" for line in texts))
    return root


def test_sentences_are_resampled_where_that_is_asked_for(attnlab, translated):
    plain, asked = attnlab("compare", "translated"), attnlab("compare", "translated", "--bootstrap-sentences")
    assert (plain.status, asked.status) == (0, 0)
    assert "resampled" not in plain.out
    assert "Against the baseline on resampled test sentences" in asked.out
    assert "0.001, at most 0.05 in 1 of 1 seeds" in asked.out
    assert "p_bleu_sentences seed=0" in attnlab("compare", "translated", "--format", "csv", "--bootstrap-sentences").out
    assert attnlab("report", "translated", "--bootstrap-sentences", "--to", "page.html").status == 0
    with open("page.html") as page:
        assert "sacreBLEU" in page.read()


def test_a_study_without_translations_says_why(attnlab, translated):
    for file in translated.glob("*/*/outputs/test.references.txt"):
        file.unlink()
    said = attnlab("compare", "translated", "--bootstrap-sentences")
    assert said.status != 0
    assert said.err.strip().endswith(
        "--bootstrap-sentences: translated: no translations to compare: seed 0: the baseline has no outputs/test.references.txt"
    )
