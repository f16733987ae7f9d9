"""Mixtures of experts beside transformers' own blocks, and their losses beside the papers' formulas written as loops."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from attnlab.layers import GELU, FeedForward, GPT2Init, MixtureOfExperts, SwiGLU, Xavier
from attnlab.layers.added import collecting
from attnlab.layers.init import weights_of
from attnlab.models import GPT, idle_parameters, measure_size

D, F, E, K = 16, 24, 6, 2
SWIGLU = partial(SwiGLU, matched=False)


def mixture(**fields):
    torch.manual_seed(0)
    return MixtureOfExperts(**{"d_model": D, "d_ff": F, "num_experts": E, "top_k": K} | fields)


def x_btd(batch=3, length=10, seed=1):
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(seed))


def draw(block):
    for number, parameter in enumerate(block.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return block.eval()


def take(ours, theirs, router):
    """Gives a mixture of SwiGLU layers the weights of a block of transformers."""
    ours.router.weight.data = theirs.gate.weight.data if router else theirs.router.weight.data
    for expert, gate_up, down in zip(ours.experts, theirs.experts.gate_up_proj, theirs.experts.down_proj, strict=True):
        expert.gate.weight.data, expert.up.weight.data = gate_up.data.chunk(2)
        expert.down.weight.data = down.data


def test_it_is_mixtrals_block():
    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=K)
    theirs, ours = draw(MixtralSparseMoeBlock(config)), mixture(expert=SWIGLU)
    take(ours, theirs, router=True)
    torch.testing.assert_close(ours(x_btd()), theirs(x_btd()), rtol=1e-5, atol=1e-5)


def test_it_is_deepseek_v3s_block_with_a_bias_and_shared_experts():
    config = DeepseekV3Config(
        hidden_size=D, moe_intermediate_size=F, num_local_experts=E, n_routed_experts=E, num_experts_per_tok=K, n_group=1,
        topk_group=1, n_shared_experts=1, norm_topk_prob=True, routed_scaling_factor=1.0,
    )  # fmt: skip
    theirs = draw(DeepseekV3MoE(config))
    ours = mixture(expert=SWIGLU, gate="sigmoid", balance="bias", shared_experts=1)
    take(ours, theirs, router=True)
    shared = theirs.shared_experts
    for name, layer in (("gate", shared.gate_proj), ("up", shared.up_proj), ("down", shared.down_proj)):
        getattr(ours.shared[0], name).weight.data = layer.weight.data
    plain = ours(x_btd())
    bias = torch.randn(E, generator=torch.Generator().manual_seed(3))
    ours.balance.bias_E.copy_(bias)
    theirs.gate.e_score_correction_bias.data = bias
    torch.testing.assert_close(ours(x_btd()), theirs(x_btd()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours(x_btd()), plain), "the bias chooses other experts"


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("top_k", "normalize"), [(1, False), (3, True), (3, False), (E, True), (E, False)])
def test_a_token_gets_the_weighted_sum_of_its_best_experts(top_k, gate, normalize):
    module = mixture(top_k=top_k, gate=gate, normalize=normalize, balance="none", shared_experts=2, bias=True)
    out = module(x_btd())
    for b, t in itertools.product(range(3), range(10)):
        x_D = x_btd()[b, t]
        logits = module.router.weight @ x_D
        gates = logits.softmax(0) if gate == "softmax" else logits.sigmoid()
        best = sorted(range(E), key=lambda e: -gates[e])[:top_k]
        total = sum(gates[e] for e in best) if normalize else 1.0
        expected = sum(gates[e] / total * module.experts[e](x_D) for e in best) + sum(s(x_D) for s in module.shared)
        torch.testing.assert_close(out[b, t], expected, rtol=1e-5, atol=1e-5)


def left_by(module, x, batch=None, scope=None):
    with collecting() as added:
        module(x, scope=scope)
    [routing] = added.additions
    return routing.losses(batch or {}), routing.counts(batch or {})


class Padded:
    """What of a scope a mixture looks at."""

    def __init__(self, is_token_BT, causal=False):
        self.is_token_BT, self.causal, self.prefix_B1 = is_token_BT, causal, None


def test_the_balance_loss_of_a_sequence_is_that_of_transformers_over_the_number_of_choices():
    module = mixture(balance_coefficient=0.5)
    losses, _ = left_by(module, x_btd())
    for row in range(3):
        theirs = load_balancing_loss_func((module.router(x_btd()[row]),), E, K)
        torch.testing.assert_close(losses["balance_loss"][row], 0.5 * theirs / K)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=3, max_size=3), st.sampled_from(["softmax", "sigmoid"]))
def test_losses_and_counts_are_those_of_real_tokens_alone(lengths, gate):
    module = mixture(gate=gate, z_coefficient=0.1)
    is_token_BT = torch.arange(10) < torch.tensor(lengths)[:, None]
    losses, counts = left_by(module, x_btd(), scope=Padded(is_token_BT))
    expected_counts = [0] * E
    for row, length in enumerate(lengths):
        chosen, shares, z = [0] * E, [0.0] * E, 0.0
        for t in range(length):
            logits = (module.router.weight @ x_btd()[row, t]).tolist()
            exps = [torch.tensor(v).exp().item() for v in logits]
            z += torch.tensor(sum(exps)).log().item() ** 2 / length
            gates = [e / sum(exps) for e in exps] if gate == "softmax" else [e / (1 + e) for e in exps]
            for e in range(E):
                shares[e] += gates[e] / sum(gates) / length
            for e in sorted(range(E), key=lambda e: -gates[e])[:K]:
                chosen[e] += 1
                expected_counts[e] += 1
        balance = sum(E / (K * length) * c * p for c, p in zip(chosen, shares, strict=True)) if length > 1 else 0.0
        assert losses["balance_loss"][row].item() == pytest.approx(0.01 * balance, rel=1e-4, abs=1e-7)
        assert losses["router_z_loss"][row].item() == pytest.approx(0.1 * z, rel=1e-4, abs=1e-7)
    assert counts.tolist() == expected_counts


def test_the_padding_of_targets_counts_nowhere_in_a_decoder():
    module, is_target = mixture(), torch.arange(10) < torch.tensor([10, 4, 1])[:, None]
    told = left_by(module, x_btd(), {"is_target": is_target}, Padded(None, causal=True))
    known = left_by(module, x_btd(), scope=Padded(is_target))
    assert torch.equal(told[1], known[1])
    assert torch.equal(told[0]["balance_loss"], known[0]["balance_loss"])
    assert left_by(module, x_btd(), {"is_target": is_target}, Padded(None))[1].sum() == 3 * 10 * K  # an encoder's own


def test_a_bias_moves_against_the_load_and_makes_experts_equally_busy():
    module = mixture(balance="bias", bias_update_rate=0.01, gate="sigmoid")
    module.after_step(torch.tensor([4, 0, 2, 2, 2, 2]))
    torch.testing.assert_close(module.balance.bias_E, torch.tensor([-0.01, 0.01, 0, 0, 0, 0]))
    with torch.no_grad():
        module.router.weight[0] += 0.5 * x_btd(20, 20).mean((0, 1)).sign()  # one expert that all would choose
    loads = []
    for _ in range(200):
        losses, counts = left_by(module, x_btd(20, 20) + 0.3)
        assert "balance_loss" not in losses
        loads.append(float(module.after_step(counts)["expert_load"]))
    assert loads[0] > 1.2
    assert loads[-1] < 1.05


def test_the_load_is_the_most_over_the_mean():
    assert mixture().after_step(torch.tensor([6, 0, 0, 0, 0, 6]))["expert_load"] == 3.0


def test_gradients_reach_the_experts_that_were_chosen_and_others_have_zeros():
    module = mixture(num_experts=40)
    _, counts = left_by(module, x_btd(1, 5))
    module(x_btd(1, 5)).square().sum().backward()
    for expert, count in zip(module.experts, counts.tolist(), strict=True):
        assert expert.up.weight.grad is not None
        assert (expert.up.weight.grad.abs().max() > 0) == (count > 0)
    assert module.router.weight.grad.abs().max() > 0


def test_the_gradient_is_that_of_a_finite_difference():
    module = mixture().double()
    x = x_btd(2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(module, x, eps=1e-6)


def test_nothing_is_left_where_nobody_collects_and_computing_twice_leaves_it_once():
    model = GPT(13, 16, feed_forward=mixture_of(balance_coefficient=1.0), d_model=D, num_heads=2, num_layers=2)
    tokens, found = torch.randint(0, 13, (2, 8), generator=torch.Generator().manual_seed(0)), {}
    for recomputed in (False, True):
        model.stack.checkpoint_activations = recomputed
        model.zero_grad()
        with collecting() as added:
            loss = model(tokens).square().mean()
        assert len(added.additions) == 2
        (loss + sum(each.losses({})["balance_loss"].sum() for each in added.additions)).backward()
        assert len(added.additions) == 2, "the second forward pass of a checkpoint left something"
        found[recomputed] = [parameter.grad.clone() for parameter in model.parameters()]
    for once, twice in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(twice, once)


def mixture_of(**fields):
    return partial(MixtureOfExperts, **{"num_experts": E, "top_k": K} | fields)


@pytest.mark.parametrize("expert", [GELU, SwiGLU])
def test_active_parameters_and_operations_are_those_of_a_tokens_experts(expert):
    chosen = mixture_of(expert=expert, d_expert=F, shared_experts=1)
    model = GPT(13, 16, feed_forward=chosen, d_model=D, num_heads=2, num_layers=3)
    dense = GPT(13, 16, feed_forward=expert, d_ff=F, d_model=D, num_heads=2, num_layers=3)
    tokens = torch.randint(0, 13, (2, 8), generator=torch.Generator().manual_seed(0))
    size, of_dense = (measure_size(m, lambda m=m: m(tokens).shape[:2].numel()) for m in (model, dense))
    width = F if expert is GELU else round(2 * F / 3)
    of_one, router = (2 if expert is GELU else 3) * D * width, D * E
    assert size.parameters - of_dense.parameters == 3 * (E * of_one + router)
    assert size.active_parameters - of_dense.active_parameters == 3 * (K * of_one + router)
    assert idle_parameters(model) == size.parameters - size.active_parameters == 3 * (E - K) * of_one
    assert size.flops_per_token - of_dense.flops_per_token == 6 * 3 * (K * of_one + router)
    assert of_dense.counts().keys() == {"total", "non_embedding"}
    counts = size.counts()
    assert counts["total"] - counts["active_total"] == counts["non_embedding"] - counts["active_non_embedding"] > 0


@pytest.mark.parametrize("init", [GPT2Init, Xavier])
def test_experts_are_drawn_as_the_layers_that_they_are(init):
    model = GPT(13, 16, feed_forward=mixture_of(), d_model=D, num_heads=2, num_layers=3, init=init)
    roles = {weight.name: weight for weight in weights_of(model)}
    down, up = (roles[f"stack.layers.0.feed_forward.experts.3.{name}.weight"] for name in ("down", "up"))
    assert (down.writes, down.depth, up.writes) == (True, 6, False)
    assert len({layer.feed_forward.experts[0].up.weight[0, 0].item() for layer in model.stack.layers}) == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_k": 7}, "feed_forward.top_k must be at most num_experts=6, got 7"),
        ({"top_k": 1}, "feed_forward.normalize: the weight of a single expert would always be 1"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        mixture(**fields)


def test_one_expert_of_one_is_the_layer_itself():
    module = mixture(num_experts=1, top_k=1)
    assert isinstance(module.experts[0], FeedForward)
    torch.testing.assert_close(module(x_btd()), module.experts[0](x_btd()))
