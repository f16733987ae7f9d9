"""A study.yaml becomes a plan, or one message that says what is wrong with it."""

import pytest

from attnlab.cli.compose import ConfigSpace, Mistake
from attnlab.cli.overrides import literal
from attnlab.cli.studies import load_plan


@pytest.fixture(scope="module")
def space():
    with ConfigSpace() as opened:
        yield opened


def test_a_grid_is_compiled_to_overrides_seed_by_seed(study, space):
    path = (
        study("grid", factors={"position": ["none", "alibi"], "model.num_layers": [1, 2]}, baseline={}) / "study.yaml"
    )
    plan = load_plan(path, ["study.seeds=[3,5]", "optimizer.lr=0.01"], space)
    jobs = list(plan.jobs())
    assert [seed for _, seed in jobs] == [3] * 4 + [5] * 4
    assert [cell.name for cell, _ in jobs[:4]] == [
        f"num_layers={layers},position={position}" for position in ("none", "alibi") for layers in (1, 2)
    ]
    config = space.compose(plan.overrides(*jobs[1])).resolved
    assert config["study"]["name"] == "grid"
    assert config["cell"] == "num_layers=2,position=none"
    assert config["run_dir"] == "runs/grid/num_layers=2,position=none/seed=3"
    assert (config["seed"], config["model"]["num_layers"], config["optimizer"]["lr"]) == (3, 2, 0.01)


def test_a_cell_that_makes_no_sense_carries_the_reason(study, space):
    path = study("odd", factors={"model.num_heads": [1, 3]}, baseline={"model.num_heads": 1}) / "study.yaml"
    plan = load_plan(path, [], space)
    assert [cell.skip is None for cell in plan.cells] == [True, False]
    assert "does not divide into 3 heads" in plan.cells[1].skip
    assert {cell.name for cell, _ in plan.jobs()} == {"num_heads=1"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"factor": {}}, "Did you mean factors?"),
        ({"factors": {}}, "needs factors or cells"),
        ({"factors": 3}, "factors must be a table"),
        ({"factors": {"position": "alibi"}}, "factors.position must be a list of choices"),
        ({"factors": {"position": ["none", "none"]}}, "different choices, got 'none' twice"),
        ({"factors": {"positon": ["none"]}, "baseline": {}}, "Did you mean position?"),
        ({"factors": {"position": ["none", "alibbi"]}}, "Did you mean alibi?"),
        ({"factors": {"model.num_heads": [2, "x"]}, "baseline": {}}, "model.num_heads='x': expected a whole number"),
        ({"cells": 3}, "cells must be a list"),
        ({"cells": [{"name": "a"}]}, "a table with name and overrides"),
        ({"cells": [{"name": "a/b", "overrides": []}]}, "no name of a cell"),
        ({"baseline": 3}, "baseline must be a table"),
        ({"baseline": {"position": "rotary"}}, "baseline must be one of the cells"),
        ({"seeds": 0}, "got 0"),
        ({"seeds": "many"}, "got 'many'"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": [-1]}, "got [-1]"),
        ({"metric": None}, "metric must be a table with a name"),
        ({"metric": {"name": "x", "better": "up"}}, "lower or higher"),
        ({"metric": {"name": "test/bleu", "better": "lower"}}, "write better: higher"),
        ({"shared": "position"}, "shared must be a list"),
        ({"claims": "x"}, "claims must be a list"),
        ({"claims": ["x"]}, "a claim must be a table"),
        ({"claims": [{"says": "x", "metric": "m"}]}, "exactly one of"),
        (
            {"claims": [{"says": "x", "metric": "m", "below": 0, "cell": {"position": "x"}}]},
            "position is one of none, alibi, got x",
        ),
        ({"claims": [{"says": "x", "metrik": "m", "below": 0}]}, "Did you mean metric?"),
    ],
)
def test_a_study_with_a_mistake(study, space, fields, words):
    path = study("wrong", **fields) / "study.yaml"
    with pytest.raises(Mistake) as caught:
        load_plan(path, [], space)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=3", "study.seeds"),
        ("run_dir=x", "runs_dir"),
        ("position=rotary", "what the cells of this study differ in"),
        ("study.seed=3", "Did you mean study.seeds?"),
        ("study.seeds=abc", "got 'abc'"),
        ("study.name=a/b", "one folder"),
        ("study.name=..", "one folder"),
    ],
)
def test_a_study_cannot_be_run_under_every_override(study, space, override, words):
    with pytest.raises(Mistake) as caught:
        load_plan(study("mine") / "study.yaml", [override], space)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"a: [b", b"\xff\xfe\x00", b"- a list"])
def test_a_file_that_is_no_study(study, space, content):
    path = study("mine") / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(Mistake, match=r"study\.yaml"):
        load_plan(path, [], space)


@pytest.mark.parametrize("name", ["plain", "2024", "null", "lr=1e-3,position=alibi", "two words", "it's", 'a"b'])
def test_any_name_passes_through_an_override(space, name):
    config = space.compose([f"study.name={literal(name)}", f"cell={literal(name)}"]).config
    assert config.study.name == name
    assert config.cell == name
