"""The page as text: self-contained, escaped, and with the figures that it should have."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from tests.stored_studies import cell, write_image_study, write_plan, write_run

from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import Metric, load_study
from attnlab.report import document
from attnlab.report.page import render, write_report
from attnlab.report.page_data import curve_data, page_data

VOID = {"meta", "br", "hr", "input", "link"}


class Outline(HTMLParser):
    """Collects elements, text outside scripts, and what is opened and never closed."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, name, attrs):
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.text).append(data)


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def own(page: str) -> str:
    """The page without plotly's own source, which names its authors' site."""
    start = page.index("* plotly.js ")
    return page[:start] + page[page.index("</script>", start) :]


@pytest.fixture(scope="module")
def page(position):
    return render(position)


@pytest.fixture(scope="module")
def grid_page(grid_comparison):
    return render(grid_comparison)


def test_nothing_is_loaded_from_anywhere(page):
    parsed = outline(page)
    for name, attributes in parsed.elements:
        assert name not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import|//cdn", own(page))
    policy = next(a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_says_what_came_out(page):
    text = " ".join(" ".join(outline(page).text).split())
    for part in (
        "Which position encoding generalises beyond the training length?",
        "alibi is best",
        "24 of 24 runs finished",
        "loss in nats per token on the test part, at 8 times the training length",
        "cannot give p below 0.125",
        "the learned table ends at 64 positions",
        "ALiBi does not decay",
        "attnlab sweep position_length",
    ):
        assert part in text


def test_sections_are_linked_and_have_content(page):
    parsed = outline(page)
    links = [a["href"][1:] for name, a in parsed.elements if name == "a"]
    sections = [a["id"] for name, a in parsed.elements if name == "section"]
    assert links == sections
    assert {
        "short",
        "lengths",
        "differences",
        "claims",
        "curves",
        "cells",
        "cost",
        "settings",
        "repeat",
        "reading",
    } <= set(sections)


def test_the_data_is_json_and_holds_the_curves(page):
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    family = data["lengths"][0]
    assert family["name"] == "test/loss"
    rotary = next(s for s in family["series"] if s["cell"] == "rotary")
    assert rotary["x"] == [1, 2, 4, 8]
    assert [c["name"] for c in data["curves"]][:2] == ["val/loss", "train/loss"]
    series = data["curves"][0]["series"][0]
    assert len(series["seeds"]) == 4
    assert len(series["step"]) == len(series["mean"]) == len(series["low"]) == 8
    assert series["low"][-1] < series["mean"][-1] < series["high"][-1]


def test_a_curve_is_the_mean_of_the_finished_runs(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0, 1], metric={"name": "m"})
    for seed, (state, steps) in enumerate([("finished", 3), ("failed", 2)]):
        lines = [
            {"step": k, "tokens": k, "seconds": k, "values": {"val/loss": 2.0 + seed}} for k in range(1, steps + 1)
        ]
        write_run(root, {"norm": "rms_norm"}, seed, {"m": 1.0}, state=state, curve=lines)
    (series,) = curve_data(compare(load_study(root)))[0]["series"]
    assert series["mean"] == [2.0, 2.0, 2.0]
    assert series["seeds"] == {"0": [2.0, 2.0, 2.0], "1": [3.0, 3.0, None]}


def test_names_are_escaped_everywhere(tmp_path):
    evil = "<script>alert(1)</script>'\"&<img src=x onerror=alert(2)>"
    metric = f"val/{evil}@1x"
    root = write_plan(
        tmp_path / "s", study=evil, question=evil, seeds=[0, 1], factors={evil: ["a", evil]}, baseline={evil: "a"}, shared=[evil],
        cells=[{"name": name, "choices": {evil: choice}, "overrides": [], "skip": None} for name, choice in (("a", "a"), ("b", evil))],
        metric={"name": metric, "better": "lower"}, claims=[{"says": evil, "cell": {evil: evil}, "below": 1, "source": evil}], code={"commit": evil},
    )  # fmt: skip
    for name, choice in (("a", "a"), ("b", evil)):
        for seed in (0, 1):
            directory = write_run(
                root,
                {"x": name},
                seed,
                {metric: 1.0 + seed, f"val/{evil}@2x": 2.0},
                unavailable={"other": evil},
                error=evil,
                command=evil,
            )
            record = json.loads((directory / "run.json").read_text()) | {"cell_name": name, "config": {evil: choice}}
            (directory / "run.json").write_text(json.dumps(record))
            line = {"step": 1, "tokens": 1, "seconds": 1, "attempt": 1, "values": {evil: 1.0}}
            (directory / "metrics.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps({**line, 'step': 2})}\n")
    page = render(compare(load_study(root)))
    parsed = outline(page)
    assert [name for name, _ in parsed.elements if name in ("img", "script")] == ["script"] * 4
    assert "alert(1)</script>" not in page
    assert any(evil in text for text in parsed.text)


