"""A study with `trunk: true` trains what its lengths share once, and its numbers are those of runs trained alone."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from attnlab.analysis.reader import load_study
from attnlab.config import UsageError
from attnlab.config.compose import ConfigSpace
from attnlab.runs.build import prepare_data
from attnlab.studies import cluster
from attnlab.studies.launch import Relaunch
from attnlab.studies.plan import Branch, Plan, read_plan, runs_of
from attnlab.studies.preflight import sizes_of
from attnlab.studies.study_file import load_plan
from attnlab.training.run_directory import read_json
from hydra_plugins.attnlab_sweepers import StudySweeper

LENGTHS = [10, 15, 20]
SHARED = [
    "schedule=wsd",
    "schedule.warmup_steps=2",
    "schedule.decay_steps=3",
    "model.dropout=0.1",
    "trainer.log_every_n_steps=1",
]
HERE = "hydra/launcher=basic"


@pytest.fixture
def lengths(study, tiny):
    """Writes a study of three lengths of a training."""

    def write(name: str, **fields: object) -> Path:
        shared = [*(word for word in tiny if not word.startswith("trainer.max_steps")), *SHARED]
        usual = {
            "shared": shared,
            "factors": {"trainer.max_steps": LENGTHS},
            "baseline": {"trainer.max_steps": 20},
            "seeds": [0],
        }
        return study(name, **usual | fields)

    return write


def figures(name: str) -> dict[tuple[str, int], object]:
    plan = read_plan(Path("runs", name, "plan.json"))
    found = {}
    for key, run in runs_of(plan, Path("runs")).items():
        status = read_json(run / "status.json")
        values = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curve = {(line["step"], name): value for line in values for name, value in line["values"].items()}
        found[key] = {**{key: status[key] for key in ("state", "final", "best", "tokens", "step")}, "curve": curve}
    return found


def test_the_numbers_of_a_sweep_with_a_trunk_are_those_without(attnlab, lengths):
    lengths("together", trunk=True)
    lengths("alone")
    said = attnlab("sweep", "together", HERE)
    assert said.status == 0, said.err
    assert attnlab("sweep", "alone", HERE).status == 0
    plan = read_plan(Path("runs/together/plan.json"))
    short, middle, trunk = (f"max_steps={steps}" for steps in LENGTHS)
    # The rates of a length are those of a longer one up to the first step that cools down, where nothing has fallen yet.
    assert plan.branches == {short: Branch(trunk, 8), middle: Branch(trunk, 13)}
    assert figures("together") == figures("alone")
    for cell, step in ((short, 8), (middle, 13)):
        log = Path("runs/together", cell, "seed=0", "log.txt").read_text()
        assert re.search(rf"going on from .*/{trunk}/seed=0/checkpoints/kept/step={step}\.ckpt", log)
    curves = [load_study(Path("runs", name)).curves.drop("seconds") for name in ("together", "alone")]
    assert curves[0].equals(curves[1])


@pytest.mark.slow
def test_a_trunk_that_is_gone_is_done_without(attnlab, lengths):
    """What ran before the study had a trunk, and a trunk whose checkpoints were removed, change no number."""
    lengths("late", factors={"trainer.max_steps": [20]})
    assert attnlab("sweep", "late", HERE).status == 0
    lengths("late", trunk=True)
    assert attnlab("sweep", "late", HERE).status == 0
    lengths("alone")
    assert attnlab("sweep", "alone", HERE).status == 0
    assert figures("late") == figures("alone")
    log = Path("runs/late/max_steps=10/seed=0/log.txt").read_text()
    assert "so that all steps are made here" in log
    lengths("again", trunk=True)
    assert attnlab("sweep", "again", HERE).status == 0
    shutil.rmtree("runs/again/max_steps=20/seed=0/checkpoints/kept")
    shutil.rmtree("runs/again/max_steps=10")
    assert attnlab("sweep", "again", HERE).status == 0
    assert figures("again") == figures("alone")


def test_printed_commands_make_the_same_runs(attnlab, lengths):
    lengths("printed", trunk=True, factors={"trainer.max_steps": [10, 20]})
    said = attnlab("sweep", "printed", "--cfg")
    branch, trunk = [shlex.split(line) for line in said.out.splitlines() if line.startswith("attnlab train")]
    assert "trainer.keep_checkpoints=[8]" in trunk
    assert attnlab(*trunk[1:]).status == 0
    assert attnlab(*branch[1:]).status == 0
    log = Path("runs/printed/max_steps=10/seed=0/log.txt").read_text()
    assert "going on from runs/printed/max_steps=20/seed=0/checkpoints/kept/step=8.ckpt" in log


@pytest.mark.slow
def test_a_dry_run_knows_how_long_branches_take_before_their_trunk_has_run(attnlab, lengths):
    lengths("dry", trunk=True, factors={"trainer.max_steps": [10, 20]})
    said = attnlab("sweep", "dry", HERE, "--dry-run")
    assert said.status == 0, said.err
    assert "not known" not in said.out + said.err
    rows = [line.split() for line in said.out.splitlines() if re.match(r"(max_steps=)?(10|20) ", line)]
    assert len(rows) == 2, said.out
    assert not any("?" in row for row in rows), said.out


def test_a_preflight_counts_the_steps_that_are_made(attnlab, lengths):
    path = lengths("ahead", trunk=True) / "study.yaml"
    with ConfigSpace() as space:
        plan = load_plan(path, [], space)
        composed = [space.compose(plan.overrides(cell)) for cell in plan.cells]
        data = prepare_data([one.resolved for one in composed])
        sizes, alone = sizes_of(composed, data, plan.branches), sizes_of(composed, data)
    assert [size.steps for size in sizes.values()] == [2, 2, 20]
    assert [size.validations for size in sizes.values()] == [1, 1, 4]
    for cell, size in sizes.items():
        assert size.tokens / alone[cell].tokens == pytest.approx(size.steps / alone[cell].steps)
        assert size.operations / alone[cell].operations == pytest.approx(size.steps / alone[cell].steps)


def test_waves_have_all_that_is_branched_off_first(lengths):
    path = lengths("waves", trunk=True, seeds=2) / "study.yaml"
    with ConfigSpace() as space:
        plan = load_plan(path, [], space)
    keys = [(cell.name, seed) for cell, seed in plan.jobs()]
    first, second = plan.waves(keys)
    assert first == [("max_steps=20", 0), ("max_steps=20", 1)]
    assert sorted(first + second) == sorted(keys)
    branch = ("max_steps=10", 1)
    assert not plan.is_ready(branch, dict.fromkeys(keys, "missing") | {("max_steps=20", 0): "finished"})
    for state, ready in (("running", False), ("lost", False), ("finished", True), ("diverged", True), ("failed", True)):
        assert plan.is_ready(branch, {("max_steps=20", 1): state}) is ready
        assert plan.is_ready(("max_steps=20", 1), {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"factors": {"position": ["none", "alibi"]}, "baseline": {}}, "there must be cells that differ in trainer.max_steps alone"),
        ({"shared": ["schedule.warmup_steps=null"]}, "the rates of 10 and of 20 steps differ from the first one on"),
        ({"shared": ["trainer.max_epochs=1"]}, "lengths must be in steps"),
        ({"trunk": "yes please"}, "trunk must be true or false, got 'yes please'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_trunk_that_shares_nothing_is_refused(lengths, tiny, fields, said):
    shared = [word for word in [*tiny, *SHARED] if not word.startswith("trainer.max_steps")]
    more = fields.get("shared", [])
    shared = [word for word in shared if word.split("=")[0] not in [key.split("=")[0] for key in more]]
    path = lengths("wrong", **{"trunk": True, **fields, "shared": [*shared, *more]}) / "study.yaml"
    with ConfigSpace() as space, pytest.raises(UsageError, match=re.escape(said)):
        load_plan(path, [], space)


def test_a_cluster_is_given_what_branches_off_when_its_trunk_is_over(lengths, tmp_path):
    """Seed by seed: a trunk that failed is waited for no more, and one that is lost is submitted again before its branches."""
    path = lengths("there", trunk=True, seeds=2, factors={"trainer.max_steps": [10, 20]}) / "study.yaml"
    with ConfigSpace() as space:
        plan = load_plan(path, [], space)
    folder = tmp_path / "runs" / "there"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(asdict(plan)))
    submitted: list[list[str]] = []

    class Cluster:
        def submit(self, jobs: list[list[str]]) -> list[str]:
            words = [dict(word.split("=", 1) for word in job if "=" in word) for job in jobs]
            submitted.append([f"{word['cell'].strip(chr(34))} {word['seed']}" for word in words])
            return [f"{len(submitted)}_{at}" for at in range(len(jobs))]

    def sweep() -> list[str]:
        shutil.rmtree(folder / cluster.FOLDER, ignore_errors=True)  # no job of before is live
        sweeper = StudySweeper(str(folder / "plan.json"), ["missing", "lost"])
        sweeper.launcher, sweeper.how = Cluster(), {}
        before = len(submitted)
        sweeper.sweep([])
        return submitted[before] if len(submitted) > before else []

    def ended(cell: str, seed: int, state: str) -> None:
        run = folder / cell / f"seed={seed}"
        run.mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"state": state, "attempt": 1}))

    assert sweep() == ["max_steps=20 0", "max_steps=20 1"]
    ended("max_steps=20", 1, "finished")
    assert sorted(sweep()) == ["max_steps=10 1", "max_steps=20 0"]
    ended("max_steps=20", 0, "failed")
    assert sorted(sweep()) == ["max_steps=10 0", "max_steps=10 1"]
    ended("max_steps=10", 0, "finished")
    ended("max_steps=10", 1, "diverged")
    assert sweep() == []


def test_a_sweep_on_a_cluster_comes_back_for_the_branches(monkeypatch):
    """Once, without what failed; not where runs were lost, which are submitted again first, nor where nobody waits."""

    def asked(lost: dict, detach: bool, branches: dict) -> list[list[str]]:
        found: list[list[str]] = []
        plan = Plan("s", "?", {}, {}, [], [0], {}, branches=branches)
        relaunch = Relaunch(plan, Path("runs"), None, None, None, detach)
        monkeypatch.setattr(Relaunch, "_submit", lambda self, states: found.append(list(states)) or lost)
        assert relaunch._on_cluster(["missing", "failed"]) == lost
        return found

    branches = {"short": Branch("long", 8)}
    assert asked({}, False, branches) == [["missing", "failed"], ["missing"]]
    assert asked({("long", 0): None}, False, branches) == [["missing", "failed"]]
    assert asked({}, True, branches) == asked({}, False, {}) == [["missing", "failed"]]
