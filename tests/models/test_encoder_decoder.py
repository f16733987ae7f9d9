"""The encoder-decoder: the paper's sizes, who sees whom, decoding, and torch's own Transformer as the reference."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.layers import (
    ALiBi,
    DeepNorm,
    GroupedQuery,
    Learned,
    Memory,
    MultiHead,
    MultiQuery,
    Parallel,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReLU,
    ReZero,
    Rotary,
    Sandwich,
    Sinusoidal,
)
from attnlab.models import EncoderDecoder

SMALL = {"vocabulary_size": 23, "max_length": 24, "d_model": 16, "num_heads": 4, "num_layers": 2, "dropout": 0.0}
POSITIONS = [PositionEncoding, Sinusoidal, Learned, Rotary, ALiBi, RelativeBias]
RESIDUALS = [PostNorm, PreNorm, Sandwich, DeepNorm, ReZero, Parallel]


def build(seed=0, **fields):
    """A small model whose weights make a wrong mask or position show."""
    torch.manual_seed(seed)
    model = EncoderDecoder(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, SMALL["vocabulary_size"], shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({}, 65),
        ({"d_model": 1024, "num_heads": 16, "d_ff": 4096}, 213),
    ],
    ids=["base", "big"],
)
def test_the_sizes_of_the_paper(fields, millions):
    # Table 3 of Vaswani et al. 2017, with one vocabulary of 37,000: linear layers with biases in the feed-forward.
    with torch.device("meta"):
        model = EncoderDecoder(37000, bias=True, **fields)
    d, f = model.d_model, 4 * model.d_model
    attention, feed_forward, norm = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == 37000 * d + 6 * encoder + 6 * decoder
    assert total / 1e6 == pytest.approx(millions, rel=0.035)


def reference(model):
    """torch's own encoder and decoder with this model's weights."""
    args = {"d_model": 16, "nhead": 4, "dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
    theirs = nn.Transformer(num_encoder_layers=2, num_decoder_layers=2, **args).eval()
    theirs.encoder.norm, theirs.decoder.norm = nn.Identity(), nn.Identity()
    with torch.no_grad():
        for ours, layer in zip(model.encoder.layers, theirs.encoder.layers, strict=True):
            take(ours, layer, {"attention": layer.self_attn}, [layer.norm1, layer.norm2])
        for ours, layer in zip(model.decoder.layers, theirs.decoder.layers, strict=True):
            attentions = {"attention": layer.self_attn, "cross_attention": layer.multihead_attn}
            take(ours, layer, attentions, [layer.norm1, layer.norm2, layer.norm3])
    return theirs


def take(ours, theirs, attentions, norms):
    for name, attention in attentions.items():
        own = getattr(ours, name)
        attention.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        attention.out_proj.load_state_dict(own.output.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    for norm, own in zip(norms, ours.residual.norms, strict=True):
        norm.load_state_dict(own.state_dict())


def test_agrees_with_torchs_transformer():
    model = build(bias=True, position=PositionEncoding, residual=PostNorm, feed_forward=ReLU)
    source, target = draw(3, 7), draw(3, 5, seed=1)
    is_source = torch.arange(7)[None] < torch.tensor([[7], [4], [2]])
    scale = model.embedding_scale
    expected = reference(model)(
        model.embedding(source) * scale,
        model.embedding(target) * scale,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(5),
        src_key_padding_mask=~is_source,
        memory_key_padding_mask=~is_source,
    )
    assert_close(model(source, target, is_source), expected @ model.embedding.weight.T)


@settings(max_examples=25, deadline=None)
@given(
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_of_the_source_changes_nothing(position, residual, lengths, seed):
    model = build(seed, position=position, residual=residual)
    target, longest = draw(len(lengths), 4, seed=seed), max(lengths) + 2
    source = draw(len(lengths), longest, seed=seed + 1)
    is_source = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    together = model(source, target, is_source)
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1], model(source[row : row + 1, :length], target[row : row + 1]))


@settings(max_examples=25, deadline=None)
@given(
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    real=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_cross_attention_sees_the_real_states_alone(position, residual, real, seed):
    model, is_source = build(seed, position=position, residual=residual), torch.tensor(real)
    draws = torch.Generator().manual_seed(seed)
    states, other = (torch.randn(2, 6, 16, generator=draws) for _ in range(2))
    x = torch.randn(2, 4, 16, generator=draws)
    outputs = [
        model.decoder(x, memory=Memory(kept, is_source))
        for kept in (states, states.where(is_source[..., None], other * 100))
    ]
    assert_close(*outputs)
    seen = model.decoder(x, memory=Memory(states.where(~is_source[..., None], other), is_source))
    # ReZero's gates and all: whoever has a real state is moved by it.
    for row in range(2):
        assert torch.allclose(seen[row], outputs[0][row], atol=1e-4) != bool(is_source[row].any())


@settings(max_examples=25, deadline=None)
@given(position=st.sampled_from(POSITIONS), place=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_target_sees_what_follows(position, place, seed):
    model = build(seed, position=position)
    source, target = draw(2, 5, seed=seed), draw(2, 6, seed=seed + 1)
    changed = target.clone()
    changed[:, place:] = (changed[:, place:] + 1) % SMALL["vocabulary_size"]
    assert_close(model(source, changed)[:, :place], model(source, target)[:, :place])


def test_every_target_sees_every_source_token():
    model = build(position=PositionEncoding)
    table = model.embedding.weight.detach()
    states = table[draw(1, 5)].clone().requires_grad_()
    first_BD = model.decoder(table[draw(1, 3, seed=1)], memory=Memory(states))[:, 0]
    first_BD.pow(2).sum().backward()
    assert (states.grad.abs().sum(dim=-1) > 1e-6).all()


def test_a_source_of_padding_alone_gives_finite_logits_and_gradients():
    model = build()
    is_source = torch.tensor([[True, True, True], [False, False, False]])
    logits = model(draw(2, 3), draw(2, 4), is_source)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", [MultiHead, MultiQuery, GroupedQuery, partial(MultiHead, qk_norm=True, window=3)])
def test_decoding_step_by_step_gives_the_same_logits(position, attention):
    model = build(position=position, attention=attention)
    source, target = draw(3, 6), draw(3, 7, seed=1)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    expected = model(source, target, is_source)
    with torch.no_grad():
        state = model.start(source, is_source, capacity=7)
        for place in range(7):
            assert_close(model.step(target[:, place], state), expected[:, place])


def test_selected_rows_go_on_as_if_they_had_been_alone():
    model = build()
    source, target = draw(3, 6), draw(3, 5, seed=1)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    rows = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        state = model.start(source, is_source, capacity=5)
        for place in range(3):
            model.step(target[:, place], state)
        state.select(rows)
        again = model.step(target[rows, 3], state)
    assert_close(again, model(source, target, is_source)[rows, 3])


@pytest.mark.parametrize("sources", [[0, 1, 2], [0, 2]])
def test_the_beams_of_a_source_share_its_memory_and_go_on_as_if_they_had_been_alone(sources):
    model = build()
    source, target = draw(3, 6), draw(3, 5, seed=1)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    rows, again = (torch.tensor(sources).repeat_interleave(2), torch.tensor([1, 0, *range(2, 2 * len(sources))]))
    with torch.no_grad():
        state = model.start(source, is_source, capacity=5)
        model.step(target[:, 0], state)
        state.select(rows, torch.tensor(sources))
        assert len(state.memory.states_BSD) == len(sources)
        others = target[rows] + torch.arange(2).repeat(len(sources))[:, None]  # beams that differ
        others[:, 0] = target[rows, 0]
        model.step(others[:, 1], state)
        state.select(again, torch.arange(len(sources)))
        found = model.step(others[again, 2], state)
    alone = model(source[rows], others[again][:, :3], is_source[rows])[:, -1]
    assert_close(found, alone)


def test_deepnorm_beside_a_decoder_has_the_papers_constants():
    model = build(residual=DeepNorm, num_layers=3, num_decoder_layers=2)
    encoder, decoder = model.encoder.layers[0].residual, model.decoder.layers[0].residual
    both = (3**4 * 2) ** (1 / 16)
    assert (encoder.alpha, encoder.init_gain) == pytest.approx((0.81 * both, 0.87 / both))
    assert (decoder.alpha, decoder.init_gain) == pytest.approx(((3 * 2) ** 0.25, (12 * 2) ** -0.25))


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_is_scaled_and_has_a_bias_where_asked(tied):
    source, target = draw(2, 5), draw(2, 4, seed=1)
    model = build(scale_logits=True, output_bias=True, tie_embeddings=tied)
    with torch.no_grad():
        model.head_bias.normal_()
    states = model.decoder(model.embedding(target) * 4.0, memory=Memory(model.encode(source)))  # 4: the root of 16
    table = model.embedding.weight if tied else model.head.weight
    assert_close(model(source, target), (states / 4.0) @ table.T + model.head_bias)
    assert build().head_bias is None


def test_embedding_norm_stands_in_either_stack():
    model = build(embedding_norm=True, position=PositionEncoding)
    source, target, entered = draw(2, 5), draw(2, 4, seed=1), []
    for stack in (model.encoder, model.decoder):
        stack.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(source, target)
    for stack, tokens, reached in zip((model.encoder, model.decoder), (source, target), entered, strict=True):
        x, norm = model.embedding(tokens) * 4.0, stack.embedding_norm
        centred = x - x.mean(-1, keepdim=True)
        assert_close(reached, centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias)
    assert model.encoder.embedding_norm is not model.decoder.embedding_norm


def test_two_vocabularies_cannot_share_a_table():
    with pytest.raises(ValueError, match="share_embeddings=true needs one vocabulary; the source has 31 tokens"):
        EncoderDecoder(**SMALL, source_vocabulary_size=31)
    model = EncoderDecoder(**SMALL, source_vocabulary_size=31, share_embeddings=False)
    assert model(torch.tensor([[30]]), torch.tensor([[1]])).shape == (1, 1, 23)


def test_recomputed_activations_give_the_same_gradients():
    plain, recomputed = build(), build()
    recomputed.encoder.checkpoint_activations = recomputed.decoder.checkpoint_activations = True
    is_source = torch.tensor([[True, True, True], [True, True, False]])
    for model in (plain, recomputed):
        model(draw(2, 3), draw(2, 4), is_source).square().sum().backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
