"""Architectures of images and texts, a tower each: CLIP and SigLIP."""

from __future__ import annotations

import re
from functools import partial

from attnlab.interop.architecture import (
    A_ROW,
    IN_ONE,
    NO_MATTER,
    PIXELS,
    THIRDS,
    Architecture,
    Rule,
    modules,
    projections,
    tensors,
)
from attnlab.interop.decoders import LAYER, PLAIN_ACTIVATIONS, PRE_NORM
from attnlab.interop.fields import CannotConvert, Config, Field, OneOf, Same, only
from attnlab.interop.settings import Settings

PARTS = {"text": "text_config", "image": "vision_config"}  # of a configuration, by the tower's name here
MODELS = {"text": "text_model", "image": "vision_model"}
ACTIVATIONS = PLAIN_ACTIVATIONS | {"quick_gelu": {"feed_forward": "QuickGELU"}}
# Of the towers' own configurations; that of texts says where a text is pooled, which is at its last token here.
NO_MATTER_INSIDE = re.compile(r"projection_dim|tie_encoder_decoder|tie_word_embeddings|logit_scale_init_value")
TOWER_LAYER = {
    "layer_norm1": "residual.norms.0",
    **projections("self_attn.*_proj", ("q", "k", "v", "out")),
    "layer_norm2": "residual.norms.1",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}


def tidy_towers(name: str, config: Config) -> Config:
    """The fields of both towers' configurations as `text.hidden_size`, without those that are no matter."""
    config = dict(config)
    for tower, part in PARTS.items():
        inner = {**(config.pop(part, None) or {}), **(config.pop(f"{part}_dict", None) or {})}
        kept = {key: value for key, value in inner.items() if not _is_no_matter(key)}
        config |= {f"{tower}.{key}": value for key, value in kept.items()}
    size = config.get("image.image_size")
    if isinstance(size, list | tuple) and len(set(size)) != 1:
        raise CannotConvert(
            f"image_size={list(size)!r} is none that {name} has; accepted: one number, for square images"
        )
    for key in ("image.image_size", "image.patch_size"):
        if isinstance(value := config.get(key), list | tuple):
            config[key] = value[0]
    return config


def tidy_siglip(config: Config) -> Config:
    """The same; a text's embedding is as wide as its tower where nothing is said."""
    config = tidy_towers("siglip", config)
    return config | {"text.projection_size": config.get("text.projection_size") or config.get("text.hidden_size", 768)}


def untidy_towers(config: Config) -> Config:
    """Both towers' fields in configurations of their own."""
    rest: Config = {key: value for key, value in config.items() if key.partition(".")[0] not in PARTS}
    for tower, part in PARTS.items():
        inner = {key.removeprefix(f"{tower}."): v for key, v in config.items() if key.startswith(f"{tower}.")}
        rest[part] = inner | {"model_type": f"{rest['model_type']}_{MODELS[tower].removesuffix('_model')}_model"}
    if isinstance(size := rest["vision_config"]["image_size"], list | tuple):
        rest["vision_config"]["image_size"] = size[0] if len(set(size)) == 1 else list(size)
    return rest


def _is_no_matter(key: str) -> bool:
    return bool(NO_MATTER.fullmatch(key) or NO_MATTER_INSIDE.fullmatch(key))


def _fields(tower: str, act: str, eps: float, **sizes: tuple[str, int]) -> tuple[Field, ...]:
    """The fields of a tower's configuration; sizes: what each is here, and what is meant where it is missing."""
    known = {act: ACTIVATIONS[act]} | ACTIVATIONS  # of two words for one, the published one is written
    activations = {word: {f"{tower}.{key}": v for key, v in found.items()} for word, found in known.items()}
    return (
        *(Same(f"{tower}.{theirs}", ours, default) for theirs, (ours, default) in sizes.items()),
        Same(f"{tower}.layer_norm_eps", f"{tower}.residual.norm.eps", eps),
        OneOf(f"{tower}.hidden_act", activations, act),
        *only(**{f"{tower}.is_decoder": False, f"{tower}.add_cross_attention": False, f"{tower}.pruned_heads": {}}),
    )


def _sizes(tower: str, width: int, heads: int) -> dict[str, tuple[str, int]]:
    return {
        "hidden_size": (f"{tower}.d_model", width),
        "intermediate_size": (f"{tower}.d_ff", 4 * width),
        "num_hidden_layers": (f"{tower}.num_layers", 12),
        "num_attention_heads": (f"{tower}.num_heads", heads),
    }


def _texts(vocabulary: int, longest: int) -> dict[str, tuple[str, int]]:
    return {"vocab_size": ("vocabulary_size", vocabulary), "max_position_embeddings": ("max_length", longest)}


