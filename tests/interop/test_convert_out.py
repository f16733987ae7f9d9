"""Models of attnlab as folders that transformers loads, or refused with what differs."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interop.tiny_models import config_of

from attnlab.interop import CannotConvert, architecture_for, build, completed, read_model, to_folder

SIZES = {"vocabulary_size": 17, "max_length": 12, "d_model": 12, "num_heads": 3, "num_layers": 2}
GPT2 = {"model": "GPT", **SIZES, "bias": True, "position": "Learned", "feed_forward": "GELU"}
BERT = {"model": "Bert", **SIZES, "num_segments": 2}
VIT = {
    "model": "ViT",
    "num_classes": 3,
    "image_size": 8,
    "d_model": 12,
    "num_heads": 3,
    "num_layers": 1,
    "pooling": "class",
}
LLAMA = {
    "model": "GPT",
    **SIZES,
    "position": "Rotary",
    "residual": "PreNorm",
    "residual.norm": "RMSNorm",
    "feed_forward": "SwiGLU",
    "attention": "GroupedQuery",
    "attention.num_key_value_heads": 1,
    "tie_embeddings": False,
}
NEOX = {
    "model": "GPT",
    **SIZES,
    "bias": True,
    "position": "Rotary",
    "residual": "Parallel",
    "residual.shared_norm": False,
}
STARCODER2 = {"model": "GPT", **SIZES, "position": "Rotary"}
BLOOM = {
    "model": "GPT",
    **SIZES,
    "bias": True,
    "position": "ALiBi",
    "embedding_norm": True,
    "feed_forward.approximate": "tanh",
}
MARIAN = {
    "model": "EncoderDecoder",
    **SIZES,
    "bias": True,
    "position.interleaved": False,
    "output_bias": True,
    "feed_forward": "SiLU",
}
BART = {
    "model": "EncoderDecoder",
    **SIZES,
    "bias": True,
    "position": "Learned",
    "position.offset": 2,
    "output_bias": True,
    "embedding_norm": True,
    "scale_embedding": False,
}
T5 = {"model": "T5", **SIZES, "scale_embedding": False, "attention.scale": 1.0, "feed_forward.approximate": "tanh"}


def drawn(model, seed=0):
    """The model with weights that show every part: no two tensors alike, biases and gains included."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            gain = 0.7 * (parameter.ndim == 1)
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random) + gain)
    return model.eval()


def write(asked, folder, **fields):
    """The model of these settings, written; and what was written."""
    found = completed(asked)
    model = drawn(build(found))
    return model, to_folder(folder, found, model.state_dict(), **fields)


def logits(model, is_theirs, kind):
    if kind == "ViT":
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return model(images).logits if is_theirs else model(images)
    tokens = torch.arange(3, 15)[None] % 17
    if kind in ("EncoderDecoder", "T5"):
        target = tokens.flip(1)[:, :7]
        return model(input_ids=tokens, decoder_input_ids=target).logits if is_theirs else model(tokens, target)
    found = model(tokens)
    return (
        getattr(found, "prediction_logits", None)
        if hasattr(found, "prediction_logits")
        else getattr(found, "logits", found)
    )


def loaded(folder):
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = config_of(folder)["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()


def assert_same_logits(model, folder, kind):
    with torch.no_grad():
        here, there = logits(model, False, kind), logits(loaded(folder), True, kind)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "asked", "zeros"),
    [
        ("gpt2", GPT2, 0),
        ("gpt2", {**GPT2, "tie_embeddings": False, "attention.scale": 1.0, "feed_forward": "SquaredReLU"}, 0),
        ("gpt_neox", NEOX, 0),
        ("gpt_neox", {**NEOX, "attention.bias": False, "residual": "PreNorm", "position.fraction": 0.5}, 0),
        ("llama", LLAMA, 0),
        (
            "llama",
            {**LLAMA, "feed_forward": "GEGLU", "tie_embeddings": True, "attention.bias": True, "attention.d_head": 8},
            0,
        ),
        ("llama", {**LLAMA, "position": "RotaryLlama3", "position.original_length": 8}, 0),
        ("starcoder2", STARCODER2, 0),
        (
            "starcoder2",
            {**STARCODER2, "bias": True, "attention": "MultiQuery", "attention.window": 3, "tie_embeddings": False},
            0,
        ),
        (
            "starcoder2",
            {**STARCODER2, "feed_forward": "ReLU", "position": "RotaryYaRN", "position.original_length": 4},
            0,
        ),
        ("gpt2", {**GPT2, "bias": False}, 12),
        ("gpt2", {**GPT2, "residual.norm.bias": False}, 5),
        ("gpt_neox", {**NEOX, "bias": False}, 4),
        ("bert", {**BERT, "num_segments": 0}, 1),
        ("bert", {**BERT, "num_segments": 0, "bias": False, "pooler": True}, 13),
        ("roberta", {**BERT, "num_segments": 0, "position.offset": 2}, 1),
        ("bart", {**BART, "output_bias": False}, 1),
        ("bloom", BLOOM, 0),
        ("bert", BERT, 0),
        ("bert", {**BERT, "next_sentence": True}, 0),
        ("roberta", {**BERT, "position.offset": 2, "num_segments": 1, "tie_embeddings": False}, 0),
        ("vit", VIT, 0),
        ("vit", {**VIT, "feed_forward": "ReLU", "image_size": [8, 8], "d_ff": 20}, 0),
        ("t5", T5, 0),
        (
            "t5",
            {**T5, "tie_embeddings": True, "scale_logits": True, "feed_forward": "ReLU", "num_decoder_layers": 1},
            0,
        ),
        ("t5", {**T5, "tie_embeddings": True}, 0),
        ("marian", MARIAN, 0),
        ("marian", {**MARIAN, "tie_embeddings": False, "num_decoder_layers": 1}, 0),
        ("bart", BART, 0),
        ("bart", {**BART, "tie_embeddings": False, "feed_forward": "GELU", "scale_embedding": True}, 0),
    ],
)
def test_transformers_loads_what_is_written_and_computes_the_same(name, asked, zeros, tmp_path):
    model, architecture = write(asked, tmp_path)
    assert architecture.name == name
    assert_same_logits(model, tmp_path, asked["model"])
    again = read_model(tmp_path)
    assert again.fresh == again.ignored == []
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("_extra_state")}
    assert all(own[key].equal(tensor) if key in own else not tensor.any() for key, tensor in again.tensors.items())
    assert len(again.tensors) - len(own) == zeros


