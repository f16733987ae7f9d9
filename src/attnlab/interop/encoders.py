"""Architectures with an encoder: BERT, RoBERTa, the Vision Transformer; with a decoder, too: T5, BART, Marian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from attnlab.interop.architecture import IN_ONE, PIXELS, Architecture, Output, Rule, modules, projections, tensors
from attnlab.interop.decoders import GATED_ACTIVATIONS, LAYER, PLAIN_ACTIVATIONS, PRE_NORM, SIZES
from attnlab.interop.fields import CannotConvert, Config, Field, OneOf, Same, only, optional, required
from attnlab.interop.settings import Settings

POST_NORM: Settings = {**PRE_NORM, "residual": "PostNorm"}
# The dense layer before BERT's output has the activation, too, and here it is GELU.
GELU_ALONE = {"gelu": PLAIN_ACTIVATIONS["gelu"]}
FEED_FORWARD = {"intermediate.dense": "feed_forward.up", "output.dense": "feed_forward.down"}
EPS = Same("layer_norm_eps", "residual.norm.eps", default=1e-12)

BERT_FIELDS: tuple[Field, ...] = (
    *required(vocab_size="vocabulary_size"),
    *SIZES,
    EPS,
    Same("type_vocab_size", "num_segments", default=2, least=1),
    OneOf("hidden_act", GELU_ALONE, default="gelu"),
    *only(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, pruned_heads={}),
)
BERT_LAYER = {
    **projections("attention.self.*", ("query", "key", "value")),
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "residual.norms.0",
    **FEED_FORWARD,
    "output.LayerNorm": "residual.norms.1",
}


def _bert(
    name: str,
    output: str,
    transform: str,
    norm: str,
    rules: tuple[Rule, ...] = (),
    present: Mapping[str, str] | None = None,
    **more: Any,
) -> Architecture:
    """BERT, which RoBERTa is but for its output: what its bias and weight are below, and the modules before it."""
    embeddings = {
        "word_embeddings.weight": "embedding.weight",
        "position_embeddings.weight": "stack.position.table.weight",
        "token_type_embeddings.weight": "segments.weight",
    }
    shared = (
        *tensors(embeddings, f"{name}.embeddings."),
        *modules({f"{name}.embeddings.LayerNorm": "stack.embedding_norm"}),
        *modules(BERT_LAYER, f"{name}.encoder.layer.{{i}}.", LAYER),
        *modules({f"{name}.pooler.dense": "pooler", transform: "transform", norm: "transform_norm"}),
        *tensors({f"{output}bias": "head_bias", f"{output}decoder.weight": "head.weight"}),
    )
    return Architecture(
        name=name,
        model="Bert",
        fixed={**POST_NORM, "embedding_norm": True, "position": "Learned"},
        rules=(*shared, *rules),
        prefix=f"{name}.",
        output=Output(f"{output}decoder.weight", f"{name}.embeddings.word_embeddings.weight"),
        copies={f"{output}decoder.bias": f"{output}bias"},
        present={f"{name}.pooler.dense.weight": "pooler", **(present or {})},
        buffers=r".*embeddings\.(position_ids|token_type_ids)",
        fresh=("transform.", "transform_norm.", "head_bias", "head.", "next_sentence."),
        **more,
    )


BERT = _bert(
    "bert",
    "cls.predictions.",
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    classes=("BertForMaskedLM", "BertForPreTraining"),
    fields=(*BERT_FIELDS, Same("max_position_embeddings", "max_length", default=512)),
    rules=modules({"cls.seq_relationship": "next_sentence"}),
    present={"cls.seq_relationship.weight": "next_sentence"},
    old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    no_matter="directionality|pooler_.*",
)


def tidy_roberta(config: Config) -> Config:
    """The table begins behind the padding's number: its first position is that of the token behind it."""
    padding, rows = config.get("pad_token_id", 1), config.get("max_position_embeddings", 512)
    if not (isinstance(padding, int) and isinstance(rows, int)):
        raise CannotConvert(
            f"config.json has pad_token_id={padding!r} and max_position_embeddings={rows!r}, from which positions are "
            "counted; accepted: whole numbers"
        )
    return config | {"max_position_embeddings": rows - padding - 1, "offset": padding + 1}


def untidy_roberta(config: Config) -> Config:
    """The table's own length, and the number of the padding that its beginning stands for."""
    config = dict(config)
    offset = config.pop("offset", 0)
    return config | {"max_position_embeddings": config["max_position_embeddings"] + offset, "pad_token_id": offset - 1}


ROBERTA = _bert(
    "roberta",
    "lm_head.",
    "lm_head.dense",
    "lm_head.layer_norm",
    classes=("RobertaForMaskedLM",),
    fields=(*BERT_FIELDS, *required(max_position_embeddings="max_length", offset="position.offset")),
    tidy=tidy_roberta,
    untidy=untidy_roberta,
)


