"""Figures for a paper: text stays text, and nothing of matplotlib's settings stays changed."""

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tests.inspection.planted import axis_of, causal, map_of, uniform

from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import SELF, patch_axis, with_rollouts
from attnlab.inspection.heads import Head, head_scores
from attnlab.report.figures.attention import write_figures


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    axis, allowed = axis_of("a$b$cdefghij"), causal(12)
    one = map_of([uniform(allowed), np.eye(12)], allowed)
    example = Attended("t", with_rollouts([one]), {SELF: (axis, axis), "rollout": (axis, axis)})
    before = dict(matplotlib.rcParams)
    files = write_figures(tmp_path_factory.mktemp("figures") / "new", example, head_scores([example]))
    assert dict(matplotlib.rcParams) == before
    return files


def test_every_kind_has_an_overview_and_its_clearest_head(written):
    names = ["self_overview", "self_0.1", "rollout_overview", "rollout_0.0"]
    assert [path.name for path in written] == [f"{name}.{ending}" for name in names for ending in ("png", "pdf")]


def test_text_in_a_pdf_is_text_of_an_embedded_font(written):
    for path in written:
        if path.suffix == ".pdf":
            content = path.read_bytes()
            assert b"/FontFile2" in content  # TrueType, not outlines
            assert b"/Type3" not in content


def test_the_picture_is_dark_for_nothing_and_white_for_what_is_hidden(written):
    pixels = np.asarray(Image.open(written[2]).convert("RGB")).reshape(-1, 3)
    colours = matplotlib.colormaps["cividis"]([0, 255])[:, :3] * 255
    for colour in (*colours, (255, 255, 255)):
        assert (np.abs(pixels - np.array(colour)).max(axis=1) <= 3).mean() > 0.01


@pytest.mark.slow
def test_an_asked_head_and_an_image(tmp_path):
    axis = patch_axis((2, 2), 0, has_class=False)
    maps = with_rollouts([map_of([np.full((4, 4), 0.25)] * 2)])
    example = Attended(
        "x$y.png", maps, {SELF: (axis, axis), "rollout": (axis, axis)}, pixels_YXC=np.zeros((8, 8, 3), np.uint8)
    )
    files = write_figures(tmp_path, example, {}, Head(SELF, 0, 1))
    assert [path.stem for path in files[2::2]] == ["self_0.1", "rollout_overview", "rollout_0.0", "rollout_over_image"]
    assert all(path.stat().st_size > 1000 for path in files)
