"""Random settings of every architecture of one input and of Whisper, out to transformers and in from it: the same logits, or refused.

python experiments/parity/fuzz.py [--draws 3000] [--first 0] [--threads 1]

Even draws are exports: a model here near one of the architectures, some of its fields and parts drawn anew, is
written, loaded by transformers and read again. Odd draws are imports: a model of transformers, some fields of its
configuration drawn anew, a few of them fields that only other architectures have, is saved and read. What comes out
of a draw depends on its number alone. A draw is one of

same      all logits agree to BOUND, times the largest where that is above 1
refused   attnlab says that the other side computes something else
void      one of the two libraries does not build such a model
wrong     the logits differ, or the other library fails on what was written
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.interop import ARCHITECTURES, CannotConvert, build, completed, read_model, to_folder
from attnlab.interop.fields import OneOf, Same

BOUND = 1e-5
RESERVED = 5  # numbers of tokens that no row has: RoBERTa counts positions from its padding's
FOREIGN = 0.2  # of the imports have a field that may be another architecture's
SAME, REFUSED, VOID, WRONG = "same", "refused", "void", "wrong"

# --- models here

SIZES = {"vocabulary_size": 31, "max_length": 12, "d_model": 24, "num_heads": 4, "num_layers": 2}
ROTARY = {"position": "Rotary"}
LLAMA = {"model": "GPT", **ROTARY, "residual.norm": "RMSNorm", "feed_forward": "SwiGLU", "tie_embeddings": False}
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {"model": "GPT", "bias": True, "position": "Learned"},
    "gpt_neox": {"model": "GPT", "bias": True, **ROTARY, "residual": "Parallel", "residual.shared_norm": False},
    "llama": LLAMA,
    "starcoder2": {"model": "GPT", **ROTARY},
    "mistral": {**LLAMA, "attention.window": 5},
    "qwen3": {**LLAMA, "attention.qk_norm": True, "pattern": [0, 1], "layers.1.attention.window": 5},
    "olmo2": {**LLAMA, "residual": "OutputNorm", "attention.qk_norm": "full_width"},
    "gemma2": {
        **LLAMA,
        "residual": "Sandwich",
        "residual.norm.zero_centered": True,
        "feed_forward": "GEGLU",
        "feed_forward.approximate": "tanh",
        "scale_embedding": True,
        "tie_embeddings": True,
        "attention.soft_cap": 3.0,
        "logit_soft_cap": 5.0,
        "pattern": [0, 1],
        "layers.1.attention.window": 5,
    },
    "gemma3_text": {
        **LLAMA,
        "residual": "Sandwich",
        "residual.norm.zero_centered": True,
        "feed_forward": "GEGLU",
        "feed_forward.approximate": "tanh",
        "scale_embedding": True,
        "tie_embeddings": True,
        "attention.qk_norm": True,
        "attention.qk_norm_zero_centered": True,
        "pattern": [0, 1],
        "attention.window": 5,
        "layers.1.attention.window": None,
        "layers.1.position.base": 500.0,
    },
    "bloom": {
        "model": "GPT",
        "bias": True,
        "position": "ALiBi",
        "embedding_norm": True,
        "feed_forward.approximate": "tanh",
    },
    "bert": {"model": "Bert"},
    "roberta": {"model": "Bert", "position.offset": 2, "num_segments": 1},
    "vit": {"model": "ViT", "num_classes": 3, "image_size": 8, "patch_size": 4, "pooling": "class"},
    "t5": {"model": "T5", "scale_embedding": False, "attention.scale": 1.0, "feed_forward.approximate": "tanh"},
    "bart": {
        "model": "EncoderDecoder",
        "bias": True,
        "position": "Learned",
        "position.offset": 2,
        "output_bias": True,
        "embedding_norm": True,
        "scale_embedding": False,
    },
    "marian": {
        "model": "EncoderDecoder",
        "bias": True,
        "position.interleaved": False,
        "output_bias": True,
        "feed_forward": "SiLU",
    },
    "whisper": {"model": "Whisper", "num_mels": 5, "num_frames": 16},
}
TOWERS = r"^(?:encoder|decoder)\."  # under which settings of Whisper stand
PLAIN, GATED = ("ReLU", "SiLU", "GELU", "SquaredReLU"), ("GLU", "GEGLU", "SwiGLU", "ReGLU")
OF_TEXT = ("PositionEncoding", "Sinusoidal", "Learned", "Rotary", "RotaryLinear", "RotaryNTK", "RotaryYaRN", "RotaryLlama3", "ALiBi", "RelativeBias")  # fmt: skip
OF_IMAGES = ("PositionEncoding", "Learned", "Learned2D", "Sinusoidal2D", "AxialRotary")
PARTS = {
    "residual": ("PostNorm", "PreNorm", "Sandwich", "ReZero", "Parallel", "DeepNorm"),
    "residual.norm": ("LayerNorm", "RMSNorm", "DynamicTanh"),
    "attention": ("MultiHead", "MultiQuery", "GroupedQuery"),
    "feed_forward": (*PLAIN, *GATED),
}
# Values of fields by the last word of their name, or their whole name; of booleans both.
VALUES: dict[str, tuple[Any, ...]] = {
    "num_layers": (1, 2, 3),
    "num_decoder_layers": (None, 1, 3),
    "num_heads": (1, 2, 3, 4),
    "d_model": (12, 24, 36),
    "d_ff": (None, 7, 20, 96),
    "max_length": (12, 16, 40),
    "vocabulary_size": (23, 31),
    "num_segments": (0, 1, 2, 3),
    "eps": (1e-12, 1e-6, 1e-5, 1e-3, 0.1),
    "qk_norm": (False, True, "full_width"),
    "qk_norm_eps": (1e-6, 1e-3),
    "base": (10.0, 500.0, 10000.0, 1e6),
    "fraction": (0.25, 0.34, 0.5, 0.75, 0.99, 1.0),
    "factor": (1.0, 1.5, 4.0, 8.0),
    "original_length": (None, 4, 8, 64),
    "low_frequency_factor": (0.5, 1.0),
    "high_frequency_factor": (2.0, 4.0, 9.0),
    "beta_fast": (4.0, 32.0),
    "beta_slow": (0.5, 1.0),
    "attention_factor": (None, 1.0, 1.3),
    "offset": (0, 1, 2, 3),
    "num_buckets": (4, 8, 32),
    "max_distance": (9, 20, 128),
    "scale": (None, 1.0, 0.5),
    "d_head": (None, 4, 6, 8),
    "num_key_value_heads": (None, 1, 2, 4),
    "window": (None, 1, 3, 7, 40),
    "soft_cap": (None, 5.0),
    "approximate": ("none", "tanh"),
    "pooling": ("mean", "class"),
    "registers": (0, 2),
    "patch_size": (2, 4),
    "image_size": (8, 16, [8, 12]),
    "channels": (1, 3),
    "num_classes": (1, 2, 5),
    "alpha": (None, 0.5, 2.0),
    "beta": (None, 0.5),
    "attention.bias": (None, True, False),
    "feed_forward.bias": (None, True, False),
    "num_mels": (3, 5),
    "num_frames": (8, 15, 16),
}

# --- models there

TEXT = {"vocab_size": 31, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
GPT = {**TEXT, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**GPT, "intermediate_size": 20, "max_position_embeddings": 16}
BART = {
    **TEXT,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 2,
}
THEIRS: dict[str, dict[str, Any]] = {
    "gpt2": {**TEXT, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16},
    "gpt_neox": {**WIDE, "hidden_size": 32},
    "llama": WIDE,
    "starcoder2": {**WIDE, "num_key_value_heads": 2},
    "mistral": {**WIDE, "num_key_value_heads": 2},
    "qwen3": {**WIDE, "num_key_value_heads": 2, "head_dim": 6},
    "olmo2": {**WIDE, "num_key_value_heads": 2},
    "gemma2": {**WIDE, "num_key_value_heads": 2, "head_dim": 6, "query_pre_attn_scalar": 5, "sliding_window": 5},
    "gemma3_text": {**WIDE, "num_key_value_heads": 2, "head_dim": 6, "query_pre_attn_scalar": 5, "sliding_window": 5},
    "bloom": {**TEXT, "hidden_size": 24, "n_layer": 2, "n_head": 4},
    "bert": WIDE,
    "roberta": {**WIDE, "type_vocab_size": 1},
    "vit": {
        **{key: value for key, value in WIDE.items() if "token" not in key and "voc" not in key and "posit" not in key},
        "image_size": 8,
        "patch_size": 4,
        "num_labels": 3,
    },
    "t5": {**TEXT, "d_model": 24, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1},
    "bart": BART,
    "marian": {**BART, "activation_function": "swish", "scale_embedding": True},
    "whisper": {
        **{key: value for key, value in BART.items() if "position" not in key},
        "num_mel_bins": 5,
        "max_source_positions": 8,
        "max_target_positions": 16,
    },
}
ROPES = (
    None,
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 8},
    {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0},
    },
    {"sliding_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0}},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False},
    {"rope_type": "yarn", "factor": 2.0, "rope_theta": 500.0, "attention_factor": 1.3},
    {"rope_type": "yarn", "factor": 2.0, "rope_theta": 500.0, "mscale": 0.7, "mscale_all_dim": 1.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "rope_theta": 500.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
)
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "relu2", "silu", "swish", "tanh", "sigmoid")  # fmt: skip
BOTH = (True, False)
EPS = (1e-12, 1e-5, 1e-3, 0.1)
# Fields that one architecture or another has; each is drawn for all, for what is believed to act may be read by siblings alone.
FIELDS: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": BOTH,
    "hidden_act": ACTIVATIONS,
    "activation_function": ACTIVATIONS,
    "layer_norm_epsilon": EPS,
    "layer_norm_eps": EPS,
    "rms_norm_eps": EPS,
    "norm_epsilon": EPS,
    "rope_parameters": ROPES,
    "partial_rotary_factor": (0.5,),
    "rotary_pct": (0.25, 0.34, 0.5, 1.0),
    "rope_theta": (500.0,),
    "attention_bias": BOTH,
    "mlp_bias": BOTH,
    "use_bias": BOTH,
    "qkv_bias": BOTH,
    "head_dim": (4, 8),
    "d_kv": (4, 8),
    "num_key_value_heads": (1, 2, 4),
    "sliding_window": (3, 40, None),
    "use_sliding_window": BOTH,
    "max_window_layers": (0, 1, 2),
    "layer_types": (["sliding_attention", "full_attention"], ["full_attention", "full_attention"]),
    "use_parallel_residual": BOTH,
    "scale_attn_weights": BOTH,
    "scale_attn_by_inverse_layer_idx": BOTH,
    "reorder_and_upcast_attn": BOTH,
    "add_cross_attention": (True,),
    "is_decoder": BOTH,
    "apply_residual_connection_post_layernorm": BOTH,
    "n_inner": (None, 20),
    "type_vocab_size": (1, 2, 3),
    "position_embedding_type": ("absolute", "relative_key"),
    "pad_token_id": (0, 1, 3),
    "feed_forward_proj": ("relu", "gelu", "gated-gelu", "gated-silu", "gated-relu", "gelu_new"),
    "scale_decoder_outputs": BOTH,
    "relative_attention_num_buckets": (4, 8, 32),
    "relative_attention_max_distance": (9, 128),
    "num_decoder_layers": (1, 3),
    "scale_embedding": BOTH,
    "normalize_before": BOTH,
    "normalize_embedding": BOTH,
    "add_final_layer_norm": BOTH,
    "static_position_embeddings": BOTH,
    "share_encoder_decoder_embeddings": BOTH,
    "decoder_attention_heads": (2, 4),
    "decoder_ffn_dim": (12, 20),
    "decoder_layers": (1, 3),
    "num_channels": (1, 3),
    "image_size": (8, [8, 12]),
    "patch_size": (2, 4),
    "num_labels": (2, 5),
    "pretraining_tp": (1, 2),
    "encoder_layers": (1, 3),
    "num_mel_bins": (3, 5),
    "max_source_positions": (4, 8),
    "max_target_positions": (12, 16),
    "use_weighted_layer_sum": BOTH,
    "apply_spec_augment": BOTH,
}

ROTARY_FIELDS = ("partial_rotary_factor", "rope_theta")  # taken by every configuration with rotary positions
NEAR = 0.6  # of the changes are to a field here that some architecture carries over, be it only a sibling of the one at hand
CARRIED = {
    name
    for known in map(ARCHITECTURES.__getitem__, BASES)
    for entry in known.fields
    for name in ([entry.ours] if isinstance(entry, Same) else {n for w in entry.words.values() for n in w} if isinstance(entry, OneOf) else [])
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a draw: which architecture, what of it was asked, and how far the logits lie apart."""

    number: int
    kind: str
    architecture: str
    asked: dict[str, Any]
    difference: float = 0.0
    why: str = ""


