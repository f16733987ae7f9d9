"""Every cell is tuned alike before the comparison: trials of their own, a choice by validation, then the seeds at each cell's best setting."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from attnlab.config import UsageError
from attnlab.config.compose import ConfigSpace
from attnlab.studies.plan import runs_of
from attnlab.studies.samplers import draws_of
from attnlab.studies.study_file import load_plan
from attnlab.studies.tuning import load_tuning
from attnlab.training.run_directory import FORMAT, read_json

HERE = "hydra/launcher=basic"
RATES = [1e-4, 3e-3]
TUNE = {"search": {"optimizer.lr": RATES}}
LOG = {"low": 1e-5, "high": 1e-1, "scale": "log"}
POSITIONS = ["none", "alibi"]


def statuses(study: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("runs", study).glob("*/seed=*/status.json")}


@pytest.mark.slow
def test_each_cell_runs_at_the_best_setting_of_its_trials_also_after_an_interruption(attnlab, study, monkeypatch):
    study("mine", tune=TUNE, seeds=1, shared=[*read_shared(study), "trainer.precision=32", "optimizer.lr=0.01"])
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr("attnlab.studies.tuning.Tuning.said", stop)
        assert attnlab("sweep", "mine", HERE).status != 0
    tried = statuses("mine-tuning")
    assert len(tried) == 4
    assert not Path("runs/mine").exists()
    said = attnlab("sweep", "mine", HERE)
    assert said.status == 0, said.err
    assert statuses("mine-tuning") == tried
    assert "4 runs: 4 finished" in attnlab("status", "mine-tuning").out
    compared = attnlab("compare", "mine-tuning")
    assert "val/loss, lower is better" in compared.out, compared.err
    plan = read_json(Path("runs/mine/plan.json"))
    for position in POSITIONS:
        losses = {
            rate: json.loads(tried[Path(f"runs/mine-tuning/position={position},lr={rate}/seed=10000/status.json")])["final"]["val/loss"]
            for rate in RATES
        }  # fmt: skip
        best = min(losses, key=losses.__getitem__)
        assert plan["tuned"]["cells"][f"position={position}"]["chosen"] == {"optimizer.lr": best}
        assert plan["tuned"]["cells"][f"position={position}"]["default"] == {"optimizer.lr": 0.01}
        record = read_json(Path(f"runs/mine/position={position}/seed=0/run.json"))
        assert record["config"]["optimizer"]["lr"] == best
    printed = [
        shlex.split(line)
        for line in attnlab("sweep", "mine", "--cfg").out.splitlines()
        if line.startswith("attnlab train")
    ]
    assert len(printed) == 2
    assert attnlab(*printed[0][1:], "runs_dir=alone").status == 0
    (alone,) = Path("alone/mine").glob("*/seed=0/status.json")
    assert read_json(alone)["final"] == read_json(Path("runs", *alone.parts[1:]))["final"]
    shutil.rmtree("runs/mine-tuning")  # what was chosen stands in the plan of the runs that follow it
    assert attnlab("sweep", "mine", "--cfg", "study.seeds=2").out.count("attnlab train") == 4


def read_shared(study) -> list[str]:
    """The settings that the fixture gives every study."""
    import yaml

    return yaml.safe_load((study("usual") / "study.yaml").read_text())["shared"]


def test_a_dry_run_counts_the_trials_and_the_runs(attnlab, study, monkeypatch):
    monkeypatch.setattr(
        "attnlab.studies.preflight.try_out", lambda space, plan: lambda composed, slots: ["no"] * len(composed)
    )
    study("mine", tune=TUNE | {"seeds": 2}, seeds=3)
    said = attnlab("sweep", "mine", HERE, "--dry-run")
    assert said.status == 0, said.err
    assert "8 runs (0 done)" in said.out
    assert "6 runs (0 done)" in said.out
    assert not Path("runs").exists()


REFUSED = [
    ({"how": "best"}, "tune.how must be one of grid, random, tpe, got 'best'"),
    ({"search": {"position": ["none"]}}, "tune.search must not search position, in which cells differ (factors)"),
    ({"search": {"seed": [1, 2]}}, "tune.search must not set seed"),
    ({"search": {"progress": ["off"]}}, "tune.search must not set progress, which changes nothing that a run computes"),
    ({"search": {"optimizer.lr": [1, 1]}}, "tune.search.optimizer.lr must be a list of different values or a range"),
    ({"search": {"optimizer.lr": LOG}}, "tune.how must be random or tpe, for tune.search.optimizer.lr is a range, got grid"),
    ({"search": {"optimizer.lr": {"low": 0, "high": 1, "scale": "log"}}, "how": "tpe"}, "optimizer.lr.scale must be linear, or log where"),
    ({"search": {"optimizer.lr": {"low": 2, "high": 1}}}, "must be a range from low to a larger high"),
    ({"trials": 3}, "tune.trials must be 2, how many settings the grid has, got 3"),
    ({"trials": 3, "how": "random"}, "tune.trials must be how many settings are tried in each cell, a whole number from 1 to 2, got 3"),
    ({"how": "tpe"}, "tune.trials must be how many settings are tried in each cell"),
    ({"trials": 3, "how": "random", "search": {"model.num_heads": {"low": 1, "high": 2}}}, "whole number from 1 to 2, got 3"),
    ({"seeds": [5, 1]}, "tune.seeds must be other seeds than those compared, got 1 in both"),
    ({"seeds": 0}, "tune.seeds must be how many seeds"),
    ({"metric": {"name": "test/loss@1x"}}, "tune.metric.name must be a figure of the validation part"),
    ({"metric": {"name": "val/loss", "better": "higher"}}, "tune.metric.better must be lower, got 'higher'"),
    ({"metric": {"name": "val/los", "better": "lower"}}, "tune.metric.name must be one of what these runs report, got val/los. Did you mean val/loss"),
    ({"serch": {}}, "tune must have known fields (search, how, trials, seeds, metric), got 'serch'. Did you mean search?"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_tune_does_not_accept(attnlab, study, fields, message):
    study("mine", tune=TUNE | fields)
    said = attnlab("sweep", "mine", HERE, "--cfg")
    assert said.status == 2
    assert message in " ".join(said.err.split())


def test_what_would_spoil_a_tuning_is_refused(attnlab, study):
    study("mine", tune=TUNE | {"seeds": [3]})
    assert "got 3 in both" in attnlab("sweep", "mine", "--cfg", "study.seeds=4").err
    said = attnlab("sweep", "mine", "--cfg", "optimizer.lr=1")
    assert "optimizer.lr=1: tune.search looks for it in every cell" in said.err


@pytest.fixture
def tuning(study):
    """The tuning of a study with these fields, and a function that writes what its trials came to: `loss` of a cell's name and a rate."""
    spaces = []

    def make(loss, **fields):
        path = study("mine", tune=fields) / "study.yaml"
        space = spaces[-1] if spaces else ConfigSpace()
        spaces.append(space)
        with space:
            plan = load_plan(path, [], space)
            found = load_tuning(path, plan, [], space)

        def train(trials) -> list[str]:
            new = []
            for (cell, seed), run in runs_of(trials, Path("runs")).items():
                rate = next(one.choices["optimizer.lr"] for one in trials.cells if one.name == cell)
                value = loss(cell.partition(",")[0], rate)
                if (run / "status.json").is_file():
                    continue
                run.mkdir(parents=True)
                (run / "run.json").write_text(json.dumps({"format": 0}))
                state = value if isinstance(value, str) else "finished"
                final = {} if isinstance(value, str) else {"val/loss": value + seed % 2}
                (run / "status.json").write_text(json.dumps({"state": state, "final": final}))
                new.append(cell)
            return new

        return found, train

    return make


