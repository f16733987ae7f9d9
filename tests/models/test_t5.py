"""T5 and its architectures: the sizes of the paper, what is shared, who sees whom, decoding."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.generation import BeamSearch, decode
from attnlab.layers import (
    GEGLU,
    ALiBi,
    DeepNorm,
    DynamicTanh,
    GroupedQuery,
    LayerNorm,
    Learned,
    Memory,
    MultiHead,
    Parallel,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReLU,
    ReZero,
    RMSNorm,
    Rotary,
    Sandwich,
    Sinusoidal,
)
from attnlab.models import T5, T5LanguageModel

SMALL = {"vocabulary_size": 23, "max_length": 12, "d_model": 16, "num_heads": 4, "num_layers": 2, "dropout": 0.0}
ARCHITECTURES = {
    "encoder_decoder": T5,
    "shared": partial(T5, share_layers=True),
    "language_model": partial(T5LanguageModel, prefix=False),
    "prefix": partial(T5LanguageModel, prefix=True),
}
POSITIONS = [PositionEncoding, Sinusoidal, Learned, Rotary, ALiBi, RelativeBias]
RESIDUALS = [PostNorm, PreNorm, Sandwich, DeepNorm, ReZero, Parallel]


def build(name, seed=0, **fields):
    """A small model whose weights make a wrong mask or position show."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name](**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randint(3, SMALL["vocabulary_size"], shape, generator=torch.Generator().manual_seed(seed))


def real(*lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        # The published checkpoints t5-base and google/t5-v1_1-base.
        ({"d_ff": 3072, "feed_forward": ReLU, "tie_embeddings": True}, 222_903_552),
        ({"d_ff": 2048, "feed_forward": partial(GEGLU, matched=False), "tie_embeddings": False}, 247_577_856),
    ],
)
def test_sizes_of_the_published_models(fields, parameters):
    with torch.device("meta"):
        model = T5(32128, d_model=768, num_heads=12, num_layers=12, **fields)
    assert size(model) == parameters


def test_no_parameter_is_a_bias_and_every_stack_has_one_table_of_distances():
    model = T5(**SMALL)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if name.endswith("bias")]
    assert [name for name in names if "position" in name] == [
        "encoder.position.table.weight",
        "decoder.position.table.weight",
    ]


@pytest.mark.parametrize(("scale_embedding", "entering"), [(True, 4.0), (False, 1.0)])  # 4: the root of 16
def test_embeddings_are_scaled_where_asked(scale_embedding, entering):
    model = build("encoder_decoder", scale_embedding=scale_embedding)
    source, target, entered = draw(2, 5), draw(2, 4, seed=1), []
    for stack in (model.encoder, model.decoder):
        stack.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(source, target)
    for tokens, reached in zip((source, target), entered, strict=True):
        assert_close(reached, model.embedding(tokens) * entering)


def test_a_tied_output_scaled_at_the_end_is_one_of_embeddings_scaled_at_the_start():
    # T5's first version, and the default here, with embeddings that are smaller by the root of the width.
    there = build("encoder_decoder", scale_embedding=False, scale_logits=True, tie_embeddings=True)
    here = build("encoder_decoder", tie_embeddings=True)
    here.load_state_dict(there.state_dict())
    with torch.no_grad():
        here.embedding.weight /= 4.0
    source, target = draw(2, 5), draw(2, 4, seed=1)
    assert_close(here(source, target), there(source, target))