def outcome(number: int, folder: Path) -> Outcome:
    """What becomes of the draw of this number; `folder` is new."""
    draw = random.Random(number)
    name = draw.choice(list(BASES))
    return _exported(number, name, draw, folder) if number % 2 == 0 else _imported(number, name, draw, folder)


def _exported(number: int, name: str, draw: random.Random, folder: Path) -> Outcome:
    asked = _settings(name, draw)
    try:
        settings = completed(asked)
        model = _drawn(build(settings), number)
    except (ValueError, TypeError, KeyError) as error:
        return Outcome(number, VOID, name, asked, why=str(error))
    try:
        known = to_folder(folder, settings, model.state_dict())
    except CannotConvert as refused:
        return Outcome(number, REFUSED, name, asked, why=str(refused))
    try:
        there = _loaded(json.loads((folder / "config.json").read_text())["architectures"][0], folder)
        read = read_model(folder).model()
        gap = max(_gap(model, there, settings["model"], settings, number), _gap(model, read, "", settings, number))
    except Exception as error:  # whatever the other library raises on what was written is a fault of the writing
        return Outcome(number, WRONG, known.name, asked, float("inf"), f"{type(error).__name__}: {error}")
    return Outcome(number, SAME if gap <= BOUND else WRONG, known.name, asked, gap)