def squared(best: dict[str, float]):
    return lambda cell, rate: (math.log10(rate) - best[cell]) ** 2


@pytest.mark.slow
def test_tpe_spends_the_same_budget_in_every_cell_and_goes_on_where_it_was(tuning):
    best = {"position=none": -2.0, "position=alibi": -4.0}
    found, train = tuning(squared(best), search={"optimizer.lr": LOG}, how="tpe", trials=14)
    rounds = found.rounds(Path("runs"))
    first = next(rounds)
    assert len(first.cells) == 8
    rates = [
        [cell.choices["optimizer.lr"] for cell in first.cells if cell.choices["position"] == name] for name in POSITIONS
    ]
    assert rates[0] == rates[1]  # before anything is known all cells try the same
    train(first)
    again = next(found.rounds(Path("runs")))  # as after an interruption
    assert again == next(rounds)
    for plan in found.rounds(Path("runs")):
        train(plan)
    assert found.settled(Path("runs")) is not None
    chosen = found.chosen(Path("runs"))
    for name, one in chosen.tuned["cells"].items():
        assert len(one["trials"]) == 14
        assert abs(math.log10(one["chosen"]["optimizer.lr"]) - best[name]) < 0.5
    assert {cell.name: cell.overrides[-1] for cell in chosen.cells} == {
        name: f"optimizer.lr={one['chosen']['optimizer.lr']}" for name, one in chosen.tuned["cells"].items()
    }