def test_sizes_relate_as_in_table_2():
    sizes = {}
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):
            model = architecture(32000, d_model=64, num_heads=4, num_layers=12, feed_forward=ReLU, tie_embeddings=True)
        sizes[name] = size(model) - model.embedding.weight.numel()
    cross_attention = 12 * 4 * 64 * 64
    one = sizes["language_model"]
    assert sizes["prefix"] == one
    assert sizes["encoder_decoder"] == pytest.approx(2 * one + cross_attention, rel=0.01)
    assert sizes["shared"] == pytest.approx(one + cross_attention, rel=0.01)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_shared_layers_are_the_same_parameters(residual):
    model = T5(**SMALL, share_layers=True, residual=residual)
    for ours, theirs in zip(model.encoder.layers, model.decoder.layers, strict=True):
        assert ours.attention is theirs.attention
        assert ours.feed_forward is theirs.feed_forward
        assert theirs.cross_attention is not None
        if residual in (PostNorm, PreNorm, Sandwich, DeepNorm):
            assert ours.residual.norms[0] is theirs.residual.norms[0]
            assert ours.residual.norms[1] is theirs.residual.norms[2]
    assert model(draw(2, 3), draw(2, 4)).isfinite().all()


def test_a_shared_model_keeps_what_it_learns_when_saved():
    model, other = build("shared", 0), build("shared", 1)
    other.load_state_dict(model.state_dict())
    source, target = draw(2, 5), draw(2, 4, seed=1)
    assert other(source, target).equal(model(source, target))


def test_the_scaled_embedding_is_t5s():
    # T5: embeddings of deviation 1 at the input, a tied output over sqrt(d_model).
    torch.manual_seed(0)
    model = T5(**{**SMALL, "vocabulary_size": 4000, "d_model": 64}, tie_embeddings=True)
    x_BTD = model.embed(torch.arange(4000)[None]).detach()
    assert float(x_BTD.std()) == pytest.approx(1.0, abs=0.02)
    states = torch.randn(2, 3, 64)
    assert_close(model._output(states), states @ x_BTD[0].T / 8)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_of_the_source_changes_nothing(name, position, residual, lengths, seed):
    model = build(name, seed, position=position, residual=residual).double()  # no rounding that a layer may blow up
    target = draw(len(lengths), 4, seed=seed)
    source, is_source = draw(len(lengths), max(lengths) + 2, seed=seed + 1), real(*lengths)
    is_source = torch.cat([is_source, torch.zeros(len(lengths), 2, dtype=torch.bool)], dim=1)
    together = model(source, target, is_source)
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1], model(source[row : row + 1, :length], target[row : row + 1]))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["encoder_decoder", "shared"]),
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    is_real=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_cross_attention_sees_the_real_states_alone(name, position, residual, is_real, seed):
    model, is_source = build(name, seed, position=position, residual=residual), torch.tensor(is_real)
    draws = torch.Generator().manual_seed(seed)
    states, other = (torch.randn(2, 6, 16, generator=draws) for _ in range(2))
    x = torch.randn(2, 4, 16, generator=draws)
    outputs = [
        model.decoder(x, memory=Memory(kept, is_source))
        for kept in (states, states.where(is_source[..., None], other * 100))
    ]
    assert_close(*outputs)
    seen = model.decoder(x, memory=Memory(states.where(~is_source[..., None], other), is_source))
    for row in range(2):
        assert torch.allclose(seen[row], outputs[0][row], atol=1e-4) != bool(is_source[row].any())


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    position=st.sampled_from(POSITIONS),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_what_stands_in_padding_is_never_seen(name, position, lengths, seed):
    model, is_source = build(name, seed, position=position), real(*lengths)
    source, target = draw(len(lengths), max(lengths), seed=seed), draw(len(lengths), 4, seed=seed + 1)
    changed = source.where(is_source, (source + 1) % SMALL["vocabulary_size"])
    assert_close(model(changed, target, is_source), model(source, target, is_source))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    position=st.sampled_from(POSITIONS),
    place=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_no_target_sees_what_follows(name, position, place, seed):
    model = build(name, seed, position=position)
    source, target = draw(2, 5, seed=seed), draw(2, 6, seed=seed + 1)
    changed = target.clone()
    changed[:, place:] = (changed[:, place:] + 1) % SMALL["vocabulary_size"]
    assert_close(model(source, changed)[:, :place], model(source, target)[:, :place])


