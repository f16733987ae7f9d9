"""How runs compute where that is auto: measured once, kept, the same in all runs of a study, and no bit of them changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from attnlab.training import Checkpoints, Steps, automatic, read_checkpoint
from attnlab.training.run_directory import read_json

HERE = "hydra/launcher=basic"
REASON = "a step in bf16 takes 0.41 of fp32's, measured on Some Processor, 1 threads"


@pytest.fixture(autouse=True)
def capable(monkeypatch, tmp_path, here):
    """A processor with bf16 instructions, and a cache that nothing was measured for."""
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: True)
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def timed(monkeypatch):
    """Measurements that give fixed seconds a step, by way; the calls, each the ways that were asked for."""
    calls = []

    class Given(dict):
        """Seconds by way, and the calls."""

    given = Given({"32": 1.0, "bf16": 0.41, "32 compiled": 0.1, "bf16 compiled": 0.3})
    given.calls = calls

    def fixed(self, ways, budget=3.0):
        calls.append([str(way) for way in ways])
        compiling = {str(way): 2.0 for way in ways if way.compiled}
        found = {"seconds": {str(way): given[str(way)] for way in ways}, "compiling": compiling, "failed": {}}
        return {**found, "machine": "Some Processor", "threads": self.threads}

    monkeypatch.setattr(Steps, "timed", fixed)
    return given


def record(run="run"):
    return read_json(Path(run) / "run.json")


def weights(run):
    return read_checkpoint(next(Path(run, "checkpoints").glob("last.ckpt")))["state_dict"]


def test_measuring_changes_no_bit_of_a_run(attnlab, tiny):
    words = ["train", *tiny, "model.dropout=0.1", "trainer.device=cpu"]
    assert attnlab(*words, "run_dir=measured").status == 0
    used = record("measured")["precision"]
    assert set(used["measured"]["seconds"]) == {"32", "bf16"}
    assert attnlab(*words, f"trainer.precision={used['used']}", "run_dir=plain").status == 0
    assert "measured" not in record("plain")["precision"]
    final = [read_json(Path(run) / "status.json")["final"] for run in ("measured", "plain")]
    assert final[0] == final[1]
    there, here = weights("measured"), weights("plain")
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_a_run_says_what_was_used_asked_and_measured(attnlab, tiny, timed):
    said = attnlab("train", *tiny, "run_dir=run", "progress=plain")
    assert f"precision bf16 ({REASON}); cpu, 1 threads" in said.err
    found = record()
    assert found["precision"] == {
        "used": "bf16",
        "asked": "auto",
        "reason": REASON,
        "measured": {
            "seconds": {"32": 1.0, "bf16": 0.41},
            "compiling": {},
            "failed": {},
            "machine": "Some Processor",
            "threads": 1,
        },
    }
    assert found["compile"] == {"used": False, "asked": False, "reason": "asked for"}


def test_what_was_measured_is_kept_for_the_shape_and_measured_again_for_another(attnlab, tiny, timed):
    same = (["seed=1"], ["optimizer.lr=0.5"], ["trainer.max_steps=11"])
    for number, more in enumerate(([], *same)):
        assert attnlab("train", *tiny, *more, f"run_dir=same{number}").status == 0
    assert timed.calls == [["32", "bf16"]]
    for number, more in enumerate((["model.d_model=8"], ["data.batch_size=8"], ["trainer.threads=2"])):
        assert attnlab("train", *tiny, *more, f"run_dir=other{number}").status == 0
        assert len(timed.calls) == 2 + number


def test_what_is_damaged_in_the_cache_is_measured_again(attnlab, tiny, timed, tmp_path):
    assert attnlab("train", *tiny, "run_dir=one").status == 0
    (kept,) = (tmp_path / "cache" / "step_seconds").glob("*/timings.json")
    whole = kept.read_bytes()
    for number, damage in enumerate((whole.replace(b"0.41", b"0.99"), b"{", b"")):
        kept.write_bytes(damage)
        assert attnlab("train", *tiny, f"run_dir=damaged{number}").status == 0
        assert record(f"damaged{number}")["precision"]["used"] == "bf16"
        assert kept.read_bytes() == whole
    assert len(timed.calls) == 4


def test_a_cache_that_takes_nothing_is_no_reason_to_end(attnlab, tiny, timed, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "step_seconds").write_text("a file in the place of the folder")
    assert attnlab("train", *tiny, "run_dir=run").status == 0
    assert record()["precision"]["used"] == "bf16"


def test_what_failed_once_is_tried_again(attnlab, tiny, timed, monkeypatch):
    whole = Steps.timed

    def failing(self, ways, budget=3.0):
        found = whole(self, ways, budget)
        return {**found, "seconds": {"32": 1.0}, "failed": {"bf16": "no"}}

    monkeypatch.setattr(Steps, "timed", failing)
    assert attnlab("train", *tiny, "run_dir=failed").status == 0
    assert record("failed")["precision"]["used"] == "32"
    monkeypatch.setattr(Steps, "timed", whole)
    assert attnlab("train", *tiny, "run_dir=mended").status == 0
    assert record("mended")["precision"]["used"] == "bf16"


@pytest.mark.parametrize("asked", ["32", "bf16"])
def test_what_the_user_asks_for_is_used(attnlab, tiny, timed, asked):
    other = {"32": "bf16", "bf16": "32"}[asked]
    assert attnlab("train", *tiny, f"trainer.precision={asked}", f"study.precision={other}", "run_dir=run").status == 0
    assert record()["precision"] == {"used": asked, "asked": asked, "reason": "asked for"}
    assert timed.calls == []


def test_an_attempt_computes_as_the_one_before_whatever_is_measured_now(attnlab, tiny, timed, monkeypatch, here):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(Checkpoints, "on_validation_end", stop)
        assert attnlab("train", *tiny, "run_dir=run").status != 0
    monkeypatch.chdir(here)
    shutil.rmtree("cache/step_seconds")
    timed["bf16"] = 2.0
    assert attnlab("train", *tiny, "run_dir=run").status == 0
    assert len(record()["attempts"]) == 2
    assert (record()["precision"]["used"], record()["precision"]["reason"]) == ("bf16", REASON)
    assert len(timed.calls) == 1


def test_a_model_is_compiled_where_that_pays(attnlab, tiny, timed, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    timed["bf16"] = 2.0
    assert attnlab("train", *tiny, "trainer.compile=auto", "run_dir=run", "progress=plain").status == 0
    assert timed.calls == [["32", "bf16"], ["32", "32 compiled"]]
    assert compiled == ["GPT"]
    assert record()["compile"]["used"] is True
    assert record()["compile"]["reason"].startswith("a compiled step takes 0.10 of an eager one's")


def test_a_sweep_settles_one_choice_for_all_of_its_runs_says_it_and_keeps_it(attnlab, study, timed):
    study("mine", seeds=1)
    first = attnlab("sweep", "mine", HERE)
    assert first.status == 0, first.err
    assert f"precision: bf16 ({REASON}), in all runs" in " ".join(first.out.split())
    assert read_json("runs/mine/plan.json")["automatic"]["precision"]["used"] == "bf16"
    measured = len(timed.calls)
    shutil.rmtree("cache/step_seconds")  # as on another machine
    timed["bf16"] = 2.0
    second = attnlab("sweep", "mine", HERE, "study.seeds=2")
    assert second.status == 0, second.err
    assert f"precision: bf16 ({REASON}), as runs/mine/plan.json has it" in " ".join(second.out.split())
    assert len(timed.calls) == measured
    runs = sorted(Path("runs/mine").glob("*/seed=*"))
    assert len(runs) == 4
    for run in runs:
        assert (record(run)["precision"]["used"], record(run)["precision"]["reason"]) == ("bf16", REASON)


def test_a_sweep_is_settled_by_the_sum_over_its_cells(attnlab, study, timed, monkeypatch):
    whole = Steps.timed

    def slow(self, ways, budget=3.0):
        wide = self.make_task().model.d_model == 32
        found = whole(self, ways, budget)
        return found | {"seconds": {"32": 10.0, "bf16": 5.0} if wide else {"32": 1.0, "bf16": 2.0}}

    monkeypatch.setattr(Steps, "timed", slow)
    study("mine", seeds=1, factors={"model.d_model": [16, 32]}, baseline={"model.d_model": 16})
    assert attnlab("sweep", "mine", HERE).status == 0
    kept = read_json("runs/mine/plan.json")["automatic"]["precision"]
    assert kept["measured"]["seconds"] == {"32": 11.0, "bf16": 7.0}
    assert {record(run)["precision"]["used"] for run in Path("runs/mine").glob("*/seed=*")} == {"bf16"}


def test_a_study_that_says_its_precision_is_not_measured(attnlab, study, timed):
    study("mine", seeds=1)
    said = attnlab("sweep", "mine", HERE, "trainer.precision=32")
    assert said.status == 0, said.err
    assert "precision:" not in said.out
    assert read_json("runs/mine/plan.json")["automatic"] == {}
    assert timed.calls == []


def test_a_sweep_says_that_a_precision_is_slow_here(attnlab, study, timed, monkeypatch):
    study("mine", seeds=1)
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: False)
    said = attnlab("sweep", "mine", HERE, "trainer.precision=bf16")
    assert said.status == 0, said.err
    assert said.out.count("precision: bf16 (asked for, and slow: this CPU has no bf16 instructions; ") == 1
    assert read_json("runs/mine/plan.json")["automatic"] == {}


def test_a_study_whose_runs_began_without_a_choice_goes_on_as_they_did(attnlab, study, timed):
    study("mine", seeds=1)
    assert attnlab("sweep", "mine", HERE, "study.seeds=1").status == 0
    plan = read_json("runs/mine/plan.json")
    Path("runs/mine/plan.json").write_text(json.dumps({key: plan[key] for key in plan if key != "automatic"}))
    shutil.rmtree("cache/step_seconds")
    timed["bf16"] = 2.0
    assert attnlab("sweep", "mine", HERE, "study.seeds=2").status == 0
    assert {record(run)["precision"]["used"] for run in Path("runs/mine").glob("*/seed=*")} == {"bf16"}


def test_of_a_plan_that_nothing_was_settled_for_the_first_run_settles_it(attnlab, study, tiny, timed):
    """As on a cluster, whose nodes are not the machine that submits."""
    study("mine", seeds=1)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/plan.json").write_text("{}")
    assert attnlab("train", *tiny, "position=none", "study.name=mine").status == 0
    shutil.rmtree("cache/step_seconds")
    timed["bf16"] = 2.0
    assert attnlab("train", *tiny, "position=alibi", "study.name=mine").status == 0
    found = [record(run)["precision"] for run in sorted(Path("runs/mine").glob("*/seed=*"))]
    assert [one["used"] for one in found] == ["bf16", "bf16"]
    assert found[0] == found[1]
    assert sorted(path.name for path in Path("runs/mine").iterdir() if path.is_file()) == ["plan.json", "settled.json"]


def test_the_jobs_of_a_multirun_compute_alike(attnlab, tiny, timed):
    said = attnlab("train", "-m", *tiny, "position=none,alibi", "study.name=many", HERE)
    assert said.status == 0, said.err
    assert f"precision: bf16 ({REASON}), in all runs" in said.err
    found = [record(run)["precision"] for run in Path("runs/many").glob("*/seed=*")]
    assert [one["used"] for one in found] == ["bf16", "bf16"]
    assert {one["reason"] for one in found} == {"settled for all runs of the command"}


def test_a_choice_that_no_sweep_makes_is_refused(attnlab, tiny):
    said = attnlab("train", *tiny, "study.precision=16", "run_dir=run")
    assert said.status == 2
    assert "study.precision must be one of 32, bf16 or null, got 16" in said.err
