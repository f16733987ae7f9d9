"""Small models of Hugging Face transformers, and folders of them that are changed in one place."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TEXT = {"vocab_size": 37, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BERT = {
    **TEXT,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
GPT = {**TEXT, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
NEOX = {**GPT, "intermediate_size": 20, "max_position_embeddings": 16, "rotary_pct": 0.5}
LLAMA = {**GPT, "num_key_value_heads": 1, "intermediate_size": 20, "max_position_embeddings": 16}
T5 = {**TEXT, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 3}
BART = {
    **TEXT,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
TOWER = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
TEXTS = {**TOWER, "hidden_size": 12, "max_position_embeddings": 16, "vocab_size": 37, "eos_token_id": 36}
PICTURES = {**TOWER, "hidden_size": 18, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
CLIP = {"text_config": TEXTS, "vision_config": PICTURES, "projection_dim": 10}
SIGLIP = {"text_config": {**TEXTS, "projection_size": 18}, "vision_config": PICTURES}
WHISPER = {
    **{name: BART[name] for name in BART if name.startswith(("encoder", "decoder_l", "decoder_a", "decoder_f", "d_m"))},
    "vocab_size": 37,
    "num_mel_bins": 5,
    "max_source_positions": 8,
    "max_target_positions": 16,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "begin_suppress_tokens": None,
}
# The class and configuration of each architecture, by their names in transformers.
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT, "n_positions": 16}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", LLAMA),
    "bloom": ("BloomForCausalLM", "BloomConfig", {**TEXT, "hidden_size": 12, "n_layer": 2, "n_head": 3}),
    "bert": ("BertForPreTraining", "BertConfig", BERT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**BERT, "type_vocab_size": 1}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "marian": ("MarianMTModel", "MarianConfig", {**BART, "activation_function": "swish", "scale_embedding": True}),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT),
    "clip": ("CLIPModel", "CLIPConfig", CLIP),
    "siglip": ("SiglipModel", "SiglipConfig", SIGLIP),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
}


def reference(model: str, config: str, fields: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers in which no two tensors are alike, biases and gains of norms included."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made = getattr(transformers, model)(getattr(transformers, config)(**fields))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
            is_fixed = name.endswith("encoder.embed_positions.weight") and not tensor.requires_grad
            if (isinstance(tensor, torch.nn.Parameter) and not is_fixed) or name == "final_logits_bias":
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=random) + (tensor.ndim == 1) * 0.5)
    made.tie_weights()
    return made.eval()


def copied(source: Path, target: Path, change: Any = None, **fields: Any) -> Path:
    """
    A copy of a folder at `target`.

    fields: of config.json, changed or added; `...` takes one out. change: makes other tensors of the tensors.
    """
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | fields
    write_config(target, {key: value for key, value in config.items() if value is not ...})
    if change is not None:
        write_tensors(target, change(tensors_of(target)))
    return target


def config_of(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json."""
    return json.loads((folder / "config.json").read_text())


def write_config(folder: Path, config: Any) -> None:
    """Replaces a folder's config.json."""
    (folder / "config.json").write_text(json.dumps(config))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's one file."""
    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Replaces a folder's one file of tensors."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
