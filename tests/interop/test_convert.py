"""Models that transformers wrote, read: every spelling of names, every type of numbers; and what is refused, with what is wrong."""

import re

import pytest
import torch
from safetensors.torch import load_file
from tests.interop.tiny_models import (
    BART,
    BERT,
    GPT,
    LLAMA,
    MODELS,
    NEOX,
    T5,
    config_of,
    copied,
    reference,
    tensors_of,
    write_tensors,
)

from attnlab.interop import CannotConvert, build, from_theirs, read_model, to_folder
from attnlab.interop.architecture import to_ours
from attnlab.models import Bert
from attnlab.models.heads import SequenceClassifier

OUTPUT = ["head_bias", "transform.bias", "transform.weight", "transform_norm.bias", "transform_norm.weight"]
ROBERTA = {**BERT, "type_vocab_size": 1}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_read_and_written_back_bit_for_bit(name, saved, tmp_path):
    first = read_model(saved(name))
    assert first.architecture.name == name
    assert first.fresh == first.ignored == []
    model = first.model()
    assert {*first.tensors} == {key for key in model.state_dict() if not key.endswith("_extra_state")}
    to_folder(tmp_path / "out", first.settings, model.state_dict())
    second = read_model(tmp_path / "out")
    assert second.settings == first.settings
    assert all(second.tensors[key].equal(tensor) for key, tensor in first.tensors.items())
    theirs, again = tensors_of(saved(name)), tensors_of(tmp_path / "out")
    assert all(again[key].equal(theirs[key]) for key in again)


@pytest.mark.parametrize(
    ("model", "config", "fields", "fresh"),
    [
        ("BertModel", "BertConfig", BERT, OUTPUT),
        ("RobertaModel", "RobertaConfig", ROBERTA, OUTPUT),
        ("LlamaModel", "LlamaConfig", LLAMA, ["head.weight"]),
        ("LlamaModel", "LlamaConfig", {**LLAMA, "tie_word_embeddings": True}, []),
        ("GPTNeoXModel", "GPTNeoXConfig", NEOX, ["head.weight"]),
        ("GPT2Model", "GPT2Config", {**GPT, "n_positions": 16}, []),
        ("GPT2Model", "GPT2Config", {**GPT, "n_positions": 16, "tie_word_embeddings": False}, ["head.weight"]),
        ("BloomModel", "BloomConfig", MODELS["bloom"][2], []),
        ("BartModel", "BartConfig", BART, ["head_bias"]),
        ("T5Model", "T5Config", T5, []),
    ],
)
def test_a_model_without_its_output_gets_a_fresh_or_the_tied_one(model, config, fields, fresh, tmp_path):
    theirs = reference(model, config, fields)
    theirs.save_pretrained(tmp_path)
    found = read_model(tmp_path)
    assert found.fresh == fresh
    assert found.settings["tie_embeddings"] is ("head.weight" not in fresh)
    own, mine = tensors_of(tmp_path), found.model()
    rules = found.architecture.of_model(mine, found.settings)
    assert not any(rule.theirs in own for rule in rules if found.architecture.prefix)  # the names lack the prefix
    named = to_ours(rules, {f"{found.architecture.prefix}{key}": tensor for key, tensor in own.items()}, found.settings)
    assert all(mine.state_dict()[key].equal(tensor) for key, tensor in named.items())
    assert {*mine.state_dict()} == {*named, *fresh}


