"""LLaMA models in llama.cpp's GGUF files: dequantised tensors, configuration and tokenizer in Hugging Face's names. Needs the package gguf."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab.interop.fields import CannotConvert

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
AS_IT_IS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in a GGUF vocabulary
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# What each name of a pre-tokenizer stands for.
PRE_TOKENIZERS = {"gpt-2": BYTES, "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}}


@dataclass(frozen=True)
class GGUF:
    """A model's configuration and tensors, and its tokenizer's files by name, as Hugging Face has them."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: dict[str, Any]


def read_gguf(path: str | Path) -> GGUF:
    """Reads a file. Raises CannotConvert for one that is damaged, of another architecture, or whose tokenizer is not known."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CannotConvert(f"{path}: GGUF files need the package gguf; pip install 'attnlab[gguf]'") from error
    try:
        reader = GGUFReader(str(path))
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CannotConvert(f"{path} is truncated or damaged, or no GGUF file ({error}); fetch it again") from error
    kind = facts.get("general.architecture")
    if kind != "llama":
        raise CannotConvert(f"{path} holds the architecture {kind!r}; accepted: 'llama'")
    config = _config(facts, path)
    return GGUF(config, _tensors(reader, config), _tokenizer(facts, path))


def _config(facts: dict[str, Any], path: str | Path) -> dict[str, Any]:
    def fact(name: str, default: Any = None) -> Any:
        value = facts.get(f"llama.{name}", default)
        if value is None:
            raise CannotConvert(f"{path} does not say llama.{name}; it is no whole model")
        return value

    scaling = facts.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise CannotConvert(f"{path}: llama.rope.scaling.type={scaling!r} is not read; accepted: 'none'")
    heads, width = fact("attention.head_count"), fact("embedding_length")
    d_head = facts.get("llama.attention.key_length", width // heads)
    rotated = facts.get("llama.rope.dimension_count", d_head)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": d_head,
        "max_position_embeddings": fact("context_length"),
        "rms_norm_eps": float(f"{fact('attention.layer_norm_rms_epsilon'):.6g}"),  # a float32 there
        "rope_theta": float(fact("rope.freq_base", 10000.0)),
        "partial_rotary_factor": rotated / d_head,
    }


def _tensors(reader: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    tensors = {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        array = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if name in OUTSIDE:
            tensors[f"{OUTSIDE[name]}.weight"] = array
            continue
        _, _, rest = name.partition(".")
        layer, _, part = rest.partition(".")
        if part == "attn_q":
            array = _apart(array, config["num_attention_heads"])
        if part == "attn_k":
            array = _apart(array, config["num_key_value_heads"])
        known = LAYER.get(part)
        # An unknown one keeps its name and is listed as unexpected.
        tensors[f"model.layers.{layer}.{known}.weight" if known else tensor.name] = array
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    return tensors


def _apart(weight: Tensor, num_heads: int) -> Tensor:
    """Undoes the order of llama.cpp, which has the two dimensions of each rotated pair side by side."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(facts: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Hugging Face's files of a byte-level BPE. Raises CannotConvert for another kind."""
    kind, before = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or before not in PRE_TOKENIZERS:
        raise CannotConvert(
            f"{path}: a tokenizer of model {kind!r} and pre-tokenizer {before!r} is not read; accepted: model 'gpt2' with "
            f"{', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    added = [
        {"id": number, "content": text, "special": kind == CONTROL, **AS_IT_IS}
        for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[before],
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in facts["tokenizer.ggml.merges"]],
            "fuse_unk": False,
            "byte_fallback": False,
        },
    }
    numbers = {theirs: facts.get(f"tokenizer.ggml.{ours}_token_id") for theirs, ours in SPECIAL.items()}
    special = {f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if template := facts.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return {"tokenizer.json": rules, "tokenizer_config.json": settings, "special_tokens_map.json": special}
