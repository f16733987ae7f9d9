"""Folders of the user's own groups: where they are looked for, that a study and a run remember them, and what is said of one that is gone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from attnlab.config import UsageError, absolute, find_parts, gone
from attnlab.config.compose import ConfigSpace
from attnlab.config.engine import split_hydra
from attnlab.config.identity import folders_of_start
from attnlab.studies.study_file import config_dirs_of
from attnlab.training.run_directory import FORMAT, read_json, write_json

PART = """
from attnlab.layers import ALiBi


class {name}(ALiBi):
    pass
"""
CHOICE = "_target_: {module}.{name}\n_partial_: true\n"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """Python's path as it was, after each test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def write_part(place: Path, module: str, name: str = "Mine", choice: str = "mine") -> Path:
    """A folder of groups with a choice, beside the module of its part."""
    (place / "conf" / "position").mkdir(parents=True)
    (place / f"{module}.py").write_text(PART.format(name=name))
    (place / "conf" / "position" / f"{choice}.yaml").write_text(CHOICE.format(module=module, name=name))
    return place / "conf"


def test_a_folder_is_known_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("conf") == str(tmp_path / "conf")
    assert absolute("../conf", tmp_path / "study") == str(tmp_path / "conf")
    assert absolute("file://conf") == f"file://{tmp_path}/conf"
    assert absolute("pkg://mine.conf") == "pkg://mine.conf"
    assert gone([str(tmp_path), "pkg://mine.conf", "file:///nowhere", "/nothing"]) == ["/nowhere", "/nothing"]


def test_modules_are_found_in_a_folder_and_beside_it_after_all_others(tmp_path):
    conf, before = write_part(tmp_path, "found_beside"), list(sys.path)
    find_parts([str(conf), str(tmp_path / "nowhere" / "conf"), f"file://{conf}"])
    assert sys.path == [*before, str(conf), str(tmp_path)]


def test_a_search_path_of_hydras_comes_after_attnlabs_own(tmp_path, capsys):
    conf = write_part(tmp_path, "of_search_path")
    (conf / "position" / "alibi.yaml").write_text(CHOICE.format(module="of_search_path", name="Mine"))
    words, hydra, places = split_hydra(["seed=1", f"hydra.searchpath=[{conf},pkg://attnlab]", "hydra.verbose=true"])
    assert (words, hydra, places) == (["seed=1"], ["hydra.verbose=true"], [f"file://{conf}", "pkg://attnlab"])
    with ConfigSpace(places[:1]) as space:
        assert space.compose(["position=mine"]).resolved["position"]["_target_"] == "of_search_path.Mine"
        assert space.compose(["position=alibi"]).resolved["position"]["_target_"] == "attnlab.layers.ALiBi"
        assert space.compose(["position=mine"]).config_dirs == [f"file://{conf}"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"hydra\.searchpath must be a list of folders, as in .*, got 'mine'"):
        split_hydra(["hydra.searchpath=mine"])
    with pytest.raises(UsageError, match=r"/nowhere: there is no such folder$"), ConfigSpace(["file:///nowhere"]):
        pass


def test_a_search_path_in_a_main_file_of_ones_own_is_hydras_too(tmp_path, capsys):
    conf, own = write_part(tmp_path / "team", "of_main_file"), tmp_path / "own"
    own.mkdir()
    main = yaml.safe_load((Path(__file__).parents[2] / "conf" / "train.yaml").read_text())
    main["hydra"]["searchpath"] = [f"file://{conf}"]
    (own / "train.yaml").write_text(yaml.safe_dump(main, sort_keys=False))
    with ConfigSpace([str(own)]) as space:
        composed = space.compose(["position=mine", "model.d_model=32"])
        assert composed.resolved["position"]["_target_"] == "of_main_file.Mine"
        assert composed.config_dirs == [str(own), f"file://{conf}"]
    assert "train.yaml takes the place of attnlab's own train.yaml" in capsys.readouterr().err


