"""Pictures of embeddings and of images that were found: the cosines of few texts, the main directions of many, whatever the texts say."""

import matplotlib
import numpy as np
import pytest

from attnlab.report.figures.inspection import embeddings_figure, found_figure
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
