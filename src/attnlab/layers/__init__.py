"""The parts of Transformers: every choice of every seam is one class here."""

from attnlab.layers.attention import Attention, GroupedQuery, MultiHead, MultiQuery
from attnlab.layers.backends import Backend, Explicit, Flex, Fused, Plain, choose_backend
from attnlab.layers.cache import KeyValueCache, LayerCache
from attnlab.layers.dropout import Dropout
from attnlab.layers.feed_forward import (
    GEGLU,
    GELU,
    GLU,
    FeedForward,
    GatedFeedForward,
    ReGLU,
    ReLU,
    SiLU,
    SquaredReLU,
    SwiGLU,
)
from attnlab.layers.init import FanIn, GPT2Init, Init, Normal002, Small, Xavier
from attnlab.layers.masks import build_mask
from attnlab.layers.memory import Memory
from attnlab.layers.norms import DynamicTanh, LayerNorm, RMSNorm
from attnlab.layers.parts import complete
from attnlab.layers.positions import ALiBi, Learned, PositionEncoding, RelativeBias, Sinusoidal
from attnlab.layers.positions_2d import AxialRotary, Learned2D, Sinusoidal2D
from attnlab.layers.residuals import DeepNorm, Parallel, PostNorm, PreNorm, Residual, ReZero, Sandwich
from attnlab.layers.rotary import Rotary, RotaryLinear, RotaryLlama3, RotaryNTK, RotaryYaRN
from attnlab.layers.scope import Scope, build_scope
from attnlab.layers.stack import Layer, Stack, stack_widths

__all__ = [
    "GEGLU",
    "GELU",
    "GLU",
    "ALiBi",
    "Attention",
    "AxialRotary",
    "Backend",
    "DeepNorm",
    "Dropout",
    "DynamicTanh",
    "Explicit",
    "FanIn",
    "FeedForward",
    "Flex",
    "Fused",
    "GPT2Init",
    "GatedFeedForward",
    "GroupedQuery",
    "Init",
    "KeyValueCache",
    "Layer",
    "LayerCache",
    "LayerNorm",
    "Learned",
    "Learned2D",
    "Memory",
    "MultiHead",
    "MultiQuery",
    "Normal002",
    "Parallel",
    "Plain",
    "PositionEncoding",
    "PostNorm",
    "PreNorm",
    "RMSNorm",
    "ReGLU",
    "ReLU",
    "ReZero",
    "RelativeBias",
    "Residual",
    "Rotary",
    "RotaryLinear",
    "RotaryLlama3",
    "RotaryNTK",
    "RotaryYaRN",
    "Sandwich",
    "Scope",
    "SiLU",
    "Sinusoidal",
    "Sinusoidal2D",
    "Small",
    "SquaredReLU",
    "Stack",
    "SwiGLU",
    "Xavier",
    "build_mask",
    "build_scope",
    "choose_backend",
    "complete",
    "stack_widths",
]
