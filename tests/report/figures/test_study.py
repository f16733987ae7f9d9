"""Figures for a paper: what they show is what the comparison and the page say, whatever the names are, and the same bytes each time."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tests.stored_studies import cell, learning_curve, write_image_study, write_plan, write_position_study, write_run

from attnlab.analysis import formatting as wording
from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import load_study
from attnlab.analysis.table import typographic
from attnlab.report.figures.study import study_figures, write_figures
from attnlab.report.figures.style import colours, luminance, paper_style
from attnlab.report.page import render


def drawn(comparison):
    """{name: figure}, drawn."""
    with paper_style():
        found = dict(study_figures(comparison))
        for figure in found.values():
            figure.canvas.draw()
        return found


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def rows_of(axes) -> list[list[str]]:
    """Of each row of a forest its figures, verdict and note."""
    found = [text.get_text() for text in axes.texts]
    return [found[i : i + 3] for i in range(0, len(found), 3)]


@pytest.fixture(scope="module")
def position_figures(position):
    return drawn(position)


@pytest.fixture(scope="module")
def grid_figures(grid_comparison):
    return drawn(grid_comparison)


def test_what_a_study_has_is_written_and_can_be_read(position, tmp_path):
    written = write_figures(position, tmp_path / "figures")
    names = {"differences", "lengths", "lengths-test-sliding-loss", "curves", "pareto"}
    assert {path.name for path in written} == {f"{name}.{ending}" for name in names for ending in ("pdf", "png")}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
                assert image.width in (670, 1380)  # one column, or both
        else:
            content = path.read_bytes()
            assert content.startswith(b"%PDF-")
            assert content.rstrip().endswith(b"%%EOF")
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
            assert b"CreationDate" not in content


def test_the_same_study_gives_the_same_bytes_and_nothing_of_matplotlib_stays_changed(tmp_path):
    root = write_image_study(tmp_path / "images")
    before = dict(matplotlib.rcParams)
    first, second = (write_figures(compare(load_study(root)), tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert dict(matplotlib.rcParams) == before


def test_a_forest_says_what_the_page_says(position, position_figures):
    (axes,) = position_figures["differences"].axes
    cells = [one for one in position.measured if one.difference]
    assert [label.get_text() for label in axes.get_yticklabels()] == [one.label for one in cells]
    page = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", render(position))))
    decimals = wording.decimals_for(one.difference.interval for one in cells)
    for one, (text, verdict, note) in zip(cells, rows_of(axes), strict=True):
        figures = typographic(wording.interval_text(one.difference.interval, decimals, sign=True))
        assert text == figures
        assert verdict == f"\u25b2 {one.difference.verdict}"
        assert note.startswith(f"{wording.wins_text(one.difference)} seeds \u00b7 p ")
        assert figures in page
        assert note in page
    assert axes.get_xlabel() == "← better    difference to sinusoidal in loss in nats per token    worse →"


def test_a_forest_draws_each_seed_mean_and_interval(position, position_figures):
    (axes,) = position_figures["differences"].axes
    shades = {colours()["soft"]}
    dots = [line.get_data() for line in axes.lines if line.get_color() in shades and line.get_marker() == "o"]
    lines = [[np.asarray(values, dtype=float) for values in line.get_data()] for line in axes.lines]
    for place, one in enumerate(one for one in position.measured if one.difference):
        interval = one.difference.interval
        assert any(
            np.allclose(x, [interval.low, interval.high]) and np.allclose(y, place) for x, y in lines if len(x) == 2
        )
        assert any(np.allclose(x, [interval.mean]) and np.allclose(y, place) for x, y in lines if len(x) == 1)
        seeds = sorted(one.difference.values.values())
        assert sorted(x[0] for x, y in dots if np.isclose(y[0], place + 0.27)) == pytest.approx(seeds)


def test_length_curves_are_those_of_the_comparison(position, position_figures):
    (axes,) = position_figures["lengths"].axes
    curves = {curve.label: curve for curve in position.primary_lengths}
    shown = {one.get_label(): one.lines[0] for one in axes.containers}
    assert shown.keys() == curves.keys()
    for label, line in shown.items():
        points = sorted(curves[label].points.items())
        assert list(line.get_xdata()) == [k for k, _ in points]
        assert line.get_ydata() == pytest.approx([point.mean for _, point in points], rel=1e-4)
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [float(line.get_ydata()[0]) for line in crosses] == pytest.approx(
        [curves["learned"].points[1].mean], rel=1e-4
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{k}\u00d7" for k in (1, 2, 4, 8)]


@pytest.mark.slow
def test_curves_by_factor_are_means_of_seeds_over_the_cells(grid_comparison, grid_figures):
    study, figure = grid_comparison.study, grid_figures["curves-by-factor"]
    axes = next(axes for axes in figure.axes if axes.get_legend().get_title().get_text() == "residual")
    names = [one.name for one in study.cells if one.choices["residual"] == "post_ln"]
    last = study.curves.filter(study.curves["cell"].is_in(names)).drop_nulls("val/loss")
    last = last.filter(last["step"] == last["step"].max())
    thick = next(line for line in axes.lines if line.get_label() == "post_ln")
    assert thick.get_ydata()[-1] == pytest.approx(last["val/loss"].mean(), rel=1e-4)
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == 2 * len(study.seeds)


def test_the_grid_shows_every_cell_and_what_was_lost(grid_comparison, grid_figures):
    found = texts(grid_figures["grid"])
    decimals = wording.decimals_for(one.interval for one in grid_comparison.cells)
    for one in grid_comparison.cells:
        lost = f"\n{one.n_failed} of {sum(one.states.values())} lost" if one.n_failed else ""
        mark = "\nbaseline" if one.is_baseline else ""
        assert typographic(wording.spread_text(one.interval, decimals)) + lost + mark in found
    assert any("lost" in text for text in found)


def test_what_stands_in_the_grid_can_be_read(grid_figures):
    (axes,) = grid_figures["grid"].axes
    assert len(axes.texts) == len(axes.patches) == 16
    for text, patch in zip(axes.texts, axes.patches, strict=True):
        pair = [luminance(colour) for colour in (patch.get_facecolor(), matplotlib.colors.to_rgb(text.get_color()))]
        assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5  # WCAG 2, level AA


def test_effects_are_those_of_the_comparison(grid_comparison, grid_figures):
    (axes,) = grid_figures["effects"].axes
    effects = grid_comparison.effects
    decimals = wording.decimals_for(effect.interval for effect in effects)
    for effect, (text, _, _) in zip(effects, rows_of(axes), strict=True):
        assert text.startswith(typographic(wording.interval_text(effect.interval, decimals, sign=True)))


NAMES = ["$\\frac{1}{2}$", "<b>a_b&amp;", "100%^{2}"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A study whose choices would be formulas or markup to others."""
    root = write_plan(
        tmp_path_factory.mktemp("runs") / "odd",
        factors={"position": NAMES},
        baseline={"position": NAMES[0]},
        cells=[cell({"position": name}) for name in NAMES],
        seeds=[0, 1],
        metric={"name": "val/loss", "better": "lower"},
    )
    for index, name in enumerate(NAMES):
        for seed in (0, 1):
            curve = learning_curve(2 + 0.1 * index, seed)
            write_run(root, {"position": name}, seed, {"val/loss": 2 + 0.1 * index + 0.01 * seed}, curve=curve)
    return compare(load_study(root))


