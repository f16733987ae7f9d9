import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.generation import Sampler, generate
from attnlab.layers import ALiBi, GroupedQuery, Learned, PositionEncoding, RelativeBias, Rotary, Sinusoidal
from attnlab.models import GPT

V = 17
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]
POSITIONS = [Sinusoidal, Learned, Rotary, ALiBi, RelativeBias, PositionEncoding]


def gpt(position=Rotary, **fields):
    torch.manual_seed(0)
    model = GPT(V, 32, d_model=16, num_heads=4, num_layers=2, position=position, **fields)
    for parameter in model.parameters():  # far from uniform, so that a wrong mask or position shows
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def plain_distribution(logits, temperature, top_k, top_p, min_p):
    """The definition, one token at a time."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    kept = sorted(range(len(logits)), key=lambda token: -weights[token])
    if top_k is not None:
        kept = kept[:top_k]
    if top_p is not None:
        total, mass, nucleus = sum(weights[token] for token in kept), 0.0, []
        for token in kept:
            if mass >= top_p * total:
                break
            nucleus.append(token)
            mass += weights[token]
        kept = nucleus
    if min_p is not None:
        kept = [token for token in kept if weights[token] >= min_p * weights[kept[0]]]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=12, unique_by=lambda logit: round(logit, 2)),
    temperature=st.floats(0.2, 3),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 0.99),
    min_p=st.none() | st.floats(0, 0.99),
)
def test_probabilities_are_the_definition(logits, temperature, top_k, top_p, min_p):
    sampler = Sampler(temperature, top_k, top_p, min_p)
    expected = plain_distribution(logits, temperature, top_k, top_p, min_p)
    probabilities = sampler.probabilities(torch.tensor([logits], dtype=torch.float64))[0]
    torch.testing.assert_close(probabilities, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_drawn_tokens_have_the_distributions_frequencies():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, -9.0]])
    sampler, generator = Sampler(top_k=4), torch.Generator().manual_seed(0)
    drawn = torch.cat([sampler(logits, [generator]) for _ in range(8000)])
    observed, expected = torch.bincount(drawn, minlength=5), 8000 * sampler.probabilities(logits)[0]
    assert observed[4] == 0
    chi_square = ((observed - expected)[:4] ** 2 / expected[:4]).sum()
    assert chi_square < 16.27  # p = 0.001, three degrees of freedom


def test_greedy_takes_the_first_of_the_best():
    assert Sampler(temperature=0)(torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]]), []).tolist() == [1, 0]


@pytest.mark.parametrize("position", POSITIONS)
def test_greedy_is_the_argmax_of_a_full_forward(position):
    model = gpt(position)
    tokens = list(PROMPTS[0])
    for _ in range(8):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert generate(model, [PROMPTS[0]], 8, Sampler(temperature=0)) == [tokens[3:]]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_prompts_of_unequal_length_get_what_each_gets_alone(position, use_cache):
    model = gpt(position, attention=GroupedQuery)
    together = generate(model, PROMPTS, 12, seed=5, use_cache=use_cache)
    alone = [generate(model, [prompt], 12, seed=5 + row)[0] for row, prompt in enumerate(PROMPTS)]
    assert together == alone
    assert [len(tokens) for tokens in together] == [12] * 4


def test_rows_that_end_leave_the_batch_and_change_nothing_for_the_others():
    model = gpt()
    full = generate(model, PROMPTS, 20, seed=1)
    end = full[0][4]
    batches = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    ended = generate(model, PROMPTS, 20, seed=1, ends=[end])
    assert ended == [row[: row.index(end) + 1] if end in row else row for row in full]
    lengths = [len(row) for row in ended]
    assert batches == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert min(batches) < 4


def test_a_seed_decides_and_the_global_generator_is_left_alone():
    model = gpt()
    state = torch.get_rng_state()
    assert generate(model, PROMPTS, 10, seed=1) == generate(model, PROMPTS, 10, seed=1)
    assert generate(model, PROMPTS, 10, seed=1) != generate(model, PROMPTS, 10, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_is_off_while_generating_and_on_again_after():
    model = gpt(dropout=0.5).train()
    assert generate(model, PROMPTS, 10) == generate(model, PROMPTS, 10)
    assert model.training


def test_a_learned_table_that_is_too_short_is_an_error_before_the_first_step():
    model = gpt(Learned)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert len(generate(model, [[1] * 30], 3)[0]) == 3  # the third new token is read by nobody
    calls.clear()
    with pytest.raises(ValueError, match=r"prompt 1 of 30 tokens and 4 new ones need 33 positions; .* has 32"):
        generate(model, [[1], [1] * 30], 4)
    assert not calls


def test_encodings_without_a_table_go_beyond_the_trained_length():
    assert len(generate(gpt(ALiBi), [[1] * 30], 20)[0]) == 20


def test_nothing_to_do_gives_nothing():
    assert generate(gpt(), [], 5) == []
    assert generate(gpt(), [[1], [2]], 0) == [[], []]


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "message"),
    [
        ([[1], []], 5, "prompt 1 is empty"),
        ([[1, V]], 5, f"prompt 0 holds token {V}; accepted: 0 to {V - 1}"),
        ([[1]], -1, "max_new_tokens must be at least 0, got -1"),
    ],
)
def test_a_request_that_cannot_be_served_is_named(prompts, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        generate(gpt(), prompts, max_new_tokens)


@pytest.mark.parametrize(
    "setting",
    [{"temperature": -1.0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}],
)
def test_a_setting_that_leaves_no_token_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Sampler(**setting)


def test_scores_that_are_no_numbers_are_no_text():
    logits = torch.zeros(2, 5)
    for value in (float("nan"), float("inf")):
        logits[1, 3] = value
        for temperature in (0.0, 1.0):
            with pytest.raises(ValueError, match="scores of the next token are no numbers"):
                Sampler(temperature=temperature).probabilities(logits)
    logits[1, 3] = -float("inf")  # a token that is ruled out
    assert Sampler().probabilities(logits)[1, 3] == 0
