"""A step's batch gives the same numbers whole, over two ranks, and in two micro-batches: for every kind of task, to the last evaluation."""

from types import SimpleNamespace

import pytest
import split_runs
import torch
from split_runs import assert_same_numbers


@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_two_micro_batches_give_the_numbers_of_the_whole_batch(texts, whole, kind):
    assert_same_numbers(whole[kind], split_runs.train(kind, texts, accumulate_grad_batches=2))


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
def test_within_ramps_two_micro_batches_give_the_numbers_of_the_whole_batch(texts, kind):
    """Of which the two parts have unequal numbers of examples: 3 in a step, 5 in another."""
    one, two = (split_runs.train(kind, texts, parts, ramps=split_runs.RAMPS) for parts in (1, 2))
    assert_same_numbers(one, two)
    data, _ = split_runs.make(kind, texts, 1)
    data.ramps = split_runs.RAMPS
    if kind == "causal_lm":  # masked words are whole, so that there are at most as many terms as are foretold
        assert one["tokens"] == data.tokens_in(split_runs.STEPS, 1) < split_runs.STEPS * data.tokens_per_step(1)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_that_was_stopped_within_ramps_goes_on_to_the_same_bits(texts, tmp_path, parts):
    straight = split_runs.train("causal_lm", texts, parts, ramps=split_runs.RAMPS, checkpoints=tmp_path)
    resumed = split_runs.train("causal_lm", texts, parts, ramps=split_runs.RAMPS, resume=tmp_path / "step=10.ckpt")
    assert split_runs.RAMPS.batch.steps > 10 < split_runs.RAMPS.length.steps
    assert resumed["losses"] == straight["losses"][10:]
    assert resumed["tokens"] == straight["tokens"]
    assert all(torch.equal(weight, straight["weights"][name]) for name, weight in resumed["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_two_ranks_give_the_numbers_of_the_whole_batch(whole, both, kind):
    for rank in both:
        assert_same_numbers(whole[kind], rank["ddp"][kind])


def test_what_is_evaluated_does_not_divide_by_two(texts):
    """So that the figures above show that every example counts once, also where one rank has one more."""
    data, _ = split_runs.make("translation", texts, 1)
    assert len(data.sources("test")) % 2 == len(data.sources("validation")) % 2 == 1
    masked, _ = split_runs.make("masked_lm", texts, 2)
    shares = []
    for rank in range(2):
        masked.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append(masked.evaluation_loader("test"))
    assert [sum(len(batch["tokens"]) for batch in share) for share in shares] == [9, 8]
    assert [len(share) for share in shares] == [3, 2]  # sharded ranks, too, may not wait for each other here


def test_the_parts_of_a_step_have_unequal_numbers_of_tokens(texts):
    for kind in ("masked_lm", "translation"):
        data, task = split_runs.make(kind, texts, 2)
        batches = iter(data.train_dataloader())
        counts = [int(task.loss_sums(next(batches)).tokens) for _ in range(8)]
        assert len(set(counts)) > 3, counts
