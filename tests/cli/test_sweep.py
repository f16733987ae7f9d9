"""A sweep runs what is missing, once, whatever happens to it in between."""

import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from tests.processes import command, wait_for

import attnlab as attnlab_package
from attnlab.analysis import load_study
from attnlab.studies import launch
from attnlab.training.run_directory import effective_state, read_json

HERE = "hydra/launcher=basic"  # runs train in this process, one after the other


def statuses(study):
    """Of each run its status.json, when it was written, and how many attempts there were."""
    return {
        path.parent: (path.read_bytes(), path.stat().st_mtime_ns, len(list(path.parent.glob("attempts/*.json"))))
        for path in Path("runs", study).glob("*/seed=*/status.json")
    }


@pytest.mark.slow
def test_what_is_missing_is_run_and_what_is_finished_is_not_touched(attnlab, study):
    study("mine")
    first = attnlab("sweep", "mine", HERE, "study.seeds=1")
    assert first.status == 0, first.err
    assert "all runs finished" in first.out
    assert "position=alibi seed=0 finished" in first.out
    before = statuses("mine")
    assert len(before) == 2
    second = attnlab("sweep", "mine", HERE, "study.seeds=2")
    assert second.status == 0, second.err
    assert "2 of 4 runs are done" in second.out
    after = statuses("mine")
    assert len(after) == 4
    assert {run: after[run] for run in before} == before
    third = attnlab("sweep", "mine", HERE, "study.seeds=2")
    assert "4 of 4 runs are done" in third.out
    assert statuses("mine") == after
    assert Path("runs/mine/report.html").is_file()


@pytest.fixture
def fine_tuning(study, library, tmp_path):
    """A study that starts from the runs of another one beside it, seed by seed."""
    rows = ["sentence\tlabel", *(f"{'a quick fox' if i % 2 else 'the lazy dog'}\t{i % 2}" for i in range(40)), ""]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows))
    model = ["model=bert", "model.d_model=16", "model.num_heads=2", "model.num_layers=1", "tokenizer=character"]
    rest = ["trainer.max_steps=2", "trainer.threads=1", "schedule.warmup_steps=0", "progress=plain"]
    text = ["data=text_masked", f"data.path={library / 'text.txt'}", "data.context_length=16", "data.batch_size=4"]
    cells, metric = [{"name": "bert", "overrides": []}], {"name": "test/loss", "better": "lower"}
    study("words", shared=[*model, *text, *rest], factors={}, cells=cells, baseline={}, metric=metric)
    found = "${runs_dir}/words/bert/seed=${seed}"
    own = [
        f'task.pretrained="{found}"',
        f'data.tokenizer_from="{found}"',
        "task=sequence_classification",
        "data=tsv",
        f"data.path={tmp_path}",
    ]
    cells = [{"name": "tuned", "overrides": []}]
    metric = {"name": "test/accuracy", "better": "higher"}
    study("classes", needs=["words"], shared=[*model, *own, *rest], factors={}, cells=cells, baseline={}, metric=metric)


