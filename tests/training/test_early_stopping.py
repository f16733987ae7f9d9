"""Where a training diverged is found, a plateau is told from a training that learns, and a loss scale that collapses ends a run."""

import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import VOCABULARY, TinyModel, TinyTask, make_task, train, weights
from torch import nn

from attnlab.training import (
    Diverged,
    DivergenceCheck,
    LossSums,
    Plateau,
    TrainerSettings,
    adafactor,
    adam,
    adamw,
    first_not_finite,
    lion,
    muon,
    read_json,
    schedule_free,
)
from attnlab.training.callbacks import Pruned, Pruning, validations
from attnlab.training.loss import NOTHING


class Breaks(nn.Module):
    """Gives what is not finite, in the direction asked for, from the step on that the test says."""

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.breaks_forward, self.is_broken = forward, False

    def forward(self, x):
        if not self.is_broken:
            return x
        # sqrt at 0: a finite output with an infinite gradient.
        return x * math.inf if self.breaks_forward else x + (x * 0).sqrt()


class Broken(TinyTask):
    """Breaks at step 7, behind the first hidden layer."""

    def __init__(self, *arguments, forward: bool, **more) -> None:
        super().__init__(*arguments, **more)
        self.model.layers[0] = nn.Sequential(self.model.layers[0], Breaks(forward))

    def loss_sums(self, batch):
        self.model.layers[0][1].is_broken = batch.get("index") == 6
        return super().loss_sums(batch)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("forward", "reason", "layer"),
    [
        (True, "the loss was not finite", "the output of layers.0.1 (Breaks)"),
        (False, "the gradient was not finite", "the gradient into layers.0.0"),
    ],
)
def test_the_first_layer_that_is_not_finite_is_named(tmp_path, forward, reason, layer, accumulate):
    task = make_task(kind=Broken, forward=forward)
    step = 6 // accumulate + 1
    with pytest.raises(Diverged, match=rf"{reason} at step {step}; not finite first: "):
        train(tmp_path, task, accumulate_grad_batches=accumulate)
    status = read_json(tmp_path / "status.json")
    assert status["state"] == "diverged"
    assert status["divergence"] == {"step": step, "reason": reason, "layer": layer}
    assert status["error"].endswith(f"{reason} at step {step}; not finite first: {layer}")
    assert all(value.isfinite().all() for value in weights(task).values())


def loss_of(model):
    tokens = torch.arange(8)[None] % VOCABULARY
    return lambda: nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten(), reduction="sum")


def test_a_weight_that_is_not_finite_is_named_before_all():
    model = TinyModel()
    with torch.no_grad():
        model.layers[1].weight[3, 4] = math.nan
    assert first_not_finite(model, [loss_of(model)]) == "the weights layers.1.weight"


def test_the_loss_itself_and_nothing():
    model = TinyModel(dropout=0.0)
    loss = loss_of(model)
    assert first_not_finite(model, [loss, lambda: loss() * math.nan]) == "the loss itself, of outputs that are finite"
    assert first_not_finite(model, [loss]) == NOTHING
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_compiled_model_is_looked_into_as_well():
    model = TinyModel()
    model.layers[0] = nn.Sequential(model.layers[0], Breaks(forward=True))
    model.layers[0][1].is_broken = True
    model.compile(backend="eager")
    assert first_not_finite(model, [loss_of(model)]) == "the output of layers.0.1 (Breaks)"


# --- plateaus


def test_a_block_is_measured_by_the_frequencies_of_all_targets_so_far():
    plateau = Plateau(20)  # blocks of one step
    plateau.add(torch.tensor(100.0), torch.tensor([0, 0, 1]))
    assert plateau.close(1, bool) is None
    assert plateau.nearest == pytest.approx(100 / 3 - (2 * math.log(3 / 2) + math.log(3)) / 3)
    plateau.add(torch.tensor(3.0), torch.tensor([2]))
    plateau.add(torch.tensor(1.0), torch.tensor([0, 0]))
    assert plateau.close(2, bool) is None
    assert plateau.nearest == pytest.approx(4 / 3 - (math.log(6) + 2 * math.log(6 / 4)) / 3)
    assert not plateau.is_left
    plateau.add(torch.tensor(2.9), torch.tensor([0, 1, 2]))  # below log(9 / 5) + log(9 / 2) + log(9 / 2)
    plateau.close(3, bool)
    assert plateau.is_left


def test_all_ranks_leave_a_plateau_together():
    plateau = Plateau(2)
    plateau.add(torch.tensor(100.0), torch.tensor([0, 1]))
    plateau.close(1, lambda here: True)
    assert plateau.is_left


