"""metrics.jsonl holds whole lines only, whatever a killed writer left."""

import csv
import errno
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor
from tiny_run import make_task, train

from attnlab.training import CannotWrite, RunDirectory, TrainerSettings, build_trainer, resolve
from attnlab.training.loggers import JsonLines, View, _WandB, build_loggers
from attnlab.training.run_directory import cut_partial_line
from attnlab.training.tracking import LONGEST_ID, RunName, Tracking, evaluation_part, resolve_wandb_mode, run_id


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_format_that_readers_expect(tmp_path):
    lines = JsonLines(tmp_path / "run" / "metrics.jsonl", attempt=3)
    lines.log_metrics({"train/loss": 2.5, "tokens": 4096, "seconds": 1.5}, 10)
    lines.finalize("success")
    lines.log_metrics({"test/loss@2x": 2}, 20)  # the file opens again
    assert read(lines.path) == [
        {"step": 10, "tokens": 4096, "seconds": 1.5, "attempt": 3, "values": {"train/loss": 2.5}},
        {"step": 20, "tokens": None, "seconds": None, "attempt": 3, "values": {"test/loss@2x": 2.0}},
    ]


def test_what_is_not_finite_is_null_and_named(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.log_metrics({"a": float("nan"), "b": float("-inf"), "c": 1.0}, 1)
    (line,) = read(lines.path)
    assert line["values"] == {"a": None, "b": None, "c": 1.0}
    assert line["non_finite"] == ["a", "b"]


def test_a_second_attempt_appends(tmp_path):
    for attempt in (1, 2):
        lines = JsonLines(tmp_path / "metrics.jsonl", attempt)
        lines.log_metrics({"a": 1.0}, attempt)
        lines.finalize("success")
    assert [line["attempt"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=5), st.binary(max_size=200_000))
def test_only_the_partial_line_is_cut(tmp_path_factory, lines, rest):
    rest = rest.replace(b"\n", b"-")
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    whole = b"".join(line + b"\n" for line in lines)
    path.write_bytes(whole + rest)
    cut_partial_line(path)
    assert path.read_bytes() == whole


def test_a_partial_line_longer_than_a_block_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"x" * 200_000)
    JsonLines(path).log_metrics({"a": 1.0}, 2)
    assert [line["step"] for line in read(path)] == [1, 2]


def test_a_missing_file_is_no_mistake(tmp_path):
    cut_partial_line(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_disk_that_fills_up_within_a_line_takes_nothing_of_it(tmp_path, monkeypatch):
    """A full disk first takes as many bytes as fit, and then refuses."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.log_metrics({"loss": 1.0}, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    given, room = os.write, [20]

    def fill_up(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = given(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(CannotWrite, match=r"cannot write .*metrics\.jsonl: the disk is full"):
        lines.log_metrics({"loss": 0.5}, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    # A write that is cut short for another reason is gone on with.
    monkeypatch.setattr(os, "write", lambda descriptor, data: given(descriptor, data[:7]))
    lines.log_metrics({"loss": 0.5}, 2)
    assert [line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())] == [1, 2]


CONF = Path(__file__).parents[2] / "conf" / "logger"


def test_every_choice_of_the_group_is_a_tracking_or_a_logger_of_lightnings():
    found = {}
    for path in CONF.glob("*.yaml"):
        fields = yaml.safe_load(path.read_text())
        if (target := fields.pop("_target_")) == "attnlab.training.Tracking":
            found[path.stem] = Tracking(**fields)
        else:
            assert issubclass(getattr(loggers, target.rpartition(".")[2]), loggers.Logger)
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

    sink = View("wandb", log, log, None, said.append)
    for step in (1, 2):
        sink.log_metrics({"a": 1.0}, step)
    assert said == ["wandb: RuntimeError: server gone; this run goes on without it"]
    assert seen == [1]


def fit(path: Path, tracking: Tracking, max_steps: int = 4) -> tuple[list[str], list[dict]]:
    from tiny_run import TinyData

    directory, said = RunDirectory(path / "study" / "cell" / "seed=0"), []
    directory.claim()
    name = RunName("study", "cell", 0, {"position": "alibi", "optimizer.lr": "1e-3", "model.num_layers": 2})
    views = build_loggers(tracking, directory, name, path, {"config": {"model": {"d_model": 16}}}, say=said.append)
    trainer = build_trainer(
        TrainerSettings(max_steps=max_steps, device="cpu", val_check_interval=2), resolve("32", "cpu"), views
    )
    task = make_task()
    trainer.fit(task, datamodule=TinyData())
    task.report({"test/loss": 1.5, "test/loss@2x": 2.5})
    for view in views:
        view.finalize("success")
    directory.release()
    return said, [json.loads(line) for line in directory.metrics.read_text().splitlines()]


def other(target: str, **fields: object) -> Tracking:
    """As a run is told of a logger of Lightning's."""
    tracking = Tracking()
    tracking.others["mine"] = partial(getattr(loggers, target), **fields)
    return tracking


def test_tensorboard_writes_into_the_run_directory_and_shows_choices_beside_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    said, lines = fit(tmp_path, Tracking(tensorboard=True))
    assert said == []
    assert len(lines) == 4
    folder = tmp_path / "study" / "cell" / "seed=0" / "tensorboard"
    assert [path.name.split(".")[0] for path in folder.iterdir()] == ["events"]  # no run of its own for what was chosen
    events = EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    chosen = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert chosen == {"position": "alibi", "lr": 1e-3, "num_layers": 2, "seed": 0}
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert {info.name.tag for info in experiment.metric_infos} == {"test/loss", "test/loss@2x"}
    assert events.Scalars("test/loss@2x")[0].value == 2.5
    assert metadata.SESSION_END_INFO_TAG in content


def test_a_logger_of_lightnings_has_every_value_and_what_was_chosen(tmp_path):
    said, lines = fit(tmp_path, other("CSVLogger", save_dir=tmp_path, name="csv"))
    assert said == []
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open()))
    told = [{name: float(value) for name, value in row.items() if value and name != "step"} for row in rows]
    expected = [{**line["values"], "tokens": line["tokens"], "seconds": line["seconds"]} for line in lines]
    assert sorted(map(sorted, told)) == sorted(map(sorted, expected))
    assert sum(row.get("test/loss@2x", 0) for row in told) == 2.5
    chosen = yaml.safe_load((tmp_path / "csv" / "version_0" / "hparams.yaml").read_text())
    assert chosen == {"position": "alibi", "lr": 1e-3, "num_layers": 2, "seed": 0, "config": {"model": {"d_model": 16}}}


