"""The page holds the weights to the precision that it states, escapes every text, and says what it leaves out."""

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inspection.planted import axis_of, causal, map_of, uniform

from attnlab.inspection.ablation import Effect
from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import CROSS, SELF, patch_axis
from attnlab.inspection.heads import Head, head_scores
from attnlab.inspection.syntactic_agreement import TO_HEAD, Agreement
from attnlab.report import attention
from attnlab.report.attention import page_data, quantised, render, write_page


def example(text="abcd", title="t"):
    axis, allowed = axis_of(text), causal(len(text))
    maps = [map_of([uniform(allowed), np.eye(len(text))], allowed, SELF, layer) for layer in range(2)]
    return Attended(title, maps, {SELF: (axis, axis)}, text)


def unpacked(kind):
    steps = np.frombuffer(base64.b64decode(kind["weights"]), dtype="<u2")
    return steps.reshape(kind["layers"], kind["heads"], len(kind["queries"]), len(kind["keys"])) / 65535


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_weights_are_exact_to_what_the_page_says(weights):
    steps = np.frombuffer(base64.b64decode(quantised(np.array(weights))), dtype="<u2")
    assert np.abs(steps / 65535 - weights).max() < 0.00001


def test_maps_labels_and_places_that_may_not_be_attended_to():
    found = example("a\n <")
    (kind,) = page_data([found], head_scores([found]))["examples"][0]["kinds"]
    assert kind["queries"] == kind["keys"] == ["a", "\n", " ", "<"]
    np.testing.assert_allclose(unpacked(kind)[1, 0], uniform(causal(4)), atol=1e-5)
    hidden = np.unpackbits(np.frombuffer(base64.b64decode(kind["hidden"]), dtype=np.uint8))[: 2 * 16]
    np.testing.assert_array_equal(hidden.reshape(2, 4, 4)[1], ~causal(4).numpy())
    assert (kind["cut"], kind["square"], kind["grid"]) == (None, True, None)


def test_every_text_is_escaped():
    evil = "</script><img src=x onerror=alert(1)>"
    found = example(evil[:8], evil)
    scores = head_scores([found])
    relation = Agreement(evil, TO_HEAD, 12, {Head(SELF, 0, 0): 0.5}, 0.25, -1)
    page = render(evil, [found], scores, {Head(SELF, 0, 0): Effect(0.1, -math.inf, math.inf, 1.0, 1)}, [relation])
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert "+0.1000 undecided" in page
    text = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(text)["examples"][0]["title"] == evil
    for word in ("http:", "https:", "src="):
        assert word not in page.replace("src=x", "")


def test_too_many_examples_are_left_out_and_too_many_tokens_are_cut_and_told(monkeypatch):
    monkeypatch.setattr(attention, "MOST_WEIGHTS", 100)
    found = [example("ab"), example("abcdef"), example("abc")]  # 16, 144 and 36 weights
    page = render("run", found, head_scores(found))
    assert "In the statistics alone: 2 more." in page
    (kind,) = page_data([example("abcdef")], {})["examples"][0]["kinds"]
    assert (len(kind["queries"]), kind["cut"]) == (5, [6, 6])
    np.testing.assert_allclose(unpacked(kind)[0, 0], uniform(causal(6))[:5, :5], atol=1e-5)


def test_an_image_without_a_class_token_starts_with_the_mean_of_its_patches():
    axis = patch_axis((1, 2), 1, has_class=False)
    weights = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]])
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    found = Attended("x.png", [map_of(weights)], {SELF: (axis, axis)}, pixels_YXC=pixels)
    data = page_data([found], {})["examples"][0]
    (kind,) = data["kinds"]
    assert kind["queries"] == ["[mean of patches]", "[register 1]", "1.1", "1.2"]
    assert (kind["before"], kind["offset"], kind["grid"], data["size"]) == (1, 2, [1, 2], [1, 2])
    np.testing.assert_allclose(unpacked(kind)[0, 0, 0], [0.25, 0.75, 0.0], atol=1e-5)
    assert list(base64.b64decode(data["pixels"])) == list(range(6))


def test_it_is_written_whole_and_starts_at_the_clearest_head(tmp_path):
    found = example("abcdefghijkl")
    path = write_page(tmp_path / "deep" / "attention.html", "run", [found], head_scores([found]))
    data = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    assert data["start"] == {"layer": 0, "head": 1, "query": 6}
    assert data["heads"]["self 0.1"]["role"] == "current token"
    assert data["heads"]["self 0.1"]["statistics"]["entropy"][0] == "0.000"


def test_cross_attention_alone_has_both_sides(tmp_path):
    queries, keys = axis_of("abc"), axis_of("wxyz")
    found = Attended("t", [map_of([np.full((3, 4), 0.25)], kind=CROSS)], {CROSS: (queries, keys)})
    (kind,) = page_data([found], head_scores([found]))["examples"][0]["kinds"]
    assert (kind["queries"], kind["keys"], kind["square"], kind["hidden"]) == (list("abc"), list("wxyz"), False, None)
    assert unpacked(kind) == pytest.approx(0.25, abs=1e-5)
