"""What parts are told of a step, in a training: the same however its batch is split, and after a restart."""

import pytest
import split_runs
import torch


@pytest.fixture(scope="module")
def straight(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, split_runs.train("experts_bias", texts, checkpoints=folder)


def test_the_bias_of_experts_is_that_of_the_whole_batch(texts, straight):
    _, whole = straight
    halves = split_runs.train("experts_bias", texts, accumulate_grad_batches=2)
    biases = [name for name in whole["weights"] if name.endswith("bias_E")]
    assert len(biases) == 3  # of two layers, and of the head ahead
    for name in biases:
        assert whole["weights"][name].abs().max() > 0
        assert torch.equal(halves["weights"][name], whole["weights"][name])


def test_a_training_that_goes_on_gives_the_same_bits(texts, straight):
    folder, whole = straight
    resumed = split_runs.train("experts_bias", texts, resume=folder / "step=10.ckpt")
    assert all(torch.equal(resumed["weights"][name], value) for name, value in whole["weights"].items())
    assert resumed["losses"] == whole["losses"][10:]
    assert resumed["final"] == whole["final"]
