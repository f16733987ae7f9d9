"""The runs that a comparison rests on: each with its directory, and values that add up to the figures of the cells."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

from attnlab.analysis.tables import runs_to_csv, runs_to_text


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
