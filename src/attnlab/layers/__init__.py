"""The parts of Transformers: every choice of every seam is one class here."""

from attnlab.layers.attention import Attention, GroupedQuery, MultiHead, MultiQuery
from attnlab.layers.backends import (
    Backend,
    Eager,
    Flex,
    Fused,
    InBlocks,
    InRows,
    Math,
    Scores,
    choose_backend,
)
from attnlab.layers.cache import KeyValueCache, LayerCache
from attnlab.layers.init import FanIn, GPT2Init, Init, Normal002, Small, Xavier
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.pointwise import (
    GEGLU,
    GELU,
    GLU,
    Dropout,
    DynamicTanh,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    Norm,
    QuickGELU,
    ReGLU,
    ReLU,
    RMSNorm,
    SiLU,
    SquaredReLU,
    SwiGLU,
)
from attnlab.layers.positions import ALiBi, Learned, PositionEncoding, RelativeBias, Sinusoidal
from attnlab.layers.positions_2d import AxialRotary, Learned2D, Sinusoidal2D
from attnlab.layers.residuals import DeepNorm, Parallel, PostNorm, PreNorm, Residual, ReZero, Sandwich
from attnlab.layers.rotary import Rotary, RotaryLinear, RotaryLlama3, RotaryNTK, RotaryYaRN
from attnlab.layers.scope import Mask, Scope, build_mask, build_scope
from attnlab.layers.stack import Layer, LayerFields, Stack, StackFields, TowerFields, tower_fields
from attnlab.layers.widths import CompleteP, Growth, MuP

__all__ = [
    "GEGLU", "GELU", "GLU", "ALiBi", "Attention", "AxialRotary", "Backend", "CompleteP", "DeepNorm", "Dropout",
    "DynamicTanh", "Eager", "FanIn", "FeedForward", "Flex", "Fused", "GPT2Init", "GatedFeedForward", "GroupedQuery",
    "Growth", "InBlocks", "InRows", "Init", "KeyValueCache", "Layer", "LayerCache", "LayerFields", "LayerNorm",
    "Learned", "Learned2D", "Mask", "Math", "Memory", "Mixer", "MuP", "MultiHead", "MultiQuery", "Norm", "Normal002",
    "Parallel", "PositionEncoding", "PostNorm", "PreNorm", "QuickGELU", "RMSNorm", "ReGLU", "ReLU", "ReZero",
    "RelativeBias", "Residual", "Rotary", "RotaryLinear", "RotaryLlama3", "RotaryNTK", "RotaryYaRN", "Sandwich",
    "Scope", "Scores", "SiLU", "Sinusoidal", "Sinusoidal2D", "Small", "SquaredReLU", "Stack", "StackFields", "SwiGLU",
    "TowerFields", "Xavier", "build_mask", "build_scope", "choose_backend", "tower_fields",
]  # fmt: skip
