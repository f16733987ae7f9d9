"""Fields of configurations, of published models and in old spellings, and forms of tensors, which undo each other bit for bit."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interop.published import PUBLISHED
from tests.interop.tiny_models import copied

from attnlab.interop import ARCHITECTURES, CannotConvert, read_model
from attnlab.interop.architecture import (
    COPY,
    IN_ONE,
    PIXELS,
    THIRDS,
    THIRDS_OF_HEADS,
    THIRDS_TRANSPOSED,
    TRANSPOSED,
    Rule,
    fused,
    modules,
    to_ours,
    to_theirs,
)
from attnlab.interop.fields import OneOf, Only, Same
from attnlab.interop.gemma import GEMMA2, GEMMA3
from attnlab.interop.settings import completed


def written(fields, folder):
    """The reference that transformers makes of a published configuration, in a folder under that very configuration."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        (folder / "asked").mkdir()
        (folder / "asked" / "config.json").write_text(json.dumps(fields))
        config = transformers.AutoConfig.from_pretrained(folder / "asked")
        model = getattr(transformers, fields["architectures"][0])(config).eval()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    return model


def run(model, fields):
    """What either library's model makes of the same rows or images."""
    if fields["model_type"] == "vit":
        return model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    tokens = torch.arange(3, 15)[None]
    if fields.get("is_encoder_decoder"):
        target = tokens.flip(1)[:, :5]
        return model(input_ids=tokens, decoder_input_ids=target) if hasattr(model, "config") else model(tokens, target)
    return model(tokens)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read_as_transformers_reads_them(name, tmp_path):
    fields = PUBLISHED[name]
    theirs = written(fields, tmp_path)
    found = read_model(tmp_path)
    assert found.ignored == []
    model = found.model()
    with torch.no_grad():
        here, there = run(model, fields), run(theirs, fields)
        if name == "bart-base":  # published without its output
            assert found.fresh == ["head_bias"]
            there = there.last_hidden_state @ theirs.shared.weight.T
        else:
            assert found.fresh == []
            there = there.logits
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


# --- spellings


def llama(**fields):
    small = PUBLISHED["Llama-3.2-1B"]
    return {key: value for key, value in small.items() if not key.startswith("rope")} | fields


LINEAR = {"position": "RotaryLinear", "position.factor": 2.0, "position.base": 500.0}


@pytest.mark.parametrize(
    ("name", "fields", "settings"),
    [
        ("llama", llama(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}), LINEAR),
        ("llama", llama(rope_theta=500.0, rope_scaling={"rope_type": "linear", "factor": 2.0}), LINEAR),
        ("llama", llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}), LINEAR),
        ("llama", llama(rope_theta=500.0, rope_scaling=None), {"position": "Rotary", "position.base": 500.0}),
        ("llama", llama(), {"position": "Rotary", "position.base": 10000.0}),
        ("llama", llama(partial_rotary_factor=1.0), {"position": "Rotary"}),
        ("gpt_neox", {**PUBLISHED["pythia-70m"], "rotary_pct": 0.5}, {"position.fraction": 0.5}),
        (
            "gpt_neox",
            {k: v for k, v in PUBLISHED["pythia-70m"].items() if k != "rotary_pct"},
            {"position.fraction": 0.25},
        ),
        ("gpt_neox", {**PUBLISHED["pythia-70m"], "rotary_emb_base": 77}, {"position.base": 77}),
        (
            "bloom",
            {k.replace("n_embed", "hidden_size"): v for k, v in PUBLISHED["bloom-560m"].items()},
            {"d_model": 12},
        ),
        ("gpt2", {**PUBLISHED["gpt2"], "scale_attn_weights": False}, {"attention.scale": 1.0}),
        ("gpt2", {**PUBLISHED["gpt2"], "n_inner": None}, {}),
        ("bart", {**PUBLISHED["bart-base"], "encoder_layers": 3}, {"num_layers": 3}),  # though num_hidden_layers is 2
        (
            "t5",
            {**PUBLISHED["t5-small"], "feed_forward_proj": "relu", "scale_decoder_outputs": True},
            {"scale_logits": True},
        ),
        ("t5", PUBLISHED["t5-v1_1-small"], {"scale_logits": False, "feed_forward.approximate": "tanh"}),
        ("vit", {**PUBLISHED["vit-base-patch16-224"], "image_size": [8, 12], "patch_size": [4, 4]}, {"patch_size": 4}),
        ("roberta", {**PUBLISHED["roberta-base"], "pad_token_id": 0}, {"position.offset": 1, "max_length": 17}),
    ],
)
def test_every_spelling_is_read(name, fields, settings):
    found = ARCHITECTURES[name].read_config(fields)
    assert {key: found.get(key) for key in settings} == settings


