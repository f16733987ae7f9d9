"""The forms of tensors undo each other, bit for bit, and are what their names say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.interop.rules import (
    COPY,
    IN_ONE,
    PIXELS,
    THIRDS,
    THIRDS_OF_HEADS,
    THIRDS_TRANSPOSED,
    TRANSPOSED,
    Rule,
    both,
    fused,
    to_ours,
    to_theirs,
)


def sizes(a, b, h, k, c, p):
    """The shape of each form's tensor there, and of its parts here."""
    there = {
        COPY: (a, b),
        TRANSPOSED: (a, b),
        THIRDS: (3 * a, b),
        THIRDS_TRANSPOSED: (a, 3 * b),
        THIRDS_OF_HEADS: (3 * h * k, a),
        IN_ONE: (1, a, b),
        PIXELS: (a, c, p, p),
    }
    here = {
        COPY: [(a, b)],
        TRANSPOSED: [(b, a)],
        THIRDS: [(a, b)] * 3,
        THIRDS_TRANSPOSED: [(b, a)] * 3,
        THIRDS_OF_HEADS: [(h * k, a)] * 3,
        IN_ONE: [(a, b)],
        PIXELS: [(a, c * p * p)],
    }
    return there, here


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([COPY, TRANSPOSED, THIRDS, THIRDS_TRANSPOSED, THIRDS_OF_HEADS, IN_ONE, PIXELS]),
    st.tuples(*[st.integers(1, 5)] * 6),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_split_and_join_undo_each_other(form, numbers, dtype):
    there, here = sizes(*numbers)
    told = {"num_heads": numbers[2], "channels": numbers[4], "patch_size": numbers[5]}
    tensor = torch.randn(there[form]).to(dtype)
    parts = form.split(tensor, told)
    assert [tuple(part.shape) for part in parts] == here[form]
    assert form.join(parts, told).equal(tensor)
    parts = [torch.randn(shape).to(dtype) for shape in here[form]]
    again = form.split(form.join(parts, told), told)
    assert all(one.equal(other) for one, other in zip(again, parts, strict=True))


def test_thirds_of_each_head_are_queries_keys_and_values_head_by_head():
    # Two heads of width 1: rows q0 k0 v0 q1 k1 v1.
    tensor = torch.arange(6.0)[:, None]
    query, key, value = THIRDS_OF_HEADS.split(tensor, {"num_heads": 2})
    assert [part.flatten().tolist() for part in (query, key, value)] == [[0, 3], [1, 4], [2, 5]]
    assert [part.tolist() for part in THIRDS_OF_HEADS.split(tensor[:, 0], {"num_heads": 2})] == [[0, 3], [1, 4], [2, 5]]


def test_pixels_lie_channel_by_channel_and_row_by_row():
    (part,) = PIXELS.split(torch.arange(8.0).view(1, 2, 2, 2), {})
    assert part.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_rule_of_layers_is_one_of_each():
    rules = both("h.{i}.ln", "layers.{i}.norm", layers="num_decoder_layers")
    names = [(rule.theirs, rule.ours) for each in rules for rule in each.each({"num_decoder_layers": 2})]
    assert names == [
        ("h.0.ln.weight", ("layers.0.norm.weight",)),
        ("h.1.ln.weight", ("layers.1.norm.weight",)),
        ("h.0.ln.bias", ("layers.0.norm.bias",)),
        ("h.1.ln.bias", ("layers.1.norm.bias",)),
    ]


def test_a_rule_holds_where_a_setting_is_or_is_not():
    assert Rule("a", ("b",), has="x").holds({"x": 1})
    assert not Rule("a", ("b",), has="x").holds({})
    assert Rule("a", ("b",), lacks="x").holds({})
    assert not Rule("a", ("b",), lacks="x").holds({"x": 1})


@pytest.mark.parametrize("bias", [True, False])
def test_rules_carry_what_is_given_and_nothing_else(bias):
    rules = [*fused("c_attn", "attention", THIRDS_TRANSPOSED, THIRDS), *both("ln", "norm")]
    there = {"c_attn.weight": torch.randn(4, 12), "ln.weight": torch.randn(4)} | (
        {"c_attn.bias": torch.randn(12)} if bias else {}
    )
    here = to_ours(rules, there, {})
    parts = [
        f"attention.{part}.{kind}" for kind in ("weight", "bias")[: 1 + bias] for part in ("query", "key", "value")
    ]
    assert sorted(here) == sorted([*parts, "norm.weight"])
    assert here["attention.key.weight"].equal(there["c_attn.weight"][:, 4:8].t())
    assert all(tensor.is_contiguous() for tensor in here.values())
    back = to_theirs(rules, here, {})
    assert sorted(back) == sorted(there)
    assert all(back[name].equal(there[name]) for name in there)
    del here["attention.key.weight"]
    assert "c_attn.weight" not in to_theirs(rules, here, {})
