"""Residuals of a wider stream against their papers' algorithms, by loops.

Legend: B batch, T length, D model width, N streams.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from attnlab.layers import (
    EmbeddingResidual,
    HyperConnections,
    PreNorm,
    RMSNorm,
    Stack,
    StaticHyperConnections,
)
from attnlab.models import GPT
from attnlab.tasks import CausalLanguageModelling
from attnlab.training.diagnostics import look

D = 6
FIELDS = {"d_model": 8, "num_heads": 2, "num_layers": 3}
WIDE = [EmbeddingResidual, StaticHyperConnections, HyperConnections]


def attention(h):
    return torch.sin(3 * h) + 0.5


def feed_forward(h):
    return h.flip(-1) ** 2


def norm(h):
    return F.layer_norm(h, (D,))


@pytest.fixture
def x():
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0))


def disturbed(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norms" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def test_the_embedding_is_mixed_into_every_layer(x):
    first, second = (disturbed(EmbeddingResidual(D)) for _ in range(2))
    out = second.leave(second(first(first.enter(x), attention, feed_forward), attention, feed_forward))
    y = x
    for layer in (first, second):
        y = layer.of_stream.item() * y + layer.of_embedding.item() * x
        y = y + attention(norm(y))
        y = y + feed_forward(norm(y))
    torch.testing.assert_close(out, y)
    assert [(p.item()) for p in EmbeddingResidual(D, start=0.25).parameters() if p.ndim == 0] == [1.0, 0.25]


def hyper_connected(residual, h, index, sublayer, dynamic):
    """One sublayer on the streams (B, T, N, D) by the loops of Zhu et al. 2024, equations 2 to 13."""
    n = h.shape[2]
    out = torch.empty_like(h)
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            static = residual.weights[index].view(n, n + 2)
            read, mixing, write = static[:, 0].clone(), static[:, 1 : n + 1].clone(), static[:, n + 1].clone()
            if dynamic:
                for i in range(n):
                    normed = norm(h[b, t, i])
                    for j in range(n + 2):
                        weight = torch.tanh(sum(normed[d] * residual.dynamic[index][d, j] for d in range(D)))
                        if j == 0:
                            read[i] += residual.mixing_scales[index] * weight
                        elif j <= n:
                            mixing[i, j - 1] += residual.mixing_scales[index] * weight
                        else:
                            write[i] += residual.output_scales[index] * weight
            entered = sum(read[i] * h[b, t, i] for i in range(n))
            left = sublayer(norm(entered))
            for j in range(n):
                out[b, t, j] = write[j] * left + sum(mixing[i, j] * h[b, t, i] for i in range(n))
    return out


@pytest.mark.parametrize("cls", [StaticHyperConnections, HyperConnections])
@pytest.mark.parametrize("num_streams", [1, 3])
def test_hyper_connections_are_the_papers_algorithm(x, cls, num_streams):
    residual = disturbed(cls(D, num_streams=num_streams, layer_index=1))
    expected = torch.stack([x] * num_streams, dim=2)
    for index, sublayer in enumerate((attention, feed_forward)):
        expected = hyper_connected(residual, expected, index, sublayer, cls is HyperConnections)
    streams = residual(residual.enter(x), attention, feed_forward)
    torch.testing.assert_close(streams, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(residual.leave(streams), expected.sum(dim=2), rtol=1e-4, atol=1e-5)


def test_hyper_connections_are_pre_ln_at_first():
    # Zhu et al. 2024, section 2.3: what is initialised by equation 14 is the Pre-LN residual.
    for cls in (StaticHyperConnections, HyperConnections):
        torch.manual_seed(0)
        plain = Stack({**FIELDS, "residual": partial(PreNorm, norm=RMSNorm)}, causal=True)
        stack = Stack({**FIELDS, "residual": partial(cls, norm=RMSNorm)}, causal=True)
        stack.load_state_dict(plain.state_dict(), strict=False)
        x = torch.randn(2, 5, 8)
        torch.testing.assert_close(stack(x), plain(x), rtol=1e-4, atol=1e-4)
        reads = [
            weights.view(4, 6)[:, 0].argmax().item() for layer in stack.layers for weights in layer.residual.weights
        ]
        assert reads == [0, 1, 2, 3, 0, 1]


def test_hyper_connections_have_as_many_weights_as_the_paper_says():
    # Zhu et al. 2024, table 7: OLMo 1B (16 layers, width 2,048) with four streams has 768 (SHC) and 394,048 (DHC) more.
    for cls, published in ((StaticHyperConnections, 768), (HyperConnections, 394_048)):
        residual = cls(2048, num_streams=4)
        own = sum(p.numel() for name, p in residual.named_parameters() if "norms" not in name)
        assert 16 * own == published


def test_static_weights_have_no_decay_and_dynamic_ones_have():
    residual = HyperConnections(D)
    assert all(weight.ndim == 1 for weight in residual.weights)
    assert all(weight.ndim == 2 for weight in residual.dynamic)


@pytest.mark.parametrize("cls", WIDE)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_give_the_same_gradients(cls, dropout):
    gradients = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        stack = disturbed(
            Stack({**FIELDS, "residual": partial(cls, stochastic_depth=dropout), "dropout": dropout}, causal=True)
        )
        stack.checkpoint_activations = recomputes
        torch.manual_seed(2)
        (stack(torch.randn(4, 5, 8)) ** 3).sum().backward()
        gradients.append([parameter.grad for parameter in stack.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=0)


@pytest.mark.parametrize("cls", WIDE)
def test_streams_stay_in_fp32_under_autocast(cls):
    torch.manual_seed(0)
    stack, kept = Stack({**FIELDS, "residual": cls}, causal=True), []
    for layer in stack.layers:
        layer.register_forward_hook(lambda layer, args, stream: kept.append(stream))
    x = torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = stack(x)
    for stream in kept:
        assert (stream[0] if isinstance(stream, tuple) else stream).dtype == torch.float32
    torch.testing.assert_close(out.float(), stack(x), rtol=0.1, atol=0.1)


def test_streams_of_other_numbers_do_not_go_in_one_stack():
    layers = {"a": {"residual": partial(HyperConnections, num_streams=2)}, "b": {"residual": HyperConnections}}
    with pytest.raises(ValueError, match="need different streams"):
        Stack({**FIELDS, "pattern": ["a", "b"], "layers": layers}, causal=True)
    layers["b"] = {"residual": partial(StaticHyperConnections, num_streams=2)}  # the same streams
    Stack({**FIELDS, "pattern": ["a", "b"], "layers": layers}, causal=True)(torch.randn(1, 4, 8))
    layers["b"] = {"residual": PreNorm}
    with pytest.raises(ValueError, match="need different streams"):
        Stack({**FIELDS, "pattern": ["a", "b"], "layers": layers}, causal=True)


@pytest.mark.parametrize("cls", WIDE)
def test_diagnostics_look_at_what_leaves_the_layers(cls):
    torch.manual_seed(0)
    task = CausalLanguageModelling(GPT(11, 8, **FIELDS, residual=cls))
    tokens = torch.randint(0, 11, (2, 8))
    values = look(task, {"tokens": tokens, "targets": tokens})
    kept = []
    for layer in task.model.stack.layers:
        layer.register_forward_hook(lambda layer, args, stream: kept.append(layer.residual.leave(stream)))
    task.model.eval()(tokens)
    for index, stream in enumerate(kept):
        assert values[f"stream_rms/layer={index}"] == pytest.approx(stream.square().mean().sqrt().item(), rel=1e-5)
