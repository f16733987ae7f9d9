"""The trainer's settings, and that it is quiet, quick and deterministic."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tiny_run import TinyModel, make_task, same_bits, train, weights

from attnlab.config import compose  # noqa: F401 - the resolvers of conf
from attnlab.training import TrainerSettings, apply_to_model, build_trainer, resolve

CONF = Path(__file__).parents[2] / "conf"


def test_the_yaml_says_the_defaults_of_the_class():
    fields = yaml.safe_load((CONF / "trainer" / "default.yaml").read_text())
    assert fields.pop("_target_") == "attnlab.training.TrainerSettings"
    fields = OmegaConf.to_container(OmegaConf.create({"trainer": fields}), resolve=True)["trainer"]
    assert TrainerSettings(**fields) == TrainerSettings()
    assert set(fields) == set(TrainerSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("max_steps", 0, "at least 1"),
        ("max_epochs", 0, "at least 1"),
        ("accumulate_grad_batches", 0, "at least 1"),
        ("val_check_interval", -1, "at least 0"),
        ("gradient_clip_val", 0.0, "above 0"),
        ("threads", 0, "from 1 to 1024"),
        ("gradient_clip_val", math.inf, "above 0 and finite"),
        ("plateau_share", math.nan, "above 0 and at most 1"),
        ("devices", -1, "at least 1"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(field, value, accepted):
    with pytest.raises(ValueError, match=f"{field} must be {accepted}, got {value}"):
        TrainerSettings(**{field: value})


@pytest.mark.parametrize(("steps", "epochs", "ends"), [(9, None, 9), (None, 3, 12), (9, 3, 9), (20, 3, 12)])
def test_steps_and_epochs_end_a_training_at_the_first_of_them(steps, epochs, ends):
    settings = TrainerSettings(max_steps=steps, max_epochs=epochs, accumulate_grad_batches=5, devices=2)
    asked = []
    settled = settings.in_steps(lambda *asks: asked.append(asks) or 4 * asks[0])
    assert settled.steps == ends
    assert asked == ([] if epochs is None else [(epochs, 5, 2)])


def test_one_of_steps_and_epochs_has_to_be_said():
    with pytest.raises(ValueError, match=r"max_steps must be at least 1 where trainer\.max_epochs is null, got null"):
        TrainerSettings(max_steps=None)


def test_activation_checkpointing_needs_a_stack():
    with pytest.raises(ValueError, match="TinyModel has no stack of layers"):
        apply_to_model(TrainerSettings(checkpoint_activations=True), TinyModel())
    model = TinyModel()
    model.layers.checkpoint_activations = False
    apply_to_model(TrainerSettings(checkpoint_activations=True), model)
    assert model.layers.checkpoint_activations is True


def test_compiling_changes_no_name():
    model = TinyModel()
    names = list(model.state_dict())
    apply_to_model(TrainerSettings(compile=True), model)
    assert list(model.state_dict()) == names
    assert model._compiled_call_impl is not None


def test_one_seed_gives_the_same_bits_twice(tmp_path):
    one, two = make_task(), make_task()
    train(tmp_path / "one", one)
    train(tmp_path / "two", two)
    assert same_bits(weights(one), weights(two))


def test_a_second_run_in_a_process_starts_in_under_a_second(tmp_path):
    train(tmp_path / "first", make_task(), max_steps=5)
    start = time.perf_counter()
    train(tmp_path / "second", make_task(), max_steps=5)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("steps", [7, 10])
def test_steps_validations_and_the_end_are_counted_in_optimizer_steps(tmp_path, steps):
    task = make_task()
    train(tmp_path, task, max_steps=steps, accumulate_grad_batches=2, val_check_interval=5, log_every_n_steps=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in lines if "train/loss" in line["values"]]
    validated = [line["step"] for line in lines if "val/loss" in line["values"]]
    assert trained == [1, *range(2, steps + 1, 2)]
    assert validated == list(range(5, steps + 1, 5))
    assert task.trainer.global_step == steps


def test_fp32_products_are_as_exact_as_asked_for_and_as_they_were_without_being_asked():
    for asked, used in (({"float32_matmul_precision": "high"}, "high"), ({}, "highest")):
        build_trainer(TrainerSettings(device="cpu", **asked), resolve("32", "cpu"))
        assert torch.get_float32_matmul_precision() == used


def test_threads_are_those_asked_for():
    settings = TrainerSettings(threads=2, device="cpu")
    build_trainer(settings, resolve("32", "cpu"))
    assert torch.get_num_threads() == 2


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tiny_run import make_task, train
train(Path(sys.argv[1]), make_task(), max_steps=10)
"""


@pytest.mark.slow
def test_a_run_prints_nothing_of_lightnings(tmp_path):
    """Also where Slurm's srun is on the path, which Lightning would advise to use."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), str(Path(__file__).parent)]
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not (tmp_path / "lightning_logs").exists()


def test_one_device_has_nothing_to_share_out():
    with pytest.raises(ValueError, match=r"trainer.strategy=fsdp2 .* accepted are 2 devices and more"):
        TrainerSettings(strategy="fsdp2")


def test_what_is_to_be_measured_first_is_not_compiled_by_chance():
    with pytest.raises(ValueError, match=r"trainer.compile=auto is settled by timings .* accepted here: true, false"):
        apply_to_model(TrainerSettings(compile="auto"), TinyModel())