@pytest.mark.slow
def test_mlflow_has_a_run_with_its_figures_which_goes_on_after_a_stop(tmp_path):
    """Read back by MLflow's own client from its own store."""
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = other("MLFlowLogger", tracking_uri=address, experiment_name="study", run_name="cell seed 0")
    assert fit(tmp_path, tracking)[0] == []
    client = MlflowClient(address)
    ids = [client.get_experiment_by_name("study").experiment_id]
    (run,) = client.search_runs(ids)
    assert (run.info.run_name, run.info.status) == ("cell seed 0", "FINISHED")
    chosen = {"position": "alibi", "lr": "0.001", "num_layers": "2", "seed": "0", "config/model/d_model": "16"}
    assert run.data.params == chosen
    assert (run.data.metrics["test/loss"], run.data.metrics["test/loss_at_2x"]) == (1.5, 2.5)
    steps = [one.step for one in client.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [2, 4]
    said, lines = fit(tmp_path, tracking, max_steps=6)
    assert said == []
    (again,) = client.search_runs(ids)
    assert again.info.run_id == run.info.run_id
    assert again.data.metrics["val/loss"] == next(
        line["values"]["val/loss"] for line in lines[::-1] if "val/loss" in line["values"]
    )


@pytest.mark.parametrize("method", ["__init__", "log_hyperparams", "log_metrics", "finalize"])
def test_a_logger_that_raises_is_told_once_and_harms_nothing(tmp_path, monkeypatch, method):
    def refuse(*_, **__):
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr(loggers.CSVLogger, method, refuse)
    said, lines = fit(tmp_path, other("CSVLogger", save_dir=tmp_path))
    assert len(lines) == 4
    (line,) = said
    assert line.startswith("mine: ConnectionError: no route")
    assert line.endswith("; this run goes on without it")


def test_a_runs_factors_are_short_and_numbers_are_numbers():
    choices = {
        "position": "alibi",
        "optimizer.lr": "1e-3",
        "model.num_layers": "2",
        "model.tied": "true",
        "a.x": 1,
        "b.x": "no",
    }
    name = RunName.of(
        {
            "study": "s",
            "cell": choices,
            "cell_name": "c",
            "seed": 3,
            "choices": {"norm": "rms_norm", "position": "rotary"},
        }
    )
    factors = {
        "norm": "rms_norm",
        "position": "alibi",
        "lr": 1e-3,
        "num_layers": 2,
        "tied": True,
        "a.x": 1,
        "b.x": "no",
    }
    assert name.factors() == factors
    assert [type(value) for value in name.factors().values()] == list(map(type, factors.values()))


class Run:
    """Stands for a run of W&B."""

    def __init__(self):
        self.defined, self.logged, self.summary = {}, [], {}

    def define_metric(self, name, hidden=False, summary=None):
        self.defined[name] = (hidden, summary)

    def log(self, values, step):
        self.logged.append((step, values))


def test_wandb_gets_axes_best_values_by_direction_and_final_figures_alone():
    run = Run()
    recorded = {"mine": {"better": "higher", "words": ""}}
    view = _WandB(run, {"metrics": recorded, "flops_per_token": 10}, is_over=False)
    for step in (1, 2):
        view.log(
            {"val/loss": 1.0, "val/mine@4x": 0.5, "val/unknown": 1.0, "lr": 0.1, "tokens": 32 * step, "seconds": 1.0},
            step,
        )
    view.log({"test/loss@2x": 1.5, "tokens": 64, "seconds": 2.0}, 2)
    axes = dict.fromkeys(("tokens", "seconds", "flops"), (True, None))
    assert run.defined == axes | {"val/loss": (False, "min,last"), "val/mine@4x": (False, "max,last")}
    assert [(step, values["flops"]) for step, values in run.logged] == [(1, 320), (2, 640)]
    assert run.summary == {"test/loss@2x": 1.5}
    over = _WandB(Run(), {}, is_over=True)
    over.log({"val/loss": 1.0}, 9)
    assert (over.run.summary, over.run.logged) == ({"val/loss": 1.0}, [])


def test_without_tensorboard_installed_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said, lines = fit(tmp_path, Tracking(tensorboard=True))
    assert said == ["tensorboard is not installed (pip install 'attnlab[tensorboard]'); this run is logged without it"]
    assert len(lines) == 4


def test_wandb_that_raises_whatever_it_is_asked_leaves_the_run_alone(tmp_path, monkeypatch):
    from attnlab.training import loggers as ours

    asked = []

    def refuse(tracking, name, runs_dir, config, mode):
        asked.append(mode)
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr(ours, "_open_wandb", refuse)
    monkeypatch.setattr(ours, "_silent", set())
    said, lines = fit(tmp_path, Tracking(wandb=True, mode="online"))
    assert asked == ["online", "offline"]
    assert said == [
        "wandb: ConnectionError: no route; this run is logged offline",
        "wandb: ConnectionError: no route; this run goes on without it",
    ]
    assert len(lines) == 4
    fit(tmp_path / "next", Tracking(wandb=True, mode="online"))
    assert asked == ["online", "offline", "offline"]  # the next run of the process does not wait for the server again
    assert fit(tmp_path / "disabled", Tracking(wandb=True, mode="disabled"))[0] == []
    assert len(asked) == 3


@pytest.mark.parametrize("parts", [1, 2])
def test_values_of_callbacks_stand_in_the_line_of_their_step(tmp_path, parts):
    """What comes before the step's line is in it; what comes after has its tokens; no step is below the one before."""
    watchers = (LearningRateMonitor(), DeviceStatsMonitor())
    settings = {"max_steps": 7, "val_check_interval": 3, "log_every_n_steps": 2, "accumulate_grad_batches": parts}
    found = read(train(tmp_path, make_task(), callbacks=watchers, **settings).metrics)
    steps = [line["step"] for line in found]
    assert steps == sorted(steps)
    own = {line["step"]: line for line in found if "train/loss" in line["values"]}
    assert [*own] == [1, 2, 4, 6]
    for step, line in own.items():
        assert [line["values"].get(f"lr-AdamW/pg{group}") is not None for group in (1, 2)] == [step > 1] * 2
        assert step == 1 or line["values"]["lr-AdamW/pg1"] == line["values"]["train/lr"]
        began = any("on_train_batch_start" in name for name in line["values"])
        assert began == (step > 1)
    ends = [line for line in found if any("on_train_batch_end" in name for name in line["values"])]
    assert {line["step"] for line in ends} == {2, 4, 6}
    for line in found:
        if line["step"] in own and not any(name.startswith("val/") for name in line["values"]):
            at = own[line["step"]]
            assert (line["tokens"], line["seconds"]) == (at["tokens"], at["seconds"])


def test_what_no_line_of_its_step_follows_is_written_all_the_same(tmp_path):
    lines, at = JsonLines(tmp_path / "metrics.jsonl"), [3]
    lines.step_now = lambda: at[0]
    lines.log_metrics({"lr": 0.1}, 2)
    lines.log_metrics({"memory": 5.0}, 2)
    at[0] = 4
    lines.log_metrics({"lr": 0.2}, 3)
    lines.log_metrics({"train/loss": 1.0, "tokens": 8, "seconds": 0.5}, 4)
    at[0] = 5
    lines.log_metrics({"lr": 0.3}, 4)
    lines.finalize("success")
    assert [(line["step"], line["tokens"], line["values"]) for line in read(lines.path)] == [
        (3, None, {"lr": 0.1, "memory": 5.0}),
        (4, 8, {"lr": 0.2, "train/loss": 1.0}),
        (5, None, {"lr": 0.3}),
    ]
