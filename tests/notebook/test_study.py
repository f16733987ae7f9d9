"""A study in a notebook: what it shows is what terminal and page say, short, escaped, and without a trace elsewhere."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import matplotlib
import polars as pl
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from tests.analysis.memory import crossed, study_of
from tests.stored_studies import (
    cell,
    write_grid_study,
    write_plan,
    write_position_study,
    write_run,
    write_task_study,
)

import attnlab
from attnlab.analysis import print_comparison
from attnlab.analysis.tables import runs_to_text
from attnlab.analysis.terminal import print_cells


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return attnlab.load_study(write_position_study(tmp_path_factory.mktemp("runs") / "position_length"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return attnlab.load_study(write_grid_study(tmp_path_factory.mktemp("runs") / "norm_warmup"))


class Rows(HTMLParser):
    """The rows of a table by their texts, and the tags that came."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_a_study_says_what_it_is(study):
    assert re.fullmatch(
        r"Study\('.*position_length': 6 cells x 4 seeds; runs: 24 finished; metric: test/loss@8x\)", repr(study)
    )
    assert study.runs.height == 24
    assert study.curves.columns[:4] == ["cell", "seed", "position", "step"]
    assert study.metrics[0] == study.metric.name == "test/loss@8x"
    assert study.seeds == [0, 1, 2, 3]


def test_a_comparison_is_the_terminal_s_table(study):
    comparison = study.compare()
    assert isinstance(comparison, attnlab.Comparison)
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=110, color_system=None))
    printed = [line.rstrip() for line in out.getvalue().splitlines()]
    shown = repr(comparison).splitlines()
    assert set(shown) <= set(printed)
    assert shown[0].startswith("test/loss@8x, lower is better")
    assert {line.split()[0] for line in shown[2:8]} == set(study.factors["position"])


def test_in_a_notebook_rich_shows_nothing_by_itself(study, monkeypatch, capsys):
    outside = repr(study.compare())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert Console().is_jupyter
    assert repr(study.compare()) == outside
    assert runs_to_text(study.compare()).count("finished") == 24
    assert capsys.readouterr().out == ""


def test_a_long_one_is_cut_and_counted():
    values = crossed(lambda f, g, seed: f + 0.1 * g + 0.01 * seed**2 * f, {"f": range(10), "g": range(9)}, range(3))
    comparison = attnlab.Study(study_of(values, ("f", "g"))).compare()
    *whole, last = repr(comparison).splitlines()
    assert 1800 < len(repr(comparison)) <= 2000
    out = io.StringIO()
    print_cells(comparison, Console(file=out, width=110, color_system=None))
    lines = [line.rstrip() for line in out.getvalue().strip().split("\n")]
    assert whole == lines[: len(whole)]
    assert last == f"... {len(lines) - len(whole)} more lines of s: see attnlab.write_report(comparison, PATH) for all"


def test_html_is_the_page_s_table_in_whole(study):
    comparison = study.compare()
    found = Rows(comparison._repr_html_())
    assert [row[0].removesuffix(" baseline") for row in found.rows[1:]] == [one.label for one in comparison.best_first]
    values = {row[0].split()[0]: row[3] for row in found.rows[1:]}
    for one in comparison.measured:
        assert values[one.label].split()[0] == f"{one.interval.mean:.4f}"
    assert values["learned"] == "unavailable"
    assert "alibi is best" in comparison._repr_html_()


def test_names_that_would_be_markup_are_escaped(tmp_path):
    names = ["<script>alert(1)</script>", "a&amp;b"]
    root = write_plan(
        tmp_path / "odd",
        factors={"position": names},
        baseline={"position": names[0]},
        cells=[cell({"position": name}) for name in names],
        seeds=[0, 1],
        metric={"name": "val/loss", "better": "lower"},
    )
    for place, name in enumerate(names):
        for seed in (0, 1):
            folder = root / f"cell{place}"
            made = write_run(root, {"position": name.replace("/", "|")}, seed, {"val/loss": place + 0.1 * seed})
            folder.mkdir(exist_ok=True)
            made.rename(folder / f"seed={seed}")
            record = folder / f"seed={seed}" / "run.json"
            record.write_text(record.read_text().replace("|", "/"))
    shown = attnlab.load_study(root).compare()._repr_html_()
    found = Rows(shown)
    assert [row[0].removesuffix(" baseline") for row in found.rows[1:]] == names
    assert "script" not in found.tags


