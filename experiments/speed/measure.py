"""How fast attnlab is beside its peers on this machine: training steps, their memory, decoding, start-up and sweeps, in turn in one process.

python experiments/speed/measure.py [--only gpt bert vit encoder_decoder greedy beam startup sweep] [--rounds 7] [--steps 3] [--threads 2]
                                    [--device cpu] [--no-compile] [--set d_model=512] [--json FILE]

Peers that are not installed are left out and named: pip install 'attnlab[peers]'; pip install --no-deps vit-pytorch (it needs
torchvision for what is not measured here). Each side runs in every mode that the machine has (fp32 and bf16, eager and compiled), A B A B,
and is judged by the median of its best mode. Utilisation is the operations of attnlab's model a second over the rate of a bare matrix
product of its shapes in the same precision, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import running
import torch
from decoding import SIZES, decoders
from memory import most_bytes
from torch.nn import functional as F

from attnlab.models.base import measure_size
from attnlab.training.machine import cpu_has_bf16, machine_of
from attnlab.training.task import Task
from training import CASES, Batch, Case, Step, step_of

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
PRODUCT = "matrix product"
SEARCHES = {"greedy": 1, "beam": 4}
WHOLE = ("startup", "sweep")  # processes


@dataclass
class Timed:
    """One side in one mode. count: units (tokens, images) of a call; flops: of a call, where known."""

    side: str
    mode: str
    call: Callable[[], object]
    count: int
    flops: int = 0
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Units a second, by the median."""
        return self.count / statistics.median(self.seconds)


def in_turn(timed: list[Timed], rounds: int, calls: int, device: str) -> None:
    """Times all in turn, round after round, after a call of each to warm up."""
    for one in timed:
        one.call()
    for _ in range(rounds):
        for one in timed:
            _wait(device)
            started = time.perf_counter()
            for _ in range(calls):
                one.call()
            _wait(device)
            one.seconds.append((time.perf_counter() - started) / calls)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def training(case: Case, arguments: argparse.Namespace) -> list[Timed]:
    """Every side of a case in every mode, and bare matrix products of its shapes, timed."""
    sizes = {**case.sizes, **{name: value for name, value in arguments.set.items() if name in case.sizes}}
    torch.manual_seed(0)
    batch = {name: tensor.to(arguments.device) for name, tensor in case.batch(sizes).items()}
    found = []
    for side, build in case.sides.items():
        for mode in modes(arguments):
            torch.manual_seed(0)
            try:
                module, loss = build(sizes)
            except ImportError as error:
                print(f"{case.name}: {side} is left out: {error}", file=sys.stderr)
                break
            module.to(arguments.device)
            flops = _flops(module, loss, batch) if isinstance(loss, Task) else 0
            if mode.endswith("compiled"):
                module.compile()
            step = step_of(module, loss, DTYPES[mode.split()[0]])
            one = Timed(side, mode, lambda step=step: step(batch), case.units(batch), flops)  # type: ignore[misc]
            one.peak_bytes = peak_bytes(step, batch)
            found.append(one)
    found += matrix_products(sizes, arguments)
    in_turn(found, arguments.rounds, arguments.steps, arguments.device)
    return found


def modes(arguments: argparse.Namespace) -> list[str]:
    """The modes that this machine has, the plainest first."""
    has_bf16 = cpu_has_bf16() if arguments.device == "cpu" else True
    types = ["fp32", *(["bf16"] if has_bf16 else [])]
    return [f"{name} {form}" for name in types for form in ("eager", *(["compiled"] if arguments.compile else []))]


def _flops(module: torch.nn.Module, task: Task, batch: Batch) -> int:
    def forward() -> int:
        task.loss_sums(batch)
        return 1

    return measure_size(module, forward).flops_per_token


def matrix_products(sizes: Mapping[str, int], arguments: argparse.Namespace) -> list[Timed]:
    """A feed-forward's product, bare, in each number format."""
    width, rows = sizes["d_model"], 2048
    found = []
    for name in {mode.split()[0] for mode in modes(arguments)}:
        dtype = DTYPES[name] or torch.float32
        x, w = (
            torch.randn(*shape, device=arguments.device, dtype=dtype) for shape in ((rows, width), (4 * width, width))
        )
        call = lambda x=x, w=w: F.linear(x, w)  # noqa: E731
        found.append(Timed(PRODUCT, name, call, 2 * rows * width * 4 * width))
    return found


def peak_bytes(step: Step, batch: Batch) -> int:
    """The most bytes that a step holds at one instant on top of what stays: after a first one, which makes the optimizer's state."""
    step(batch)
    if next(iter(batch.values())).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        return torch.cuda.max_memory_allocated() - before
    return most_bytes(lambda: step(batch))


