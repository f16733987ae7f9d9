"""Whisper, from and to transformers' layout, and from files of CTranslate2.

Shapes: S states of the encoder, D model width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnlab.interop.architecture import COPY, THIRDS, Architecture, Form, Output, Rule, modules, tensors, to_ours
from attnlab.interop.decoders import PLAIN_ACTIVATIONS, PRE_NORM
from attnlab.interop.fields import CannotConvert, Config, Field, OneOf, required
from attnlab.interop.files import VERSION, read_ctranslate2, read_json
from attnlab.interop.settings import Settings
from attnlab.layers.positions import geometric_frequencies, sinusoids

SIDES = ("encoder", "decoder")
ATTENTIONS = {"encoder": {"self_attn": "attention"}}
ATTENTIONS["decoder"] = {**ATTENTIONS["encoder"], "encoder_attn": "cross_attention"}
SINUSOIDS: Settings = {"position": "Sinusoidal", "position.interleaved": False, "position.inclusive": True}
POSITIONS: dict[str, Settings] = {"encoder": SINUSOIDS, "decoder": {"position": "Learned"}}
END_OF_TEXT = "<|endoftext|>"
HALF_PRECISION = 2e-3  # what a sinusoid may differ by that was rounded to 16 bits


def _same_sinusoids(given_SD: Tensor, _: Settings) -> Sequence[Tensor]:
    """Nothing: they are computed here. Raises CannotConvert for a table that was trained."""
    if given_SD.device.type != "meta" and not torch.allclose(
        given_SD.float(), _sinusoids(*given_SD.shape), rtol=0, atol=HALF_PRECISION
    ):
        raise CannotConvert(
            "model.encoder.embed_positions.weight is another table than Whisper's fixed sinusoids, and here they are "
            "computed"
        )
    return []


def _sinusoids(length: int, d_model: int) -> Tensor:
    frequencies_P = geometric_frequencies(d_model, 10000.0, torch.device("cpu"), inclusive=True)
    return sinusoids(torch.arange(length)[None], frequencies_P, interleaved=False)[0]


# What is fixed there and computed here; three frames in one axis; a bias of values and that of keys, which is none
# there: added to all scores of a query alike, it changes no weight.
COMPUTED = Form(
    _same_sinusoids, lambda _, settings: _sinusoids(settings["num_frames"] // 2, settings["encoder.d_model"])
)
FRAMES = Form(lambda tensor, _: [tensor.flatten(1)], lambda tensors, _: tensors[0].unflatten(1, (-1, 3)))
NO_KEY_BIAS = Form(lambda tensor, _: [tensor, torch.zeros_like(tensor)], lambda tensors, _: tensors[0])


def _stack(side: str) -> tuple[Rule, ...]:
    attentions, places = ATTENTIONS[side], (f"model.{side}.layers.{{i}}.", f"{side}.layers.{{i}}.")
    layer = {"fc1": "feed_forward.up", "fc2": "feed_forward.down"}
    weights: dict[str, str] = {}
    biases: list[Rule] = []
    for theirs, ours in attentions.items():
        layer |= {f"{theirs}.q_proj": f"{ours}.query", f"{theirs}.out_proj": f"{ours}.output"}
        weights |= {f"{theirs}.{word[0]}_proj.weight": f"{ours}.{word}.weight" for word in ("key", "value")}
        both = tuple(f"{places[1]}{ours}.{word}.bias" for word in ("value", "key"))
        biases.append(Rule(f"{places[0]}{theirs}.v_proj.bias", both, NO_KEY_BIAS, layers=f"{side}.num_layers"))
    norms = (*(f"{theirs}_layer_norm" for theirs in attentions), "final_layer_norm")
    layer |= {norm: f"residual.norms.{place}" for place, norm in enumerate(norms)}
    return (
        *modules(layer, *places, layers=f"{side}.num_layers"),
        *tensors(weights, *places, layers=f"{side}.num_layers"),
        *biases,
        *modules({f"model.{side}.layer_norm": f"{side}.norm"}),
    )


def _of_both(**settings: object) -> Settings:
    return {f"{side}.{name}": value for side in SIDES for name, value in settings.items()}


FIELDS: tuple[Field, ...] = (
    *required(vocab_size="vocabulary_size", num_mel_bins="num_mels", num_frames="num_frames"),
    *required(max_target_positions="max_length"),
    *(field for side in SIDES for field in required(d_model=f"{side}.d_model")),
    *(
        field
        for side in SIDES
        for field in required(
            **{
                f"{side}_layers": f"{side}.num_layers",
                f"{side}_attention_heads": f"{side}.num_heads",
                f"{side}_ffn_dim": f"{side}.d_ff",
            }
        )
    ),
    OneOf(
        "activation_function",
        {word: _of_both(**settings) for word, settings in PLAIN_ACTIVATIONS.items()},
        default="gelu",
    ),
)


def tidy_whisper(config: Config) -> Config:
    """The frames of a window, two to a state of the encoder."""
    config = dict(config)
    states = config.pop("max_source_positions", 1500)
    if not isinstance(states, int):
        raise CannotConvert(f"config.json has max_source_positions={states!r}; accepted: a whole number")
    return config | {"num_frames": 2 * states}


def untidy_whisper(config: Config) -> Config:
    """The states of the encoder."""
    config = dict(config)
    return config | {"max_source_positions": config.pop("num_frames") // 2, "is_encoder_decoder": True}


WHISPER = Architecture(
    name="whisper",
    model="Whisper",
    classes=("WhisperForConditionalGeneration",),
    fixed={
        "scale_embedding": False,
        **_of_both(**PRE_NORM, embedding_norm=False, **{"residual.norm.eps": 1e-5}),
        **{f"{side}.{name}": value for side, found in POSITIONS.items() for name, value in found.items()},
    },
    fields=FIELDS,
    rules=(
        *modules({"conv1": "stem.first", "conv2": "stem.second"}, "model.encoder.", form=FRAMES),
        Rule("model.encoder.embed_positions.weight", (), COMPUTED),
        *tensors({"embed_tokens.weight": "embedding.weight"}, "model.decoder."),
        *tensors({"embed_positions.weight": "decoder.position.table.weight"}, "model.decoder."),
        *_stack("encoder"),
        *_stack("decoder"),
        *tensors({"proj_out.weight": "head.weight"}),
    ),
    prefix="model.",
    output=Output("proj_out.weight", "model.decoder.embed_tokens.weight"),
    # scale_embedding is read there, and nothing is multiplied by it.
    no_matter="scale_embedding|num_hidden_layers|use_weighted_layer_sum|classifier_proj_size|apply_spec_augment|mask_(time|feature)_.*|"
    "median_filter_width|forced_decoder_ids|alignment_heads|is_multilingual",
    tidy=tidy_whisper,
    untidy=untidy_whisper,
)
SPEECH = (WHISPER,)

# --- CTranslate2


@dataclass(frozen=True)
class CTranslate2:
    """A Whisper model's configuration and tensors, and its tokenizer's files by name, as Hugging Face has them."""

    config: dict[str, object]
    tensors: dict[str, Tensor]
    files: dict[str, object]


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder holds a model of CTranslate2: the same file's name is that of a pickle elsewhere."""
    path = folder / "model.bin"
    return path.is_file() and path.open("rb").read(4) == VERSION.to_bytes(4, "little")


