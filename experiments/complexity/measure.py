"""The article's Table 1, measured: time and memory of one layer of attention, recurrence and convolution against length and width.

python experiments/complexity/measure.py [--device cpu|cuda] [--dtype float32] [--to FOLDER] [--quick] [--rounds 5] [--threads 2]

Every size is timed once a round, in rounds one after another, forward and forward with backward; a size's time is the median over rounds. The exponent
of a series is the slope of log time against log size by least squares on the upper sizes alone, with Student's t interval of the slope: it holds both the
noise and what is no power law yet. Memory is the most that forward and backward hold at one instant on top of what the layer's inputs and weights
take: what torch's allocator counts on a GPU, the running sum of all that its profiler sees on a CPU. Writes complexity.{json,png,pdf} and prints the
tables of README.md, those of counted.py first.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counted import markdown, tables
from parts import LAYERS, Call, Layer, Size
from scipy.stats import linregress
from scipy.stats import t as student
from torch.profiler import ProfilerActivity, profile

LONG_ENOUGH = 0.01  # seconds of one timing; a shorter call is repeated
PASSES = ("forward", "training")
LSTM = "recurrence (LSTM), core"
ATTENTIONS = ("self-attention, explicit, core", "self-attention, fused, core")
COLOURS = {
    "self-attention, explicit": "#d9622b",
    "self-attention, fused": "#2f6fde",
    "windowed self-attention": "#16876a",
    "window as a mask": "#8f7200",
    "recurrence (LSTM)": "#b23c9b",
    "convolution": "#54626e",
}
SHARE = 0.5  # of the free memory that one size may be expected to take


@dataclass(frozen=True)
class Axis:
    """What grows, over which values, from which on the exponent is fitted, and what stays as it is."""

    name: str
    values: Sequence[int]
    fitted_from: int
    base: Size

    def sizes(self) -> Iterator[tuple[int, Size]]:
        """Each value with its size."""
        for value in self.values:
            yield value, replace(self.base, **{self.name: value})


@dataclass
class Series:
    """A layer along an axis: seconds of every round by pass and value, bytes by value."""

    layer: Layer
    axis: Axis
    seconds: dict[str, dict[int, list[float]]] = field(default_factory=lambda: {pass_: {} for pass_ in PASSES})
    bytes: dict[int, int] = field(default_factory=dict)
    too_large: list[int] = field(default_factory=list)

    def medians(self, pass_: str) -> dict[int, float]:
        """The median over rounds by value."""
        return {value: statistics.median(times) for value, times in self.seconds[pass_].items()}

    def exponent(self, points: dict[int, float]) -> tuple[float, float] | None:
        """The slope on the fitted part and the half-width of its 95% interval; None where fewer than three sizes are left."""
        return exponent({value: y for value, y in points.items() if value >= self.axis.fitted_from})


def exponent(points: dict[int, float]) -> tuple[float, float] | None:
    """The slope of log y against log x and the half-width of its 95% interval; None where there are fewer than three points."""
    if len(points) < 3:
        return None
    fit = linregress(np.log(list(points)), np.log(list(points.values())))
    return float(fit.slope), float(student.ppf(0.975, len(points) - 2) * fit.stderr)


def axes(device: str, dtype: torch.dtype, quick: bool) -> list[Axis]:
    """The axes n, d, k and r, larger on a GPU, where small sizes tell of launches alone."""
    size = Size(1024, 256, device=device, dtype=dtype)
    if quick:
        short = replace(size, n=256, d=64)
        return [
            Axis("n", (128, 256, 512), 128, short),
            Axis("d", (64, 128, 256), 64, short),
            Axis("k", (3, 5, 9), 3, short),
            Axis("r", (16, 32, 64), 16, short),
        ]
    if device == "cuda":
        large = replace(size, n=4096, d=512)
        return [
            Axis("n", (512, 1024, 2048, 4096, 8192, 16384, 32768, 49152), 8192, large),
            Axis("d", (128, 256, 512, 1024, 1536, 2048, 3072, 4096), 1024, replace(large, n=1024)),
            Axis("k", (3, 5, 9, 17, 33), 3, replace(large, n=8192)),
            Axis("r", (64, 128, 256, 512, 1024), 64, replace(large, n=32768)),
        ]
    return [
        Axis("n", (128, 256, 512, 1024, 1536, 2048, 3072, 4096), 1024, size),
        Axis("d", (64, 128, 256, 384, 512, 768, 1024), 256, replace(size, n=256)),
        Axis("k", (3, 5, 9, 17, 33), 3, size),
        Axis("r", (32, 64, 128, 256, 512), 32, replace(size, n=2048)),
    ]


def expected_bytes(layer: Layer, size: Size) -> int:
    """What the scores of a layer may take at once, at most: six of them, in fp32. Next to nothing where no n x n scores stand."""
    return 24 * size.heads * size.n**2 if "explicit" in layer.name else 0


def free_bytes(device: str) -> float:
    """What one size may take."""
    return SHARE * torch.cuda.mem_get_info()[0] if device == "cuda" else 3e9


def wait(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Call, pass_: str, repeats: int, device: str) -> float:
    """Seconds of one call, over several of them."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        if pass_ == "forward":
            with torch.no_grad():
                call.forward()
        else:
            call.train()
    wait(device)
    return (time.perf_counter() - started) / repeats


