"""What a run leaves to look at: its log, samples and heads; and what its views hold, read back from their own files."""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import sacrebleu
import torch
from PIL import Image
from tests.processes import program
from wandb.util import get_core_path

from attnlab.analysis.file_cache import flatten
from attnlab.config import UsageError
from attnlab.runs.views import MOST_POSITIONS, Examples, examples_of, first_example, settle_mode
from attnlab.training import Picture, RunDirectory, Table, read_checkpoint
from attnlab.training.run_directory import read_json, write_json

RUN = "offline-run-20260101_00000{}-{}"


def test_the_example_is_one_and_short_where_nothing_points_into_it():
    batch = {"tokens": torch.arange(400).view(4, 100), "is_token": torch.ones(4, 100, dtype=torch.bool)}
    batch |= {"images": torch.zeros(4, 3, 80, 80), "shares": torch.zeros(4, 90), "labels": torch.arange(4)}
    one = first_example({**batch, "name": "a name"})
    assert one["tokens"].tolist() == [list(range(MOST_POSITIONS))]
    assert one["is_token"].shape == (1, MOST_POSITIONS)
    assert (one["images"].shape, one["shares"].shape, one["labels"].tolist()) == ((1, 3, 80, 80), (1, 90), [0])
    assert one["name"] == "a name"
    assert first_example({**batch, "answers": torch.tensor([[98, 99]] * 4)})["tokens"].shape == (1, 100)


def test_a_run_leaves_its_log_samples_and_heads(attnlab, tiny):
    assert attnlab("train", *tiny, "run_dir=run", "progress=off").status == 0
    log = Path("run/log.txt").read_text()
    assert "plan: " in log
    assert "val/loss" in log.splitlines()[-1] or "test/" in log
    left = json.loads(Path("run/outputs/samples.json").read_text())
    assert left["columns"] == ["text", "goes on", "model goes on"]
    assert all(len(row) == 3 for row in left["rows"])
    assert "columns: heads" in left["attention"]
    assert Image.open("run/outputs/attention.png").mode == "L"


def test_a_run_that_fails_leaves_the_traceback(attnlab, tiny, monkeypatch):
    def fail(*_):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("attnlab.training.find_resume", fail)
    assert attnlab("train", *tiny, "run_dir=run").status == 1
    log = Path("run/log.txt").read_text()
    assert "Traceback" in log
    assert log.rstrip().endswith("RuntimeError: the disk caught fire")


def test_what_cannot_be_shown_is_told_and_harms_nothing(tmp_path):
    told = []
    assert examples_of(None, None, told.append) == Examples()
    assert len(told) == 2
    assert all(line.startswith("nothing to show: AttributeError") for line in told)
    Examples().leave(tmp_path, told.append)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "outputs").write_text("a file")
    table, picture = Table(("a",), [("b",)]), Picture(torch.zeros(2, 2, dtype=torch.uint8).numpy())
    Examples(table, picture).leave(tmp_path, told.append)
    assert told[-1].startswith("cannot write ")


def test_views_go_together_and_a_strangers_is_one_of_them(attnlab, here, tiny):
    (here / "conf" / "logger").mkdir(parents=True)
    own = "_target_: lightning.pytorch.loggers.CSVLogger\nsave_dir: ${run_dir}\nname: mine\nversion: only\n"
    (here / "conf" / "logger" / "own.yaml").write_text(own)
    (here / "conf" / "logger" / "team.yaml").write_text("defaults: [tensorboard]\ntags: [team]\n")
    words = ["--config-dir", "conf", *tiny, "trainer.max_steps=2", "task.evaluation_lengths=[1]", "run_dir=run"]
    said = attnlab("train", *words, "logger=[team,csv,own]", "logger.own.version=changed")
    assert (said.status, said.err) == (0, "")
    kept = read_json(Path("run/run.json"))["config"]["logger"]
    assert (kept["tensorboard"], kept["tags"], kept["own"]["version"]) == (True, ["team"], "changed")
    assert list(Path("run/tensorboard").glob("events.*"))
    tables = [Path("run", folder, "metrics.csv").read_text() for folder in ("csv/version_0", "mine/changed")]
    assert tables[0] == tables[1]
    assert "test/loss@1x" in tables[0]
    said = attnlab("train", *words, "logger=own", "progress=plain")  # how it is watched makes no other run
    assert "nothing to do" in said.err
    (here / "conf" / "logger" / "broken.yaml").write_text("_target_: attnlab.layers.Rotary\n")
    for logger, message in (
        ("[own,tensorbord]", "Did you mean tensorboard?"),
        ("wandb", "logger.own.version: own is not among the logger of this run; add logger=[own]"),
        (
            "[own,wandb] logger.wandb.project=x",
            "logger.wandb.project: there is no such field. Did you mean logger.project?",
        ),
        ("[own] logger.own.nam=x", "logger.own.nam: there is no such field. Did you mean logger.own.name?"),
        ("[own,broken]", "logger.broken must be derived from lightning.pytorch.loggers.Logger"),
    ):
        said = attnlab("train", *words, *f"logger={logger}".split(), "logger.own.version=1")
        assert (said.status, message in said.err) == (2, True), said.err


