"""Layers with a state between layers of attention: the families' contract, decoding, interruption, heads by their layer."""

import pytest
import torch

from attnlab.inspection import attended
from attnlab.inspection.ablation import heads_of
from attnlab.inspection.attention_maps import SELF, layer_maps, rollout_of, with_rollouts
from attnlab.inspection.positions import encodings_of
from attnlab.interop import CannotConvert
from attnlab.interop.convert import architecture_for
from attnlab.interop.settings import canonical
from attnlab.layers import (
    GRU,
    LSTM,
    GatedDeltaNet,
    GatedLinear,
    LinearAttention,
    MultiDConvHead,
    PositionEncoding,
    Retention,
    Rotary,
)
from attnlab.models import GPT, measure_size
from attnlab.testing.families import FAMILIES, InGPT
from attnlab.training.diagnostics import stacks

DELTA = {"attention": GatedDeltaNet, "position": PositionEncoding}
HYBRID = {"pattern": ["delta", "delta", "delta", "full"], "layers": {"delta": DELTA, "full": {}}, "position": Rotary}
TOKENS = torch.randint(0, 13, (2, 9), generator=torch.Generator().manual_seed(0))


def gpt(**fields):
    torch.manual_seed(0)
    return GPT(13, max_length=32, **{"d_model": 16, "num_heads": 4, "num_layers": 8, **HYBRID, **fields}).eval()


def check(family):
    names = {
        name for base in type(family).__mro__ for name, found in vars(base).items() if hasattr(found, "is_property")
    }
    for name in sorted(names):
        getattr(family, name)()


@pytest.mark.parametrize("other", [Retention, GatedLinear, LinearAttention, LSTM, GRU, MultiDConvHead, GatedDeltaNet])
def test_a_language_model_keeps_the_contract(other):
    layers = {"other": {"attention": other, "position": PositionEncoding}, "full": {}}
    check(InGPT({"position": Rotary, "pattern": ["other", "full"], "layers": layers}))


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind.name in ("bert", "encoder_decoder", "vit")])
def test_models_with_linear_attention_in_some_layers_keep_the_contract(kind):
    layers = {"linear": {"attention": LinearAttention}, "full": {}}
    check(kind({"position": PositionEncoding, "pattern": ["linear", "full"], "layers": layers}))


def test_rows_that_move_between_steps_take_their_states_along():
    """As a beam search has it: rows are chosen, twice or not at all, and go on."""
    model = gpt()
    with torch.no_grad():
        cache = model.new_cache(9)
        model(TOKENS[:, :6], cache=cache)
        for rows in (torch.tensor([1, 1, 0]), torch.tensor([0, 2])):
            cache.select(rows)
        found = model(TOKENS[:, 6:], cache=cache)
        chosen = torch.cat([TOKENS[[1, 0], :6], TOKENS[:, 6:]], dim=1)
        torch.testing.assert_close(found, model(chosen)[:, 6:], rtol=1e-5, atol=1e-5)


def test_a_training_that_was_interrupted_goes_on_to_the_same_bits():
    def steps(model, optimizer, numbers):
        for number in numbers:
            tokens = torch.randint(0, 13, (2, 9), generator=torch.Generator().manual_seed(number))
            loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def made():
        model = gpt().train()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    whole, parts, (model, optimizer) = made(), made(), made()
    steps(*whole, range(6))
    steps(*parts, range(3))
    model.load_state_dict(parts[0].state_dict())
    optimizer.load_state_dict(parts[1].state_dict())
    steps(model, optimizer, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), whole[0].parameters(), strict=True))


def test_maps_and_heads_are_numbered_by_their_layer():
    model = gpt()
    maps = layer_maps(model, lambda: model(TOKENS))
    assert [(one.name, one.layer) for one in maps] == [(f"stack.layers.{n}.attention", n) for n in (3, 7)]
    assert [(head.layer, head.head) for head in heads_of(model)] == [(n, head) for n in (3, 7) for head in range(4)]


def test_a_rollout_ends_where_a_layer_has_no_weights():
    """What passes through a state is not in the maps, so nothing is known of what comes after it."""
    model = gpt()
    assert [one.kind for one in with_rollouts(layer_maps(model, lambda: model(TOKENS)))] == [SELF, SELF]
    model = gpt(pattern=["full", "full", "delta", "full"])
    found = with_rollouts(layer_maps(model, lambda: model(TOKENS)))
    assert [one.layer for one in found if one.kind == SELF] == [0, 1, 3, 4, 5, 7]
    assert [one.layer for one in found if one.kind == rollout_of(SELF)] == [0, 1]


@pytest.mark.parametrize("mixer", [GatedDeltaNet, LSTM])
def test_a_model_without_any_attention_says_so(mixer):
    model = gpt(pattern=None, layers={}, attention=mixer, position=PositionEncoding)
    assert layer_maps(model, lambda: model(TOKENS)) == []
    with pytest.raises(ValueError, match=f"GPT has no attention to show: {mixer.__name__} mixes positions without"):
        attended._maps(model, 9, 9, lambda: model(TOKENS))


def test_operations_are_those_of_each_layer():
    def flops(model):
        return measure_size(model, lambda: model(TOKENS).shape[:2].numel()).flops_per_token

    def plain(**fields):
        return flops(gpt(num_layers=4, pattern=None, layers={}, **fields))

    output = 3 * 2 * 13 * 16
    full, delta = plain(), plain(attention=GatedDeltaNet, position=PositionEncoding)
    assert flops(gpt()) - output == 2 * ((full - output) // 4 + 3 * (delta - output) // 4)


def test_positions_and_diagnostics_look_into_hybrids():
    assert [type(encoding.module) for encoding in encodings_of(gpt())] == [Rotary, PositionEncoding]
    assert len(stacks(gpt())[""].layers) == 8


@pytest.mark.parametrize("mixer", [LinearAttention, Retention, GatedDeltaNet, LSTM, MultiDConvHead])
@pytest.mark.parametrize("pattern", [None, ["mixer", "full"], ["full", "mixer"]])
def test_no_architecture_of_transformers_is_taken_for_it(mixer, pattern):
    def node(name):
        return {"_target_": f"attnlab.layers.{name}", "_partial_": True}

    layers = {"mixer": {"attention": node(mixer.__name__)}, "full": {}} if pattern else {}
    own = {} if pattern else {"attention": node(mixer.__name__)}
    described = {
        "_target_": "attnlab.models.GPT",
        "pattern": pattern,
        "layers": layers,
        "position": node("Rotary"),
        **own,
    }
    with pytest.raises(CannotConvert, match=f"attention: {mixer.__name__} here, Attention there"):
        architecture_for(canonical(described, vocabulary_size=13, max_length=16))