def test_who_names_folders_is_the_command_line_else_what_was_there_before(study, tmp_path):
    path = study("mine", config_dirs=["own"]) / "study.yaml"
    named, elsewhere = str(path.parent / "own"), Path("elsewhere/mine/plan.json")
    assert config_dirs_of(path, [], []) == ([named], str(path))
    assert config_dirs_of(path, [], ["/given"]) == (["/given", named], "")
    write_json(elsewhere, {"config_dirs": ["/before", named]})
    assert config_dirs_of(path, ["runs_dir=elsewhere"], []) == (["/before", named, named], f"{path} or {elsewhere}")
    write_json(tmp_path / "run" / "run.json", {"format": FORMAT, "config_dirs": ["/of_start"]})
    assert folders_of_start([f"model.init_from={tmp_path / 'run'}"]) == ["/of_start"]
    assert folders_of_start(["model.d_model=8"]) == []


@pytest.mark.slow
def test_a_study_and_its_runs_remember_the_folders(attnlab, study, tmp_path):
    team = write_part(tmp_path / "team", "remembered_part")
    write_part(tmp_path / "experiments" / "mine" / "own", "study_part", "Other", "other")
    study(
        "mine",
        seeds=1,
        factors={"position": ["mine", "other"]},
        baseline={"position": "mine"},
        config_dirs=["own/conf"],
    )
    words = ("sweep", str(tmp_path / "experiments" / "mine"), "hydra/launcher=basic")
    assert attnlab(*words, "--config-dir", "team/conf").status == 0
    folders = [str(team), str(tmp_path / "experiments" / "mine" / "own" / "conf")]
    plan, run = read_json(Path("runs/mine/plan.json")), Path("runs/mine/position=mine/seed=0")
    assert plan["config_dirs"] == read_json(run / "run.json")["config_dirs"] == folders
    assert [*read_json(run / "run.json")["sources"]] == ["remembered_part"]
    assert read_json(run / "run.json")["command"].startswith(f"attnlab train --config-dir {team} --config-dir ")

    # By their names alone, from elsewhere, in processes that know nothing of the folders: this one's workers.
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(run)
    command = [Path(sys.executable).with_name("attnlab"), "retry", str(tmp_path / "runs" / "mine")]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False)
    assert (done.returncode, read_json(run / "status.json")["state"]) == (0, "finished"), done.stderr
    for name in ("remembered_part", "study_part"):
        sys.modules.pop(name)
    sys.path[:] = [place for place in sys.path if not place.startswith(str(tmp_path))]
    said = attnlab("evaluate", str(run))
    assert (said.status, '"test/loss' in said.out) == (0, True), said.err

    said = attnlab(*words, "--cfg")  # the plan names what the command line does not
    assert (said.status, "2 of 2 runs are done" in said.out) == (0, True), said.err
    write_json(Path("runs/mine/plan.json"), {key: plan[key] for key in plan if key != "config_dirs"})  # one of old
    assert attnlab("status", "mine").status == 0
    said = attnlab(*words, "--cfg")
    assert (said.status, "position must be one of" in said.err) == (2, True)

    write_json(Path("runs/mine/plan.json"), plan)
    os.rename("team", "moved")
    sys.modules.pop("remembered_part")
    sys.path[:] = [place for place in sys.path if "team" not in place]
    gone = re.escape(str(team))
    for refused in (attnlab(*words), attnlab("retry", "mine")):
        assert refused.status == 2
        assert re.search(
            rf"--config-dir {gone}: there is no such folder, which .*plan\.json names; put it back, or give its new place by --config-dir$",
            refused.err,
        )
    assert f"--config-dir {team} is gone" in attnlab("status", "mine").out.replace("\n", "")
    said = attnlab("evaluate", str(run))
    assert said.status == 2
    assert re.search(
        rf"remembered_part.* was trained with --config-dir {gone}, which is gone: put it back, or", said.err
    )
    said = attnlab(*words, "--config-dir", "moved/conf", "--cfg")
    assert (said.status, "2 of 2 runs are done" in said.out) == (0, True), said.err