def _imported(number: int, name: str, draw: random.Random, folder: Path) -> Outcome:
    import transformers

    usual = transformers.AutoConfig.for_model(name)
    own = [
        field
        for field in FIELDS
        if hasattr(usual, field) or (field in ROTARY_FIELDS and hasattr(usual, "rope_parameters"))
    ]
    drawn = draw.sample(own, draw.randint(0, 5)) + draw.sample(list(FIELDS), int(draw.random() < FOREIGN))
    changes = {field: draw.choice(FIELDS[field]) for field in drawn}
    known, asked = ARCHITECTURES[name], {**THEIRS[name], **changes}
    try:
        config = transformers.AutoConfig.for_model(name, **asked)
        there = _drawn(getattr(transformers, known.classes[0])(config), number)
        there.tie_weights()
        there.save_pretrained(folder)
        there = _loaded(known.classes[0], folder)
        rows = _inputs(known.model, _sizes(config), number)
        with torch.no_grad():
            for given in rows:
                _theirs(there, known.model, given)
    except Exception as error:  # the library refuses in many ways
        return Outcome(number, VOID, name, changes, why=f"{type(error).__name__}: {error}")
    try:
        read = read_model(folder)
    except CannotConvert as refused:
        return Outcome(number, REFUSED, name, changes, why=str(refused))
    gap = _gap(read.model(), there, known.model, read.settings, number)
    return Outcome(number, SAME if gap <= BOUND else WRONG, name, changes, gap)


