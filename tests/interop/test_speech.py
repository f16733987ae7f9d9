"""Whisper's files: transformers' with what is fixed in them, and CTranslate2's, whole and damaged."""

import json
import struct

import pytest
import torch
from tests.interop.tiny_models import MODELS, copied, reference

from attnlab.interop import CannotConvert, build, from_theirs, is_ctranslate2, read_model, read_whisper
from attnlab.interop.architecture import to_theirs
from attnlab.interop.files import read_ctranslate2
from attnlab.interop.speech import FROM_CTRANSLATE2, WHISPER

TYPES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4}
RULES = {"added_tokens": [{"content": "<|endoftext|>", "id": 30}, {"content": "<|startoftranscript|>", "id": 31}]}


def text(word):
    return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"


def packed(tensors, kind="WhisperSpec", version=6):
    """A model.bin, by the description of CTranslate2's own writer."""
    parts = [struct.pack("<I", version), text(kind), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        sizes = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        parts += [text(name), sizes, struct.pack("<BI", TYPES[tensor.dtype], tensor.nbytes), tensor.numpy().tobytes()]
    return b"".join(
        [*parts, struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    )


def write(folder, tensors, config=None, **more):
    folder.mkdir()
    (folder / "model.bin").write_bytes(packed(tensors, **more))
    said = {"suppress_ids": [1, 2], "suppress_ids_begin": [3, 30]} if config is None else config
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text(json.dumps(RULES))
    return folder


@pytest.fixture(scope="module")
def theirs():
    """A model of transformers, and its tensors as CTranslate2 names them, in half the bits."""
    model = reference(*MODELS["whisper"])
    named = dict(model.state_dict())
    depths, zero = {"encoder": 2, "decoder": 1}, torch.zeros(12)
    found = {}
    for rule in [each for known in FROM_CTRANSLATE2 for each in known.each(depths)]:
        own = [named[name] for name in rule.ours]
        if rule.theirs.endswith("self_attention/linear_0/bias"):
            own.insert(1, zero)
        if rule.theirs.endswith("attention/linear_1/bias") and "self" not in rule.theirs:
            own.insert(0, zero)
        found[rule.theirs] = torch.cat(own).half()
    del found["decoder/projection/weight"]
    flags = {"decoder/activation": 3, "decoder/alibi": 0, "decoder/pre_norm": 1, "decoder/scale_embeddings": 0}
    found |= {name: torch.tensor(value, dtype=torch.int8) for name, value in flags.items()}
    return model, found | {f"{side}/num_heads": torch.tensor(3, dtype=torch.int16) for side in depths}


def test_a_model_of_ctranslate2_computes_what_transformers_does(theirs, tmp_path):
    model, found = theirs
    read = read_whisper(write(tmp_path / "model", found))
    imported = from_theirs(read.config, read.tensors)
    assert imported.fresh == imported.ignored == []
    x_BMF, tokens = torch.randn(2, 5, 16), torch.arange(10).view(2, 5)
    with torch.no_grad():
        there, here = model.half().float()(x_BMF, decoder_input_ids=tokens).logits, imported.model()(x_BMF, tokens)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-2)  # sinusoids are not rounded here
    assert read.files["generation_config.json"]["suppress_tokens"] == [1, 2]
    assert read.files["generation_config.json"]["decoder_start_token_id"] == 31


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/alibi": torch.tensor(1, dtype=torch.int8)}, "alibi=1, scale_embeddings=0 is not read; accepted"),
        ({"decoder/scale_embeddings": torch.tensor(1, dtype=torch.int8)}, "scale_embeddings=1 is not read; accepted"),
        ({"decoder/activation": torch.tensor(9, dtype=torch.int8)}, "no whole model of Whisper"),
        ({"encoder/layer_0/self_attention/linear_0/bias": torch.ones(36)}, "keys have a bias"),
        ({"encoder/position_encodings/encodings": torch.ones(8, 12)}, "another table than Whisper's fixed sinusoids"),
        ({"encoder/conv1/weight": torch.ones(12, 5, 3, dtype=torch.int8)}, "no floating-point numbers"),
        ({"decoder/embeddings/weight": None}, "no whole model of Whisper"),
        ({"encoder/conv2/weight": None}, "missing: model.encoder.conv2.weight"),
    ],
)
def test_what_is_no_whisper_is_refused(theirs, change, message, tmp_path):
    found = {name: tensor for name, tensor in {**theirs[1], **change}.items() if tensor is not None}
    folder = write(tmp_path / "model", found)

    def read():
        found = read_whisper(folder)
        return from_theirs(found.config, found.tensors)

    with pytest.raises(CannotConvert, match=message):
        read()


