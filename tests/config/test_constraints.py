"""What cannot be combined is said by the parts themselves, a stranger's as attnlab's own, and by the few rules of no part."""

import sys

import pytest

from attnlab.config import UsageError
from attnlab.config.check import check, incompatible
from attnlab.config.compose import ConfigSpace
from attnlab.config.seams import choices_of

OWN = '''
from attnlab.layers import PreNorm, ReZero, Rotary
from attnlab.training import Constant


class Narrow(PreNorm):
    """Says what it cannot be combined with."""

    @classmethod
    def incompatible(cls, choices):
        yield from super().incompatible(choices)
        if choices.get("model.d_model") > 64 and choices.name("position") == "alibi":
            yield "residual: narrow joins at most 64 channels beside position=alibi; set model.d_model=64"


class Turned(Rotary):
    """Says nothing of its own, and inherits what rotary says."""


class Free(ReZero):
    """As ReZero."""


def no_schedule(total_steps):
    return Constant(total_steps)
'''


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Configuration groups with a stranger's parts."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "strangers_parts.py").write_text(OWN)
    files = {"residual/narrow": "Narrow", "residual/free": "Free", "position/turned": "Turned"}
    for name, part in {**files, "schedule/none": "no_schedule"}.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"_target_: strangers_parts.{part}\n_partial_: true\n")
    sys.path.append(str(folder))
    with ConfigSpace([str(folder / "conf")]) as opened:
        yield opened
    sys.path.remove(str(folder))


def said(space, *overrides):
    return incompatible(space.compose(list(overrides)))


def test_a_strangers_part_is_checked_as_ours_is(space):
    words = ["residual=narrow", "position=alibi", "model.d_model=128"]
    assert said(space, *words) == [
        "residual: narrow joins at most 64 channels beside position=alibi; set model.d_model=64"
    ]
    with pytest.raises(UsageError, match="narrow joins at most 64 channels"):
        check(space.compose(words))
    assert said(space, "residual=narrow", "position=alibi", "model.d_model=64") == []
    assert said(space, "residual=narrow", "position=rotary", "model.d_model=128") == []


def test_a_part_that_is_derived_from_ours_inherits_its_rules_under_its_own_name(space):
    (reason,) = said(space, "position=turned", "model.num_heads=2", "model.d_model=6")
    assert reason.startswith("position: turned rotates pairs of channels")
    (reason,) = said(space, "residual=free", "trainer.strategy=fsdp2")
    assert "residual=free learns single numbers, which torch cannot shard" in reason


def test_a_part_that_the_model_does_not_take_is_not_asked(space):
    (reason,) = said(space, "model=recurrent_lm", "residual=narrow")
    assert (
        reason == "residual: model=recurrent_lm has no residual, so residual=narrow would have no effect; leave it out"
    )


def test_a_function_says_nothing(space):
    assert said(space, "schedule=none") == []


def test_parts_see_choices_as_they_are_typed_whatever_brought_them(space):
    choices = choices_of(space.compose(["model=vit", "trainer.max_steps=3"]))
    assert (choices.name("model"), choices.name("task"), choices.name("data")) == (
        "vit",
        "image_classification",
        "mnist_5k",
    )
    assert choices.given == {"model": "vit", "trainer.max_steps": "3"}
    assert choices.get("trainer.max_steps") == 3


def test_one_reason_is_given_once(space):
    words = ["model=recurrent", "model.attention=none", "model.score=dot", "model.input_feeding=true"]
    found = said(space, *words)
    assert [line.split(":")[0] for line in found] == ["model.score", "model.input_feeding"]
