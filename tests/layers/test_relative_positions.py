"""Biases of distances against their formulas, computed again in Python floats or as in the papers' listings.

Legend: B batch, T target length, S source length, H heads.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch

from attnlab.layers import (
    FIRE,
    ALiBi,
    KeyValueCache,
    Learned,
    MultiHead,
    Places,
    RelativeBias,
    Rotary,
    SandwichPositions,
    Sinusoidal,
    Stack,
    XPos,
)
from attnlab.models import GPT


@pytest.fixture
def fire():
    torch.manual_seed(0)
    encoding = FIRE(num_heads=3, width=5, c=0.3, threshold=6.0)
    with torch.no_grad():
        encoding.multiplier.fill_(1.5)
    return encoding


def fire_of(encoding, query, key, head):
    """Li et al. 2023, equation 3 and appendix A, by loops."""
    c, threshold = encoding.c.item(), encoding.multiplier.item() * encoding.threshold
    x = math.log(c * abs(query - key) + 1) / math.log(c * max(threshold, query) + 1)
    total = 0.0
    for weight, bias, out in zip(
        encoding.hidden_weight_F, encoding.hidden_bias_F, encoding.output_weight_HF[head], strict=True
    ):
        total += out.item() * max(0.0, weight.item() * x + bias.item())
    return total


def test_fire_is_the_papers_function_of_the_relative_log_distance(fire):
    queries, keys = torch.tensor([[0, 4, 9, 30], [2, 3, 50, 8]]), torch.tensor([[0, 2, 30], [1, 7, 49]])
    bias = fire.bias(queries, keys)
    assert bias.shape == (2, 3, 4, 3)
    for b in range(2):
        for h in range(3):
            for t, query in enumerate(queries[b].tolist()):
                for s, key in enumerate(keys[b].tolist()):
                    assert bias[b, h, t, s].item() == pytest.approx(fire_of(fire, query, key, h), abs=1e-5)


def test_fire_is_interpolated_beyond_its_threshold(fire):
    # The farthest key of every query past L has the same bias, whatever the length: its share is 1.
    queries = torch.tensor([[20, 100, 5000]])
    farthest = fire.bias(queries, torch.tensor([[0]]))[0, :, :, 0]
    torch.testing.assert_close(farthest, farthest[:, :1].expand(3, 3), rtol=1e-4, atol=1e-5)


def test_fire_tells_large_positions_apart_in_bfloat16(fire):
    expected = fire.bias(torch.tensor([[3000]]), torch.tensor([[2999, 2998, 2997]]))
    half = fire.bfloat16().bias(torch.tensor([[3000]]), torch.tensor([[2999, 2998, 2997]]))
    assert half.dtype == torch.float32
    assert half[0, 0, 0].unique().numel() == 3
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert fire.bias(torch.tensor([[3000]]), torch.tensor([[2999]])).dtype == torch.float32


def test_fire_gradients_are_those_of_finite_differences(fire):
    fire.double()
    queries, keys = torch.tensor([[0, 4, 9, 30]]), torch.tensor([[0, 2, 7]])
    parameters = dict(fire.named_parameters())

    def of(*values):
        return torch.func.functional_call(
            FIREBias(fire), {f"fire.{n}": v for n, v in zip(parameters, values, strict=True)}, (queries, keys)
        )

    assert torch.autograd.gradcheck(of, tuple(parameter.detach().requires_grad_() for parameter in parameters.values()))


class FIREBias(torch.nn.Module):
    def __init__(self, fire):
        super().__init__()
        self.fire = fire

    def forward(self, queries, keys):
        return self.fire.bias(queries, keys)


def test_the_start_of_fire_stays_when_a_models_weights_are_drawn():
    torch.manual_seed(0)
    position = GPT(11, 8, d_model=16, num_heads=2, num_layers=1, position=FIRE).stack.position
    assert position.hidden_weight_F.std() > 0.3  # torch's start of a layer with one input, uniform from -1 to 1
    assert position.hidden_bias_F.std() > 0.3


def sandwich_of_the_paper(heads, length, bar_d):
    """The listing of Chi et al. 2023, appendix: (H, T, S)."""
    positions, i = np.arange(length)[..., None], np.arange(bar_d // 2)
    angles = positions / 1e4 ** (2 * i / bar_d)
    embeddings = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    compression = np.arange(1, heads + 1) * 8 / heads
    return (embeddings @ embeddings.T)[None] / compression[:, None, None]


@pytest.mark.parametrize(("heads", "bar_d"), [(12, 128), (4, 16)])
def test_sandwich_is_the_papers_up_to_a_constant_of_each_head(heads, bar_d):
    positions = torch.arange(60)[None]
    bias = SandwichPositions(heads, width=bar_d).bias(positions, positions)[0].double()
    expected = torch.tensor(sandwich_of_the_paper(heads, 60, bar_d))
    torch.testing.assert_close(bias - bias[:, :1, :1], expected - expected[:, :1, :1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias.softmax(dim=-1), expected.softmax(dim=-1), atol=1e-5, rtol=1e-4)
    assert bias[:, 0, 0].equal(torch.zeros(heads).double())


def test_sandwich_of_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width must be even"):
        SandwichPositions(4, width=7)


# --- positions drawn in training

STACK = {"d_model": 16, "num_heads": 2, "num_layers": 2}


def random_stack(position, **fields):
    torch.manual_seed(0)
    return Stack({**STACK, "position": position, "random_positions": 40, **fields}, causal=True, max_length=40)


@pytest.mark.parametrize("position", [Sinusoidal, Learned, Rotary, ALiBi, RelativeBias, FIRE, XPos])
def test_positions_in_training_are_drawn_in_order_and_plain_ones_in_evaluation(position):
    stack, x = random_stack(position), torch.randn(3, 8, 16)
    plain = Stack({**STACK, "position": position}, causal=True, max_length=40)
    plain.load_state_dict(stack.state_dict())
    torch.manual_seed(5)
    drawn = torch.randperm(40)[:8].sort().values[None]
    torch.manual_seed(5)
    out = stack.train()(x)
    torch.testing.assert_close(out, plain(x, positions_BT=drawn), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, stack(x), atol=1e-4)  # others in each pass
    torch.testing.assert_close(stack.eval()(x), plain(x), rtol=1e-4, atol=1e-5)


def test_drawn_positions_are_those_of_tokens_and_masks_those_of_rows():
    stack = random_stack(Rotary, attention=partial(MultiHead, window=2)).train()
    x = torch.randn(2, 8, 16)
    is_token = torch.arange(8) >= torch.tensor([0, 3])[:, None]  # padding on the left
    torch.manual_seed(5)
    padded = stack(x, is_token_BT=is_token)
    torch.manual_seed(5)
    drawn = torch.randperm(40)[:8].sort().values
    expected = Stack({**STACK, "position": Rotary, "attention": partial(MultiHead, window=2)}, causal=True)
    expected.load_state_dict(stack.state_dict())
    # Neighbours stay neighbours within the window of two, however far apart they are drawn.
    torch.testing.assert_close(padded[1, 3:], _rotated_at(expected, x[1:, 3:], drawn[:5]), rtol=1e-4, atol=1e-5)


def _rotated_at(stack, x, table):
    """The stack's output where rotary alone is told the positions in a table."""
    original = stack.position.rotation
    stack.position.rotation = lambda positions: original(table[positions])
    try:
        return stack(x)[0]
    finally:
        del stack.position.rotation


