"""Encoder-decoder architectures: T5, Marian, BART."""

from __future__ import annotations

from attnlab.interop.architecture import Architecture, Output
from attnlab.interop.decoders import GATED_ACTIVATIONS, PLAIN_ACTIVATIONS
from attnlab.interop.fields import ABSENT, CannotConvert, Config, OneOf, Only, Same
from attnlab.interop.rules import IN_ONE, Rule, both, weight

GATED = "feed_forward.matched"  # a setting of gated layers alone
DEPTHS = {"encoder": "num_layers", "decoder": "num_decoder_layers"}
T5_GATED = {
    f"gated-{word}": {**settings, "feed_forward.matched": False} for word, settings in GATED_ACTIVATIONS.items()
}
T5_GATED["gated-gelu"] = T5_GATED["gated-gelu_new"]  # its "gelu" is the approximate one


def _t5_stack(side: str) -> tuple[Rule, ...]:
    block, layer, depth = f"{side}.block.{{i}}.layer", f"{side}.layers.{{i}}", DEPTHS[side]
    rules = weight(
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{side}.position.table.weight"
    )
    sublayers = [("SelfAttention", "attention")]
    if side == "decoder":
        sublayers.append(("EncDecAttention", "cross_attention"))
    for place, (theirs, ours) in enumerate(sublayers):
        for short, name in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            rules += weight(f"{block}.{place}.{theirs}.{short}.weight", f"{layer}.{ours}.{name}.weight", layers=depth)
        rules += weight(f"{block}.{place}.layer_norm.weight", f"{layer}.residual.norms.{place}.weight", layers=depth)
    last = len(sublayers)
    for theirs, ours in {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}.items():
        plain, gated = ("", GATED) if theirs.startswith("wi_") else (GATED if theirs == "wi" else "", "")
        name = f"{block}.{last}.DenseReluDense.{theirs}.weight"
        rules.append(Rule(name, (f"{layer}.feed_forward.{ours}.weight",), layers=depth, has=gated, lacks=plain))
    rules += weight(f"{block}.{last}.layer_norm.weight", f"{layer}.residual.norms.{last}.weight", layers=depth)
    return (*rules, *weight(f"{side}.final_layer_norm.weight", f"{side}.norm.weight"))


def tidy_t5(config: Config) -> Config:
    """Whether the output's input is scaled: said by a field of its own, or by whether the output was tied."""
    config = dict(config)
    tied = config.pop("tie_word_embeddings", True)
    return {"scale_decoder_outputs": tied is not False} | config


def untidy_t5(config: Config) -> Config:
    """Old versions read from tie_word_embeddings whether the output's input is scaled."""
    return config | {"tie_word_embeddings": config["scale_decoder_outputs"], "is_encoder_decoder": True}


T5 = Architecture(
    name="t5",
    model="T5",
    classes=("T5ForConditionalGeneration",),
    fixed={
        "max_length": 512,  # of nothing: its positions have no end
        "share_embeddings": True,
        "scale_embedding": False,
        "share_layers": False,
        "position": "RelativeBias",
        "residual": "PreNorm",
        "residual.norm": "RMSNorm",
        "attention": "MultiHead",
        "attention.scale": 1.0,
    },
    fields=(
        Same("vocab_size", "vocabulary_size"),
        Same("d_model", "d_model"),
        Same("d_kv", "attention.d_head", default=64),
        Same("d_ff", "d_ff"),
        Same("num_layers", "num_layers"),
        Same("num_decoder_layers", "num_decoder_layers", default=ABSENT),
        Same("num_heads", "num_heads"),
        Same("relative_attention_num_buckets", "position.num_buckets", default=32),
        Same("relative_attention_max_distance", "position.max_distance", default=128),
        Same("layer_norm_epsilon", "residual.norm.eps", default=1e-6),
        OneOf("feed_forward_proj", PLAIN_ACTIVATIONS | T5_GATED, default="relu"),
        Same("scale_decoder_outputs", "scale_logits"),
        Only("is_decoder", (False,)),
    ),
    rules=(
        *weight("shared.weight", "embedding.weight"),
        *_t5_stack("encoder"),
        *_t5_stack("decoder"),
        *weight("lm_head.weight", "head.weight"),
    ),
    output=Output("lm_head.weight", "shared.weight", says=None),
    copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # in old files, read by nothing
    fresh=("head.",),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    no_matter="dense_act_fn|is_gated_act|n_positions",  # the first two repeat feed_forward_proj
    tidy=tidy_t5,
    untidy=untidy_t5,
)


