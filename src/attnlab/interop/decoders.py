"""Decoder-only architectures: GPT-2, GPT-NeoX, LLaMA, StarCoder 2, BLOOM."""

from __future__ import annotations

from typing import Any

from attnlab.interop.architecture import Architecture, Output
from attnlab.interop.fields import ABSENT, Config, OneOf, Only, Same
from attnlab.interop.rules import THIRDS, THIRDS_OF_HEADS, THIRDS_TRANSPOSED, TRANSPOSED, both, fused, weight

LAYER = "stack.layers.{i}"
ATTENTION, FEED_FORWARD, NORMS = f"{LAYER}.attention", f"{LAYER}.feed_forward", f"{LAYER}.residual.norms"

PLAIN_ACTIVATIONS = {
    "gelu": {"feed_forward": "GELU", "feed_forward.approximate": "none"},
    "gelu_new": {"feed_forward": "GELU", "feed_forward.approximate": "tanh"},
    "gelu_pytorch_tanh": {"feed_forward": "GELU", "feed_forward.approximate": "tanh"},
    "relu": {"feed_forward": "ReLU"},
    "silu": {"feed_forward": "SiLU"},
    "swish": {"feed_forward": "SiLU"},
    "relu2": {"feed_forward": "SquaredReLU"},
}
# StarCoder 2 has the approximate GELU in the other of its two roundings.
USUAL_FIRST = {word: PLAIN_ACTIVATIONS[word] for word in ("gelu_pytorch_tanh", *PLAIN_ACTIVATIONS)}
GATED_ACTIVATIONS = {
    "silu": {"feed_forward": "SwiGLU"},
    "swish": {"feed_forward": "SwiGLU"},
    "gelu": {"feed_forward": "GEGLU", "feed_forward.approximate": "none"},
    "gelu_new": {"feed_forward": "GEGLU", "feed_forward.approximate": "tanh"},
    "gelu_pytorch_tanh": {"feed_forward": "GEGLU", "feed_forward.approximate": "tanh"},
    "relu": {"feed_forward": "ReGLU"},
    "sigmoid": {"feed_forward": "GLU"},
}
ROTARY = {
    "default": {"position": "Rotary"},
    "linear": {"position": "RotaryLinear"},
    "llama3": {"position": "RotaryLlama3"},
    "yarn": {"position": "RotaryYaRN"},
}
ROTARY_FIELDS = (
    OneOf("rope.rope_type", ROTARY, default="default"),
    Same("rope.rope_theta", "position.base", default=10000.0),
    Same("rope.factor", "position.factor", default=ABSENT),
    Same("rope.low_freq_factor", "position.low_frequency_factor", default=ABSENT),
    Same("rope.high_freq_factor", "position.high_frequency_factor", default=ABSENT),
    Same("rope.original_max_position_embeddings", "position.original_length", default=ABSENT),
    Same("rope.beta_fast", "position.beta_fast", default=ABSENT),
    Same("rope.beta_slow", "position.beta_slow", default=ABSENT),
    Same("rope.attention_factor", "position.attention_factor", default=ABSENT),
    Only("rope.truncate", (True,)),
)
PARTIAL_ROTARY = Same("rope.partial_rotary_factor", "position.fraction", default=ABSENT)
WHOLE_ROTARY = Only(
    "rope.partial_rotary_factor",
    (1.0,),
    "is not what transformers computes: this architecture turns whole heads there, whatever the field says",
)
NOT_INTERLEAVED = {"position.interleaved": False}


def tidy_rotary(config: Config) -> Config:
    """Brings what is said of rotary positions, in the old spellings (rope_theta, rope_scaling, rotary_pct) and the new, under `rope.`."""
    config = dict(config)
    old = {
        "rope_theta": config.pop("rope_theta", config.pop("rotary_emb_base", None)),
        "partial_rotary_factor": config.pop("partial_rotary_factor", config.pop("rotary_pct", None)),
    }
    scaling: dict[str, Any] = config.pop("rope_scaling", None) or {}
    rope = {**old, **scaling, **(config.pop("rope_parameters", None) or {})}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    return config | {f"rope.{key}": value for key, value in rope.items() if value is not None}


