"""What it saves to compute BERT's output at masked positions alone: same model, same batches, alternating rounds in one process.

python experiments/masked_output/measure.py [--d-model 256] [--vocabulary 8000] [--rounds 9] [--steps 3] [--precision bf16] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attnlab.data import Masking
from attnlab.models import Bert
from attnlab.tasks import MaskedLanguageModelling
from attnlab.training import adamw

Batch = dict[str, Tensor]
Loss = Callable[[Bert, Batch], Tensor]  # the mean over a batch's masked tokens
IGNORED = -100


def masked_only(model: Bert, batch: Batch) -> Tensor:
    """As attnlab trains: logits of masked positions."""
    return mean_of(MaskedLanguageModelling(model, masked_only=True), batch)


def full(model: Bert, batch: Batch) -> Tensor:
    """Logits of every position, with attnlab's own cross-entropy."""
    return mean_of(MaskedLanguageModelling(model, masked_only=False), batch)


def full_in_torch(model: Bert, batch: Batch) -> Tensor:
    """Logits of every position, with torch's cross-entropy."""
    targets_BT = batch["targets"].masked_fill(~batch["chosen"], IGNORED)
    return F.cross_entropy(model(batch["tokens"]).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)


def mean_of(task: MaskedLanguageModelling, batch: Batch) -> Tensor:
    """The mean loss of a task."""
    nats, tokens, _ = task.loss_sums(batch)
    return nats / tokens


LOSSES: dict[str, Loss] = {"masked only": masked_only, "full": full, "full, torch's loss": full_in_torch}


def make_model(arguments: argparse.Namespace) -> Bert:
    """The same model each time."""
    torch.manual_seed(0)
    return Bert(arguments.vocabulary, arguments.context, arguments.d_model, 4, 4, dropout=arguments.dropout)


def make_batches(arguments: argparse.Namespace) -> list[Batch]:
    """Random tokens, 15% of each window masked as BERT masks."""
    random = np.random.default_rng(0)
    count = Masking().count(arguments.context)
    batches = []
    for _ in range(arguments.steps + 1):
        targets = torch.from_numpy(random.integers(5, arguments.vocabulary, (arguments.batch_size, arguments.context)))
        order = random.random(targets.shape).argsort(axis=1)
        chosen = torch.from_numpy(order < count)
        draw = torch.from_numpy(random.random(targets.shape))
        tokens = targets.masked_fill(chosen & (draw < 0.8), 3)
        batches.append({"tokens": tokens, "targets": targets, "chosen": chosen})
    return batches


def seconds(loss: Loss, arguments: argparse.Namespace, batches: list[Batch]) -> float:
    """Wall seconds a step, after a first one: forward, backward, clip, update."""
    model = make_model(arguments)
    optimizer = adamw(model)
    for step, batch in enumerate(batches):
        if step == 1:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            value = loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return (time.perf_counter() - started) / (len(batches) - 1)


def loss_and_gradients(loss: Loss, arguments: argparse.Namespace, batch: Batch) -> tuple[float, list[Tensor]]:
    """Of a first batch in fp32, with the same draws of dropout."""
    model = make_model(arguments)
    torch.manual_seed(1)
    value = loss(model, batch)
    value.backward()
    return float(value.detach()), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def say_differences(arguments: argparse.Namespace, batch: Batch) -> None:
    """How far losses and gradients are from those of the full output in torch."""
    wanted, gradients = loss_and_gradients(full_in_torch, arguments, batch)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for name in ("masked only", "full"):
        found, own = loss_and_gradients(LOSSES[name], arguments, batch)
        apart = max(float((a - b).abs().max()) for a, b in zip(own, gradients, strict=True))
        print(
            f"{name}: loss {found:.7f}, {abs(found - wanted):.1e} from torch's full one; gradients at most {apart:.1e} apart "
            f"(the largest is {largest:.1e})"
        )


def main() -> None:
    """Prints the differences, each round's times, and the median ratio of full output to masked output."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"vocabulary": 8000, "d-model": 256, "context": 128, "batch-size": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batches = make_batches(arguments)
    say_differences(arguments, batches[0])
    for loss in LOSSES.values():
        seconds(loss, arguments, batches[:2])
    rounds = []
    for i in range(arguments.rounds):
        order = list(LOSSES) if i % 2 == 0 else list(LOSSES)[::-1]
        found = {name: seconds(LOSSES[name], arguments, batches) for name in order}
        rounds.append(found)
        print(f"round {i}: " + ", ".join(f"{name} {found[name] * 1e3:.0f} ms" for name in LOSSES), flush=True)
    for name in ("full", "full, torch's loss"):
        ratios = [found[name] / found["masked only"] for found in rounds]
        print(
            f"{name}: {statistics.median(ratios):.2f} times the step time of masked only, from {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
