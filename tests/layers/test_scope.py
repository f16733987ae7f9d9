"""Masks against their definition written as loops; B batch, T target length, S source length, D model width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import KeyValueCache, Learned, PositionEncoding, Scope, build_mask, build_scope


def by_definition(queries, keys, causal, window, is_token, prefix):
    rows = []
    for b in range(len(queries)):
        row = []
        for query in queries[b]:
            row.append([])
            for s, key in enumerate(keys[b]):
                seen = is_token[b][s]
                if causal and key > query and key >= prefix[b]:
                    seen = False
                if window is not None and not (query - window < key < query + window):
                    seen = False
                row[-1].append(seen)
        rows.append([row])
    return torch.tensor(rows)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.none() | st.integers(1, 6))
def test_mask_is_its_definition(data, causal, window):
    batch, num_queries, num_keys = (data.draw(st.integers(1, 4)) for _ in range(3))

    def table(length, values):
        return data.draw(st.lists(st.lists(values, min_size=length, max_size=length), min_size=batch, max_size=batch))

    queries, keys = table(num_queries, st.integers(0, 9)), table(num_keys, st.integers(0, 9))
    is_token = table(num_keys, st.booleans())
    prefix = data.draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch))
    made = build_mask(
        torch.tensor(queries),
        torch.tensor(keys),
        causal,
        window,
        torch.tensor(is_token),
        torch.tensor(prefix)[:, None],
    )
    expected = by_definition(queries, keys, causal, window, is_token, prefix)
    assert made.expand_as(expected).equal(expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 9])
@pytest.mark.parametrize("num_queries", [1, 2, 5])
def test_shortcuts_of_contiguous_scopes_say_what_the_mask_says(causal, window, num_queries):
    queries, keys = torch.arange(5 - num_queries, 5)[None], torch.arange(5)[None]
    scope = Scope(queries, keys, causal, contiguous=True)
    mask_BHTS = build_mask(queries, keys, causal, window)
    allowed_BHTS = scope.mask(window).allowed_BHTS
    assert mask_BHTS.all() if allowed_BHTS is None else allowed_BHTS.equal(mask_BHTS)
    assert scope.mask(window).fully_masked_BHT1 is None
    if scope.mask(window).is_causal:
        assert mask_BHTS[0, 0].equal(torch.ones(5, 5, dtype=torch.bool).tril())
    is_plain_causal = causal and num_queries == 5 and window in (None, 5, 9)
    assert scope.mask(window).is_causal == is_plain_causal


def test_a_prefix_is_seen_by_all_and_the_rest_stays_causal():
    scope = Scope(
        torch.arange(4)[None], torch.arange(4)[None], True, contiguous=True, prefix_B1=torch.tensor([[2], [0]])
    )
    assert not scope.mask().is_causal
    seen = [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], torch.ones(4, 4).tril().tolist()]
    assert scope.mask().allowed_BHTS[:, 0].equal(torch.tensor(seen).bool())


def test_one_cached_step_needs_no_mask():
    scope = Scope(torch.tensor([[7]]), torch.arange(8)[None], causal=True, contiguous=True)
    assert scope.mask().allowed_BHTS is None
    assert scope.mask().additive(torch.float32) is None
    assert scope.mask(4).allowed_BHTS.sum() == 4


def test_a_bias_forbids_the_causal_flag():
    positions = torch.arange(3)[None]
    scope = Scope(positions, positions, True, contiguous=True, bias=lambda *_: torch.ones(1, 2, 3, 3))
    assert not scope.mask().is_causal
    expected = torch.ones(1, 2, 3, 3).masked_fill(~torch.ones(3, 3, dtype=torch.bool).tril(), float("-inf"))
    assert scope.mask().additive(torch.float32).equal(expected)


def test_layers_share_one_mask_per_window():
    scope = Scope(torch.arange(6)[None], torch.arange(6)[None], causal=True)
    assert scope.mask().allowed_BHTS is scope.mask().allowed_BHTS
    assert scope.mask(2).additive(torch.float32) is scope.mask(2).additive(torch.float32)
    assert scope.mask(2).allowed_BHTS is not scope.mask().allowed_BHTS
    assert scope.mask(2).additive(torch.bfloat16).dtype == torch.bfloat16


def test_fully_masked_queries_are_found_and_opened():
    is_token_BS = torch.tensor([[False, False, True], [True, True, True]])
    scope = Scope(torch.arange(3)[None], torch.arange(3)[None], True, is_token_BS)
    assert scope.mask().fully_masked_BHT1[:, 0, :, 0].tolist() == [[True, True, False], [False, False, False]]
    assert scope.mask().attendable_BHTS[0, 0].tolist() == [[True] * 3, [True] * 3, [False, False, True]]
    assert scope.mask().additive(torch.float32)[0, 0, 0].tolist() == [0.0, 0.0, 0.0]


def test_positions_do_not_count_padding():
    x_BTD = torch.zeros(2, 5, 4)
    is_token_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    cache = KeyValueCache(num_layers=1, capacity=8)
    first = build_scope(x_BTD, PositionEncoding(), True, is_token_BT=is_token_BT, cache=cache)
    assert first.query_positions_BT.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert not first.contiguous
    second = build_scope(x_BTD[:, :2], PositionEncoding(), True, cache=cache)
    assert second.query_positions_BT.tolist() == [[3, 4], [4, 5]]
    assert second.is_token_BS[:, :5].equal(is_token_BT)
    assert second.is_token_BS[:, 5:].all()


def test_a_scope_without_padding_goes_on_contiguously():
    cache = KeyValueCache(num_layers=1, capacity=8)
    for start, length in ((0, 3), (3, 1), (4, 2)):
        scope = build_scope(torch.zeros(2, length, 4), PositionEncoding(), True, cache=cache)
        assert scope.contiguous
        assert scope.query_positions_BT.tolist() == [list(range(start, start + length))]
        assert scope.key_positions_BS.tolist() == [list(range(start + length))]
    given_positions = torch.tensor([[0, 1]])
    assert not build_scope(torch.zeros(2, 2, 4), PositionEncoding(), True, given_positions).contiguous


@pytest.mark.parametrize("positions_BT", [None, torch.tensor([[0, 1, 32]])])
def test_a_table_that_is_too_short_is_refused(positions_BT):
    length = 33 if positions_BT is None else 3
    with pytest.raises(ValueError, match="Learned ends at 32 positions; position 33 was asked for"):
        build_scope(torch.zeros(1, length, 4), Learned(4, 32), True, positions_BT)
