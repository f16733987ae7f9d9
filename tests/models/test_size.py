from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnlab.layers import (
    ALiBi,
    DynamicTanh,
    GroupedQuery,
    LayerNorm,
    Learned,
    MultiHead,
    MultiQuery,
    Parallel,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReZero,
    RMSNorm,
    Rotary,
    Sandwich,
    SwiGLU,
)
from attnlab.models import GPT, gpt_size

TINY = {"vocabulary_size": 13, "max_length": 12, "d_model": 16, "num_heads": 4, "num_layers": 3}
VARIANTS = {
    "plain": {},
    "biased and untied": {"bias": True, "tied": False, "d_ff": 40},
    "learned positions": {"position": Learned},
    "biases on the scores": {"position": RelativeBias, "residual": partial(PostNorm, norm=RMSNorm), "bias": True},
    "gated": {"feed_forward": partial(SwiGLU, matched=False), "attention": MultiQuery, "position": ALiBi, "bias": True},
    "grouped": {"attention": partial(GroupedQuery, d_head=6, qk_norm=True, output_gate=True), "bias": True},
    "window": {"attention": partial(MultiHead, window=4, soft_cap=5.0), "position": Rotary, "feed_forward": SwiGLU},
    "parallel": {"residual": partial(Parallel, norm=DynamicTanh, shared_norm=False)},
    "sandwich": {"residual": partial(Sandwich, norm=partial(LayerNorm, bias=False)), "bias": True},
    "rezero": {"residual": ReZero},
}


def explicit(attention):
    return partial(attention, backend="explicit")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_predicted_parameters_are_those_built(variant):
    model = GPT(**TINY, **variant)
    size = gpt_size(**TINY, **variant)
    tables = [model.embedding, model.stack.position, *([] if model.head is None else [model.head])]
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.embedding_parameters == sum(p.numel() for module in tables for p in module.parameters())
    assert size.non_embedding_parameters == size.parameters - size.embedding_parameters


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_predicted_operations_are_those_counted(variant):
    variant = {**variant, "attention": explicit(variant.get("attention", MultiHead))}
    model = GPT(**TINY, **variant)
    tokens = torch.zeros(2, 12, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    assert counter.get_total_flops() == gpt_size(**TINY, **variant).flops_per_token * tokens.numel()


def test_gpt2_has_its_published_number_of_parameters():
    # Radford et al. 2019: the smallest GPT-2, whose released weights hold 124,439,808 numbers.
    gpt2 = {"d_model": 768, "num_heads": 12, "num_layers": 12, "bias": True, "position": Learned, "residual": PreNorm}
    assert gpt_size(50257, 1024, **gpt2).parameters == 124_439_808


def test_nanogpts_character_model_is_as_large_as_it_reports():
    # nanoGPT prints 10.65M (d=384, 6 layers) without its position table, and 0.80M (d=128, 4 layers).
    bare = partial(PreNorm, norm=partial(LayerNorm, bias=False))
    large = gpt_size(65, 256, d_model=384, num_heads=6, num_layers=6, position=Learned, residual=bare)
    small = gpt_size(65, 64, d_model=128, num_heads=4, num_layers=4, position=Learned, residual=bare)
    assert round((large.parameters - 256 * 384) / 1e6, 2) == 10.65
    assert round((small.parameters - 64 * 128) / 1e6, 2) == 0.80


def test_operations_approach_six_times_the_parameters_in_a_wide_model():
    # Kaplan et al. 2020, section 2.1: 6 N a token where the width is far above the context.
    size = gpt_size(50, 32, d_model=4096, num_heads=32, num_layers=2)
    assert size.flops_per_token / (6 * size.non_embedding_parameters) == pytest.approx(1, abs=0.01)


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError, match="d_modle"):
        gpt_size(13, 12, d_modle=16)