class WithTargets(TinyTask):
    """Targets of unequal frequencies: entropy 1.67 nats, where equal ones have 2.83."""

    def loss_sums(self, batch):
        return super().loss_sums(batch | {"targets": self._unequal(batch)})

    def targets(self, batch):
        unequal = self._unequal(batch)
        return unequal[unequal >= 0]

    def _unequal(self, batch):
        return torch.where(batch["targets"] > 8, 3, batch["targets"])


class Deaf(WithTargets):
    """Learns the frequencies of its targets and nothing else: what it is told of its tokens is always the same."""

    def loss_sums(self, batch):
        return super().loss_sums(batch | {"tokens": batch["tokens"] * 0})


def judged(judged_at: int) -> DivergenceCheck:
    check = DivergenceCheck()
    check.plateau = Plateau(judged_at)
    return check


def run(path, task, check, **settings):
    """As `train`, with a check in place of the usual one that runs of few steps are not given."""
    import tiny_run

    given, tiny_run.DivergenceCheck = tiny_run.DivergenceCheck, lambda *_: check
    try:
        train(path, task, **{"max_steps": 160, "val_check_interval": 0} | settings)
    finally:
        tiny_run.DivergenceCheck = given


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_that_learns_frequencies_alone_is_on_a_plateau(tmp_path, accumulate):
    with pytest.raises(Diverged, match=r"plateau: it was never below .* 1\.\d+ nats \(at best [+-]0\.0"):
        run(tmp_path, make_task(kind=Deaf), judged(120), accumulate_grad_batches=accumulate)
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["step"], status["divergence"]["step"]) == ("diverged", 120, 120)
    assert status["latest"]["train/loss"] < 2.0  # it did learn the frequencies, far from all targets alike (2.83)


def test_a_training_that_learns_more_is_not(tmp_path):
    check = judged(120)
    run(tmp_path, make_task(kind=WithTargets), check)
    assert check.plateau.is_left
    assert read_json(tmp_path / "status.json")["state"] == "finished"


def test_a_task_without_target_tokens_is_not_judged(tmp_path):
    check = judged(6)
    run(tmp_path, make_task(), check, max_steps=10)
    assert check.plateau is None


@pytest.mark.parametrize(
    ("share", "max_steps", "judged_at"),
    [(0.5, 499, None), (0.5, 500, 500), (0.5, 1000, 500), (0.5, 4000, 2000), (0.1, 4000, 500), (None, 4000, None)],
)
def test_a_run_is_judged_after_its_share_of_steps_and_never_before_500(share, max_steps, judged_at):
    check = DivergenceCheck(share, max_steps)
    assert (check.plateau and check.plateau.judged_at) == judged_at
    assert TrainerSettings(plateau_share=share).plateau_share == share


@given(cut=st.integers(1, 39))
@settings(deadline=None, max_examples=20)
def test_a_state_goes_on_within_a_block_with_the_same_bits(cut):
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.rand((), generator=generator) * 30, torch.randint(0, 9, (10,), generator=generator)) for _ in range(40)
    ]

    def feed(plateau, batches, first):
        for step, (nats, targets) in enumerate(batches, start=first):
            plateau.add(nats, targets)
            if not plateau.is_left:
                plateau.close(step, bool)
        return plateau

    straight = feed(Plateau(400), batches, 1).state_dict()
    second = Plateau(400)
    second.load_state_dict(feed(Plateau(400), batches[:cut], 1).state_dict())
    resumed = feed(second, batches[cut:], cut + 1).state_dict()
    for name in ("counts", "counts_of_block"):
        assert torch.equal(straight.pop(name), resumed.pop(name))
    assert straight == resumed


# --- fp16


@pytest.mark.parametrize("optimizer", [adam, adamw, adafactor, lion, muon, schedule_free], ids=lambda f: f.__name__)
def test_fp16_scales_the_loss_and_trains_in_no_other_format(tmp_path, optimizer):
    """Its weights stay near those of fp32, whichever optimizer: the scale is taken out before the gradients are clipped."""
    task, reference = make_task(optimizer, dropout=0.0), make_task(optimizer, dropout=0.0)
    seen: list[torch.dtype] = []
    task.model.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train(tmp_path / "16", task, precision="16", max_steps=10)
    train(tmp_path / "32", reference, max_steps=10)
    assert set(seen) == {torch.float16}
    assert task.trainer.precision == "16-mixed"
    assert task.trainer.precision_plugin.scaler.get_scale() == 65536.0  # no step was skipped
    moved = [(weights(reference)[name] - value).abs().mean() for name, value in weights(make_task()).items()]
    apart = [(weights(reference)[name] - value).abs().mean() for name, value in weights(task).items()]
    assert sum(apart) < 0.1 * sum(moved)


