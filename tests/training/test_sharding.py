"""Fully sharded training: the numbers of one device, checkpoints that any number of devices takes, and ranks that do not wait for each other."""

import pytest
import split_runs
import torch
from split_runs import assert_same_numbers
from torch import nn

from attnlab.layers import ReZero
from attnlab.models import GPT, T5
from attnlab.training import load_weights, read_checkpoint
from attnlab.training.sharding import gathered, own_layers, placed_as, shard, whole


def test_a_single_number_is_not_shared_out():
    model = GPT(8, 8, d_model=8, num_heads=2, num_layers=2, residual=ReZero)
    with pytest.raises(ValueError, match=r"trainer.strategy=fsdp2 cannot shard .*alpha, a single number"):
        shard(model, None)


def test_layers_that_share_parameters_are_gathered_with_the_rest():
    own, shared = (T5(8, d_model=8, num_heads=2, num_layers=2, share_layers=share) for share in (False, True))
    assert own_layers(own) == [*own.encoder.layers, *own.decoder.layers]
    assert own_layers(shared) == []


def test_what_is_not_shared_out_stays_as_it_is():
    state = {"tensor": torch.ones(3), "numbers": [1, 2.0, None]}
    assert whole(state) == state
    assert whole(state)["tensor"] is state["tensor"]
    assert placed_as(state["tensor"], torch.zeros(3)) is state["tensor"]
    model = nn.Linear(2, 2)
    with gathered(model):
        assert model(torch.ones(1, 2)).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_sharded_ranks_give_the_numbers_of_the_whole_batch_and_of_ddp(whole, both, kind):
    for rank in both:
        assert_same_numbers(whole[kind], rank["fsdp2"][kind])
        assert_same_numbers(rank["ddp"][kind], rank["fsdp2"][kind])


@pytest.mark.slow
def test_each_rank_keeps_half_of_the_weights_and_of_the_optimizers_state(both):
    assert [rank["ddp"]["share"] for rank in both] == [1.0, 1.0]
    assert [rank["fsdp2"]["share"] for rank in both] == pytest.approx([0.5, 0.5], abs=0.02)
    assert sum(rank["fsdp2"]["share"] for rank in both) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_rank_that_diverges_alone_ends_both_and_the_layer_is_named(both, strategy):
    for rank in both:
        step, layer = rank[strategy]["diverged"]
        assert step == 4
        assert "layers.1" in layer


@pytest.mark.slow
@pytest.mark.parametrize("name", split_runs.RESUMED)
def test_a_sharded_run_that_goes_on_has_the_bits_of_one_that_was_not_stopped(both, name):
    for rank in both:
        straight, resumed = rank[name]["straight"], rank[name]["resumed"]
        assert resumed["losses"] == straight["losses"][10:]
        assert resumed["final"] == straight["final"]
        assert all(torch.equal(resumed["weights"][key], value) for key, value in straight["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", split_runs.RESUMED)
def test_a_sharded_checkpoint_is_that_of_any_other_run(texts, both, alone, name):
    """It evaluates and goes on without ranks; and ranks go on from one that has none. Muon's products may be in bf16."""
    last = texts / name / "last.ckpt"
    ours, other = read_checkpoint(last), read_checkpoint(texts / f"{name}-of-one" / "last.ckpt")
    assert set(ours) == set(other)
    assert [list(state) for state in ours["optimizer_states"]] == [list(state) for state in other["optimizer_states"]]
    given = split_runs.RESUMED[name]
    _, task = split_runs.make(given()["kind"], texts, 1)
    assert load_weights(task, last)["step"] == split_runs.STEPS
    for key, value in task.state_dict().items():
        assert torch.equal(value, both[0][name]["straight"]["weights"][key])
    gone_on = split_runs.train(folder=texts, accumulate_grad_batches=2, resume=texts / name / "step=10.ckpt", **given())
    near = 5e-3 if name == "muon" else 1e-5
    for found in (gone_on, both[0][name]["from_one"], both[1][name]["from_one"]):
        assert found["losses"] == pytest.approx(alone[name]["losses"][10:], abs=near)
        for key, value in alone[name]["weights"].items():
            torch.testing.assert_close(found["weights"][key], value, atol=near, rtol=0)
        assert found["final"] == pytest.approx(alone[name]["final"], abs=near, rel=near)


@pytest.mark.slow
def test_the_best_checkpoint_is_whole_too(texts, both):
    _, task = split_runs.make("causal_lm", texts, 1)
    assert load_weights(task, texts / "ema" / "best.ckpt")["step"] in (10, 20)
