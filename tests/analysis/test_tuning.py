"""What a tuned study says of its tuning: choices, edges, budgets, sensitivity, and words that hold at the best settings alone."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis.comparison import compare
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import load_study
from attnlab.analysis.terminal import print_comparison
from attnlab.analysis.tuning import equal_settings_table, setting_text
from attnlab.report.figures.study import draw
from attnlab.report.gallery import write_page
from attnlab.report.page import render
from attnlab.training.published import Published

RATES = [1e-4, 1e-3, 1e-2, 1e-1]
# Mean losses at these rates; the last one diverged in rotary, and failed in alibi.
LOSSES = {"none": [3.0, 2.5, 2.2, 2.6], "alibi": [2.8, 2.1, 2.0, None], "rotary": [2.2, 1.6, 2.4, None]}
CHOSEN = {"none": 1e-2, "alibi": 1e-2, "rotary": 1e-3}


def trial(rate: float, loss: float | None, state: str, noise: float) -> dict[str, object]:
    finals = [{"val/loss": loss + noise * sign, "test/loss": loss + noise * sign} if loss else {} for sign in (1, -1)]
    return {
        "settings": {"optimizer.lr": rate},
        "runs": {str(10_000 + i): {"state": state, "final": final} for i, final in enumerate(finals)},
    }


@pytest.fixture
def tuned(tmp_path):
    """A study of three positions, tuned by a grid of rates with this noise; `far`: what position none is worse by in the comparison."""

    def write(noise: float = 0.01, chosen: dict[str, float] = CHOSEN, seeds_in: int = 3):
        cells = {}
        for position, losses in LOSSES.items():
            ends = ["finished"] * 3 + [{"none": "finished", "alibi": "failed", "rotary": "diverged"}[position]]
            own = [noise, -noise, noise, -noise]
            trials = [trial(*one) for one in zip(RATES, losses, ends, own, strict=True)]
            cells[f"position={position}"] = {
                "default": {"optimizer.lr": 1e-3},
                "chosen": {"optimizer.lr": chosen[position]},
                "trials": trials,
            }
        record = {
            "study": "tuned-tuning",
            "search": {"optimizer.lr": RATES},
            "how": "grid",
            "trials": 4,
            "seeds": [10_000, 10_001],
        }
        record |= {"metric": {"name": "val/loss", "better": "lower"}, "cells": cells}
        choices = [{"position": position} for position in LOSSES]
        metric = {"name": "test/loss", "better": "lower", "margin": 0.0}
        root = write_plan(tmp_path / "tuned", cells=[*map(cell, choices)], factors={"position": [*LOSSES]}, baseline=choices[0],
                          seeds=[0, 1, 2], metric=metric, tuned=record)  # fmt: skip
        for place, one in enumerate(choices):
            for seed in range(seeds_in):
                loss = LOSSES[one["position"]][RATES.index(chosen[one["position"]])] + 0.01 * ((seed + place) % 3)
                write_run(root, one, seed, {"test/loss": loss, "val/loss": loss})
        return compare(load_study(root))

    return write


def test_choices_edges_and_budgets(tuned):
    found = tuned(chosen=CHOSEN | {"none": 1e-1})
    caveats = " ".join(found.caveats)
    assert "none (lr=0.1 is the largest tried)" in caveats
    assert "alibi (lr=0.01 is the largest tried)" in caveats  # that beyond it failed
    assert "rotary (lr" not in caveats  # that beyond it diverged
    assert (
        "settings that were to be tried have no value (failed, or their parts are incompatible), 1 of 4 of alibi."
        in caveats
    )


def test_sensitivity_is_the_mean_over_all_settings_less_the_best(tuned):
    found = tuned(noise=0.0).tuning
    by_label = {one.label: found.sensitivity(one) for one in found.cells}
    worst = 3.0  # of any cell, for what diverged; what failed says nothing
    assert by_label == pytest.approx(
        {"none": 10.3 / 4 - 2.2, "alibi": 6.9 / 3 - 2.0, "rotary": (6.2 + worst) / 4 - 1.6}
    )


def test_at_equal_settings_all_cells_stand_side_by_side(tuned):
    table = equal_settings_table(tuned(noise=0.0).tuning)
    rows = {str(row[0]): [str(entry) for entry in row[1:]] for row in table.rows}
    assert rows["lr=0.001"] == ["2.50", "2.10", "1.60 best"]
    assert rows["lr=0.1"] == ["2.60", "-", "-"]
    assert "lr=0.001 (none 2.500, alibi 2.100, rotary 1.600)" in table.notes[0]


def test_a_word_that_holds_at_the_choices_alone_is_not_said(tuned):
    """Alibi is better at the rates chosen by 0.2, with so little noise in the comparison that nothing else would be open."""
    sure = {one.label: one.difference.verdict for one in tuned(noise=0.001).cells if one.difference}
    assert sure == {"alibi": "better", "rotary": "better"}
    found = tuned(noise=0.2)
    open_ = {one.label: one.difference.verdict for one in found.cells if one.difference}
    assert open_ == {"alibi": "undecided", "rotary": "undecided"}
    assert any(
        "At the settings chosen alibi and rotary would be told from the baseline" in caveat for caveat in found.caveats
    )
    missed = {one.label: one.regret for one in found.tuning.cells}
    alibi = next(one.difference for one in found.cells if one.label == "alibi")
    plain = alibi.contrast.at_choices(1 - 0.8 * alibi.share)
    assert (plain.low - alibi.interval.low, alibi.interval.high - plain.high) == pytest.approx(
        (missed["alibi"], missed["none"])
    )
    assert all(one.rank_interval == (1, 3) for one in found.cells)


@pytest.mark.parametrize("width", [60, 80, 150])
def test_rows_of_the_tuning_keep_their_names_however_narrow_the_terminal_is(tuned, width):
    console = Console(file=io.StringIO(), width=width)
    found = tuned()
    print_comparison(found, console)
    _, _, text = console.file.getvalue().partition("\nTuning\n")
    table = text[text.index("\ncell ") + 1 : text.index("may have missed: ")]
    names = ["chosen", "val/loss", "tried", "sensitivity", "may have missed", "diff at the choices (interval)"]
    if width == 150:
        assert [table.split("\n")[0].count(name) for name in names] == [1] * len(names)
    else:  # turned, in parts that fit
        parts = table.strip().split("\n\n")
        assert len(parts) == (2 if width == 80 else 3), table
        for part in parts:
            assert [line[: len(name)] for line, name in zip(part.split("\n")[1:], names, strict=True)] == names
    assert all(len(line) <= width for line in text.split("\n"))
    assert "\u2026" not in table
    for one in found.tuning.cells:
        assert setting_text(one.choice) in table
        assert one.label in table


def test_terminal_page_and_figure_show_the_tuning(tuned):
    found = tuned()
    console = Console(file=io.StringIO(), width=150)
    print_comparison(found, console)
    text = console.file.getvalue()
    assert (
        "Every cell had the same search for optimizer.lr: a grid of 4 settings x 2 seeds (8 runs), by val/loss"
        in " ".join(text.split())
    )
    assert "may have missed" in text
    page = render(found)
    for part in ('<section id="tuning"', 'data-chart="tuning"', "All cells at equal settings"):
        assert part in page
    (axes,) = draw(found, "tuning").axes
    assert axes.get_xscale() == "log"
    lines = {
        line.get_label(): line.get_ydata().tolist() for line in axes.lines if not str(line.get_label()).startswith("_")
    }
    assert lines["rotary"] == pytest.approx([2.2, 1.6, 2.4])
    assert math.isclose(lines["none"][-1], 2.6)


def test_a_difference_that_waits_for_seeds_says_so_once(tuned):
    [sentence] = [one for one in headline(tuned(seeds_in=2)) if one.startswith("Against")]
    assert sentence.count("2 of 3 seeds in") == 2  # of two cells


def test_the_gallery_shows_the_tuning(tuned, tmp_path):
    found = tuned()
    effect = Published(effect="Positions help", source="Vaswani et al. 2017", minutes=1, figure="all do")
    page, *_ = write_page(replace(found, study=replace(found.study, published=effect)), tmp_path)
    text = page.read_text()
    assert "Every cell had the same search for optimizer.lr: a grid of 4 settings x 2 seeds (8 runs)" in text
    assert "| rotary | lr=0.001 |" in text
    assert "## val/loss at equal settings" in text


@pytest.mark.parametrize("metric", ["steps to val/loss 2.0", "success"])
def test_of_costs_and_shares_tuned_cells_are_shown_and_none_is_called_better(tmp_path, metric):
    """Apart in all of twelve seeds: without tuning both would be sure."""
    from tests.analysis.test_costs import falling
    from tests.stored_studies import cell, write_plan, write_run

    from attnlab.analysis import compare, load_study, to_csv
    from attnlab.report.page import render

    def verdicts(root, tuned):
        better = "higher" if metric == "success" else "lower"
        write_plan(root, factors={"arm": ["a", "b"]}, baseline={"arm": "a"}, tuned=tuned, seeds=list(range(12)),
                   cells=[cell({"arm": arm}) for arm in "ab"], metric={"name": metric, "better": better})  # fmt: skip
        for arm in "ab":
            for seed in range(12):
                said = {"success": {"better": "higher", "is_proportion": True}}
                final = {"val/loss": 1.9, "success": float(arm == "b")}
                write_run(root, {"arm": arm}, seed, final, curve=falling(700 - 400 * (arm == "b")), metrics=said)
        found = compare(load_study(root))
        assert render(found)
        assert to_csv(found)
        return [one.difference.verdict for one in found.cells if one.difference], " ".join(found.caveats)

    trials = [
        {"settings": {"lr": lr}, "runs": {"9": {"state": "finished", "final": {"val/loss": lr}}}} for lr in (1, 2)
    ]
    of_cell = {"default": {"lr": 1}, "trials": trials, "chosen": {"lr": 1}}
    tuned = {"study": "s-tuning", "search": {"lr": [1, 2]}, "how": "grid", "trials": 2, "seeds": [9]}
    tuned |= {"metric": {"name": "val/loss", "better": "lower"}, "cells": {"arm=a": of_cell, "arm=b": of_cell}}
    assert verdicts(tmp_path / "plain", {})[0] == ["better"]
    found, said = verdicts(tmp_path / "tuned", tuned)
    assert found == ["undecided"]
    assert f"has no bound in {metric}, so no tuned cell is called better or worse" in said
