"""Optimizers decay what they should, do what their papers say, and come back from a checkpoint."""

import copy
import importlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_run import TinyModel
from torch import nn

from attnlab.training import (
    Linear,
    Optimization,
    adam,
    adamw,
    cautious_adamw,
    decay_groups,
    lion,
    muon,
    schedule_free,
    update_rules,
)
from attnlab.training.optimizers import evaluation_weights
from attnlab.training.update_rules import hidden_matrices, newton_schulz

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
CHOICES = sorted(
    path.stem for path in CONF.glob("*.yaml") if "name: ???" not in path.read_text()
)  # the rest is by name
OF_THE_LIBRARY = {"ademamix", "cautious_lion", "mars", "normuon", "shampoo", "soap"}
if find_spec("pytorch_optimizer") is None:
    CHOICES = [name for name in CHOICES if name not in OF_THE_LIBRARY]


def from_yaml(name: str, model: nn.Module, **more: object) -> torch.optim.Optimizer:
    fields = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | more
    whole = OmegaConf.create({"optimizer": fields, "trainer": {"max_steps": 30}})
    fields = OmegaConf.to_container(whole, resolve=True)["optimizer"]
    module, function = fields.pop("_target_").rsplit(".", 1)
    assert fields.pop("_partial_") is True
    fields.pop("_open_", None)
    return getattr(importlib.import_module(module), function)(model, **fields)


def make_model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel(dropout=0.0)


def backward(model: nn.Module, seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(0, 17, (4, 8), generator=torch.Generator().manual_seed(seed))
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), ((tokens * 3 + 1) % 17).flatten())
    model.zero_grad()
    loss.backward()
    return loss.detach()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> torch.Tensor:
    loss = backward(model, seed)
    optimizer.step()
    return loss


def switch_to_training(optimizer: torch.optim.Optimizer) -> None:
    if hasattr(optimizer, "train"):
        optimizer.train()


def test_all_the_choices_of_the_design_are_there():
    own = {"adafactor", "adam", "adamw", "cautious_adamw", "lion", "muon", "schedule_free"}
    assert set(CHOICES) - OF_THE_LIBRARY == own


@pytest.mark.parametrize("name", CHOICES)
def test_the_choice_trains_and_comes_back_from_its_state(name):
    model = make_model()
    optimizer = from_yaml(name, model)
    switch_to_training(optimizer)
    losses = [step(model, optimizer, i).item() for i in range(30)]
    assert losses[-1] < losses[0] - 0.1
    twin = copy.deepcopy(model)
    restored = from_yaml(name, twin)
    switch_to_training(restored)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(3):
        step(model, optimizer, 50 + i)
        step(twin, restored, 50 + i)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("name", CHOICES)
def test_a_closure_is_called_once_with_gradients_and_its_value_is_returned(name):
    model = make_model()
    optimizer = from_yaml(name, model)
    switch_to_training(optimizer)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(model)

    assert optimizer.step(closure) == backward(make_model())
    assert calls == [True]