def _images(patch: int) -> dict[str, tuple[str, int]]:
    sizes = {"image_size": ("image_size", 224), "patch_size": ("patch_size", patch)}
    return sizes | {"num_channels": ("channels", 3)}


def _tower(tower: str, **of_tower: object) -> Settings:
    return {f"{tower}.{key}": value for key, value in {**PRE_NORM, "position": "Learned", **of_tower}.items()}


def _layers(tower: str, last: str) -> tuple[Rule, ...]:
    theirs, ours = MODELS[tower], f"{tower}.{LAYER}"
    return (
        *modules(TOWER_LAYER, f"{theirs}.encoder.layers.{{i}}.", ours, layers=f"{tower}.num_layers"),
        *modules({f"{theirs}.{last}": f"{tower}.stack.norm"}),
    )


SHARED_RULES = (
    *tensors({"token_embedding.weight": "text.embedding.weight"}, "text_model.embeddings."),
    *tensors({f"{MODELS[t]}.embeddings.position_embedding.weight": f"{t}.stack.position.table.weight" for t in PARTS}),
    *modules({"patch_embedding": "image.patches"}, "vision_model.embeddings.", form=PIXELS),
    *_layers("text", "final_layer_norm"),
    *_layers("image", "post_layernorm"),
)
BUFFERS = r"(text|vision)_model\.embeddings\.position_ids"

CLIP = Architecture(
    name="clip",
    model="CLIP",
    classes=("CLIPModel",),
    fixed={
        "pooling": "class",
        "registers": 0,
        "patch_bias": False,
        "projection": "both",
        "causal_text": True,
        "logit_bias": False,
        **_tower("text", embedding_norm=False),
        **_tower("image", embedding_norm=True),
    },
    fields=(
        Same("projection_dim", "embedding_size", 512),
        *_fields("text", "quick_gelu", 1e-5, **_texts(49408, 77), **_sizes("text", 512, 8)),
        *_fields("image", "quick_gelu", 1e-5, **_images(32), **_sizes("image", 768, 12)),
    ),
    rules=(
        *SHARED_RULES,
        *tensors({"vision_model.embeddings.class_embedding": "image.before.weight"}, form=A_ROW),
        *modules({"vision_model.pre_layrnorm": "image.stack.embedding_norm"}),  # so spelt there
        *tensors({"visual_projection.weight": "image_projection.weight"}),
        *tensors({"text_projection.weight": "text_projection.weight", "logit_scale": "log_scale"}),
    ),
    buffers=BUFFERS,
    no_matter="logit_scale_init_value",
    tokens_in="text_config",
    tidy=partial(tidy_towers, "clip"),
    untidy=untidy_towers,
)

HEAD = "vision_model.head."
SIGLIP = Architecture(
    name="siglip",
    model="CLIP",
    classes=("SiglipModel",),
    fixed={
        "pooling": "attention",
        "registers": 0,
        "patch_bias": True,
        "projection": "text",
        "causal_text": False,
        "logit_bias": True,
        **_tower("text", embedding_norm=False),
        **_tower("image", embedding_norm=False),
    },
    fields=(
        Same("text.projection_size", "embedding_size"),
        *_fields("text", "gelu_pytorch_tanh", 1e-6, **_texts(32000, 64), **_sizes("text", 768, 12)),
        *_fields("image", "gelu_pytorch_tanh", 1e-6, **_images(16), **_sizes("image", 768, 12)),
        *only(**{"image.vision_use_head": True}),
    ),
    rules=(
        *SHARED_RULES,
        *modules({"text_model.head": "text_projection"}),
        *tensors({f"{HEAD}probe": "image.pool.probe.weight"}, form=IN_ONE),
        *(
            Rule(
                f"{HEAD}attention.in_proj_{kind}",
                tuple(f"image.pool.attention.{q}.{kind}" for q in ("query", "key", "value")),
                THIRDS,
            )
            for kind in ("weight", "bias")
        ),
        *modules({f"{HEAD}attention.out_proj": "image.pool.attention.output", f"{HEAD}layernorm": "image.pool.norm"}),
        *modules({f"{HEAD}mlp.fc1": "image.pool.feed_forward.up", f"{HEAD}mlp.fc2": "image.pool.feed_forward.down"}),
        *tensors({"logit_scale": "log_scale", "logit_bias": "logit_bias"}, form=IN_ONE),
    ),
    buffers=BUFFERS,
    tokens_in="text_config",
    tidy=tidy_siglip,
    untidy=untidy_towers,
)

IMAGE_TEXT = (CLIP, SIGLIP)
