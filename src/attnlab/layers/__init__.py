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
from attnlab.layers.delta_net import DeltaNet, GatedDeltaNet
from attnlab.layers.init import FanIn, GPT2Init, Init, Normal002, Small, Xavier
from attnlab.layers.linear_attention import GatedLinear, LinearAttention, Retention, StateMixer
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
from attnlab.layers.recurrent_mixers import GRU, LSTM
from attnlab.layers.residuals import DeepNorm, Parallel, PostNorm, PreNorm, Residual, ReZero, Sandwich
from attnlab.layers.rotary import Rotary, RotaryLinear, RotaryLlama3, RotaryNTK, RotaryYaRN
from attnlab.layers.scope import Mask, Scope, build_mask, build_scope
from attnlab.layers.short_convolution import MultiDConvHead, ShortConvolution
from attnlab.layers.stack import Layer, LayerFields, Stack, StackFields, TowerFields, tower_fields

__all__ = [
    "GEGLU", "GELU", "GLU", "GRU", "LSTM", "ALiBi", "Attention", "AxialRotary", "Backend", "DeepNorm", "DeltaNet",
    "Dropout", "DynamicTanh", "Eager", "FanIn", "FeedForward", "Flex", "Fused", "GPT2Init", "GatedDeltaNet",
    "GatedFeedForward", "GatedLinear", "GroupedQuery", "InBlocks", "InRows", "Init", "KeyValueCache", "Layer",
    "LayerCache", "LayerFields", "LayerNorm", "Learned", "Learned2D", "LinearAttention", "Mask", "Math", "Memory",
    "Mixer", "MultiDConvHead", "MultiHead", "MultiQuery", "Norm", "Normal002", "Parallel", "PositionEncoding",
    "PostNorm", "PreNorm", "QuickGELU", "RMSNorm", "ReGLU", "ReLU", "ReZero", "RelativeBias", "Residual",
    "Retention", "Rotary", "RotaryLinear", "RotaryLlama3", "RotaryNTK", "RotaryYaRN", "Sandwich", "Scope", "Scores",
    "ShortConvolution", "SiLU", "Sinusoidal", "Sinusoidal2D", "Small", "SquaredReLU", "Stack", "StackFields",
    "StateMixer", "SwiGLU", "TowerFields", "Xavier", "build_mask", "build_scope", "choose_backend", "tower_fields",
]  # fmt: skip
