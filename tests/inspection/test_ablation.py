"""Masking a head is zeroing its part of the output projection, and its effect is what a sure interval says."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attnlab.inspection.ablation import ExampleLosses, TaskLosses, ablate, effect, heads_of, masked
from attnlab.inspection.attention_maps import CROSS, DECODER, ENCODER, SELF
from attnlab.inspection.heads import Head
from attnlab.layers import (
    DifferentialAttention,
    GroupedQuery,
    LatentAttention,
    MultiHead,
    SharedKeyValues,
    TalkingHeads,
)
from attnlab.models import GPT, T5, EncoderDecoder, RecurrentLanguageModel
from attnlab.training import LossSums, Task

V, D, H = 11, 16, 4
SMALL = {"vocabulary_size": V, "d_model": D, "num_heads": H, "num_layers": 2}


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def make_gpt(attention=MultiHead, **fields):
    torch.manual_seed(0)
    return shaken(GPT(max_length=8, **SMALL, attention=attention, **fields))


def draw(*shape):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


class Sums(Task):
    """Next-token nats, as every task has them."""

    def loss_sums(self, batch):
        logits = self.model(batch["tokens"]).flatten(0, 1)
        return LossSums(F.cross_entropy(logits, batch["targets"].flatten(), reduction="sum"), batch["targets"].numel())


@pytest.mark.parametrize(
    "attention",
    [
        MultiHead,
        GroupedQuery,
        partial(MultiHead, output_gate=True),
        partial(GroupedQuery, soft_cap=1.0, backend="eager"),
        DifferentialAttention,
        partial(LatentAttention, d_head=6, d_value=D // H),
        TalkingHeads,
        SharedKeyValues,
    ],
)
def test_a_masked_head_is_one_whose_rows_of_the_output_projection_are_zero(attention):
    model, tokens = make_gpt(attention, bias=True), draw(2, 6)
    with torch.no_grad():
        whole = model(tokens)
        with masked(model, [Head(SELF, 1, 2)]):
            found = model(tokens)
        output = model.stack.layers[1].attention.output
        kept = output.weight.clone()
        output.weight[:, 2 * D // H : 3 * D // H] = 0
        assert torch.equal(found, model(tokens))
        output.weight.copy_(kept)
        assert torch.equal(whole, model(tokens))
        assert not torch.allclose(whole, found, atol=1e-3)


def test_all_heads_masked_is_an_attention_that_gives_its_bias_alone():
    model, tokens = make_gpt(bias=True), draw(2, 6)
    with torch.no_grad():
        with masked(model, [Head(SELF, 0, head) for head in range(H)]):
            found = model(tokens)
        attention = model.stack.layers[0].attention
        hook = attention.output.register_forward_pre_hook(lambda module, args: (torch.zeros_like(args[0]),))
        assert torch.equal(found, model(tokens))
        hook.remove()
        hook = attention.register_forward_hook(lambda module, args, out: attention.output.bias.expand_as(out))
        torch.testing.assert_close(found, model(tokens))
        hook.remove()


def test_heads_of_all_kinds_and_of_shared_layers():
    torch.manual_seed(0)
    model = shaken(T5(**SMALL, dropout=0.0, share_layers=True))
    kinds = [(head.kind, head.layer) for head in heads_of(model) if head.head == 0]
    assert kinds == [(ENCODER, 0), (ENCODER, 1), (DECODER, 0), (CROSS, 0), (DECODER, 1), (CROSS, 1)]
    source, target = draw(1, 5), draw(1, 4)
    with torch.no_grad():
        states, logits = model.encode(source), model(source, target)
        with masked(model, [Head(ENCODER, 0, 1)]):
            assert not torch.allclose(model.encode(source), states, atol=1e-3)
        # The same weights, but of the decoder: the encoder's states stay.
        seen = []
        hook = model.encoder.register_forward_hook(lambda module, args, out: seen.append(out))
        with masked(model, [Head(DECODER, 0, 1)]):
            changed = model(source, target)
        hook.remove()
        assert torch.equal(seen[0], states)
        assert not torch.allclose(changed, logits, atol=1e-3)
        assert torch.equal(model(source, target), logits)


def test_nothing_stays_changed_after_an_error():
    model = make_gpt()
    with pytest.raises(ZeroDivisionError), masked(model, heads_of(model)):
        raise ZeroDivisionError
    assert all(not layer.attention.output._forward_pre_hooks for layer in model.stack.layers)


def test_effects_are_the_change_of_the_tasks_own_loss():
    model = make_gpt(GroupedQuery)
    rows = draw(5, 7)
    batches = [{"tokens": part[:, :-1], "targets": part[:, 1:]} for part in (rows[:3], rows[3:])]
    task = Sums(model)
    effects = ablate(model, TaskLosses(task, batches))
    assert list(effects) == [Head(SELF, layer, head) for layer in range(2) for head in range(H)]
    whole = task.score(batches)["loss"]
    for head in (Head(SELF, 0, 0), Head(SELF, 1, 3)):
        with masked(model, [head]):
            assert effects[head].change == pytest.approx(task.score(batches)["loss"] - whole, abs=1e-5)
        assert effects[head].before == pytest.approx(whole, abs=1e-5)
        assert effects[head].examples == 5


def test_a_head_whose_output_is_not_read_changes_nothing():
    model = make_gpt()
    with torch.no_grad():
        model.stack.layers[0].attention.output.weight[:, : D // H] = 0
    rows = draw(4, 7)
    found = ablate(model, TaskLosses(Sums(model), [{"tokens": rows[:, :-1], "targets": rows[:, 1:]}]))
    dead = found[Head(SELF, 0, 0)]
    assert (dead.change, dead.low, dead.high, dead.verdict) == (0, 0, 0, "undecided")


def test_with_examples_of_one_length_the_interval_is_students():
    from scipy import stats

    random = np.random.default_rng(0)
    before, change = random.normal(20, 2, 30), random.normal(0.5, 1, 30)
    targets = torch.full((30,), 10)
    found = effect(ExampleLosses(torch.tensor(before), targets), ExampleLosses(torch.tensor(before + change), targets))
    low, high = stats.t.interval(0.95, 29, change.mean() / 10, stats.sem(change) / 10)
    assert (found.change, found.low, found.high) == pytest.approx((change.mean() / 10, low, high))


def test_with_examples_of_many_lengths_it_is_that_of_a_bootstrap():
    from scipy import stats

    random = np.random.default_rng(1)
    targets = random.integers(5, 60, 200)
    change = 0.1 * targets + random.normal(0, 0.3 * np.sqrt(targets))
    found = effect(
        ExampleLosses(torch.zeros(200), torch.tensor(targets)),
        ExampleLosses(torch.tensor(change), torch.tensor(targets)),
    )
    ratio = stats.bootstrap(
        (change, targets),
        lambda c, t, axis: c.sum(axis) / t.sum(axis),
        paired=True,
        n_resamples=2000,
        rng=0,
        method="percentile",
    ).confidence_interval
    assert found.change == pytest.approx(change.sum() / targets.sum())
    assert (found.low, found.high) == pytest.approx(tuple(ratio), abs=0.1 * (ratio.high - ratio.low))


def test_noise_is_seldom_taken_for_importance():
    random = np.random.default_rng(2)
    targets, heads = torch.full((40,), 10), 12
    families = 200
    wrong = 0
    for _ in range(families):
        verdicts = [
            effect(
                ExampleLosses(torch.zeros(40), targets),
                ExampleLosses(torch.tensor(random.normal(0, 1, 40)), targets),
                heads,
            ).verdict
            for _ in range(heads)
        ]
        wrong += any(verdict != "undecided" for verdict in verdicts)
    assert wrong / families < 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)


def test_one_example_decides_nothing():
    one = torch.tensor([5])
    found = effect(ExampleLosses(torch.zeros(1), one), ExampleLosses(torch.ones(1), one))
    assert (found.change, found.verdict) == (0.2, "undecided")
    assert math.isinf(found.high)


def test_a_model_without_heads_is_refused():
    model = RecurrentLanguageModel(vocabulary_size=V, num_layers=1, d_model=8)
    with pytest.raises(ValueError, match="RecurrentLanguageModel has no heads"):
        ablate(model, lambda: ExampleLosses(torch.zeros(1), torch.ones(1)))


def test_an_encoder_decoder_masks_its_cross_attention():
    torch.manual_seed(0)
    model = shaken(EncoderDecoder(**SMALL, dropout=0.0, max_length=8))
    source, target = draw(1, 5), draw(1, 4)
    with torch.no_grad(), masked(model, [head for head in heads_of(model) if head.kind == CROSS]):
        # No way is left from the source to the logits.
        torch.testing.assert_close(model(source, target), model(draw(1, 5).flip(1), target))