def read_whisper(folder: Path) -> CTranslate2:
    """Reads model.bin, config.json and tokenizer.json. Raises CannotConvert for other models, and damaged files."""
    kind, found = read_ctranslate2(folder / "model.bin")
    if kind != "WhisperSpec":
        raise CannotConvert(f"{folder / 'model.bin'} holds a {kind}; accepted: WhisperSpec, which is Whisper")
    try:
        config, tensors = _config(found), _tensors(found)
        files = _files(read_json(folder / "config.json"), read_json(folder / "tokenizer.json"))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, CannotConvert):
            raise
        raise CannotConvert(f"{folder} is no whole model of Whisper ({error!r}); fetch it again") from error
    return CTranslate2(config, tensors, files)


def _files(config: Mapping[str, Any], rules: Mapping[str, Any]) -> dict[str, object]:
    """The tokenizer's rules, and what else is said of its tokens."""
    ids = {token["content"]: token["id"] for token in rules["added_tokens"]}
    generation = {
        "suppress_tokens": list(config.get("suppress_ids", ())),
        "begin_suppress_tokens": list(config.get("suppress_ids_begin", ())),
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": ids[END_OF_TEXT],
    }
    special = {f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "unk")}
    return {"tokenizer.json": rules, "generation_config.json": generation, "special_tokens_map.json": special}


def _no_key_bias(bias: Tensor, _: Settings) -> Sequence[Tensor]:
    query, key, value = bias.chunk(3)
    if key.any():
        raise CannotConvert("the keys have a bias, which Whisper's have not; accepted: zeros")
    return [query, value]


HALVES = Form(lambda tensor, _: tensor.chunk(2), lambda tensors, _: torch.cat(list(tensors)))
VALUE_ALONE = Form(lambda bias, _: [bias.chunk(2)[1]], COPY.join)
QUERY_AND_VALUE = Form(_no_key_bias, COPY.join)
KINDS = {"weight": "weight", "bias": "bias"}
NORM = {"gamma": "weight", "beta": "bias"}
ACTIVATIONS = {0: "relu", 1: "gelu_new", 2: "swish", 3: "gelu"}  # by their numbers there


