"""Gemma 2 and 3 of Hugging Face transformers: norms before and after each sublayer with gains around 1, and a window in
some layers; Gemma 2 with capped scores and logits, Gemma 3 with normed queries and keys, and rotary positions of their
own in layers with a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnlab.interop.architecture import Output, modules, projections, tensors
from attnlab.interop.decoders import (
    GATED,
    GATED_ACTIVATIONS,
    LAYER,
    LLAMA,
    QK_NORMS,
    ROTARY_FIELDS,
    ROTARY_SIZES,
    WHOLE_ROTARY,
    WINDOWS,
    tidy_rotary,
    untidy_llama,
    windows,
)
from attnlab.interop.fields import (
    FULL,
    SLIDING,
    CannotConvert,
    Config,
    OfLayers,
    OneOf,
    Only,
    Same,
    norm_eps,
    only,
    optional,
    types_and_window,
)

# What is meant where nothing is said; null says something else.
UNSAID_2: Config = {
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
}
UNSAID_3: Config = {"max_position_embeddings": 131072, "sliding_window": 4096, "query_pre_attn_scalar": 256}
NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
BASES = {FULL: 1_000_000.0, SLIDING: 10_000.0}  # of Gemma 3's rotary positions
OLD_BASES = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}
# It has the approximate GELU in the other of its two roundings.
USUAL_FIRST = {word: GATED_ACTIVATIONS[word] for word in ("gelu_pytorch_tanh", *GATED_ACTIVATIONS)}


def tidy_gemma2(config: Config) -> Config:
    """As LLaMA's, with the scale of scores as a factor, and what each layer has."""
    config = tidy_rotary(UNSAID_2 | config)
    window, types = config.pop("sliding_window"), config.pop("layer_types", None)
    if types is None:
        types = [FULL if layer % 2 else SLIDING for layer in range(config.get("num_hidden_layers", 0))]
    return _with_scale(config) | {"layers": windows(types, window)}


def untidy_gemma2(config: Config) -> Config:
    """As LLaMA's, with what layers have, and the scale, in its own words."""
    config = dict(config)
    layers = config.pop("layers")
    return NO_CAPS | untidy_llama(_with_number(config)) | _with_types(layers)


def tidy_gemma3(config: Config) -> Config:
    """What each layer has, its rotary positions among it, in spellings old and new."""
    config = UNSAID_3 | config
    window, types = config.pop("sliding_window"), config.pop("layer_types", None)
    every = config.pop("sliding_window_pattern", None) or 6
    if types is None:
        types = [SLIDING if layer % every else FULL for layer in range(1, config.get("num_hidden_layers", 0) + 1)]
    of_types, scaling = dict(config.pop("rope_parameters", None) or {}), config.pop("rope_scaling", None)
    old = {kind: config.pop(word, None) for kind, word in OLD_BASES.items()}
    if unknown := sorted(of_types.keys() - BASES.keys()):
        said = f"rope_parameters.{unknown[0]} has no counterpart here"
        raise CannotConvert(f"{said}; accepted: those of {SLIDING!r} and of {FULL!r}")
    rotary: dict[str, Config] = {}
    for kind, base in BASES.items():
        own = {**(of_types.get(kind) or {}), **(scaling or {} if kind == FULL else {})}
        own = {"rope_theta": base if old[kind] is None else old[kind]} | own
        rotary[kind] = tidy_rotary({"rope_parameters": own})
    layers = [layer | rotary[kind] for layer, kind in zip(windows(types, window), types, strict=True)]
    return _with_scale(config) | {"layers": layers}


def untidy_gemma3(config: Config) -> Config:
    """What layers have, and the scale, in its own words, of which the old spellings are read by old and new versions:
    they have no scaling of rotary positions for layers with a window.
    """
    config = dict(config)
    layers = config.pop("layers")
    said = _with_types(layers)
    rotary: Config = {"rope_scaling": None}
    for kind, word in OLD_BASES.items():
        layer: Config = next((layer for layer, own in zip(layers, said["layer_types"], strict=True) if own == kind), {})
        rope = {key: value for key, value in layer.items() if key.startswith("rope.")}
        old = untidy_llama({"rope.rope_type": "default", "rope.rope_theta": BASES[kind]} | rope)
        rotary[word] = old["rope_theta"]
        if kind == FULL:
            rotary["rope_scaling"] = old["rope_scaling"]
    return {"final_logit_softcapping": None} | _with_number(config) | rotary | said


def _with_types(layers: Sequence[Config]) -> Config:
    """The type of each layer, and the window; where none has one the usual number stays, which the library needs."""
    types, window = types_and_window(layers)
    return {"layer_types": types} | ({} if window is None else {"sliding_window": window})


def _with_scale(config: Config) -> Config:
    config = dict(config)
    return config | {"scale": config.pop("query_pre_attn_scalar") ** -0.5}


def _with_number(config: Config) -> Config:
    """The scale as that of a whole number."""
    config = dict(config)
    scale = config.pop("scale", None)
    return config | {"query_pre_attn_scalar": config["head_dim"] if scale is None else max(1, round(scale**-2))}


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
        WINDOWS,
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
    tidy=tidy_gemma2,
    untidy=untidy_gemma2,
)

GEMMA3 = replace(
    GEMMA2,
    name="gemma3_text",
    classes=("Gemma3ForCausalLM",),
    fixed={**GEMMA2.fixed, "attention.qk_norm": True, "attention.qk_norm_zero_centered": True},
    fields=(
        *ROTARY_SIZES,
        Same("num_key_value_heads", "attention.num_key_value_heads", default=4),
        Same("head_dim", "attention.d_head", default=256),
        *norm_eps(1e-6),
        OneOf("hidden_activation", USUAL_FIRST, default="gelu_pytorch_tanh"),
        Same("attention_bias", "attention.bias", default=False),
        Only("attn_logit_softcapping", (None,), "is not what transformers computes: it caps no scores here"),
        *optional(final_logit_softcapping="logit_soft_cap"),
        *optional(scale="attention.scale"),
        OfLayers("layers", (*WINDOWS.fields, WHOLE_ROTARY, *ROTARY_FIELDS)),
        *only(use_bidirectional_attention=False),
    ),
    rules=(*GEMMA2.rules, *QK_NORMS),
    tidy=tidy_gemma3,
    untidy=untidy_gemma3,
)

GEMMA = (GEMMA2, GEMMA3)
