"""Folders of weights: damaged, incomplete, pickled; each refused with one message that names the file."""

import contextlib
import json
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interop.tiny_models import copied, write_config

import attnlab.interop.files
from attnlab.interop import CannotConvert, read_model, to_folder

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


@settings(max_examples=60, deadline=None)
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
        f"model_type={name!r} is not known here; accepted: gpt2, gpt_neox, llama, starcoder2, bloom, bert, roberta, vit, t5, bart, marian"
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