def test_the_grid_shows_all_cells(grid_comparison, grid_page):
    page = own(grid_page)
    grid = page[page.index('aria-label="The grid"') :].partition("</svg>")[0]
    assert grid.count("color-mix(in srgb, var(--heat)") == 16
    assert ">1 of 3 lost<" in grid
    assert grid.count(">baseline<") == 1
    behind = re.findall(r"<title>([^<]+, far behind)</title>", grid)
    assert len(behind) == 3
    assert page.index('id="short"') < page.index('id="grid"') < page.index('id="trust"') < page.index('id="factors"')
    worst = max(grid_comparison.measured, key=lambda summary: summary.interval.mean)
    assert any(f"{worst.label}: {worst.interval.mean:.3f}\u00a0\u00b1" in said for said in behind)
    assert re.search(rf"<title>{worst.label}: [^<]+</title><path [^>]*var\(--heat\) 58%", grid)


def test_lost_runs_are_listed_with_their_reason(grid_page):
    text = " ".join(outline(grid_page).text)
    assert "loss is not finite at step 120" in text


def test_a_report_is_one_file_of_moderate_size(position, tmp_path):
    path = write_report(position, tmp_path / "deep" / "report.html")
    assert path == tmp_path / "deep" / "report.html"
    # Installing from the source fetches plotly's basic bundle, unless npm is out of reach.
    has_basic = files("attnlab.report").joinpath("plotly-basic.min.js").is_file()
    assert path.stat().st_size < (1.6e6 if has_basic else 5.4e6)
    assert write_report(position.study, tmp_path) == tmp_path / "index.html"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["index.html"]


def test_a_study_without_charts_carries_no_plotly(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0], metric={"name": "m"})
    page = render(compare(load_study(root)))
    assert "plotly.js" not in page
    assert len(page) < 80_000
    assert "No run has finished" in page


def test_a_metric_that_no_run_has_leaves_the_others(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0, 1], metric={"name": "test/loss@2x"})
    for seed in (0, 1):
        write_run(root, {"norm": "rms_norm"}, seed, {"val/loss": 2.5})
    text = " ".join(outline(render(compare(load_study(root)))).text)
    assert "No run has this figure; there are val/loss." in text
    assert "2.5" in text
    assert "norm=rms_norm/seed=1" in text


def test_templates_escape_all_but_markup():
    evil = "a<b\"'&"
    inside = document.part("page.html", "word", evil, evil)
    assert inside == '<span class="a&lt;b&#34;&#39;&amp;">a&lt;b&#34;&#39;&amp;</span>'
    assert inside in document.part("sections.html", "fold", "title", inside)
    assert "\u22120.5 to 8\u00d7\u00a0\u00b11" in document.part("sections.html", "short", None, ["-0.5 to 8x +-1"])
    with pytest.raises(AssertionError):
        document.script("'</script>'")


def figures_of(page: str) -> list[str]:
    return re.findall(r"<svg .*?</svg>", own(page), re.S)


def test_figures_are_named_follow_the_theme_and_are_the_same_each_time(grid_comparison, grid_page, page, position):
    first, second = figures_of(grid_page), figures_of(render(grid_comparison))
    assert first == second
    names = [
        "The grid",
        "Average effects of the factors",
        "Interactions of two factors",
        "Paired differences to the baseline",
    ]
    for figure, name in zip(first, names, strict=True):
        assert f'role="img" aria-label="{name}"' in figure
        assert f"<title>{name}</title><desc>" in figure
        assert not re.search(r"#[0-9a-f]{6}|url\(|<style|<metadata|xmlns|font-family", figure)
    (forest,) = figures_of(page)
    assert "alibi: \u22120.631 (" in forest.partition("<desc>")[2].partition("</desc>")[0]
    assert forest.count("<title>seed ") == sum(
        len(one.difference.values) for one in position.measured if one.difference
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return compare(load_study(write_image_study(tmp_path_factory.mktemp("runs") / "images")))


def test_runs_without_a_plan_are_compared_in_the_direction_of_what_they_kept_the_best_of(images):
    assert images.metric == Metric("val/accuracy", "higher")
    assert images.measured[0].label == "alibi"


def test_a_study_of_images_speaks_of_images(images):
    text = " ".join(" ".join(outline(render(images)).text).split())
    assert "accuracy (0 to 1) on the validation part; higher is better" in text
    assert "images" in text
    assert "tokens" not in text
    assert images.study.unit == "image"


def test_curves_begin_with_the_measure_that_is_compared(images):
    curves = page_data(images)["curves"]
    assert [(c["name"], c["unit"], c["better"]) for c in curves] == [
        ("val/accuracy", "accuracy (0 to 1)", "higher"),
        ("val/loss", "loss in nats per image", "lower"),
        ("train/loss", "loss in nats per image", "lower"),
    ]
    assert page_data(images)["term"] == "image"


def test_buckets_of_source_lengths_are_no_multiples_of_the_training_length(tmp_path):
    final = {"test/bleu": 20.0, "test/bleu@1-5": 30.0, "test/bleu@6-10": 20.0, "test/bleu@11-20": 10.0}
    for position in ("none", "alibi"):
        write_run(tmp_path / "s", {"position": position}, 0, final, data={"unit": "token"})
    metric = {"name": "test/bleu@11-20", "better": "higher", "margin": 0.5}
    cells = [cell({"position": position}) for position in ("none", "alibi")]
    comparison = compare(load_study(write_plan(tmp_path / "s", metric=metric, cells=cells, seeds=[0])))
    assert comparison.lengths == []
    said = render(comparison)
    assert "BLEU (0 to 100) on the test part, for sources of 11 to 20 tokens; higher is better" in said
    assert "training length" not in " ".join(outline(said).text)