def _settings(name: str, draw: random.Random) -> dict[str, Any]:
    """A model near one of the architectures: up to six of its parts and fields drawn anew."""
    sizes = {key: value for key, value in SIZES.items() if BASES[name]["model"] != "ViT" or "length" not in key}
    sizes = {key: value for key, value in sizes.items() if BASES[name]["model"] != "ViT" or "vocabulary" not in key}
    asked: dict[str, Any] = {**sizes, **BASES[name]}
    for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        try:
            fields = completed(asked)
        except (ValueError, TypeError, KeyError):
            break
        known = [key for key in (*fields, "attention", "feed_forward.matched") if _values(key, fields)]
        carried = [key for key in known if key in CARRIED]
        key = draw.choice(carried if draw.random() < NEAR else known)
        value = draw.choice(_values(key, fields))
        if _local(key) in (*PARTS, "position"):
            asked = {old: kept for old, kept in asked.items() if not old.startswith(f"{key}.") or _local(old) in PARTS}
        asked[key] = value
    return asked


def _values(key: str, fields: dict[str, Any]) -> tuple[Any, ...]:
    """What a field can be drawn from."""
    if _local(key) == "position":
        return OF_IMAGES if fields["model"] == "ViT" else OF_TEXT
    for known in (PARTS, VALUES):
        for name in (_local(key), key.rpartition(".")[2]):
            if name in known:
                return known[name]
    return BOTH if isinstance(fields.get(key), bool) else ()


def _local(key: str) -> str:
    """A field by its name within its stack."""
    return re.sub(TOWERS, "", key)


