"""A step's batch gives the same numbers whole, over two ranks, and in two micro-batches: for every kind of task, to the last evaluation."""

from types import SimpleNamespace

import pytest
import split_runs
from split_runs import assert_same_numbers


@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_two_micro_batches_give_the_numbers_of_the_whole_batch(texts, whole, kind):
    assert_same_numbers(whole[kind], split_runs.train(kind, texts, accumulate_grad_batches=2))


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
