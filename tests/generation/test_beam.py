"""Beam search against every sequence there is, against a search written as loops, and against itself.

Legend: B batch, S source length, T target length, V vocabulary, D width.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.generation import BeamSearch, decode
from attnlab.generation.beam import top
from attnlab.layers import Learned, Rotary
from attnlab.models import EncoderDecoder, Seq2Seq

V, END = 6, 2
WORDS = (3, 4, 5)  # what a target may hold


class Gated(Seq2Seq):
    """A GRU over the target whose first state is the mean of the source."""

    def __init__(self):
        super().__init__()
        self.vocabulary_size, self.d_model = V, 8
        self.embedding, self.cell, self.head = nn.Embedding(V, 8), nn.GRUCell(8, 8), nn.Linear(8, V)

    def forward(self, source_BS, target_BT, is_source_BS=None, is_target_BT=None):
        state = self.start(source_BS, is_source_BS)
        return torch.stack([self.step(tokens_B, state) for tokens_B in target_BT.unbind(1)], dim=1)

    def start(self, source_BS, is_source_BS=None, capacity=256):
        real = torch.ones_like(source_BS) if is_source_BS is None else is_source_BS.long()
        mean_BD = (self.embedding(source_BS) * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return State(mean_BD)

    def step(self, tokens_B, state):
        state.hidden_BD = self.cell(self.embedding(tokens_B), state.hidden_BD)
        return self.head(state.hidden_BD)


class State:
    """A row a sentence."""

    def __init__(self, hidden_BD):
        self.hidden_BD = hidden_BD

    def select(self, rows, sources=None):
        self.hidden_BD = self.hidden_BD[rows]


class Flat(Gated):
    """Finds every token equally probable."""

    def step(self, tokens_B, state):
        return torch.zeros(len(tokens_B), V)


def transformer(**fields):
    return EncoderDecoder(V, max_length=16, d_model=8, num_heads=2, num_layers=1, **fields)


MODELS = {"gru": Gated, "transformer": transformer, "rotary": lambda: transformer(position=Rotary)}


def build(name, seed=0):
    """In double precision: the sums of a search and of a forward pass differ by 1e-5 in single, where they are 50 nats."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.7)
    return model.double()


