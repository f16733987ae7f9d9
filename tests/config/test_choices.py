"""What `attnlab choices` tells is what the files of the choices and their classes say."""

import inspect
import re

import pytest
import yaml

from attnlab.cli.main import main
from attnlab.config import UsageError, shipped
from attnlab.config.choices import Field, defaults, find_choice, of_a_run, shown
from attnlab.config.compose import ConfigSpace
from attnlab.training import TrainerSettings

FILES = sorted(path for path in shipped("conf").glob("*/*.yaml") if path.parent.name != "hydra")


@pytest.fixture(scope="module")
def told():
    """Every choice, by its group and name."""
    with ConfigSpace() as space:
        return {
            (group, name): find_choice(space, group, name) for group, names in space.groups.items() for name in names
        }


def test_every_choice_says_what_it_is_and_each_of_its_fields_has_a_type(told):
    assert sorted(told) == [(path.parent.name, path.stem) for path in FILES]
    assert [key for key, choice in told.items() if not choice.about or choice.about.startswith("#")] == []
    assert [(key, field.name) for key, choice in told.items() for field in choice.fields if not field.kind] == []


def test_comments_stand_with_the_fields_that_they_are_beside(told):
    """Read here by lines: a word at the margin, and what follows a hash."""
    checked = 0
    for path in FILES:
        choice, lines = told[path.parent.name, path.stem], path.read_text().splitlines()
        fields = {field.name: field.about for field in choice.fields}
        assert choice.about.startswith(next(line for line in lines if "@package" not in line).removeprefix("# "))
        beside = {found[1]: found[2] for line in lines if (found := re.match(r"([a-z]\w*):[^#]* # +(.*)", line))}
        package = lines[0].removeprefix("# @package ") if "@package" in lines[0] else path.parent.name
        prefix = "" if package == "_global_" else f"{package}."
        named = {f"{prefix}{key}": about for key, about in beside.items()}
        assert {key: fields[key] for key in named if key in fields} == {k: v for k, v in named.items() if k in fields}
        checked += len(named)
    assert checked > 300


def test_the_fields_of_a_choice_are_those_of_its_class(told):
    choice = told["trainer", "default"]
    names = [f"trainer.{name}" for name in inspect.signature(TrainerSettings).parameters]
    assert choice.target == "attnlab.training.TrainerSettings"
    assert sorted(field.name for field in choice.fields) == sorted(names)
    choice = told["position", "rotary_yarn"]
    factor = next(field for field in choice.fields if field.name == "position.factor")
    assert factor == Field("position.factor", "a number at least 1", "4.0", "how much longer the context becomes")


def test_nested_fields_are_named_as_they_are_typed(told):
    fields = {field.name: field for field in told["data", "kjv_masked"].fields}
    assert fields["data.masking.probability"].kind == "a number above 0 and below 1"
    assert fields["data.masking.probability"].about == "of a window's tokens"
    assert fields["data.source"] == Field("data.source", "a part", "attnlab.data.KJV", "")
    towers = {field.name for field in told["model", "clip"].fields}
    assert {"model.image.d_model", "model.text.position"} <= towers


def test_a_choice_that_is_built_on_another_has_its_comments(told):
    clip, siglip = ({field.name: field.about for field in told["model", name].fields} for name in ("clip", "siglip"))
    assert siglip["model.patch_size"] == clip["model.patch_size"] == "pixels; it has to divide the image"


def test_defaults_and_fields_of_a_run_are_those_of_the_first_file():
    first = yaml.safe_load((shipped("conf") / "train.yaml").read_text())
    groups = {group: name for one in first["defaults"] if isinstance(one, dict) for group, name in one.items()}
    with ConfigSpace() as space:
        named = {group: name or "[]" for group, name in groups.items() if not group.startswith("override")}
        assert defaults(space) == named
        fields = {field.name: field for field in of_a_run(space)}
    assert fields["seed"].default == "0"
    assert fields["seed"].about == "data order, initial weights, dropout, samples"
    assert fields.keys() == {key for key, value in first.items() if not isinstance(value, dict | list)}


def test_a_choice_of_ones_own_is_told_like_the_others(tmp_path):
    (tmp_path / "position").mkdir()
    (tmp_path / "position/mine.yaml").write_text(
        "# Rotary of my own.\n_target_: attnlab.layers.Rotary\n_partial_: true\n"
        "base: 500.0  # slower\nfraction: ???\ninterleaved: false\n"
    )
    with ConfigSpace([str(tmp_path)]) as space:
        choice = find_choice(space, "position", "mine")
    assert choice.about == "Rotary of my own."
    assert [field[1:] for field in choice.fields[:2]] == [
        ("a number above 1", "500.0", "slower"),
        ("a number above 0 and at most 1", "required", ""),
    ]


def test_a_file_of_ones_own_that_is_no_yaml_is_named(attnlab, tmp_path):
    (tmp_path / "position").mkdir()
    (tmp_path / "position/mine.yaml").write_text("base: [1\n")
    for choice in ("position", "position/mine"):
        said = attnlab("choices", choice, "--config-dir", str(tmp_path))
        assert (said.status, said.out) == (2, "")
        assert said.err.startswith(f"attnlab: {tmp_path}/position/mine.yaml: cannot be read as YAML: line 2, column 1")


@pytest.mark.parametrize(
    ("group", "name", "said"),
    [
        ("positoin", "rotary", r"a group must be one of .*position.*, got 'positoin'\. Did you mean position\?"),
        ("position", "rotery", r"position must be one of .*, got 'rotery'\. Did you mean rotary\?"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(group, name, said):
    with ConfigSpace() as space, pytest.raises(UsageError, match=said):
        find_choice(space, group, name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        ([0.9, None], "[0.9, null]"),
        ("???", "required"),
        ("${position}", "that of position"),
        ("${oc.select:data.max_length,77}", "that of data.max_length, else 77"),
        ("${runs_dir}/x", "${runs_dir}/x"),
    ],
)
def test_values_are_shown_as_they_are_typed(value, words):
    assert shown(value) == words


@pytest.mark.parametrize("columns", ["70", "120"])
def test_the_command_lists_groups_choices_and_fields(attnlab, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    said = {words: attnlab("choices", *words) for words in ((), ("position",), ("position=rotary",), ("trainer",))}
    assert {one.status for one in said.values()} == {0}
    assert all(len(line) <= int(columns) for line in said["position",].out.splitlines() if not line.startswith("`"))
    assert "sinusoidal_2d" in said[()].out
    assert "mixed_code" in said[()].out
    assert "rotary (default)" in said["position",].out
    assert "position.base" in said["position=rotary",].out
    assert "trainer.max_steps" in said["trainer",].out  # the one choice of its group
    refused = attnlab("choices", "position/rotery")
    assert (refused.status, refused.out) == (2, "")
    assert "Did you mean rotary?" in refused.err


def test_the_help_of_train_names_every_group(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {path.parent.name for path in FILES} <= set(words)
