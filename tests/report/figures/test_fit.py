"""Rendered figures of small and large studies: no text leaves the canvas, no tick label covers another, no band leaves its axes."""

from __future__ import annotations

from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from tests.stored_studies import write_crossed_study

from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import load_study
from attnlab.report.figures.study import draw, study_figures
from attnlab.report.figures.style import paper_style

POSITIONS = [
    "sinusoidal",
    "learned",
    "rotary",
    "alibi",
    "relative_bias",
    "none",
    "rotary_linear",
    "rotary_ntk",
    "rotary_yarn",
]
POSITIONS += ["rotary_llama3", "axial_rotary", "my_own_parts.position_encoding_of_a_long_name"]
NORMS = ["layer_norm", "rms_norm", "dynamic_tanh", "none"]
STUDIES = {
    "2": {"position": POSITIONS[:2]},
    "12": {"position": POSITIONS},
    "2 x 12": {"position": POSITIONS[:2], "encoding": POSITIONS},
    "4 x 3 x 2": {"norm": NORMS, "model.num_layers": [2, 6, 12], "optimizer.lr": ["1e-3", "3e-3"]},
    "6 x 4": {"position": POSITIONS[:6], "norm": NORMS},
}
FURTHER = ("2 x 12", "4 x 3 x 2")


def shown_texts(figure):
    """Every text that is drawn: labels of ticks beyond the limits are not."""
    for axes in (one for one in figure.axes if one.get_visible()):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                for label in (tick.label1, tick.label2):
                    label.set_visible(label.get_visible() and low <= tick.get_loc() <= high)
    hidden = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(matplotlib.text.Text)}
    texts = figure.findobj(lambda one: isinstance(one, matplotlib.text.Text) and one.get_visible() and one.get_text())
    return [text for text in texts if text not in hidden]


def cover(first, second, renderer) -> bool:
    """Whether two labels of one axis cover each other: by their boxes, or, slanted, by their distance across."""
    if first.get_rotation() % 90:
        apart = abs(
            first.get_transform().transform(first.get_position())[0]
            - second.get_transform().transform(second.get_position())[0]
        )
        return apart * np.sin(np.radians(first.get_rotation())) < first.get_size() * first.figure.dpi / 72
    boxes = [text.get_window_extent(renderer) for text in (first, second)]
    return boxes[0].overlaps(boxes[1])


def drawn(folder, which):
    """{name: figure}: all that the study has, but of every further large study what no other has."""
    comparison = compare(load_study(write_crossed_study(folder / "s", STUDIES[which], seeds=2)))
    if which in FURTHER:
        return {kind: draw(comparison, kind) for kind in ("interactions", "grid")}
    with paper_style():
        figures = dict(study_figures(comparison))
        for figure in figures.values():
            figure.canvas.draw()
    factorial = {"effects", "interactions", "curves-by-factor", "grid"} if len(STUDIES[which]) > 1 else set()
    assert figures.keys() == {"differences", "lengths", "curves"} | factorial
    return figures


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("runs"), "12")


@pytest.mark.slow
@pytest.mark.parametrize("which", STUDIES)
def test_no_text_leaves_the_canvas_and_none_covers_another(which, tmp_path, request):
    figures = request.getfixturevalue("twelve") if which == "12" else drawn(tmp_path, which)
    for name, figure in figures.items():
        renderer, (width, height) = figure.canvas.get_renderer(), figure.canvas.get_width_height()
        for text in shown_texts(figure):
            box = text.get_window_extent(renderer)
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, (name, text.get_text(), box)
        for axes in (one for one in figure.axes if one.get_visible()):
            for axis in (axes.xaxis, axes.yaxis):
                labels = [one for one in axis.get_ticklabels() if one.get_visible() and one.get_text()]
                assert not [pair for pair in pairwise(labels) if cover(*pair, renderer)], (name, labels)
            legend = axes.get_legend()
            if legend:  # hides no line
                box = legend.get_window_extent(renderer)
                assert box.y0 >= axes.bbox.y1 - 2, name
        titles = [axes.title for axes in figure.axes if axes.get_visible() and axes.title.get_text()]
        boxes = [title.get_window_extent(renderer) for title in titles]
        assert not [1 for first, second in combinations(boxes, 2) if first.overlaps(second)], name


def test_a_band_ends_within_its_axes(position):
    figure = draw(position, "curves")
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    bands = [one for one in axes.collections if isinstance(one, PolyCollection)]
    assert len(bands) == 6
    for band in bands:
        points = band.get_paths()[0].vertices
        late = points[points[:, 0] > 200]
        assert low <= late[:, 1].min()
        assert late[:, 1].max() <= high


@pytest.mark.slow
def test_twelve_cells_have_a_panel_each_with_the_others_behind(twelve):
    for name in ("lengths", "curves"):
        panels = [axes for axes in twelve[name].axes if axes.get_visible()]
        assert [axes.get_title().replace("\n", "")[:25] for axes in panels] == [name[:25] for name in POSITIONS]
        assert len({axes.get_ylim() for axes in panels}) == 1
        for axes in panels:
            lines = [line for line in axes.lines if line.get_linewidth() == 0.8 and line.get_zorder() == 1]
            assert len(lines) == 12
