"""nGPT against the paper's equations, computed again in plain tensors.

Legend: B batch, T length, D model width, H heads, K head width, V vocabulary.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from attnlab.layers import ALiBi, MultiHead, PositionEncoding, PreNorm, Rotary
from attnlab.models import GPT, NGPT
from attnlab.training import Optimization, adamw, muon

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 3}
TOKENS = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    """With scales that are off their start."""
    torch.manual_seed(0)
    made = NGPT(11, 16, **SIZES).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return made


def unit(x, dim=-1):
    return x / x.norm(dim=dim, keepdim=True)


def forward(model, tokens):
    """The layers of Loshchilov et al. 2024, with each scale s kept as s * kept / start."""
    weights = dict(model.named_parameters())
    d, heads = 16, 2
    h = unit(weights["embedding.weight"][tokens])
    batch, length = tokens.shape
    rotary, positions = Rotary(d // heads), torch.arange(length)[None]
    for index in range(3):
        of = {name.split(f"layers.{index}.")[1]: w for name, w in weights.items() if f"layers.{index}." in name}

        def split(name, h=h, of=of):
            return (h @ of[f"attention.{name}.weight"].T).view(batch, length, heads, -1).transpose(1, 2)

        s_qk = (of["attention.query_key_scale.weight"] * 1.0 / d**-0.5).view(heads, 1, -1)
        q, k = (s_qk * unit(rotary.rotate(split(name), positions)) for name in ("query", "key"))
        scores = q @ k.transpose(-2, -1) * (d // heads) ** 0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(dim=-1) @ split("value")).transpose(1, 2).reshape(batch, length, d)
        attended = unit(mixed @ of["attention.output.weight"].T)
        alpha = (of["residual.rates.0.weight"] * 0.05 / d**-0.5).abs()
        h = unit(h + alpha * (attended - h))
        u = (h @ of["feed_forward.up.weight"].T) * of["feed_forward.up_scale.weight"]
        v = (h @ of["feed_forward.gate.weight"].T) * of["feed_forward.gate_scale.weight"] * d**0.5
        fed = unit((u * F.silu(v)) @ of["feed_forward.down.weight"].T)
        alpha = (of["residual.rates.1.weight"] * 0.05 / d**-0.5).abs()
        h = unit(h + alpha * (fed - h))
    return h @ weights["head.weight"].T * weights["logit_scale.weight"] * 1.0 / d**-0.5


def test_ngpt_is_the_papers_equations(model):
    torch.testing.assert_close(model(TOKENS), forward(model, TOKENS), rtol=1e-4, atol=1e-5)


def assert_of_length_1(model):
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            # What writes to the stream has its columns in the stream's space, the rest its rows.
            dim = 0 if name.endswith(("output.weight", "down.weight")) else 1
            lengths = weight.norm(dim=dim)
            torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-5, atol=1e-5)
            assert weight.shape[dim] == 16, name


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_matrices_have_length_1_at_first_and_after_every_step(optimizer):
    torch.manual_seed(0)
    model = NGPT(11, 16, **SIZES)
    assert_of_length_1(model)
    optimization = Optimization(partial(optimizer, lr=0.05))
    stepping, losses = optimization.start(model, 30), []
    for step in range(30):
        optimization.set_rates(stepping, step)
        stepping.zero_grad()
        loss = F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        loss.backward()
        stepping.step()
        losses.append(loss.item())
        if step in (0, 1, 29):
            assert_of_length_1(model)
    assert losses[-1] < 0.5 * losses[0]


def test_states_have_length_1(model):
    kept = []
    for layer in model.stack.layers:
        layer.register_forward_hook(lambda layer, args, stream: kept.append(stream))
    model(TOKENS)
    for stream in kept:
        torch.testing.assert_close(stream.norm(dim=-1), torch.ones(2, 7))


def test_scales_start_as_in_the_paper():
    model = NGPT(11, 16, **SIZES)
    layer = model.stack.layers[0]
    starts = {
        0.05: layer.residual.rates[1], 1.0: layer.attention.query_key_scale, 4.0: layer.feed_forward.gate_scale,
    }  # fmt: skip
    for start, scale in starts.items():
        torch.testing.assert_close(scale(), torch.full_like(scale.weight, start))
    torch.testing.assert_close(model.logit_scale(), torch.ones(11))
    torch.testing.assert_close(model.logit_scale.weight, torch.full((11,), 0.25))  # 1 / sqrt(d_model)


@pytest.mark.parametrize("position", [Rotary, ALiBi, PositionEncoding])
def test_decoding_with_a_cache_is_decoding_at_once(position):
    torch.manual_seed(0)
    model = NGPT(11, 16, **SIZES, position=position).eval()
    cache = model.new_cache(7)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in TOKENS.split([3, 1, 3], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(TOKENS), rtol=1e-4, atol=1e-5)


def test_later_tokens_and_padding_change_nothing(model):
    changed = TOKENS.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :4], model(TOKENS)[:, :4], rtol=1e-4, atol=1e-5)
    is_token = torch.arange(7) >= torch.tensor([0, 3])[:, None]
    alone = model(TOKENS[1:, 3:])
    torch.testing.assert_close(model(TOKENS, is_token)[1:, 3:], alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_and_bfloat16_is_near(model):
    F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    expected = model(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(TOKENS).float() - expected).std() < 0.05 * expected.std()
    half = model.bfloat16()(TOKENS)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize(
    "fields",
    [
        {"residual": PreNorm}, {"attention": MultiHead}, {"bias": True}, {"tie_embeddings": True},
        {"embedding_norm": True}, {"pattern": ["a"], "layers": {"a": {}}},
    ],
)  # fmt: skip
def test_what_is_not_ngpts_is_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must be"):
        NGPT(11, 16, **SIZES, **fields)


def test_a_gpt_is_left_as_it_is_by_a_step():
    model = GPT(11, 16, **SIZES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.after_step()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