def untidy_llama(config: Config) -> Config:
    """Writes the old spellings, which old and new versions read."""
    rope = {key.removeprefix("rope."): value for key, value in config.items() if key.startswith("rope.")}
    rest = {key: value for key, value in config.items() if not key.startswith("rope.")}
    theta = rope.pop("rope_theta", 10000.0)
    return rest | {"rope_theta": theta, "rope_scaling": None if rope["rope_type"] == "default" else rope}


def untidy_neox(config: Config) -> Config:
    """The same, with GPT-NeoX's own names."""
    config = dict(config)
    fraction = config.pop("rope.partial_rotary_factor", 1.0)
    plain = untidy_llama(config)
    return plain | {"rotary_emb_base": plain.pop("rope_theta"), "rotary_pct": fraction}


def tidy_neox(config: Config) -> Config:
    """GPT-NeoX rotates a quarter of each head unless it says otherwise."""
    tidy = tidy_rotary(config)
    return {"rope.partial_rotary_factor": 0.25} | tidy


GPT2 = Architecture(
    name="gpt2",
    model="GPT",
    classes=("GPT2LMHeadModel",),
    fixed={
        "bias": True,
        "position": "Learned",
        "residual": "PreNorm",
        "residual.norm": "LayerNorm",
        "attention": "MultiHead",
    },
    fields=(
        Same("vocab_size", "vocabulary_size"),
        Same("n_positions", "max_length"),
        Same("n_embd", "d_model"),
        Same("n_layer", "num_layers"),
        Same("n_head", "num_heads"),
        Same("n_inner", "d_ff", default=ABSENT),
        Same("layer_norm_epsilon", "residual.norm.eps", default=1e-5),
        OneOf("activation_function", PLAIN_ACTIVATIONS, default="gelu_new"),
        OneOf("scale_attn_weights", {True: {"attention.scale": None}, False: {"attention.scale": 1.0}}, default=True),
        Only("scale_attn_by_inverse_layer_idx", (False,)),
        Only("reorder_and_upcast_attn", (False, True)),  # the same function in another order
        Only("add_cross_attention", (False,)),
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    rules=(
        *weight("transformer.wte.weight", "embedding.weight"),
        *weight("transformer.wpe.weight", "stack.position.table.weight"),
        *both("transformer.h.{i}.ln_1", f"{NORMS}.0"),
        *fused("transformer.h.{i}.attn.c_attn", ATTENTION, THIRDS_TRANSPOSED, THIRDS),
        *both("transformer.h.{i}.attn.c_proj", f"{ATTENTION}.output", TRANSPOSED),
        *both("transformer.h.{i}.ln_2", f"{NORMS}.1"),
        *both("transformer.h.{i}.mlp.c_fc", f"{FEED_FORWARD}.up", TRANSPOSED),
        *both("transformer.h.{i}.mlp.c_proj", f"{FEED_FORWARD}.down", TRANSPOSED),
        *both("transformer.ln_f", "stack.norm"),
        *weight("lm_head.weight", "head.weight"),
    ),
    prefix="transformer.",
    output=Output("lm_head.weight", "transformer.wte.weight"),
    fresh=("head.",),
    buffers=r".*\.attn\.(bias|masked_bias)",
)

GPT_NEOX = Architecture(
    name="gpt_neox",
    model="GPT",
    classes=("GPTNeoXForCausalLM",),
    fixed={"bias": True, "residual.norm": "LayerNorm", "attention": "MultiHead", **NOT_INTERLEAVED},
    fields=(
        Same("vocab_size", "vocabulary_size"),
        Same("max_position_embeddings", "max_length", default=2048),
        Same("hidden_size", "d_model"),
        Same("num_hidden_layers", "num_layers"),
        Same("num_attention_heads", "num_heads"),
        Same("intermediate_size", "d_ff"),
        Same("layer_norm_eps", "residual.norm.eps", default=1e-5),
        OneOf("hidden_act", PLAIN_ACTIVATIONS, default="gelu"),
        OneOf(
            "use_parallel_residual",
            {True: {"residual": "Parallel", "residual.shared_norm": False}, False: {"residual": "PreNorm"}},
            default=True,
        ),
        OneOf("attention_bias", {True: {"attention.bias": True}, False: {"attention.bias": False}}, default=True),
        Only("is_decoder", (False, True)),  # it is one either way
        PARTIAL_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=(
        *weight("gpt_neox.embed_in.weight", "embedding.weight"),
        *both("gpt_neox.layers.{i}.input_layernorm", f"{NORMS}.0"),
        *fused("gpt_neox.layers.{i}.attention.query_key_value", ATTENTION, THIRDS_OF_HEADS, THIRDS_OF_HEADS),
        *both("gpt_neox.layers.{i}.attention.dense", f"{ATTENTION}.output"),
        *both("gpt_neox.layers.{i}.post_attention_layernorm", f"{NORMS}.1"),
        *both("gpt_neox.layers.{i}.mlp.dense_h_to_4h", f"{FEED_FORWARD}.up"),
        *both("gpt_neox.layers.{i}.mlp.dense_4h_to_h", f"{FEED_FORWARD}.down"),
        *both("gpt_neox.final_layer_norm", "stack.norm"),
        *weight("embed_out.weight", "head.weight"),
    ),
    prefix="gpt_neox.",
    output=Output("embed_out.weight", "gpt_neox.embed_in.weight", tied=False),
    buffers=r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    tidy=tidy_neox,
    untidy=untidy_neox,
    fresh=("head.",),
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
        Same("vocab_size", "vocabulary_size"),
        Same("max_position_embeddings", "max_length", default=2048),
        Same("hidden_size", "d_model"),
        Same("num_hidden_layers", "num_layers"),
        Same("num_attention_heads", "num_heads"),
        Same("num_key_value_heads", "attention.num_key_value_heads", default=ABSENT),
        Same("head_dim", "attention.d_head", default=ABSENT),
        Same("intermediate_size", "d_ff"),
        Same("rms_norm_eps", "residual.norm.eps", default=1e-6),
        OneOf("hidden_act", GATED_ACTIVATIONS, default="silu"),
        Same("attention_bias", "attention.bias", default=False),
        Same("mlp_bias", "feed_forward.bias", default=False),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=(
        *weight("model.embed_tokens.weight", "embedding.weight"),
        *both("model.layers.{i}.input_layernorm", f"{NORMS}.0"),
        *both("model.layers.{i}.self_attn.q_proj", f"{ATTENTION}.query"),
        *both("model.layers.{i}.self_attn.k_proj", f"{ATTENTION}.key"),
        *both("model.layers.{i}.self_attn.v_proj", f"{ATTENTION}.value"),
        *both("model.layers.{i}.self_attn.o_proj", f"{ATTENTION}.output"),
        *both("model.layers.{i}.post_attention_layernorm", f"{NORMS}.1"),
        *both("model.layers.{i}.mlp.gate_proj", f"{FEED_FORWARD}.gate"),
        *both("model.layers.{i}.mlp.up_proj", f"{FEED_FORWARD}.up"),
        *both("model.layers.{i}.mlp.down_proj", f"{FEED_FORWARD}.down"),
        *both("model.norm", "stack.norm"),
        *weight("lm_head.weight", "head.weight"),
    ),
    prefix="model.",
    output=Output("lm_head.weight", "model.embed_tokens.weight", tied=False),
    buffers=r".*\.rotary_emb\.inv_freq",
    tidy=tidy_rotary,
    untidy=untidy_llama,
    fresh=("head.",),
)

STARCODER2 = Architecture(
    name="starcoder2",
    model="GPT",
    classes=("Starcoder2ForCausalLM",),
    fixed={
        "residual": "PreNorm",
        "residual.norm": "LayerNorm",
        "attention": "Attention",
        **NOT_INTERLEAVED,
    },
    fields=(
        Same("vocab_size", "vocabulary_size", default=49152),
        Same("max_position_embeddings", "max_length", default=4096),
        Same("hidden_size", "d_model", default=3072),
        Same("num_hidden_layers", "num_layers", default=30),
        Same("num_attention_heads", "num_heads", default=24),
        Same("num_key_value_heads", "attention.num_key_value_heads", default=2),
        Same("intermediate_size", "d_ff", default=12288),
        Same("norm_epsilon", "residual.norm.eps", default=1e-5),
        Same("sliding_window", "attention.window", default=ABSENT),
        OneOf("hidden_act", USUAL_FIRST, default="gelu_pytorch_tanh"),
        OneOf(
            "use_bias",
            {bias: {"attention.bias": bias, "feed_forward.bias": bias} for bias in (True, False)},
            default=True,
        ),
        WHOLE_ROTARY,
        *ROTARY_FIELDS,
    ),
    rules=(
        *weight("model.embed_tokens.weight", "embedding.weight"),
        *both("model.layers.{i}.input_layernorm", f"{NORMS}.0"),
        *both("model.layers.{i}.self_attn.q_proj", f"{ATTENTION}.query"),
        *both("model.layers.{i}.self_attn.k_proj", f"{ATTENTION}.key"),
        *both("model.layers.{i}.self_attn.v_proj", f"{ATTENTION}.value"),
        *both("model.layers.{i}.self_attn.o_proj", f"{ATTENTION}.output"),
        *both("model.layers.{i}.post_attention_layernorm", f"{NORMS}.1"),
        *both("model.layers.{i}.mlp.c_fc", f"{FEED_FORWARD}.up"),
        *both("model.layers.{i}.mlp.c_proj", f"{FEED_FORWARD}.down"),
        *both("model.norm", "stack.norm"),
        *weight("lm_head.weight", "head.weight"),
    ),
    prefix="model.",
    output=Output("lm_head.weight", "model.embed_tokens.weight"),
    buffers=r".*\.rotary_emb\.inv_freq",
    tidy=tidy_rotary,
    untidy=untidy_llama,
    fresh=("head.",),
)

BLOOM = Architecture(
    name="bloom",
    model="GPT",
    classes=("BloomForCausalLM",),
    fixed={
        "bias": True,
        "embedding_norm": True,
        "position": "ALiBi",
        "residual": "PreNorm",
        "residual.norm": "LayerNorm",
        "attention": "MultiHead",
        "feed_forward": "GELU",
        "feed_forward.approximate": "tanh",
        "max_length": 2048,  # of nothing: its positions have no end
    },
    fields=(
        Same("vocab_size", "vocabulary_size"),
        Same("hidden_size", "d_model"),
        Same("n_layer", "num_layers"),
        Same("n_head", "num_heads"),
        Same("layer_norm_epsilon", "residual.norm.eps", default=1e-5),
        Only("apply_residual_connection_post_layernorm", (False,)),
    ),
    rules=(
        *weight("transformer.word_embeddings.weight", "embedding.weight"),
        *both("transformer.word_embeddings_layernorm", "stack.embedding_norm"),
        *both("transformer.h.{i}.input_layernorm", f"{NORMS}.0"),
        *fused("transformer.h.{i}.self_attention.query_key_value", ATTENTION, THIRDS_OF_HEADS, THIRDS_OF_HEADS),
        *both("transformer.h.{i}.self_attention.dense", f"{ATTENTION}.output"),
        *both("transformer.h.{i}.post_attention_layernorm", f"{NORMS}.1"),
        *both("transformer.h.{i}.mlp.dense_h_to_4h", f"{FEED_FORWARD}.up"),
        *both("transformer.h.{i}.mlp.dense_4h_to_h", f"{FEED_FORWARD}.down"),
        *both("transformer.ln_f", "stack.norm"),
        *weight("lm_head.weight", "head.weight"),
    ),
    prefix="transformer.",
    output=Output("lm_head.weight", "transformer.word_embeddings.weight"),
    fresh=("head.",),
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    no_matter="seq_length|offset_alibi|n_inner|skip_bias_add.*|.*_fusion|attention_softmax_in_fp32",
)

DECODERS = (GPT2, GPT_NEOX, LLAMA, STARCODER2, BLOOM)