@pytest.mark.parametrize("name", CHOICES)
def test_a_rate_set_from_outside_is_the_rate_used(name):
    """Schedules write `lr` into the groups: at a rate of zero nothing moves."""
    model = make_model()
    optimizer = from_yaml(name, model)
    switch_to_training(optimizer)
    step(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, 1)
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old, atol=2e-3 if name == "schedule_free" else 0, rtol=0)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=6), st.floats(0.001, 1))
def test_every_tensor_is_in_one_group_and_rank_decides_its_decay(shapes, weight_decay):
    model = nn.Module()
    for i, shape in enumerate(shapes):
        model.register_parameter(f"p{i}", nn.Parameter(torch.zeros(shape)))
    model.register_parameter("frozen", nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    model.register_parameter("tied", model.p0)
    groups = decay_groups(model, weight_decay)
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (weight_decay if parameter.ndim >= 2 else 0.0)


@pytest.mark.parametrize("name", CHOICES)
def test_decay_reaches_matrices_and_no_vector(name):
    """The same gradients with and without decay: over three steps a vector goes the same way, a matrix shrinks."""
    found = []
    for weight_decay in (0.0, 0.5):
        model = make_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        optimizer = from_yaml(name, model, weight_decay=weight_decay, lr=0.05)
        switch_to_training(optimizer)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            optimizer.step()
        found.append([p.detach().clone() for p in model.parameters()])
    for without, decayed in zip(*found, strict=True):
        assert torch.equal(without, decayed) is (without.ndim < 2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_is_decoupled_and_spares_gains_and_biases(weight_decay):
    """First step: Adam moves by lr * sign(g) (eps aside); decay takes lr * weight_decay * p off matrices only (algorithm 2)."""
    model = make_model()
    optimizer = adamw(model, lr=0.01, weight_decay=weight_decay, eps=1e-12)
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer)
    for parameter, old in zip(model.parameters(), before, strict=True):
        decayed = old * (1 - 0.01 * weight_decay) if old.ndim >= 2 else old
        moved = parameter.grad.abs() > 1e-6
        torch.testing.assert_close(
            parameter.detach()[moved], (decayed - 0.01 * parameter.grad.sign())[moved], atol=1e-6, rtol=0
        )


def test_adam_puts_decay_into_the_gradient():
    """With L2 decay far above the gradient the first step is lr * sign(p), where decoupled decay would be lr * weight_decay * p."""
    model = make_model()
    optimizer = adam(model, lr=0.01, weight_decay=1e4)
    before = model.output.weight.detach().clone()
    step(model, optimizer)
    large = before.abs() > 0.01
    torch.testing.assert_close(
        model.output.weight.detach()[large], (before - 0.01 * before.sign())[large], atol=1e-5, rtol=0
    )


def test_lion_is_the_sign_of_the_interpolated_momentum():
    """Chen et al. 2023, program 1, over two steps."""
    model = make_model()
    optimizer = lion(model, lr=0.01, betas=(0.9, 0.99), weight_decay=0.5)
    weight, momentum = model.output.weight, torch.zeros_like(model.output.weight)
    for seed in range(2):
        old = weight.detach().clone()
        step(model, optimizer, seed)
        update = (0.9 * momentum + 0.1 * weight.grad).sign()
        torch.testing.assert_close(weight.detach(), old - 0.01 * (update + 0.5 * old), atol=1e-7, rtol=0)
        momentum = 0.99 * momentum + 0.01 * weight.grad


def test_muon_takes_the_matrices_of_the_layers_and_no_embedding_or_output():
    model = make_model()
    assert {id(p) for p in hidden_matrices(model)} == {id(layer.weight) for layer in model.layers}
    model.layers[0].weight = model.embedding.weight
    assert {id(p) for p in hidden_matrices(model)} == {id(model.layers[1].weight)}


def test_muon_orthogonalises_at_adamws_root_mean_square():
    """The update is 0.2 * sqrt(max(A, B)) times a near-orthogonal matrix (Liu et al. 2025, equation 4); five Newton-Schulz iterations
    bring its singular values to between 0.6 and 1.3 (Jordan et al. 2024), the smallest gradients' aside."""
    model = nn.ModuleList([nn.Linear(24, 12)])
    before = model[0].weight.detach().clone()
    optimizer = muon(model, lr=0.01, weight_decay=0.0)
    torch.manual_seed(0)
    model[0].weight.grad, model[0].bias.grad = torch.randn(12, 24), torch.randn(12)
    optimizer.step()
    singular = torch.linalg.svdvals((before - model[0].weight.detach()) / (0.01 * 0.2 * 24**0.5))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


@pytest.mark.parametrize("shape", [(12, 24), (24, 12), (16, 16)], ids=str)
def test_newton_schulz_is_the_polynomial_of_the_singular_values(shape):
    """Jordan et al. 2024: s -> a s + b s^3 + c s^5, five times, after a division by the Frobenius norm."""
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, singular, right = torch.linalg.svd(matrix.double() / matrix.norm().double(), full_matrices=False)
    for _ in range(5):
        singular = a * singular + b * singular**3 + c * singular**5
    found = newton_schulz(matrix, coefficients, 5, 1e-7)
    torch.testing.assert_close(found, (left * singular @ right).float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("has_bf16", [True, False], ids=["bf16", "fp32"])
def test_muon_is_torchs_to_the_rounding_of_its_products(monkeypatch, has_bf16, nesterov):
    monkeypatch.setattr(update_rules, "cpu_has_bf16", lambda: has_bf16)
    torch.manual_seed(0)
    one, other = (nn.Parameter(start) for start in torch.randn(12, 24).expand(2, -1, -1).clone())
    fields = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    ours = update_rules.Muon([{"params": [one]}], **fields)
    torchs = torch.optim.Muon([other], adjust_lr_fn="match_rms_adamw", **fields)
    start = one.detach().clone()
    for seed in range(3):
        one.grad = other.grad = torch.randn(12, 24, generator=torch.Generator().manual_seed(seed))
        ours.step()
        torchs.step()
    assert torch.equal(one, other) is has_bf16
    moved = (other - start).norm().item()
    assert (one - other).norm().item() < 0.02 * moved
    assert torch.equal(ours.state[one]["momentum_buffer"], torchs.state[other]["momentum_buffer"])
    # Elsewhere it goes on as it began.
    monkeypatch.setattr(update_rules, "cpu_has_bf16", lambda: not has_bf16)
    again = update_rules.Muon([{"params": [nn.Parameter(one.detach().clone())]}], **fields)
    again.load_state_dict(copy.deepcopy(ours.state_dict()))
    (moved_on,) = again.param_groups[0]["params"]
    moved_on.grad = one.grad
    again.step()
    ours.step()
    assert torch.equal(moved_on, one)


def test_muon_treats_the_rest_as_adamw_does():
    one, other = make_model(), make_model()
    step(one, muon(one, lr=0.01))
    step(other, adamw(other, lr=0.01))
    for (name, parameter), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected) is not (name.startswith("layers") and parameter.ndim == 2), name


def test_muons_other_rates_are_of_what_they_say_and_follow_the_schedule():
    model = make_model()
    optimizer = muon(model, lr=0.01, adamw_lr=0.02, embedding_lr=0.3, head_lr=0.0)
    named = {id(p): name for name, p in model.named_parameters()}
    rates = {named[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.pop("embedding.weight") == 0.3
    assert rates.pop("output.weight") == 0.0
    assert {rates.pop(f"layers.{i}.weight") for i in range(2)} == {0.01}
    assert set(rates.values()) == {0.02}
    decays = {named[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, decay in decays.items() if not decay} == set(rates)

    one = Optimization(partial(muon, lr=0.01, adamw_lr=0.02, head_lr=0.0), partial(Linear, warmup_steps=0))
    started = one.start(model, 10)
    one.set_rates(started, 5)
    assert sorted({group["lr"] for group in started.param_groups}) == pytest.approx([0.0, 0.005, 0.01])
    before = model.output.weight.detach().clone()
    step(model, started)
    assert torch.equal(model.output.weight, before)


def test_muon_with_all_rates_alike_is_muon_at_one_rate():
    one, other = make_model(), make_model()
    step(one, muon(one, lr=0.01))
    step(other, muon(other, lr=0.01, adamw_lr=0.01, embedding_lr=0.01, head_lr=0.01))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_cautious_adamw_is_adamw_without_what_disagrees_with_the_gradient():
    """Liang et al. 2024, algorithm 2, number by number over three steps of changing gradients."""
    w, lr, decay, beta1, beta2, eps = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), 0.1, 0.5, 0.9, 0.95, 1e-8
    model = nn.Module()
    model.w = nn.Parameter(w.clone())
    optimizer = cautious_adamw(model, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    gradients = [[1.0, -1.0, 0.5, 2.0], [-3.0, -1.0, -0.1, 1.0], [0.2, 4.0, 0.3, -9.0]]
    expected, m, v = w.flatten().tolist(), [0.0] * 4, [0.0] * 4
    left_out = 0
    for t, g in enumerate(gradients, 1):
        m = [beta1 * a + (1 - beta1) * b for a, b in zip(m, g, strict=True)]
        v = [beta2 * a + (1 - beta2) * b * b for a, b in zip(v, g, strict=True)]
        u = [a / (1 - beta1**t) / ((b / (1 - beta2**t)) ** 0.5 + eps) for a, b in zip(m, v, strict=True)]
        kept = [a * b > 0 for a, b in zip(u, g, strict=True)]
        left_out += kept.count(False)
        scale = 4 / (sum(kept) + 1)
        expected = [x - lr * decay * x - lr * scale * a * k for x, a, k in zip(expected, u, kept, strict=True)]
        model.w.grad = torch.tensor(g).reshape(2, 2)
        optimizer.step()
    assert left_out > 1
    assert model.w.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_muon_without_a_hidden_matrix_is_refused():
    with pytest.raises(ValueError, match="muon needs hidden matrices"):
        muon(nn.Linear(2, 2))


def test_schedule_frees_average_is_what_is_evaluated_and_training_goes_on_unchanged():
    """The average x is the mean of the iterates z weighted by lr^2, at one rate their plain mean (Defazio et al. 2024, equation 5)."""
    model = make_model()
    optimizer = schedule_free(model, lr=0.01, betas=(0.5, 0.98), weight_decay=0.0)
    optimizer.train()
    weight, fast = model.output.weight, []
    for i in range(5):
        step(model, optimizer, i)
        fast.append(optimizer.state[weight]["z"].clone())
    trained = weight.detach().clone()
    with evaluation_weights(optimizer) as differ:
        assert differ
        torch.testing.assert_close(weight.detach(), torch.stack(fast).mean(0), atol=1e-6, rtol=1e-5)
    assert torch.equal(weight, trained)
    step(model, optimizer, 9)  # still in its training mode


def test_an_optimizer_without_an_average_evaluates_what_it_trains():
    model = make_model()
    with evaluation_weights(adamw(model)) as differ:
        assert not differ
