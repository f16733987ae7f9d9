"""Parts are built of plain data as Hydra builds them."""

from datetime import timedelta
from functools import partial

import pytest
from hydra.utils import instantiate as by_hydra

from attnlab.config import UsageError
from attnlab.config.engine import instantiate

DAYS = {"_target_": "datetime.timedelta", "days": 2}
NODES = [
    {"_target_": "builtins.dict", "lists": [1, [DAYS, {"a": DAYS, "b": None}]], "text": "a"},
    {"_target_": "datetime.timedelta", "_args_": [3], "hours": 1.5},
    {"_target_": "builtins.dict", "_recursive_": False, "inner": DAYS},
    {"no": "part", "of": [DAYS]},
]


@pytest.mark.parametrize("node", NODES)
def test_what_is_built_is_what_hydra_builds(node):
    assert instantiate(node, "part") == by_hydra(node, _convert_="all")


def test_what_is_to_be_completed_binds_what_is_given():
    part = instantiate({**DAYS, "_partial_": True, "hours": 1}, "part")
    assert isinstance(part, partial)
    assert part(minutes=5) == timedelta(days=2, hours=1, minutes=5)


def test_a_text_stays_as_it_is_and_so_does_the_node():
    node = {"_target_": "builtins.dict", "path": "a/${b}", "list": [1]}
    built = instantiate(node, "part")
    built["list"].append(2)
    assert (built["path"], node["list"]) == ("a/${b}", [1])


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "datetime.timedelta", "days": "x"}, "part: unsupported type"),
        (
            {"_target_": "builtins.dict", "inner": {"_target_": "builtins.int", "_args_": ["x"]}},
            "part: invalid literal",
        ),
        ({"_target_": "os.system", "command": "true"}, "part: .*os.system"),
    ],
)
def test_a_constructor_that_raises_is_said_in_its_own_words(node, said):
    with pytest.raises(UsageError, match=said):
        instantiate(node, "part")
