"""Seeds in stages: a sweep adds them until all is settled or there are no more, and goes on wherever it was killed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.stored_studies import cell, write_plan, write_run

from attnlab.config import UsageError
from attnlab.studies.plan import read_plan
from attnlab.studies.stages import at_stage, next_stage, seeds_of_needed, with_earlier_looks
from attnlab.training.looks import Looks
from attnlab.training.run_directory import read_json

HERE = "hydra/launcher=basic"
STAGES = [2, 3, 5]


def seeds_of(study):
    return sorted({int(path.name.partition("=")[2]) for path in Path("runs", study).glob("*/seed=*")})


@pytest.mark.slow
def test_what_is_plain_stops_at_the_first_stage(attnlab, study):
    rates = {"factors": {"optimizer.lr": [0.00001, 0.03]}, "baseline": {"optimizer.lr": 0.00001}}
    study("plain", **rates, seeds=3, stop={"when": "settled", "at_most": 6})
    said = attnlab("sweep", "plain", HERE)
    assert said.status == 0, said.err
    assert "seeds in stages, 3, 6, until all is settled: at most 12 runs" in said.out
    assert "6 runs (0 done; at most 12 in all)" in said.out
    assert "plain: look 1 of 2, at 2.5% of 5%, with 3 seeds: every comparison is settled" in said.out
    assert seeds_of("plain") == [0, 1, 2]
    before = Path("runs/plain/plan.json").read_text()
    assert attnlab("sweep", "plain", HERE).status == 0
    assert (seeds_of("plain"), Path("runs/plain/plan.json").read_text()) == ([0, 1, 2], before)


@pytest.mark.slow
def test_what_stays_open_goes_on_to_the_last_stage(attnlab, study, tiny):
    study(
        "open",
        shared=[word for word in tiny if "num_heads" not in word],
        seeds=2,
        stop={"when": "settled", "at_most": 4, "step": 1},
        factors={"model.num_heads": [1, 2]},
        baseline={"model.num_heads": 1},
        metric={"name": "val/loss", "better": "lower"},
    )
    said = attnlab("sweep", "open", HERE)
    assert said.status == 0, said.err
    looks = [line for line in said.out.splitlines() if line.startswith("open: look")]
    assert looks == [
        "open: look 1 of 3, at 2.5% of 5%, with 2 seeds: still open: 2; 3 seeds are next",
        "open: look 2 of 3, at 1.25% of 5%, with 3 seeds: still open: 2; 4 seeds are next",
        "open: look 3 of 3, at 1.25% of 5%, with 4 seeds: still open: 2; no more seeds are planned",
    ]
    assert seeds_of("open") == [0, 1, 2, 3]
    assert "all runs finished" in said.out
    assert "look 3 of 3, at 1.25% of 5%; at most 8 runs" in attnlab("status", "open").out
    changed = attnlab("sweep", "open", HERE, "study.seeds=8")
    assert changed.status == 2
    assert "planned with 2, 3, 4 seeds in stages, and now 8 seeds at once are asked for" in changed.err


def stored(root, seeds, apart, there=None, looks=None):
    """A study in stages of two cells so far apart, of which the runs of `there` seeds are over."""
    cells = [{"norm": "a"}, {"norm": "b"}]
    looks = {"stages": STAGES} if looks is None else looks
    metric = {"name": "m", "better": "lower", "margin": None}
    write_plan(root, factors={"norm": ["a", "b"]}, baseline=cells[0], cells=[cell(one) for one in cells],
               seeds=list(range(seeds)), metric=metric, looks=looks)  # fmt: skip
    for seed in range(seeds if there is None else there):
        for at, choices in enumerate(cells):
            noise = np.random.default_rng([seed, at]).standard_normal()
            write_run(root, choices, seed, {"m": 10.0 + apart * at + noise})
    return read_plan(root / "plan.json")


def asked(plan):
    """The plan that study.yaml makes: with the seeds of its first stage."""
    return type(plan)(**{**vars(plan), "seeds": list(range((plan.looks.stages or plan.seeds)[0]))})


@pytest.mark.parametrize(
    ("seeds", "there", "then"),
    [(2, 1, 2), (2, 2, 3), (3, 2, 3), (3, 3, 5), (5, 3, 5), (5, 5, 5)],
    ids=["in a stage", "after it", "the next is planned", "after the second", "the last is planned", "at the end"],
)
def test_a_sweep_goes_on_wherever_it_was_killed(tmp_path, seeds, there, then):
    """Between any two of what it does: runs, the look at them, the plan with more seeds."""
    plan = stored(tmp_path / "s", seeds, 0.0, there)
    assert at_stage(asked(plan), tmp_path, print).seeds == list(range(then))


def test_what_is_settled_gets_no_more_seeds(tmp_path, capsys):
    plan = stored(tmp_path / "s", 3, 1000.0)
    assert next_stage(plan, tmp_path, print) is None
    assert "look 2 of 3, at 1% of 5%, with 3 seeds: every comparison is settled" in capsys.readouterr().out
    assert next_stage(stored(tmp_path / "t", 5, 0.0), tmp_path, print) is None


def test_stages_cannot_be_changed_when_runs_are_over(tmp_path):
    plan = stored(tmp_path / "s", 3, 0.0)
    at_once = type(plan)(**{**vars(plan), "seeds": [0, 1, 2, 3], "looks": Looks()})
    with pytest.raises(UsageError, match="planned with 2, 3, 5 seeds in stages, and now 4 seeds at once are asked for"):
        at_stage(at_once, tmp_path, print)
    shutil.rmtree(tmp_path / "s")
    stored(tmp_path / "s", 3, 0.0, there=0)
    assert at_stage(at_once, tmp_path, print) == at_once


def test_a_study_that_is_needed_keeps_the_seeds_it_has(tmp_path):
    stored(tmp_path / "staged", 3, 0.0)
    stored(tmp_path / "over", 3, 0.0, looks={})
    stored(tmp_path / "half", 3, 0.0, there=1, looks={})
    assert [seeds_of_needed(tmp_path / name, [0, 1]) for name in ("staged", "over", "half", "none")] == [
        None, [0, 1, 2], [0, 1], [0, 1]]  # fmt: skip
    assert [seeds_of_needed(tmp_path / name, [0, 4]) for name in ("staged", "over")] == [[0, 4], [0, 4]]


def test_a_plan_remembers_what_was_looked_at_and_what_was_given_up(tmp_path):
    def then(before, seeds):
        plan = type(before)(**{**vars(before), "seeds": list(range(seeds)), "looks": Looks()})
        return with_earlier_looks(plan, before, tmp_path).looks

    over = stored(tmp_path / "s", 4, 0.0, looks={"looked": [2]})
    assert then(over, 4) == Looks(looked=[2])
    assert then(over, 8) == Looks(looked=[2, 4])
    fewer = type(over)(**{**vars(over), "seeds": [0, 1]})
    assert then(fewer, 4) == Looks(looked=[2])  # they were there all the time
    unseen = stored(tmp_path / "t", 8, 0.0, there=3, looks={})
    assert then(unseen, 16) == Looks()
    given_up = then(unseen, 3)
    assert given_up == Looks(given_up=8)
    (tmp_path / "t" / "plan.json").write_text(
        json.dumps(read_json(tmp_path / "t" / "plan.json") | {"looks": vars(given_up)})
    )
    assert then(read_plan(tmp_path / "t" / "plan.json"), 8).given_up == 0
