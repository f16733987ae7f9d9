"""The public surface: the names that scripts rely on, and the studies that come with attnlab."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from attnlab.config import shipped
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.runs.build import dry_build
from attnlab.studies.plan import available_studies
from attnlab.studies.study_file import Waiting, load_plan
from attnlab.training.run_directory import read_json


@pytest.fixture(scope="module")
def space():
    with ConfigSpace() as opened:
        yield opened


def test_the_names_that_scripts_rely_on(space):
    asked = {
        "seed": 3,
        "model.d_model": 32,
        "model.num_heads": 2,
        "model.num_layers": 1,
        "optimizer.lr": 0.01,
        "trainer.max_steps": 7,
        "trainer.precision": "bf16",
        "data.path": "some.txt",
        "run_dir": "elsewhere/run",
        "runs_dir": "elsewhere",
        "study.name": "mine",
    }
    config = space.compose(["data=text", *(f"{name}={value}" for name, value in asked.items())]).config
    assert {name: OmegaConf.select(config, name) for name in asked} == asked


def test_runs_stand_below_runs_by_default(space):
    config = space.compose([]).config
    assert config.runs_dir == "runs"
    assert config.run_dir == "runs/train/default/seed=0"


def test_the_studies_of_the_foundation_are_there():
    assert {"position_length", "norm_warmup", "nanogpt_cpu"} <= set(available_studies())


def shipped_plan(name, space):
    """A study's plan; of one that waits for runs of another one to take choices over, with the words of these."""
    try:
        return load_plan(shipped("experiments") / name / "study.yaml", [], space)
    except Waiting as waiting:
        plan, [before] = waiting.plan, [shipped_plan(needed, space) for needed in waiting.plan.needs]
        own = [word for word in plan.shared if not word.startswith("model.init_from=")]
        set_here = {word.split("=")[0] for word in [*own, *plan.cells[0].overrides]}
        return replace(plan, shared=[*(word for word in before.shared if word.split("=")[0] not in set_here), *own])


@pytest.mark.slow
@pytest.mark.parametrize("name", available_studies())
def test_every_cell_of_a_study_makes_sense_and_the_first_takes_a_step(attnlab, own_data, name):
    with ConfigSpace() as space:  # of its own: the command closes what is open
        plan = shipped_plan(name, space)
        assert not [cell.skip for cell in plan.cells if cell.skip]
        for cell in reversed(plan.cells):
            words = plan.overrides(cell, plan.seeds[0])
            composed = space.compose(words)
            check(composed)
            dry_build(composed.resolved)
        elsewhere = (
            "data=",
            "data.path=",
            "data.language_pair=",
            "data.source.",
            "data.tokenizer_from=",
            "task.pretrained=",
            "trainer.branch_from=",  # a trunk that has not run
        )
        words = [word for word in words if not word.startswith(elsewhere)]
        words += own_data(space, composed)
    small = {
        "model": {"d_model": 96, "num_layers": 1, "d_ff": 64},
        "trainer": {"max_steps": 1, "val_check_interval": 1, "threads": 1},
        "task": {"evaluation_tokens": 256, "num_beams": 1, "max_extra_length": 2},
        "data": {"max_validation_tokens": 256, "batch_tokens": 500, "batch_size": 4},
        "tokenizer": {"vocabulary_size": 300},
        "schedule": {"warmup_steps": 0},
    }
    words += [f"{g}.{f}={v}" for g, fields in small.items() for f, v in fields.items() if f in composed.resolved[g]]
    said = attnlab("train", *words, "progress=off")
    assert said.status == 0, said.err
    [status] = Path("runs").glob("*/*/*/status.json")
    assert read_json(status)["step"] == 1
    assert status.parts[1] == name
    shutil.rmtree("runs")