def sentences(lengths, seed=0):
    source = torch.randint(3, V, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return source, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def log_probabilities(model, source, targets):
    """Of targets of one length and their end, by one forward pass."""
    targets_BT = torch.tensor([[1, *tokens, END] for tokens in targets])
    with torch.no_grad():
        log_p_BTV = model(source.expand(len(targets_BT), -1), targets_BT[:, :-1]).log_softmax(-1)
    return log_p_BTV.gather(2, targets_BT[:, 1:, None])[:, :, 0].sum(dim=1).tolist()


def penalised(log_p, tokens, alpha):
    return log_p / ((5 + len(tokens) + 1) / 6) ** alpha


def everything(model, source, longest, alpha):
    """All targets of up to `longest` tokens with their scores, the best first."""
    found = []
    for length in range(longest + 1):
        targets = [list(tokens) for tokens in itertools.product(WORDS, repeat=length)]
        for log_p, tokens in zip(log_probabilities(model, source, targets), targets, strict=True):
            found.append((penalised(log_p, tokens, alpha), log_p, tokens))
    return sorted(found, reverse=True)


def by_loops(model, source, longest, beams, alpha):
    """Beam search of one sentence that never stops early: the finished hypotheses, the best first."""
    opened, finished = [(0.0, [])], []
    for length in range(longest + 1):
        candidates = []
        for log_p, tokens in opened:
            with torch.no_grad():
                log_p_V = model(source, torch.tensor([[1, *tokens]]))[0, -1].log_softmax(-1)
            allowed = (END,) if length == longest else (END, *WORDS)
            candidates += [(log_p + float(log_p_V[token]), [*tokens, token]) for token in allowed]
        candidates.sort(reverse=True, key=lambda candidate: candidate[0])
        ended = [(log_p, tokens[:-1]) for log_p, tokens in candidates[:beams] if tokens[-1] == END]
        finished += [(penalised(log_p, tokens, alpha), tokens) for log_p, tokens in ended]
        if beams == 1 and finished:
            break
        opened = [candidate for candidate in candidates if candidate[1][-1] != END][:beams]
    return sorted(finished, reverse=True)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 999),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 2.5]),
    num_best=st.sampled_from([1, 3, 40]),
)
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(name, seed, alpha, num_best):
    model = build(name, seed)
    source, is_source = sentences([1, 3], seed)
    search = BeamSearch(num_beams=130, length_penalty=alpha, max_extra_length=1, num_best=num_best)
    found = decode(model, source, is_source, search)
    for row, length in enumerate([1, 3]):
        expected = everything(model, source[row : row + 1, :length], length + 1, alpha)[:num_best]
        assert [h.tokens for h in found[row]] == [tokens for *_, tokens in expected]
        assert [h.score for h in found[row]] == pytest.approx([score for score, *_ in expected], abs=1e-10)
        assert [h.log_probability for h in found[row]] == pytest.approx([log_p for _, log_p, _ in expected], abs=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 999),
    beams=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 0.6, 1.5]),
)
def test_stopping_early_loses_nothing(name, seed, beams, alpha):
    model = build(name, seed)
    source, _ = sentences([3], seed)
    (found,) = decode(model, source, None, BeamSearch(beams, alpha, max_extra_length=4, num_best=beams))
    expected = by_loops(model, source, 7, beams, alpha)[:beams]
    assert [h.tokens for h in found] == [tokens for _, tokens in expected]
    assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-10)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 999),
    beams=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_a_batch_gives_what_each_sentence_gives_alone_and_without_a_cache(name, seed, beams, lengths):
    model = build(name, seed)
    source, is_source = sentences(lengths, seed)
    search = BeamSearch(beams, max_extra_length=3, num_best=beams)
    together = decode(model, source, is_source, search)
    assert_same(decode(model, source, is_source, search, use_cache=False), together)
    for row, length in enumerate(lengths):
        assert_same(decode(model, source[row : row + 1, :length], None, search), together[row : row + 1])


def assert_same(found, expected):
    assert [[h.tokens for h in row] for row in found] == [[h.tokens for h in row] for row in expected]
    flat, wanted = ([h.score for row in rows for h in row] for rows in (found, expected))
    assert flat == pytest.approx(wanted, abs=1e-10)


def test_greedy_takes_the_most_probable_token_until_it_ends():
    for seed in range(20):
        model = build("gru", seed)
        source, _ = sentences([4], seed)
        ((hypothesis,),) = decode(model, source, None, BeamSearch(num_beams=1))
        tokens = [1]
        while len(tokens) <= 54:
            with torch.no_grad():
                logits_V = model(source, torch.tensor([tokens]))[0, -1]
            tokens.append(max((END, *WORDS), key=lambda token: float(logits_V[token])))
            if tokens[-1] == END:
                break
        assert hypothesis.tokens == [token for token in tokens[1:] if token != END]


def test_equal_scores_go_to_the_earlier_beam_and_the_smaller_token():
    source, _ = sentences([2])
    (found,) = decode(Flat(), source, None, BeamSearch(num_beams=3, length_penalty=0.0, max_extra_length=0, num_best=3))
    assert [h.tokens for h in found] == [[], [3], [3, 3]]
    (twice, again) = decode(Flat(), source.repeat(2, 1), None, BeamSearch(num_beams=3, num_best=3))
    assert twice == again


def test_the_greatest_length_is_the_sources_and_what_may_be_added():
    model = build("gru")
    with torch.no_grad():
        model.head.bias[END] = -50.0
    source, is_source = sentences([2, 5])
    found = decode(model, source, is_source, BeamSearch(num_beams=2, max_extra_length=3))
    assert [len(row[0].tokens) for row in found] == [5, 8]
    expected = log_probabilities(model, source[:1, :2], [found[0][0].tokens])
    assert [found[0][0].log_probability] == pytest.approx(expected, rel=1e-5)
    assert len(decode(model, source, is_source)[1][0].tokens) == 55


