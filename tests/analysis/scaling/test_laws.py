"""What a study says about scale: intervals, advice, prediction, and its faces."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from tests.analysis.scaling.planted import LAW, STEPS, WIDTHS, change, counts, write_scaling_study

from attnlab.analysis import load_study
from attnlab.analysis.scaling import Law, print_scaling, scaling_of, to_csv, to_json
from attnlab.analysis.scaling.laws import cost_of, counted_law, few_cells, hardly_determined, predict_held_out
from attnlab.analysis.scaling.runs import usable_runs
from attnlab.report.figures.scaling import write_figures


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_scaling_study(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def found(study):
    return scaling_of(load_study(study), computes=[1e12, 1e16], resamples=100)


def printed(scaling, width=100):
    text = io.StringIO()
    print_scaling(scaling, Console(file=text, width=width))
    return text.getvalue()


def test_the_planted_law_lies_in_its_intervals(found):
    assert found.metric == "test/loss@1x"
    for name, interval in found.law.intervals.items():
        assert interval.low < getattr(LAW, name) < interval.high, name
    assert found.law.r_squared > 0.998
    assert found.law.scatter == pytest.approx(0.006, rel=0.3)
    assert found.seed_scatter == pytest.approx(0.006, rel=0.3)


def test_both_counts_are_fitted_and_the_one_asked_for_comes_first(found):
    total = found.laws["total"]
    np.testing.assert_array_equal(np.unique(total.points.parameters), [counts(width)[1] for width in WIDTHS])
    assert replace(found, count="total").law is total
    assert total.law.alpha > found.law.law.alpha  # the same losses over a narrower range of N
    first, second = printed(found), printed(replace(found, count="total"))
    assert first.index("N without embeddings") < first.index("N with embeddings")
    assert second.index("N with embeddings") < second.index("N without embeddings")


def test_advice_is_the_closed_form_with_an_interval_and_says_where_it_is_stretched(found):
    near, far = found.law.advice
    assert near.best == found.law.law.optimum(1e12)
    assert near.parameters.low < LAW.optimum(1e12).parameters < near.parameters.high
    assert near.tokens.low < LAW.optimum(1e12).tokens < near.tokens.high
    assert (near.is_beyond, far.is_beyond) == (False, True)
    assert far.parameters.high / far.parameters.low > near.parameters.high / near.parameters.low


def test_exact_operations_are_those_measured_and_cost_tokens(found):
    cost = cost_of(found.runs, "non_embedding")
    sizes = np.array([counts(width)[0] for width in WIDTHS])
    np.testing.assert_allclose(cost(sizes), [counts(width)[2] for width in WIDTHS], rtol=1e-12)
    near = found.law.advice[0]
    assert near.measured.tokens < near.best.tokens
    assert float(cost(np.array(near.measured.parameters))) * near.measured.tokens == pytest.approx(1e12)


def test_the_cells_of_most_compute_are_predicted_without_them(study, found, tmp_path):
    assert [(one.parameters, one.tokens) for one in found.law.predictions] == [
        (counts(128)[0], 1024 * 3600),
        (counts(96)[0], 1024 * 3600),
        (counts(128)[0], 1024 * 1800),
    ]
    for one in found.law.predictions:
        assert one.is_inside
        assert abs(one.error) < 0.02
        assert one.interval.high / one.interval.low < 1.1
    # A prediction does not look at what it predicts.
    other = write_scaling_study(tmp_path / "other")
    for seed in (0, 1):
        run = other / "model.d_model=128,trainer.max_steps=3600" / f"seed={seed}"
        change(run, "status.json", final={"test/loss@1x": 9.0})
    wrong = predict_held_out(usable_runs(load_study(other), found.metric).runs, "non_embedding", 100, 0)[0]
    assert wrong.predicted == pytest.approx(found.law.predictions[0].predicted, rel=1e-9)
    assert not wrong.is_inside


def test_intervals_are_the_same_twice(found):
    again = counted_law(found.runs, "total", [1e12], 100, seed=0)
    assert again.intervals == found.laws["total"].intervals
    assert again.predictions == found.laws["total"].predictions
    other = counted_law(found.runs, "total", [1e12], 100, seed=1)
    assert other.law == again.law
    assert other.intervals != again.intervals


@pytest.mark.slow
def test_what_is_hardly_determined_is_said(tmp_path):
    """Where size is all but everything, the data's exponent cannot be found."""
    flat = write_scaling_study(tmp_path / "flat", seeds=1, law=Law(1.5, 60.0, 1.0, 0.42, 0.42), noise=0.01)
    runs = usable_runs(load_study(flat), "test/loss@1x").runs
    law = counted_law(runs, "non_embedding", [1e12], 100, 0)
    notes = " ".join(hardly_determined(law.fit, law.intervals))
    assert "do not settle how fast more data help" in notes
    assert "do not settle how fast more data help" in notes
    assert "alpha is hardly" not in notes