# --- what has no counterpart

BASE = {
    "gpt2": "gpt2",
    "bert": "bert-base-uncased",
    "llama": "Llama-3.2-1B",
    "bart": "bart-base",
    "marian": "opus-mt-en-de",
    "bloom": "bloom-560m",
    "vit": "vit-base-patch16-224",
    "roberta": "roberta-base",
    "t5": "t5-small",
}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bert", {"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu' has no counterpart here; accepted: 'gelu'"),
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu' has no counterpart here; accepted: 'silu', 'swish', "),
        ("llama", {"partial_rotary_factor": 0.5}, "rope.partial_rotary_factor=0.5 is not what transformers computes: "),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope.partial_rotary_factor=0.5 is not what "),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act=['silu'] has no counterpart here; accepted: "),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope.rope_type='dynamic' has no counterpart here; accepted: 'default', "),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "rope.truncate=False has no counterpart here"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' has no counterpart here; accepted: 'absolute'"),
        ("bert", {"is_decoder": True}, "is_decoder=True has no counterpart here; accepted: False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True has no counterpart here; accepted: False"),
        ("bart", {"decoder_ffn_dim": 24}, "encoder_ffn_dim=20 and decoder_ffn_dim=24 have no counterpart here; accepted: one number for both"),
        ("marian", {"decoder_attention_heads": 4}, "encoder_attention_heads=3 and decoder_attention_heads=4 have no counterpart here"),
        ("marian", {"normalize_before": True}, "normalize_before=True has no counterpart here; accepted: False"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=True has no counterpart"),
        ("vit", {"qkv_bias": False}, "qkv_bias=False has no counterpart here; accepted: True"),
        ("vit", {"patch_size": [2, 4]}, "patch_size=[2, 4] has no counterpart here; accepted: one number, for square patches"),
        ("roberta", {"pad_token_id": None}, "config.json has pad_token_id=None and max_position_embeddings=18, from which positions are counted"),
        ("gpt2", {"n_embd": "12"}, "config.json has n_embd='12'; accepted: a number"),
        ("gpt2", {"n_embd": None}, "config.json has no n_embd, and a model cannot be built without it"),
        (
            "gpt2",
            {"sliding": 3, "other": "x"},
            "config.json has fields without a counterpart here: sliding=3, other='x'. If the model computes the same without them, say so "
            "with --ignore sliding --ignore other",
        ),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(name, change, said):
    with pytest.raises(CannotConvert, match=f"^{re.escape(said)}"):
        ARCHITECTURES[name].read_config({**PUBLISHED[BASE[name]], **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_head": 5}, "num_heads=5 does not divide d_model=12; accepted: 1, 2, 3, 4, 6, 12"),
        ({"n_head": 0}, "num_heads must be at least 1, got 0"),
        ({"n_layer": 0}, "num_layers must be at least 1, got 0"),
        ({"vocab_size": -1}, "vocabulary_size must be at least 1, got -1"),
        ({"n_embd": 12.5}, ""),
        ({"n_layer": [2]}, ""),
    ],
)
def test_sizes_that_cannot_be_are_named(change, said, tmp_path):
    written(PUBLISHED["gpt2"], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED["gpt2"], **change}))
    with pytest.raises(
        CannotConvert, match=f"^config.json describes a model that cannot be built: .*{re.escape(said)}"
    ):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("extra", "ignore"),
    [
        ({"sliding": 3}, ["sliding"]),
        ({"hidden_act": "quick_gelu"}, ["hidden_act"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, ["rope.truncate"]),
        ({"rope_parameters": {"rope_type": "dynamic"}}, ["rope_parameters"]),
    ],
)
def test_fields_are_left_out_as_asked_and_it_is_said(extra, ignore, saved, tmp_path):
    folder = copied(saved("llama"), tmp_path / "x", **extra)
    with pytest.raises(CannotConvert, match=r"(no|without a) counterpart"):
        read_model(folder)
    assert read_model(folder, ignore).ignored == ignore


