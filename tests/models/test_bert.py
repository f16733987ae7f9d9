"""BERT: padding changes nothing, every token sees every other, chosen positions are those of the full output, transformers-free reference."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.layers import (
    ALiBi,
    DeepNorm,
    Learned,
    Parallel,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReZero,
    RMSNorm,
    Rotary,
    Sandwich,
    Sinusoidal,
)
from attnlab.models import Bert

SMALL = {"vocabulary_size": 23, "max_length": 16, "d_model": 16, "num_heads": 4, "num_layers": 2, "dropout": 0.0}
POSITIONS = [PositionEncoding, Sinusoidal, Learned, Rotary, ALiBi, RelativeBias]
RESIDUALS = [PostNorm, PreNorm, Sandwich, DeepNorm, ReZero, Parallel]


def build(seed=0, **fields):
    """A small model whose weights make a wrong mask or position show."""
    torch.manual_seed(seed)
    model = Bert(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, 23, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_changes_nothing(position, residual, lengths, seed):
    model, longest = build(seed, position=position, residual=residual), max(lengths) + 2
    tokens = draw(len(lengths), longest, seed=seed)
    together = model(tokens, torch.arange(longest)[None] < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1, :length], model(tokens[row : row + 1, :length]))


def test_every_token_sees_every_other():
    model, tokens = build(position=PositionEncoding), draw(1, 6)
    states = model.embedding(tokens).detach().requires_grad_()
    for place in range(6):
        (gradient,) = torch.autograd.grad(model.stack(states)[0, place].square().sum(), states)
        assert (gradient[0].abs().sum(dim=-1) > 1e-6).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0.0, 1.0))
def test_chosen_positions_are_those_of_the_full_output(seed, share):
    model, tokens = build(seed), draw(3, 8, seed=seed)
    select = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)) < share
    assert_close(model(tokens, select_BT=select), model(tokens)[select])


def test_agrees_with_torchs_encoder():
    model, tokens = build(), draw(2, 5)
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, activation="gelu", batch_first=True)
    x = model.stack.embedding_norm(model.embedding(tokens) + model.stack.position.table.weight[:5])
    for ours in model.stack.layers:
        with torch.no_grad():
            own = ours.attention
            layer.self_attn.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
            layer.self_attn.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        layer.self_attn.out_proj.load_state_dict(own.output.state_dict())
        layer.linear1.load_state_dict(ours.feed_forward.up.state_dict())
        layer.linear2.load_state_dict(ours.feed_forward.down.state_dict())
        for norm, theirs in zip(ours.residual.norms, (layer.norm1, layer.norm2), strict=True):
            theirs.load_state_dict(norm.state_dict())
        x = layer(x)
    assert_close(model.encode(tokens), x)


def test_a_scaled_embedding_is_sqrt_d_model_times_as_large():
    plain, scaled = build(tie_embeddings=False), build(tie_embeddings=False, scale_embedding=True)
    tokens = draw(2, 5)
    assert not torch.allclose(plain(tokens), scaled(tokens))
    with torch.no_grad():
        plain.embedding.weight *= plain.d_model**0.5
    assert_close(scaled(tokens), plain(tokens))


def test_segments_tell_two_texts_apart():
    model, tokens = build(num_segments=2, next_sentence=True), draw(2, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(2, -1)
    assert_close(model.encode(tokens), model.encode(tokens, segments_BT=torch.zeros_like(tokens)))
    assert not torch.allclose(model.encode(tokens), model.encode(tokens, segments_BT=segments), atol=1e-3)
    assert model.follows(model.encode(tokens, segments_BT=segments)).shape == (2, 2)


def test_the_pooler_is_a_dense_layer_and_tanh_on_the_first_state():
    model, tokens = build(pooler=True), draw(2, 6)
    states = model.encode(tokens)
    expected = (states[:, 0] @ model.pooler.weight.T + model.pooler.bias).tanh()
    assert_close(model.pool(states), expected)
    assert model.next_sentence is None
    assert build().pooler is None


def test_next_sentence_stands_on_the_pooler():
    model, tokens = build(next_sentence=True), draw(2, 6)
    states = model.encode(tokens)
    pooled = (states[:, 0] @ model.pooler.weight.T + model.pooler.bias).tanh()
    assert_close(model.follows(states), pooled @ model.next_sentence.weight.T + model.next_sentence.bias)


@pytest.mark.parametrize("residual", [partial(PreNorm, norm=RMSNorm), partial(PostNorm, norm=RMSNorm), PostNorm])
def test_the_norms_of_embedding_and_output_are_of_the_residuals_kind(residual):
    model, tokens = build(residual=residual, position=PositionEncoding), draw(2, 6)
    kind = RMSNorm if isinstance(residual, partial) else nn.LayerNorm
    assert isinstance(model.stack.embedding_norm, kind)
    assert isinstance(model.transform_norm, kind)
    entered = []
    model.stack.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    states = model.encode(tokens)
    assert_close(entered[0], normed(model.embedding(tokens), model.stack.embedding_norm))
    hidden = nn.functional.gelu(states @ model.transform.weight.T + model.transform.bias)
    expected = normed(hidden, model.transform_norm) @ model.embedding.weight.T + model.head_bias
    assert_close(model.predict(states), expected)


def normed(x, norm):
    if isinstance(norm, RMSNorm):
        return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_parameter(tied):
    model = build(num_segments=2, next_sentence=True, tie_embeddings=tied)
    states = model.encode(draw(2, 16), segments_BT=torch.arange(16)[None].expand(2, -1) // 8)
    (model.predict(states).square().sum() + model.follows(states).square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_past_the_table_is_refused():
    with pytest.raises(ValueError, match="Learned ends at 16 positions"):
        build()(draw(1, 17))
