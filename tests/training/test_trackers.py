"""Views of a run can fail in any way without a training noticing."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import make_task

from attnlab.training import RunDirectory, TrainerSettings, build_trainer, resolve
from attnlab.training.sinks import Sink
from attnlab.training.trackers import (
    LONGEST_ID,
    RunName,
    Tracking,
    build_loggers,
    evaluation_part,
    resolve_wandb_mode,
    run_id,
)

CONF = Path(__file__).parents[2] / "conf" / "logger"


def test_every_choice_of_the_group_is_a_tracking():
    found = {}
    for path in CONF.glob("*.yaml"):
        fields = yaml.safe_load(path.read_text())
        assert fields.pop("_target_") == "attnlab.training.Tracking"
        found[path.stem] = Tracking(**fields)
    assert found == {"jsonl": Tracking(), "wandb": Tracking(wandb=True), "tensorboard": Tracking(tensorboard=True)}


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": " Online "}, "online"),
    ],
)
def test_the_mode_is_asked_for_or_online_only_with_a_key(tmp_path, environ, mode):
    assert resolve_wandb_mode({"HOME": str(tmp_path), **environ})[0] == mode


def test_a_key_in_the_netrc_file_counts(tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password k\n")
    assert resolve_wandb_mode({"HOME": str(tmp_path)}) == ("online", "a key is stored in the netrc file")
    assert resolve_wandb_mode({"HOME": str(tmp_path), "WANDB_BASE_URL": "https://own.example"})[0] == "offline"


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="WANDB_MODE=on: accepted are online, offline, disabled, shared"):
        resolve_wandb_mode({"WANDB_MODE": "on"})


def test_ids_are_fixed_readable_and_different():
    assert run_id("position_length", "position=alibi", 3) == "position_length-position-alibi-s3"
    assert evaluation_part("test") == "-evaluate-test"
    assert evaluation_part("validation", "best") == "-evaluate-validation-best"
    parts = {evaluation_part(split, "best") for split in ("newstest 2013", "x" * 40 + "a", "x" * 40 + "b")}
    assert len(parts) == 3
    assert max(map(len, parts)) + LONGEST_ID < 128
    long = {run_id("study", "x" * 200 + end, 1) for end in "ab"}
    assert len(long) == 2
    assert all(len(name) <= LONGEST_ID and name.endswith("-s1") for name in long)


def test_a_sink_tells_its_first_error_and_is_silent_then():
    said, seen = [], []

    def log(values, step):
        seen.append(step)
        raise RuntimeError("server gone")

    sink = Sink("wandb", log, log, None, said.append)
    for step in (1, 2):
        sink.log_metrics({"a": 1.0}, step)
    assert said == ["wandb: RuntimeError: server gone; this run goes on without it"]
    assert seen == [1]


def fit(path: Path, tracking: Tracking) -> tuple[list[str], list[dict]]:
    from tiny_run import TinyData

    directory, said = RunDirectory(path / "study" / "cell" / "seed=0"), []
    directory.claim()
    name = RunName("study", "cell", 0, {"position": "alibi"})
    loggers = build_loggers(tracking, directory, name, path, {"model": {"d_model": 16}}, say=said.append)
    trainer = build_trainer(
        TrainerSettings(max_steps=4, device="cpu", validate_every=2), resolve("32", "cpu", 16), loggers
    )
    trainer.fit(make_task(), datamodule=TinyData())
    directory.release()
    return said, [json.loads(line) for line in directory.metrics.read_text().splitlines()]


def test_tensorboard_writes_into_the_run_directory(tmp_path):
    said, lines = fit(tmp_path, Tracking(tensorboard=True))
    assert said == []
    assert len(lines) == 3
    assert list((tmp_path / "study" / "cell" / "seed=0" / "tensorboard").glob("events.*"))


def test_without_tensorboard_installed_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said, lines = fit(tmp_path, Tracking(tensorboard=True))
    assert said == ["tensorboard is not installed (pip install 'attnlab[tensorboard]'); this run is logged without it"]
    assert len(lines) == 3


def test_wandb_that_raises_whatever_it_is_asked_leaves_the_run_alone(tmp_path, monkeypatch):
    import attnlab.training.trackers as trackers

    asked = []

    def refuse(tracking, name, runs_dir, config, mode):
        asked.append(mode)
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr(trackers, "_open_wandb", refuse)
    monkeypatch.setattr(trackers, "_silent", set())
    said, lines = fit(tmp_path, Tracking(wandb=True, mode="online"))
    assert asked == ["online", "offline"]
    assert said == [
        "wandb: ConnectionError: no route; this run is logged offline",
        "wandb: ConnectionError: no route; this run goes on without it",
    ]
    assert len(lines) == 3
    fit(tmp_path / "next", Tracking(wandb=True, mode="online"))
    assert asked == ["online", "offline", "offline"]  # the next run of the process does not wait for the server again
    assert fit(tmp_path / "disabled", Tracking(wandb=True, mode="disabled"))[0] == []
    assert len(asked) == 3