def _bart_stack(side: str) -> tuple[Rule, ...]:
    theirs, layer, depth = f"model.{side}.layers.{{i}}", f"{side}.layers.{{i}}", DEPTHS[side]
    rules: list[Rule] = []
    attentions = [("self_attn", "attention")] + ([("encoder_attn", "cross_attention")] if side == "decoder" else [])
    for place, (name, ours) in enumerate(attentions):
        for short, part in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}.items():
            rules += both(f"{theirs}.{name}.{short}", f"{layer}.{ours}.{part}", layers=depth)
        rules += both(f"{theirs}.{name}_layer_norm", f"{layer}.residual.norms.{place}", layers=depth)
    rules += both(f"{theirs}.fc1", f"{layer}.feed_forward.up", layers=depth)
    rules += both(f"{theirs}.fc2", f"{layer}.feed_forward.down", layers=depth)
    rules += both(f"{theirs}.final_layer_norm", f"{layer}.residual.norms.{len(attentions)}", layers=depth)
    return tuple(rules)


BART_FIXED = {
    "bias": True,
    "share_embeddings": True,
    "scale_logits": False,
    "output_bias": True,
    "residual": "PostNorm",
    "residual.norm": "LayerNorm",
    "residual.norm.eps": 1e-5,
    "attention": "MultiHead",
}
BART_FIELDS = (
    Same("vocab_size", "vocabulary_size"),
    Same("d_model", "d_model"),
    Same("encoder_layers", "num_layers"),
    Same("decoder_layers", "num_decoder_layers"),
    Same("encoder_attention_heads", "num_heads"),
    Same("encoder_ffn_dim", "d_ff"),
    Same("max_position_embeddings", "max_length", default=1024),
    Same("scale_embedding", "scale_embedding", default=False),
    OneOf("activation_function", PLAIN_ACTIVATIONS, default="gelu"),
    Only("is_decoder", (False,)),
    Only("add_cross_attention", (False,)),
)
BART_RULES = (
    *weight("model.shared.weight", "embedding.weight"),
    *_bart_stack("encoder"),
    *_bart_stack("decoder"),
    *weight("final_logits_bias", "head_bias", IN_ONE),
    *weight("lm_head.weight", "head.weight"),
)
BART_COPIES = {f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in DEPTHS}
BART_ALIASES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}


def tidy_bart(config: Config) -> Config:
    """Refuses widths that differ between encoder and decoder: here they are one."""
    config = dict(config)
    for name in ("attention_heads", "ffn_dim"):
        encoder, decoder = config.get(f"encoder_{name}"), config.pop(f"decoder_{name}", None)
        if decoder not in (None, encoder):
            raise CannotConvert(
                f"encoder_{name}={encoder} and decoder_{name}={decoder} have no counterpart here; accepted: one number for both"
            )
    return config


def untidy_bart(config: Config) -> Config:
    """The widths of the decoder, which are the encoder's."""
    twice = {f"decoder_{name}": config[f"encoder_{name}"] for name in ("attention_heads", "ffn_dim")}
    return config | twice | {"is_encoder_decoder": True, "forced_eos_token_id": None}


BART = Architecture(
    name="bart",
    model="EncoderDecoder",
    classes=("BartForConditionalGeneration",),
    fixed={**BART_FIXED, "embedding_norm": True, "position": "Learned", "position.offset": 2},
    fields=(*BART_FIELDS, Only("normalize_before", (False,)), Only("normalize_embedding", (True,))),
    rules=(
        *BART_RULES,
        *(
            rule
            for side in DEPTHS
            for rule in (
                *weight(f"model.{side}.embed_positions.weight", f"{side}.position.table.weight"),
                *both(f"model.{side}.layernorm_embedding", f"{side}.embedding_norm"),
            )
        ),
    ),
    prefix="model.",
    output=Output("lm_head.weight", "model.shared.weight"),
    copies=BART_COPIES,
    fresh=("head_bias", "head."),
    aliases=BART_ALIASES,
    no_matter="add_final_layer_norm|add_bias_logits|static_position_embeddings|extra_pos_embeddings|classif_dropout|force_bos_token_to_be_generated|save_step",
    tidy=tidy_bart,
    untidy=untidy_bart,
)

MARIAN = Architecture(
    name="marian",
    model="EncoderDecoder",
    classes=("MarianMTModel",),
    fixed={**BART_FIXED, "embedding_norm": False, "position": "Sinusoidal", "position.interleaved": False},
    fields=(
        *BART_FIELDS,
        Only("normalize_before", (False,)),
        Only("normalize_embedding", (False,)),
        Only("add_final_layer_norm", (False,)),
        Only("static_position_embeddings", (True,)),
        Only("share_encoder_decoder_embeddings", (True,)),
    ),
    rules=BART_RULES,
    prefix="model.",
    output=Output("lm_head.weight", "model.shared.weight"),
    copies=BART_COPIES,
    buffers=r"model\.(encoder|decoder)\.embed_positions\.weight",  # sinusoids, which are computed
    fresh=("head_bias", "head."),
    aliases=BART_ALIASES,
    no_matter="decoder_vocab_size|add_bias_logits|extra_pos_embeddings|classif_dropout",
    tidy=tidy_bart,
    untidy=untidy_bart,
)

SEQ2SEQ = (T5, BART, MARIAN)
