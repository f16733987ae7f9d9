"""Decoder-only architectures: GPT-2, GPT-NeoX, LLaMA, Mistral, Qwen 3, OLMo 2, StarCoder 2, BLOOM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from attnlab.interop.architecture import (
    THIRDS,
    THIRDS_OF_HEADS,
    THIRDS_TRANSPOSED,
    TRANSPOSED,
    Architecture,
    Output,
    Rule,
    fused,
    modules,
    projections,
    tensors,
)
from attnlab.interop.fields import (
    FULL,
    SLIDING,
    CannotConvert,
    Config,
    OfLayers,
    OneOf,
    Only,
    Plain,
    Same,
    flag,
    norm_eps,
    only,
    optional,
    required,
    types_and_window,
)
from attnlab.interop.settings import Settings

LAYER = "stack.layers.{i}."
PRE_NORM: Settings = {"bias": True, "attention": "MultiHead", "residual": "PreNorm", "residual.norm": "LayerNorm"}


APPROXIMATE = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def _activations(**layers: str) -> dict[str, Settings]:
    """The settings of each word for an activation, by the name of its layer here."""
    return {
        word: {"feed_forward": layer} | ({"feed_forward.approximate": APPROXIMATE[word]} if word in APPROXIMATE else {})
        for word, layer in layers.items()
    }


PLAIN_ACTIVATIONS = _activations(
    **dict.fromkeys(APPROXIMATE, "GELU"), relu="ReLU", silu="SiLU", swish="SiLU", relu2="SquaredReLU"
)
GATED_ACTIVATIONS = _activations(
    silu="SwiGLU", swish="SwiGLU", **dict.fromkeys(APPROXIMATE, "GEGLU"), relu="ReGLU", sigmoid="GLU"
)
# StarCoder 2 has the approximate GELU in the other of its two roundings.
USUAL_FIRST = {word: PLAIN_ACTIVATIONS[word] for word in ("gelu_pytorch_tanh", *PLAIN_ACTIVATIONS)}
ROTARY = {"default": "Rotary", "linear": "RotaryLinear", "llama3": "RotaryLlama3", "yarn": "RotaryYaRN"}
ROTARY_SETTINGS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_length",
    **{name: name for name in ("beta_fast", "beta_slow", "attention_factor")},
}
ROTARY_FIELDS: tuple[Plain, ...] = (
    OneOf("rope.rope_type", {word: {"position": name} for word, name in ROTARY.items()}, default="default"),
    Same("rope.rope_theta", "position.base", default=10000.0),
    *optional(**{f"rope.{word}": f"position.{name}" for word, name in ROTARY_SETTINGS.items()}),
    Only("rope.truncate", (True,)),
)
SIZES = required(
    hidden_size="d_model", num_hidden_layers="num_layers", num_attention_heads="num_heads", intermediate_size="d_ff"
)
ROTARY_SIZES = (
    *required(vocab_size="vocabulary_size"),
    Same("max_position_embeddings", "max_length", default=2048),
    *SIZES,
)
WHOLE_ROTARY = Only(
    "rope.partial_rotary_factor",
    (1.0,),
    "is not what transformers computes: this architecture turns whole heads there, whatever the field says",
)
NOT_INTERLEAVED = {"position.interleaved": False}


def tidy_rotary(config: Config) -> Config:
    """Brings what is said of rotary positions, in old spellings (rope_theta, rotary_pct) and new, under `rope.`."""
    config = dict(config)
    old = {
        "rope_theta": config.pop("rope_theta", config.pop("rotary_emb_base", None)),
        "partial_rotary_factor": config.pop("partial_rotary_factor", config.pop("rotary_pct", None)),
    }
    rope = {**old, **(config.pop("rope_scaling", None) or {}), **(config.pop("rope_parameters", None) or {})}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    return config | {f"rope.{key}": value for key, value in rope.items() if value is not None}


def untidy_llama(config: Config) -> Config:
    """Writes the old spellings, which old and new versions read."""
    rope = {key.removeprefix("rope."): value for key, value in config.items() if key.startswith("rope.")}
    rest = {key: value for key, value in config.items() if not key.startswith("rope.")}
    theta = rope.pop("rope_theta", 10000.0)
    return rest | {"rope_theta": theta, "rope_scaling": None if rope["rope_type"] == "default" else rope}


def untidy_neox(config: Config) -> Config:
    """As LLaMA's, with GPT-NeoX's own names."""
    config = dict(config)
    fraction = config.pop("rope.partial_rotary_factor", 1.0)
    plain = untidy_llama(config)
    return plain | {"rotary_emb_base": plain.pop("rope_theta"), "rotary_pct": fraction}


DEPTH_ALIASES = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

GPT2 = Architecture(
    name="gpt2",
    model="GPT",
    classes=("GPT2LMHeadModel",),
    fixed={**PRE_NORM, "position": "Learned"},
    fields=(
        *required(vocab_size="vocabulary_size", n_positions="max_length", n_embd="d_model"),
        *required(n_layer="num_layers", n_head="num_heads"),
        *optional(n_inner="d_ff"),
        Same("layer_norm_epsilon", "residual.norm.eps", default=1e-5),
        OneOf("activation_function", PLAIN_ACTIVATIONS, default="gelu_new"),
        OneOf("scale_attn_weights", {True: {"attention.scale": None}, False: {"attention.scale": 1.0}}, default=True),
        *only(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
        Only("reorder_and_upcast_attn", (False, True)),  # the same function in another order
    ),
    aliases={"hidden_size": "n_embd", "max_position_embeddings": "n_positions", **DEPTH_ALIASES},
    rules=(
        *tensors({"wte.weight": "embedding.weight", "wpe.weight": "stack.position.table.weight"}, "transformer."),
        *modules({"ln_1": "residual.norms.0", "ln_2": "residual.norms.1"}, "transformer.h.{i}.", LAYER),
        *fused("transformer.h.{i}.attn.c_attn", f"{LAYER}attention", THIRDS_TRANSPOSED, THIRDS),
        *modules({"attn.c_proj": "attention.output"}, "transformer.h.{i}.", LAYER, TRANSPOSED),
        *modules({"c_fc": "up", "c_proj": "down"}, "transformer.h.{i}.mlp.", f"{LAYER}feed_forward.", TRANSPOSED),
        *modules({"transformer.ln_f": "stack.norm"}),
        *tensors({"lm_head.weight": "head.weight"}),
    ),
    prefix="transformer.",
    output=Output("lm_head.weight", "transformer.wte.weight"),
    buffers=r".*\.attn\.(bias|masked_bias)",
)

# The layers of GPT-NeoX, which BLOOM's are but for the name of their attention.
NEOX_LAYER = {
    "input_layernorm": "residual.norms.0",
    "post_attention_layernorm": "residual.norms.1",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
}

TWO_NORMS = {"residual": "Parallel", "residual.shared_norm": False}

GPT_NEOX = Architecture(
    name="gpt_neox",
    model="GPT",
    classes=("GPTNeoXForCausalLM",),
    fixed={"bias": True, "residual.norm": "LayerNorm", "attention": "MultiHead", **NOT_INTERLEAVED},
    fields=(
        *ROTARY_SIZES,
        Same("layer_norm_eps", "residual.norm.eps", default=1e-5),
        OneOf("hidden_act", PLAIN_ACTIVATIONS, default="gelu"),
        OneOf("use_parallel_residual", {True: TWO_NORMS, False: {"residual": "PreNorm"}}, default=True),
        flag("attention_bias", "attention.bias"),
        Only("is_decoder", (False, True)),  # it is one either way
        *optional(**{"rope.partial_rotary_factor": "position.fraction"}),
        *ROTARY_FIELDS,
    ),
    rules=(
        *tensors({"gpt_neox.embed_in.weight": "embedding.weight", "embed_out.weight": "head.weight"}),
        *fused("gpt_neox.layers.{i}.attention.query_key_value", f"{LAYER}attention", THIRDS_OF_HEADS, THIRDS_OF_HEADS),
        *modules({**NEOX_LAYER, "attention.dense": "attention.output"}, "gpt_neox.layers.{i}.", LAYER),
        *modules({"gpt_neox.final_layer_norm": "stack.norm"}),
    ),
    prefix="gpt_neox.",
    output=Output("embed_out.weight", "gpt_neox.embed_in.weight", tie_embeddings=False),
    buffers=r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    tidy=lambda config: {"rope.partial_rotary_factor": 0.25} | tidy_rotary(config),
    untidy=untidy_neox,
)


GATED = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
TWO_BEFORE = {"input_layernorm": "residual.norms.0", "post_attention_layernorm": "residual.norms.1"}
QK_NORMS = tensors(
    {f"{q}_norm.weight": f"{name}_norm.weight" for q, name in (("q", "query"), ("k", "key"))},
    "model.layers.{i}.self_attn.",
    f"{LAYER}attention.",
)


def _llama_rules(feed_forward: Mapping[str, str], norms: Mapping[str, str]) -> tuple[Rule, ...]:
    """LLaMA's, with these names in the feed-forward layer and of the layer's norms."""
    layer = {
        **projections("self_attn.*_proj", "qkvo"),
        **norms,
        **{f"mlp.{theirs}": f"feed_forward.{ours}" for theirs, ours in feed_forward.items()},
    }
    return (
        *tensors({"model.embed_tokens.weight": "embedding.weight", "lm_head.weight": "head.weight"}),
        *modules(layer, "model.layers.{i}.", LAYER),
        *modules({"model.norm": "stack.norm"}),
    )


LLAMA = Architecture(
    name="llama",
    model="GPT",
    classes=("LlamaForCausalLM",),
    fixed={
        "bias": False,
        "residual": "PreNorm",
        "residual.norm": "RMSNorm",
        "attention": "Attention",  # as many heads of keys as of queries where nothing is said
        "feed_forward.matched": False,
        **NOT_INTERLEAVED,
    },
    fields=(
        *ROTARY_SIZES,
        *optional(num_key_value_heads="attention.num_key_value_heads", head_dim="attention.d_head"),
        Same("rms_norm_eps", "residual.norm.eps", default=1e-6),
        OneOf("hidden_act", GATED_ACTIVATIONS, default="silu"),
        Same("attention_bias", "attention.bias", default=False),
        Same("mlp_bias", "feed_forward.bias", default=False),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=_llama_rules(GATED, TWO_BEFORE),
    prefix="model.",
    output=Output("lm_head.weight", "model.embed_tokens.weight", tie_embeddings=False),
    buffers=r".*\.rotary_emb\.inv_freq",
    tidy=tidy_rotary,
    untidy=untidy_llama,
)


def tidy_mistral(config: Config) -> Config:
    """As LLaMA's, with a window where nothing is said of one."""
    return tidy_rotary({"sliding_window": 4096} | config)