def peak_bytes(call: Call, device: str) -> int:
    """The most that forward and backward hold at one instant."""
    if device == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call.train()
        wait(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call.train()
    results = seen.profiler.kineto_results if seen.profiler is not None else None
    assert results is not None, "torch was built without its profiler"
    changes = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def measure(layer: Layer, axis: Axis, rounds: int, passes: Sequence[str] = PASSES) -> Series:
    """All sizes of one layer along one axis; memory where both passes are asked for."""
    series, device = Series(layer, axis), axis.base.device
    calls: dict[int, Call] = {}
    for value, size in axis.sizes():
        if expected_bytes(layer, size) > free_bytes(device):
            series.too_large.append(value)
        else:
            calls[value] = layer.make(size)
    repeats = {}
    for value, call in calls.items():
        for pass_ in passes:
            timed(call, pass_, 1, device)  # what the first call alone has to do is no part of it
            repeats[pass_, value] = max(1, math.ceil(LONG_ENOUGH / timed(call, pass_, 1, device)))
        if passes == PASSES:
            series.bytes[value] = peak_bytes(call, device)
    for _ in range(rounds):
        for (pass_, value), count in repeats.items():
            series.seconds[pass_].setdefault(value, []).append(timed(calls[value], pass_, count, device))
    if device == "cuda":
        calls.clear()
        torch.cuda.empty_cache()  # what torch keeps for itself would not count as free
    return series


def crossings(
    found: Sequence[Series], device: str, dtype: torch.dtype, quick: bool, rounds: int
) -> list[dict[str, Any]]:
    """For several widths, the length from which attention's core takes longer than an LSTM's, forward and backward."""
    along_n = {series.layer.title: series for series in found if series.axis.name == "n"}
    own = along_n[LSTM].axis
    lengths = own.values if quick else (1024, 2048, 4096, 8192) if device == "cuda" else (512, 1024, 2048, 4096)
    rows = []
    for d in (128,) if quick else (128, 1024) if device == "cuda" else (64, 128):
        axis = Axis("n", lengths, 0, Size(lengths[0], d, device=device, dtype=dtype))
        measured = {title: measure(along_n[title].layer, axis, rounds, ("training",)) for title in (LSTM, *ATTENTIONS)}
        rows.append(_crossing_row(d, measured))
    rows.append(_crossing_row(own.base.d, along_n))
    return sorted(rows, key=lambda row: row["d"])


def _crossing_row(d: int, measured: dict[str, Series]) -> dict[str, Any]:
    times = {title: measured[title].medians("training") for title in (LSTM, *ATTENTIONS)}
    row: dict[str, Any] = {"d": d}
    for title in ATTENTIONS:
        longest = max(times[title])
        row[title] = {
            "crossing": crossing(times[title], times[LSTM]),
            "longest": longest,
            "ratio": times[LSTM][longest] / times[title][longest],
        }
    return row


def crossing(own: dict[int, float], other: dict[int, float]) -> float | str:
    """Where `own` begins to take longer than `other`, on a line between two measured lengths in log scales; else on which side of all."""
    lengths = sorted(own.keys() & other.keys())
    gaps = [math.log(own[n] / other[n]) for n in lengths]
    for n, m, before, after in zip(lengths, lengths[1:], gaps, gaps[1:], strict=False):
        if before <= 0 < after:
            return math.exp(math.log(n) + math.log(m / n) * -before / (after - before))
    return f"below {lengths[0]}" if gaps[0] > 0 else f"above {lengths[-1]}"


def exponent_rows(found: Sequence[Series]) -> list[list[str]]:
    """One row a series: the article's exponent, those of both passes and of memory."""
    rows = []
    for series in found:
        cells = [
            series.exponent(points) for points in (series.medians("forward"), series.medians("training"), series.bytes)
        ]
        texts = ["-" if cell is None else f"{cell[0]:.2f} ± {cell[1]:.2f}" for cell in cells]
        rows.append([series.layer.title, series.axis.name, str(series.layer.growth[series.axis.name]), *texts])
    return rows


def time_rows(found: Sequence[Series]) -> list[list[str]]:
    """One row a series along n: what the shortest and the longest length take."""
    rows = []
    for series in found:
        cells = []
        for value in (series.axis.fitted_from, series.axis.values[-1]):
            if value in series.too_large:
                cells += ["too large", "-", "-"]
                continue
            ahead, both = (1e3 * series.medians(pass_)[value] for pass_ in PASSES)
            cells += [f"{ahead:.3g}", f"{both:.3g}", f"{series.bytes[value] / 2**20:.3g}"]
        rows.append([series.layer.title, *cells])
    return rows


def crossing_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row a width."""
    rows = []
    for row in found:
        cells = []
        for title in ATTENTIONS:
            at, one = row[title]["crossing"], row[title]
            cells += [at if isinstance(at, str) else f"{at:.0f}", f"{one['ratio']:.3g} at n = {one['longest']}"]
        rows.append([str(row["d"]), str(2 * row["d"]), *cells])
    return rows


def report(found: Sequence[Series], crossed: Sequence[dict[str, Any]], device: str) -> str:
    """The measured tables, as Markdown."""
    along_n = [series for series in found if series.axis.name == "n"]
    axis, (low, high) = along_n[0].axis, (along_n[0].axis.fitted_from, along_n[0].axis.values[-1])
    fitted = {s.axis.name: s.axis for s in found}
    how = "; ".join(f"{a.name} from {a.fitted_from} to {a.values[-1]} at {_others(a)}" for a in fitted.values())
    blocks = [
        (
            f"Exponents on {device}",
            f"Fitted on {how}.",
            ["layer", "against", "article", "forward", "forward + backward", "memory"],
            exponent_rows(found),
        ),
        (
            f"One layer at d = {axis.base.d} on {device}",
            "Milliseconds of the forward pass and of both passes, MiB of both.",
            ["layer", *(f"{what}, n = {n}" for n in (low, high) for what in ("forward ms", "both ms", "MiB"))],
            time_rows(along_n),
        ),
        (
            f"Where attention's core begins to take longer than an LSTM's on {device}",
            "n at which forward and backward take as long.",
            ["d", "same FLOPs (n = 2 d)", "explicit", "LSTM's time / explicit's", "fused", "LSTM's time / fused's"],
            crossing_rows(crossed),
        ),
    ]
    return "\n\n".join(f"### {title}\n\n{lead}\n\n{markdown(head, rows)}" for title, lead, head, rows in blocks)


def _others(axis: Axis) -> str:
    return ", ".join(f"{name} = {getattr(axis.base, name)}" for name in ("n", "d") if name != axis.name)


def picture(found: Sequence[Series], device: str, folder: Path) -> None:
    """Time against n and d, memory against n, in one figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for panel, (name, with_time) in zip(panels, (("n", True), ("d", True), ("n", False)), strict=True):
        _panel(panel, [series for series in found if series.axis.name == name], with_time)
    width = next(series.axis.base.d for series in found if series.axis.name == "n")
    panels[0].axvline(2 * width, color="#1d2228", linewidth=0.8, linestyle=":")
    panels[0].text(
        2 * width, 0.02, "n = 2 d", fontsize=8, rotation=90, ha="right", transform=panels[0].get_xaxis_transform()
    )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    figure.suptitle(
        f"One layer on {device}, forward and backward; the exponents are fitted on the shaded part", fontsize=10
    )
    for ending in ("png", "pdf"):
        figure.savefig(folder / f"complexity.{ending}", dpi=150)


def _panel(panel: Any, found: Sequence[Series], with_time: bool) -> None:
    axis = found[0].axis
    for series in found:
        points = series.medians("training") if with_time else series.bytes
        style = "-" if series.layer.part == "core" else "--"
        look = {"color": COLOURS[series.layer.name], "marker": "o", "markersize": 2.5, "linewidth": 1.3}
        panel.plot(list(points), list(points.values()), style, label=series.layer.title, **look)
    what = "length n" if axis.name == "n" else "width d"
    panel.set(
        xscale="log", yscale="log", xlabel=f"{what} ({_others(axis)})", ylabel="seconds" if with_time else "bytes"
    )
    panel.axvspan(axis.fitted_from, axis.values[-1], color="#000000", alpha=0.05, linewidth=0)
    ticks = [value for value in axis.values if math.log2(value / axis.values[0]) % 1 == 0]
    panel.set_xticks(ticks, [str(value) for value in ticks])
    panel.minorticks_off()
    panel.grid(alpha=0.3, linewidth=0.5)


def device_name(device: str) -> str:
    """The GPU's name, or the processor and its threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}"


def as_json(
    found: Sequence[Series], crossed: Sequence[dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All that was measured, every round."""
    rows = [
        {
            "layer": s.layer.name,
            "part": s.layer.part,
            "axis": s.axis.name,
            "base": {"n": s.axis.base.n, "d": s.axis.base.d, "k": s.axis.base.k, "r": s.axis.base.r},
            "fitted_from": s.axis.fitted_from,
            "seconds": s.seconds,
            "bytes": s.bytes,
            "too_large": s.too_large,
        }
        for s in found
    ]
    about = {
        "device": device_name(arguments.device),
        "torch": torch.__version__,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
    }
    return about | {"series": rows, "crossings": list(crossed)}


def main() -> None:
    """Counts, measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--to", type=Path, default=Path("runs/complexity"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how long it takes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.to.mkdir(parents=True, exist_ok=True)
    print(tables(), flush=True)
    dtype = getattr(torch, arguments.dtype)
    found = []
    for axis in axes(arguments.device, dtype, arguments.quick):
        found += [measure(layer, axis, arguments.rounds) for layer in LAYERS if axis.name in layer.growth]
    crossed = crossings(found, arguments.device, dtype, arguments.quick, arguments.rounds)
    name = device_name(arguments.device)
    (arguments.to / "complexity.json").write_text(json.dumps(as_json(found, crossed, arguments)))
    picture(found, name, arguments.to)
    print(f"\n{report(found, crossed, name)}")


if __name__ == "__main__":
    main()