def test_bf16_is_bf16(tmp_path):
    task, seen = make_task(), []
    task.model.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train(tmp_path, task, precision="bf16")
    assert set(seen) == {torch.bfloat16}


class Overflows(TinyTask):
    """A finite loss whose gradient no scale brings into the range of fp16."""

    def loss_sums(self, batch):
        nats, tokens, _ = super().loss_sums(batch)
        return LossSums(nats + (self.model.norm.weight.sum() * 0).abs().sqrt(), tokens)


def test_a_loss_scale_that_collapses_is_a_divergence(tmp_path):
    task = make_task(kind=Overflows, dropout=0.0)
    before = weights(task)
    with pytest.raises(Diverged, match=r"the loss scale of fp16 fell to 6\.1e-05 at step 30"):
        train(tmp_path, task, precision="16", max_steps=100, val_check_interval=0)
    status = read_json(tmp_path / "status.json")
    assert status["state"] == "diverged"
    assert status["divergence"]["layer"] == "the gradient of norm.weight"
    assert all(torch.equal(before[name], value) for name, value in weights(task).items())  # every step was skipped


def test_a_resumed_fp16_run_has_the_same_bits_and_the_same_scale(tmp_path):
    from test_checkpoints import Stop, curve, stop_after

    from attnlab.training import find_resume

    class Once(Overflows):
        """Overflows in the second step alone, so that the scale is no longer the first one."""

        def loss_sums(self, batch):
            return super().loss_sums(batch) if batch.get("index") == 1 else TinyTask.loss_sums(self, batch)

    settings = {"precision": "16", "checkpoint_every_seconds": 0}
    straight, second = make_task(kind=Once), make_task(kind=Once)
    train(tmp_path / "straight", straight, **settings)
    with pytest.raises(Stop):
        train(tmp_path / "run", make_task(kind=Once), callbacks=(stop_after(7),), **settings)
    train(tmp_path / "run", second, resume=find_resume(tmp_path / "run"), **settings)
    assert second.trainer.precision_plugin.scaler.get_scale() == 32768.0
    assert all(torch.equal(a, b) for a, b in zip(weights(straight).values(), weights(second).values(), strict=True))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


def write(path: Path, values: dict[int, float | None], metric: str = "val/loss") -> Path:
    lines = [json.dumps({"step": step, "values": {metric: value, "train/loss": 9.0}}) for step, value in values.items()]
    path.write_text("\n".join(lines) + '\n{"step": 99, "val')
    return path


def test_validations_are_read_past_a_cut_line_and_values_that_were_not_finite(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {5: 2.0, 10: None, 15: 1.0})
    assert validations(path, "val/loss") == {5: 2.0, 15: 1.0}
    assert validations(path, "val/bleu") == validations(tmp_path / "absent", "val/loss") == {}


class FakeTrainer(SimpleNamespace):
    is_global_zero, max_steps = True, 20
    state = SimpleNamespace(fn="fit")
    strategy = SimpleNamespace(broadcast=lambda value: value)


@pytest.mark.parametrize(("metric", "sign"), [("val/loss", 1), ("val/bleu", -1)])
@pytest.mark.parametrize("own", [1.0, 2.4, 2.6, 4.0])
@pytest.mark.parametrize("num_peers", [2, 4])
def test_pruned_above_the_median_of_enough_finished_trials(tmp_path, metric, sign, own, num_peers):
    others = [sign * value for value in (1.0, 2.0, 3.0, 4.0)][:num_peers]
    peers = [write(tmp_path / f"{i}", {5: 9.0 * sign, 10: value}, metric) for i, value in enumerate(others)]
    mine = write(tmp_path / "mine", {10: sign * own}, metric)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    callback = Pruning(pruner, metric, "lower" if sign > 0 else "higher", mine, lambda: peers)
    expected = num_peers >= 3 and own > statistics.median(map(abs, others))
    if not expected:
        callback.on_validation_end(FakeTrainer(global_step=10), None)
        return
    with pytest.raises(Pruned) as raised:
        callback.on_validation_end(FakeTrainer(global_step=10), None)
    assert (raised.value.step, raised.value.metric, raised.value.value) == (10, metric, sign * own)
    callback.on_validation_end(FakeTrainer(global_step=20), None)  # it is over anyway