def test_a_damaged_file_is_refused_wherever_it_ends(tmp_path):
    path, whole = tmp_path / "model.bin", packed({"a": torch.ones(2, 3), "b": torch.ones(4).half()})
    path.write_bytes(whole)
    kind, found = read_ctranslate2(path)
    assert kind == "WhisperSpec"
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()} == {
        "a": (torch.float32, (2, 3)),
        "b": (torch.float16, (4,)),
    }
    needed = len(whole) - 4 - len(text("decoder/projection/weight") + text("decoder/embeddings/weight"))
    for length in range(needed):
        path.write_bytes(whole[:length])
        with pytest.raises(CannotConvert, match=r"fetch it|of version"):
            read_ctranslate2(path)
    for wrong, message in (
        (packed({}, version=5), "version 5"),
        (whole.replace(b"\x18\0\0\0", b"\x17\0\0\0"), "fetch"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(CannotConvert, match=message):
            read_ctranslate2(path)


def test_a_folder_is_told_by_its_first_bytes(theirs, tmp_path):
    assert is_ctranslate2(write(tmp_path / "one", {}))
    assert not is_ctranslate2(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"PK\3\4")
    assert not is_ctranslate2(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path):
    with pytest.raises(CannotConvert, match="holds a TransformerSpec; accepted: WhisperSpec"):
        read_whisper(write(tmp_path / "model", {}, kind="TransformerSpec"))


def test_a_bias_of_keys_is_none_there(tmp_path):
    reference(*MODELS["whisper"]).save_pretrained(tmp_path / "saved")
    imported = read_model(tmp_path / "saved")
    model, x_BMF, tokens = imported.model(), torch.randn(1, 5, 16), torch.arange(6)[None]
    keys = [name for name in model.state_dict() if name.endswith("key.bias")]
    assert len(keys) == 4
    assert not any(imported.tensors[name].any() for name in keys)
    with torch.no_grad():
        before = model(x_BMF, tokens)
        for name in keys:
            model.get_parameter(name).normal_()
        torch.testing.assert_close(model(x_BMF, tokens), before, rtol=1e-5, atol=1e-5)
    written = to_theirs(WHISPER.of_model(model, imported.settings), model.state_dict(), imported.settings)
    assert not [name for name in written if name.endswith("k_proj.bias")]


def test_encoder_positions_that_were_trained_are_refused(tmp_path):
    reference(*MODELS["whisper"]).save_pretrained(tmp_path / "saved")
    name = "model.encoder.embed_positions.weight"
    folder = copied(tmp_path / "saved", tmp_path / "other", lambda tensors: {**tensors, name: tensors[name] + 0.1})
    with pytest.raises(CannotConvert, match="another table than Whisper's fixed sinusoids"):
        read_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.position": "Rotary"}, "encoder.position: Rotary here, Sinusoidal there"),
        ({"num_frames": 15}, "num_frames: 15 here, 14 there"),
    ],
)
def test_a_model_that_is_no_whisper_there_is_not_written(change, message, tmp_path):
    reference(*MODELS["whisper"]).save_pretrained(tmp_path / "saved")
    settings = read_model(tmp_path / "saved").settings | change
    settings = {
        key: value for key, value in settings.items() if "Rotary" not in change.values() or "position." not in key
    }
    build(settings)
    assert message in "\n".join(WHISPER.differences(settings))