def test_names_stay_text(odd):
    assert sum(bool(one.values) for one in odd.cells) == 3
    figures = drawn(odd)
    (axes,) = figures["differences"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES[1:]
    for figure in figures.values():
        assert not any(text.get_parse_math() for text in figure.findobj(matplotlib.text.Text) if text.get_text())


def test_one_seed_has_dots_without_bars(tmp_path):
    comparison = compare(load_study(write_position_study(tmp_path / "single", seeds=1)))
    figures = drawn(comparison)
    (axes,) = figures["differences"].axes
    assert all("(one seed)" in text for text, _, _ in rows_of(axes))
    assert not [line for line in axes.lines if line.get_linewidth() == 2]
    assert figures.keys() == {"differences", "lengths", "lengths-test-sliding-loss", "curves", "pareto"}


def test_a_study_without_runs_leaves_no_folder(tmp_path):
    root = write_plan(tmp_path / "empty", cells=[cell({"position": "none"})], seeds=[0])
    assert write_figures(compare(load_study(root)), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_many_cells_are_cut_and_counted(grid_comparison, monkeypatch):
    monkeypatch.setattr("attnlab.report.figures.forest.MOST_ROWS", 4)
    (axes,) = drawn(grid_comparison)["differences"].axes
    assert len(rows_of(axes)) == 4
    assert axes.get_xlabel().endswith("\n11 more rows are on the page")


def test_more_lines_than_can_be_told_apart_are_left_out(position, monkeypatch):
    monkeypatch.setattr("attnlab.report.figures.study.MOST_PANELS", 5)
    monkeypatch.setattr("attnlab.report.figures.study.MOST_COLOURS", 5)
    with paper_style():
        assert [name for name, _ in study_figures(position)] == ["differences", "pareto"]


def test_a_full_disk_is_said(position, tmp_path):
    from attnlab.training.run_directory import CannotWrite

    (tmp_path / "figures" / "differences.pdf").mkdir(parents=True)
    with pytest.raises(CannotWrite, match=r"differences\.pdf"):
        write_figures(position, tmp_path / "figures")


def test_colours_are_those_of_the_page_in_light(position):
    assert colours()["better"] == "#14704f"
    assert f"--better: {colours()['better']}" in render(replace(position))