def config(**logger):
    return {"runs_dir": "runs", "logger": {"wandb": True, "mode": "auto"} | logger}


def test_the_mode_is_decided_once_for_all_runs_and_said(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert settle_mode([config(), config()]) == ["++logger.mode=offline"]
    said = capsys.readouterr().err
    assert said == "W&B: offline, as WANDB_MODE is set; its files stand in runs/wandb; `attnlab sync` sends them\n"
    assert settle_mode([config(mode="online"), config(wandb=False)]) == []
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(UsageError, match="WANDB_MODE=on: accepted are online"):
        settle_mode([config()])


def test_a_mode_that_wandb_does_not_have_is_refused_before_anything_runs(attnlab, here, left, tiny):
    said = attnlab("train", *tiny, "logger=wandb", "logger.mode=on")
    assert said.status == 2
    assert "logger.mode=on: accepted are auto, online, offline" in said.err
    assert left(here) == []


def test_translations_and_heads_are_shown_in_tensorboard(attnlab, here, library, tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    of_text = ("data", "task.evaluation")
    words = [word for word in tiny if not word.startswith(of_text)]
    data = [
        "data=parallel_text",
        f"data.path={library / 'pairs.tsv'}",
        "data.language_pair=en-de",
        "data.source.split=[0.8,0.1,0.1]",
    ]
    shown = ["logger=tensorboard", "logger.attention_maps=true"]
    said = attnlab(
        "train",
        "model=encoder_decoder",
        *words,
        *data,
        *shown,
        "task.num_beams=1",
        "task.max_extra_length=5",
        "run_dir=run",
    )
    assert (said.status, said.err) == (0, "")
    events = EventAccumulator("run/tensorboard").Reload()
    (picture,) = events.Images("attention")
    assert (picture.width, picture.height) == (
        2 * 66 - 2,
        3 * 66 - 2,
    )  # two heads; encoder, decoder, and the one to the other
    (samples,) = events.Tensors("test/samples/text_summary")
    head, _, *lines = samples.tensor_proto.string_val[0].decode().splitlines()
    assert head == "| of | source | reference | translation | chrF |"
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    translations = [line.strip() for line in Path("run/outputs/test.translations.txt").read_text().splitlines()]
    assert all(source.split()[::-1] == reference.split() for _, source, reference, _, _ in rows)
    by_kind = {kind: [row for row in rows if row[0] == kind] for kind in ("first", "best", "worst")}
    assert [row[3] for row in by_kind["first"]] == translations[:8]
    assert sum(map(len, by_kind.values())) == len(rows) == min(24, len(translations)) > 10
    scores = {kind: [float(row[4]) for row in of_kind] for kind, of_kind in by_kind.items()}
    assert scores["best"] == sorted(scores["best"], reverse=True)
    assert scores["worst"] == sorted(scores["worst"])
    for _, _, reference, translation, score in rows:
        assert float(score) == round(sacrebleu.sentence_chrf(translation, [reference]).score, 1)
    left = json.loads(Path("run/outputs/samples.json").read_text())
    assert left["columns"] == ["of", "source", "reference", "translation", "chrF"]
    assert len(left["rows"]) == len(rows)
    assert Image.open("run/outputs/attention.png").size == (picture.width, picture.height)


PROGRAM = """
import os
import sys
from attnlab.cli.main import main
from attnlab.training import Checkpoints
tiny = sys.argv[1:]
assert main(["train", "-m", *tiny, "position=none,alibi", "cell=${hydra:runtime.choices.position}", "study.name=two", "logger.attention_maps=true"]) == 0
assert main(["evaluate", "runs/two/none/seed=0"]) == 0
assert main(["evaluate", "runs/two/alibi/seed=0", "--split", "validation", "--checkpoint", "best"]) == 0
saved = Checkpoints.on_validation_end
def stop_after_saving(self, trainer, module):
    saved(self, trainer, module)
    if trainer.global_step == 5:
        raise SystemExit(143)
Checkpoints.on_validation_end = stop_after_saving
alone = ["train", *tiny, "study.name=requeued", "cell=one", "logger.tags=[a,b]",
         "callbacks=[lr_monitor]", "trainer.log_every_n_steps=2"]
try:
    main(alone)
except SystemExit:
    Checkpoints.on_validation_end = saved
    assert main(alone) == 0
assert "WANDB_MODE" not in os.environ
from attnlab.training import loggers
loggers.PATIENCE_SECONDS = 1.0
os.environ |= {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
for name in ("one", "two"):
    assert main(["train", *tiny, "study.name=silent", f"cell={name}"]) == 0
"""


@cache
def inspect(folder: Path, *words: str) -> str:
    """What `wandb leet inspect` says of a file, by the program that the command starts after its own imports."""
    (file,) = folder.glob("*.wandb")
    words = (
        get_core_path(),
        "leet",
        "inspect",
        "--no-observability",
        "--json",
        *words,
        f"--run-file={file.absolute()}",
        str(folder.parent),
    )
    return subprocess.run(words, capture_output=True, check=True).stdout.decode()


def records_of(folder: Path, kind: str) -> list[dict]:
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    return [record[kind] for record in records if record["type"] == kind]


def header_of(folder: Path) -> dict:
    return records_of(folder, "run")[0]


def history_of(folder: Path) -> list[dict]:
    return [record["item"] for record in records_of(folder, "history")]


def steps_of(folder: Path) -> list[int]:
    return [item["_step"] for item in history_of(folder)]


@pytest.mark.slow
def test_offline_runs_hold_what_they_were_and_a_requeued_one_stays_the_same(attnlab, here, tiny, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(here))
    done = program(PROGRAM, *tiny, "logger=wandb")
    assert done.wait(280) == 0, done.said
    said = done.said
    assert (
        said.count("W&B: offline, as no key was found; its files stand in runs/wandb; `attnlab sync` sends them") == 3
    )
    assert said.count("; this run is logged offline") == said.count("wandb: CommError") == 1
    assert "goes on without it" not in said
    assert said.count("W&B: offline, as the training was; its files stand in runs/wandb; `attnlab sync`") == 2
    folders: dict[str, list[Path]] = {}
    for path in sorted(Path("runs/wandb").glob("offline-run-*")):
        name = path.name.split("-", 3)[3]
        folders.setdefault(re.sub(r"(-s0)-1$", r"\1", name), []).append(path)  # wandb counts folders of one second
    evaluated = {"none": "test", "alibi": "validation-best"}
    once = ["two-none-s0", "two-alibi-s0", "silent-one-s0", "silent-two-s0"]
    once += [f"two-{cell}-s0-evaluate-{part}" for cell, part in evaluated.items()]
    assert {name: len(found) for name, found in folders.items()} == dict.fromkeys(once, 1) | {"requeued-one-s0": 2}
    for cell in evaluated:
        (folder,) = folders[f"two-{cell}-s0"]
        found, run = json.loads(inspect(folder, "--summary")), Path("runs/two", cell, "seed=0")
        record, final = read_json(run / "run.json"), read_json(run / "status.json")["final"]
        told = found["config"]
        assert (found["project"], found["exit_code"], found["step"]) == ("attnlab", 0, 10)
        short = {"cell": cell, "cell_name": cell, "seed": 0, "position": cell, "norm": "layer_norm"}
        assert {name: told[name] for name in short} == short
        for key in ("config", "parameters", "git", "versions", "study"):
            assert flatten({key: told[key]}) == flatten({key: record[key]})  # W&B keeps no empty table
        curves = {name: values for name, values in found["summary"].items() if name.startswith("val/")}
        best = read_json(run / "status.json")["best"]["value"]
        assert curves["val/loss"] == {"min": pytest.approx(best), "last": pytest.approx(final["val/loss"])}
        best_and_last = {name: values for name, values in curves.items() if isinstance(values, dict)}
        told_last = found["summary"] | {name: values["last"] for name, values in best_and_last.items()}
        assert {name: told_last[name] for name in final} == pytest.approx(final)
        told_once = {name for name in final if name.startswith("test/")}
        assert told_once
        assert not told_once & {key for item in history_of(folder) for key in item}
        assert found["summary"]["flops"] == record["flops_per_token"] * found["summary"]["tokens"]
        assert found["summary"]["attention"]["width"] == 2 * 66 - 2
        shown = {
            path.name.split("_10_")[0]: json.loads(path.read_text())
            for path in (folder / "files/media/table/test").iterdir()
        }
        assert shown["by_part"]["data"][1][:2] == ["2x", pytest.approx(final["test/loss@2x"])]
        assert shown["samples"]["columns"] == ["text", "goes on", "model goes on"]
        header = header_of(folder)
        assert (header["run_group"], header["job_type"], header["tags"]) == (cell, "train", ["two", "train"])
        axes = {one["name"]: one["options"] for one in records_of(folder, "metric")}
        assert all(axes[name]["hidden"] for name in ("tokens", "seconds", "flops"))
    for cell, part in evaluated.items():
        (folder,) = folders[f"two-{cell}-s0-evaluate-{part}"]
        found, run = json.loads(inspect(folder, "--summary")), Path("runs/two", cell, "seed=0")
        header = header_of(folder)
        assert (header["run_group"], header["job_type"]) == (cell, "evaluate")
        told, step = found["config"], read_checkpoint(run / f"checkpoints/{part[-4:]}.ckpt".replace("test", "last"))
        assert told["step"] == step["attnlab"]["step"]
        assert history_of(folder) == []
        assert (told["cell_name"], told["seed"], told["split"]) == (cell, 0, part.removesuffix("-best"))
    figures = json.loads(re.search(r"^\{.*?\}", done.said, re.MULTILINE | re.DOTALL)[0])
    logged = json.loads(inspect(folders["two-none-s0-evaluate-test"][0], "--summary"))["summary"]
    assert {name: logged[name] for name in figures} == pytest.approx(figures)
    before, after = map(steps_of, folders["requeued-one-s0"])
    assert (before[0], before[-1], after[-1]) == (1, 5, 10)
    assert min(after) > 5
    for folder, steps in zip(folders["requeued-one-s0"], ([2, 4], [6, 8, 10]), strict=True):
        items = history_of(folder)
        assert [item["_step"] for item in items if "lr-AdamW/pg1" in item] == steps
        assert [item["_step"] for item in items if "train/loss" in item and item["_step"] > 1] == steps
    assert '"preempting"' in inspect(folders["requeued-one-s0"][0])

    said = attnlab("sync", "--dry-run")
    assert (said.status, said.out.count("offline-run-")) == (0, 8)
    said = attnlab("sync", "two", "--dry-run")
    of_two = [path for name, found in folders.items() for path in found if name.startswith("two-")]
    assert sorted(said.out.splitlines()[1:]) == sorted(f"  {path}" for path in of_two)


def test_an_evaluation_is_logged_where_that_is_asked_for_and_never_fails_for_it(attnlab, here, left, tiny, monkeypatch):
    opened = []

    def refuse(tracking, name, runs_dir, config, mode):
        opened.append((name, str(runs_dir), mode))
        raise RuntimeError("no room")

    monkeypatch.setattr("attnlab.training.loggers._open_wandb", refuse)
    monkeypatch.setattr("attnlab.training.loggers._silent", set())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert attnlab("train", *tiny, "study.name=mine", "cell=c", "seed=3").status == 0
    run, before = "runs/mine/c/seed=3", left(here)
    quiet, said = attnlab("evaluate", run), attnlab("evaluate", run, "--wandb")
    assert (quiet.status, said.status) == (0, 0)
    assert "W&B" not in quiet.err
    assert said.out == quiet.out
    assert "W&B: offline, as WANDB_MODE is set; its files stand in runs/wandb" in said.err
    assert "wandb: RuntimeError: no room" in said.err
    ((name, runs_dir, mode),) = opened
    assert (name.study, name.cell, name.seed, name.job_type, name.part) == (
        "mine",
        "c",
        3,
        "evaluate",
        "-evaluate-test",
    )
    assert (runs_dir, mode) == ("runs", "offline")
    shutil.move("runs/mine/c/seed=3", "alone")
    assert attnlab("evaluate", "alone", "--wandb").status == 0
    assert [place for _, place, _ in opened] == ["runs", "runs"]
    shutil.move("alone", "runs/mine/c/seed=3")
    monkeypatch.setenv("WANDB_MODE", "on")
    assert attnlab("evaluate", run, "--wandb").status == 0
    assert left(here) == before


@pytest.fixture
def offline(here, monkeypatch):
    """Two studies with one offline run each, of which one still trains."""
    for number, study in enumerate(("done", "live")):
        directory = RunDirectory(Path("runs", study, "cell", "seed=0"))
        write_json(directory.run_json, {"study": study, "cell_name": "cell", "seed": 0})
        folder = Path("runs/wandb", RUN.format(number, f"{study}-cell-s0"))
        folder.mkdir(parents=True)
        (folder / f"run-{study}-cell-s0.wandb").touch()
    directory.claim()
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(here))
    yield
    directory.release()


STAND_IN = """
import os, sys
assert sys.argv[1:3] == ["sync", "--yes"] and "WANDB_MODE" not in os.environ, sys.argv
for folder in sys.argv[3:]:
    name = os.path.basename(folder).split("-", 3)[3]
    open(f"{folder}/run-{name}.wandb.synced", "w").close()
"""


def test_what_was_sent_is_not_sent_again_and_what_trains_waits(attnlab, offline, here, monkeypatch):
    said = attnlab("sync")
    assert said.status == 2
    assert (
        "W&B takes nothing without a key, and none was found: `wandb login` stores one, or set WANDB_API_KEY"
        in said.err
    )
    (here / "elsewhere" / "wandb").mkdir(parents=True)
    (here / "elsewhere" / "wandb" / "__main__.py").write_text(STAND_IN)
    (here / "elsewhere" / "wandb" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(here / "elsewhere"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = attnlab("sync")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        f"left for later, its run still trains: runs/wandb/{RUN.format(1, 'live-cell-s0')}",
        "runs: 1 offline W&B files to send:",
        f"  runs/wandb/{RUN.format(0, 'done-cell-s0')}",
        "sent 1; `wandb clean` takes away what was sent",
    ]
    assert attnlab("sync", "done").out == "done: no offline W&B files are left to send\n"
    assert attnlab("sync", "runs_dir=elsewhere").out == "elsewhere: no offline W&B files are left to send\n"


def test_two_files_of_one_run_that_began_in_the_same_second_are_both_sent(attnlab, offline):
    """W&B adds a number to the second one's directory, not to the file within."""
    folder = Path("runs/wandb", RUN.format(0, "done-cell-s0-1"))
    folder.mkdir()
    (folder / "run-done-cell-s0.wandb").touch()
    assert attnlab("sync", "done", "--dry-run").out.splitlines()[1:] == [
        f"  runs/wandb/{RUN.format(0, 'done-cell-s0')}",
        f"  {folder}",
    ]


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_one_message_in_wandbs_words(attnlab, offline, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_X_GRAPHQL_RETRY_MAX", "0")
    said = attnlab("sync", "done")
    assert said.status == 2
    assert "`wandb sync` did not send 1 of 1 files; what is left is sent by the same command:" in said.err
    assert "Traceback" not in said.err
