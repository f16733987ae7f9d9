"""What `trainer.precision=auto` and `trainer.compile=auto` come to: the way of computing in which a training step of
this model was fastest on this machine, by timings; and how a step is timed without a trace in the run."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from attnlab.training.machine import cpu_has_bf16, machine_of

if TYPE_CHECKING:
    from lightning.pytorch.plugins import Precision as Plugin

    from attnlab.training.task import Batch, Task

MIXED: dict[str, Literal["bf16-mixed", "16-mixed"]] = {"bf16": "bf16-mixed", "16": "16-mixed"}
ACCEPTED = ("auto", "32", *MIXED)
BUDGET_SECONDS = 3.0  # of steps that are timed, compiling not counted
MOST_ROUNDS = 15
# What is less plain has to save so much of the time: below, noise would decide, and compute less exactly for nothing.
WORTH_IT = 0.95


class Way(NamedTuple):
    """A way to compute a training step; as a word it is a key of timings."""

    precision: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision} compiled" if self.compiled else self.precision


class Timings(TypedDict):
    """Seconds of a training step by way, the median (of one rank's micro-batch and an update); seconds that compiling
    took before, by way; the ways that cannot be, with the reason; on which processor, in how many threads."""

    seconds: dict[str, float]
    compiling: dict[str, float]
    failed: dict[str, str]
    machine: str
    threads: int


Measure = Callable[[Sequence[Way]], Timings]


@dataclass(frozen=True)
class Precision:
    """What is `used` ("32", "bf16" or "16"), what was `asked`, the `reason`, and the timings that it rests on."""

    used: str
    asked: str
    reason: str
    measured: Timings | None = None


@dataclass(frozen=True)
class Compilation:
    """Whether the model is compiled (`used`), what was `asked`, the `reason`, and the timings that it rests on."""

    used: bool
    asked: bool | str
    reason: str
    measured: Timings | None = None


def resolve(precision: str, device_type: str, measure: Measure | None = None, compiled: bool = False) -> Precision:
    """The precision to train in. On a CPU with bf16 instructions auto is the format in which `measure` finds a step
    (compiled or not) faster, and fp32 without it. Raises ValueError for an unknown precision, and for one that the
    device does not serve."""
    asked = str(precision)
    if asked not in ACCEPTED:
        raise ValueError(f"trainer.precision={asked}: accepted are {', '.join(ACCEPTED)}")
    if asked == "16" and device_type not in ("cuda", "cpu"):
        raise ValueError(
            f"trainer.precision=16: the loss cannot be scaled for fp16 on this device, {device_type}; accepted are "
            "auto, 32, bf16"
        )
    if asked != "auto":
        return Precision(asked, asked, without_instructions(asked, device_type) or "asked for")
    if (known := _without_measuring(device_type)) is not None:
        return Precision(known[0], asked, known[1])
    if measure is None:
        return Precision("32", asked, "no step in bf16 was measured")
    timings = measure([Way("32", compiled), Way("bf16", compiled)])
    return Precision(*choose_precision(timings, compiled), timings)


def resolve_compilation(asked: bool | str, precision: str, steps: int, measure: Measure) -> Compilation:
    """Whether to compile a model that trains for so many micro-batches: auto where all of it then takes less time."""
    if asked != "auto":
        return Compilation(bool(asked), asked, "asked for")
    timings = measure([Way(precision), Way(precision, compiled=True)])
    return Compilation(*choose_compilation(timings, precision, steps), timings)


def choose_precision(timings: Timings, compiled: bool = False) -> tuple[str, str, str]:
    """(used, asked, reason) by the seconds of a step in fp32 and in bf16."""
    plain, half = (str(Way(name, compiled)) for name in ("32", "bf16"))
    seconds, failed = timings["seconds"], timings["failed"]
    if half in failed:
        return "32", "auto", f"this model takes no step in bf16 here: {failed[half]}"
    if plain in failed:
        return "bf16", "auto", f"this model takes no step in fp32 here: {failed[plain]}"
    ratio = seconds[half] / seconds[plain]
    used = "bf16" if ratio <= WORTH_IT else "32"
    return used, "auto", f"a step in bf16 takes {_compared(timings, ratio, 'fp32')}"


def choose_compilation(timings: Timings, precision: str, steps: int) -> tuple[bool, str, str]:
    """(used, asked, reason) by the seconds of a step, compiled and not, and what compiling costs, for so many steps."""
    eager, compiled = str(Way(precision)), str(Way(precision, compiled=True))
    seconds, failed = timings["seconds"], timings["failed"]
    if compiled in failed:
        return False, "auto", f"this model is not compiled here: {failed[compiled]}"
    if eager in failed:
        return True, "auto", f"this model takes a step only compiled here: {failed[eager]}"
    start = timings["compiling"].get(compiled, 0.0)
    whole = start + steps * seconds[compiled]
    used = whole <= WORTH_IT * steps * seconds[eager]
    told = f"a compiled step takes {_compared(timings, seconds[compiled] / seconds[eager], 'an eager one')}"
    return used, "auto", f"{told}; compiling takes {start:.0f} s, and {steps:,} steps {steps * seconds[eager]:.0f} s"


def _compared(timings: Timings, ratio: float, to: str) -> str:
    return f"{ratio:.2f} of {to}'s, measured on {timings['machine']}, {timings['threads']} threads"


def sum_of(timings: Sequence[Timings]) -> Timings:
    """Timings of several models as of one that takes a step of each; what fails for one fails for all."""
    failed = {way: reason for one in timings for way, reason in one["failed"].items()}
    ways = [way for way in timings[0]["seconds"] if way not in failed]
    return {
        "seconds": {way: sum(one["seconds"][way] for one in timings) for way in ways},
        "compiling": {way: sum(one["compiling"].get(way, 0.0) for one in timings) for way in ways},
        "failed": failed,
        "machine": timings[0]["machine"],
        "threads": timings[0]["threads"],
    }


def arithmetic(precision: str, device_type: str) -> Plugin:
    """Lightning's plugin that computes in fp32, or mixes a shorter format in."""
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.plugins import Precision as FullPrecision

    # As a plugin: a name is no more than a wish to Lightning, which computes in bf16 where a CPU is to use fp16.
    return FullPrecision() if precision == "32" else MixedPrecision(MIXED[precision], device_type)


def _without_measuring(device_type: str) -> tuple[str, str] | None:
    """(used, reason) of auto where the device alone decides."""
    import torch

    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in bf16"
        return "32", "this GPU does not compute in bf16, and fp16 can overflow"
    if device_type != "cpu":
        return "32", f"bf16 is not relied on with {device_type}"
    return None if cpu_has_bf16() else ("32", "this CPU has no bf16 instructions")


def without_instructions(precision: str, device_type: str) -> str:
    """Why a precision that is asked for makes steps slower here; "" where it does not."""
    if precision != "bf16" or device_type != "cpu" or cpu_has_bf16():
        return ""
    return "asked for, and slow: this CPU has no bf16 instructions; trainer.precision=auto takes what is faster"


# --- the timing


@dataclass(frozen=True)
class Steps:
    """What a training step to be timed is made of: a new task on this device, a batch, the threads, the norm to which
    gradients are clipped, the number of steps that the schedule is for."""

    make_task: Callable[[], Task]
    batch: Batch
    device_type: str
    threads: int | None = None
    clip: float | None = None
    total_steps: int = 1000

    def timed(self, ways: Sequence[Way], budget: float = BUDGET_SECONDS) -> Timings:
        """Times real steps (forward, loss, backward, update) in these ways in turn, for so many seconds.

        Random numbers and torch's threads are afterwards as they were before.
        """
        import torch

        with _undisturbed(self.threads, self.device_type):
            seconds, extra, failed = time_in_turn(self._by_way(ways), budget)
            threads = torch.get_num_threads()
            if any(way.compiled for way in ways):
                torch.compiler.reset()  # the run compiles as if nothing had been compiled before
        compiling = {str(way): extra[str(way)] for way in ways if way.compiled and str(way) in extra}
        name, _ = machine_of(self.device_type)
        return {"seconds": seconds, "compiling": compiling, "failed": failed, "machine": name, "threads": threads}

    def _by_way(self, ways: Sequence[Way]) -> dict[str, Callable[[], None]]:
        """A step by way; one model serves all formats that it computes in."""
        steps: dict[str, Callable[[], None]] = {}
        for compiled in dict.fromkeys(way.compiled for way in ways):
            task = self.make_task().to(self.device_type)
            if compiled:
                task.model.compile()
            optimizer = task.optimization.start(task.model, self.total_steps)
            for group, rate in zip(optimizer.param_groups, task.optimization.rates(0), strict=True):
                group["lr"] = rate
            batch = task.on_device(self.batch)
            for way in ways:
                if way.compiled == compiled:
                    steps[str(way)] = functools.partial(self._step, task, optimizer, batch, way.precision)
        return steps

    def _step(self, task: Task, optimizer: Any, batch: Batch, precision: str) -> None:
        import torch

        optimizer.zero_grad()
        with arithmetic(precision, self.device_type).forward_context():
            sums = task.training_sums(batch)
        (sums.objective / max(1, int(sums.tokens))).backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), self.clip)
        optimizer.step()
        if self.device_type != "cpu":
            torch.accelerator.synchronize()


