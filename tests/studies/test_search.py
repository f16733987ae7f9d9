"""A search in each cell: the same first trials in all of them, hopeless ones given up, what was tried kept in the runs' directories."""

import importlib.util
import json
from pathlib import Path

import pytest

from attnlab.config import UsageError
from attnlab.config.engine import corners
from attnlab.studies.jobs import cells_and_space
from attnlab.training.run_directory import effective_state, read_json

LR, WIDTH = "optimizer.lr=tag(log,interval(1e-5,0.1))", "model.d_model=choice(8,16)"


def test_commas_make_cells_and_what_is_an_interval_or_a_choice_is_searched():
    cells, space = cells_and_space(["position=none,alibi", "model.num_layers=choice(1)", LR, WIDTH, "seed=3"])
    assert cells == {
        f"num_layers=1,position={name}": [f"position={name}", "model.num_layers=1", "seed=3"]
        for name in ("none", "alibi")
    }
    assert space == [LR, WIDTH]
    assert corners(["position=none,alibi", LR, WIDTH]) == ["position=none,alibi", "optimizer.lr=1e-05,0.1", WIDTH]
    with pytest.raises(UsageError, match="a search has one seed"):
        cells_and_space(["position=none", "seed=0,1", LR])


def test_without_optuna_the_search_says_what_to_install(attnlab, here, left, tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = attnlab("train", "-m", *tiny, "hydra/sweeper=search", LR)
    assert (said.status, said.err) == (2, "attnlab: hydra/sweeper=search needs Optuna: pip install 'attnlab[optuna]'\n")
    assert left(here) == []


def test_impossible_corners_and_figures_of_the_test_part_are_refused_before_anything_runs(attnlab, here, left, tiny):
    pytest.importorskip("optuna")
    said = attnlab("train", "-m", *tiny, "hydra/sweeper=search", "model.num_heads=choice(2,3)")
    assert said.status == 2
    assert "which divide model.d_model=16, got 3" in said.err
    said = attnlab("train", "-m", *tiny, "hydra/sweeper=search", LR, "hydra.sweeper.metric=test/loss@1x")
    assert said.status == 2
    assert "hydra.sweeper.metric must be of the validation part, as val/loss is, got test/loss@1x" in said.err
    assert left(here) == []


@pytest.mark.slow
def test_each_cell_is_searched_from_the_same_start_and_hopeless_trials_are_given_up(attnlab, here, tiny):
    pytest.importorskip("optuna")
    fixed = [word for word in tiny if not word.startswith("model.d_model")]
    few = [
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.sampler.n_startup_trials=2",
        "hydra.sweeper.pruner.n_startup_trials=2",
    ]
    words = [
        "train",
        "-m",
        *fixed,
        "trainer.max_steps=20",
        "task.sliding=false",
        "study.name=tuned",
        "position=none,alibi",
        LR,
        WIDTH,
        "hydra/sweeper=search",
        *few,
    ]
    said = attnlab(*words)
    assert said.status == 0, said.err
    trials: dict[str, list] = {"none": [], "alibi": []}
    for path in sorted(
        Path("runs/tuned").glob("*/seed=0"), key=lambda path: (path / "attempts" / "1.json").stat().st_mtime_ns
    ):
        record, status = read_json(path / "run.json"), read_json(path / "status.json")
        trials[record["cell"]["position"]].append((record, status, path))
    assert [len(tried) for tried in trials.values()] == [4, 4]
    starts = [
        [(r["config"]["optimizer"]["lr"], r["config"]["model"]["d_model"]) for r, *_ in tried[:2]]
        for tried in trials.values()
    ]
    assert starts[0] == starts[1]
    pruned = [(status, path) for tried in trials.values() for _, status, path in tried if status["pruned"]]
    assert pruned
    for status, path in pruned:
        assert effective_state(path) == status["state"] == "pruned"
        assert f"pruned at step {status['step']}: val/loss was " in status["error"]
        assert status["step"] == status["pruned"]["step"] < 20
        assert status["pruned"]["value"] == status["latest"]["val/loss"]
    for tried in trials.values():
        finals = {path: status["final"]["val/loss"] for _, status, path in tried if status["state"] == "finished"}
        best = min(finals, key=finals.__getitem__)
        assert f"best val/loss {finals[best]:.4f}" in said.out
        assert f"in {best}\n" in said.out

    shown = attnlab("status", "tuned").out
    assert f"{len(pruned)} pruned" in shown
    assert "interrupted" not in shown
    assert "failed" not in shown
    assert shown.count("pruned at step ") == len(pruned)
    outcomes = [line.split(",") for line in attnlab("compare", "tuned", "--format", "csv").out.splitlines()]
    assert sum("pruned" in line for line in outcomes) == len(pruned)
    alone = read_json(pruned[0][1] / "run.json")["overrides"]
    assert "pruned already; nothing to do" in attnlab("train", *alone, "progress=plain").err

    stamps = {path: path.stat().st_mtime_ns for path in Path("runs/tuned").rglob("metrics.jsonl")}
    again = attnlab(*words)
    assert (again.status, again.out) == (0, said.out)
    assert {path: path.stat().st_mtime_ns for path in Path("runs/tuned").rglob("metrics.jsonl")} == stamps


# Ray's launcher needs versions of other packages that the pinned ones exclude: `.ci/ray` runs this where they are, elsewhere nothing is tested.
@pytest.mark.slow
def test_the_runs_of_a_multirun_train_on_ray(attnlab, here, tiny):
    said = attnlab("train", "-m", *tiny, "position=none,alibi", "study.name=ray", "hydra/launcher=ray")
    assert said.status == 0, said.err
    assert attnlab("train", "-m", *tiny, "position=none,alibi", "study.name=here").status == 0
    finals = [
        {
            json.dumps(read_json(path)["cell"]): read_json(path.with_name("status.json"))["final"]
            for path in Path("runs", study).rglob("run.json")
        }
        for study in ("ray", "here")
    ]
    assert len(finals[0]) == 2
    assert finals[0] == finals[1]


if importlib.util.find_spec("ray") is None:
    del test_the_runs_of_a_multirun_train_on_ray
