"""The pages of the gallery: what they say follows from the runs, and is the same each time."""

from dataclasses import replace
from functools import partial

import pytest
from tests.analysis.scaling.planted import LAW, write_scaling_study

from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import load_study
from attnlab.analysis.scaling import scaling_of
from attnlab.report.gallery import NOT_RUN, Outcome, read_outcome, write_index, write_page
from attnlab.training.published import published_of

FIGURES = [
    {"cell": {"position": name}, "metric": "perplexity", "value": value, "of": "WikiText-103"}
    for name, value in (("sinusoidal", 406), ("alibi", 18.31))
]
PUBLISHED = published_of(
    {
        "effect": "ALiBi is flat",
        "source": "Press et al. 2022, table 2",
        "minutes": 8,
        "figures": FIGURES,
        "figure": "18.31",
    }
)


@pytest.fixture
def comparison(position):
    return compare(replace(position.study, published=PUBLISHED))


def test_a_page_has_claims_figures_cells_and_how_it_was_made(comparison, tmp_path):
    page, picture = write_page(comparison, tmp_path)
    text = page.read_text()
    assert "# ALiBi is flat" in text
    assert "attnlab gallery position_length" in text
    assert "| ALiBi does not decay | met |" in text
    assert "| alibi | 18.31 | perplexity, WikiText-103 | -387.7 | 2.21" in text
    assert "as published" in text
    assert "| code | 0123456789 |" in text
    assert f"]({picture.name})" in text
    assert picture.stat().st_size < 60_000


def test_the_same_runs_give_the_same_bytes(comparison, tmp_path):
    first = [path.read_bytes() for path in write_page(comparison, tmp_path / "a")]
    assert first == [path.read_bytes() for path in write_page(comparison, tmp_path / "b")]


def test_what_has_to_be_met_decides_the_verdict(position):
    claims = position.study.claims
    strict = [{**claims[0], "within": 0.0005}, *claims[1:]]
    assert Outcome.of(compare(position.study)).verdict == "reproduced"
    assert (
        Outcome.of(compare(replace(position.study, claims=[{**claims[1], "below": -1.0}]))).verdict == "not reproduced"
    )
    assert Outcome.of(compare(replace(position.study, claims=strict))).verdict == "open"
    weak = [claims[1], {**claims[1], "below": -1.0, "strength": "should"}]
    assert Outcome.of(compare(replace(position.study, claims=weak))).verdict == "reproduced"


def test_the_index_keeps_the_row_of_a_page_whose_runs_stand_elsewhere(comparison, tmp_path):
    write_page(comparison, tmp_path)
    index = write_index({"position_length": PUBLISHED, "another": PUBLISHED}, tmp_path).read_text()
    assert read_outcome(tmp_path / "position_length.md") == Outcome.of(comparison)
    assert "| [position_length](position_length.md) | ALiBi is flat |" in index
    assert "| reproduced |" in index
    row = next(line for line in index.splitlines() if line.startswith("| another |"))
    assert NOT_RUN in row
    (tmp_path / "another.md").write_text("no page of the gallery")
    assert read_outcome(tmp_path / "another.md") is None


OF_A_LAW = published_of(
    {"effect": "Loss is a law", "source": "Hoffmann et al. 2022", "minutes": 12, "law": {"alpha": 0.34, "E": 1.69}}
)


def test_a_law_stands_beside_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr("attnlab.report.gallery.scaling_of", partial(scaling_of, resamples=100))
    study = load_study(write_scaling_study(tmp_path / "law", steps=(450, 900, 1800), noise=0.002))
    page, picture = write_page(compare(replace(study, published=OF_A_LAW)), tmp_path / "pages")
    lines = page.read_text().splitlines()
    alpha = next(line for line in lines if line.startswith("| alpha |")).strip("|").split("|")
    assert alpha[1].strip() == "0.34"
    assert float(alpha[2]) == pytest.approx(LAW.alpha, abs=0.05)
    low, high = map(float, alpha[3].split(" to "))
    assert low < LAW.alpha < high
    assert next(line for line in lines if line.startswith("| beta |")).split("|")[2].strip() == ""
    assert any("misfit" in line for line in lines)
    assert picture.exists()
    assert "alpha 0.34, E 1.69" in write_index({"law": OF_A_LAW}, tmp_path / "pages").read_text()


def test_a_page_says_why_no_law_was_fitted(position, tmp_path):
    page, *_ = write_page(compare(replace(position.study, published=OF_A_LAW)), tmp_path)
    assert "No law was fitted: position_length: all finished runs trained on the same" in page.read_text()


def test_a_study_without_a_published_effect_has_no_page(position, tmp_path):
    with pytest.raises(ValueError, match="names no published effect"):
        write_page(position, tmp_path)