def test_an_encoder_without_its_output_computes_the_same_states(tmp_path):
    theirs = reference("BertModel", "BertConfig", BERT)
    theirs.save_pretrained(tmp_path)
    model, tokens = read_model(tmp_path).model(), torch.arange(3, 15)[None]
    with torch.no_grad():
        there = theirs(tokens)
        torch.testing.assert_close(model.encode(tokens), there.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.pool(model.encode(tokens)), there.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_read_as_exactly_those_numbers(dtype, saved, tmp_path):
    folder = copied(saved("llama"), tmp_path / "half", lambda t: {k: v.to(dtype) for k, v in t.items()})
    found, whole = read_model(folder), read_model(saved("llama"))
    for name, tensor in whole.tensors.items():
        assert found.tensors[name].dtype == torch.float32
        assert found.tensors[name].equal(tensor.to(dtype).float())


def test_old_names_are_those_of_today(saved, tmp_path):
    def old(tensors):
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {re.sub("LayerNorm.(weight|bias)$", lambda m: names[m[0]], name): t for name, t in tensors.items()}

    folder = copied(saved("bert"), tmp_path / "old", old)
    assert "bert.embeddings.LayerNorm.gamma" in tensors_of(folder)
    assert_same(read_model(folder), read_model(saved("bert")))


def assert_same(one, other):
    assert one.settings == other.settings
    assert one.tensors.keys() == other.tensors.keys()
    assert all(one.tensors[name].equal(tensor) for name, tensor in other.tensors.items())


# What old files repeat or keep beside the weights.
BESIDE = {
    "gpt2": lambda t: {
        "lm_head.weight": t["transformer.wte.weight"],
        "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16).tril(),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": lambda t: {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool).tril(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(2),
    },
    "llama": lambda t: {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)},
    "bert": lambda t: {
        "bert.embeddings.position_ids": torch.arange(16)[None],
        "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": t["cls.predictions.bias"],
    },
    "roberta": lambda t: {
        "roberta.embeddings.position_ids": torch.arange(16)[None],
        "lm_head.decoder.weight": t["roberta.embeddings.word_embeddings.weight"],
        "lm_head.decoder.bias": t["lm_head.bias"],
    },
    "t5": lambda t: {
        "encoder.embed_tokens.weight": t["shared.weight"],
        "decoder.embed_tokens.weight": t["shared.weight"],
        "lm_head.weight": t["shared.weight"],
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 3),
    },
    "marian": lambda t: {
        "model.encoder.embed_tokens.weight": t["model.shared.weight"],
        "model.decoder.embed_tokens.weight": t["model.shared.weight"],
        "model.encoder.embed_positions.weight": torch.ones(16, 12),
        "lm_head.weight": t["model.shared.weight"],
    },
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_old_files_repeat_and_keep_beside_the_weights_is_no_matter(name, saved, tmp_path):
    folder = copied(saved(name), tmp_path / "old", lambda t: {**t, **BESIDE[name](t)})
    assert_same(read_model(folder), read_model(saved(name)))


def test_a_table_that_stands_under_a_copys_name_alone_is_found(saved, tmp_path):
    def renamed(tensors):
        return {name.replace("shared.weight", "encoder.embed_tokens.weight"): t for name, t in tensors.items()}

    assert_same(read_model(copied(saved("t5"), tmp_path / "old", renamed)), read_model(saved("t5")))


def test_copies_that_differ_are_refused(saved, tmp_path):
    folder = copied(saved("t5"), tmp_path / "x", lambda t: {**t, "encoder.embed_tokens.weight": t["shared.weight"] + 1})
    with pytest.raises(CannotConvert, match=r"encoder.embed_tokens.weight differs from shared.weight"):
        read_model(folder)


def test_an_output_of_its_own_is_not_tied(saved, tmp_path):
    own = torch.randn(37, 12)
    folder = copied(saved("gpt2"), tmp_path / "own", lambda t: {**t, "lm_head.weight": own}, tie_word_embeddings=False)
    found = read_model(folder)
    assert found.settings["tie_embeddings"] is False
    assert found.tensors["head.weight"].equal(own)


@pytest.mark.parametrize("said", [..., None])
def test_where_nothing_is_said_of_keys_every_head_has_its_own(said, tmp_path):
    theirs = reference("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "num_key_value_heads": 3})
    theirs.save_pretrained(tmp_path / "said")
    folder = copied(tmp_path / "said", tmp_path / "unsaid", num_key_value_heads=said)
    assert read_model(folder).settings["attention.num_key_value_heads"] == 3
    assert_same(read_model(folder), read_model(tmp_path / "said"))


def test_many_files_are_one_model(saved, references, tmp_path):
    references("llama").save_pretrained(tmp_path, max_shard_size="4KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(read_model(tmp_path), read_model(saved("llama")))


# --- tensors that are not those of the configuration


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def test_missing_and_unexpected_tensors_are_listed(saved, tmp_path):
    def change(tensors):
        return {
            **without("bert.pooler.dense.bias", "cls.predictions.bias")(tensors),
            "classifier.weight": torch.ones(2, 12),
        }

    folder = copied(saved("bert"), tmp_path / "x", change)
    with pytest.raises(CannotConvert) as refused:
        read_model(folder)
    assert str(refused.value) == (
        "the tensors are not those of bert with this configuration; missing: bert.pooler.dense.bias, cls.predictions.bias; "
        "unexpected: classifier.weight (--ignore NAME, or a pattern such as 'classifier.*', leaves one out)"
    )


def test_a_layer_more_or_less_is_named(saved, tmp_path):
    fewer = copied(saved("gpt2"), tmp_path / "fewer", n_layer=1)
    with pytest.raises(
        CannotConvert,
        match=r"configuration; unexpected: transformer.h.1.attn.c_attn.bias, ",
    ):
        read_model(fewer)
    more = copied(saved("gpt2"), tmp_path / "more", n_layer=3)
    with pytest.raises(CannotConvert, match=r"missing: transformer.h.2.ln_1.weight, transformer.h.2.ln_1.bias, "):
        read_model(more)


@pytest.mark.parametrize(("name", "field"), [("gpt2", "n_layer"), ("bart", "decoder_layers")])
def test_layers_without_number_are_not_built(name, field, saved, tmp_path):
    folder = copied(saved(name), tmp_path / "x", **{field: 10**9})
    with pytest.raises(CannotConvert, match=r"config.json says 1,000,000,000 layers, and the files hold \d+ tensors"):
        read_model(folder)


def test_long_lists_are_cut(saved, tmp_path):
    more = copied(saved("gpt2"), tmp_path / "more", n_layer=9)
    with pytest.raises(CannotConvert, match=r"\.\.\. \(84 in all\)$"):
        read_model(more)


@pytest.mark.parametrize("pattern", ["classifier.*", "classifier.weight", "class*"])
def test_tensors_are_left_out_as_asked(pattern, saved, tmp_path):
    folder = copied(saved("bert"), tmp_path / "x", lambda t: {**t, "classifier.weight": torch.ones(2, 12)})
    found = read_model(folder, ignore=[pattern])
    assert found.ignored == ["classifier.weight"]
    assert_same(found, read_model(saved("bert")))


@pytest.mark.parametrize("pattern", ["classifier.bias", "classifier", "classifierXweight", "(", "["])
def test_a_pattern_leaves_out_what_it_names_alone(pattern, saved, tmp_path):
    folder = copied(saved("bert"), tmp_path / "x", lambda t: {**t, "classifier.weight": torch.ones(2, 12)})
    with pytest.raises(CannotConvert, match=r"unexpected: classifier\.weight"):
        read_model(folder, ignore=[pattern])


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("gpt2", "transformer.wte.weight", (36, 12)),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (12, 37)),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (12, 2)),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", (12,)),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", (35, 12)),
        ("bart", "final_logits_bias", ()),
        ("vit", "vit.embeddings.patch_embeddings.projection.weight", (12, 48)),
        ("vit", "vit.embeddings.cls_token", (1, 1, 11)),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.q.weight", (12, 15)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both(name, tensor, shape, saved, tmp_path):
    right = tuple(tensors_of(saved(name))[tensor].shape)
    folder = copied(saved(name), tmp_path / "x", lambda t: {**t, tensor: torch.zeros(shape)})
    said = f"tensors of other shapes than config.json says: {tensor}: {shape} in the file, {right} by the configuration"
    with pytest.raises(CannotConvert, match=f"^{re.escape(said)}"):
        read_model(folder)