@pytest.mark.parametrize("prefix", [True, False])
def test_who_sees_whom_in_one_stream(prefix):
    model = build("prefix" if prefix else "language_model", position=PositionEncoding)
    x_BUD = torch.randn(1, 7, 16, requires_grad=True)
    out_BUD = model.stack(x_BUD, prefix_B1=torch.tensor([[4]]) if prefix else None)
    for query in range(7):
        (gradient,) = torch.autograd.grad(out_BUD[0, query].square().sum(), x_BUD, retain_graph=True)
        seen = (gradient[0].abs().sum(dim=-1) > 1e-7).tolist()
        assert seen == [key <= query or (prefix and key < 4) for key in range(7)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", [MultiHead, GroupedQuery, partial(MultiHead, qk_norm=True, window=3)])
def test_decoding_step_by_step_gives_the_same_logits(name, position, attention):
    model = build(name, position=position, attention=attention)
    source, target = draw(3, 6), draw(3, 7, seed=1)
    for is_source in (real(6, 3, 1), None):
        expected = model(source, target, is_source)
        with torch.no_grad():
            state = model.start(source, is_source, capacity=7)
            for place in range(7):
                assert_close(model.step(target[:, place], state), expected[:, place])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_selected_rows_go_on_as_if_they_had_been_alone(name):
    model = build(name)
    source, target, is_source = draw(3, 6), draw(3, 5, seed=1), real(6, 3, 1)
    rows = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        state = model.start(source, is_source, capacity=5)
        for place in range(3):
            model.step(target[:, place], state)
        state.select(rows)
        again = model.step(target[rows, 3], state)
    assert_close(again, model(source, target, is_source)[rows, 3])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_beam_search_is_the_same_with_and_without_a_cache(name):
    model, source, is_source = build(name), draw(3, 5), real(5, 2, 3)
    search = BeamSearch(num_beams=3, max_extra_length=4, num_best=2)
    cached, computed = (decode(model, source, is_source, search, use_cache=use) for use in (True, False))
    assert [[h.tokens for h in row] for row in cached] == [[h.tokens for h in row] for row in computed]
    for row, length in enumerate((5, 2, 3)):
        (alone,) = decode(model, source[row : row + 1, :length], None, search)
        assert [h.tokens for h in alone] == [h.tokens for h in cached[row]]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm, DynamicTanh])
def test_every_parameter_learns(name, norm):
    model = build(name, residual=partial(PreNorm, norm=norm)).train()
    model(draw(3, 6), draw(3, 5, seed=1), real(6, 3, 4)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_architectures_of_one_seed_start_from_the_same_weights():
    models = {}
    for name, architecture in ARCHITECTURES.items():
        torch.manual_seed(0)
        models[name] = architecture(**SMALL)
    assert (
        models["shared"]
        .encoder.layers[1]
        .attention.query.weight.equal(models["encoder_decoder"].encoder.layers[1].attention.query.weight)
    )
    for name in ("shared", "language_model", "prefix"):
        assert models[name].embedding.weight.equal(models["encoder_decoder"].embedding.weight)


def test_source_and_target_have_a_table_of_positions_each():
    model = build("prefix", position=Learned)
    assert model.longest == 12
    assert model(draw(1, 12), draw(1, 12)).shape == (1, 12, 23)
    with pytest.raises(ValueError, match="a source of 13 tokens; the model's position encoding has 12 for it"):
        model(draw(1, 13), draw(1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: T5(**SMALL, share_layers=True, num_decoder_layers=3),
            "share_layers=true needs one depth: num_layers=2",
        ),
        (lambda: T5LanguageModel(**SMALL, source_vocabulary_size=31), "the source has 31 tokens and the target 23"),
        (lambda: T5LanguageModel(**{**SMALL, "d_model": 0}), "d_model must be .*got 0"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