# --- refused

REFUSED = [
    (GPT2, {"attention.qk_norm": True}, "attention.qk_norm: True here, False there"),
    (GPT2, {"attention.output_gate": True}, "attention.output_gate: True here, False there"),
    (GPT2, {"attention.window": 3}, "attention.window: 3 here, None there"),
    (GPT2, {"attention.soft_cap": 5.0}, "attention.soft_cap: 5.0 here, None there"),
    (GPT2, {"residual": "Sandwich"}, "residual: Sandwich here, PreNorm there"),
    (GPT2, {"residual.norm": "DynamicTanh"}, "residual.norm: DynamicTanh here, LayerNorm there"),
    (GPT2, {"scale_embedding": True}, "scale_embedding: True here, False there"),
    (GPT2, {"position": "Sinusoidal"}, "position: Sinusoidal here, Learned there"),
    (LLAMA, {"position.fraction": 0.5}, "position.fraction: 0.5 here, 1.0 there"),
    (LLAMA, {"position": "RotaryNTK"}, "position: RotaryNTK here, Rotary there"),
    (LLAMA, {"position.interleaved": True}, "position.interleaved: True here, False there"),
    (LLAMA, {"attention.qk_norm": True}, "attention.qk_norm: True here, False there"),
    (LLAMA, {"attention": "SinkLogit"}, "attention: SinkLogit here, Attention there"),
    (LLAMA, {"attention": "ValueResidual"}, "attention: ValueResidual here, Attention there"),
    (LLAMA, {"attention": "LatentAttention"}, "attention: LatentAttention here, Attention there"),
    (LLAMA, {"position": "CoPE"}, "position: CoPE here, Rotary there"),
    (BERT, {"residual": "PreNorm"}, "residual: PreNorm here, PostNorm there"),
    (BERT, {"feed_forward": "SwiGLU"}, "feed_forward: SwiGLU here, GELU there"),
    (BERT, {"position": "Rotary"}, "position: Rotary here, Learned there"),
    (VIT, {"pooling": "mean"}, "pooling: mean here, class there"),
    (VIT, {"registers": 4}, "registers: 4 here, 0 there"),
    (VIT, {"position": "AxialRotary"}, "position: AxialRotary here, Learned there"),
    (
        T5,
        {"feed_forward": "GEGLU", "feed_forward.approximate": "none"},
        "feed_forward.approximate: none here, tanh there",
    ),
    (T5, {"share_layers": True}, "share_layers: True here, False there"),
    (MARIAN, {"share_embeddings": False}, "share_embeddings: False here, True there"),
    ({"model": "T5LanguageModel", **SIZES}, {}, "model: T5LanguageModel here, "),
]


@pytest.mark.parametrize(("asked", "change", "said"), REFUSED)
def test_what_no_architecture_computes_is_refused_with_what_differs(asked, change, said, tmp_path):
    found = completed({**asked, **change})
    with pytest.raises(CannotConvert) as refused:
        to_folder(tmp_path / "out", found, build(found).state_dict())
    first, *lines = str(refused.value).splitlines()
    assert re.fullmatch(
        r"no architecture of Hugging Face transformers computes what this model does; the nearest, \w+, differs in",
        first,
    )
    assert any(line.startswith(said) for line in lines), lines
    assert all(re.fullmatch(r"[\w.]+: .* here, .* there", line) for line in lines), lines
    assert not (tmp_path / "out").exists()


