"""Models that start from other models' weights: what is kept, converted, fresh and left, and what is refused."""

import pytest
import torch

from attnlab.interop import CannotConvert, build, completed, start_from
from attnlab.models.heads import SequenceClassifier, TokenClassifier

GPT = {
    "model": "GPT",
    "vocabulary_size": 11,
    "max_length": 8,
    "d_model": 16,
    "num_heads": 4,
    "num_layers": 2,
    "position": "Learned",
    "attention": "MultiHead",
    "residual.norm": "LayerNorm",
    "feed_forward": "ReLU",
}
BERT = {**GPT, "model": "Bert"}
LAYERS = ("stack.layers.0.", "stack.layers.1.")


def made(asked, seed):
    """Its settings and a model of them in which no two tensors are alike."""
    found = completed(asked)
    model, random = build(found), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return found, model


def begin(change, there=GPT, here=GPT):
    """A model of `here` with a change, started from one of `there`: (what was said, its tensors after, before, and the given ones)."""
    settings, source = made(there, 1)
    own, model = made({**here, **change}, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = source.state_dict()
    start = start_from(model, own, given, settings)
    after = model.state_dict()
    # Whatever is said is so.
    assert sorted([*start.kept, *start.converted, *start.fresh]) == sorted(after)
    assert all(after[name].equal(given[name]) for name in start.kept)
    assert all(after[name].equal(before[name]) for name in start.fresh)
    assert sorted(start.left) == sorted({*given} - {*after})
    return start, after, given


def test_an_unchanged_model_is_kept_whole():
    start, after, given = begin({})
    assert start.kept == [*after]
    assert (start.converted, start.fresh, start.left) == ({}, {}, [])
    assert start.lines() == [f"kept {len(given)} tensors as they are"]


def test_a_table_of_positions_is_left_for_alibi():
    start, _, given = begin({"position": "ALiBi"})
    assert start.left == ["stack.position.table.weight"]
    assert len(start.kept) == len(given) - 1
    assert start.converted == start.fresh == {}
    assert start.lines()[1] == "left behind: 1: stack.position.table.weight"


@pytest.mark.parametrize(
    ("attention", "fresh"),
    [
        ("SinkLogit", ["sink_H"]),
        ("ForgettingAttention", ["forget.bias", "forget.weight"]),
        ("TalkingHeads", ["mix_scores_HH", "mix_weights_HH"]),
        ("HeadGate", ["gate.weight"]),
        ("SoftmaxPlusOne", []),
        ("SharedKeyValues", []),
    ],
)
def test_another_kind_of_attention_starts_from_the_projections_that_it_has(attention, fresh):
    start, _, given = begin({"attention": attention})
    gone = [name for name in KEYS if "layers.1" in name] if attention == "SharedKeyValues" else []
    assert sorted(start.kept) == sorted({*given} - {*gone})
    assert sorted(start.fresh) == sorted(f"{layer}attention.{name}" for layer in LAYERS for name in fresh)
    assert sorted(start.left) == sorted(gone)


def test_latent_attention_leaves_keys_and_values_that_have_other_shapes():
    start, _, _ = begin({"attention": "LatentAttention", "attention.kv_rank": 8})
    assert {name.split("attention.")[1] for name in start.fresh} == {
        *("query.weight", "key.weight", "value.weight"),
        *("latent.weight", "latent_norm.weight", "rotary_key.weight"),
    }


KEYS = [f"{layer}attention.{name}.weight" for layer in LAYERS for name in ("key", "value")]


@pytest.mark.parametrize("groups", [1, 2])
def test_shared_keys_start_as_means_of_their_group(groups):
    start, after, given = begin({"attention": "GroupedQuery", "attention.num_key_value_heads": groups})
    assert start.converted == dict.fromkeys(KEYS, f"means of {4 // groups} heads")
    for name in KEYS:
        heads = given[name].view(4, 4, 16)
        size = 4 // groups
        for group in range(groups):
            mean = sum(heads[group * size + i] for i in range(size)) / size
            torch.testing.assert_close(after[name].view(groups, 4, 16)[group], mean)
    assert (start.fresh, start.left) == ({}, [])


@pytest.mark.parametrize("groups", [1, 2])
def test_keys_of_their_own_start_as_those_of_their_group_and_compute_the_same(groups):
    there = {**GPT, "attention": "GroupedQuery", "attention.num_key_value_heads": groups}
    settings, source = made(there, 1)
    own, model = made(GPT, 2)
    start = start_from(model, own, source.state_dict(), settings)
    assert start.converted == dict.fromkeys(KEYS, f"each head {4 // groups} times")
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(model(tokens), source(tokens), atol=1e-4, rtol=1e-4)
    for name in KEYS:
        heads = model.state_dict()[name].view(4, 4, 16)
        shared = source.state_dict()[name].view(groups, 4, 16)
        assert all(heads[i].equal(shared[i * groups // 4]) for i in range(4))


def test_biases_of_keys_are_converted_too():
    start, after, given = begin({"attention": "MultiQuery"}, {**GPT, "bias": True}, {**GPT, "bias": True})
    name = f"{LAYERS[0]}attention.key.bias"
    assert start.converted[name] == "means of 4 heads"
    torch.testing.assert_close(after[name], given[name].view(4, 4).mean(dim=0))


def test_groups_that_fit_none_of_the_other_start_anew():
    six = {**GPT, "d_model": 24, "num_heads": 6}
    three = {**six, "attention": "GroupedQuery", "attention.num_key_value_heads": 3}
    start, _, _ = begin({"attention": "GroupedQuery", "attention.num_key_value_heads": 2}, three, six)
    assert start.fresh == dict.fromkeys(KEYS, "(12, 24) there, (8, 24) here")


def test_an_output_of_its_own_starts_as_the_embedding():
    start, after, given = begin({"tie_embeddings": False})
    assert start.converted == {"head.weight": "the embedding"}
    assert after["head.weight"].equal(given["embedding.weight"])
    assert (start.fresh, start.left) == ({}, [])


def test_an_output_that_is_to_be_tied_is_left():
    start, after, given = begin({}, there={**GPT, "tie_embeddings": False})
    assert start.left == ["head.weight"]
    assert after["embedding.weight"].equal(given["embedding.weight"])


def test_rms_norms_take_the_gains_and_leave_the_biases():
    start, _, given = begin({"residual.norm": "RMSNorm"})
    assert start.left == sorted(name for name in given if "norm" in name and name.endswith(".bias"))
    assert len(start.left) == 5
    assert start.converted == start.fresh == {}
    assert f"{LAYERS[0]}residual.norms.0.weight" in start.kept


def test_a_gated_layer_of_another_width_is_fresh():
    start, _, _ = begin({"feed_forward": "SwiGLU"})
    names = [f"{layer}feed_forward" for layer in LAYERS]
    shapes = {"up": "(64, 16) there, (43, 16) here", "down": "(16, 64) there, (16, 43) here", "gate": ""}
    assert start.fresh == {f"{name}.{part}.weight": why for name in names for part, why in shapes.items()}
    assert start.lines()[1].startswith(f"fresh: 6: {names[0]}.up.weight (")
    assert f"{names[0]}.gate.weight, " in start.lines()[1]


def test_a_gated_layer_of_the_same_width_keeps_what_it_shares():
    start, _, _ = begin({"feed_forward": "SwiGLU", "feed_forward.matched": False})
    assert start.fresh == {f"{layer}feed_forward.gate.weight": "" for layer in LAYERS}


def test_layers_that_go_are_left_and_layers_that_come_are_fresh():
    fewer, _, given = begin({"num_layers": 1})
    assert fewer.left == sorted(name for name in given if name.startswith(LAYERS[1]))
    assert not fewer.fresh
    more, after, given = begin({"num_layers": 3})
    assert more.fresh == {name: "" for name in after if name.startswith("stack.layers.2.")}
    assert more.kept == [name for name in after if name in given]


def test_a_shorter_table_takes_the_first_rows():
    start, after, given = begin({"max_length": 5})
    assert start.converted == {"stack.position.table.weight": "the first 5 of 8 rows"}
    assert after["stack.position.table.weight"].equal(given["stack.position.table.weight"][:5])


def test_a_table_whose_rows_stand_for_other_positions_is_fresh_whatever_its_shape():
    name = "stack.position.table.weight"
    # The same shape: 8 rows behind none, and 6 behind 2.
    start, _, _ = begin({"position.offset": 2, "max_length": 6})
    assert start.fresh == {name: "its rows stand for other positions"}
    # The same shape: a row for each of 32 positions of width 4, and one for each of 32 buckets of 4 heads.
    small = {**GPT, "d_model": 4, "max_length": 32}
    start, _, _ = begin({"position": "RelativeBias"}, small, small)
    assert start.fresh == {name: "its rows stand for other positions"}


def test_a_residual_without_norms_leaves_them():
    start, after, given = begin(
        {"residual": "ReZero"}, here={key: v for key, v in GPT.items() if key != "residual.norm"}
    )
    assert start.left == sorted(name for name in given if "norm" in name)
    assert start.fresh == {name: "" for name in after if name.endswith("alpha")}
    assert len(start.fresh) == 2


# --- refused


@pytest.mark.parametrize(
    ("change", "name", "shapes"),
    [
        ({"d_model": 32}, "embedding.weight", "(11, 16) there, (11, 32) here"),
        ({"vocabulary_size": 12}, "embedding.weight", "(11, 16) there, (12, 16) here"),
        ({"d_ff": 20}, "stack.layers.0.feed_forward.up.weight", "(64, 16) there, (20, 16) here"),
        ({"num_heads": 2}, "num_heads", "4 there, 2 here"),
        ({"max_length": 9}, "stack.position.table.weight", "(8, 16) there, (9, 16) here"),
        ({"d_model": 32, "attention": "MultiQuery"}, "embedding.weight", "(11, 16) there, (11, 32) here"),
        ({"tie_embeddings": False, "vocabulary_size": 12}, "embedding.weight", "(11, 16) there, (12, 16) here"),
    ],
)
def test_other_sizes_are_refused_and_nothing_is_changed(change, name, shapes):
    settings, source = made(GPT, 1)
    own, model = made({**GPT, **change}, 2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CannotConvert) as refused:
        start_from(model, own, source.state_dict(), settings)
    said = str(refused.value)
    assert said.startswith(f"tensors of other shapes, which no part that was chosen anew explains: {name}: {shapes}")
    assert said.endswith("Give this model the sizes of that one")
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())


def test_another_grid_of_patches_is_not_a_shorter_table():
    vit = {
        "model": "ViT",
        "num_classes": 3,
        "image_size": 8,
        "patch_size": 2,
        "d_model": 16,
        "num_heads": 4,
        "num_layers": 1,
    }
    settings, source = made(vit, 1)
    own, model = made({**vit, "image_size": 4}, 2)
    with pytest.raises(CannotConvert, match=r"stack.position.table.weight: \(16, 16\) there, \(4, 16\) here"):
        start_from(model, own, source.state_dict(), settings)


def test_models_without_a_tensor_in_common_are_refused():
    settings, _ = made(GPT, 1)
    own, model = made(GPT, 2)
    with pytest.raises(CannotConvert, match=r"the two models share no tensor \(other.weight there, embedding.weight, "):
        start_from(model, own, {"other.weight": torch.ones(2)}, settings)


# --- an encoder inside of a task's model


def test_an_encoder_goes_into_a_tasks_model_and_out_of_one():
    settings, source = made(BERT, 1)
    own, inner = made(BERT, 2)
    model = SequenceClassifier(inner, 3)
    start = start_from(model, own, source.state_dict(), settings)
    assert start.fresh == {"output.weight": "", "output.bias": ""}
    assert all(inner.state_dict()[name].equal(tensor) for name, tensor in source.state_dict().items())
    _, other = made(BERT, 3)
    back = start_from(other, own, model.state_dict(), own)
    assert back.left == ["output.bias", "output.weight"]
    assert all(other.state_dict()[name].equal(tensor) for name, tensor in source.state_dict().items())


def test_the_output_goes_from_one_model_of_a_task_to_another():
    settings, one = made(BERT, 1)
    own, two = made({**BERT, "position": "ALiBi"}, 2)
    source, model = TokenClassifier(one, 3), TokenClassifier(two, 3)
    start = start_from(model, own, source.state_dict(), settings)
    assert {"output.weight", "output.bias"} <= {*start.kept}
    assert start.left == ["encoder.stack.position.table.weight"]


def test_an_untied_output_inside_of_a_tasks_model_is_converted_too():
    settings, source = made(BERT, 1)
    own, inner = made({**BERT, "tie_embeddings": False}, 2)
    start = start_from(SequenceClassifier(inner, 3), own, source.state_dict(), settings)
    assert start.converted == {"encoder.head.weight": "the embedding"}
    assert inner.head.weight.equal(source.embedding.weight)


def test_layers_that_are_to_be_shared_take_the_encoders():
    t5 = {
        "model": "T5",
        **{
            key: value for key, value in GPT.items() if key in ("vocabulary_size", "d_model", "num_heads", "num_layers")
        },
    }
    settings, source = made(t5, 1)
    own, model = made({**t5, "share_layers": True}, 2)
    start = start_from(model, own, source.state_dict(), settings)
    name = "layers.0.attention.query.weight"
    assert model.state_dict()[f"encoder.{name}"].equal(source.state_dict()[f"encoder.{name}"])
    assert f"decoder.{name}" in start.left
    assert f"decoder.{name}" not in start.kept
    assert "decoder.layers.0.cross_attention.query.weight" in start.kept
    again, twin = made({**t5, "share_layers": True}, 3)
    assert start_from(twin, again, model.state_dict(), own).left == []


CLIP = {"model": "CLIP", "vocabulary_size": 17, "max_length": 8, "image_size": 8, "channels": 1, "image.d_model": 16}
CLIP |= {
    f"{tower}.{size}": number for tower in ("image", "text") for size, number in (("num_heads", 2), ("num_layers", 1))
}


def test_the_parts_of_each_tower_change_by_themselves():
    there, here = completed(CLIP), completed(CLIP | {"text.position": "ALiBi", "image.attention": "MultiQuery"})
    given, model = build(there).state_dict(), build(here)
    started = start_from(model, here, given, there)
    assert started.left == ["text.stack.position.table.weight"]
    assert {*started.converted} == {
        f"image.stack.layers.0.attention.{name}.{kind}" for name in ("key", "value") for kind in ("weight", "bias")
    }
    assert started.fresh == {}
    kept = "image.stack.position.table.weight"
    assert kept in started.kept
    assert model.state_dict()[kept].equal(given[kept])


def test_heads_of_a_tower_that_are_cut_elsewhere_are_refused():
    there, here = completed(CLIP), completed(CLIP | {"text.num_heads": 4})
    with pytest.raises(
        CannotConvert, match=r"text\.attention\.d_head: 64 there, 32 here; text\.num_heads: 2 there, 4|text"
    ):
        start_from(build(here), here, build(there).state_dict(), there)
