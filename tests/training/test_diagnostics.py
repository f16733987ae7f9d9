"""A look inside a training: its values by hand, and that it changes no bit."""

import fnmatch
import json
import math

import pytest
import split_runs
import torch
from tiny_run import TinyModel, TinyTask
from torch.nn import functional as F

from attnlab.models import GPT, T5
from attnlab.training import Diagnostics, JsonLines, TrainerSettings, apply_to_model
from attnlab.training.diagnostics import by_depth, entropy, look


def lines(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    inside = [line for line in found if any(name.startswith("diagnostics/") for name in line["values"])]
    return {
        line["step"]: {name.removeprefix("diagnostics/"): v for name, v in line["values"].items()} for line in inside
    }


def norm(tensors):
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


class Watch(split_runs.Losses):
    """The weights before every step, the batches of every step, and the gradient as autograd gives it for all of them at once."""

    def __init__(self):
        super().__init__()
        self.weights, self.batches = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.weights.append({name: p.detach().clone() for name, p in pl_module.model.named_parameters()})
            self.batches.append([])
        self.batches[-1].append(batch)


def of_layer(tensors, index):
    return [value for name, value in tensors.items() if name.startswith(f"stack.layers.{index}.")]


def test_norms_are_those_of_the_mean_gradient_and_of_the_change_of_the_weights(texts, tmp_path):
    watch, path = Watch(), tmp_path / "metrics.jsonl"
    split_runs.train(
        "causal_lm",
        texts,
        accumulate_grad_batches=2,
        callbacks=(Diagnostics(3), watch),
        loggers=(JsonLines(path),),
        gradient_clip_val=0.1,
    )
    found = lines(path)
    assert list(found) == [1, *range(3, split_runs.STEPS + 1, 3)]
    _, task = split_runs.make("causal_lm", texts, 2)
    for step in (1, 3, 12):
        before, after = watch.weights[step - 1], watch.weights[step]
        task.model.load_state_dict(before, strict=False)
        task.model.zero_grad()
        tokens, targets = (torch.cat([b[name] for b in watch.batches[step - 1]]) for name in ("tokens", "targets"))
        F.cross_entropy(task.model(tokens).flatten(0, 1), targets.flatten()).backward()
        gradients = {name: p.grad for name, p in task.model.named_parameters()}
        changes = {name: after[name] - value for name, value in before.items()}
        for index in range(2):
            assert found[step][f"gradient_norm/layer={index}"] == pytest.approx(norm(of_layer(gradients, index)), 1e-4)
            assert found[step][f"update_norm/layer={index}"] == pytest.approx(norm(of_layer(changes, index)), 1e-5)
        for what, tensors in (("gradient", gradients), ("update", changes)):
            squares = sum(found[step][f"{what}_norm/{where}"] ** 2 for where in ("layer=0", "layer=1", "rest"))
            assert math.sqrt(squares) == pytest.approx(norm(tensors.values()), rel=1e-4)


def test_figures_are_the_ratios_of_the_first_and_the_last_look_of_each_stack(texts, tmp_path):
    """Also where a run goes on after its first step, whose look the checkpoint brings."""
    path, saved, resumed = tmp_path / "metrics.jsonl", tmp_path / "saved", Diagnostics(8)
    given = {"max_steps": 18, "checkpoints": saved}
    split_runs.train("translation", texts, callbacks=(Diagnostics(8),), loggers=(JsonLines(path),), **given)
    split_runs.train("translation", texts, callbacks=(resumed,), resume=saved / "step=10.ckpt", **given)
    found, (_, task) = lines(path), split_runs.make("translation", texts, 1)
    assert list(found) == [1, 8, 16]
    expected = {
        f"diagnostics/{stack}/gradient_norm_ratio@{when}": found[step][f"gradient_norm/{stack}/layer=1"]
        / found[step][f"gradient_norm/{stack}/layer=0"]
        for stack in ("encoder", "decoder")
        for when, step in (("start", 1), ("end", 16))
    }
    assert resumed.figures(task) == pytest.approx(expected)
    names = [name for metric in Diagnostics.metrics for name in metric.names()]
    assert all(any(fnmatch.fnmatch(name, known) for known in names) for name in expected)
    assert not task.unavailable


def test_a_stack_without_two_trained_ends_has_no_ratio():
    look, task = Diagnostics(1), TinyTask(GPT(8, 8, d_model=8, num_heads=2, num_layers=2))
    look.load_state_dict({"start": {"gradient_norm/layer=1": 2.0}, "end": {"gradient_norm/layer=1": 1.0}})
    assert look.figures(task) == {}
    assert set(task.unavailable) == {f"diagnostics/gradient_norm_ratio@{when}" for when in ("start", "end")}


def test_scales_and_entropies_are_those_of_the_formulas(texts, tmp_path):
    """GPT by hand: x + attention(norm(x)), then the feed-forward; ALiBi's slopes; after the step, on its last batch."""
    watch, path = Watch(), tmp_path / "metrics.jsonl"
    split_runs.train("causal_lm", texts, callbacks=(Diagnostics(19), watch), loggers=(JsonLines(path),))
    found = lines(path)[19]
    _, task = split_runs.make("causal_lm", texts, 1)
    model = task.model.eval()
    model.load_state_dict(watch.weights[19], strict=False)  # before step 20, after step 19
    x = model.embedding(watch.batches[18][0]["tokens"])
    distance = torch.arange(16)[:, None] - torch.arange(16)[None, :]
    for index, layer in enumerate(model.stack.layers):
        h, attention = layer.residual.norms[0](x), layer.attention
        q, k, v = (
            part(h).unflatten(2, (2, 8)).transpose(1, 2) for part in (attention.query, attention.key, attention.value)
        )
        bias = -torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * distance.abs()
        scores = q @ k.mT / math.sqrt(8) + bias
        weights = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
        x = x + attention.output((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.feed_forward(layer.residual.norms[1](x))
        rows = -(weights * weights.clamp(min=1e-30).log()).sum(-1)
        assert found[f"attention_entropy/layer={index}"] == pytest.approx(rows.mean().item(), abs=1e-5)
        assert found[f"stream_rms/layer={index}"] == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)


def test_padding_counts_in_neither_stack(texts):
    """A padded batch of pairs gives what its rows give one by one, each by its number of positions."""
    data, task = split_runs.make("translation", texts, 1)
    batch = next(iter(data.train_dataloader()))
    assert not batch["is_source"].all()
    assert not batch["is_target"].all()
    found, sums = look(task, batch), {}
    for row in range(len(batch["source"])):
        source, target = (int(batch[f"is_{side}"][row].sum()) for side in ("source", "target"))
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        for name in ("source", "is_source"):
            alone[name] = alone[name][:, :source]
        for name in ("target_in", "target_out", "is_target"):
            alone[name] = alone[name][:, :target]
        for name, value in look(task, alone).items():
            count = source if "/encoder/" in name else target
            power = 2 if name.startswith("stream_rms") else 1
            total, weight = sums.get(name, (0.0, 0))
            sums[name] = (total + count * float(value) ** power, weight + count)
    assert set(sums) == set(found)
    assert {"cross_attention_entropy/decoder/layer=1", "stream_rms/encoder/layer=0"} <= set(found)
    for name, (total, weight) in sums.items():
        mean = total / weight
        expected = math.sqrt(mean) if name.startswith("stream_rms") else mean
        assert float(found[name]) == pytest.approx(expected, abs=1e-5)


def test_the_entropy_of_even_weights_is_the_logarithm_of_their_number_and_of_one_nought():
    weights = torch.tensor([[[[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]]])
    assert float(entropy(weights, torch.tensor([[True, True, False]]))) == pytest.approx(math.log(4) / 2)
    assert float(entropy(weights, torch.tensor([[False, False, True]]))) == pytest.approx(math.log(2))


def test_the_entropy_of_what_is_no_distribution_is_that_of_the_shares_of_its_sizes():
    weights = torch.tensor([[[[0.6, -0.2, 0.0, 0.0], [0.1, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]])
    expected = [-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2), 0.0]
    for query, value in enumerate(expected):
        assert float(entropy(weights, torch.arange(3)[None] == query)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_no_bit_of_the_training_changes(texts, kind, monkeypatch):
    """With dropout, which draws in every step, and where a run goes on."""
    monkeypatch.setitem(split_runs.SIZES, "dropout", 0.2)
    without, with_it = (split_runs.train(kind, texts, callbacks=c, max_steps=6) for c in ((), (Diagnostics(1),)))
    assert with_it["losses"] == without["losses"]
    assert (with_it["final"], with_it["tokens"]) == (without["final"], without["tokens"])
    assert all(torch.equal(with_it["weights"][name], value) for name, value in without["weights"].items())


def test_a_run_that_goes_on_looks_where_it_would_have_looked(texts, tmp_path):
    whole, rest = tmp_path / "whole.jsonl", tmp_path / "rest.jsonl"
    given = {"callbacks": (Diagnostics(4),), "checkpoints": tmp_path / "saved"}
    straight = split_runs.train("causal_lm", texts, loggers=(JsonLines(whole),), **given)
    resume = tmp_path / "saved" / "step=10.ckpt"
    resumed = split_runs.train("causal_lm", texts, loggers=(JsonLines(rest),), resume=resume, **given)
    assert all(torch.equal(resumed["weights"][name], value) for name, value in straight["weights"].items())
    assert lines(rest) == {step: values for step, values in lines(whole).items() if step > 10}


@pytest.mark.slow
@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_sharded_ranks_see_inside_what_whole_ones_see(texts, both, kind):
    """Also that looking changes nothing for ranks: those that looked gave the numbers of test_sharding.py."""
    ddp, fsdp2 = (lines(texts / f"{strategy}-{kind}.jsonl") for strategy in ("ddp", "fsdp2"))
    assert list(ddp) == list(fsdp2) == [1, 7, 14]
    for step, values in ddp.items():
        assert fsdp2[step] == pytest.approx(values, rel=1e-4, abs=1e-5)


def test_what_layers_share_counts_once_and_everything_counts():
    model = T5(8, d_model=8, num_heads=2, num_layers=2, share_layers=True)
    depths = by_depth(model)
    assert list(depths) == [*(f"{side}/layer={i}" for side in ("encoder", "decoder") for i in range(2)), "rest"]
    counted = [id(parameter) for parameters in depths.values() for parameter in parameters]
    assert len(counted) == len(set(counted)) == len(list(model.parameters()))


def test_backends_and_the_mode_are_put_back(texts):
    data, task = split_runs.make("translation", texts, 1)
    before = [module.backend for module in task.modules() if hasattr(module, "backend")]
    look(task, next(iter(data.train_dataloader())))
    assert [module.backend for module in task.modules() if hasattr(module, "backend")] == before
    assert task.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.modules())


def test_it_needs_a_stack_and_an_interval():
    with pytest.raises(ValueError, match=r"trainer.diagnostics_every: TinyModel has no stack .* accepted is null"):
        apply_to_model(TrainerSettings(diagnostics_every=5), TinyModel())
    apply_to_model(TrainerSettings(diagnostics_every=5), GPT(8, 8, d_model=8, num_heads=2, num_layers=1))
    with pytest.raises(ValueError, match=r"diagnostics_every must be at least 1, got 0"):
        TrainerSettings(diagnostics_every=0)