def tidy_vit(config: Config) -> Config:
    """The size of images as rows and columns, of a patch as one number, and the number of classes from their names."""
    config = dict(config)
    size, patch, labels = config.get("image_size", 224), config.get("patch_size", 16), config.pop("id2label", None)
    sides, patches = ([value, value] if isinstance(value, int) else list(value) for value in (size, patch))
    if len(set(patches)) != 1:
        raise CannotConvert(f"patch_size={patch!r} has no counterpart here; accepted: one number, for square patches")
    return config | {
        "image_size": sides,
        "patch_size": patches[0],
        "num_labels": config.get("num_labels") or (len(labels) if labels else 2),
    }


def untidy_vit(config: Config) -> Config:
    """The names of the classes, which say how many there are."""
    config = dict(config)
    rows, columns = config["image_size"]
    labels = {str(i): f"LABEL_{i}" for i in range(config.pop("num_labels"))}
    return config | {
        "image_size": rows if rows == columns else [rows, columns],
        "id2label": labels,
        "label2id": {name: int(i) for i, name in labels.items()},
    }


VIT_LAYER = {
    "layernorm_before": "residual.norms.0",
    **projections("attention.attention.*", ("query", "key", "value")),
    "attention.output.dense": "attention.output",
    "layernorm_after": "residual.norms.1",
    **FEED_FORWARD,
}

VIT = Architecture(
    name="vit",
    model="ViT",
    classes=("ViTForImageClassification",),
    fixed={**PRE_NORM, "pooling": "class", "registers": 0, "position": "Learned"},
    fields=(
        *required(num_labels="num_classes", image_size="image_size", patch_size="patch_size"),
        Same("num_channels", "channels", default=3),
        *SIZES,
        EPS,
        OneOf("hidden_act", GELU_ALONE | {"relu": PLAIN_ACTIVATIONS["relu"]}, default="gelu"),
        *only(qkv_bias=True),
    ),
    rules=(
        *tensors({"vit.embeddings.cls_token": "before.weight"}, form=IN_ONE),
        *tensors({"vit.embeddings.position_embeddings": "stack.position.table.weight"}, form=IN_ONE),
        *modules({"vit.embeddings.patch_embeddings.projection": "patches"}, form=PIXELS),
        *modules(VIT_LAYER, "vit.encoder.layer.{i}.", LAYER),
        *modules({"vit.layernorm": "stack.norm", "classifier": "head"}),
    ),
    prefix="vit.",
    no_matter="encoder_stride|pooler_.*",
    tidy=tidy_vit,
    untidy=untidy_vit,
)

# --- encoder-decoders

GATED = "feed_forward.matched"  # a setting of gated layers alone
DEPTHS = {"encoder": "num_layers", "decoder": "num_decoder_layers"}
T5_GATED = {f"gated-{word}": {**settings, GATED: False} for word, settings in GATED_ACTIVATIONS.items()}
T5_GATED["gated-gelu"] = T5_GATED["gated-gelu_new"]  # its "gelu" is the approximate one


def _attentions(side: str, own: str, cross: str) -> Mapping[str, str]:
    return {own: "attention"} | ({cross: "cross_attention"} if side == "decoder" else {})


def _t5_stack(side: str) -> tuple[Rule, ...]:
    attentions = _attentions(side, "SelfAttention", "EncDecAttention")
    last = len(attentions)
    dense = f"layer.{last}.DenseReluDense."
    layer = {f"layer.{place}.layer_norm": f"residual.norms.{place}" for place in range(last + 1)}
    layer[f"{dense}wo"] = "feed_forward.down"
    for place, (theirs, ours) in enumerate(attentions.items()):
        layer |= projections(f"layer.{place}.{theirs}.*", "qkvo", ours)

    def rules(names: Mapping[str, str], has: str = "", lacks: str = "") -> tuple[Rule, ...]:
        weights = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in names.items()}
        places = (f"{side}.block.{{i}}.", f"{side}.layers.{{i}}.")
        return tensors(weights, *places, layers=DEPTHS[side], has=has, lacks=lacks)

    positions = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        *tensors({positions: f"{side}.position.table.weight"}),
        *tensors({f"{side}.final_layer_norm.weight": f"{side}.norm.weight"}),
        *rules(layer),
        *rules({f"{dense}wi": "feed_forward.up"}, lacks=GATED),
        *rules({f"{dense}wi_0": "feed_forward.gate", f"{dense}wi_1": "feed_forward.up"}, has=GATED),
    )


