"""The rates of each optimizer at twice, four times the base's width, against the papers' tables and what they are for."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from attnlab.layers import CompleteP, GPT2Init, MuP
from attnlab.models import GPT, Bert
from attnlab.models.heads import SequenceClassifier
from attnlab.training import Noam, Optimization, adafactor, adam, adamw, lion, muon, schedule_free, torch_optimizer

V = 50
TOKENS = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(0))


def build(d_model=256, init=MuP, **fields):
    torch.manual_seed(0)
    fields = {"num_layers": 1, "bias": True, "tie_embeddings": False} | fields
    return GPT(V, max_length=16, d_model=d_model, num_heads=4, init=init, **fields)


def rates(model, optimizer, field="lr"):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group[field] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    return found


def kind(name, model):
    matrix = model.get_parameter(name).ndim == 2
    return "vector" if not matrix else "hidden" if "layers." in name else name.split(".")[0]


# The growth is 4. Rate by kind: table 8 of Yang et al. 2022; Muon's is 4^-1/2.
TABLE = {
    "adamw": (adamw, {"embedding": 1, "head": 1, "vector": 1, "hidden": 1 / 4}),
    "adam": (partial(adam), {"embedding": 1, "head": 1, "vector": 1, "hidden": 1 / 4}),
    "lion": (lion, {"embedding": 1, "head": 1, "vector": 1, "hidden": 1 / 4}),
    "schedule_free": (schedule_free, {"embedding": 1, "head": 1, "vector": 1, "hidden": 1 / 4}),
    "muon": (muon, {"embedding": 1, "head": 1, "vector": 1, "hidden": 1 / 2}),
    "rmsprop": (partial(torch_optimizer, name="RMSprop"), {"embedding": 1, "head": 1, "vector": 1, "hidden": 1 / 4}),
    "sgd": (partial(torch_optimizer, name="SGD"), {"embedding": 4, "head": 4, "vector": 4, "hidden": 1}),
}


@pytest.mark.parametrize("name", TABLE)
def test_rates_are_the_table_s(name):
    make, table = TABLE[name]
    model = build()
    for parameter, rate in rates(model, make(model, lr=0.3)).items():
        assert rate == pytest.approx(0.3 * table[kind(parameter, model)]), parameter
    alike = build(d_model=64)
    assert set(rates(alike, make(alike, lr=0.3)).values()) == {0.3}
    other = build(init=GPT2Init)
    assert set(rates(other, make(other, lr=0.3)).values()) == {0.3}


@pytest.mark.parametrize("make", [adamw, muon, lion, partial(torch_optimizer, name="SGD")])
def test_rate_times_decay_is_the_same_for_all_that_decays(make):
    model = build()
    optimizer = make(model, lr=0.3, weight_decay=0.2)
    decays = rates(model, optimizer, "weight_decay")
    for name, rate in rates(model, optimizer).items():
        wanted = 0.0 if kind(name, model) == "vector" else 0.06
        assert rate * decays[name] == pytest.approx(wanted), name


def test_eps_falls_as_gradients_do():
    """A gradient of a model four times as wide is a quarter as large, everywhere but for the output's bias."""
    eps, sizes = [], []
    for width in (64, 256):
        model = build(width, init=partial(MuP, std=0.1), tie_embeddings=True, bias=False)
        eps.append(next(iter(set(rates(model, adamw(model, eps=1.0), "eps").values()))))
        loss = nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten())
        loss.backward()
        sizes.append(model.stack.norm.weight.grad.square().mean().sqrt().item())
    assert eps == [1.0, 0.25]
    assert sizes[0] / sizes[1] > 2


@pytest.mark.parametrize("make", [partial(muon, momentum=0.0, nesterov=False), adamw], ids=["muon", "adamw"])
def test_an_update_changes_what_a_layer_gives_alike_at_every_width(make):
    """The spectral condition (Yang et al. 2023): on a gradient of rank one, as examples that agree have, all hidden
    updates have the same spectral norm relative to the size of the layer's input and output."""
    norms = []
    for width in (64, 128, 256, 512):
        model = build(width, bias=False)
        matrix = model.stack.layers[0].feed_forward.up.weight
        drawn = torch.Generator().manual_seed(1)
        left, right = (torch.randn(size, generator=drawn) for size in matrix.shape)
        # Muon gives every direction the same size: with all of them a gradient of full rank is the case to hold.
        matrix.grad = torch.randn(matrix.shape, generator=drawn) if make is not adamw else torch.outer(left, right)
        before = matrix.detach().clone()
        make(model, lr=0.01, weight_decay=0.0).step()
        norms.append(torch.linalg.matrix_norm(matrix.detach() - before, 2).item())
    assert max(norms) / min(norms) < 1.15, norms


def test_a_rate_by_depth_is_complete_p_s():
    model = build(128, init=partial(CompleteP, base_layers=2, alpha=0.5), num_layers=8)
    found = rates(model, adamw(model, lr=1.0))
    within = 4**-0.5
    assert found["embedding.weight"] == found["stack.norm.weight"] == 1.0
    assert found["stack.layers.0.residual.norms.0.weight"] == found["stack.layers.0.attention.query.bias"] == within
    assert found["stack.layers.0.attention.query.weight"] == pytest.approx(within / 2)
    assert found["stack.layers.0.attention.output.weight"] == pytest.approx(within / 2 * 4**-0.5)


REFUSED = {
    "relative to a parameter's own size": lambda: adafactor(build()),
    "no rule is known by which its rates go with the width: its weight decay": lambda: adam(build(), weight_decay=0.1),
    "weight decay is in the gradient": lambda: torch_optimizer(build(), "Adam", weight_decay=0.1),
    "nobody has shown one": lambda: torch_optimizer(build(), "ASGD"),
    "go with the depth": lambda: torch_optimizer(build(init=partial(CompleteP, base_layers=4)), "SGD"),
    "no rule is known for output.weight": lambda: adamw(
        SequenceClassifier(Bert(V, 16, d_model=64, num_heads=4, num_layers=1, init=MuP), 3)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_optimizer_without_a_rule_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_schedule_multiplies_every_group_and_is_told_the_optimizer_s_own_rate():
    model = build()
    optimization = Optimization(partial(muon, lr=0.2), partial(Noam, warmup_steps=4))
    optimizer = optimization.start(model, 10)
    noam = 256**-0.5 * 3 * 4**-1.5
    assert optimization.rate(2) == pytest.approx(noam)
    optimization.set_rates(optimizer, 2)
    found = rates(model, optimizer)
    assert found["embedding.weight"] == pytest.approx(noam)
    assert found["stack.layers.0.attention.query.weight"] == pytest.approx(noam / 2)


@pytest.mark.parametrize("make", [adamw, muon, schedule_free, partial(torch_optimizer, name="SGD", momentum=0.9)])
def test_a_training_goes_on_from_its_state_with_the_same_bits(make):
    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
            optimizer.step()

    straight = build(128)
    optimizer = make(straight, lr=0.01)
    if hasattr(optimizer, "train"):
        optimizer.train()
    steps(straight, optimizer, 2)
    resumed, state = build(128), copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(straight.state_dict())
    again = make(resumed, lr=0.5)
    if hasattr(again, "train"):
        again.train()
    again.load_state_dict(state)
    steps(straight, optimizer, 2)
    steps(resumed, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