def test_what_was_set_apart_is_said_first(tmp_path):
    for name, unit, value in (("text", "token", 2.0), ("image", "image", 0.1)):
        for seed in range(2 + (unit == "token")):
            data = {"unit": unit, "fingerprint": name}
            write_run(tmp_path / "train", {"data": name}, seed, {"val/loss": value + 0.1 * seed}, data=data)
    comparison = attnlab.load_study(tmp_path / "train").compare()
    assert [one.label for one in comparison.measured] == ["text"]
    assert repr(comparison).startswith("! Compared here are runs of ")
    assert "<li>Compared here are runs of " in comparison._repr_html_()
    other = attnlab.load_study(tmp_path / "train").compare(baseline="data=image")
    assert [one.label for one in other.measured] == ["image"]


def test_another_baseline_turns_the_difference_round(study):
    before = {one.label: one.difference for one in study.compare().cells}
    for given in ("alibi", "position=alibi", {"position": "alibi"}):
        comparison = study.compare(baseline=given)
        assert comparison.baseline.label == "alibi"
        after = {one.label: one.difference for one in comparison.cells}
        assert after["sinusoidal"].interval.mean == pytest.approx(-before["alibi"].interval.mean)
        assert after["alibi"] is None
    assert study.baseline == {"position": "sinusoidal"}


def test_another_metric_is_compared_without_the_study_s_margin(study):
    comparison = study.compare(metric="val/bits_per_byte")
    means = dict(study.runs.group_by("position").agg(pl.col("val/bits_per_byte").mean()).rows())
    assert len(comparison.measured) == len(means) == 6
    for one in comparison.measured:
        assert one.interval.mean == pytest.approx(means[one.label])
    assert (comparison.metric.margin, study.metric.margin) == (0.0, 0.02)
    assert attnlab.compare(study, "test/loss@8x").metric.margin == 0.02


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda s, g: s.compare("test/los"), "metric must be a final metric of the study position_length, got 'test/los'; there are test/loss@8x, test/loss@1x"),
        (lambda s, g: s.compare(baseline="alibbi"), "baseline must be one cell of the study position_length, got 'alibbi'; give a label or all choices, of: sinusoidal; learned; rotary;"),
        (lambda s, g: g.compare(baseline={"residual": "pre_ln"}), r"got {'residual': 'pre_ln'} \(8 cells fit it\)"),
        (lambda s, g: s.plot("effect"), "kind must be one of differences, effects, interactions, lengths, curves, pareto, tuning, grid, got 'effect'"),
        (lambda s, g: s.plot("effects"), "nothing to plot of effects: it takes two factors that vary"),
        (lambda s, g: g.plot("lengths"), "nothing to plot of lengths: it takes a metric at multiples of the training length"),
        (lambda s, g: s.plot("curves", "val/los"), "metric must be one of val/loss, train/loss, got 'val/los'"),
        (lambda s, g: s.plot("lengths", "val/loss"), "metric must be one of test/loss, test/sliding_loss, got 'val/loss'"),
        (lambda s, g: attnlab.load_study("nowhere/x"), "no study at nowhere/x: no plan.json and no run"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_with_what_is(study, grid, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(study, grid)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("differences", "val/loss"), ("lengths", "test/sliding_loss@8x"), ("curves", "train/loss"), ("curves", None)],
)
def test_figures_are_shown_by_themselves_and_leave_no_trace(study, kind, metric):
    before, open_figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    figure = study.plot(kind, metric)
    assert isinstance(figure, Figure)
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").getdata())) > 10
    assert (dict(matplotlib.rcParams), pyplot.get_fignums()) == (before, open_figures)


