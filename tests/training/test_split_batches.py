"""A step's batch gives the same numbers whole, over two ranks, and in two micro-batches: for every kind of task, to the last evaluation."""

import sys
from pathlib import Path

import pytest
import split_runs
import torch

from attnlab.training import TrainerSettings, ranks


def pair(folder: Path, path: list[str]) -> None:
    """Everything that two ranks train, in one pair of processes; each writes what came out."""
    sys.path[:] = path
    found = {kind: split_runs.train(kind, folder, devices=2, strategy="ddp") for kind in split_runs.TASKS}
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("split")
    split_runs.write_texts(made)
    return made


@pytest.fixture(scope="module")
def whole(folder):
    return {kind: split_runs.train(kind, folder) for kind in split_runs.TASKS}


@pytest.fixture(scope="module")
def both(folder):
    for kind in split_runs.TASKS:
        split_runs.make(kind, folder, 1)  # the caches, which one process makes
    ranks.start(TrainerSettings(devices=2, device="cpu"), pair, folder, sys.path)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_numbers(one, other):
    assert len(one["losses"]) == split_runs.STEPS
    assert one["tokens"] == other["tokens"]
    assert one["losses"] == pytest.approx(other["losses"], abs=1e-6)
    for name, value in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], value, atol=1e-5, rtol=0)
    for figures in ("validated", "final"):
        assert one[figures] == pytest.approx(other[figures], rel=1e-5, abs=1e-5)
    assert one["outputs"] == other["outputs"]


@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_two_micro_batches_give_the_numbers_of_the_whole_batch(folder, whole, kind):
    assert_same_numbers(whole[kind], split_runs.train(kind, folder, accumulate=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_two_ranks_give_the_numbers_of_the_whole_batch(whole, both, kind):
    for rank in both:
        assert_same_numbers(whole[kind], rank[kind])


def test_what_is_evaluated_does_not_divide_by_two(folder):
    """So that the figures above show that every example counts once, also where one rank has one more."""
    data, _ = split_runs.make("translation", folder, 1)
    assert len(data.sources("test")) % 2 == len(data.sources("validation")) % 2 == 1
    masked, _ = split_runs.make("masked_lm", folder, 1)
    assert masked.corpus.test.num_tokens // masked.context % 2 == 1


def test_the_parts_of_a_step_have_unequal_numbers_of_tokens(folder):
    for kind in ("masked_lm", "translation"):
        data, task = split_runs.make(kind, folder, 2)
        batches = iter(data.train_dataloader())
        counts = [int(task.all_sums(next(batches))[1]) for _ in range(8)]
        assert len(set(counts)) > 3, counts