def test_few_cells_are_said_to_be_few(found):
    assert few_cells(found.runs) == []
    first = [run for run in found.runs if run.parameters["total"] < 200_000 and run.tokens < 2e6]
    assert few_cells(first)[0].startswith("15 cells are few for five numbers")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": "all"}, "accepted are non_embedding, total"),
        ({"resamples": 10}, "needs at least 100"),
        ({"computes": [0.0]}, "numbers of operations above 0"),
        ({"computes": [float("nan")]}, "numbers of operations above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(study, arguments, said):
    with pytest.raises(ValueError, match=said):
        scaling_of(load_study(study), **arguments)


def test_the_terminal_says_it_in_plain_words_and_within_its_width(found):
    text = printed(found, width=80)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "56 runs of 28 cells, 7 sizes, 4 budgets of data" in flat
    assert "N without embeddings" in text
    assert "N with embeddings" in text
    best = found.law.advice[0].best
    assert f"At your size: with 1.00e+12 operations train {best.parameters / 1e3:.3g}k parameters" in flat
    assert "3 of 3 cells lie inside their interval" in flat
    assert "\x1b" not in text


def test_the_csv_has_a_row_a_run_whose_fit_is_the_law(found):
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 56
    for row in rows:
        fitted = float(found.law.law.loss(float(row["parameters_non_embedding"]), float(row["tokens"])))
        assert float(row["fitted"]) == pytest.approx(fitted)
        assert float(row["operations_6ND"]) < float(row["operations_exact"])


def test_the_json_holds_both_laws_and_only_numbers(found):
    data = json.loads(to_json(found), parse_constant=lambda word: pytest.fail(word))
    assert data["laws"]["non_embedding"]["parameters"]["alpha"] == found.law.law.alpha
    assert data["laws"]["total"]["intervals"]["E"][0] < data["laws"]["total"]["intervals"]["E"][1]
    assert len(data["runs"]) == 56
    assert data["laws"]["non_embedding"]["predictions"][0]["is_inside"] is True


@pytest.mark.slow
def test_figures_are_written_twice_the_same(found, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write_figures(found, tmp_path / "a"), write_figures(found, tmp_path / "b")
    assert [path.name for path in first] == [
        f"{name}.{suffix}" for name in ("loss", "isoflop", "residuals") for suffix in ("png", "pdf")
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert 5_000 < one.stat().st_size < 200_000


def test_figures_show_every_run_and_the_law(found):
    from matplotlib.figure import Figure

    from attnlab.report.figures.scaling import draw_isoflop, draw_loss

    figure = Figure()
    draw_loss(found, figure)
    left, right = figure.axes
    for axes, curves in ((left, len(STEPS)), (right, len(WIDTHS))):
        dots = [line for line in axes.lines if line.get_linestyle() == "None"]
        assert sum(len(line.get_xdata()) for line in dots) == 56
        assert len(axes.lines) - len(dots) == curves
    figure = Figure()
    draw_isoflop(found, figure)
    curves = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    best = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert len(best) == len(curves) == 5
    for curve, diamond in zip(curves, best, strict=True):
        assert float(diamond.get_ydata()[0]) <= np.min(curve.get_ydata()) + 1e-9


def test_many_sizes_and_budgets_are_summed_up_in_a_table_that_can_be_read(found):
    runs = [replace(run, tokens=run.tokens * (1 + place / 1000)) for place, run in enumerate(found.runs)]
    text = printed(replace(found, runs=runs))
    assert "--format csv lists every one" in text
    table = text[text.index("runs, and measured less fitted") : text.index("- runs are summed up")]
    rows = [line.split()[1:] for line in table.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == len(WIDTHS)
    assert sum(int(word) for row in rows for word in row if word.isdigit()) == len(runs)
    assert max(map(len, table.splitlines())) <= 100
