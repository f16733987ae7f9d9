"""Layers that differ by a pattern, against stacks of one layer each that are put one after the other.

Shapes: B batch, T length, D model width.
"""

from functools import partial

import pytest
import torch

from attnlab.layers import (
    ALiBi,
    DeepNorm,
    DeltaNet,
    KeyValueCache,
    Learned,
    MultiHead,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    RMSNorm,
    Rotary,
    Stack,
    SwiGLU,
)
from attnlab.testing.families import FAMILIES

FIELDS = {"d_model": 16, "num_heads": 4, "num_layers": 5}
ENTRIES = {
    "local": {"attention": partial(MultiHead, window=3), "position": Rotary},
    "global": {"position": PositionEncoding, "feed_forward": SwiGLU},
    "as_ever": {},
    "wide": {"d_ff": 100, "residual": partial(PostNorm, norm=RMSNorm), "position": RelativeBias},
}
PATTERN = ["local", "global", "as_ever", "wide"]


def stack_of(pattern, num_layers=5, causal=True, **fields):
    torch.manual_seed(0)
    described = {**FIELDS, "num_layers": num_layers, "pattern": pattern, "layers": ENTRIES, **fields}
    return Stack(described, causal=causal, max_length=32)


def one_by_one(stack, x_BTD, causal=True, **given):
    """The layers of a stack by stacks of one layer, which differ by their fields alone."""
    names = [PATTERN[index % len(PATTERN)] for index in range(5)]
    for name, layer in zip(names, stack.layers, strict=True):
        own = {"residual": PreNorm, "position": ALiBi, **ENTRIES[name]}
        alone = Stack({**FIELDS, **own, "num_layers": 1}, causal=causal, max_length=32)
        alone.layers[0].load_state_dict(layer.state_dict())
        if name == "wide":
            alone.position.load_state_dict(stack.positions["wide"].state_dict())
        alone.norm = torch.nn.Identity()
        x_BTD = alone(x_BTD, **given)
    return stack.norm(x_BTD)


@pytest.mark.parametrize("causal", [True, False])
def test_each_layer_is_what_its_entry_says(causal):
    stack = stack_of(PATTERN, causal=causal, position=ALiBi).eval()
    x_BTD = torch.randn(2, 9, 16)
    is_token_BT = torch.arange(9) < torch.tensor([9, 5])[:, None]
    for given in ({}, {"is_token_BT": is_token_BT}):
        expected_BTD = one_by_one(stack, x_BTD, causal, **given)
        real_BT = given.get("is_token_BT", torch.ones(2, 9, dtype=torch.bool))
        torch.testing.assert_close(stack(x_BTD, **given)[real_BT], expected_BTD[real_BT], atol=1e-6, rtol=1e-6)


def test_entries_that_say_nothing_are_the_stack_without_a_pattern():
    x_BTD = torch.randn(2, 9, 16)
    assert stack_of(["as_ever"], position=Rotary)(x_BTD).equal(stack_of(None, position=Rotary)(x_BTD))


def test_recomputed_activations_give_the_same_gradients():
    x_BTD, found = torch.randn(2, 9, 16), []
    for recomputed in (False, True):
        stack = stack_of(PATTERN, position=ALiBi)
        stack.checkpoint_activations = recomputed
        stack(x_BTD).square().sum().backward()
        found.append([parameter.grad for parameter in stack.parameters()])
    for first, second in zip(*found, strict=True):
        assert first.equal(second)


def test_a_cache_serves_layers_that_differ():
    stack, x_BTD = stack_of(PATTERN, position=ALiBi).eval(), torch.randn(2, 9, 16)
    cache = KeyValueCache(5, 9)
    with torch.no_grad():
        pieces = [stack(x_BTD[:, first : first + 1], cache=cache) for first in range(9)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), stack(x_BTD), atol=1e-5, rtol=1e-5)


def test_layers_of_one_entry_share_a_position_and_nobody_has_one_that_none_uses():
    stack = stack_of(["wide", "wide", "global"], num_layers=6, position=partial(RelativeBias, num_buckets=8))
    assert sorted(name for name, _ in stack.named_parameters() if "position" in name) == ["positions.wide.table.weight"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pattern": ["local"] * 6}, "6 entries .* are more than num_layers=5"),
        ({"pattern": ["far"]}, "far is no entry of layers .defined: local, global, as_ever, wide.; define it, as in"),
        ({"pattern": ["x"], "layers": {}}, "x is no entry of layers .none is defined."),
        (
            {"pattern": ["x"], "layers": {"x": {"num_heads": 2}}},
            "layers.x: a layer has no field 'num_heads' of its own",
        ),
        (
            {"pattern": ["x"], "layers": {"x": {"position": Learned}}},
            "layers.x.position: Learned is added to the embedd",
        ),
        (
            {"pattern": ["global"], "position": Learned},
            "layers.global.position: the model's Learned is added to the",
        ),
    ],
)
def test_patterns_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        stack_of(**{"pattern": None, **fields})


def test_the_last_layer_says_whether_a_norm_follows():
    assert isinstance(stack_of(["as_ever", "wide"], num_layers=2).norm, torch.nn.Identity)
    assert not isinstance(stack_of(["wide", "as_ever"], num_layers=2).norm, torch.nn.Identity)


def test_what_depends_on_depth_counts_all_layers_of_the_stack():
    deep = {"pattern": ["a", "b"], "layers": {"a": {"residual": DeepNorm}, "b": {"residual": PostNorm}}}
    assert stack_of(**deep).layers[0].residual.alpha == (2 * 5) ** 0.25


IN_FAMILIES = [
    {"a": {"attention": partial(MultiHead, window=4), "position": Rotary}, "b": {"position": PositionEncoding}},
    {"a": {"residual": partial(PostNorm, norm=RMSNorm), "position": ALiBi}, "b": {"feed_forward": SwiGLU, "d_ff": 20}},
]


@pytest.mark.parametrize(
    "kind", [kind for kind in FAMILIES if kind.name not in ("clip", "whisper")], ids=lambda k: k.name
)
@pytest.mark.parametrize("entries", IN_FAMILIES)
def test_the_contract_holds_for_layers_that_differ(kind, entries):
    family = kind({"position": PositionEncoding, "pattern": ["a", "b"], "layers": entries})
    checks = [
        name for base in type(family).__mro__ for name, method in vars(base).items() if hasattr(method, "is_property")
    ]
    assert len(checks) >= 5
    for name in dict.fromkeys(checks):
        if name == "every_token_changes_every_logit" and "window" in str(entries):
            continue  # two layers do not carry a token that far
        getattr(family, name)()


def test_a_mixer_that_positions_cannot_act_on_is_refused_beside_one():
    with pytest.raises(ValueError, match="position: Rotary rotates queries and keys, which DeltaNet has none of"):
        stack_of(None, attention=DeltaNet, position=Rotary)
    with pytest.raises(ValueError, match="position: ALiBi adds to the scores of queries and keys, and DeltaNet has no"):
        stack_of(["a"], layers={"a": {"attention": DeltaNet}}, position=ALiBi)
    own = {"a": {"attention": DeltaNet, "position": PositionEncoding}, "b": {}}
    assert stack_of(["a", "b"], layers=own, position=Rotary)(torch.randn(1, 5, 16)).shape == (1, 5, 16)
