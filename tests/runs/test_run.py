"""One run: begun, stopped, gone on with, finished; on disks that take nothing more."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from tests.conftest import forbid_writing
from tests.processes import command, ranks_from_server

from attnlab.training import Checkpoints, Task, read_checkpoint
from attnlab.training.run_directory import effective_state, read_json


def final(directory):
    return read_json(Path(directory) / "status.json")["final"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_others(attnlab, here, tiny):
    for place, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert attnlab("train", *tiny, "model.dropout=0.1", f"seed={seed}", f"run_dir={place}").status == 0
    assert final("a") == final("b")
    assert all(final("a")[name] != final("c")[name] for name in ("val/loss", "test/loss@1x"))


def test_a_command_composes_once(attnlab, here, tiny, monkeypatch):
    """A composition takes Hydra a fifth of a second."""
    composed, load = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *given, **named: composed.append(1) or load(*given, **named)
    )
    assert attnlab("train", *tiny, "run_dir=run").status == 0
    assert len(composed) == 1


def test_a_run_ends_with_where_it_is_and_a_command_that_uses_it(attnlab, here, tiny):
    said = attnlab("train", *tiny, "run_dir=a run", "progress=plain")
    *_, where, then = said.err.splitlines()
    assert re.fullmatch(r"finished in 'a run', after \d+ s of training", where)
    assert then == "next: attnlab generate 'a run' --prompt \"TEXT\""
    words = shlex.split(then.removeprefix("next: attnlab ").replace("TEXT", "the fox"))
    done = attnlab(*words, "--max-new-tokens", "2")
    assert (done.status, done.out.startswith("the fox")) == (0, True)


def test_every_task_names_a_command_for_its_runs():
    from attnlab import tasks
    from attnlab.cli.main import FILE_OF, parser

    found = [getattr(tasks, name) for name in tasks.__all__]
    used = {one.use for one in found if isinstance(one, type) and issubclass(one, Task)}
    assert len(used) > 3
    for words in map(shlex.split, used):
        assert parser(words[0]).parse_args(words).run == "RUN"
        assert words[0] in FILE_OF


def test_a_finished_run_is_left_as_it_is(attnlab, here, left, tiny):
    words = ["train", *tiny, "run_dir=run"]
    assert attnlab(*words).status == 0
    before = {path: (here / path).stat().st_mtime_ns for path in left(here)}
    said = attnlab(*words, "progress=auto")
    assert said.status == 0
    assert "run: finished already; nothing to do" in said.err
    assert {path: (here / path).stat().st_mtime_ns for path in left(here)} == before


def test_another_configuration_in_the_same_directory_is_refused_with_the_difference(attnlab, here, left, tiny):
    assert attnlab("train", *tiny, "run_dir=run").status == 0
    before = left(here)
    said = attnlab("train", *tiny, "run_dir=run", "optimizer.lr=0.5")
    assert said.status == 2
    assert "optimizer.lr: 0.001 -> 0.5" in said.err
    assert "study.name=NAME" in said.err
    assert left(here) == before


def test_an_interrupted_run_goes_on_to_the_same_numbers(attnlab, here, tiny, monkeypatch):
    assert attnlab("train", *tiny, "run_dir=whole").status == 0

    saved = Checkpoints.on_validation_end

    def stop_after_saving(self, trainer, module):
        saved(self, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "on_validation_end", stop_after_saving)
    said = attnlab("train", *tiny, "run_dir=parts")
    assert said.status != 0
    assert "Traceback" not in said.err
    assert effective_state("parts") == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(here)

    said = attnlab("train", *tiny, "run_dir=parts", "progress=plain")
    assert said.status == 0
    assert "going on from parts/checkpoints/step=5.ckpt" in said.err
    assert sorted(path.name for path in Path("parts/attempts").iterdir()) == ["1.json", "2.json"]
    assert final("parts") == final("whole")


@pytest.mark.parametrize("progress", ["off", "plain", "auto"])
def test_a_run_that_diverges_says_so_and_is_no_success(attnlab, here, tiny, progress):
    own = ["optimizer.lr=1e12", "schedule=constant", "trainer.gradient_clip_val=null", f"progress={progress}"]
    said = attnlab("train", *tiny, *own, "run_dir=run")
    assert said.status == 1
    assert re.search(
        r"^run: diverged: the loss was not finite at step \d+; not finite first: the output of ", said.err, re.MULTILINE
    ), said.err
    assert "Traceback" not in said.err
    assert effective_state("run") == "diverged"


def test_what_a_run_is_stands_in_its_directory(attnlab, here, tiny):
    assert attnlab("train", *tiny, "position=alibi", "seed=2", "study.name=mine").status == 0
    [directory] = Path("runs/mine").glob("*/seed=2")
    record = read_json(directory / "run.json")
    assert record["study"] == "mine"
    assert record["seed"] == 2
    assert record["cell"]["position"] == "alibi"
    assert record["config"]["position"]["_target_"].endswith("ALiBi")
    assert record["parameters"]["total"] > record["parameters"]["non_embedding"] > 0
    assert (directory / ".hydra" / "overrides.yaml").is_file()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 10
    assert lines[-1]["values"]["test/loss@1x"] == final(directory)["test/loss@1x"]


def test_a_read_only_disk(attnlab, tiny, library, read_only_folder, monkeypatch):
    disk = read_only_folder / "disk"
    disk.mkdir()
    monkeypatch.setenv("ATTNLAB_CACHE", str(read_only_folder / "cache"))
    text = shutil.copy(library / "text.txt", read_only_folder)
    assert attnlab("data", "prepare", "text", f"data.path={text}").status == 0
    forbid_writing(read_only_folder)
    said = attnlab("train", *tiny, f"data.path={text}", f"runs_dir={disk}")
    assert said.status == 1
    assert said.err.startswith("attnlab: cannot write")
    assert "permission is denied" in said.err
    assert len(said.err.splitlines()) == 1
    assert list(disk.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by the superuser only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 72])  # KB: nothing can be written, all but a checkpoint
def test_a_full_disk(attnlab, here, left, tiny, small_disk, free):
    with (small_disk / "filler").open("wb", buffering=0) as file:
        file.write(b"x" * 1024 * (400 - free))
    said = attnlab("train", *tiny, f"run_dir={small_disk}/runs/run")
    assert said.status == 1
    assert said.err.startswith("attnlab: cannot write")
    assert "the disk is full" in said.err
    assert len(said.err.splitlines()) == 1
    if not free:
        assert left(small_disk) == ["filler"]
    (small_disk / "filler").unlink()
    assert attnlab("train", *tiny, f"run_dir={small_disk}/runs/run").status == 0  # the same command once there is room
    assert effective_state(small_disk / "runs" / "run") == "finished"


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_of_a_run(attnlab, here, tiny, small_disk):
    """What was written stays as it was, and once there is room the same command goes on to the same figures."""
    words = ["train", *tiny, "trainer.checkpoint_every_seconds=0", "trainer.checkpoint_budget_gb=0", "progress=plain"]
    assert attnlab(*words, "run_dir=whole").status == 0
    size = Path("whole/checkpoints/last.ckpt").stat().st_size
    with (small_disk / "filler").open("wb", buffering=0) as file:
        file.write(b"x" * (360 * 1024 - 5 * size // 2))  # two checkpoints and the small files have room
    said = attnlab(*words, f"run_dir={small_disk}/run")
    assert said.status == 1
    assert "the disk is full" in said.err
    assert "Traceback" not in said.err
    for step in (1, 2):
        assert read_checkpoint(small_disk / "run" / "checkpoints" / f"step={step}.ckpt")["attnlab"]["step"] == step
    lines = (small_disk / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
    (small_disk / "filler").unlink()
    again = attnlab(*words, f"run_dir={small_disk}/run")
    assert again.status == 0, again.err
    assert f"going on from {small_disk}/run/checkpoints/step=2.ckpt" in again.err
    assert final(small_disk / "run") == final("whole")


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(attnlab, here, tiny):
    assert attnlab("train", *tiny, "run_dir=one", "seed=1").status == 0
    assert attnlab("train", *tiny, "run_dir=two", "seed=2", "optimizer.lr=0.002").status == 0
    shutil.rmtree("two/checkpoints")
    shutil.copytree("one/checkpoints", "two/checkpoints", symlinks=True)
    Path("two/status.json").unlink()  # as if it had been stopped
    shutil.rmtree("two/attempts")
    said = attnlab("train", *tiny, "run_dir=two", "seed=2", "optimizer.lr=0.002")
    assert said.status == 1
    assert "step=10.ckpt is of a run of another configuration" in said.err
    assert "optimizer.lr: 0.001 -> 0.002" in said.err
    assert "seed: 1 -> 2" in said.err
    assert "study.name=NAME" in said.err


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "state"), [("1e-3", "finished"), ("1e-9", "diverged")])
def test_a_run_that_never_learns_is_told_from_one_that_does(attnlab, here, tiny, rate, state):
    rest = [word for word in tiny if not word.startswith(("trainer.max_steps", "trainer.val_check_interval"))]
    rest += ["trainer.max_steps=500", "trainer.val_check_interval=0", f"optimizer.lr={rate}", "run_dir=run"]
    said = attnlab("train", *rest, "progress=plain")
    assert effective_state("run") == state
    if state == "diverged":
        assert (
            "diverged: the loss was on a plateau: it was never below the entropy of its targets' frequencies"
            in said.err
        )
        assert read_json(Path("run/status.json"))["divergence"]["step"] == 500


def test_a_run_on_images_says_what_it_trains_on(attnlab):
    small = ["model.d_model=16", "model.num_heads=2", "model.num_layers=1", "trainer.max_steps=4", "trainer.threads=1"]
    said = attnlab(
        "train",
        "model=vit",
        "data=digits",
        "data.batch_size=32",
        "trainer.val_check_interval=2",
        *small,
        "progress=plain",
    )
    assert said.status == 0, said.err
    assert "training FLOPs per image" in said.err
    assert "data: digits: images train 1,295, validation 143, test 359 of 8 x 8 x 1; 10 classes" in said.err
    assert "plan: 4 steps of 32 images = 0.10 epochs" in said.err
    assert "images/s" in said.err
    [classes] = Path("runs").glob("*/*/*/outputs/test.classes.txt")
    assert len(classes.read_text().splitlines()) == 359


@pytest.mark.slow
def test_a_run_that_was_shared_out_over_devices_is_evaluated_on_one(attnlab, tiny):
    words = ["trainer.devices=2", "trainer.strategy=fsdp2", "trainer.diagnostics_every=3", "run_dir=run"]
    with ranks_from_server():
        said = attnlab("train", *tiny, *words)
    assert said.status == 0, said.err
    shown = attnlab("evaluate", "run")
    assert shown.status == 0, shown.err
    final = read_json(Path("run/status.json"))["final"]
    assert {name: final[name] for name in json.loads(shown.out)} == pytest.approx(json.loads(shown.out), rel=1e-5)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    looks = [line["step"] for line in lines if "diagnostics/gradient_norm/layer=0" in line["values"]]
    assert looks[:2] == [1, 3]


@pytest.mark.slow
def test_two_devices_of_a_multirun_write_one_directory_and_train_as_one_with_twice_the_batch(attnlab, tiny, left):
    words = ["study.name=two", "trainer.devices=2", "trainer.strategy=ddp", "seed=0,1", "cell=c"]
    with ranks_from_server():
        said = attnlab("train", "-m", *tiny, *words)
    assert said.status == 0, said.err
    one = attnlab("train", "-m", *tiny, "study.name=one", "data.batch_size=8", "seed=0,1", "cell=c")
    assert one.status == 0, one.err
    assert left(Path("runs/two")) == left(Path("runs/one"))
    for seed in ("seed=0", "seed=1"):
        assert len(list(Path("runs/two/c", seed, "attempts").iterdir())) == 1
        ours, other = (read_json(Path("runs", study, "c", seed, "status.json")) for study in ("two", "one"))
        assert ours["tokens"] == other["tokens"]
        assert ours["final"] == pytest.approx(other["final"], rel=1e-4)


OWN_DATA = """
import os
import signal

