"""What training adds to the loss: z-loss and the prediction of further tokens beside their formulas written as loops, and
the losses of mixtures of experts, however a batch is split."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from attnlab.data.special_tokens import leading_special_tokens
from attnlab.layers import DeepNorm, GPT2Init, MixtureOfExperts, PreNorm, RelativeBias
from attnlab.layers.init import weights_of
from attnlab.models import GPT, T5, Bert, EncoderDecoder, T5LanguageModel, measure_size
from attnlab.tasks import CausalLanguageModelling, MaskedLanguageModelling, SpanCorruption, Translation
from attnlab.training.additions import PartCounts, place_of

V, SIZES = 11, {"d_model": 16, "num_heads": 2, "num_layers": 2, "dropout": 0.0}
MIXTURE = partial(MixtureOfExperts, num_experts=4, balance_coefficient=0.3, z_coefficient=0.1)


def draw(*shape, seed=0):
    return torch.randint(5, V, shape, generator=torch.Generator().manual_seed(seed))


def lm_batch(rows=4, length=9):
    tokens = draw(rows, length + 1)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def pair_batch():
    """Rows whose sources and targets are of unequal lengths."""
    lengths = torch.tensor([[7, 8], [3, 2], [5, 6], [7, 1]])
    is_source, is_target = (torch.arange(8) < lengths[:, side, None] for side in (0, 1))
    target = draw(4, 8, seed=2)
    return {
        "source": draw(4, 8, seed=1), "is_source": is_source, "is_target": is_target, "target_out": target,
        "target_in": torch.cat([torch.full((4, 1), 1), target[:, :-1]], dim=1), "ids": torch.arange(4),
    }  # fmt: skip


def masked_batch():
    chosen = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    chosen[:, 0] = True
    return {"tokens": draw(4, 9).masked_fill(chosen, 3), "targets": draw(4, 9), "chosen": chosen}


def made(kind, **fields):
    """A task of each objective with a batch for it."""
    torch.manual_seed(0)
    parts = {"feed_forward": fields.pop("feed_forward")} if "feed_forward" in fields else {}
    sizes = SIZES | parts
    if kind == "causal_lm":
        task = CausalLanguageModelling(GPT(V, 16, extra_heads=fields.pop("extra_heads", 0), **sizes), **fields)
        return task, lm_batch()
    if kind == "masked_lm":
        return MaskedLanguageModelling(Bert(V, 16, **sizes), **fields), masked_batch()
    if kind == "translation":
        model = EncoderDecoder(V, max_length=16, residual=PreNorm, position=RelativeBias, **sizes)
        return Translation(model, leading_special_tokens(), **fields), pair_batch()
    family = {"t5": T5, "prefix": T5LanguageModel}[kind]
    return SpanCorruption(family(V, max_length=32, **sizes), **fields), pair_batch()


KINDS = ["causal_lm", "masked_lm", "translation", "t5", "prefix"]


def counted_logits(kind, task, batch):
    """The logits of the targets that count, one after the other."""
    if kind == "causal_lm":
        return task.model(batch["tokens"]).flatten(0, 1)
    if kind == "masked_lm":
        return task.model(batch["tokens"])[batch["chosen"]]
    return task.model(batch["source"], batch["target_in"], batch["is_source"])[batch["is_target"]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_z_loss_is_the_squared_logarithm_of_the_partition_function(kind):
    task, batch = made(kind, z_loss=0.5)
    with torch.no_grad():
        sums = task.training_sums(batch)
        plain, rows = task.loss_sums(batch), counted_logits(kind, task, batch).tolist()
        without, _ = made(kind)
        nothing = without.training_sums(batch)
    expected = 0.5 * sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in rows)
    assert sums.auxiliary["z_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert sums.objective.item() == pytest.approx(plain.loss.item() + expected, rel=1e-5)
    assert sums.loss.item() == plain.loss.item() == nothing.objective.item()
    assert "z_loss" not in plain.auxiliary  # what an evaluation reports
    assert nothing.added is None


def test_the_gradient_of_the_z_loss_is_a_finite_difference():
    task, batch = made("causal_lm", z_loss=0.5)
    task.model.double()
    weight = task.model.embedding.weight
    objective = lambda: task.training_sums(batch).objective.double()  # noqa: E731
    objective().backward()
    for place in ((6, 3), (9, 0)):
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                weight[place] += step
                values.append(objective().item())
                weight[place] -= step
        assert weight.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2)


def split(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_a_batch_changes_no_loss_that_experts_add(kind):
    task, batch = made(kind, feed_forward=MIXTURE)
    whole = task.training_sums(batch)
    parts = [task.training_sums(split(batch, rows)) for rows in (slice(0, 1), slice(1, 4))]
    for name in ("balance_loss", "router_z_loss"):
        together = sum(part.auxiliary[name] for part in parts)
        torch.testing.assert_close(together, whole.auxiliary[name], rtol=1e-5, atol=1e-5)
        assert whole.auxiliary[name] > 0
    torch.testing.assert_close(sum(part.objective for part in parts), whole.objective, rtol=1e-5, atol=1e-4)
    for mixture, counts in whole.counts.items():
        assert torch.equal(sum(part.counts[mixture] for part in parts), counts)
    assert whole.loss.item() == pytest.approx(task.loss_sums(batch).loss.item())
    assert not {"balance_loss", "router_z_loss"} & task.loss_sums(batch).auxiliary.keys()


@pytest.mark.parametrize("kind", ["translation", "t5", "prefix"])
def test_padding_counts_nowhere(kind):
    task, batch = made(kind, feed_forward=MIXTURE)
    sums = task.training_sums(batch)
    real = {2 * int(batch["is_source"].sum()), 2 * int(batch["is_target"].sum())}
    if kind == "prefix":
        real = {sum(real)}
    assert {int(counts.sum()) for counts in sums.counts.values()} == real
    others = {
        "source": batch["source"].where(batch["is_source"], 9),
        "target_in": batch["target_in"].where(batch["is_target"], 9),
    }
    again = task.training_sums({**batch, **others})
    torch.testing.assert_close(again.auxiliary["balance_loss"], sums.auxiliary["balance_loss"])
    lengths = [slice(None, int(batch[f"is_{side}"][2].sum())) for side in ("source", "target")]
    row = {
        name: value[2:3, lengths["target" in name]] if value.ndim > 1 else value[2:3] for name, value in batch.items()
    }
    alone, of_row = task.training_sums(row), task.training_sums(split(batch, slice(2, 3)))
    torch.testing.assert_close(alone.added, of_row.added, rtol=1e-5, atol=1e-5)


def test_parts_are_told_of_a_step_over_its_micro_batches_and_ranks():
    task, batch = made("causal_lm", feed_forward=partial(MIXTURE, balance="bias", bias_update_rate=0.5))
    counts, both = PartCounts(), task.training_sums(batch).counts
    for rows in (slice(0, 1), slice(1, 4)):
        counts.accumulate(task.training_sums(split(batch, rows)).counts)
    told = counts.tell(task.model, lambda summed: 2 * summed)
    assert [place_of(name) for name in told] == ["layer=0", "layer=1"]
    for mixture, expected in both.items():
        load, bias = expected.max() / expected.double().mean(), mixture.balance.bias_E
        assert torch.equal(bias, 0.5 * (expected.double().mean() - expected).sign().float())
        assert any(torch.equal(values["expert_load"], load) for values in told.values())
    assert counts.tell(task.model, None) == {}
    assert place_of("decoder.stack.layers.3.feed_forward") == "decoder/layer=3"


@pytest.mark.parametrize("residual", [PreNorm, DeepNorm])
def test_further_tokens_are_predicted_from_the_trunk_by_layers_of_their_own(residual):
    torch.manual_seed(0)
    model = GPT(V, 16, extra_heads=2, residual=residual, **SIZES)
    task, batch = CausalLanguageModelling(model), lm_batch()
    sums, plain = task.training_sums(batch), task.loss_sums(batch)
    # A model that ends in the head in the place of its last layer predicts what the head does.
    for number, head in enumerate(model.stack.heads_ahead, start=1):
        torch.manual_seed(0)
        other = GPT(V, 16, residual=residual, **SIZES)
        other.load_state_dict({name: value for name, value in model.state_dict().items() if "heads_ahead" not in name})
        other.stack.layers[-1].load_state_dict(head.state_dict())
        logits, expected = other(batch["tokens"]), 0.0
        for row in range(4):
            places = range(9 - number)
            nats = [-F.log_softmax(logits[row, t], -1)[batch["targets"][row, t + number]] for t in places]
            expected = expected + 9 * sum(nats) / len(nats)
        torch.testing.assert_close(sums.auxiliary[f"loss_{number + 1}_ahead"], expected, rtol=1e-5, atol=1e-4)
    assert sums.loss.item() == plain.loss.item()
    assert plain.auxiliary == {}
    assert sums.objective.item() == pytest.approx(sums.loss.item() + sum(v.item() for v in sums.auxiliary.values()))
    sums.objective.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_heads_ahead_change_no_logits_and_cost_a_layer_and_an_output_each():
    torch.manual_seed(0)
    with_heads = GPT(V, 16, extra_heads=2, **SIZES)
    torch.manual_seed(0)
    plain, batch = GPT(V, 16, **SIZES), lm_batch()
    assert torch.equal(with_heads(batch["tokens"]), plain(batch["tokens"]))  # first weights are drawn by name
    sizes = [
        measure_size(model, lambda model=model: int(CausalLanguageModelling(model).training_sums(batch).tokens))
        for model in (plain, with_heads)
    ]
    a_layer = 4 * 16 * 16 + 2 * 16 * 64
    norms = 2 * 2 * 16
    assert sizes[1].parameters - sizes[0].parameters == 2 * (a_layer + norms)
    forward = (
        2 * (2 * a_layer + 2 * 2 * 9 * 16) * 4 * 9
    )  # a multiplication and an addition; q.k and weights.v over 9 keys
    outputs = 2 * 16 * V * 4 * (8 + 7)
    assert sizes[1].flops_per_token - sizes[0].flops_per_token == pytest.approx(3 * (forward + outputs) / 36, abs=1)


def test_heads_ahead_are_drawn_as_the_last_layer_is():
    model = GPT(V, 16, extra_heads=3, init=GPT2Init, **SIZES)
    roles = {weight.name: weight for weight in weights_of(model)}
    head = roles["stack.heads_ahead.2.feed_forward.down.weight"]
    assert (head.writes, head.depth) == (True, roles["stack.layers.1.feed_forward.down.weight"].depth)


def test_decoding_with_a_cache_needs_no_heads():
    torch.manual_seed(0)
    model, tokens = GPT(V, 16, extra_heads=2, **SIZES).eval(), draw(2, 6)
    cache = model.new_cache(6)
    with torch.no_grad():
        steps = [model(tokens[:, i : i + 1], cache=cache) for i in range(6)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(tokens))


def test_what_is_added_never_enters_what_is_reported_of_a_validation():
    task, batch = made("causal_lm", feed_forward=MIXTURE, z_loss=0.5, extra_heads=1)
    kept = task.kept_of(batch)
    assert kept.keys() == {"tokens", "loss"}
    task.sums.accumulate(task.training_sums(batch), alone=True)
    task.sums.finish_step(1, True, None)
    means = task.sums.take_means()
    assert means.keys() == {"objective", "balance_loss", "router_z_loss", "z_loss", "loss_2_ahead"}
    assert means["objective"] == pytest.approx(float(kept["loss"]) / 36)
    assert SimpleNamespace(**means).z_loss > 0
