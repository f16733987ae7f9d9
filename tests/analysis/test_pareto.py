"""The picture of results over costs: its front is that of the definition, and page and figure mark the same cells."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import compare, load_study
from attnlab.analysis.pareto import Pareto, Point, pareto
from attnlab.analysis.statistics import mean_interval
from attnlab.report.figures.study import draw
from attnlab.report.page_data import page_data

CELLS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12)


@given(CELLS, st.sampled_from(["lower", "higher"]))
def test_the_front_is_what_no_other_cell_beats(drawn, better):
    points = [Point(str(i), mean_interval([float(y)]), {"flops": float(x)}) for i, (x, y) in enumerate(drawn)]
    front = {point.label for point in Pareto("val/loss", better, points).front("flops")}
    sign = 1 if better == "lower" else -1
    for i, (x, y) in enumerate(drawn):
        beaten = any((u <= x and sign * v <= sign * y) and (u < x or sign * v < sign * y) for u, v in drawn)
        assert (str(i) in front) == (not beaten)


@pytest.fixture
def comparison(tmp_path):
    """Three sizes of which the middle one is worse than the small one; a fourth has no value."""
    losses = {1: 2.0, 2: 2.5, 4: 1.5, 8: None}
    cells = [cell({"size": size}) for size in losses]
    root = write_plan(
        tmp_path / "s",
        factors={"size": list(losses)},
        baseline={"size": 1},
        cells=cells,
        seeds=[0, 1],
        metric={"name": "val/loss", "better": "lower"},
    )
    for size, loss in losses.items():
        for seed in (0, 1):
            final = {"val/loss": None if loss is None else loss + 0.1 * seed}
            write_run(root, {"size": size}, seed, final, parameters=1000 * size)
    return compare(load_study(root))


def test_a_cell_is_a_point_at_what_its_runs_cost(comparison):
    found = pareto(comparison)
    assert found.axes == ["flops", "parameters"]  # all take as long
    assert [point.cost["parameters"] for point in found.on("parameters")] == [1000, 2000, 4000]
    assert found.on("flops")[0].cost["flops"] == 6 * 1000 * 1_638_400
    assert [point.label for point in found.front("flops")] == ["1", "4"]


def test_page_and_figure_mark_the_same_cells(comparison):
    (picture,) = page_data(comparison)["pareto"]
    assert {one["cell"]: one["front"] for one in picture["points"]} == {
        "1": ["flops", "parameters"],
        "2": [],
        "4": ["flops", "parameters"],
    }
    figure = draw(comparison, "pareto")
    axes = figure.axes[0]
    marks = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert [label for label, mark in marks.items() if mark.get_markerfacecolor() == mark.get_color()] == ["1", "4"]
    assert marks["4"].get_ydata() == pytest.approx([1.55])
    assert axes.get_xscale() == "log"


def test_of_cells_that_cost_the_same_there_is_none(tmp_path):
    root = write_plan(
        tmp_path / "s",
        cells=[cell({"a": k}) for k in (1, 2)],
        seeds=[0],
        metric={"name": "val/loss", "better": "lower"},
    )
    for k in (1, 2):
        write_run(root, {"a": k}, 0, {"val/loss": math.pi})
    found = compare(load_study(root))
    assert pareto(found) is None
    assert page_data(found)["pareto"] == []
    with pytest.raises(ValueError, match="do not all cost the same"):
        draw(found, "pareto")