def time_in_turn(
    steps: Mapping[str, Callable[[], object]], budget: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Calls each function once to warm it up, then all of them in turn (A B A B), at least once and as long as the
    budget in seconds lasts. Returns the medians, how much longer the first calls took, and why one failed."""
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, step in steps.items():
        begun = clock()
        try:
            step()
        except Exception as error:
            failed[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            first[name] = clock() - begun
    taken: dict[str, list[float]] = {name: [] for name in first}
    begun = clock()
    for count in range(1, MOST_ROUNDS + 1 if first else 0):
        for name, times in taken.items():
            before = clock()
            steps[name]()
            times.append(clock() - before)
        if (clock() - begun) * (count + 1) / count > budget:  # another round would not fit
            break
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return medians, {name: max(0.0, first[name] - medians[name]) for name in first}, failed


@contextlib.contextmanager
def _undisturbed(threads: int | None, device_type: str) -> Iterator[None]:
    """Inside, random numbers are drawn from seeds of their own, in so many threads; afterwards both are as before."""
    import torch
    from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states

    before, states = torch.get_num_threads(), _collect_rng_states(include_cuda=device_type == "cuda")
    try:
        torch.set_num_threads(threads or before)
        torch.manual_seed(0)
        yield
    finally:
        torch.set_num_threads(before)
        _set_rng_states(states)
