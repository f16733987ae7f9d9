"""Training on a GPU: the CPU's numbers, the precision that was asked for, exact resume, and what activation checkpointing saves."""

import pytest
import split_runs
import torch

from attnlab.generation import Sampler, generate
from attnlab.layers import Rotary
from attnlab.models import GPT
from attnlab.training import TrainerSettings, apply_to_model, resolve


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    split_runs.write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def on_cpu(texts):
    return {kind: split_runs.train(kind, texts) for kind in split_runs.TASKS}


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_twenty_steps_give_the_numbers_of_the_cpu(texts, on_cpu, kind, strategy):
    """Sums are rounded in another order: some 1e-7 a step, which Adam's division by small roots lets grow."""
    made = split_runs.train(kind, texts, device="cuda", strategy=strategy)
    assert made["tokens"] == on_cpu[kind]["tokens"]
    assert made["losses"] == pytest.approx(on_cpu[kind]["losses"], abs=2e-4)
    assert made["validated"]["val/loss"] == pytest.approx(on_cpu[kind]["validated"]["val/loss"], abs=2e-4)


@pytest.mark.parametrize("kind", split_runs.TASKS)
@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_half_precision_trains_to_nearly_the_same_loss(texts, on_cpu, kind, precision):
    made = split_runs.train(kind, texts, device="cuda", precision=precision)
    assert made["losses"] != on_cpu[kind]["losses"]
    assert made["losses"] == pytest.approx(on_cpu[kind]["losses"], rel=0.03)
    assert all(weight.dtype == torch.float32 for weight in made["weights"].values() if weight.is_floating_point())


def test_auto_takes_bf16_here():
    assert resolve("auto", "cuda").used == "bf16"


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
@pytest.mark.parametrize("kind", split_runs.TASKS)
def test_what_is_resumed_ends_with_the_same_bits(texts, tmp_path, kind, precision):
    given = {"device": "cuda", "precision": precision}
    straight = split_runs.train(kind, texts, checkpoints=tmp_path / "checkpoints", **given)
    resumed = split_runs.train(kind, texts, resume=tmp_path / "checkpoints" / "step=10.ckpt", **given)
    assert resumed["losses"] == straight["losses"][10:]
    assert resumed["final"] == straight["final"]
    for name, weight in straight["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def small_gpt(**fields):
    torch.manual_seed(0)
    return GPT(
        97, d_model=256, num_heads=4, num_layers=6, max_length=256, dropout=0.0, position=Rotary, **fields
    ).cuda()


def gradients_and_peak(model):
    tokens_BT = torch.randint(97, (16, 256), generator=torch.Generator().manual_seed(0)).cuda()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.nn.functional.cross_entropy(model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    torch.cuda.synchronize()
    return [p.grad.clone() for p in model.parameters()], torch.cuda.max_memory_allocated() - before


def test_activation_checkpointing_keeps_gradients_and_saves_memory():
    gradients_and_peak(small_gpt())  # what a first call alone takes
    kept, recomputed = small_gpt(), small_gpt()
    apply_to_model(TrainerSettings(checkpoint_activations=True), recomputed)
    (expected, most), (made, least) = gradients_and_peak(kept), gradients_and_peak(recomputed)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert least < 0.6 * most


def test_a_compiled_model_computes_the_same():
    tokens_BT = torch.randint(97, (4, 64), generator=torch.Generator().manual_seed(0)).cuda()
    model = small_gpt()
    with torch.no_grad():
        expected = model(tokens_BT)
        apply_to_model(TrainerSettings(compile=True), model)
        torch.testing.assert_close(model(tokens_BT), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_gives_the_tokens_of_the_cpu(use_cache):
    model = small_gpt()
    prompts = [[1, 2, 3], [5] * 11]
    made = generate(model, prompts, 40, Sampler(temperature=0.0), use_cache=use_cache)
    assert made == generate(model.cpu(), prompts, 40, Sampler(temperature=0.0))


def test_checkpoints_of_a_gpu_load_on_a_cpu(texts, tmp_path):
    split_runs.train("causal_lm", texts, checkpoints=tmp_path / "here", device="cuda")
    resumed = split_runs.train("causal_lm", texts, resume=tmp_path / "here" / "step=10.ckpt", device="cpu")
    assert len(resumed["losses"]) == 10
