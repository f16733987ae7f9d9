import math
from functools import partial

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from attnlab.layers import (
    ALiBi,
    DeepNorm,
    FanIn,
    GPT2Init,
    GroupedQuery,
    Learned,
    Normal002,
    PreNorm,
    PyTorchInit,
    RelativeBias,
    Rotary,
    Small,
    SwiGLU,
    Xavier,
)
from attnlab.layers.baselines import GatedConvolution
from attnlab.models import GPT

D, F, V, N = 128, 384, 500, 3


def build(init, seed=0, **parts):
    torch.manual_seed(seed)
    return GPT(V, 64, d_model=D, num_heads=4, num_layers=N, d_ff=F, init=init, tie_embeddings=False, **parts)


def std(weight):
    return weight.std().item()


def table(init):
    """The published deviations: of a (D, D) matrix, of up (F, D), of down (D, F), of the embedding, of the attention's output."""
    small = math.sqrt(2 / (5 * D))
    return {
        Xavier: (math.sqrt(2 / (2 * D)), math.sqrt(2 / (D + F)), math.sqrt(2 / (D + F)), D**-0.5, D**-0.5),
        Normal002: (0.02,) * 5,
        GPT2Init: (0.02, 0.02, 0.02 / math.sqrt(2 * N), 0.02, 0.02 / math.sqrt(2 * N)),
        Small: (small,) * 5,
        FanIn: (D**-0.5, D**-0.5, F**-0.5, 0.1, D**-0.5),
        PyTorchInit: ((3 * D) ** -0.5, (3 * D) ** -0.5, (3 * F) ** -0.5, 1.0, (3 * D) ** -0.5),
    }[init]


@pytest.mark.parametrize("init", [Xavier, Normal002, GPT2Init, Small, FanIn, PyTorchInit])
def test_built_weights_have_the_published_deviations(init):
    model = build(init, position=Learned)
    square, up, down, embedding, output = table(init)
    layers = model.stack.layers
    assert len(layers) == N
    for layer in layers:
        for linear in (layer.attention.query, layer.attention.key, layer.attention.value):
            assert std(linear.weight) == pytest.approx(square, rel=0.03)
        assert std(layer.attention.output.weight) == pytest.approx(output, rel=0.03)
        assert std(layer.feed_forward.up.weight) == pytest.approx(up, rel=0.03)
        assert std(layer.feed_forward.down.weight) == pytest.approx(down, rel=0.03)
    assert std(model.embedding.weight) == pytest.approx(embedding, rel=0.03)
    assert std(model.stack.position.table.weight) == pytest.approx(embedding, rel=0.03)


def test_xavier_is_uniform():
    weight = build(Xavier).stack.layers[0].attention.query.weight
    bound = math.sqrt(6 / (2 * D))
    assert 0.99 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("init", [Xavier, Normal002, GPT2Init, Small, FanIn, PyTorchInit])
def test_deepnorm_gain_scales_what_the_paper_names(init):
    plain, deep = build(init, feed_forward=SwiGLU), build(init, feed_forward=SwiGLU, residual=DeepNorm)
    beta = (8 * N) ** -0.25
    for name, weight in deep.named_parameters():
        if weight.ndim == 2:
            scaled = any(part in name for part in (".value.", ".output.", ".up.", ".gate.", ".down."))
            torch.testing.assert_close(weight, plain.get_parameter(name) * (beta if scaled else 1.0))


def test_biases_start_at_zero_and_norms_at_one():
    model = build(GPT2Init, bias=True)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0))


def test_bias_on_the_scores_keeps_its_own_start():
    assert std(build(Xavier, position=RelativeBias).stack.position.table.weight) == pytest.approx(0.02, rel=0.3)


def test_models_that_differ_in_a_part_share_all_other_weights():
    first = dict(build(GPT2Init, position=ALiBi).named_parameters())
    second = dict(build(GPT2Init, position=Learned, attention=GroupedQuery).named_parameters())
    same = {name for name in first if torch.equal(first[name].flatten()[:8], second[name].flatten()[:8])}
    assert same == set(first)
    assert set(second) - set(first) == {"stack.position.table.weight"}
    for name in first:
        if first[name].shape == second[name].shape:
            assert torch.equal(first[name], second[name]), name


def test_a_seed_decides_the_weights():
    first, again, other = build(GPT2Init), build(GPT2Init), build(GPT2Init, seed=1)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        assert weight.ndim == 1 or not torch.equal(weight, other.get_parameter(name))
    assert not torch.equal(GPT(V, 64).embedding.weight, GPT(V, 64).embedding.weight)


def test_weights_of_one_model_and_of_neighbouring_seeds_are_uncorrelated():
    models = [build(Normal002, seed) for seed in (0, 1)]
    drawn = [
        w.detach().flatten()[: D * D] for m in models for w in m.parameters() if w.ndim == 2 and w.numel() >= D * D
    ]
    correlation = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / D  # five standard errors


def test_a_tied_matrix_of_any_module_is_drawn_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(100, 50), nn.Linear(50, 100, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    Xavier()(model, seed=0)
    assert std(model.head.weight) == pytest.approx(50**-0.5, rel=0.05)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_every_gate_of_a_recurrent_layer_is_a_matrix_of_its_own(kind, gates):
    layer = kind(64, 128)
    Xavier()(layer, seed=0)
    matrices = {name: weight.chunk(gates) for name, weight in layer.named_parameters() if weight.ndim == 2}
    assert len(matrices) == 2
    for name, parts in matrices.items():
        columns = 64 if "_ih" in name else 128
        for part in parts:
            assert std(part) == pytest.approx(math.sqrt(2 / (128 + columns)), rel=0.03)
        assert not torch.equal(parts[0], parts[1])
    for name, bias in layer.named_parameters():
        if bias.ndim == 1:
            forget = 1.0 if gates == 4 and "_ih" in name else 0.0
            starts = [0.0, forget, 0.0, 0.0][:gates]
            assert torch.equal(bias, torch.tensor(starts).repeat_interleave(128))


def test_torchs_weights_are_distributed_as_its_layers_draw_them():
    torch.manual_seed(0)
    own = nn.ModuleList([nn.Embedding(200, D), nn.Linear(D, F, bias=False)])
    drawn = nn.ModuleList([nn.Embedding(200, D), nn.Linear(D, F, bias=False)])
    PyTorchInit()(drawn, seed=1)
    for here, there in zip(drawn, own, strict=True):
        assert ks_2samp(here.weight.detach().flatten(), there.weight.detach().flatten()).pvalue > 0.001


def test_what_a_gate_halves_starts_twice_as_large_by_the_fan_in():
    layer = GatedConvolution(D, 3, causal=True)
    FanIn()(nn.ModuleList([layer]), seed=0)
    assert std(layer.windows.weight) == pytest.approx(math.sqrt(4 / (3 * D)), rel=0.03)


def test_an_init_without_memory_draws_nothing(monkeypatch):
    monkeypatch.setattr(GPT2Init, "fill", None)
    with torch.device("meta"):
        model = GPT(V, 64, residual=partial(PreNorm), position=Rotary, init=GPT2Init)
    assert all(p.is_meta for p in model.parameters())