def _drawn(model: nn.Module, seed: int) -> Any:
    """The model with weights that show every part: no two tensors alike, biases and gains included, logits near 1."""
    random_numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.requires_grad or name == "final_logits_bias":
                gain = 0.7 * (tensor.ndim == 1)
                tensor.copy_(0.25 * torch.randn(tensor.shape, generator=random_numbers) + gain)
    return model.eval()


def _loaded(cls: str, folder: Path) -> Any:
    import transformers

    model, told = getattr(transformers, cls).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    odd = {name for name in (*told["missing_keys"], *told["unexpected_keys"]) if "pooler" not in name}
    if odd:
        raise ValueError(f"missing or unexpected: {sorted(odd)}")
    return model.eval()


def _sizes(config: Any) -> dict[str, Any]:
    side = getattr(config, "image_size", 8)
    return {
        "vocabulary_size": getattr(config, "vocab_size", 0),
        "max_length": 12,
        "image_size": [side, side] if isinstance(side, int) else list(side),
        "channels": getattr(config, "num_channels", 3),
        "num_mels": getattr(config, "num_mel_bins", 0),
        "num_frames": 2 * getattr(config, "max_source_positions", 0),
    }


def _inputs(model: str, sizes: dict[str, Any], seed: int) -> Iterator[tuple[Tensor, ...]]:
    """
    What the models are compared on: two images, or rows of one token, of some, and of as many as there are positions;
    of Whisper with a window of features before each.
    """
    random_numbers = torch.Generator().manual_seed(seed + 1)
    if model == "ViT":
        yield (torch.randn(2, sizes["channels"], *sizes["image_size"], generator=random_numbers),)
        return
    for length in (1, 5, min(sizes["max_length"], 12)):
        shape = (2, length)
        source, target = (
            torch.randint(RESERVED, sizes["vocabulary_size"], shape, generator=random_numbers) for _ in range(2)
        )
        if model == "Whisper":
            yield torch.randn(2, sizes["num_mels"], sizes["num_frames"], generator=random_numbers), target
        else:
            yield (source, target[:, : max(1, length - 2)]) if model in ("EncoderDecoder", "T5") else (source,)


def _theirs(there: Any, model: str, given: tuple[Tensor, ...]) -> Tensor:
    first = "input_features" if model == "Whisper" else "input_ids"
    found = there(**{first: given[0]}, decoder_input_ids=given[1]) if len(given) > 1 else there(given[0])
    logits: Tensor = found.prediction_logits if hasattr(found, "prediction_logits") else found.logits
    return logits


def _gap(here: nn.Module, there: Any, model: str, settings: dict[str, Any], seed: int) -> float:
    """
    The largest difference of logits, relative to the largest of them where that is above 1. model: empty where
    `there` is one of ours.
    """
    gaps = []
    with torch.no_grad():
        for given in _inputs(settings["model"], settings, seed):
            ours = here(*given)
            theirs = _theirs(there, model, given) if model else there(*given)
            gaps.append(float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max()))))
    return max(gaps)


def outcomes(numbers: range) -> Iterator[Outcome]:
    """What becomes of the draws of these numbers, one after the other."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            yield outcome(number, Path(folder) / "model")


def main() -> int:
    """Prints a line for each wrong draw and a table by architecture; returns 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first draw")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    counts: Counter[tuple[str, str, str]] = Counter()
    largest: dict[tuple[str, str], float] = {}
    for found in outcomes(range(arguments.first, arguments.first + arguments.draws)):
        way = "import" if found.number % 2 else "export"
        counts[found.architecture, way, found.kind] += 1
        if found.kind == WRONG:
            print(
                f"{found.number} {way} {found.architecture}: {found.difference:.1e} {found.why[:300]}\n  {found.asked}"
            )
        elif found.kind == SAME:
            largest[found.architecture, way] = max(largest.get((found.architecture, way), 0.0), found.difference)
    print(
        f"{'architecture':14}{'way':8}" + "".join(f"{kind:>9}" for kind in (SAME, REFUSED, VOID, WRONG)) + "  largest"
    )
    for name in BASES:
        for way in ("export", "import"):
            row = "".join(f"{counts[name, way, kind]:9,}" for kind in (SAME, REFUSED, VOID, WRONG))
            print(f"{name:14}{way:8}{row}  {largest.get((name, way), 0.0):.1e}")
    wrong = sum(count for (_, _, kind), count in counts.items() if kind == WRONG)
    print(f"{arguments.draws:,} draws, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
