"""What is left of a study, estimated while simulated workers train it: near the truth early, and steady."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from attnlab.studies.remaining import Costs, makespan, read_costs, seconds_left

EPOCH = 1_700_000_000.0


def simulated(cells, seeds, workers, draw, known):
    """(seconds so far, estimate, truth, share of the runs that are over) each second of a sweep of runs in this order.

    cells: the seconds of a run's start, steps and evaluation, by name. known: the costs that the estimate is given.
    """
    runs = [(cell, seed) for seed in range(seeds) for cell in cells]
    free, spans = [0.0] * workers, {}
    for cell, seed in runs:
        at = free.index(min(free))
        parts = [seconds * draw.uniform(0.93, 1.07) for seconds in cells[cell]]
        spans[cell, seed] = (free[at], *parts)
        free[at] += sum(parts)
    end, now, seen = max(free), 0.0, []
    while now < end:
        states, statuses = {}, {}
        for key, (begin, start, steps, after) in spans.items():
            state = "missing" if now < begin else "running" if now < begin + start + steps + after else "finished"
            trained = min(max(0.0, now - begin - start), steps)
            states[key], statuses[key] = state, {}
            if state != "missing":
                statuses[key] = {
                    "started": begin + EPOCH,
                    "seconds": trained,
                    "max_steps": 1000,
                    "step": round(1000 * trained / steps),
                }
            if state == "finished":
                statuses[key]["ended"] = EPOCH + begin + start + steps + after
        over = sum(state == "finished" for state in states.values()) / len(runs)
        seen.append((now, seconds_left(states, statuses, known, now + EPOCH), end - now, over))
        now += max(1.0, end / 150)
    return seen


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("number", range(3))
def test_the_estimate_is_within_30_percent_after_a_tenth_and_never_jumps(workers, number):
    draw = random.Random(f"{workers} {number}")
    whole = {
        f"cell{i}": draw.choice([20, 40, 100, 200]) * draw.uniform(0.8, 1.2) for i in range(draw.choice([4, 6, 12]))
    }
    cells = {name: (1.5, 0.8 * seconds, 0.2 * seconds) for name, seconds in whole.items()}
    known = Costs(workers, {name: 7e9 * seconds * draw.uniform(0.83, 1.2) for name, seconds in whole.items()})
    seen = simulated(cells, draw.choice([3, 4, 5]), workers, draw, known)
    end = seen[0][2]
    late = [(left, truth) for _, left, truth, over in seen if over >= 0.1]
    assert late
    # Of the last runs alone, a few seconds more or less are much of what is left.
    assert max(abs(left - truth) / max(truth, end / 3) for left, truth in late) < 0.3
    for offset in (0, 1):  # of the whole sweep, and of what is left
        told = [left + offset * at for at, left, truth, _ in seen if left is not None and truth > end / 10]
        assert max(max(a / b, b / a) for a, b in itertools.pairwise(told)) < 2


def test_the_order_of_the_runs_decides_how_long_the_workers_take():
    assert makespan([], 3) == 0
    assert makespan([5, 1, 1, 1], 2) == 5
    assert makespan([1, 1, 1, 5], 2) == 6
    assert makespan([4], 1, busy=[3]) == 7
    assert makespan([4], 2, busy=[3]) == 4


def run(state, **status):
    return state, {"max_steps": 100, **status}


def left(runs, costs=None, now=1000.0):
    states, statuses = ({key: one[at] for key, one in runs.items()} for at in (0, 1))
    return seconds_left(states, statuses, costs, now)


def test_what_a_cell_took_counts_for_the_others_of_that_cell():
    done = {"started": 100.0, "ended": 150.0, "seconds": 40.0, "step": 100}
    runs = {("a", 0): run("finished", **done), ("b", 0): run("missing"), ("a", 1): run("missing")}
    assert left(runs) == 100
    assert left(runs, Costs(1, {"a": 1.0, "b": 3.0})) == 200
    assert left(runs, Costs(2, {"a": 1.0, "b": 3.0})) == 150
    # One that was stopped halfway goes on from there; one that failed at once says nothing of the others.
    assert left({**runs, ("a", 1): run("interrupted", step=50)}) == 75
    failed = run("failed", started=100.0, ended=101.0, seconds=1.0)
    assert left({**runs, ("b", 0): failed}) == 50


def test_nothing_is_said_before_a_run_has_a_pace():
    waiting = {("a", 1): run("missing")}
    assert left({("a", 0): run("running", started=990.0, seconds=4.0, step=4), **waiting}) is None
    found = left({("a", 0): run("running", started=990.0, seconds=9.0, step=10), **waiting})
    assert found == pytest.approx(81 + 90, abs=2)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"cells": 3}', '{"cells": {"a": "x"}}', '{"workers": "x", "cells": {}}']
)
def test_a_file_of_costs_that_is_none_says_nothing(tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    assert read_costs(tmp_path) == Costs()
    assert read_costs(tmp_path / "nowhere") == Costs()


def test_costs_are_read(tmp_path):
    (tmp_path / "costs.json").write_text(json.dumps({"workers": 2, "cells": {"a": 3e9, "b": 0}}))
    assert read_costs(tmp_path) == Costs(2, {"a": 3e9})