def _renamed(names: Mapping[str, str], theirs: str, ours: str, kinds: Mapping[str, str], side: str) -> list[Rule]:
    """The rules of modules that are the same there but for their names."""
    return [
        Rule(f"{theirs}{there}/{kind}", (f"{ours}{here}.{own}",), layers=side)
        for there, here in names.items()
        for kind, own in kinds.items()
    ]


def _layers(side: str) -> list[Rule]:
    """The rules from a stack of CTranslate2 to transformers' names: queries, keys and values are one tensor there."""
    theirs, ours = f"{side}/layer_{{i}}/", f"model.{side}.layers.{{i}}."
    blocks = {"self_attention": "self_attn"} | ({"attention": "encoder_attn"} if side == "decoder" else {})
    norms = {f"{there}/layer_norm": f"{here}_layer_norm" for there, here in blocks.items()}
    linear = {"ffn/linear_0": "fc1", "ffn/linear_1": "fc2", "self_attention/linear_1": "self_attn.out_proj"}
    if side == "decoder":
        linear |= {"attention/linear_0": "encoder_attn.q_proj", "attention/linear_2": "encoder_attn.out_proj"}
    of_self = [f"{ours}self_attn.{name}_proj" for name in "qkv"]
    of_cross = [f"{ours}encoder_attn.{name}_proj" for name in "kv"]
    fused = [
        Rule(f"{theirs}self_attention/linear_0/weight", tuple(f"{name}.weight" for name in of_self), THIRDS),
        Rule(f"{theirs}self_attention/linear_0/bias", (f"{of_self[0]}.bias", f"{of_self[2]}.bias"), QUERY_AND_VALUE),
    ]
    if side == "decoder":
        fused += [
            Rule(f"{theirs}attention/linear_1/weight", tuple(f"{name}.weight" for name in of_cross), HALVES),
            Rule(f"{theirs}attention/linear_1/bias", (f"{of_cross[1]}.bias",), VALUE_ALONE),
        ]
    return [
        *_renamed(norms | {"ffn/layer_norm": "final_layer_norm"}, theirs, ours, NORM, side),
        *_renamed(linear, theirs, ours, KINDS, side),
        *(replace(rule, layers=side) for rule in fused),
        *_renamed({"layer_norm": "layer_norm"}, f"{side}/", f"model.{side}.", NORM, side),
        Rule(f"{side}/position_encodings/encodings", (f"model.{side}.embed_positions.weight",)),
    ]


FROM_CTRANSLATE2 = (
    *_layers("encoder"),
    *_layers("decoder"),
    *_renamed({"conv1": "conv1", "conv2": "conv2"}, "encoder/", "model.encoder.", KINDS, "encoder"),
    Rule("decoder/embeddings/weight", ("model.decoder.embed_tokens.weight",)),
    Rule("decoder/projection/weight", ("proj_out.weight",)),
)


def _depth(found: Mapping[str, Tensor], side: str) -> int:
    return 1 + max(int(layer[1]) for name in found if (layer := re.match(rf"{side}/layer_(\d+)/", name)))


def _tensors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    depths = {side: _depth(found, side) for side in SIDES}
    return to_ours((each for rule in FROM_CTRANSLATE2 for each in rule.each(depths)), found, depths)


def _config(found: Mapping[str, Tensor]) -> Config:
    """transformers' configuration, by the shapes of tensors and the numbers beside them. KeyError: one is missing."""
    rows, d_model = found["decoder/embeddings/weight"].shape
    flags = {name: int(found[f"decoder/{name}"]) for name in ("pre_norm", "alibi", "scale_embeddings")}
    if flags != {"pre_norm": 1, "alibi": 0, "scale_embeddings": 0}:
        told = ", ".join(f"{name}={value}" for name, value in flags.items())
        raise CannotConvert(f"a decoder with {told} is not read; accepted: pre_norm=1, alibi=0, scale_embeddings=0")
    config: Config = {
        "model_type": WHISPER.name,
        "architectures": list(WHISPER.classes),
        "vocab_size": rows,
        "d_model": d_model,
        "num_mel_bins": found["encoder/conv1/weight"].shape[1],
        "max_source_positions": found["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": found["decoder/position_encodings/encodings"].shape[0],
        "activation_function": ACTIVATIONS[int(found["decoder/activation"])],
        "tie_word_embeddings": "decoder/projection/weight" not in found,
    }
    for side in SIDES:
        config[f"{side}_layers"] = _depth(found, side)
        config[f"{side}_attention_heads"] = int(found[f"{side}/num_heads"])
        config[f"{side}_ffn_dim"] = found[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
    return config
