"""Models of other libraries as files: folders with config.json and safetensors, and LLaMA models in llama.cpp's GGUF
files. No pickle is ever read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attnlab.interop.architecture import some
from attnlab.interop.fields import CannotConvert

if TYPE_CHECKING:
    from gguf import GGUFReader

ONE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LARGEST_FILE = 5 * 10**9  # bytes of one file of weights that is written


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a folder. Raises CannotConvert."""
    path = folder / CONFIG
    config = read_json(path)
    if "model_type" not in config:
        raise CannotConvert(f"{path} names no model_type, so it is not that of a model of Hugging Face transformers")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files. Raises CannotConvert for damaged, missing and pickled ones."""
    index, paths = folder / INDEX, [folder / ONE]
    placed: dict[str, object] = {}
    if index.is_file() and not paths[0].is_file():  # one file goes first, as in transformers
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise CannotConvert(f"{index} has no weight_map, which says where each tensor lies; fetch it again")
        placed = found
        paths = sorted({folder / str(name) for name in placed.values()})
        if any(path.parent != folder for path in paths):
            raise CannotConvert(f"{index} names files outside of its folder; accepted: names of files beside it")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            raise CannotConvert(_no_weights(folder, path))
        tensors |= read_safetensors(path)
    if lost := sorted(set(placed) - set(tensors)):
        raise CannotConvert(f"{index} lists tensors that no file holds: {some(lost, 8)}; fetch the folder again")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CannotConvert(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged ({error}); fetch it again"
        ) from error


def write_model(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Writes config.json and safetensors, in several files where they are large."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > LARGEST_FILE:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().clone()  # safetensors takes no two tensors of one memory
        size += tensor.nbytes
    count = len(shards)
    names = [ONE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    if count > 1:
        placed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    _write_json(folder / CONFIG, config)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotConvert(
            f"{path} cannot be read ({error.strerror or error}); accepted: a folder with config.json and "
            "model.safetensors, as save_pretrained writes them"
        ) from error
    except ValueError as error:
        raise CannotConvert(f"{path} is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CannotConvert(f"{path} holds no table of fields; fetch it again")
    return content


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _no_weights(folder: Path, path: Path) -> str:
    pickles = sorted(found.name for pattern in PICKLES for found in folder.glob(pattern))
    if not pickles:
        return f"{path} is not there; accepted: a folder with config.json and {ONE}, or the files that {INDEX} lists"
    return (
        f"{folder} holds its weights as a pickle ({', '.join(pickles[:3])}), and a pickle can run any code while "
        "it is read; accepted: safetensors. Where you trust it, convert it once with its own library: "
        f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER)"
    )


# --- GGUF

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
    *(f"llama.{name}" for name in ("context_length", "attention.layer_norm_rms_epsilon")),
    *("tokenizer.ggml.model", "tokenizer.ggml.tokens"),
)
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# What each name of a pre-tokenizer stands for.
PRE_TOKENIZERS = {"gpt-2": BYTES, "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}}


@dataclass(frozen=True)
class GGUF:
    """A model's configuration and tensors, dequantised, and its tokenizer's files by name, as Hugging Face has them."""

    config: dict[str, object]
    tensors: dict[str, Tensor]
    files: dict[str, object]


def read_gguf(path: str | Path) -> GGUF:
    """Reads a file, which needs the package gguf. Raises CannotConvert for one that is damaged, of another
    architecture, or whose tokenizer is not known.
    """
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
    if (kind := facts.get("general.architecture")) != "llama":
        raise CannotConvert(f"{path} holds the architecture {kind!r}; accepted: 'llama'")
    _check_said(facts, NEEDED, path)
    files, config = _tokenizer(facts, path), _config(facts, path)
    tensors = _tensors(reader, config, path)
    return GGUF(config | {"tie_word_embeddings": "lm_head.weight" not in tensors}, tensors, files)


def _check_said(facts: Mapping[str, object], names: tuple[str, ...], path: str | Path) -> None:
    if lost := [name for name in names if name not in facts]:
        raise CannotConvert(f"{path} does not say {', '.join(lost)}; it is no whole model")


def _config(facts: Mapping[str, Any], path: str | Path) -> dict[str, object]:
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
            f"{path}: heads of {d_head} dimensions, of which {rotated} are rotated, with values of {values} are not "
            "read; accepted: three equal numbers"
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


def _tensors(reader: GGUFReader, config: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    tensors = {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        try:
            array = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        except NotImplementedError as error:
            raise CannotConvert(
                f"{path}: {tensor.name} is of the type {tensor.tensor_type.name}, which the package gguf does not "
                f"dequantise ({error})"
            ) from error
        layer, _, part = name.partition(".")[2].partition(".")
        if part in ROTATED:
            array = _apart(array, config[ROTATED[part]], f"{path}: {tensor.name}")
        known = OUTSIDE.get(name) or (f"model.layers.{layer}.{LAYER[part]}" if part in LAYER else None)
        # An unknown one keeps its name and is listed as unexpected.
        tensors[f"{known}.weight" if known else tensor.name] = array
    return tensors


def _apart(weight: Tensor, num_heads: int, name: str) -> Tensor:
    """Undoes the order of llama.cpp, which has the two dimensions of each rotated pair side by side."""
    if weight.shape[0] % (2 * num_heads):
        raise CannotConvert(
            f"{name} has {weight.shape[0]} rows, which are no pairs of {num_heads} heads; fetch the file again"
        )
    return weight.view(num_heads, -1, 2, *weight.shape[1:]).transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(facts: Mapping[str, Any], path: str | Path) -> dict[str, object]:
    """Hugging Face's files of a byte-level BPE. Raises CannotConvert for another kind."""
    kind, before = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or before not in PRE_TOKENIZERS:
        raise CannotConvert(
            f"{path}: a tokenizer of model {kind!r} and pre-tokenizer {before!r} is not read; accepted: model 'gpt2' "
            f"with {', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    _check_said(facts, ("tokenizer.ggml.token_type", "tokenizer.ggml.merges"), path)
    if facts.get("tokenizer.ggml.add_bos_token"):
        raise CannotConvert(f"{path}: a tokenizer that puts a token before every text (add_bos_token) is not read")
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    numbers = {theirs: facts.get(f"tokenizer.ggml.{ours}_token_id") for theirs, ours in SPECIAL.items()}
    if len(kinds) != len(tokens) or any(number is not None and number >= len(tokens) for number in numbers.values()):
        raise CannotConvert(
            f"{path}: the vocabulary of {len(tokens)} tokens has {len(kinds)} kinds, and special tokens {numbers}; "
            "fetch it again"
        )
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, "special": kind == CONTROL, **AS_IT_IS}
            for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
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


