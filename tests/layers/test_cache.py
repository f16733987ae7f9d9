"""The cache: decoding with it gives what one full forward gives.

Legend: B batch, T length, D model width, G key/value heads, K head width.
"""

from functools import partial

import pytest
import torch

from attnlab import layers
from attnlab.layers import Attention, KeyValueCache, build_scope
from attnlab.parts import build_part

WIDTHS = {"d_model": 32, "num_heads": 4, "d_head": 8, "max_length": 16, "causal": True}
ENCODINGS = ["PositionEncoding", "Sinusoidal", "Learned", "Rotary", "RotaryYaRN", "ALiBi", "RelativeBias"]
VARIANTS = {
    "plain": Attention,
    "grouped": partial(Attention, num_key_value_heads=2, qk_norm=True),
    "window": partial(Attention, window=4),
    "capped": partial(Attention, soft_cap=2.0, output_gate=True),
}


def build(position_name, variant):
    torch.manual_seed(0)
    position = build_part(getattr(layers, position_name), **WIDTHS)
    return position, [build_part(VARIANTS[variant], **WIDTHS) for _ in range(2)]


@torch.no_grad()
def forward(x_BTD, position, stack, **given):
    scope = build_scope(x_BTD, position, True, **given)
    x_BTD = position.embed(x_BTD, scope.query_positions_BT)
    cache = given.get("cache")
    for index, attention in enumerate(stack):
        x_BTD = x_BTD + attention(x_BTD, scope, None if cache is None else cache.layer(index))
    return x_BTD


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("position_name", ENCODINGS)
def test_pieces_give_what_the_whole_gives(position_name, variant):
    position, stack = build(position_name, variant)
    x_BTD = torch.randn(2, 11, 32)
    cache = KeyValueCache(num_layers=2, capacity=11)
    pieces = [forward(piece, position, stack, cache=cache) for piece in x_BTD.split([4, 1, 1, 3, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), forward(x_BTD, position, stack), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("position_name", ENCODINGS)
def test_left_padded_rows_decode_as_they_do_alone(position_name, variant):
    position, stack = build(position_name, variant)
    x_BTD = torch.randn(2, 9, 32)
    is_token_BT = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    cache = KeyValueCache(num_layers=2, capacity=9)
    pieces = [forward(x_BTD[:, :5], position, stack, is_token_BT=is_token_BT, cache=cache)]
    pieces += [forward(x_BTD[:, t : t + 1], position, stack, cache=cache) for t in range(5, 9)]
    decoded_BTD = torch.cat(pieces, 1)
    torch.testing.assert_close(decoded_BTD[:1, 3:], forward(x_BTD[:1, 3:], position, stack), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded_BTD[1:], forward(x_BTD[1:], position, stack), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("position_name", ["PositionEncoding", "Rotary", "ALiBi", "RelativeBias", "CoPE"])
def test_far_beyond_a_window_decoding_is_full_decoding_and_keeps_a_windows_keys(position_name, window):
    torch.manual_seed(0)
    widths = {**WIDTHS, "max_length": 90}
    position = build_part(getattr(layers, position_name), **widths)
    stack = [build_part(partial(Attention, window=w), **widths) for w in (window, None)]
    x_BTD, cache = torch.randn(2, 90, 32), KeyValueCache(num_layers=2, capacity=90)
    pieces = [forward(piece, position, stack, cache=cache) for piece in x_BTD.split([30, 5, *[1] * 40, 12, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), forward(x_BTD, position, stack), atol=1e-5, rtol=1e-5)
    local, everything = ([buffer.shape[2] for buffer in kept.buffers] for kept in cache._kept)
    assert everything == [90, 90]
    assert max(local) <= 1.25 * window + 8
    assert cache.num_bytes == 2 * (90 + local[0]) * 2 * 32 * 4


@pytest.mark.parametrize("kind", ["Attention", "LatentAttention", "ForgettingAttention", "NormalizedAttention"])
def test_beams_of_padded_rows_move_within_a_window(kind):
    torch.manual_seed(0)
    widths = {**WIDTHS, "max_length": 60} | ({"d_rotary": 8} if kind == "LatentAttention" else {})
    position = layers.Rotary(8) if kind != "ForgettingAttention" else layers.PositionEncoding()
    stack = [build_part(partial(getattr(layers, kind), window=5), **widths) for _ in range(2)]
    x_BTD, cache = torch.randn(3, 60, 32), KeyValueCache(num_layers=2, capacity=60)
    is_token_BT = torch.arange(9) >= torch.tensor([[4], [0], [7]])
    forward(x_BTD[:, :9], position, stack, is_token_BT=is_token_BT, cache=cache)
    starts, generator = torch.tensor([4, 0, 7]), torch.Generator().manual_seed(0)
    for t in range(9, 60):
        if t % 5 == 0:
            rows = torch.randint(3, (3,), generator=generator)
            cache.select(rows)
            x_BTD, starts = x_BTD[rows], starts[rows]
        last_B1D = forward(x_BTD[:, t : t + 1], position, stack, cache=cache)
    for row, start in enumerate(starts):
        alone_BTD = forward(x_BTD[row : row + 1, start:], position, stack)
        torch.testing.assert_close(last_B1D[row], alone_BTD[0, -1:], atol=1e-5, rtol=1e-5)


def test_padding_between_tokens_keeps_what_a_window_reaches_over_it():
    position, stack = build("Rotary", "window")
    x_BTD, cache = torch.randn(2, 50, 32), KeyValueCache(num_layers=2, capacity=50)
    forward(x_BTD[:, :20], position, stack, cache=cache)
    is_token_BT = torch.tensor([[1, 0, 0, 0, 0, 0], [1] * 6], dtype=torch.bool)
    forward(x_BTD[:, 20:26], position, stack, is_token_BT=is_token_BT, cache=cache)
    pieces = [forward(x_BTD[:, t : t + 1], position, stack, cache=cache) for t in range(26, 50)]
    for row, seen in enumerate((torch.cat([x_BTD[0, :21], x_BTD[0, 26:]]), x_BTD[1])):
        alone_BTD = forward(seen[None], position, stack)
        torch.testing.assert_close(torch.cat(pieces, 1)[row], alone_BTD[0, -24:], atol=1e-5, rtol=1e-5)


def test_positions_that_go_back_are_refused_where_a_window_dropped_their_keys():
    position, stack = build("Rotary", "window")
    cache = KeyValueCache(num_layers=2, capacity=40)
    forward(torch.randn(1, 30, 32), position, stack, cache=cache)
    with pytest.raises(ValueError, match="position 12 is not after those that are cached"):
        forward(torch.randn(1, 1, 32), position, stack, cache=cache, positions_BT=torch.tensor([[12]]))


def test_selected_rows_go_on_as_if_they_had_been_alone():
    position, stack = build("Rotary", "plain")
    x_BTD = torch.randn(3, 6, 32)
    is_token_BT = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    cache = KeyValueCache(num_layers=2, capacity=6)
    forward(x_BTD[:, :3], position, stack, is_token_BT=is_token_BT, cache=cache)
    rows = torch.tensor([2, 0, 0])
    cache.select(rows)
    assert cache.is_token_BS.equal(is_token_BT[rows])
    decoded_BTD = forward(x_BTD[rows, 3:], position, stack, cache=cache)
    for row, first in ((0, 2), (1, 1)):
        alone_BTD = forward(x_BTD[rows[row], first:][None], position, stack)
        torch.testing.assert_close(decoded_BTD[row], alone_BTD[0, -3:], atol=1e-5, rtol=1e-5)
    cache.select(torch.tensor([True, False, False]))
    assert cache._kept[1].buffers[0].shape[0] == cache.is_token_BS.shape[0] == 1


def test_layers_append_in_place_and_hand_out_all():
    cache = KeyValueCache(num_layers=1, capacity=5)
    k_BGTK, v_BGTK = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    for part in (slice(0, 3), slice(3, 4)):
        cache.extend(torch.arange(4)[None, part])
        keys, values = cache.layer(0).append(k_BGTK[:, :, part], v_BGTK[:, :, part])
    assert keys.equal(k_BGTK)
    assert values.equal(v_BGTK)
    assert cache.length == 4
    assert cache._kept[0].buffers[0].shape == (2, 3, 5, 8)


def test_more_than_the_capacity_is_refused_and_changes_nothing():
    cache = KeyValueCache(num_layers=1, capacity=5)
    cache.extend(torch.arange(4)[None])
    with pytest.raises(ValueError, match="the cache holds 5 tokens; 6 were to be cached"):
        cache.extend(torch.arange(4, 6)[None])
    assert cache.length == 4
    with pytest.raises(ValueError, match="capacity=0"):
        KeyValueCache(num_layers=1, capacity=0)