# --- entries


def test_an_entry_reads_what_it_writes():
    same = Same("there", "here", default=3)
    assert same.read({}) == same.read({"there": None}) == {"here": 3}
    assert same.write(same.read({"there": 5})) == {"there": 5}
    words = OneOf("word", {"a": {"x": 1}, "b": {"x": 2, "y": 3}}, default="b")
    assert words.read({}) == words.read({"word": None}) == {"x": 2, "y": 3}
    assert [words.write(words.read({"word": word})) for word in "ab"] == [{"word": "a"}, {"word": "b"}]
    only = Only("flag", (False,))
    assert only.read({}) == only.read({"flag": None}) == only.read({"flag": False}) == only.write({}) == {}


# --- tensors


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


@settings(max_examples=40, deadline=None)
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
    rules = modules({"h.{i}.ln": "layers.{i}.norm"}, layers="num_decoder_layers")
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
    rules = [*fused("c_attn", "attention", THIRDS_TRANSPOSED, THIRDS), *modules({"ln": "norm"})]
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


SMALL_GEMMA = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
}


def test_what_gemma_2_leaves_out_is_not_what_it_says_is_null():
    unsaid = GEMMA2.read_config(SMALL_GEMMA)
    assert (unsaid["attention.soft_cap"], unsaid["logit_soft_cap"], unsaid["attention.scale"]) == (50.0, 30.0, 1 / 16)
    assert (unsaid["pattern"], unsaid["attention.window"], unsaid["layers.1.attention.window"]) == (
        [0, 1, 0],
        4096,
        None,
    )
    null = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 144}
    read = GEMMA2.read_config(SMALL_GEMMA | null | {"layer_types": ["full_attention"] * 3})
    assert not {"attention.soft_cap", "logit_soft_cap", "pattern"} & read.keys()
    written = GEMMA2.write_config(completed(read))
    assert {name: written[name] for name in null} == null
    assert GEMMA2.differences(completed(read)) == []
    (apart,) = GEMMA2.differences(completed(read | {"attention.scale": 0.3}))
    assert apart.startswith("attention.scale: 0.3 here")


LINEAR_8 = {"rope_type": "linear", "factor": 8.0}
OLD = {"rope_theta": 5e5, "rope_local_base_freq": 100.0, "rope_scaling": LINEAR_8, "sliding_window_pattern": 2}
NEW = {
    "rope_parameters": {"sliding_attention": {"rope_theta": 100.0}, "full_attention": {"rope_theta": 5e5, **LINEAR_8}},
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["old", "new"])
def test_gemma_3_turns_by_one_base_in_windows_and_by_another_without(spelling):
    read = GEMMA3.read_config(SMALL_GEMMA | spelling)
    assert (read["pattern"], read["attention.window"], read["layers.1.attention.window"]) == ([0, 1, 0], 4096, None)
    assert (read["position"], read["position.base"]) == ("Rotary", 100.0)
    of_kind = {name: read[f"layers.1.position{name}"] for name in ("", ".base", ".factor")}
    assert of_kind == {"": "RotaryLinear", ".base": 5e5, ".factor": 8.0}
    whole = completed(read)
    assert GEMMA3.differences(whole) == []
    assert GEMMA3.read_config(GEMMA3.write_config(whole)) == read
    alike = completed(GEMMA3.read_config(SMALL_GEMMA | {"layer_types": ["full_attention"] * 3}))
    assert ("pattern" in alike, alike["position.base"], GEMMA3.differences(alike)) == (False, 1e6, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not what transformers computes"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.rope_theta has no counterpart here"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}},
            "config.json has fields of layers without a counterpart here: rope.mscale=0.7",
        ),
    ],
)
def test_what_gemma_3_has_no_counterpart_for_is_named(change, said):
    with pytest.raises(CannotConvert, match=f"^{re.escape(said)}"):
        GEMMA3.read_config(SMALL_GEMMA | {"layer_types": ["full_attention"] * 3} | change)


def test_a_norm_of_queries_that_differs_from_the_others_is_refused():
    known = ARCHITECTURES["olmo2"]
    read = completed(known.read_config(SMALL_GEMMA))
    assert (read["residual.norm.eps"], read["attention.qk_norm_eps"], known.differences(read)) == (1e-5, 1e-5, [])
    assert len(known.differences(read | {"attention.qk_norm_eps": 1e-6})) == 1