def test_a_metric_given_is_the_one_that_is_drawn(study):
    curves = study.curves.filter(position="alibi").group_by("step").agg(pl.col("train/loss").mean()).sort("step")
    (axes,) = study.plot("curves", "train/loss").axes
    line = next(line for line in axes.lines if line.get_label() == "alibi")
    assert line.get_ydata() == pytest.approx(curves["train/loss"].to_list(), rel=1e-4)
    (axes,) = study.plot("differences", "val/loss", baseline="alibi").axes
    assert axes.get_xlabel() == "← better    difference to alibi in loss in nats per token    worse →"


@pytest.mark.parametrize("kind", ["effects", "interactions", "grid"])
def test_figures_of_a_grid(grid, kind):
    assert grid.plot(kind)._repr_png_().startswith(b"\x89PNG")


def test_a_figure_is_written_as_for_a_paper_wherever_it_is_written(study, tmp_path):
    study.plot("curves").savefig(tmp_path / "curves.pdf")
    content = (tmp_path / "curves.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_a_study_without_values_says_so(tmp_path):
    root = write_plan(tmp_path / "empty", cells=[cell({"position": "none"})], seeds=[0], metric={"name": "m"})
    study = attnlab.load_study(root)
    assert repr(study.compare()) == "No run has finished with a value to compare yet."
    assert "No run has finished" in study.compare()._repr_html_()
    with pytest.raises(ValueError, match="there are none, because no run has finished"):
        study.compare("val/loss")


def test_the_page_of_a_study_and_of_its_comparison_is_written(study, tmp_path):
    pages = [
        attnlab.write_report(one, tmp_path / name) for one, name in ((study, "a.html"), (study.compare(), "b.html"))
    ]
    assert pages[0].read_text() == pages[1].read_text()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return attnlab.load_study(write_task_study(tmp_path_factory.mktemp("runs") / "tasks", seeds=3))


def test_a_study_across_its_tasks_has_its_aggregate_as_table_and_frames(tasks, tmp_path):
    found = tasks.aggregate()
    assert "All tasks, higher is better" in repr(found)
    assert len(repr(found)) <= 2000
    table = Rows(found._repr_html_())
    assert [row[0] for row in table.rows[1:]] == [arm.label for arm in found.best_first]
    assert "has the highest interquartile mean" in found._repr_html_()
    assert found.scores.shape == (27, 4)
    means = found.scores.group_by("arm", "task").agg(pl.col("score").mean())
    for arm in found.frame.iter_rows(named=True):
        own = means.filter(pl.col("arm") == arm["arm"])
        assert dict(zip(own["task"], own["score"], strict=True)) == pytest.approx(
            {task: arm[f"score {task}"] for task in ("copy", "sort", "kjv")}
        )
        assert own["score"].mean() == pytest.approx(arm["mean"])
    assert found.frame["verdict"].to_list() == ["baseline", "better", "undecided"]
    assert tasks.aggregate(baseline="rotary").baseline.label == "rotary"
    assert "Task by task" in attnlab.write_report(tasks, tmp_path).read_text()
    assert (tmp_path / "index-3.html").is_file()


def test_of_a_study_across_its_tasks_one_is_compared_by_its_name_alone(tasks, study):
    assert tasks.compare(task="kjv").metric.name == "test/bits_per_byte@1x"
    assert {cell.label for cell in tasks.compare(task="copy").cells} == {"none", "rotary", "alibi"}
    for given in (None, "wiki"):
        with pytest.raises(ValueError, match=r"task must be one of copy, sort, kjv .*aggregate\(\) is over all"):
            tasks.compare(task=given)
    with pytest.raises(ValueError, match="is not across tasks, got 'copy'"):
        study.compare(task="copy")
    with pytest.raises(ValueError, match="names no factor whose choices are tasks"):
        study.aggregate()


@pytest.mark.parametrize("kind", ["profiles", "ranks"])
def test_the_figures_over_all_tasks_are_plotted(tasks, kind):
    assert isinstance(tasks.plot(kind), Figure)
    assert isinstance(tasks.plot("differences", task="copy"), Figure)