def test_positions_in_evaluation_stand_a_step_apart_with_a_cache_too():
    stack, x = random_stack(Rotary, position_step=5).eval(), torch.randn(2, 8, 16)
    plain = Stack({**STACK, "position": Rotary}, causal=True)
    plain.load_state_dict(stack.state_dict())
    expected = plain(x, positions_BT=5 * torch.arange(8)[None])
    torch.testing.assert_close(stack(x), expected, rtol=1e-4, atol=1e-5)
    cache = KeyValueCache(2, 8)
    with torch.no_grad():
        pieces = [stack(piece, cache=cache) for piece in x.split([3, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_drawn_positions_are_uniform_subsets():
    torch.manual_seed(0)
    counts = torch.zeros(6)
    for _ in range(3000):
        table = Places.drawn(6, 2, torch.device("cpu")).table_L
        assert table[0] < table[1]
        counts[table] += 1
    torch.testing.assert_close(counts / 3000, torch.full((6,), 1 / 3), atol=0.04, rtol=0)  # 0.04 is over 4 sigma


def test_drawn_positions_are_the_same_in_a_recomputed_layer():
    grads = []
    for recomputes in (False, True):
        stack = random_stack(Rotary).train()
        stack.checkpoint_activations = recomputes
        torch.manual_seed(3)
        x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
        (stack(x) ** 3).sum().backward()
        grads.append(stack.layers[0].attention.query.weight.grad)
    assert grads[0].equal(grads[1])


def test_random_positions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="random_positions=40 are more than the 16 that Learned serves"):
        Stack({**STACK, "position": Learned, "random_positions": 40}, causal=True, max_length=16)
    with pytest.raises(ValueError, match="position_step=2 is of random_positions, and there are none"):
        Stack({**STACK, "position_step": 2}, causal=True)
    with pytest.raises(ValueError, match="random_positions=40 are of a text"):
        Stack({**STACK, "random_positions": 40}, causal=False, grid=(2, 2))
    with pytest.raises(ValueError, match="random_positions=4 are fewer than the 8 tokens of a row"):
        random_stack(Learned, random_positions=4).train()(torch.randn(1, 8, 16))
    with pytest.raises(ValueError, match="Learned ends at 40 positions"):
        random_stack(Learned, position_step=6).eval()(torch.randn(1, 8, 16))
