"""`attnlab gallery`: what it lists, runs and writes; and the gallery that comes with attnlab."""

import re
from pathlib import Path

import pytest
import yaml

from attnlab.config import shipped
from attnlab.studies.gallery import gallery
from attnlab.training.study_fields import checked_study

ROOT = Path(__file__).parents[2]
PUBLISHED = {"effect": "Order helps", "source": "Nobody 2020, table 1", "minutes": 1, "figure": "by a half"}
MOST_MINUTES, FEWEST_SEEDS = 15, 6


@pytest.fixture
def only(monkeypatch, here):
    """The gallery of the folder of the test alone."""
    (here / "none").mkdir()
    monkeypatch.setattr("attnlab.studies.gallery.shipped", lambda name: here / "none")
    return here


def write(here, study, name, **fields):
    """A study beside the working folder's others, in the gallery."""
    made = study(name, published=PUBLISHED, **fields)
    made.rename(here / name)


@pytest.mark.slow
def test_a_study_is_run_and_has_a_page_and_a_row(attnlab, only, study):
    write(only, study, "mine", seeds=2)
    said = attnlab("gallery")
    assert said.status == 0
    assert re.search(r"mine +1 min +not run yet\n +Order helps. Nobody 2020, table 1\n", said.out)
    said = attnlab("gallery", "mine", "hydra/launcher=basic")
    assert said.status == 0, said.err
    assert "# Order helps" in Path("runs/gallery/mine.md").read_text()
    assert "[mine](mine.md)" in Path("runs/gallery/index.md").read_text()
    assert re.search(r"mine +1 min +4 of 4 runs, \w+ \(.*claims", attnlab("gallery").out)
    before = Path("runs/gallery/mine.md").read_bytes()
    assert attnlab("gallery", "--pages", "--to", "pages").status == 0
    assert Path("pages/mine.md").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mine", "--all"), "--all runs every study, and mine is named"),
        (("mine", "trainer.max_steps=3"), "attnlab gallery runs a study as it stands"),
        (("mine", "study.name=other"), "attnlab gallery runs a study as it stands"),
        (("plain",), "plain names no published effect, so it is not in the gallery"),
        (("mina",), "there is no such study"),
    ],
)
def test_what_would_be_another_study_is_refused(attnlab, only, study, words, message):
    write(only, study, "mine")
    study("plain")
    said = attnlab("gallery", *words)
    assert (said.status, message in said.err) == (2, True), said.err
    assert not Path("runs").exists()


def test_runs_with_other_settings_have_no_page(attnlab, only, study, monkeypatch):
    write(only, study, "mine", shared=["model=gpt"])
    monkeypatch.setattr(
        "attnlab.cli.gallery._compared", lambda folder, published: _Compared(["model=gpt", "optimizer.lr=1"])
    )
    said = attnlab("gallery", "mine", "--pages")
    assert "no page of mine: its runs and its study.yaml differ in optimizer.lr=1\n" in said.err
    assert not Path("runs/gallery/mine.md").exists()


class _Compared:
    """As much of a comparison as is looked at before a page is written."""

    def __init__(self, shared):
        self.study = type("Study", (), {"shared": shared})


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others_and_nothing_is_run_twice(attnlab, only, study):
    write(only, study, "a_broken", shared=["data=nothing_of_this_name"])
    write(only, study, "b_good", seeds=1)
    said = attnlab("gallery", "--all", "hydra/launcher=basic")
    assert said.status == 1
    assert "nothing_of_this_name" in said.err
    assert re.search(r"a_broken +ended with 2", said.out)
    assert re.search(r"b_good +all runs are over", said.out)
    assert "not over: a_broken; the same command runs what is left" in said.err
    assert Path("runs/gallery/b_good.md").is_file()
    [*curves] = Path("runs/b_good").glob("*/*/metrics.jsonl")
    made = [path.stat().st_mtime_ns for path in curves]
    assert len(made) == 2
    assert attnlab("gallery", "b_good").status == 0
    assert [path.stat().st_mtime_ns for path in curves] == made


def test_the_gallery_that_comes_with_attnlab_keeps_its_promises(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    known = gallery()
    assert known
    for name, published in known.items():
        study = checked_study(yaml.safe_load((shipped("experiments") / name / "study.yaml").read_text()))
        assert published.minutes <= MOST_MINUTES, name
        assert not study["claims"] or len(study["seeds"]) >= FEWEST_SEEDS, name
        assert study["claims"], f"{name} claims nothing beforehand"
    index = (ROOT / "docs" / "gallery" / "index.md").read_text()
    rows = re.findall(r"^\| \[?(\w+)\]?[^|]* \| ", index, re.M)
    assert [row for row in rows if row != "study"] == sorted(known)
