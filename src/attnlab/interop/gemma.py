"""Gemma 2 of Hugging Face transformers: norms before and after each sublayer with gains around 1, capped scores and
logits, and a window in every other layer.
"""

from __future__ import annotations

from dataclasses import replace

from attnlab.interop.architecture import Output, modules, projections, tensors
from attnlab.interop.decoders import (
    FULL,
    GATED,
    GATED_ACTIVATIONS,
    LAYER,
    LLAMA,
    ROTARY_FIELDS,
    ROTARY_SIZES,
    SLIDING,
    WHOLE_ROTARY,
    tidy_rotary,
    untidy_llama,
    windows,
)
from attnlab.interop.fields import Config, OneOf, Same, Windows, only, optional

# What is meant where nothing is said; null says something else.
UNSAID = {
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
}
NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
# It has the approximate GELU in the other of its two roundings.
USUAL_FIRST = {word: GATED_ACTIVATIONS[word] for word in ("gelu_pytorch_tanh", *GATED_ACTIVATIONS)}


def tidy_gemma(config: Config) -> Config:
    """As LLaMA's, with the scale of scores as a factor, and the window of each layer under one name."""
    config = tidy_rotary(UNSAID | config)
    window, types = config.pop("sliding_window"), config.pop("layer_types", None)
    if types is None:
        types = [FULL if layer % 2 else SLIDING for layer in range(config.get("num_hidden_layers", 0))]
    scale = config.pop("query_pre_attn_scalar") ** -0.5
    return config | {"windows": windows(types, window), "scale": scale}


def untidy_gemma(config: Config) -> Config:
    """As LLaMA's; of several windows there can be but one, the first, and the scale is that of a whole number."""
    config = dict(config)
    of_layers, scale = config.pop("windows"), config.pop("scale", None)
    number = config["head_dim"] if scale is None else max(1, round(scale**-2))
    said = {
        "sliding_window": next((width for width in of_layers if width is not None), None),
        "layer_types": [FULL if width is None else SLIDING for width in of_layers],
        "query_pre_attn_scalar": number,
    }
    return NO_CAPS | untidy_llama(config) | said


NORMS = {
    "input_layernorm": "residual.norms.0",
    "post_attention_layernorm": "residual.output_norms.0",
    "pre_feedforward_layernorm": "residual.norms.1",
    "post_feedforward_layernorm": "residual.output_norms.1",
}

GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    fixed={
        **LLAMA.fixed,
        "residual": "Sandwich",
        "residual.norm.zero_centered": True,
        "scale_embedding": True,
        "feed_forward.bias": False,
    },
    fields=(
        *ROTARY_SIZES,
        Same("num_key_value_heads", "attention.num_key_value_heads", default=4),
        Same("head_dim", "attention.d_head", default=256),
        Same("rms_norm_eps", "residual.norm.eps", default=1e-6),
        OneOf("hidden_activation", USUAL_FIRST, default="gelu_pytorch_tanh"),
        Same("attention_bias", "attention.bias", default=False),
        *optional(attn_logit_softcapping="attention.soft_cap", final_logit_softcapping="logit_soft_cap"),
        *optional(scale="attention.scale"),
        Windows("windows"),
        *only(use_bidirectional_attention=False),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=(
        *tensors({"model.embed_tokens.weight": "embedding.weight", "lm_head.weight": "head.weight"}),
        *modules(
            {
                **projections("self_attn.*_proj", "qkvo"),
                **NORMS,
                **{f"mlp.{theirs}": f"feed_forward.{ours}" for theirs, ours in GATED.items()},
            },
            "model.layers.{i}.",
            LAYER,
        ),
        *modules({"model.norm": "stack.norm"}),
    ),
    output=Output("lm_head.weight", "model.embed_tokens.weight"),
    no_matter="hidden_act|cache_implementation",
    tidy=tidy_gemma,
    untidy=untidy_gemma,
)