def test_whole_numbers_are_no_weights(saved, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = copied(saved("llama"), tmp_path / "x", lambda t: {**t, name: t[name].to(torch.int8)})
    with pytest.raises(
        CannotConvert, match=rf"no floating-point numbers, as in quantised models: {name} \(torch.int8\)"
    ):
        read_model(folder)


# --- into models


def test_weights_go_into_the_encoder_of_a_tasks_model(saved):
    found = read_model(saved("bert"))
    inner = build(found.settings)
    assert isinstance(inner, Bert)
    outer = SequenceClassifier(inner, 3)
    found.load(outer)
    assert all(outer.encoder.state_dict()[name].equal(tensor) for name, tensor in found.tensors.items())


def test_a_model_that_lacks_a_tensor_is_refused(saved):
    found = read_model(saved("bert"))
    other = build({**found.settings, "num_layers": 1})
    with pytest.raises(CannotConvert, match=r"the model that is to take the weights lacks stack.layers.1"):
        found.load(other)


def test_names_and_tensors_are_enough(saved):
    found = from_theirs(config_of(saved("gpt2")), load_file(saved("gpt2") / "model.safetensors"))
    assert_same(found, read_model(saved("gpt2")))


def test_the_files_are_left_as_they_are(saved, tmp_path):
    folder = copied(saved("gpt2"), tmp_path / "x")
    write_tensors(folder, tensors_of(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    read_model(folder).model()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
