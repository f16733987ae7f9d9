"""What encodings do to scores by distance, against their closed formulas."""

from __future__ import annotations

import cmath
import math

import matplotlib
import numpy as np
import pytest

from attnlab.inspection.positions import Encoding, curves_of, encodings_of
from attnlab.layers import (
    ALiBi,
    AxialRotary,
    Learned,
    PositionEncoding,
    RelativeBias,
    Rotary,
    RotaryYaRN,
    Sinusoidal,
)
from attnlab.models import GPT, T5, Bert
from attnlab.report.figures.inspection import positions_figure
from attnlab.report.figures.style import paper_style

LENGTH, D_MODEL, D_HEAD = 200, 32, 16


def curves(module, causal=True, length=LENGTH):
    found = curves_of(Encoding("stack", module, D_MODEL, D_HEAD, causal), length)
    return {(curve.quantity, curve.head): curve for curve in found}


def frequencies(width, base=10000.0):
    return [base ** (-2 * i / width) for i in range(width // 2)]


def test_products_of_sinusoids_depend_on_the_distance_alone():
    (curve,) = curves(Sinusoidal(D_MODEL)).values()
    expected = [sum(math.cos(m * w) for w in frequencies(D_MODEL)) for m in range(LENGTH)]
    np.testing.assert_allclose(curve.mean, expected, atol=2e-4)
    np.testing.assert_allclose(curve.low, curve.high, atol=1e-3)


def test_products_of_a_learned_table_are_over_all_queries_that_have_such_a_key():
    module = Learned(D_MODEL, 20)
    (curve,) = curves(module).values()
    table = module.table.weight.detach().double().numpy()
    assert curve.distances == list(range(20))
    for m in (0, 7, 19):
        products = [table[p] @ table[p - m] for p in range(m, 20)]
        found = (curve.mean[m], curve.low[m], curve.high[m])
        assert found == pytest.approx((np.mean(products), min(products), max(products)), abs=1e-12)


@pytest.mark.parametrize(("fraction", "interleaved"), [(1.0, False), (1.0, True), (0.5, False)])
def test_an_equal_query_and_key_under_rotary(fraction, interleaved):
    found = curves(Rotary(D_HEAD, fraction=fraction, interleaved=interleaved))
    angles = frequencies(int(D_HEAD * fraction))
    kept = 1 - fraction  # what is not rotated scores the same at every distance
    expected = [fraction * sum(math.cos(m * w) for w in angles) / len(angles) + kept for m in range(LENGTH)]
    np.testing.assert_allclose(found["rotation", None].mean, expected, atol=1e-4)
    sums = [
        [abs(sum(cmath.exp(1j * m * w) for w in angles[:j])) for j in range(1, len(angles) + 1)] for m in range(LENGTH)
    ]
    np.testing.assert_allclose(found["bound", None].mean, np.mean(sums, axis=1), atol=1e-4)


def test_yarn_scales_the_score_at_distance_zero_by_its_temperature():
    module = RotaryYaRN(D_HEAD, factor=4.0, original_length=64)
    assert curves(module)["rotation", None].mean[0] == pytest.approx((0.1 * math.log(4) + 1) ** 2, abs=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_alibi_falls_by_a_slope_a_head(causal):
    found = curves(ALiBi(8), causal)
    first = 0 if causal else 1 - LENGTH
    for head in range(8):
        curve = found["bias", head]
        assert curve.distances == list(range(first, LENGTH))
        assert curve.mean == [-abs(m) * 2.0 ** -(head + 1) for m in curve.distances]


def published_bucket(relative, causal, num_buckets, max_distance):
    """T5's own code for key minus query, in numpy's float64 (mesh_tensorflow's _relative_position_bucket)."""
    bucket, n = 0, -relative
    if not causal:
        num_buckets //= 2
        bucket += num_buckets * (n < 0)
        n = abs(n)
    else:
        n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return bucket + n
    large = exact + int(math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact) + 1e-9)
    return bucket + min(large, num_buckets - 1)


@pytest.mark.parametrize("causal", [True, False])
def test_the_biases_of_t5_are_its_table_at_published_buckets(causal):
    module = RelativeBias(2, causal, num_buckets=16, max_distance=64)
    table = module.table.weight.detach()
    found = curves(module, causal)
    for head in range(2):
        curve = found["bias", head]
        expected = [published_bucket(-m, causal, 16, 64) for m in curve.distances]
        assert curve.buckets == expected
        assert curve.mean == [float(table[bucket, head]) for bucket in expected]


def test_an_encoding_that_does_nothing_has_no_curve():
    assert curves(PositionEncoding()) == {}


def test_an_image_is_looked_at_along_a_row():
    found = curves(AxialRotary(D_HEAD, (3, 5)), causal=False)
    angles = frequencies(D_HEAD // 2, base=100.0)
    expected = [0.5 + sum(math.cos(m * w) for w in angles) / (2 * len(angles)) for m in range(5)]
    np.testing.assert_allclose(found["rotation", None].mean, expected, atol=1e-5)


@pytest.mark.parametrize("length", [1, 4097])
def test_lengths_that_cannot_be_shown_are_refused(length):
    with pytest.raises(ValueError, match="accepted: 2 to 4096"):
        curves(Sinusoidal(D_MODEL), length=length)


def test_pairs_that_have_not_turned_once():
    slow = Encoding("", Rotary(D_HEAD), D_MODEL, D_HEAD, True).slow_pairs(100)
    assert slow == (sum(2 * math.pi / w > 100 for w in frequencies(D_HEAD)), 8)
    assert Encoding("", ALiBi(2), D_MODEL, D_HEAD, True).slow_pairs(100) is None


def test_the_encodings_of_models_know_their_stacks():
    gpt, bert = (
        GPT(20, 16, d_model=16, num_heads=2, num_layers=1, position=Rotary),
        Bert(20, 16, d_model=16, num_heads=2, num_layers=1),
    )
    assert [(e.causal, e.d_model, e.d_head) for e in encodings_of(gpt)] == [(True, 16, 8)]
    assert [e.causal for e in encodings_of(bert)] == [False]
    assert [e.causal for e in encodings_of(T5(20, 20, d_model=16, num_heads=2, num_layers=1))] == [False, True]


def test_the_picture_draws_the_curves_and_shades_what_was_not_trained():
    shown = [("a_$b$", list(curves(ALiBi(2)).values())), ("learned", list(curves(Learned(D_MODEL, 50)).values()))]
    with paper_style():
        figure = positions_figure(shown, trained=50, farthest=LENGTH)
        figure.canvas.draw()
    alibi, learned = figure.axes
    assert alibi.get_title() == "a_$b$"
    assert not any(text.get_parse_math() for text in figure.findobj(matplotlib.text.Text) if text.get_text())
    for line, curve in zip(alibi.lines, shown[0][1], strict=True):
        assert list(line.get_ydata()) == curve.mean
    assert (alibi.patches[0].get_x(), alibi.patches[0].get_width()) == (50, LENGTH - 1 - 50)
    assert learned.lines[-1].get_xdata() == [49, 49]  # where the table ends
