"""A step's gradient is that of the mean over its tokens, however they are split over micro-batches (for ranks: test_split_batches.py)."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tiny_run import Stream, TinyData, make_task, same_bits, train, weights
from torch import nn

from attnlab.training import Diverged, read_json


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def lines(path: Path) -> list[dict]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_one_step_is_the_gradient_of_the_mean_over_all_its_tokens(tmp_path, clip, as_tensor, accumulate):
    task, reference = make_task(sgd, dropout=0.0), make_task(sgd, dropout=0.0)
    task.count_as_tensor = as_tensor
    task.optimization.schedule = lambda total_steps: lambda step: 1.0
    train(tmp_path, task, max_steps=1, accumulate_grad_batches=accumulate, gradient_clip_val=clip, val_check_interval=0)
    batches = [batch for _, batch in zip(range(accumulate), Stream(4), strict=False)]
    tokens, targets = (torch.cat([batch[name] for batch in batches]) for name in ("tokens", "targets"))
    loss = nn.functional.cross_entropy(reference.model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), clip or math.inf)
    for parameter, expected in zip(task.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected - 1e-2 * expected.grad, atol=1e-7, rtol=1e-5)
    (line,) = lines(tmp_path)
    assert line["values"]["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["values"]["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert line["tokens"] == (targets >= 0).sum()


def test_two_micro_batches_are_one_of_twice_the_size(tmp_path):
    one, two = make_task(dropout=0.0), make_task(dropout=0.0)
    train(tmp_path / "one", one, TinyData(8))
    train(tmp_path / "two", two, TinyData(4), accumulate_grad_batches=2)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=1e-6, rtol=0)
    for line, other in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert (line["step"], line["tokens"]) == (other["step"], other["tokens"])
        assert line["values"] == pytest.approx(other["values"], abs=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched(tmp_path):
    task = make_task(dropout=0.0)
    task.poison = 7
    with pytest.raises(Diverged, match="not finite at step 8"):
        train(tmp_path, task)
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["step"]) == ("diverged", 8)
    assert "not finite at step 8" in status["error"]
    assert all(value.isfinite().all() for value in weights(task).values())
    straight = make_task(dropout=0.0)
    straight_settings = {"max_steps": 20, "callbacks": (StopBefore(8),)}
    train(tmp_path / "straight", straight, **straight_settings)
    assert same_bits(weights(straight), weights(task))


class StopBefore(pl.Callback):
    """Ends the training in good order before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *arguments) -> None:
        trainer.should_stop = trainer.global_step >= self.step - 1


def test_a_batch_without_a_target_changes_nothing(tmp_path):
    task = make_task(sgd, dropout=0.0)
    before = weights(task)
    given = task.loss_sums
    task.loss_sums = lambda batch: given(batch | {"targets": torch.full_like(batch["targets"], -1)})
    train(tmp_path, task, max_steps=3, val_check_interval=0)
    assert same_bits(before, weights(task))


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