@pytest.mark.slow
def test_what_a_study_needs_is_run_first_with_the_same_seeds(attnlab, fine_tuning):
    said = attnlab("sweep", "classes", HERE, "study.seeds=[1,3]", "runs_dir=elsewhere")
    assert said.status == 0, said.err
    for seed in (1, 3):
        before, after = (Path("elsewhere", name, f"seed={seed}") for name in ("words/bert", "classes/tuned"))
        assert read_json(after / "run.json")["config"]["task"]["pretrained"] == str(before)
        assert (after / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()
        assert f"from {before}/checkpoints/" in said.err
    # In one comparison, though each reads a tokenizer out of a folder of its seed.
    assert "runs: 2 finished" in said.out.split("classes  ")[-1]
    again = attnlab("sweep", "classes", HERE, "study.seeds=[1,3]", "runs_dir=elsewhere")
    assert again.status == 0, again.err
    assert again.out.count("2 of 2 runs are done") == 2


@pytest.mark.slow
def test_the_trials_of_a_study_start_from_runs_with_their_own_seeds(attnlab, fine_tuning, tmp_path):
    path = tmp_path / "experiments" / "classes" / "study.yaml"
    asked = yaml.safe_load(path.read_text())
    asked["tune"] = {"search": {"optimizer.lr": [1e-4, 3e-3]}, "metric": {"name": "val/loss", "better": "lower"}}
    path.write_text(yaml.safe_dump(asked | {"seeds": 1}))
    said = attnlab("sweep", "classes", HERE)
    assert said.status == 0, said.err
    trials = sorted(Path("runs/classes-tuning").glob("*/seed=*/run.json"))
    assert len(trials) == 2
    for record in [*trials, Path("runs/classes/tuned/seed=0/run.json")]:
        pretrained = read_json(record)["config"]["task"]["pretrained"]
        assert pretrained == f"runs/words/bert/{record.parent.name}"
        assert effective_state(Path(pretrained)) == "finished"


def test_what_a_study_takes_that_starts_from_another_is_told_when_that_is_over(attnlab, fine_tuning, monkeypatch):
    def measure(composed, slots):
        return ["not tried"] * len(composed)

    monkeypatch.setattr("attnlab.studies.preflight.try_out", lambda space, plan: measure)
    said = attnlab("sweep", "classes", HERE, "study.seeds=1", "--dry-run")
    assert said.status == 0, said.err
    assert "1 runs (0 done)" in said.out
    assert "how long bert takes is not known: not tried" in said.out
    assert said.out.endswith("what classes takes can be told when words, which it starts from, is over\n")
    assert not Path("runs").exists()


def test_a_mistake_is_found_before_what_is_needed_is_run(attnlab, fine_tuning):
    said = attnlab("sweep", "classes", HERE, "model.num_heads=3")
    assert said.status == 2
    assert "model.num_heads must be one of 1, 2, 4, 8, 16" in said.out
    assert "the parts of every cell are incompatible, so there is nothing to run" in said.err
    assert not Path("runs").exists()
    assert attnlab("sweep", "classes", HERE, "model.d_ff=x").status == 2
    assert not Path("runs").exists()


def test_studies_that_need_each_other(attnlab, study):
    study("one", needs=["other"])
    study("other", needs=["one"])
    said = attnlab("sweep", "one", HERE, "--cfg")
    assert said.status == 2
    assert "needs one, which in turn needs this study" in said.err


def test_a_study_that_needs_what_is_not_there(attnlab, study):
    study("one", needs=["otter"])
    said = attnlab("sweep", "one", HERE)
    assert said.status == 2
    assert "otter: there is no such study" in said.err


@pytest.mark.slow
def test_a_run_of_a_study_is_the_run_of_its_overrides(attnlab, study):
    study("mine", seeds=1)
    attnlab("sweep", "mine", "--cfg")
    assert not Path("runs").exists()
    assert attnlab("sweep", "mine", HERE).status == 0
    # Printed afterwards, they have the precision that was faster for all runs; each alone might find the other one so.
    printed = attnlab("sweep", "mine", "--cfg").out
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("attnlab train")]
    assert len(commands) == 2
    for words in commands:
        assert attnlab(*words[1:], "runs_dir=alone").status == 0
    for status in Path("runs/mine").glob("*/*/status.json"):
        alone = Path("alone/mine", *status.parts[-3:-1])
        assert read_json(alone / "status.json")["final"] == read_json(status)["final"]
        assert read_json(alone / "run.json")["config"]["cell"] == status.parts[-3]


@pytest.mark.slow
def test_a_changed_configuration_is_refused_with_the_difference(attnlab, study):
    study("mine", seeds=1)
    assert attnlab("sweep", "mine", HERE).status == 0
    before = statuses("mine")
    said = attnlab("sweep", "mine", HERE, "model.dropout=0.1")
    assert said.status == 2
    assert "model.dropout: 0.0 -> 0.1" in said.err
    assert statuses("mine") == before
    assert attnlab("sweep", "mine", HERE, "model.dropout=0.1", "study.name=dropped", "--cfg").status == 0


