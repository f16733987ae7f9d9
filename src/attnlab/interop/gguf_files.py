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
ROTATED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
AS_IT_IS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in a GGUF vocabulary
# What a file has to say.
NEEDED = (
    *(f"llama.{name}" for name in ("attention.head_count", "embedding_length", "feed_forward_length", "block_count")),
    *(
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
    ),
)
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

    class Reader(GGUFReader):
        """Ends where the file does: the library goes on over nothing, for as long as a damaged length says."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < count:
                raise ValueError(f"it ends at {len(self.data):,} bytes, before what it says it holds")
            return found

    try:
        reader = Reader(str(path))
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CannotConvert(f"{path} is truncated or damaged, or no GGUF file ({error}); fetch it again") from error
    kind = facts.get("general.architecture")
    if kind != "llama":
        raise CannotConvert(f"{path} holds the architecture {kind!r}; accepted: 'llama'")
    lost = [name for name in NEEDED if name not in facts]
    if lost:
        raise CannotConvert(f"{path} does not say {', '.join(lost)}; it is no whole model")
    files = _tokenizer(facts, path)
    config = _config(facts, path)
    return GGUF(config, _tensors(reader, config, path), files)


def _config(facts: dict[str, Any], path: str | Path) -> dict[str, Any]:
    said = {name.removeprefix("llama."): value for name, value in facts.items() if name.startswith("llama.")}
    scaling = said.get("rope.scaling.type", "none")
    if scaling != "none":
        raise CannotConvert(f"{path}: llama.rope.scaling.type={scaling!r} is not read; accepted: 'none'")
    heads, width = said["attention.head_count"], said["embedding_length"]
    shared = said.get("attention.head_count_kv", heads)
    if not (isinstance(heads, int) and isinstance(shared, int) and min(heads, shared) > 0):
        raise CannotConvert(
            f"{path}: {heads} heads, {shared} of keys, are not read; accepted: one number each for all layers"
        )
    d_head = said.get("attention.key_length", width // heads)
    rotated, values = said.get("rope.dimension_count", d_head), said.get("attention.value_length", d_head)
    if not d_head == rotated == values:
        raise CannotConvert(
            f"{path}: heads of {d_head} dimensions, of which {rotated} are rotated, with values of {values} are not read; accepted: three "
            "equal numbers"
        )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": said["feed_forward_length"],
        "num_hidden_layers": said["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": d_head,
        "max_position_embeddings": said["context_length"],
        "rms_norm_eps": float(f"{said['attention.layer_norm_rms_epsilon']:.6g}"),  # a float32 there
        "rope_theta": float(said.get("rope.freq_base", 10000.0)),
    }


def _tensors(reader: Any, config: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    tensors = {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        try:
            array = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        except NotImplementedError as error:
            raise CannotConvert(
                f"{path}: {tensor.name} is of the type {tensor.tensor_type.name}, which the package gguf does not dequantise ({error})"
            ) from error
        if name in OUTSIDE:
            tensors[f"{OUTSIDE[name]}.weight"] = array
            continue
        _, _, rest = name.partition(".")
        layer, _, part = rest.partition(".")
        if part in ROTATED:
            array = _apart(array, config[ROTATED[part]], f"{path}: {tensor.name}")
        known = LAYER.get(part)
        # An unknown one keeps its name and is listed as unexpected.
        tensors[f"model.layers.{layer}.{known}.weight" if known else tensor.name] = array
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    return tensors


def _apart(weight: Tensor, num_heads: int, name: str) -> Tensor:
    """Undoes the order of llama.cpp, which has the two dimensions of each rotated pair side by side."""
    if weight.shape[0] % (2 * num_heads):
        raise CannotConvert(
            f"{name} has {weight.shape[0]} rows, which are no pairs of {num_heads} heads; fetch the file again"
        )
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(facts: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Hugging Face's files of a byte-level BPE. Raises CannotConvert for another kind."""
    kind, before = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or before not in PRE_TOKENIZERS:
        raise CannotConvert(
            f"{path}: a tokenizer of model {kind!r} and pre-tokenizer {before!r} is not read; accepted: model 'gpt2' with "
            f"{', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    lost = [name for name in ("tokenizer.ggml.token_type", "tokenizer.ggml.merges") if name not in facts]
    if lost:
        raise CannotConvert(f"{path} does not say {', '.join(lost)}; it is no whole model")
    if facts.get("tokenizer.ggml.add_bos_token"):
        raise CannotConvert(f"{path}: a tokenizer that puts a mark before every text (add_bos_token) is not read")
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    numbers = {theirs: facts.get(f"tokenizer.ggml.{ours}_token_id") for theirs, ours in SPECIAL.items()}
    if len(kinds) != len(tokens) or any(number is not None and number >= len(tokens) for number in numbers.values()):
        raise CannotConvert(
            f"{path}: the vocabulary of {len(tokens)} tokens has {len(kinds)} kinds, and marks {numbers}; fetch it again"
        )
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
    special = {f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if template := facts.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return {"tokenizer.json": rules, "tokenizer_config.json": settings, "special_tokens_map.json": special}