def tidy_t5(config: Config) -> Config:
    """Whether the output's input is scaled: said by a field of its own, or by whether the output was tied."""
    rest = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    return {"scale_decoder_outputs": config.get("tie_word_embeddings", True) is not False} | rest


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
        *required(vocab_size="vocabulary_size", d_model="d_model", d_ff="d_ff"),
        *required(num_layers="num_layers", num_heads="num_heads", scale_decoder_outputs="scale_logits"),
        *optional(num_decoder_layers="num_decoder_layers"),
        Same("d_kv", "attention.d_head", default=64),
        Same("relative_attention_num_buckets", "position.num_buckets", default=32),
        Same("relative_attention_max_distance", "position.max_distance", default=128),
        Same("layer_norm_epsilon", "residual.norm.eps", default=1e-6),
        OneOf("feed_forward_proj", PLAIN_ACTIVATIONS | T5_GATED, default="relu"),
        *only(is_decoder=False),
    ),
    rules=(
        *tensors({"shared.weight": "embedding.weight", "lm_head.weight": "head.weight"}),
        *_t5_stack("encoder"),
        *_t5_stack("decoder"),
    ),
    output=Output("lm_head.weight", "shared.weight", says=None),
    copies={f"{side}.embed_tokens.weight": "shared.weight" for side in DEPTHS},
    # In old files, read by nothing.
    buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    no_matter="dense_act_fn|is_gated_act|n_positions",  # the first two repeat feed_forward_proj
    tidy=tidy_t5,
    # Old versions read from tie_word_embeddings whether the output's input is scaled.
    untidy=lambda c: c | {"tie_word_embeddings": c["scale_decoder_outputs"], "is_encoder_decoder": True},
)


def _bart_stack(side: str) -> tuple[Rule, ...]:
    attentions = _attentions(side, "self_attn", "encoder_attn")
    layer = {"fc1": "feed_forward.up", "fc2": "feed_forward.down"}
    for theirs, ours in attentions.items():
        layer |= projections(f"{theirs}.*_proj", ("q", "k", "v", "out"), ours)
    norms = (*(f"{theirs}_layer_norm" for theirs in attentions), "final_layer_norm")
    layer |= {norm: f"residual.norms.{place}" for place, norm in enumerate(norms)}
    return modules(layer, f"model.{side}.layers.{{i}}.", f"{side}.layers.{{i}}.", layers=DEPTHS[side])


BART_FIXED: Settings = {
    **POST_NORM,
    "residual.norm.eps": 1e-5,
    "share_embeddings": True,
    "scale_logits": False,
    "output_bias": True,
}
BART_FIELDS: tuple[Field, ...] = (
    *required(vocab_size="vocabulary_size", d_model="d_model", encoder_ffn_dim="d_ff"),
    *required(encoder_layers="num_layers", decoder_layers="num_decoder_layers", encoder_attention_heads="num_heads"),
    Same("max_position_embeddings", "max_length", default=1024),
    Same("scale_embedding", "scale_embedding", default=False),
    OneOf("activation_function", PLAIN_ACTIVATIONS, default="gelu"),
    *only(is_decoder=False, add_cross_attention=False, normalize_before=False),
)
BART_RULES = (
    *tensors({"model.shared.weight": "embedding.weight", "lm_head.weight": "head.weight"}),
    *_bart_stack("encoder"),
    *_bart_stack("decoder"),
    *tensors({"final_logits_bias": "head_bias"}, form=IN_ONE),
)


def tidy_bart(config: Config) -> Config:
    """Refuses widths that differ between encoder and decoder: here they are one."""
    config = dict(config)
    for name in ("attention_heads", "ffn_dim"):
        encoder, decoder = config.get(f"encoder_{name}"), config.pop(f"decoder_{name}", None)
        if decoder not in (None, encoder):
            raise CannotConvert(
                f"encoder_{name}={encoder} and decoder_{name}={decoder} have no counterpart here; accepted: one number "
                "for both"
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
    fields=(*BART_FIELDS, *only(normalize_embedding=True)),
    rules=(
        *BART_RULES,
        *tensors({f"model.{side}.embed_positions.weight": f"{side}.position.table.weight" for side in DEPTHS}),
        *modules({f"model.{side}.layernorm_embedding": f"{side}.embedding_norm" for side in DEPTHS}),
    ),
    prefix="model.",
    output=Output("lm_head.weight", "model.shared.weight"),
    copies={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in DEPTHS},
    fresh=("head_bias", "head."),
    aliases={
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    },
    no_matter="add_final_layer_norm|add_bias_logits|static_position_embeddings|extra_pos_embeddings|classif_dropout|"
    "force_bos_token_to_be_generated|save_step",
    tidy=tidy_bart,
    untidy=untidy_bart,
)

MARIAN = replace(
    BART,
    name="marian",
    classes=("MarianMTModel",),
    fixed={**BART_FIXED, "embedding_norm": False, "position": "Sinusoidal", "position.interleaved": False},
    fields=(
        *BART_FIELDS,
        *only(normalize_embedding=False, add_final_layer_norm=False),
        *only(static_position_embeddings=True, share_encoder_decoder_embeddings=True),
    ),
    rules=BART_RULES,
    buffers=r"model\.(encoder|decoder)\.embed_positions\.weight",  # sinusoids, which are computed
    no_matter="decoder_vocab_size|add_bias_logits|extra_pos_embeddings|classif_dropout",
)

ENCODERS = (BERT, ROBERTA, VIT, T5, BART, MARIAN)