import torch
from torch.utils.data import DataLoader

from attnlab.data import TextData

given = 0


def collate(rows):
    global given
    given += 1
    if given == int(os.environ.get("KILLED_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"tokens": torch.stack([row[:-1] for row in rows]), "targets": torch.stack([row[1:] for row in rows])}


class Own(TextData):
    def train_dataloader(self):
        tokens = torch.from_numpy(self.corpus.train.tokens[:481].astype("int64"))
        rows = tokens.unfold(0, 17, 16)
        return DataLoader(rows, self.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
"""


@pytest.mark.slow
def test_data_of_the_users_own_with_an_ordinary_loader_go_on_to_the_same_bits(attnlab, tiny, tmp_path, monkeypatch):
    """Seven batches an epoch, two of them a step: killed within the sixth epoch."""
    (tmp_path / "own_data.py").write_text(OWN_DATA)
    words = ["train", *tiny, "data._target_=own_data.Own", "trainer.max_steps=30", "trainer.accumulate_grad_batches=2"]
    words += ["model.dropout=0.1", "cell=own", "trainer.checkpoint_every_seconds=0", "progress=plain"]
    straight = attnlab(*words, "study.name=straight")
    assert straight.status == 0, straight.err
    monkeypatch.setenv("KILLED_AT", "40")
    assert command(*words, "study.name=killed").wait() == -signal.SIGKILL
    monkeypatch.delenv("KILLED_AT")
    again = attnlab(*words, "study.name=killed")
    assert again.status == 0, again.err
    assert "going on from" in again.err
    runs = [Path("runs", name, "own", "seed=0") for name in ("straight", "killed")]
    assert [[one["attempt"] for one in read_json(run / "run.json")["attempts"]] for run in runs] == [[1], [1, 2]]
    assert final(runs[0]) == final(runs[1])
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs)
    assert all(torch.equal(one[key], value) for key, value in other.items())
