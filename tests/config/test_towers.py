"""Parts of one of a model's stacks: how they are typed, composed, checked, built and called."""

import pytest

from attnlab.config import UsageError
from attnlab.config.check import check, incompatible
from attnlab.config.compose import ConfigSpace
from attnlab.config.engine import instantiate
from attnlab.config.identity import cell_name, key_and_text, readable
from attnlab.layers import ALiBi, AxialRotary, Rotary, Sinusoidal, tower_fields

MODEL = """
from typing import ClassVar, Unpack
from attnlab.layers import Stack, StackFields, TowerFields, tower_fields
from attnlab.models import GPT
from attnlab.models.base import LanguageModel

class Two(GPT):
    towers: ClassVar = {"image": ("patch_size",), "text": ()}
    def __init__(self, vocabulary_size: int, max_length: int, patch_size: int = 4, image: TowerFields | None = None,
                 text: TowerFields | None = None, **fields: Unpack[StackFields]) -> None:
        super().__init__(vocabulary_size, max_length, **fields)
        self.image = Stack(tower_fields({**self.defaults, **fields}, image), causal=False, max_length=16, grid=(4, 4))
        self.text = Stack(tower_fields({**self.defaults, **fields}, text), causal=False, max_length=max_length)
"""
FIELDS = "{d_model: null, num_heads: null, num_layers: null, d_ff: null, position: null}"
YAML = f"""
defaults:
  - _self_
  - /position@image.position: null
  - /position@text.position: null
_target_: two_towers.Two
_partial_: true
d_model: 16
num_heads: 2
num_layers: 1
max_length: 64
patch_size: 4
image: {FIELDS}
text: {FIELDS}
position: ${{position}}
residual: ${{residual}}
attention: ${{attention}}
feed_forward: ${{feed_forward}}
"""


@pytest.fixture
def space(tmp_path, monkeypatch):
    (tmp_path / "two_towers.py").write_text(MODEL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "two.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ConfigSpace([str(tmp_path)]) as opened:
        yield opened


def composed(space, *words):
    return space.compose(readable(["model=two", "data.context_length=32", *words]))


def positions(run):
    model = instantiate({k: v for k, v in run.resolved["model"].items() if k != "init_from"}, "model")(
        vocabulary_size=9
    )
    return [type(stack.position) for stack in (model.stack, model.image, model.text)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["position=alibi"], [ALiBi, ALiBi, ALiBi]),
        (["model.image.position=axial_rotary"], [Rotary, AxialRotary, Rotary]),
        (["model.image.position=axial_rotary", "model.text.position=alibi"], [Rotary, AxialRotary, ALiBi]),
        (["position=sinusoidal", "model.text.position=rotary"], [Sinusoidal, Sinusoidal, Rotary]),
    ],
)
def test_each_tower_has_the_part_that_is_named_for_it_else_the_models(space, words, expected):
    run = composed(space, *words)
    check(run)
    assert positions(run) == expected


def test_fields_of_a_towers_part_and_of_the_tower_are_set_where_they_stand(space):
    run = composed(
        space, "model.image.position=axial_rotary", "model.image.position.base=50", "model.text.num_layers=2"
    )
    check(run)
    assert run.get("model.image.position.base") == 50
    model = instantiate({k: v for k, v in run.resolved["model"].items() if k != "init_from"}, "model")(
        vocabulary_size=9
    )
    assert [len(stack.layers) for stack in (model.stack, model.image, model.text)] == [1, 1, 2]


def test_a_cell_and_a_record_name_the_field_as_it_is_typed(space):
    words = readable(["model.image.position=axial_rotary", "model.text.position=alibi"])
    assert [key_and_text(word) for word in words] == [
        ("model.image.position", "axial_rotary"),
        ("model.text.position", "alibi"),
    ]
    assert cell_name(words) == "model.image.position=axial_rotary,model.text.position=alibi"
    jobs = space.expand(readable(["model=two", "model.image.position=alibi,rotary"], multirun=True))
    assert [positions(space.compose(job))[1] for job in jobs] == [ALiBi, Rotary]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.image.position=rotray"], "position must be one of .*Did you mean rotary"),
        (["model.image.depth=3"], "model.image.depth: there is no such field"),
        (["model.image.num_layers=0"], "model.image.num_layers must be at least 1, got 0"),
        (["model.audio.position=alibi"], "model.audio.position: there is no such field"),
        (["model=gpt", "model.image.position=alibi"], "model.image.position: there is no such field"),
    ],
)
def test_what_is_wrong_is_said_of_the_field_that_was_typed(space, words, said):
    with pytest.raises(UsageError, match=said):
        check(composed(space, *words))


def test_parts_are_asked_with_the_fields_of_their_tower(space):
    (reason,) = incompatible(composed(space, "model.text.position=axial_rotary"))
    assert reason.startswith("model.text.position: axial_rotary indexes a grid of image patches")
    (reason,) = incompatible(composed(space, "model.image.num_heads=16"))
    assert reason.startswith("model.image.position: rotary rotates pairs of channels")
    (reason,) = incompatible(composed(space, "model.num_heads=16"))
    assert reason.startswith("position: rotary rotates pairs of channels")


def test_a_tower_takes_no_field_that_there_is_not():
    assert tower_fields({"d_model": 4, "bias": True}, {"d_model": None, "bias": False}) == {"d_model": 4, "bias": False}
    with pytest.raises(TypeError, match="a tower has no field 'depth'; accepted: d_model, "):
        tower_fields({"d_model": 4}, {"depth": 3})
