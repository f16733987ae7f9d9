"""Encoders: BERT, RoBERTa, and the Vision Transformer."""

from __future__ import annotations

from typing import Any

from attnlab.interop.architecture import Architecture, Output
from attnlab.interop.fields import CannotConvert, Config, OneOf, Only, Same
from attnlab.interop.rules import COPY, IN_ONE, PIXELS, Rule, both, weight
from attnlab.interop.settings import Settings

LAYER = "stack.layers.{i}"
ATTENTION, FEED_FORWARD, NORMS = f"{LAYER}.attention", f"{LAYER}.feed_forward", f"{LAYER}.residual.norms"
# The dense layer before the output has this activation, too, and here it is GELU.
GELU_ALONE = {"gelu": {"feed_forward": "GELU", "feed_forward.approximate": "none"}}


def _layers(theirs: str) -> tuple[Rule, ...]:
    """The layers of BERT, which RoBERTa's are."""
    return (
        *both(f"{theirs}.attention.self.query", f"{ATTENTION}.query"),
        *both(f"{theirs}.attention.self.key", f"{ATTENTION}.key"),
        *both(f"{theirs}.attention.self.value", f"{ATTENTION}.value"),
        *both(f"{theirs}.attention.output.dense", f"{ATTENTION}.output"),
        *both(f"{theirs}.attention.output.LayerNorm", f"{NORMS}.0"),
        *both(f"{theirs}.intermediate.dense", f"{FEED_FORWARD}.up"),
        *both(f"{theirs}.output.dense", f"{FEED_FORWARD}.down"),
        *both(f"{theirs}.output.LayerNorm", f"{NORMS}.1"),
    )


def _embeddings(theirs: str) -> tuple[Rule, ...]:
    return (
        *weight(f"{theirs}.word_embeddings.weight", "embedding.weight"),
        *weight(f"{theirs}.position_embeddings.weight", "stack.position.table.weight"),
        *weight(f"{theirs}.token_type_embeddings.weight", "segments.weight"),
        *both(f"{theirs}.LayerNorm", "stack.embedding_norm"),
    )


BERT_FIXED: Settings = {
    "bias": True,
    "embedding_norm": True,
    "position": "Learned",
    "residual": "PostNorm",
    "residual.norm": "LayerNorm",
    "attention": "MultiHead",
}
BERT_FIELDS = (
    Same("vocab_size", "vocabulary_size"),
    Same("hidden_size", "d_model"),
    Same("num_hidden_layers", "num_layers"),
    Same("num_attention_heads", "num_heads"),
    Same("intermediate_size", "d_ff"),
    Same("layer_norm_eps", "residual.norm.eps", default=1e-12),
    Same("type_vocab_size", "num_segments", default=2, least=1),
    OneOf("hidden_act", GELU_ALONE, default="gelu"),
    Only("position_embedding_type", ("absolute",)),
    Only("is_decoder", (False,)),
    Only("add_cross_attention", (False,)),
    Only("pruned_heads", ({},)),
)
OUTPUT = ("transform.", "transform_norm.", "head_bias", "head.", "next_sentence.")

