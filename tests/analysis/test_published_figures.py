"""Published figures beside a study's own: what is shown of them, and when a direction is called the same."""

import numpy as np
import pytest
from tests.analysis.planted_effects import planted

from attnlab.analysis.comparison import compare
from attnlab.analysis.published_figures import beside_published, published_table


def figure(choice, value, **more):
    return {"cell": {"feed_forward": choice}, "metric": "log-perplexity", "value": value, "of": "C4", **more}


def study(change, figures, noise=0.002, **named):
    draw = np.random.default_rng(1)
    means = {("relu", 32): 2.0, ("glu", 32): 2.0 + change, ("relu", 64): 1.8, ("glu", 64): 1.8 + change}
    return planted(
        {cell: mean + noise * draw.standard_normal(6) for cell, mean in means.items()}, figures=figures, **named
    )


@pytest.mark.parametrize(
    ("change", "published", "better", "direction"),
    [
        (-0.05, 1.94, "", "as published"),
        (0.05, 1.94, "", "opposite"),
        (0.0, 1.94, "", "not sure here"),
        (-0.05, 27.3, "higher", "as published"),  # BLEU beside a loss: better in both
        (-0.05, 2.05, "", "opposite"),
        (-0.05, 1.997, "", ""),  # the paper has no difference
    ],
)
def test_the_direction_is_that_of_better_and_not_of_the_number(change, published, better, direction):
    base = 1.997 if better == "" else 25.0
    more = {"better": better} if better else {}
    found = beside_published(compare(study(change, [figure("relu", base, **more), figure("glu", published, **more)])))
    assert [one.direction for one in found] == ["", direction]
    assert found[1].published_difference == pytest.approx(published - base)
    assert found[1].difference.mean == pytest.approx(change, abs=0.004)


def test_figures_of_other_data_have_no_difference_between_them():
    found = beside_published(compare(study(-0.05, [figure("relu", 1.997), figure("glu", 1.6) | {"of": "C4, longer"}])))
    assert [(one.published_difference, one.direction) for one in found] == [(None, ""), (None, "")]


def test_a_figure_of_the_larger_size_is_held_against_the_baseline_of_that_size():
    large = {"model.d_model": 64}
    figures = [figure(choice, value) for choice, value in (("relu", 1.997), ("glu", 1.94))]
    figures = [{**one, "cell": {**one["cell"], **large}} for one in figures]
    found = beside_published(compare(study(-0.05, figures)))
    assert [one.label for one in found] == ["relu · d_model 64", "glu · d_model 64"]
    assert [one.direction for one in found] == ["", "as published"]
    assert found[1].difference.mean == pytest.approx(-0.05, abs=0.004)  # and not -0.25, that of the smaller baseline


def test_the_table_has_both_and_no_cell_that_the_study_lacks():
    found = beside_published(compare(study(-0.05, [figure("relu", 1.997), figure("bilinear", 1.96)])))
    text = published_table(found).to_markdown()
    assert "| relu · d_model 32 | 1.997 | log-perplexity, C4 |" in text
    assert "| feed_forward=bilinear | 1.96 | log-perplexity, C4 | -0.037 | - |" in text
    assert published_table([]) is None