def searches(name: str, arguments: argparse.Namespace) -> list[Timed]:
    """The three decoders at a number of beams, which have to find the same."""
    with torch.inference_mode():
        sides = decoders(SIZES, SEARCHES[name], arguments.threads)
        texts = {side: call() for side, call in sides.items()}
    for side, rows in texts.items():
        same = sum(row == other for row, other in zip(rows, texts["transformers"], strict=True))
        print(f"{name}: {side} finds {same} of {len(rows)} targets of transformers", file=sys.stderr)
    count = SIZES["batch_size"] * SIZES["new_tokens"]
    found = [Timed(side, "fp32", call, count) for side, call in sides.items()]
    in_turn(found, arguments.rounds, 1, "cpu")
    return found


def startup(found: Mapping[str, list[float]]) -> list[str]:
    """Lines of Markdown: processes and first steps, in seconds and beside the imports that nothing can do without."""
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    imports = medians["import torch, lightning"]
    rows = [f"| {name} | {seconds:.2f} | {seconds / imports:.2f} |" for name, seconds in medians.items()]
    return ["| start-up | seconds | over `import torch, lightning` |", "|---|---|---|", *rows]


def sweep(found: Mapping[str, float]) -> list[str]:
    """Lines of Markdown: the clock of a sweep beside the training of its runs over the cores."""
    cores = len(os.sched_getaffinity(0))
    over = found["clock"] / (found["training"] / cores)
    row = f"| {found['runs']:.0f} | {found['clock']:.1f} | {found['training']:.1f} | {cores} | {over:.2f} |"
    return [
        "| runs of a sweep | clock | training in all | cores | clock over training / cores |",
        "|---|---|---|---|---|",
        row,
    ]


def whole(name: str, arguments: argparse.Namespace) -> tuple[object, list[str]]:
    """What was measured of whole processes, and its table."""
    if name == "startup":
        starts = running.starts(arguments.rounds)
        return starts, startup(starts)
    swept = running.sweep(48, 100 * arguments.steps)
    return swept, sweep(swept)


def table(name: str, unit: str, timed: list[Timed]) -> list[str]:
    """Lines of Markdown: each side's best mode, and the ratio to the fastest peer."""
    products = {one.mode: one.rate for one in timed if one.side == PRODUCT}
    best = {one.side: one for one in sorted(timed, key=lambda one: one.rate) if one.side != PRODUCT}
    peers = [one.rate for side, one in best.items() if side != "attnlab"]
    lines = [
        f"| {name} | mode | {unit} a second | spread | peak MB | of the matrix rate |",
        "|---|---|---|---|---|---|",
    ]
    for side, one in sorted(best.items(), key=lambda item: -item[1].rate):
        spread = (max(one.seconds) - min(one.seconds)) / statistics.median(one.seconds)
        used = one.flops / statistics.median(one.seconds) / products[one.mode.split()[0]] if one.flops else None
        cells = (f"{one.rate:,.1f}", f"{spread:.0%}", f"{one.peak_bytes / 1e6:,.0f}" if one.peak_bytes else "")
        lines.append(f"| {side} | {one.mode} | {' | '.join(cells)} | {'' if used is None else f'{used:.0%}'} |")
    if "attnlab" in best and peers:
        lines.append(f"\nattnlab over the fastest peer: {best['attnlab'].rate / max(peers):.2f}")
    return lines


def machine(device: str) -> str:
    """What the figures are of."""
    names = dict.fromkeys(machine_of(kind)[0] for kind in ("cpu", device))
    return f"{', '.join(names)}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Prints a table for each kind of work; with --json also every figure to a file."""
    known = [*CASES, *SEARCHES, *WHOLE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    for name, default in {"rounds": 7, "steps": 3, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="SIZE=NUMBER")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.set = {name: int(number) for name, number in (word.split("=") for word in arguments.set)}
    torch.set_num_threads(arguments.threads)
    print(f"{machine(arguments.device)}\n", flush=True)
    figures: dict[str, object] = {}
    kept = ("side", "mode", "count", "flops", "peak_bytes", "seconds")
    for name in arguments.only:
        if name in WHOLE:
            figures[name], lines = whole(name, arguments)
        else:
            unit = CASES[name].unit if name in CASES else "tokens"
            timed = training(CASES[name], arguments) if name in CASES else searches(name, arguments)
            figures[name] = [{key: getattr(one, key) for key in kept} for one in timed]
            lines = table(name, unit, timed)
        print("\n".join([*lines, ""]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"machine": machine(arguments.device), "sizes": arguments.set, "figures": figures}, indent=1)
        )


if __name__ == "__main__":
    main()
