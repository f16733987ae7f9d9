"""What is scored at the end of a training runs where the training ran."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from tiny_run import make_task


def test_evaluation_goes_back_to_the_device_of_the_training():
    # Lightning moves a trained model to the CPU; the meta device stands for a GPU.
    task = make_task()
    task._trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("meta")),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    with task.evaluating():
        assert task.device.type == "meta"
        assert task.on_device({"tokens": torch.zeros(2)})["tokens"].device.type == "meta"
        assert {parameter.device.type for parameter in task.model.parameters()} == {"meta"}
        assert not task.model.training
    assert task.model.training