def test_a_trial_that_diverged_is_the_worst_and_one_that_failed_is_not_compared(tuning):
    def loss(cell, rate):
        return {1e-4: "failed" if cell == "position=alibi" else 1.0, 1e-3: 2.0, 1e-2: "diverged"}[rate]

    found, train = tuning(loss, search={"optimizer.lr": [1e-4, 1e-3, 1e-2]}, seeds=2)
    (plan,) = found.rounds(Path("runs"))
    train(plan)
    assert found.settled(Path("runs")) is None  # what failed is tried again
    of = found.chosen(Path("runs")).tuned["cells"]
    assert {cell: one["chosen"]["optimizer.lr"] for cell, one in of.items()} == {
        "position=none": 1e-4,
        "position=alibi": 1e-3,
    }
    assert [found.score(trial) for trial in of["position=alibi"]["trials"]] == [None, 2.5, math.inf]
    shutil.rmtree("runs")
    found, train = tuning(lambda cell, rate: "diverged", search={"optimizer.lr": [1e-3]})
    train(next(found.rounds(Path("runs"))))
    with pytest.raises(
        UsageError, match="position=none: no trial of mine-tuning has val/loss, so no setting can be chosen"
    ):
        found.chosen(Path("runs"))


def test_of_each_trial_stands_in_the_plan_what_claims_are_about_its_costs_to_targets_too(study):
    """Words about a tuned study need it: how much a choice may have missed, on that metric."""
    cost, against = {"steps_to": {"val/loss": 2.0}}, {"cell": {"position": "none"}}
    claim = {"says": "better", "cell": {"position": "alibi"}, "against": against, "below": 0.0}
    fields = {"tune": {"search": {"optimizer.lr": [1e-4, 1e-3]}}, "metric": {"name": "test/loss@1x", "better": "lower"}}
    path = study("mine", **fields, claims=[claim | {"metric": "test/loss@2x"}, claim | {"metric": cost}]) / "study.yaml"
    with ConfigSpace() as space:
        plan = load_plan(path, [], space)
        found = load_tuning(path, plan, [], space)
    (trials,) = found.rounds(Path("runs"))
    name = "steps to val/loss 2.0"
    for (cell, seed), run in runs_of(trials, Path("runs")).items():
        run.mkdir(parents=True)
        record = {"format": FORMAT, "cell_name": cell, "cell": {}, "seed": seed, "study": "mine-tuning", "config": {}}
        (run / "run.json").write_text(json.dumps(record))
        end = 1.5 if "0.001" in cell else 2.5
        rows = [(10, 3.0), (20, end)]
        lines = [{"step": at, "tokens": at, "seconds": at, "values": {"val/loss": loss}} for at, loss in rows]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        final = {"val/loss": end, "test/loss@1x": end, "test/loss@2x": end + 1, "test/loss@4x": end + 2}
        (run / "status.json").write_text(json.dumps({"state": "finished", "final": final}))
    for one in found.chosen(Path("runs")).tuned["cells"].values():
        kept = [run for trial in one["trials"] for run in trial["runs"].values()]
        assert [sorted(run["final"]) for run in kept] == [["test/loss@1x", "test/loss@2x", "val/loss"]] * 2
        # from 3.0 at step 10 to 1.5 at step 20: 2.0 is reached two thirds of the way
        assert [run["costs"][name] for run in kept] == [[20, None], pytest.approx([50 / 3, 50 / 3])]


def test_draws_are_different_and_spread_over_the_scale():
    drawn = [one["lr"] for one in draws_of({"lr": LOG, "width": {"low": 16, "high": 64, "scale": "linear"}}, 400)]
    assert len(set(drawn)) > 390
    assert min(drawn) >= 1e-5
    assert max(drawn) <= 1e-1
    assert abs(sum(rate < 1e-3 for rate in drawn) / 400 - 0.5) < 0.1  # half of them below the middle of the scale
    assert sorted(one["lr"] for one in draws_of({"lr": [1, 2, 3]}, 3)) == [1, 2, 3]