def test_positions_that_end_early_end_the_hypotheses():
    torch.manual_seed(0)
    model = EncoderDecoder(V, max_length=5, d_model=8, num_heads=2, num_layers=1, position=Learned)
    model.head = nn.Linear(8, V)
    with torch.no_grad():
        last = model.decoder.layers[-1].residual.norms[-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
        model.head.weight[END] = -7.0
    source, _ = sentences([3])
    for use_cache in (True, False):
        assert len(decode(model, source, use_cache=use_cache)[0][0].tokens) == 4  # and START in the first position


def test_tokens_that_are_ruled_out_are_never_produced():
    model = build("gru")
    with torch.no_grad():
        model.head.bias[torch.tensor([0, 1, 4])] = 9.0
    source, _ = sentences([4])
    (found,) = decode(model, source, None, BeamSearch(num_beams=4, num_best=4, max_extra_length=3), never=(0, 1, 4))
    assert {token for h in found for token in h.tokens} <= {3, 5}
    for h in found:
        assert [h.log_probability] == pytest.approx(log_probabilities(model, source, [h.tokens]), abs=1e-4)


def test_other_marks_may_be_named():
    model = build("gru")
    source, _ = sentences([4])
    (found,) = decode(model, source, None, BeamSearch(num_beams=2), start=3, end=4, never=(0, 1, 2, 3))
    assert set(found[0].tokens) <= {5}


def test_the_model_is_left_in_the_mode_it_was_in():
    model = transformer(dropout=0.5).train()
    source, _ = sentences([4])
    assert decode(model, source, None, BeamSearch(3)) == decode(model, source, None, BeamSearch(3))
    assert model.training
    assert decode(model, source[:0]) == []


@pytest.mark.parametrize("different", [40, 10**6])  # few: most are equal; many: hardly any
@pytest.mark.parametrize(
    ("rows", "size", "count"), [(3, 1000, 4), (2, 4097, 10), (2, 8000, 1), (1, 300, 300), (2, 5, 5)]
)
def test_top_is_a_stable_sort(rows, size, count, different):
    values = torch.randint(0, different, (rows, size), generator=torch.Generator().manual_seed(size)).float()
    values[values == 7] = -math.inf
    made, places = top(values, count)
    for row in range(rows):
        expected = sorted(range(size), key=lambda place, row=row: (-float(values[row, place]), place))[:count]
        assert places[row].tolist() == expected
        assert made[row].equal(values[row, expected])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"length_penalty": -0.1}, r"length_penalty must be at least 0, got -0\.1"),
        ({"max_extra_length": -1}, "max_extra_length must be at least 0, got -1"),
        ({"num_beams": 2, "num_best": 3}, "num_best must be at most 2, the number of beams, got 3"),
    ],
)
def test_searches_that_find_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**fields)


def test_marks_outside_the_vocabulary_are_refused():
    source, _ = sentences([2])
    with pytest.raises(ValueError, match="token 6 is outside the vocabulary; accepted: 0 to 5"):
        decode(build("gru"), source, end=6)
    with pytest.raises(ValueError, match="holds the end mark 2"):
        decode(build("gru"), source, never=(0, 2))


class Spoilt(Flat):
    """One score of the second sentence is not what it should be, from the second token on."""

    def __init__(self, value, vocabulary_size):
        super().__init__()
        self.value, self.vocabulary_size, self.steps = value, vocabulary_size, 0

    def step(self, tokens_B, state):
        self.steps += 1
        logits_BV = torch.zeros(len(tokens_B), self.vocabulary_size)
        logits_BV[:, END] = -5.0
        if self.steps > 1:
            logits_BV[len(tokens_B) // 2, -1] = self.value
        return logits_BV


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("vocabulary_size", [V, 1000])
@pytest.mark.parametrize("beams", [1, 3])
def test_scores_that_are_no_numbers_are_refused(value, vocabulary_size, beams):
    source, is_source = sentences([3, 2])
    model = Spoilt(value, vocabulary_size)
    with pytest.raises(ValueError, match="the model's scores of token 2 of a target are no numbers") as caught:
        decode(model, source, is_source, BeamSearch(beams))
    assert "--checkpoint best" in str(caught.value)
    forbidden = decode(Spoilt(-math.inf, vocabulary_size), source, is_source, BeamSearch(beams))
    assert all(math.isfinite(best.score) for found in forbidden for best in found)