# --- CTranslate2

VERSION = 6  # of the format
NUMBERS = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by their place there


class _Bytes:
    """A file of small numbers and texts, read in order. Raises CannotConvert where it ends too early."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            self.data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise CannotConvert(f"{path} cannot be read ({error.strerror or error})") from error

    def take(self, count: int) -> np.ndarray:
        if self.at + count > len(self.data):
            raise CannotConvert(
                f"{self.path} ({len(self.data):,} bytes) is truncated or damaged, or no file of CTranslate2; fetch it "
                "again"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width).tobytes(), "little")

    def text(self) -> str:
        return self.take(self.number(2)).tobytes().rstrip(b"\0").decode("utf-8", "replace")


def read_ctranslate2(path: Path) -> tuple[str, dict[str, Tensor]]:
    """What a model.bin of CTranslate2 (its format 6) says it is, and its tensors by their names there; one that repeats
    another is left out. Raises CannotConvert for files that are damaged, or of another version.
    """
    file = _Bytes(path)
    if (version := file.number(4)) != VERSION:
        raise CannotConvert(
            f"{path} is of version {version} of CTranslate2's format, or no file of it; accepted: {VERSION}"
        )
    kind, _ = file.text(), file.number(4)
    tensors: dict[str, Tensor] = {}
    for _ in range(file.number(4)):
        name = file.text()
        shape = [file.number(4) for _ in range(file.number(1))]
        place, size = file.number(1), file.number(4)
        data = torch.from_numpy(file.take(size).copy())
        if place >= len(NUMBERS) or math.prod(shape) * NUMBERS[place].itemsize != size:
            raise CannotConvert(f"{path} is damaged: {name} of the shape {shape} has {size:,} bytes; fetch it again")
        tensors[name] = data.view(NUMBERS[place]).view(shape)
    return kind, tensors
