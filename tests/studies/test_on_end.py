"""The user's own command at the end of a sweep is told how it ended, and changes nothing of that."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.stored_studies import cell, write_plan, write_run

from attnlab.config import UsageError
from attnlab.studies import on_end
from attnlab.studies.on_end import of_multirun, split_on_end, then
from attnlab.training.processes import Interrupted

WRITE = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('told.json', 'w'))"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_plan(
        tmp_path / "s",
        cells=[cell({"position": name}) for name in ("none", "alibi")],
        factors={"position": ["none", "alibi"]},
        seeds=[0, 1, 2],
        metric={"name": "test/loss", "better": "lower"},
        baseline={"position": "none"},
    )
    for seed in range(3):
        write_run(root, {"position": "none"}, seed, {"test/loss": 2.5 + 0.001 * seed})
        write_run(root, {"position": "alibi"}, seed, {"test/loss": 2.0 + 0.002 * (seed == 1)})
    return root


def told():
    return json.loads(Path("told.json").read_text())


def raises(error):
    raise error


@pytest.mark.parametrize(("status", "state"), [(0, "finished"), (1, "failed")])
def test_the_command_has_what_became_of_the_study_in_its_environment_and_words(folder, status, state):
    command = f'{sys.executable} -c "{WRITE}" "it is $ATTNLAB_STATE: ${{ATTNLAB_SUMMARY}}" $HOME "a b;c|d"'
    assert then(command, folder, lambda: status) == status
    words, environment = told()
    summary = environment["ATTNLAB_SUMMARY"]
    assert words == [f"it is {state}: {summary}", "$HOME", "a b;c|d"]  # no shell has seen them
    assert "alibi" in summary
    assert "\n" not in summary
    assert environment["ATTNLAB_STUDY"] == "s"
    assert environment["ATTNLAB_STATE"] == state
    assert environment["ATTNLAB_DIRECTORY"] == str(folder)
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt(), "stopped"), (Interrupted(15), "stopped"), (RuntimeError("x"), "failed")]
)
def test_a_sweep_that_is_interrupted_or_breaks_tells_it_and_ends_as_it_would(folder, error, state):
    with pytest.raises(type(error)):
        then(f'{sys.executable} -c "{WRITE}"', folder, lambda: raises(error))
    assert told()[1]["ATTNLAB_STATE"] == state


def test_where_nothing_can_be_compared_the_summary_counts_runs(folder, monkeypatch):
    monkeypatch.setattr("attnlab.analysis.compare", lambda study: raises(ValueError("broken")))
    then(f'{sys.executable} -c "{WRITE}"', folder, lambda: 0)
    assert told()[1]["ATTNLAB_SUMMARY"] == "runs: 6 finished"


def test_whatever_becomes_of_the_command_is_one_line(folder, capfd, monkeypatch):
    monkeypatch.setattr(on_end, "PATIENCE_SECONDS", 0.2)
    for command, line in (
        ("nowhere-to-be-found x", "nowhere-to-be-found cannot be run: No such file or directory"),
        ("false", "false ended with exit status 1"),
        ("sleep 60", "sleep was ended, for it took more than 0 s"),
    ):
        assert then(command, folder, lambda: 3) == 3
        assert capfd.readouterr().err == f"attnlab: study.on_end: {line}\n"
    assert then(None, folder, lambda: 3) == 3
    assert capfd.readouterr().err == ""


def test_the_command_is_taken_from_the_settings_as_it_was_typed():
    assert split_on_end(["a=1", "study.on_end=say 'a, b' ${x}", "b=2"]) == ("say 'a, b' ${x}", ["a=1", "b=2"])
    assert split_on_end(["a=1"]) == (None, ["a=1"])
    with pytest.raises(UsageError, match=r"study\.on_end must be a command in words, got .*No closing quotation"):
        split_on_end(["study.on_end=say 'a"])
    with pytest.raises(UsageError, match=r"study\.on_end is run at the end of a sweep or, with -m, of a multirun"):
        of_multirun(["study.on_end=true"], many=False)


@pytest.mark.slow
def test_a_sweep_tells_once_and_a_multirun_too(attnlab, study, tiny):
    code = 'import os; open("of_" + os.environ["ATTNLAB_STUDY"], "a").write("x")'
    told = f"{sys.executable} -c '{code}'"
    study("mine", seeds=1, factors={"position": ["none"]}, on_end=told)
    said = attnlab("sweep", "mine", "hydra/launcher=basic")
    assert said.status == 0, said.err
    assert Path("of_mine").read_text() == "x"
    plan = Path("runs/mine/plan.json").read_text()
    assert "on_end" not in plan
    assert attnlab("sweep", "mine", "hydra/launcher=basic", "study.on_end=false").err == ""  # nothing was left to run
    assert Path("of_mine").read_text() == "x"
    assert Path("runs/mine/plan.json").read_text() == plan
    said = attnlab("train", "-m", *tiny, "position=none", "study.name=free", f"study.on_end={told}")
    assert said.status == 0, said.err
    assert Path("of_free").read_text() == "x"
    assert attnlab("train", *tiny, "study.on_end=true").status == 2
