"""Settings: the same function looks the same however it was asked for, and what is built is what they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.interop import build, canonical, completed, different, nested
from attnlab.models import GPT

POSITIONS = [
    "PositionEncoding",
    "Sinusoidal",
    "Learned",
    "Rotary",
    "RotaryLinear",
    "RotaryYaRN",
    "ALiBi",
    "RelativeBias",
]
RESIDUALS = ["PostNorm", "PreNorm", "Sandwich", "DeepNorm", "ReZero", "Parallel"]
SIZES = {"vocabulary_size": 11, "max_length": 12, "d_model": 24, "num_heads": 4, "num_layers": 1}
WIDTHS = {"GPT": SIZES, "Bert": SIZES, "EncoderDecoder": SIZES, "T5": SIZES, "T5LanguageModel": SIZES}
WIDTHS["ViT"] = {"num_classes": 3, "image_size": 8, "patch_size": 4, "d_model": 24, "num_heads": 4, "num_layers": 1}


@st.composite
def models(draw):
    """Settings of a small model, most defaults left out."""
    model = draw(st.sampled_from(sorted(WIDTHS)))
    found = {"model": model, **WIDTHS[model]}
    choices = {
        "position": POSITIONS,
        "residual": RESIDUALS,
        "attention": ["MultiHead", "MultiQuery", "GroupedQuery", "Attention"],
        "feed_forward": ["ReLU", "SiLU", "GELU", "SquaredReLU", "GLU", "GEGLU", "SwiGLU", "ReGLU"],
        "d_ff": [30, 60],
        "attention.d_head": [4],
        "attention.qk_norm": [True],
        "attention.output_gate": [True],
        "feed_forward.bias": [True, False],
    }
    choices |= (
        {"tie_embeddings": [True, False]} if model != "ViT" else {"pooling": ["class", "mean"], "registers": [0, 2]}
    )
    for key, values in choices.items():
        if draw(st.booleans()):
            found[key] = draw(st.sampled_from(values))
    if found.get("residual") in ("PreNorm", "PostNorm", "Sandwich") and draw(st.booleans()):
        found["residual.norm"] = draw(st.sampled_from(["RMSNorm", "LayerNorm", "DynamicTanh"]))
    return found


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(models())
def test_spelling_the_defaults_out_changes_nothing(asked):
    with torch.device("meta"):
        plain, spelt = build(asked), build(completed(asked))
    assert type(plain) is type(spelt)
    assert shapes(plain) == shapes(spelt)
    assert completed(completed(asked)) == completed(asked)


@settings(max_examples=40, deadline=None)
@given(models())
def test_a_node_of_settings_has_these_settings(asked):
    node = nested(asked)
    assert node["_target_"] == f"attnlab.models.{asked['model']}"
    assert canonical(node) == completed(asked)
    assert different(canonical(node), completed(asked)) == []


def test_what_the_data_say_counts_as_said():
    node = {"_target_": "attnlab.models.GPT", "d_model": 24, "num_heads": 4, "num_layers": 1}
    assert canonical(node, vocabulary_size=11, max_length=12, unknown=3) == completed({"model": "GPT", **SIZES})


def gpt(**fields):
    return completed({"model": "GPT", **SIZES, **fields})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"d_ff": 96}),  # 4 d_model
        ({"attention": "MultiQuery"}, {"attention": "GroupedQuery", "attention.num_key_value_heads": 1}),
        ({"attention": "MultiHead"}, {"attention": "Attention", "attention.num_key_value_heads": 4}),
        ({}, {"attention.d_head": 6}),
        ({}, {"attention.scale": 6**-0.5}),
        ({"bias": True}, {"attention.bias": True, "feed_forward.bias": True}),
        ({"feed_forward": "SwiGLU"}, {"feed_forward": "SwiGLU", "feed_forward.matched": False, "d_ff": 64}),
        ({"d_ff": 30}, {"feed_forward.d_ff": 30}),
        ({"position": "RotaryYaRN"}, {"position": "RotaryYaRN", "position.original_length": 12}),
        ({}, {"dropout": 0.3}),  # acts in training alone
        ({}, {"attention.backend": "math"}),
    ],
)
def test_two_ways_to_ask_for_one_function_look_the_same(one, other):
    assert gpt(**one) == gpt(**other)


@pytest.mark.parametrize(
    ("model", "one", "other"),
    [
        ("EncoderDecoder", {}, {"num_decoder_layers": 1, "source_vocabulary_size": 11}),
        ("Bert", {"next_sentence": True}, {"next_sentence": True, "pooler": True}),
        ("ViT", {"image_size": 8}, {"image_size": [8, 8]}),
        ("ViT", {"image_size": 8}, {"image_size": (8, 8)}),
    ],
)
def test_so_they_do_in_other_models(model, one, other):
    assert completed({"model": model, **WIDTHS[model], **one}) == completed({"model": model, **WIDTHS[model], **other})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"attention.scale": 1.0}, "attention.scale: None here, 1.0 there"),
        ({"residual": "PostNorm"}, "residual: PreNorm here, PostNorm there"),
        ({"residual.norm.eps": 1e-6}, "residual.norm.eps: 1e-05 here, 1e-06 there"),
        ({"tie_embeddings": False}, "tie_embeddings: True here, False there"),
        ({"attention": "HeadGate"}, "attention: Attention here, HeadGate there"),
        ({"position": "ALiBi"}, "position: Sinusoidal here, ALiBi there"),  # and no word of the fields of one alone
        ({"position.base": 100.0}, "position.base: 10000.0 here, 100.0 there"),
        ({"embedding_norm": True}, "embedding_norm: False here, True there"),
    ],
)
def test_what_computes_something_else_looks_different(change, line):
    assert different(gpt(), gpt(**change)) == [line]


def test_the_length_of_a_model_shows_where_a_part_depends_on_it_alone():
    assert different(gpt(), gpt(max_length=99)) == []
    for part in ({"position": "Learned"}, {"attention": "SigmoidAttention"}, {"position": "CoPE"}):
        assert different(gpt(**part), gpt(**part, max_length=99)) == ["max_length: 12 here, 99 there"]


def test_layers_are_told_apart_as_a_model_tells_them():
    for kind in ("ValueResidual", "SharedKeyValues", "DifferentialAttention"):
        found = gpt(attention=kind, num_layers=2)
        assert "attention.layer_index" not in found
        first, second = (layer.attention for layer in build(found).stack.layers)
        assert getattr(first, "value_weights", None) is None
        assert {name for name, _ in first.named_parameters()} != {name for name, _ in second.named_parameters()} or (
            first.initial_lambda < second.initial_lambda
        )


def test_parts_that_are_bound_in_python_are_seen():
    # T5 names its residual as a partial of a class.
    found = completed({"model": "T5", **SIZES})
    assert (found["residual"], found["residual.norm"], found["residual.norm.eps"]) == ("PreNorm", "RMSNorm", 1e-6)


def test_a_part_of_the_users_own_is_none_of_attnlabs():
    node = {
        "_target_": "attnlab.models.GPT",
        **SIZES,
        "position": {"_target_": "my_parts.LogBias", "_partial_": True, "strength": 2.0},
    }
    found = canonical(node)
    assert found["position"] == "my_parts.LogBias"
    assert different(found, gpt())[0] == "position: my_parts.LogBias here, Sinusoidal there"
    with pytest.raises(KeyError, match=r"my_parts.Model is none of attnlab's own"):
        canonical({"_target_": "my_parts.Model"})
    # A class of the same name elsewhere is not this one.
    node["position"] = {"_target_": "my_parts.Rotary", "_partial_": True}
    assert different(canonical(node), gpt(position="Rotary"))[0] == "position: my_parts.Rotary here, Rotary there"


def test_what_is_built_is_the_model():
    model = build(
        {"model": "GPT", **SIZES, "residual": "PreNorm", "residual.norm": "RMSNorm", "attention": "MultiQuery"}
    )
    assert isinstance(model, GPT)
    assert type(model.stack.layers[0].residual.norms[0]).__name__ == "RMSNorm"
    assert model.stack.layers[0].attention.num_key_value_heads == 1
    with pytest.raises(ValueError, match="num_heads=5 does not divide"):
        build({"model": "GPT", **SIZES, "num_heads": 5})


def test_a_field_of_a_part_that_is_not_named_is_one_of_the_default_part():
    found = completed({"model": "T5", **SIZES, "residual.norm.eps": 1e-3, "position.num_buckets": 8})
    assert (found["residual"], found["residual.norm"], found["residual.norm.eps"]) == ("PreNorm", "RMSNorm", 1e-3)
    model = build({"model": "T5", **SIZES, "residual.norm.eps": 1e-3, "position.num_buckets": 8})
    assert model.encoder.layers[0].residual.norms[0].eps == 1e-3
    assert model.decoder.position.num_buckets == 8
    assert gpt(**{"residual.norm.eps": 1e-3})["residual.norm"] == "LayerNorm"