def test_another_architecture_than_asked_for_is_refused(tmp_path):
    with pytest.raises(CannotConvert, match=r"^gpt_neox, which was asked for, computes something else:\n") as refused:
        write(GPT2, tmp_path, architecture="gpt_neox")
    assert "position: Learned here, Rotary there" in str(refused.value).splitlines()
    with pytest.raises(
        CannotConvert, match=r"^bert, which was asked for, computes something else:\nmodel: GPT here, Bert there$"
    ):
        write(GPT2, tmp_path, architecture="bert")
    with pytest.raises(CannotConvert, match="--as gpt3: there is no such architecture; accepted: gpt2, gpt_neox, "):
        write(GPT2, tmp_path, architecture="gpt3")


def test_the_architecture_that_is_asked_for_is_written(tmp_path):
    asked = {**NEOX, "residual": "PreNorm", "feed_forward": "ReLU"}
    _, found = write(asked, tmp_path, architecture="gpt_neox")
    assert found.name == config_of(tmp_path)["model_type"] == "gpt_neox"


def test_marks_are_written_and_must_not_move_positions(tmp_path):
    write(GPT2, tmp_path / "gpt2", pad_token_id=5, eos_token_id=6)
    assert {"pad_token_id": 5, "eos_token_id": 6}.items() <= config_of(tmp_path / "gpt2").items()
    roberta = {**BERT, "position.offset": 2}
    write(roberta, tmp_path / "roberta", pad_token_id=1)
    with pytest.raises(
        CannotConvert, match=r"position.offset: 2 here, 1 there"
    ):  # it counts positions from the padding's number
        write(roberta, tmp_path / "other", architecture="roberta", pad_token_id=0)


@pytest.mark.parametrize("asked", [GPT2, LLAMA, BLOOM, MARIAN, BART, T5])
def test_marks_that_are_not_known_are_not_those_of_a_published_model(asked, tmp_path):
    write(asked, tmp_path)
    config = loaded(tmp_path).config
    names = ["pad_token_id", "bos_token_id", "eos_token_id"]
    names += ["forced_eos_token_id"] if asked["model"] == "EncoderDecoder" else []
    assert {name: getattr(config, name, None) for name in names} == dict.fromkeys(names)


@pytest.mark.parametrize("change", [lambda t: t.pop("stack.norm.weight"), lambda t: t.update(more=torch.ones(1))])
def test_tensors_of_another_model_are_not_written(change, tmp_path):
    found = completed(GPT2)
    tensors = build(found).state_dict()
    change(tensors)
    with pytest.raises(CannotConvert, match=r"they lack or have besides: (stack.norm.weight|more)$"):
        to_folder(tmp_path / "out", found, tensors)
    assert not (tmp_path / "out").exists()


# --- any combination

PARTS = {
    "position": ["PositionEncoding", "Sinusoidal", "Learned", "Rotary", "RotaryLinear", "RotaryNTK", "RotaryYaRN", "RotaryLlama3", "ALiBi", "RelativeBias"],
    "residual": ["PostNorm", "PreNorm", "Sandwich", "ReZero", "Parallel"],
    "norm": ["LayerNorm", "RMSNorm", "DynamicTanh"],
    "attention": ["MultiHead", "MultiQuery"],
    "feed_forward": ["ReLU", "SiLU", "GELU", "SquaredReLU", "GLU", "GEGLU", "SwiGLU", "ReGLU"],
    "bias": [True, False],
    "tie_embeddings": [True, False],
    "embedding_norm": [True, False],
    "shared_norm": [True, False],
}  # fmt: skip
SIMILAR = [GPT2, NEOX, LLAMA, BLOOM]


@st.composite
def gpts(draw):
    """A GPT near one of the architectures, some of its parts drawn anew."""
    asked = dict(draw(st.sampled_from(SIMILAR)))
    for part in draw(st.lists(st.sampled_from(sorted(PARTS)), max_size=3, unique=True)):
        value = draw(st.sampled_from(PARTS[part]))
        if part == "norm":
            if asked.get("residual") != "ReZero":
                asked["residual.norm"] = value
        elif part == "shared_norm":
            if asked.get("residual") == "Parallel":
                asked["residual.shared_norm"] = value
        else:
            asked = {key: old for key, old in asked.items() if not key.startswith(f"{part}.")} | {part: value}
    return asked


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(gpts(), st.integers(0, 9))
def test_a_gpt_of_any_parts_is_either_written_and_the_same_or_refused(tmp_path_factory, asked, seed):
    folder, found = tmp_path_factory.mktemp("any"), completed(asked)
    model = drawn(build(found), seed)
    try:
        known = architecture_for(found)
    except CannotConvert as refused:
        lines = str(refused).splitlines()[1:]
        assert lines
        for line in lines:
            key, here = re.fullmatch(r"([\w.]+): (.*) here, .* there", line).groups()
            assert here == str(found.get(key, "nothing"))
        return
    assert to_folder(folder, found, model.state_dict()) is known
    assert_same_logits(model, folder, "GPT")