def test_a_cell_that_makes_no_sense_is_skipped_and_one_that_fails_does_not_stop_the_others(
    attnlab, study, tmp_path, monkeypatch
):
    (tmp_path / "broken_part.py").write_text(
        "from attnlab.layers import ALiBi\n\n\n"
        "class Broken(ALiBi):\n"
        "    def bias(self, query_positions_BT, key_positions_BS):\n"
        "        raise RuntimeError('this part is broken')\n"
    )
    (tmp_path / "conf" / "position").mkdir(parents=True)
    (tmp_path / "conf" / "position" / "broken.yaml").write_text("_target_: broken_part.Broken\n_partial_: true\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    study("mine", seeds=1, factors={"position": ["broken", "sinusoidal_2d", "none"]})
    said = attnlab("sweep", "mine", HERE, "--config-dir", "conf")
    assert said.status == 1
    assert "skipped position=sinusoidal_2d: position: sinusoidal_2d indexes a grid" in said.out
    assert "position=broken seed=0: this part is broken" in said.err
    assert "1 runs failed" in said.err
    assert "Traceback" not in said.err
    assert effective_state("runs/mine/position=broken/seed=0") == "failed"
    assert effective_state("runs/mine/position=none/seed=0") == "finished"
    assert not Path("runs/mine/position=sinusoidal_2d").exists()
    shown = attnlab("status", "mine")
    assert "this part is broken" in shown.out
    assert "skipped" in shown.out


@pytest.mark.slow
def test_what_is_missing_is_tried_again_and_what_failed_where_that_is_asked_for(attnlab, study, tmp_path, monkeypatch):
    (tmp_path / "broken_too.py").write_text(
        "from attnlab.layers import ALiBi\n\n\n"
        "class Broken(ALiBi):\n"
        "    def bias(self, query_positions_BT, key_positions_BS):\n"
        "        raise RuntimeError('this part is broken')\n"
    )
    (tmp_path / "conf" / "position").mkdir(parents=True)
    (tmp_path / "conf" / "position" / "broken.yaml").write_text("_target_: broken_too.Broken\n_partial_: true\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    study("mine", seeds=1, factors={"position": ["none", "broken"]})
    assert attnlab("sweep", "mine", HERE, "--config-dir", "conf").status == 1
    none, broken = (Path("runs/mine", f"position={name}", "seed=0") for name in ("none", "broken"))
    shutil.rmtree(none)
    said = attnlab("retry", "mine", HERE, "--config-dir", "conf")
    assert said.status == 1
    assert "1 runs failed and 0 are not over" in said.err
    assert effective_state(none) == "finished"
    assert len(list((broken / "attempts").iterdir())) == 1
    again = attnlab("retry", "mine", "--failed", HERE, "--config-dir", "conf")
    assert "this part is broken" in again.err
    assert len(list((broken / "attempts").iterdir())) == 2
    assert "Slurm has no job of mine" in attnlab("cancel", "mine").out


def test_a_seam_that_one_of_the_models_does_not_have_skips_its_cells(attnlab, study, tiny):
    shared = [word for word in tiny if not word.startswith("model.num_heads")]
    study("mixed", shared=shared, seeds=1, factors={"model": ["gpt", "recurrent_lm"], "position": ["none", "alibi"]})
    said = attnlab("sweep", "mixed", "--cfg")
    assert said.status == 0, said.err
    for position in ("none", "alibi"):
        assert (
            f"skipped model=recurrent_lm,position={position}: position: model=recurrent_lm has no position" in said.out
        )
    printed = [line for line in said.out.splitlines() if line.startswith("attnlab train")]
    assert ["model=gpt,position=none" in line for line in printed] == [True, False]


def test_a_study_of_which_nothing_can_be_run(attnlab, study):
    study("none", factors={"model.num_heads": [3, 5]}, baseline={"model.num_heads": 3})
    said = attnlab("sweep", "none", HERE)
    assert said.status == 2
    assert "the parts of every cell are incompatible, so there is nothing to run" in said.err
    assert not Path("runs").exists()


def test_bad_data_are_found_before_anything_is_made(attnlab, study, here):
    (here / "short.txt").write_text("hello")
    study("short", factors={"data.path": ["short.txt"]}, baseline={})
    said = attnlab("sweep", "short", HERE)
    assert said.status == 1
    assert "too few for one window" in said.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_runs_without_a_plan_can_be_looked_at(attnlab, tiny):
    assert attnlab("train", "-m", *tiny, "position=none,alibi", "seed=0,1", "study.name=free").status == 0
    assert not Path("runs/free/plan.json").exists()
    assert "4 runs: 4 finished" in attnlab("status", "free").out
    assert "4 runs: 4 finished" in attnlab("status", "runs/free").out
    compared = attnlab("compare", "free")
    assert compared.status == 0
    assert "alibi" in compared.out
    assert len(attnlab("compare", "free", "--format", "csv").out.splitlines()) == 3
    assert attnlab("report", "free", "--to", "page.html", "--no-figures").status == 0
    assert not Path("figures").exists()
    assert "<html" in Path("page.html").read_text()[:200]
    assert "no folder" in attnlab("report", "free", "--to", "nowhere/page.html").err


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_random_moments_ends_complete(attnlab, study, tiny):
    study("mine", seeds=2, shared=[*(word for word in tiny if "max_steps" not in word), "trainer.max_steps=40"])
    draw = random.Random()
    finished: dict[Path, tuple[bytes, int, int]] = {}
    for launcher in (HERE, "hydra.launcher.n_jobs=2"):
        begun = len(list(Path("runs/mine").glob("*/*/attempts/*.json")))
        sweep = command("sweep", "mine", launcher)
        wait_for(lambda begun=begun: len(list(Path("runs/mine").glob("*/*/attempts/*.json"))) > begun, sweep)
        time.sleep(draw.uniform(0, 0.6))  # well before the last of four runs can end
        assert sweep.poll() is None, sweep.said  # still at it
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
        load_study("runs/mine").curves  # noqa: B018  every directory is readable
        now = statuses("mine")
        assert {run: now[run] for run in finished} == finished
        finished = {run: now[run] for run in now if effective_state(run) == "finished"}
    said = attnlab("sweep", "mine", HERE)
    assert said.status == 0, said.err
    now = statuses("mine")
    assert len(now) == 4
    assert all(effective_state(run) == "finished" for run in now)
    assert {run: now[run] for run in finished} == finished
    final = {run: json.loads(content)["final"] for run, (content, _, _) in now.items()}
    assert attnlab("sweep", "mine", HERE, "study.name=quiet").status == 0
    for run, values in final.items():  # and the kills changed no number
        assert values == read_json(Path("runs/quiet", *run.parts[-2:]) / "status.json")["final"]


@pytest.mark.slow
def test_workers_get_ready_at_once_unless_the_last_plan_is_over(attnlab, study, monkeypatch):
    ready = []
    monkeypatch.setattr(launch, "get_ready", lambda: ready.append(1))
    study("mine", seeds=1)
    assert attnlab("sweep", "mine", HERE).status == 0
    assert attnlab("sweep", "mine").status == 0
    assert ready == []
    for more, times in (["--cfg"], 0), ([HERE], 0), ([], 1):
        assert attnlab("sweep", "mine", "study.name=new", "model.d_ff=x", *more).status == 2
        assert len(ready) == times
    shutil.rmtree("runs/mine/position=none")
    assert attnlab("sweep", "mine", "model.d_ff=x").status == 2
    assert len(ready) == 2


@pytest.mark.slow
def test_two_sweeps_at_once_write_no_run_twice(attnlab, study):
    study("mine", seeds=3)
    other = command("sweep", "mine", HERE)
    wait_for(lambda: list(Path("runs/mine").glob("*/*/attempts/*.json")), other)
    ours = attnlab("sweep", "mine", HERE)
    other.wait()
    runs = list(statuses("mine"))
    assert len(runs) == 6
    assert all(effective_state(run) == "finished" for run in runs)
    assert [len(list((run / "attempts").iterdir())) for run in runs] == [1] * 6
    for text in (other.said, ours.out + ours.err):
        assert "all runs finished" in text or "another sweep" in text, text


@pytest.mark.slow
def test_a_failing_cell_in_a_worker_does_not_keep_the_comparison_back(attnlab, study, tmp_path, monkeypatch):
    (tmp_path / "broken_there.py").write_text(
        "from attnlab.layers import ALiBi\n\n\n"
        "class Broken(ALiBi):\n"
        "    def bias(self, query_positions_BT, key_positions_BS):\n"
        "        raise RuntimeError('this part is broken')\n"
    )
    (tmp_path / "conf" / "position").mkdir(parents=True)
    (tmp_path / "conf" / "position" / "broken.yaml").write_text("_target_: broken_there.Broken\n_partial_: true\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    study("mine", seeds=1, factors={"position": ["broken", "none"]}, baseline={"position": "none"})
    said = attnlab("sweep", "mine", "hydra.launcher.n_jobs=1", "--config-dir", "conf")
    assert said.status == 1
    assert "position=broken seed=0: this part is broken" in said.err
    assert "page: runs/mine/report.html" in said.out
    assert effective_state("runs/mine/position=none/seed=0") == "finished"


def test_nothing_but_hydra_takes_a_class_from_a_plugin():
    """Hydra loads plugins anew, each time with other classes: an exception of theirs would be caught by its name of before."""
    source = Path(attnlab_package.__file__).parents[1]
    importers = [
        path
        for path in source.rglob("*.py")
        if re.search(r"import.*hydra_plugins\.attnlab|from hydra_plugins\.attnlab", path.read_text())
    ]
    assert importers == []
    for plugin in (source / "hydra_plugins").glob("attnlab_*.py"):
        module = importlib.import_module(f"hydra_plugins.{plugin.stem}")
        raised = [
            c
            for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, BaseException) and c.__module__ == module.__name__
        ]
        assert raised == []
