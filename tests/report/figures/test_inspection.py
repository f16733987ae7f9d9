"""Pictures of embeddings and of images that were found: the cosines of few texts, the main directions of many, whatever the texts say."""

import matplotlib
import numpy as np
import pytest

from attnlab.report.figures.inspection import coordinates_figure, embeddings_figure, found_figure, rates_figure
from attnlab.report.figures.style import paper_style


def rows(count, width=6):
    drawn = np.random.default_rng(0).standard_normal((count, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_few_texts_show_their_cosines():
    embeddings = rows(3)
    with paper_style():
        figure = embeddings_figure(embeddings, ["$x^2$ <b>", "a cat", "a text of more than twenty-four letters"])
        figure.canvas.draw()
        axes = figure.axes[0]
        cosines = embeddings @ embeddings.T
        np.testing.assert_allclose(axes.collections[0].get_array(), cosines)
        assert [float(t.get_text().replace("\u2212", "-")) for t in axes.texts] == pytest.approx(
            cosines.ravel(), abs=0.0051
        )
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["1 $x^2$ <b>", "2 a cat", "3 a text of more than twen\u2026"]
        assert not any(text.get_parse_math() for text in figure.findobj(matplotlib.text.Text) if text.get_text())


@pytest.mark.parametrize(("count", "last"), [(31, "31 text"), (61, "61")])
def test_many_texts_show_their_main_directions(count, last):
    embeddings = rows(count)
    with paper_style():
        figure = embeddings_figure(embeddings, ["text"] * count)
    axes = figure.axes[0]
    centred = embeddings.astype(float) - embeddings.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:2].T
    found = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)
    share = 100 * values[0] ** 2 / (values**2).sum()
    assert axes.get_xlabel() == f"first direction ({share:.0f}% of the variance)"
    assert axes.texts[-1].get_text() == last


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (5, 5), (12, 5)])
def test_found_images_fill_the_width_of_their_picture(count, columns):
    pixels = np.zeros((1, 8, 8), np.uint8)
    with paper_style():
        figure = found_figure("what is looked for " * 9, [(pixels, "some caption of an image " * 4, 0.5)] * count)
        figure.canvas.draw()
    places = [axes.get_window_extent() for axes in figure.axes]
    assert len(places) == count
    assert len({round(place.x0) for place in places}) == columns
    left, right = min(place.x0 for place in places), max(place.x1 for place in places)
    assert left == pytest.approx(figure.bbox.width - right, abs=1)
    assert left < places[0].width / 4
    title, *captions = (text.get_window_extent() for text in (figure._suptitle, *(axes.title for axes in figure.axes)))
    assert all(figure.bbox.x0 <= word.x0 and word.x1 <= figure.bbox.x1 for word in (title, *captions))
    assert not any(title.overlaps(word) for word in captions)


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [
        ([[1e-3, 1e-1], [0.0, 10.0]], ["0.001", "0.01", "0.1", "1", "10"]),
        ([[0.3, 0.4], [0.5, 0.6]], ["0.5"]),  # of 1, 2 and 5; see below
        ([[0.61, 0.66], [0.62, 0.69]], ["0.61", "0.63", "0.65"]),
        ([[1e-9, 1e9], [1.0, 1e8]], ["1e-09", "1e-05", "0.1", "1000", "1e+07"]),
    ],
)
def test_a_logarithmic_axis_has_figures_at_its_ticks(sizes, ticks):
    """The style writes no mathematics: matplotlib's own labels would be their source."""
    with paper_style():
        figure = coordinates_figure([64, 128], {"stream": sizes, "logits": sizes})
        figure.canvas.draw()
        axes = figure.axes[0]
        shown = [label.get_text() for label in axes.get_yticklabels()]
        assert set(ticks) <= set(shown)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128"]
        assert all(float(text) == pytest.approx(at) for text, at in zip(shown, axes.get_yticks(), strict=True))
        assert not any("$" in text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_a_range_test_shows_where_it_falls_fastest_and_not_how_far_it_diverged():
    rates = np.geomspace(1e-4, 1.0, 30)
    smoothed = [*np.linspace(4.0, 2.0, 25), 3.0, 8.0, 90.0, 900.0, 9000.0]
    with paper_style():
        figure = rates_figure(rates, [value + 0.1 for value in smoothed], smoothed, 0.012)
        figure.canvas.draw()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert axes.get_ylim()[0] < 2.1
    assert 4.0 < axes.get_ylim()[1] < 6.0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["of a step", "smoothed", "steepest, 0.012"]
