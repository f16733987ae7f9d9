"""The runs that a comparison rests on: each with its directory, and values that add up to the figures of the cells."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

from rich.console import Console
from tests.analysis.memory import crossed, study_of

from attnlab.analysis.comparison import compare
from attnlab.analysis.tables import factors_to_csv, runs_to_csv, runs_to_text, to_latex, to_markdown, write_tables
from attnlab.analysis.terminal import MOST_INTERACTIONS, print_comparison


def test_every_figure_is_traced_to_a_directory(position):
    rows = list(csv.DictReader(io.StringIO(runs_to_csv(position))))
    assert len(rows) == 24
    for summary in position.measured:
        own = [row for row in rows if row["cell"] == summary.cell.name]
        values = [float(row["test/loss@8x"]) for row in own]
        assert statistics.mean(values) == summary.interval.mean or abs(
            statistics.mean(values) - summary.interval.mean
        ) < 1e-15 * abs(summary.interval.mean)
        for row in own:
            status = json.loads(Path(row["directory"], "status.json").read_text())
            assert float(row["test/loss@8x"]) == status["final"]["test/loss@8x"]  # to the last bit
            assert (row["seed"], row["state"], row["step"]) == (row["directory"][-1], "finished", "800")


def test_the_text_has_a_line_a_run_and_ends_in_its_directory(grid_comparison):
    header, *lines = runs_to_text(grid_comparison).splitlines()
    assert header.split() == ["cell", "seed", "state", "val/loss", "directory"]
    assert len(lines) == 48
    for line, run in zip(lines, sorted_runs(grid_comparison), strict=True):
        cell, seed, state, value, directory = line.split()
        assert (cell, seed, state, directory) == (run.cell, str(run.seed), run.state, str(run.directory))
        assert value == "-" if state == "diverged" else abs(float(value) - run.final["val/loss"]) < 1e-6


def sorted_runs(comparison):
    return [run for cell in comparison.study.cells for run in comparison.study.runs_of(cell.name)]


def test_a_study_without_runs_or_metric_has_a_header(tmp_path):
    from tests.stored_studies import write_plan

    from attnlab.analysis.comparison import compare
    from attnlab.analysis.reader import load_study

    empty = compare(load_study(write_plan(tmp_path / "s", cells=[])))
    assert runs_to_csv(empty).splitlines() == ["cell,seed,state,step,max_steps,tokens,seconds,error,directory"]
    assert runs_to_text(empty).split() == ["cell", "seed", "state", "directory"]


def value(f, g, h, seed):
    """g2 is 0.3 worse with f1 alone, h1 is 0.1 better everywhere."""
    noise = ((7 * seed + 3 * ord(f[1]) + 5 * g + ord(h[1])) % 11) / 2000
    return 2.0 + 0.3 * (f == "f1") * (g == 2) - 0.1 * (h == "h1") + noise


def factorial(levels=(1, 2, 3)):
    grid = crossed(value, {"f": ["f0", "f1"], "model.g": list(levels), "h": ["h0", "h1"]}, range(5))
    return compare(study_of(grid, ("f", "model.g", "h")))


def test_effects_and_interactions_are_those_of_the_comparison_in_every_form(tmp_path):
    comparison = factorial()
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=130))
    effects, interactions = (
        list(csv.DictReader(io.StringIO(factors_to_csv(comparison, name)))) for name in ("effects", "interactions")
    )
    by_hand = statistics.mean(
        value(f, g, "h1", s) - value(f, g, "h0", s) for f in ("f0", "f1") for g in (1, 2, 3) for s in range(5)
    )
    of_h = effects[-1]
    assert [of_h[key] for key in ("factor", "reference", "choice", "verdict")] == ["h", "h0", "h1", "better"]
    assert abs(float(of_h["mean"]) - by_hand) < 1e-9
    assert [float(row["low"]) < float(row["mean"]) < float(row["high"]) for row in effects] == [True] * 4
    assert [row["depends"] for row in effects] == ["True", "True", "False", "False"]
    crossing = next(row for row in interactions if (row["choice_1"], row["choice_2"]) == ("f1", "2"))
    assert (crossing["factor_2"], crossing["verdict"]) == ("model.g", "worse")
    assert abs(float(crossing["mean"]) - 0.3) < 0.01
    for text in (out.getvalue(), to_markdown(comparison)):
        (row,) = [line for line in text.splitlines() if "h0 to h1" in line]
        assert f"{by_hand:+.4f}" in row
        assert "better" in row
        (row,) = [line for line in text.splitlines() if line.strip("| ").startswith("f f1 x g 2")]
        assert "worse" in row
    names = {path.name: path.read_text() for path in write_tables(comparison, tmp_path)}
    assert names.keys() >= {"effects.csv", "effects.tex", "interactions.csv", "interactions.tex"}
    assert "h0 to h1 & $-$0.10" in names["effects.tex"]


def test_a_long_list_of_interactions_is_cut_in_a_terminal_and_counted():
    comparison = factorial(range(1, 7))
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=100))
    left = len(comparison.interactions) - MOST_INTERACTIONS
    assert left > 0
    assert f"{left} smaller ones: on the page and in interactions.csv." in out.getvalue()


def test_factors_are_columns_where_several_vary_and_a_paper_has_room(grid_comparison, position):
    for text in (to_latex(grid_comparison), to_markdown(grid_comparison)):
        header = next(line for line in text.splitlines() if "residual" in line).replace("\\_", "_")
        assert [name in header for name in ("num_layers", "lr", "warmup_steps")] == [True] * 3
    assert "cell & mean & difference & p" in to_latex(position)