BERT = Architecture(
    name="bert",
    model="Bert",
    classes=("BertForMaskedLM", "BertForPreTraining"),
    fixed=BERT_FIXED,
    fields=(*BERT_FIELDS, Same("max_position_embeddings", "max_length", default=512)),
    rules=(
        *_embeddings("bert.embeddings"),
        *_layers("bert.encoder.layer.{i}"),
        *both("bert.pooler.dense", "pooler"),
        *both("cls.predictions.transform.dense", "transform"),
        *both("cls.predictions.transform.LayerNorm", "transform_norm"),
        *weight("cls.predictions.bias", "head_bias"),
        *weight("cls.predictions.decoder.weight", "head.weight"),
        *both("cls.seq_relationship", "next_sentence"),
    ),
    prefix="bert.",
    output=Output("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    present={"bert.pooler.dense.weight": "pooler", "cls.seq_relationship.weight": "next_sentence"},
    buffers=r".*embeddings\.(position_ids|token_type_ids)",
    fresh=OUTPUT,
    old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    no_matter="directionality|pooler_.*",
)


def tidy_roberta(config: Config) -> Config:
    """The table begins behind the padding's number: its first position is that of the token behind it."""
    padding, rows = config.get("pad_token_id", 1), config.get("max_position_embeddings", 512)
    if not (isinstance(padding, int) and isinstance(rows, int)):
        raise CannotConvert(
            f"config.json has pad_token_id={padding!r} and max_position_embeddings={rows!r}, from which positions are counted; accepted: "
            "whole numbers"
        )
    return config | {"max_position_embeddings": rows - padding - 1, "offset": padding + 1}


def untidy_roberta(config: Config) -> Config:
    """The table's own length, and the number of the padding that its beginning stands for."""
    config = dict(config)
    offset: Any = config.pop("offset", 0)
    return config | {"max_position_embeddings": config["max_position_embeddings"] + offset, "pad_token_id": offset - 1}


ROBERTA = Architecture(
    name="roberta",
    model="Bert",
    classes=("RobertaForMaskedLM",),
    fixed=BERT_FIXED,
    fields=(*BERT_FIELDS, Same("max_position_embeddings", "max_length"), Same("offset", "position.offset")),
    rules=(
        *_embeddings("roberta.embeddings"),
        *_layers("roberta.encoder.layer.{i}"),
        *both("roberta.pooler.dense", "pooler"),
        *both("lm_head.dense", "transform"),
        *both("lm_head.layer_norm", "transform_norm"),
        *weight("lm_head.bias", "head_bias"),
        *weight("lm_head.decoder.weight", "head.weight"),
    ),
    prefix="roberta.",
    output=Output("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
    present={"roberta.pooler.dense.weight": "pooler"},
    buffers=r".*embeddings\.(position_ids|token_type_ids)",
    fresh=OUTPUT,
    tidy=tidy_roberta,
    untidy=untidy_roberta,
)


def tidy_vit(config: Config) -> Config:
    """The size of images as rows and columns, of a patch as one number, and the number of classes from their names."""
    config = dict(config)
    size: Any = config.get("image_size", 224)
    patch: Any = config.get("patch_size", 16)
    labels = config.pop("id2label", None)
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
    count: Any = config.pop("num_labels")
    rows, columns = config["image_size"]
    labels = {str(i): f"LABEL_{i}" for i in range(count)}
    return config | {
        "image_size": rows if rows == columns else [rows, columns],
        "id2label": labels,
        "label2id": {name: int(i) for i, name in labels.items()},
    }


VIT = Architecture(
    name="vit",
    model="ViT",
    classes=("ViTForImageClassification",),
    fixed={
        "bias": True,
        "pooling": "class",
        "registers": 0,
        "position": "Learned",
        "residual": "PreNorm",
        "residual.norm": "LayerNorm",
        "attention": "MultiHead",
    },
    fields=(
        Same("num_labels", "num_classes"),
        Same("image_size", "image_size"),
        Same("patch_size", "patch_size"),
        Same("num_channels", "channels", default=3),
        Same("hidden_size", "d_model"),
        Same("num_hidden_layers", "num_layers"),
        Same("num_attention_heads", "num_heads"),
        Same("intermediate_size", "d_ff"),
        Same("layer_norm_eps", "residual.norm.eps", default=1e-12),
        OneOf("hidden_act", GELU_ALONE | {"relu": {"feed_forward": "ReLU"}}, default="gelu"),
        Only("qkv_bias", (True,)),
    ),
    rules=(
        *weight("vit.embeddings.cls_token", "before.weight", IN_ONE),
        *weight("vit.embeddings.position_embeddings", "stack.position.table.weight", IN_ONE),
        *both("vit.embeddings.patch_embeddings.projection", "patches", PIXELS),
        *both("vit.encoder.layer.{i}.attention.attention.query", f"{ATTENTION}.query"),
        *both("vit.encoder.layer.{i}.attention.attention.key", f"{ATTENTION}.key"),
        *both("vit.encoder.layer.{i}.attention.attention.value", f"{ATTENTION}.value"),
        *both("vit.encoder.layer.{i}.attention.output.dense", f"{ATTENTION}.output"),
        *both("vit.encoder.layer.{i}.layernorm_before", f"{NORMS}.0"),
        *both("vit.encoder.layer.{i}.intermediate.dense", f"{FEED_FORWARD}.up"),
        *both("vit.encoder.layer.{i}.output.dense", f"{FEED_FORWARD}.down"),
        *both("vit.encoder.layer.{i}.layernorm_after", f"{NORMS}.1"),
        *both("vit.layernorm", "stack.norm"),
        *both("classifier", "head", COPY),
    ),
    prefix="vit.",
    fresh=("head.",),
    no_matter="encoder_stride|pooler_.*",
    tidy=tidy_vit,
    untidy=untidy_vit,
)

ENCODERS = (BERT, ROBERTA, VIT)
