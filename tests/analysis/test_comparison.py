"""The comparison against planted effects, lost runs and studies that are hardly there."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from scipy import stats
from tests.stored_studies import PLANTED, cell, write_plan, write_run

from attnlab.analysis.budgets import time_note
from attnlab.analysis.cells import Budget
from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.differences import verdict_of
from attnlab.analysis.headline import headline, reasons
from attnlab.analysis.reader import Metric, load_study
from attnlab.analysis.statistics import Interval
from attnlab.report.page import cost

NORMS = ["layer_norm", "rms_norm", "dynamic_tanh"]


def study(tmp_path, values, better="lower", margin=0.0, seeds=None, **plan) -> Comparison:
    """The comparison of {choice: [value by seed]}; None is a run that is missing, a word one that ended so."""
    names = list(values)
    seeds = seeds if seeds is not None else list(range(max(map(len, values.values()), default=0)))
    metric = {"name": "m", "better": better, "margin": margin}
    root = write_plan(
        tmp_path / "s",
        **{
            "cells": [cell({"norm": n}) for n in names],
            "seeds": seeds,
            "factors": {"norm": names},
            "baseline": {"norm": names[0]} if names else {},
            "metric": metric,
            **plan,
        },
    )
    for name, row in values.items():
        for seed, value in zip(seeds, row, strict=False):
            if isinstance(value, str):
                write_run(root, {"norm": name}, seed, {}, state=value, error="loss is not finite at step 7")
            elif value is not None:
                write_run(root, {"norm": name}, seed, {"m": value})
    return compare(load_study(root))


def by_label(comparison):
    return {summary.label: summary for summary in comparison.cells}


def test_planted_effects_are_found(position):
    cells = by_label(position)
    for name in ("rotary", "alibi", "relative_bias", "none"):
        planted = PLANTED[name][3] - PLANTED["sinusoidal"][3]
        difference = cells[name].difference
        assert difference.interval.low < planted < difference.interval.high
        assert difference.verdict == "better"
        assert (difference.n, difference.wins) == (4, 4.0)
    assert cells["learned"].outcome == "unavailable"
    assert cells["learned"].rank_interval is None
    assert cells["alibi"].rank_interval == (1, 1)
    assert {claim.verdict for claim in position.claims} == {"met"}


def test_differences_are_paired_and_adjusted_as_a_family(position):
    cells = by_label(position)
    base = cells["sinusoidal"].values
    raw = {}
    for name in ("rotary", "alibi", "relative_bias", "none"):
        own = cells[name].values
        raw[name] = stats.ttest_rel([own[s] for s in range(4)], [base[s] for s in range(4)]).pvalue
        assert cells[name].difference.p == pytest.approx(raw[name], rel=1e-6)
        assert cells[name].difference.p_sign_flip == 0.125
        assert cells[name].difference.p_sign_flip_adjusted == 0.5
        assert cells[name].difference.p_adjusted == pytest.approx(min(1, 4 * raw[name]), rel=1e-6)
        assert cells[name].difference.interval.level == pytest.approx(1 - 0.05 / 4)


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (-0.5, -0.1, "lower", "better"),
        (-0.5, -0.1, "higher", "worse"),
        (0.1, 0.5, "lower", "worse"),
        (-0.01, 0.015, "lower", "same"),
        (0.005, 0.015, "lower", "same"),
        (-0.01, 0.05, "lower", "undecided"),
        (-math.inf, math.inf, "lower", "undecided"),
    ],
)
def test_verdicts(low, high, better, verdict):
    mean = (low + high) / 2 if math.isfinite(low) else -3.0
    assert verdict_of(Interval(mean, low, high, 0.95, 4, 0.1), Metric("m", better, 0.02)) == verdict


def test_length_curves(position):
    curves = {(c.prefix, c.label): c for c in position.lengths}
    alibi, rotary, learned = (curves["test/loss", name] for name in ("alibi", "rotary", "learned"))
    assert (alibi.verdict, rotary.verdict, learned.verdict) == ("same", "worse", "unavailable")
    assert rotary.change.interval.mean == pytest.approx(0.498, abs=0.02)
    assert list(rotary.points) == [1.0, 2.0, 4.0, 8.0]
    assert sorted(learned.unavailable) == [2.0, 4.0, 8.0]
    assert ("test/sliding_loss", "alibi") in curves


def test_cells_that_overlap_are_not_ranked(tmp_path):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(2.0, 0.05, 4).tolist() for name in NORMS}
    comparison = study(tmp_path, rows)
    assert {summary.rank_interval for summary in comparison.cells} == {(1, 3)}
    assert headline(comparison)[0] == "No single best: these seeds leave first place on m open to all 3 cells."


def test_a_lost_run_is_an_outcome_and_the_others_decide_nothing(tmp_path):
    comparison = study(
        tmp_path, {"layer_norm": [2.0, 2.1, 2.05], "rms_norm": [1.0, "diverged", 1.1], "dynamic_tanh": ["failed"] * 3}
    )
    cells = by_label(comparison)
    assert cells["rms_norm"].states == {"finished": 2, "diverged": 1}
    assert cells["rms_norm"].rank_interval == (1, 2)
    assert (cells["rms_norm"].difference.verdict, cells["rms_norm"].difference.reason) == (
        "undecided",
        "1 of 3 runs lost",
    )
    assert cells["rms_norm"].n_failed == 1
    assert cells["rms_norm"].difference.n == 2
    assert (cells["dynamic_tanh"].outcome, cells["dynamic_tanh"].reason) == ("failed", "loss is not finite at step 7")
    assert len(comparison.problems) == 4
    assert comparison.caveats[0] == "Not finished: 4 of 9 runs (3 failed, 1 diverged)."
    assert "flatter" in comparison.caveats[1]


def test_too_few_seeds_are_said_in_a_sentence(position, tmp_path):
    assert any(
        "With 4 seeds the exact sign-flip test cannot give p below 0.125" in caveat for caveat in position.caveats
    )
    one = study(tmp_path, {"layer_norm": [2.0], "rms_norm": [1.0]})
    assert headline(one)[0] == "One seed a cell: on m no cell can be told from another."
    assert any("one seed has no interval" in caveat for caveat in one.caveats)
    assert by_label(one)["rms_norm"].difference.verdict == "undecided"
    many = study(
        tmp_path / "b",
        {"layer_norm": [2.0 + 0.01 * s for s in range(8)], "rms_norm": [1.0 + 0.02 * s for s in range(8)]},
    )
    assert many.caveats == []


def test_what_changes_with_length_comes_first(position):
    first, second, best, *_ = headline(position)
    assert re.fullmatch(r"From 1x to 8x the training length, alibi \(\+0\.\d+ \+-0\.\d+\) holds\.", first)
    assert second.startswith("Over the same lengths, none (")
    runs = position.study.values
    far, near = (runs("position=sinusoidal", f"test/loss@{k}x") for k in (8, 1))
    change = np.array([far[seed] - near[seed] for seed in range(4)])
    half = stats.t.ppf(1 - 0.05 / 5 / 2, 3) * stats.sem(change)
    end = f"sinusoidal ({change.mean():+.4f} +-{half:.4f}) degrade; learned cannot go beyond 1x."
    assert second.endswith(end)
    assert best.startswith("alibi is best: test/loss@8x")
    assert [curve.label for curve in position.primary_lengths][-2:] == ["sinusoidal", "learned"]


def test_cells_that_plateau_are_named_with_what_they_share(grid_comparison):
    split = grid_comparison.clusters
    assert len(split.worse) == 3
    assert min(min(cell.values.values()) for cell in split.worse) > 3.2
    assert split.common == {"residual": "post_ln", "schedule.warmup_steps": 0}
    first, second, *_ = headline(grid_comparison)
    assert first == (
        "3 of 16 cells are far behind on val/loss, at 3.33 against 2.31 to 2.41 of the others: all 3 have post_ln and warmup_steps 0."
    )
    assert second == (
        "With post_ln and warmup_steps 0, behind: num_layers 6 · lr 3e-3; num_layers 12 · lr 1e-3; num_layers 12 · lr 3e-3. "
        "Not behind: num_layers 6 · lr 1e-3. No run lies between."
    )


def test_cells_that_a_run_bridges_are_no_groups(tmp_path, position):
    names = [f"n{i}" for i in range(8)]
    far = {name: [2.0 + 0.01 * i, 2.02, 2.01] for i, name in enumerate(names)} | {"n7": [3.0, 3.1, 3.0]}
    assert [cell.label for cell in study(tmp_path / "a", far).clusters.worse] == ["n7"]
    assert study(tmp_path / "b", far | {"n7": [4.0, 2.01, 4.0]}).clusters is None
    assert study(tmp_path / "c", {name: [2.0 + 0.1 * i] * 3 for i, name in enumerate(names)}).clusters is None
    assert position.clusters is None
    chance = {name: row[:2] for name, row in far.items()}
    assert (
        study(tmp_path / "d", chance).clusters is None
    )  # two seeds: one of eight equal cells would be the worst twice


def test_cells_without_a_value_say_why_once_a_reason(tmp_path):
    cells = [cell({"norm": name}) for name in NORMS[:2]]
    skipped = [cell({"norm": name}, skip="it makes no sense.") for name in ("a", "b")]
    comparison = study(tmp_path, {"layer_norm": [2.0, 2.1], "rms_norm": ["failed"] * 2}, cells=[*cells, *skipped])
    assert reasons(comparison, ("skipped", "failed")) == [
        "rms_norm failed: loss is not finite at step 7.",
        "a and b skipped: it makes no sense.",
    ]
    baseless = study(tmp_path / "b", {"layer_norm": ["failed"], "rms_norm": [2.0]})
    assert "The baseline, layer_norm, has no value, so there are no differences to it." in baseless.caveats


def test_budgets_that_differ_are_said(position, grid_comparison):
    said = "parameters 150k to 154k (+2.7%)"
    assert any(said in caveat for caveat in position.caveats)
    assert any(
        "parameters 150k to 300k (2 times)" in caveat and "following model.num_layers" in caveat
        for caveat in grid_comparison.caveats
    )


def test_times_are_told_and_nothing_is_drawn_from_them():
    budgets = {name: Budget(800, 1e6, seconds, 1e5, 1e12) for name, seconds in (("a", 21.5), ("b", 43.0), ("c", 40.0))}
    assert time_note(budgets).startswith("Time a run: 21.5 to 43 seconds (2 times). It depends on the machine")
    assert time_note({name: budgets[name] for name in "bc"}) is None
    assert time_note({"a": budgets["a"], "d": Budget(*[math.nan] * 5)}) is None


def test_runs_of_different_code_are_said(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": n}) for n in NORMS[:2]], seeds=[0], metric={"name": "m"})
    write_run(root, {"norm": NORMS[0]}, 0, {"m": 1.0}, git={"commit": "a" * 40})
    write_run(root, {"norm": NORMS[1]}, 0, {"m": 1.0}, git={"commit": "b" * 40, "dirty": True})
    assert "Runs differ in code version: aaaaaaaaaa, bbbbbbbbbb with changes." in compare(load_study(root)).caveats


def test_commits_that_left_the_source_as_it_was_are_one_version(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": n}) for n in NORMS[:2]], seeds=[0], metric={"name": "m"})
    for name, commit in zip(NORMS[:2], "ab", strict=True):
        write_run(root, {"norm": name}, 0, {"m": 1.0}, git={"commit": commit * 40, "dirty": True, "source": "0" * 16})
    assert not any("code version" in caveat for caveat in compare(load_study(root)).caveats)


def test_runs_of_other_code_within_a_cell_and_in_the_middle_of_a_run_are_said(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": n}) for n in NORMS[:2]], seeds=[0, 1], metric={"name": "m"})
    edits = [{"commit": "a" * 40, "dirty": True, "source": digit * 16} for digit in "01"]
    old, new = ({"versions": {"torch": version}, "sources": {"mine": version}} for version in ("2.9", "2.10"))
    attempts = {(0, 0): [old], (0, 1): [new], (1, 0): [old | {"git": edits[0]}, old | {"git": edits[1]}], (1, 1): [old]}
    for (norm, seed), of_run in attempts.items():
        write_run(root, {"norm": NORMS[norm]}, seed, {"m": 1.0}, attempts=of_run)
    caveats = compare(load_study(root)).caveats
    [first, second] = NORMS[:2]
    assert f"Runs differ in the version of torch: 2.10, 2.9; within one cell in {first}." in caveats
    assert f"Runs differ in the source of mine: 2.10, 2.9; within one cell in {first}." in caveats
    assert (
        "Runs differ in code version: aaaaaaaaaa with changes (00000000), aaaaaaaaaa with changes (11111111); "
        f"within one cell in {second}; in the middle of a run in {second} seed=0." in caveats
    )


def test_runs_that_compute_in_other_ways_are_said(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": n}) for n in NORMS[:2]], seeds=[0], metric={"name": "m"})
    for name, used, compiled in ((NORMS[0], "32", False), (NORMS[1], "bf16", True)):
        ways = {"precision": {"used": used, "asked": "auto"}, "compile": {"used": compiled, "asked": "auto"}}
        write_run(root, {"norm": name}, 0, {"m": 1.0}, **ways)
    caveats = compare(load_study(root)).caveats
    assert "Runs differ in precision: 32, bf16." in caveats
    assert "Runs differ in compilation: compiled, eager." in caveats


def test_settings_show_only_what_differs_between_cells(grid_comparison):
    assert set(grid_comparison.settings) == {"residual", "model.num_layers", "optimizer.lr", "schedule.warmup_steps"}
    assert "seed" not in grid_comparison.settings


def test_settings_that_only_repeat_a_group_are_shown_once(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": n}) for n in NORMS[:2]], seeds=[0], metric={"name": "m"})
    for eps, name in enumerate(NORMS[:2]):
        group = {"eps": eps}
        write_run(root, {"norm": name}, 0, {"m": 1.0}, config={"norm": group, "model": {"norm": group, "eps": 2 * eps}})
    assert set(compare(load_study(root)).settings) == {"norm.eps", "model.eps"}


def test_factor_effects_are_the_mean_over_matched_cells(grid_comparison):
    effects = {effect.factor: effect for effect in grid_comparison.effects}
    residual = effects["residual"]
    values = {s.cell.name: s.values for s in grid_comparison.cells}
    changes = []
    for name, own in values.items():
        if "post_ln" in name:
            other = values[name.replace("post_ln", "pre_ln")]
            changes.append([own[seed] - other[seed] for seed in (0, 2)])  # seed 1 diverged in one cell
    assert residual.interval.mean == pytest.approx(np.mean(changes), rel=1e-9)
    assert residual.interval.n == 2
    assert len(residual.by_setting) == 8
    assert residual.ends[1][1] > 0.9
    assert abs(residual.ends[0][1]) < 0.05
    assert residual.verdict == "undecided"
    assert residual.reason == "1 of 3 seeds lost"


def test_one_factor_has_no_factor_effects(position):
    assert position.effects == []


@pytest.mark.parametrize(
    ("values", "plan"),
    [
        ({}, {}),
        ({"layer_norm": [None, None]}, {}),
        ({"layer_norm": [2.0]}, {}),
        ({"layer_norm": [2.0], "rms_norm": [None]}, {}),
        ({"layer_norm": [None], "rms_norm": [2.0]}, {}),
        ({"layer_norm": [2.0, 2.0], "rms_norm": [2.0, 2.0]}, {}),
        ({"layer_norm": [2.0, 2.1], "rms_norm": [1.0, 1.1]}, {"baseline": {}}),
        ({"layer_norm": [2.0, 2.1], "rms_norm": [1.0, 1.1]}, {"baseline": {"norm": "zzz"}}),
        ({"layer_norm": [2.0, 2.1], "rms_norm": [1.0, 1.1]}, {"metric": None}),
        ({"layer_norm": [2.0, 2.1], "rms_norm": [1.0, 1.1]}, {"metric": {"name": "unknown", "better": "lower"}}),
        (
            {"layer_norm": [2.0], "rms_norm": [1.0]},
            {"cells": [cell({"norm": "layer_norm"}), cell({"norm": "rms_norm"}, skip="makes no sense")]},
        ),
        ({"layer_norm": ["failed"], "rms_norm": ["diverged"]}, {}),
        ({"layer_norm": [1e300, -1e300], "rms_norm": [1e-300, 0.0]}, {}),
        (
            {"layer_norm": [2.0]},
            {"factors": None, "claims": None, "shared": None, "code": None, "seeds": [0, 1]},
        ),
    ],
)
def test_studies_that_are_hardly_there_are_compared_all_the_same(tmp_path, values, plan):
    from attnlab.analysis.tables import to_csv, to_latex, to_markdown
    from attnlab.report.page import render

    comparison = study(tmp_path, values, **plan)
    assert headline(comparison)
    for text in (render(comparison), to_csv(comparison), to_markdown(comparison), to_latex(comparison)):
        assert not re.search(r"\b(nan|inf|None)\b", text.partition("plotly.js v")[0])


def test_active_parameters_are_said_where_they_are_fewer(tmp_path):
    cells = [cell({"norm": name}) for name in NORMS[:2]]
    root = write_plan(tmp_path / "s", cells=cells, seeds=[0], metric={"name": "m"})
    of = {"total": 400_000, "non_embedding": 390_000}
    write_run(root, {"norm": NORMS[0]}, 0, {"m": 1.0}, parameters=100_000)
    write_run(root, {"norm": NORMS[1]}, 0, {"m": 1.0}, flops_per_token=600_000)
    path = root / cells[1]["name"] / "seed=0" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(record | {"parameters": of | {"active_total": 110_000, "active_non_embedding": 100_000}})
    )
    found = compare(load_study(root))
    budgets = {one.cell.name: one.budget for one in found.cells}
    assert [(one.parameters, one.active_parameters) for one in budgets.values()] == [
        (100_000, 100_000),
        (400_000, 110_000),
    ]
    [said] = [caveat for caveat in found.caveats if "Cells differ in more than their choices" in caveat]
    assert "parameters 100k to 400k (4 times); active parameters (those that a token meets) 100k to 110k (+10%)" in said
    table = cost(found)["table"].to_markdown()
    assert "active for a token" in table
    path.write_text(json.dumps(record))
    assert "active for a token" not in cost(compare(load_study(root)))["table"].to_markdown()