MISTRAL = replace(
    LLAMA,
    name="mistral",
    classes=("MistralForCausalLM",),
    fixed={**LLAMA.fixed, "attention.bias": False, "feed_forward.bias": False},
    fields=(
        *ROTARY_SIZES,
        Same("num_key_value_heads", "attention.num_key_value_heads", default=8),
        *optional(head_dim="attention.d_head", sliding_window="attention.window"),
        Same("rms_norm_eps", "residual.norm.eps", default=1e-6),
        OneOf("hidden_act", GATED_ACTIVATIONS, default="silu"),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    tidy=tidy_mistral,
    untidy=lambda config: {"sliding_window": None} | untidy_llama(config),
)

WINDOWS = OfLayers("layers", optional(sliding_window="attention.window"))


def tidy_qwen(config: Config) -> Config:
    """As LLaMA's, with what each layer has, whatever says which ones have a window."""
    config = tidy_rotary(config)
    window, is_used = config.pop("sliding_window", 4096), config.pop("use_sliding_window", False)
    window = window if is_used else None
    most, types = config.pop("max_window_layers", 28), config.pop("layer_types", None)
    if types is None:
        count = config.get("num_hidden_layers", 0)
        types = [SLIDING if window is not None and layer >= most else FULL for layer in range(count)]
    return config | {"layers": windows(types, window)}


def windows(types: Sequence[str], window: int | None) -> list[Config]:
    """What layers of these types have. Raises CannotConvert for other types, and without a window."""
    if unknown := sorted({*types} - {SLIDING, FULL}):
        raise CannotConvert(f"layer_types has {unknown[0]!r}; accepted: {SLIDING!r}, {FULL!r}")
    if SLIDING in types and window is None:
        raise CannotConvert(f"layer_types has {SLIDING!r} without a sliding_window that is used (use_sliding_window)")
    return [{"sliding_window": window} if kind == SLIDING else {} for kind in types]


def untidy_qwen(config: Config) -> Config:
    """As LLaMA's, with what layers have in its own words."""
    config = dict(config)
    types, window = types_and_window(config.pop("layers"))
    said = {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": types}
    return untidy_llama(config) | said | {"max_window_layers": 0}


QWEN3 = replace(
    LLAMA,
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    fixed={**LLAMA.fixed, "attention.qk_norm": True, "feed_forward.bias": False},
    fields=(
        *ROTARY_SIZES,
        Same("num_key_value_heads", "attention.num_key_value_heads", default=32),
        Same("head_dim", "attention.d_head", default=128),
        *norm_eps(1e-6),
        OneOf("hidden_act", GATED_ACTIVATIONS, default="silu"),
        Same("attention_bias", "attention.bias", default=False),
        WINDOWS,
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=(*LLAMA.rules, *QK_NORMS),
    tidy=tidy_qwen,
    untidy=untidy_qwen,
)

AFTER = {"post_attention_layernorm": "residual.norms.0", "post_feedforward_layernorm": "residual.norms.1"}

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    classes=("Olmo2ForCausalLM",),
    fixed={
        **LLAMA.fixed,
        "residual": "OutputNorm",
        "attention.qk_norm": "full_width",
        "feed_forward.bias": False,
    },
    fields=(
        *ROTARY_SIZES,
        *optional(num_key_value_heads="attention.num_key_value_heads", head_dim="attention.d_head"),
        *norm_eps(1e-5),
        OneOf("hidden_act", GATED_ACTIVATIONS, default="silu"),
        Same("attention_bias", "attention.bias", default=False),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=(*_llama_rules(GATED, AFTER), *QK_NORMS),
)

STARCODER2_SIZES = (49152, 4096, 3072, 30, 24, 12288)  # those of ROTARY_SIZES where nothing is said

STARCODER2 = replace(
    LLAMA,
    name="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    fixed={"residual": "PreNorm", "residual.norm": "LayerNorm", "attention": "Attention", **NOT_INTERLEAVED},
    fields=(
        *(replace(size, default=default) for size, default in zip(ROTARY_SIZES, STARCODER2_SIZES, strict=True)),
        Same("num_key_value_heads", "attention.num_key_value_heads", default=2),
        Same("norm_epsilon", "residual.norm.eps", default=1e-5),
        *optional(sliding_window="attention.window"),
        OneOf("hidden_act", USUAL_FIRST, default="gelu_pytorch_tanh"),
        flag("use_bias", "attention.bias", "feed_forward.bias"),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=_llama_rules({"c_fc": "up", "c_proj": "down"}, TWO_BEFORE),
    output=Output("lm_head.weight", "model.embed_tokens.weight"),
)

BLOOM = Architecture(
    name="bloom",
    model="GPT",
    classes=("BloomForCausalLM",),
    # Its positions have no end: max_length is of nothing.
    fixed={
        **PRE_NORM,
        **PLAIN_ACTIVATIONS["gelu_new"],
        "embedding_norm": True,
        "position": "ALiBi",
        "max_length": 2048,
    },
    fields=(
        *required(vocab_size="vocabulary_size", hidden_size="d_model", n_layer="num_layers", n_head="num_heads"),
        Same("layer_norm_epsilon", "residual.norm.eps", default=1e-5),
        *only(apply_residual_connection_post_layernorm=False),
    ),
    rules=(
        *tensors({"transformer.word_embeddings.weight": "embedding.weight", "lm_head.weight": "head.weight"}),
        *modules({"word_embeddings_layernorm": "stack.embedding_norm", "ln_f": "stack.norm"}, "transformer."),
        *fused(
            "transformer.h.{i}.self_attention.query_key_value", f"{LAYER}attention", THIRDS_OF_HEADS, THIRDS_OF_HEADS
        ),
        *modules({**NEOX_LAYER, "self_attention.dense": "attention.output"}, "transformer.h.{i}.", LAYER),
    ),
    prefix="transformer.",
    output=Output("lm_head.weight", "transformer.word_embeddings.weight"),
    aliases={"n_embed": "hidden_size", **DEPTH_ALIASES},
    no_matter="seq_length|offset_alibi|n_inner|skip_bias_add.*|.*_fusion|attention_softmax_in_fp32",
)

DECODERS = (GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN3, OLMO2, STARCODER2, BLOOM)
