"""Folders of weights: damaged, incomplete, pickled; each refused with one message that names the file."""

import contextlib
import json
import os
import pickle

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import CHATML, chat
from tests.interop.tiny_models import copied, reference, write_config
from tokenizers import Tokenizer

import attnlab.interop.files
from attnlab.interop import CannotConvert, from_theirs, read_gguf, read_model, to_folder

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, -1000, -1])
def test_a_file_that_was_cut_short_is_named(kept, saved, tmp_path):
    folder = copied(saved("gpt2"), tmp_path / "x")
    content = (folder / ONE).read_bytes()[:kept]
    (folder / ONE).write_bytes(content)
    with pytest.raises(CannotConvert) as refused:
        read_model(folder)
    said = str(refused.value)
    assert said.startswith(f"{folder / ONE} ({len(content):,} bytes) is truncated or damaged (")
    assert said.endswith("; fetch it again")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_damaged_header_never_ends_in_anything_but_a_message(saved, tmp_path_factory, data):
    folder = copied(saved("gpt2"), tmp_path_factory.mktemp("damaged") / "x")
    content = bytearray((folder / ONE).read_bytes())
    for place in data.draw(st.lists(st.integers(0, 2000), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    (folder / ONE).write_bytes(content)
    with contextlib.suppress(CannotConvert):  # any other exception is a traceback for its user
        found = read_model(folder)
        assert all(tensor.dtype == torch.float32 for tensor in found.tensors.values())


class Writes:
    """Creates a file while it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_a_pickle_is_refused_and_never_opened(name, saved, tmp_path):
    folder, trace = copied(saved("gpt2"), tmp_path / "x"), tmp_path / "trace"
    (folder / ONE).unlink()
    (folder / name).write_bytes(pickle.dumps(Writes(str(trace))))
    with pytest.raises(CannotConvert) as refused:
        read_model(folder)
    assert f"{folder} holds its weights as a pickle ({name})" in str(refused.value)
    assert "accepted: safetensors" in str(refused.value)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())
    assert trace.exists()  # so it would have been seen


def test_a_folder_without_weights_is_named(saved, tmp_path):
    folder = copied(saved("gpt2"), tmp_path / "x")
    (folder / ONE).unlink()
    with pytest.raises(
        CannotConvert, match=f"{folder / ONE} is not there; accepted: a folder with config.json and model.safetensors"
    ):
        read_model(folder)


# --- config.json


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(
        CannotConvert,
        match=rf"{tmp_path / 'config.json'} cannot be read \(No such file or directory\); accepted: a folder",
    ):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model_type": ', "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"", "is no JSON"),
        (b"[1, 2]", "holds no table of fields"),
        (b"null", "holds no table of fields"),
        (b"{}", "names no model_type"),
    ],
)
def test_a_configuration_that_is_none_is_named(content, said, saved, tmp_path):
    folder = copied(saved("gpt2"), tmp_path / "x")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CannotConvert, match=f"{folder / 'config.json'} {said}"):
        read_model(folder)


@pytest.mark.parametrize("name", ["qwen2", None, ["gpt2"], {"gpt2": 1}, 3])
def test_an_architecture_that_is_not_known_is_named(name, saved, tmp_path):
    folder = copied(saved("gpt2"), tmp_path / "x", model_type=name)
    with pytest.raises(CannotConvert) as refused:
        read_model(folder)
    assert str(refused.value) == (
        f"model_type={name!r} is not known here; accepted: gpt2, gpt_neox, llama, mistral, qwen3, olmo2, starcoder2, bloom, gemma2, gemma3_text, bert, roberta, vit, t5, bart, marian, "
        "clip, siglip, whisper"
    )


# --- several files


@pytest.fixture
def sharded(references, tmp_path):
    references("llama").save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    return tmp_path / "shards"


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_a_file_that_the_index_lists_and_is_not_there_is_named(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CannotConvert, match=f"{lost} is not there"):
        read_model(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hostname", "a/b.safetensors", ""])
def test_files_outside_of_the_folder_are_not_read(name, sharded):
    (sharded.parent / ONE).write_bytes((sorted(sharded.glob("*.safetensors"))[0]).read_bytes())
    change_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(CannotConvert, match=f"{sharded / INDEX} names files outside of its folder"):
        read_model(sharded)


def test_a_tensor_that_no_file_holds_is_named(sharded):
    change_index(
        sharded, lambda index: index["weight_map"].update({"lost.weight": index["weight_map"]["lm_head.weight"]})
    )
    with pytest.raises(CannotConvert, match=r"lists tensors that no file holds: lost.weight; fetch the folder again"):
        read_model(sharded)


@pytest.mark.parametrize("placed", [None, {}, [], "model.safetensors"])
def test_an_index_that_places_nothing_is_named(placed, sharded):
    change_index(sharded, lambda index: index.update(weight_map=placed))
    with pytest.raises(CannotConvert, match=f"{sharded / INDEX} has no weight_map"):
        read_model(sharded)


def test_one_file_goes_before_an_index_as_in_transformers(saved, references, sharded):
    (sharded / ONE).write_bytes((saved("llama") / ONE).read_bytes())
    for shard in sharded.glob("model-*.safetensors"):
        shard.unlink()
    assert read_model(sharded).tensors.keys() == read_model(saved("llama")).tensors.keys()
    theirs = type(references("llama")).from_pretrained(sharded)
    assert theirs.lm_head.weight.equal(references("llama").lm_head.weight)


def test_large_models_are_written_as_several_files_that_transformers_reads(saved, references, tmp_path, monkeypatch):
    monkeypatch.setattr(attnlab.interop.files, "LARGEST_FILE", 4000)
    found = read_model(saved("llama"))
    to_folder(tmp_path, found.settings, found.tensors)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 4000 + 2000 for path in shards)  # the rest is its header
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in found.tensors.values())
    assert all(read_model(tmp_path).tensors[name].equal(tensor) for name, tensor in found.tensors.items())
    theirs = type(references("llama")).from_pretrained(tmp_path)
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert theirs(tokens).logits.equal(references("llama")(tokens).logits)


def test_a_configuration_that_says_nothing_of_its_sizes_is_named(saved, tmp_path):
    folder = copied(saved("gpt2"), tmp_path / "x")
    write_config(folder, {"model_type": "gpt2"})
    with pytest.raises(CannotConvert, match=r"config.json has no vocab_size, and a model cannot be built without it"):
        read_model(folder)


# --- GGUF


NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
TEXTS = [
    "The quick brown fox, naïve as ever, 1234 times!",
    "<|im_start|>user\nHello  world<|im_end|>\n",
    "  \t\n",
    "日本語 😀",
    "",
]
HEADS, SHARED, WIDTH = 3, 1, 96
F32, Q8_0, Q4_1 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1


def permuted(weights, heads):
    """As the converter's LlamaModel.permute has it: the two halves of each head, side by side."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


class Made:
    """A model and tokenizer of the libraries, and what a file says of them; a test changes what it says."""

    def __init__(self, tied=False):
        library, _ = chat()
        self.library = library
        self.model = reference(
            "LlamaForCausalLM",
            "LlamaConfig",
            {
                "vocab_size": library.get_vocab_size(),
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": HEADS,
                "num_key_value_heads": SHARED,
                "intermediate_size": 64,
                "max_position_embeddings": 32,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
                "tie_word_embeddings": tied,
                "pad_token_id": None,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        )
        model = json.loads(library.to_str())["model"]
        special = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
        tokens = [token for token, _ in sorted(library.get_vocab().items(), key=lambda both: both[1])]
        self.facts = {
            "llama.context_length": 32,
            "llama.embedding_length": WIDTH,
            "llama.block_count": 2,
            "llama.feed_forward_length": 64,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": SHARED,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 100000.0,
            "llama.rope.dimension_count": WIDTH // HEADS,
            "llama.vocab_size": len(tokens),
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
            "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": CHATML,
        }
        self.tensors = {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}
        if tied:
            del self.tensors["lm_head.weight"]

    def write(self, path, kind=F32, architecture="llama", more=()):
        """The file; `kind` is the type of its matrices. Tensors of `more` are added under their own names."""
        writer = gguf.GGUFWriter(path, architecture)
        for name, value in self.facts.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(name, value)
        for name, array in self.tensors.items():
            array = (
                permuted(array, HEADS) if "q_proj" in name else permuted(array, SHARED) if "k_proj" in name else array
            )
            own = kind if array.ndim > 1 else F32
            data = np.ascontiguousarray(array) if own == F32 else quantize(array, own)
            writer.add_tensor(NAMES.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=own)
        for name, array in more:
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@pytest.fixture
def made():
    return Made()


def test_tensors_are_those_that_the_file_was_made_of(made, tmp_path):
    found = read_gguf(made.write(tmp_path / "x.gguf"))
    assert found.tensors.keys() == made.tensors.keys()
    assert all(tensor.numpy().tobytes() == made.tensors[name].tobytes() for name, tensor in found.tensors.items())


@pytest.mark.parametrize("kind", [Q8_0, Q4_1])
def test_quantised_tensors_are_their_dequantised_numbers(kind, made, tmp_path):
    found = read_gguf(made.write(tmp_path / "x.gguf", kind))
    for name, array in made.tensors.items():
        if array.ndim == 1:
            assert found.tensors[name].numpy().tobytes() == array.tobytes()
            continue
        heads = HEADS if "q_proj" in name else SHARED if "k_proj" in name else None
        # Rows are quantised one by one, so that their order is no matter.
        expected = dequantize(quantize(array, kind), kind)
        assert heads is None or not np.array_equal(permuted(array, heads), array)
        assert found.tensors[name].numpy().tobytes() == expected.astype(np.float32).tobytes()
        assert np.abs(expected - array).max() < (0.02 if kind == Q8_0 else 0.2)


@pytest.mark.parametrize(("kind", "tied"), [(F32, False), (F32, True), (Q8_0, False)])
def test_logits_are_those_of_transformers(kind, tied, tmp_path):
    made = Made(tied)
    read = read_gguf(made.write(tmp_path / "x.gguf", kind))
    assert read.config["tie_word_embeddings"] is tied
    found = from_theirs(read.config, read.tensors)
    assert found.settings["tie_embeddings"] is tied
    assert found.settings["residual.norm.eps"] == 1e-5
    made.model.load_state_dict(read.tensors, strict=False)  # the rounded numbers, where they are
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.model()(tokens), made.model(tokens).logits, atol=2e-5, rtol=1e-5)


def test_the_tokenizer_encodes_as_the_one_it_was_made_of(made, tmp_path):
    files = read_gguf(made.write(tmp_path / "x.gguf")).files
    again = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    for text in TEXTS:
        assert again.encode(text).ids == made.library.encode(text).ids
        assert again.decode(again.encode(text).ids, skip_special_tokens=False) == text
    assert files["special_tokens_map.json"] == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
    }
    assert files["tokenizer_config.json"]["chat_template"] == CHATML


def test_a_tokenizer_with_single_digits_splits_them(made, tmp_path):
    made.facts["tokenizer.ggml.pre"] = "smollm"
    files = read_gguf(made.write(tmp_path / "x.gguf")).files
    again = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert again.encode("12 345").tokens[-3:] == ["3", "4", "5"]


# --- refused


@pytest.mark.parametrize(
    ("fact", "value", "said"),
    [
        ("tokenizer.ggml.model", "llama", "a tokenizer of model 'llama' and pre-tokenizer 'gpt-2' is not read; accepted: model 'gpt2' with 'gpt-2', 'smollm'"),
        ("tokenizer.ggml.pre", "llama-bpe", "a tokenizer of model 'gpt2' and pre-tokenizer 'llama-bpe' is not read"),
        ("tokenizer.ggml.add_bos_token", True, "a tokenizer that puts a token before every text (add_bos_token) is not read"),
        ("tokenizer.ggml.bos_token_id", 5000, "the vocabulary of 320 tokens has 320 kinds, and special tokens {'bos': 5000, "),
        ("tokenizer.ggml.token_type", [1, 1], "the vocabulary of 320 tokens has 2 kinds"),
        ("llama.rope.scaling.type", "linear", "llama.rope.scaling.type='linear' is not read; accepted: 'none'"),
        ("llama.rope.dimension_count", 16, "heads of 32 dimensions, of which 16 are rotated, with values of 32 are not read"),
        ("llama.attention.head_count_kv", [1, 3], "3 heads, [1, 3] of keys, are not read; accepted: one number each for all layers"),
        ("llama.attention.head_count", 0, "0 heads, 1 of keys, are not read"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(fact, value, said, made, tmp_path):
    made.facts[fact] = value
    path = made.write(tmp_path / "x.gguf")
    with pytest.raises(CannotConvert) as refused:
        read_gguf(path)
    assert str(refused.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    "fact",
    [
        "llama.block_count",
        "llama.attention.head_count",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ],
)
def test_what_a_file_does_not_say_is_named(fact, made, tmp_path):
    del made.facts[fact]
    path = made.write(tmp_path / "x.gguf")
    with pytest.raises(CannotConvert) as refused:
        read_gguf(path)
    assert str(refused.value) == f"{path} does not say {fact}; it is no whole model"


def test_another_architecture_is_named(made, tmp_path):
    path = made.write(tmp_path / "x.gguf", architecture="qwen2")
    with pytest.raises(CannotConvert) as refused:
        read_gguf(path)
    assert str(refused.value) == f"{path} holds the architecture 'qwen2'; accepted: 'llama'"


def test_a_tensor_that_no_llama_has_is_unexpected(made, tmp_path):
    more = [("rope_freqs.weight", np.ones(16, np.float32)), ("blk.0.attn_q.bias", np.ones(WIDTH, np.float32))]
    read = read_gguf(made.write(tmp_path / "x.gguf", more=more))
    with pytest.raises(CannotConvert, match=r"unexpected: blk.0.attn_q.bias, rope_freqs.weight \(--ignore NAME"):
        from_theirs(read.config, read.tensors)


def test_another_number_of_rows_than_the_heads_have_is_named(made, tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    made.tensors[name] = made.tensors[name][:30]
    read = read_gguf(made.write(tmp_path / "x.gguf"))
    with pytest.raises(CannotConvert, match=rf"{name}: \(30, 96\) in the file, \(32, 96\) by the configuration"):
        from_theirs(read.config, read.tensors)
    del made.tensors[name]
    path = made.write(tmp_path / "y.gguf", more=[("blk.1.attn_k.weight", np.ones((31, WIDTH), np.float32))])
    with pytest.raises(
        CannotConvert, match=r"blk.1.attn_k.weight has 31 rows, which are no pairs of 1 heads; fetch the file again"
    ):
        read_gguf(path)


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 40, 1000, 20_000, -40_000, -100])
def test_a_gguf_file_that_was_cut_short_is_named(kept, made, tmp_path):
    path = made.write(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CannotConvert) as refused:
        read_gguf(path)
    assert str(refused.value).startswith(f"{path} is truncated or damaged, or no GGUF file (")
    assert str(refused.value).endswith("; fetch it again")


@pytest.mark.slow
def test_a_length_that_the_file_has_not_is_named(made, tmp_path):
    path = made.write(tmp_path / "x.gguf")
    content = path.read_bytes()
    kinds = content.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4 + 4  # behind the types
    assert int.from_bytes(content[kinds : kinds + 8], "little") == 320
    path.write_bytes(content[:kinds] + (2**50).to_bytes(8, "little") + content[kinds + 8 :])
    with pytest.raises(CannotConvert, match=r"it ends at [\d,]+ bytes, before what it says it holds"):
        read_gguf(path)


def test_what_is_no_gguf_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(CannotConvert, match=r"x.gguf is truncated or damaged, or no GGUF file \(GGUF magic invalid\)"):
        read_gguf(tmp_path / "x.gguf")
    with pytest.raises(CannotConvert, match=r"no.gguf is truncated or damaged, or no GGUF file \(.*No such file"):
        read_gguf(tmp_path / "no.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Made().write(tmp_path_factory.mktemp("whole") / "x.gguf").read_bytes()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_damage_never_ends_in_anything_but_a_message(whole, tmp_path_factory, data):
    path, content = tmp_path_factory.mktemp("damaged") / "x.gguf", bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, 1500), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CannotConvert):  # any other exception is a traceback for its user
        read = read_gguf(path)
        found = from_theirs(read.config, read.tensors)
        assert all(tensor.dtype == torch.float32 for tensor in found.tensors.values())
