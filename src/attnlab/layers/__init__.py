"""The parts of Transformers: every choice of every seam is one class here."""

from attnlab.layers.attention import (
    Attention,
    AttentionFields,
    DotProductAttention,
    GroupedQuery,
    MultiHead,
    MultiQuery,
    ProjectionFields,
    ScoreFields,
)
from attnlab.layers.attention_choices import (
    DifferentialAttention,
    ForgettingAttention,
    FromOtherLayers,
    HeadGate,
    SharedKeyValues,
    SigmoidAttention,
    SinkLogit,
    SoftmaxPlusOne,
    TalkingHeads,
    ValueResidual,
)
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
from attnlab.layers.contextual_positions import CoPE
from attnlab.layers.delta_net import DeltaNet, GatedDeltaNet
from attnlab.layers.experts import MixtureOfExperts
from attnlab.layers.init import FanIn, GPT2Init, Init, Normal002, PyTorchInit, Small, Xavier
from attnlab.layers.latent_attention import LatentAttention
from attnlab.layers.linear_attention import GatedLinear, LinearAttention, Retention, StateMixer
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.normalized import NormalizedAttention, NormalizedResidual, NormalizedSwiGLU
from attnlab.layers.pointwise import (
    GEGLU,
    GELU,
    GLU,
    Dropout,
    DynamicTanh,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    NoFeedForward,
    NoNorm,
    Norm,
    PositionWise,
    QuickGELU,
    ReGLU,
    ReLU,
    RMSNorm,
    SiLU,
    SquaredReLU,
    SwiGLU,
)
from attnlab.layers.positions import ALiBi, Learned, Places, PositionEncoding, RelativeBias, Rotation, Sinusoidal
from attnlab.layers.positions_2d import AxialRotary, Learned2D, Sinusoidal2D
from attnlab.layers.recurrent_mixers import GRU, LSTM
from attnlab.layers.relative_positions import FIRE, SandwichPositions
from attnlab.layers.residuals import (
    DeepNorm,
    LayerNormScaling,
    LayerScale,
    OutputNorm,
    Parallel,
    PostNorm,
    PreNorm,
    Residual,
    ReZero,
    Sandwich,
    StochasticDepth,
)
from attnlab.layers.rotary import PRotary, Rotary, RotaryLinear, RotaryLlama3, RotaryNTK, RotaryYaRN, XPos
from attnlab.layers.scope import Mask, Scope, build_mask, build_scope
from attnlab.layers.short_convolution import MultiDConvHead, ShortConvolution
from attnlab.layers.stack import Layer, LayerFields, Stack, StackFields, TowerFields, tower_fields
from attnlab.layers.streams import EmbeddingResidual, HyperConnections, StaticHyperConnections
from attnlab.layers.widths import CompleteP, Growth, MuP

__all__ = [
    "FIRE", "GEGLU", "GELU", "GLU", "GRU", "LSTM", "ALiBi", "Attention", "AttentionFields", "AxialRotary", "Backend",
    "CoPE", "CompleteP", "DeepNorm", "DeltaNet", "DifferentialAttention", "DotProductAttention", "Dropout",
    "DynamicTanh", "Eager", "EmbeddingResidual", "FanIn", "FeedForward", "Flex", "ForgettingAttention",
    "FromOtherLayers", "Fused", "GPT2Init", "GatedDeltaNet", "GatedFeedForward", "GatedLinear", "GroupedQuery",
    "Growth", "HeadGate", "HyperConnections", "InBlocks", "InRows", "Init", "KeyValueCache", "LatentAttention", "Layer",
    "LayerCache", "LayerFields", "LayerNorm", "LayerNormScaling", "LayerScale", "Learned", "Learned2D",
    "LinearAttention", "Mask", "Math", "Memory", "Mixer", "MixtureOfExperts", "MuP", "MultiDConvHead", "MultiHead",
    "MultiQuery", "NoFeedForward", "NoNorm", "Norm", "Normal002", "NormalizedAttention", "NormalizedResidual",
    "NormalizedSwiGLU", "OutputNorm", "PRotary", "Parallel", "Places", "PositionEncoding", "PositionWise", "PostNorm",
    "PreNorm", "ProjectionFields", "PyTorchInit", "QuickGELU", "RMSNorm", "ReGLU", "ReLU", "ReZero", "RelativeBias",
    "Residual", "Retention", "Rotary", "RotaryLinear", "RotaryLlama3", "RotaryNTK", "RotaryYaRN", "Rotation",
    "Sandwich", "SandwichPositions", "Scope", "ScoreFields", "Scores", "SharedKeyValues", "ShortConvolution", "SiLU",
    "SigmoidAttention", "SinkLogit", "Sinusoidal", "Sinusoidal2D", "Small", "SoftmaxPlusOne", "SquaredReLU", "Stack",
    "StackFields", "StateMixer", "StaticHyperConnections", "StochasticDepth", "SwiGLU", "TalkingHeads", "TowerFields",
    "ValueResidual", "XPos", "Xavier", "build_mask", "build_scope", "choose_backend", "tower_fields",
]  # fmt: skip
