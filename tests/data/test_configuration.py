import importlib
from pathlib import Path

import pytest
import yaml

from attnlab.data import TOKENIZERS
from attnlab.parts import parameters_of

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted([*CONF.glob("data/*.yaml"), *CONF.glob("tokenizer/*.yaml")])


def locate(target):
    module, name = target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def parts(node):
    """Every node with a class, at any depth."""
    if "_target_" in node:
        yield node
    for value in node.values():
        if isinstance(value, dict):
            yield from parts(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_choice_names_a_class_and_its_own_fields(file):
    assert file.read_text().startswith("# ")
    choice = yaml.safe_load(file.read_text())
    for part in parts(choice):
        fields = {name for name in part if not name.startswith("_") and name != "defaults"}
        assert fields <= parameters_of(locate(part["_target_"])).keys()
    if file.parent.name == "tokenizer" and "???" not in choice.values():
        locate(choice.pop("_target_"))(**choice)


def test_every_tokenizer_has_a_file():
    read_or_made = {"marian", "with_end_of_text"}  # by tokenizer=pretrained, and by the data of language models
    assert {file.stem for file in CONF.glob("tokenizer/*.yaml")} == set(TOKENIZERS) - read_or_made
