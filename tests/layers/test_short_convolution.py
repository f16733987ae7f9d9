"""The short convolution against torch's, with padding anywhere; attention behind one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import MultiDConvHead, MultiHead, PositionEncoding, Rotary, ShortConvolution, build_scope


def test_it_is_torchs_causal_convolution_of_each_channel():
    torch.manual_seed(0)
    ours, theirs = ShortConvolution(6, 4), torch.nn.Conv1d(6, 6, 4, padding=3, groups=6, bias=False)
    ours.load_state_dict({"taps_XP": theirs.weight[:, 0]})
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(ours(x)[0], theirs(x.mT)[:, :, :9].mT)
    assert ours.taps_XP.abs().max() <= 0.5


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3),
    size=st.integers(1, 4),
    cut=st.integers(1, 6),
)
def test_padding_anywhere_and_texts_cut_anywhere_change_nothing(rows, size, cut):
    torch.manual_seed(0)
    is_token, convolution = torch.tensor(rows), ShortConvolution(2, size).double()
    x = torch.randn(len(rows), 7, 2, dtype=torch.float64)
    first, before = convolution(x[:, :cut], is_token[:, :cut])
    second, before = convolution(x[:, cut:], is_token[:, cut:], before)
    out = torch.cat([first, second], dim=1)
    for row, real in enumerate(is_token):
        if not real.any():
            assert (before[row] == 0).all()
            continue
        alone, last = convolution(x[row : row + 1, real])
        torch.testing.assert_close(out[row, real], alone[0])
        torch.testing.assert_close(before[row], last[0])


@pytest.mark.parametrize("position", [PositionEncoding(), Rotary(4)])
def test_behind_taps_of_the_token_itself_attention_is_as_without(position):
    torch.manual_seed(0)
    plain, convolved = MultiHead(12, 3, qk_norm=True), MultiDConvHead(12, 3, qk_norm=True)
    missing = convolved.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["convolution.taps_XP"]
    x = torch.randn(2, 9, 12)
    scope = build_scope(x, position, causal=True)
    assert not torch.allclose(convolved(x, scope), plain(x, scope), atol=1e-3)
    with torch.no_grad():
        convolved.convolution.taps_XP.copy_(torch.tensor([0.0, 0.0, 1.0]).expand(36, 3))
    torch.testing.assert_close(convolved(x, scope), plain(x, scope))


def test_attention_is_that_of_queries_keys_and_values_summed_over_three_tokens():
    torch.manual_seed(0)
    mixer, x = MultiDConvHead(12, 3), torch.randn(2, 9, 12)
    taps = mixer.convolution.taps_XP
    summed = []
    for index, linear in enumerate((mixer.query, mixer.key, mixer.value)):
        h, own = linear(x), taps[12 * index : 12 * index + 12]
        out = h * own[:, 2]
        out[:, 1:] += h[:, :-1] * own[:, 1]
        out[:, 2:] += h[:, :-2] * own[:, 0]
        summed.append(out.unflatten(2, (3, 4)).transpose(1, 2))
    attended = torch.nn.functional.scaled_dot_product_attention(*summed, is_causal=True)
    expected = mixer.output(attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, build_scope(x, PositionEncoding(), causal=True)), expected)
