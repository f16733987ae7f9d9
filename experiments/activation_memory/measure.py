"""What activation checkpointing saves in memory and costs in time: same model, same batch, alternating rounds in one process.

python experiments/activation_memory/measure.py [--num-layers 8] [--d-model 256] [--context 256] [--batch-size 8] [--rounds 7] [--device cpu]

Memory is the most that forward and backward hold at one instant on top of weights and gradients: on a GPU what torch's allocator counts
(max_memory_allocated), on a CPU the running sum of all that torch's profiler sees allocated and freed. Beside it stands what autograd keeps between
the two passes. Caches of the processor, the C library's reserves and Python's own objects are in neither.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from attnlab.layers import GELU, Rotary
from attnlab.models import GPT
from attnlab.training import TrainerSettings, apply_to_model

VOCABULARY = 256


def make_model(arguments: argparse.Namespace, recompute: bool) -> GPT:
    """The same weights each time, with activations recomputed or kept."""
    torch.manual_seed(0)
    model = GPT(
        VOCABULARY,
        arguments.context,
        d_model=arguments.d_model,
        num_heads=arguments.num_heads,
        num_layers=arguments.num_layers,
        dropout=arguments.dropout,
        position=Rotary,
        feed_forward=GELU,
    )
    apply_to_model(TrainerSettings(checkpoint_activations=recompute), model)
    return model.to(arguments.device)


def forward(model: GPT, tokens_BT: Tensor) -> Tensor:
    """The mean loss, with the same draws of dropout each time."""
    torch.manual_seed(1)
    return F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())


def step(model: GPT, tokens_BT: Tensor) -> None:
    """Forward and backward, into gradients that are there already."""
    model.zero_grad(set_to_none=False)
    forward(model, tokens_BT).backward()


def peak_bytes(model: GPT, tokens_BT: Tensor) -> int:
    """The most bytes that a step holds at one instant, on top of what was there before."""
    if tokens_BT.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, tokens_BT)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(model, tokens_BT)
    results = seen.profiler.kineto_results if seen.profiler is not None else None
    assert results is not None, "torch was built without its profiler"
    changes = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def kept_bytes(model: GPT, tokens_BT: Tensor) -> int:
    """The bytes that autograd keeps for the backward pass, each storage once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(model, tokens_BT)
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    del loss
    return found


def seconds(model: GPT, tokens_BT: Tensor, steps: int) -> float:
    """Wall seconds a step of forward and backward."""
    started = time.perf_counter()
    for _ in range(steps):
        step(model, tokens_BT)
    if tokens_BT.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Prints how far apart the gradients are, both memories, and the ratio of the times of each round with their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"num-layers": 8, "num-heads": 4, "d-model": 256, "context": 256, "batch-size": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens_BT = torch.randint(VOCABULARY, (arguments.batch_size, arguments.context + 1), device=arguments.device)
    kept, recomputed = (make_model(arguments, recompute) for recompute in (False, True))
    for model in (kept, recomputed):
        step(model, tokens_BT)
    pairs = zip(kept.parameters(), recomputed.parameters(), strict=True)
    apart = max(float((one.grad - other.grad).abs().max()) for one, other in pairs)  # type: ignore[operator]
    print(f"gradients at most {apart:.1e} apart")
    for name, measure in (("peak of a step", peak_bytes), ("kept by autograd", kept_bytes)):
        one, other = measure(kept, tokens_BT), measure(recomputed, tokens_BT)
        print(f"{name}: {one / 1e6:.1f} MB kept, {other / 1e6:.1f} MB recomputed; ratio {other / one:.3f}")
    ratios: list[float] = []
    for i in range(arguments.rounds):
        before = seconds(kept, tokens_BT, arguments.steps)
        ours = seconds(recomputed, tokens_BT, arguments.steps)
        after = seconds(kept, tokens_BT, arguments.steps)
        ratios.append(2 * ours / (before + after))
        print(
            f"round {i}: kept {(before + after) * 500:.1f} ms, recomputed {ours * 1e3:.1f} ms a step; ratio {ratios[-1]:.3f}"
        )
    print(f"ratio of times: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
