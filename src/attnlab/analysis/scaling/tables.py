"""A fitted law to be read: tables and sentences in a terminal, JSON (everything) and CSV (an entry a run)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise

from rich.console import Console

from attnlab.analysis.formatting import quantity
from attnlab.analysis.scaling.fit import Interval
from attnlab.analysis.scaling.laws import Advice, CountedLaw, Scaling
from attnlab.analysis.table import Table, plain
from attnlab.training.published import LAW_FIELDS
from attnlab.training.run_directory import plain as as_json

COUNTED = {"non_embedding": "without embeddings", "total": "with embeddings"}
BEYOND = "*"
MOST_SIZES, MOST_BUDGETS = 12, 6  # that the table of runs lists one by one
Range = tuple[float, float]  # the ends


def to_json(scaling: Scaling) -> str:
    """The law in both counts with intervals, advice, predictions, runs and caveats; what is not a number is null."""
    data = {
        "study": scaling.study,
        "metric": scaling.metric,
        "form": "L = E + A / N^alpha + B / D^beta",
        "count": scaling.count,
        "laws": {name: _law(law) for name, law in scaling.laws.items()},
        "seed_scatter": scaling.seed_scatter,
        "runs": rows(scaling),
        "notes": scaling.notes,
    }
    return json.dumps(as_json(data), indent=2, allow_nan=False) + "\n"


def _law(law: CountedLaw) -> dict[str, object]:
    return {
        "parameters": asdict(law.law),
        "intervals": {name: [interval.low, interval.high] for name, interval in law.intervals.items()},
        "objective": law.fit.objective,
        "r_squared": law.r_squared,
        "misfit": law.scatter,
        "resamples": len(law.thetas),
        "optimum_exponents": dict(zip(("parameters", "tokens"), law.law.exponents, strict=True)),
        "advice": [asdict(advice) for advice in law.advice],
        "predictions": [{**asdict(one), "error": one.error, "is_inside": one.is_inside} for one in law.predictions],
    }


def rows(scaling: Scaling) -> list[dict[str, str | float]]:
    """An entry a run: what it is, what it cost, its loss, and what the law in the chosen count says of it."""
    return [
        {
            "cell": run.cell,
            "seed": run.seed,
            **{f"parameters_{name}": value for name, value in run.parameters.items()},
            "tokens": run.tokens,
            "epochs": run.epochs,
            "operations_6ND": run.six_ND(scaling.count),
            "operations_exact": run.operations,
            "loss": run.loss,
            "fitted": run.loss / math.exp(residual),
            "log_residual": float(residual),
        }
        for run, residual in zip(scaling.runs, scaling.law.residuals, strict=True)
    ]


def to_csv(scaling: Scaling) -> str:
    entries = rows(scaling)
    return Table(list(entries[0]), [list(entry.values()) for entry in entries]).to_csv()


def print_scaling(scaling: Scaling, console: Console) -> None:
    """Prints the law in both counts, runs against fit, advice, predictions and caveats."""
    runs, law = scaling.runs, scaling.law
    cells, sizes = len({run.cell for run in runs}), len({run.parameters["total"] for run in runs})
    budgets = len({run.tokens for run in runs})
    console.print(f"[bold]{plain(scaling.study)}[/bold]  {plain(scaling.question)}", highlight=False)
    summary = f"{scaling.metric}: {len(runs)} runs of {cells} cells, {sizes} sizes, {budgets} budgets of data"
    console.print(summary, highlight=False, markup=False)
    _show(console, _laws(scaling), _quality(scaling))
    if len({run.parameters[scaling.count] for run in runs}) > MOST_SIZES or budgets > MOST_BUDGETS:
        more = "runs are summed up by ranges of size and data; --format csv lists every one"
        _show(console, _summed_up(scaling), more)
    else:
        _show(console, _runs(scaling))
    _show(console, _advice(scaling), *advice_sentences(scaling), *measured_sentences(scaling))
    if law.predictions:
        _show(console, _predictions(law), prediction_sentence(law))
    console.print()
    for note in scaling.notes:
        console.print(f"[yellow]![/yellow] {plain(note)}", highlight=False)


def _show(console: Console, table: Table, *sentences: str) -> None:
    console.print(f"\n{plain(table.title)}", highlight=False)
    console.print(table.to_rich(), highlight=False)
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False, markup=False)


def _laws(scaling: Scaling) -> Table:
    """A row a parameter, a column a count, the asked one first."""
    laws = [scaling.laws[count] for count in sorted(scaling.laws, key=lambda name: name != scaling.count)]
    lines = [
        [name, *(f"{getattr(law.law, name):.3g} ({_span(law.intervals[name])})" for law in laws)] for name in LAW_FIELDS
    ]
    lines += [
        ["R2 of log loss", *(f"{law.r_squared:.4f}" for law in laws)],
        ["misfit", *(percent(law.scatter) for law in laws)],
        ["best N and D", *("C^{:.2f} and C^{:.2f}".format(*law.law.exponents) for law in laws)],
    ]
    headings = ["", *(f"N {COUNTED[law.count]}" for law in laws)]
    return Table(headings, lines, "L = E + A / N^alpha + B / D^beta, with 95% intervals")


def law_table(scaling: Scaling, published: Mapping[str, float]) -> Table:
    """The law in the chosen count beside what a paper found, which may be a part of it; how well it fits, as notes."""
    law = scaling.law
    lines = [
        [
            name,
            f"{published[name]:g}" if name in published else "",
            f"{getattr(law.law, name):.3g}",
            _span(law.intervals[name]),
        ]
        for name in LAW_FIELDS
    ]
    fits = f"R2 of log loss {law.r_squared:.4f}, misfit {percent(law.scatter)}. N is counted {COUNTED[law.count]}."
    title = "The law L = E + A / N^alpha + B / D^beta"
    return Table(["", "published", "here", "95%"], lines, title, "lrrr", [fits, _quality(scaling), *scaling.notes])


def _span(interval: Interval, form: str = ".3g") -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def percent(share: float) -> str:
    return f"{100 * share:.2g}%" if math.isfinite(share) else "-"


def _quality(scaling: Scaling) -> str:
    law = scaling.law
    worst = max(range(len(scaling.runs)), key=lambda i: abs(law.residuals[i]))
    text = (
        f"misfit: root mean square of the residuals of log L; the worst run, {scaling.runs[worst].cell}, "
        f"is off by {100 * law.residuals[worst]:+.2g}%"
    )
    if math.isfinite(scaling.seed_scatter):
        text += f"; seeds of a cell scatter by {percent(scaling.seed_scatter)}"
        if law.scatter > 2 * scaling.seed_scatter:
            text += ", so that most of the misfit is the law's, not chance"
    return text


def _runs(scaling: Scaling) -> Table:
    """Sizes down, budgets across: the mean measured loss and how far the law is off it."""
    runs, count = scaling.runs, scaling.count
    budgets = sorted({run.tokens for run in runs})
    lines = []
    for size in sorted({run.parameters[count] for run in runs}):
        own = [run for run in runs if run.parameters[count] == size]
        line = [quantity(size), f"{own[0].six_ND(count) / own[0].operations:.2f}"]
        for budget in budgets:
            losses = [run.loss for run in own if run.tokens == budget]
            off = _off(scaling, (size, size), (budget, budget))[1]
            line.append(f"{sum(losses) / len(losses):.3f} {off}" if losses else "-")
        lines.append(line)
    headings = ["N", "6N/exact", *(f"D {quantity(budget)}" for budget in budgets)]
    return Table(headings, lines, f"measured {scaling.metric}, and measured less fitted in %")


def _off(scaling: Scaling, sizes: Range, budgets: Range) -> tuple[int, str]:
    """The runs within a range of sizes and one of budgets: how many, and how far the law is off them in the mean."""
    here = [
        residual
        for run, residual in zip(scaling.runs, scaling.law.residuals, strict=True)
        if sizes[0] <= run.parameters[scaling.count] <= sizes[1] and budgets[0] <= run.tokens <= budgets[1]
    ]
    return len(here), f"{100 * sum(here) / len(here):+5.1f}" if here else ""


def _summed_up(scaling: Scaling) -> Table:
    """The same of many sizes or budgets, by ranges of them."""
    sizes = _ranges([run.parameters[scaling.count] for run in scaling.runs], MOST_SIZES)
    budgets = _ranges([run.tokens for run in scaling.runs], MOST_BUDGETS)

    def shown(size: Range, budget: Range) -> str:
        n, off = _off(scaling, size, budget)
        return f"{n} {off}" if n else "-"

    lines = [[_ends(size), *(shown(size, budget) for budget in budgets)] for size in sizes]
    headings = ["N", *(f"D {_ends(budget)}" for budget in budgets)]
    return Table(headings, lines, "runs, and measured less fitted in %")


def _ranges(values: Sequence[float], most: int) -> list[Range]:
    """The different values in at most so many ranges, with about as many values in each."""
    different = sorted(set(values))
    count = min(most, len(different))
    cuts = [round(i * len(different) / count) for i in range(count + 1)]
    return [(different[low], different[high - 1]) for low, high in pairwise(cuts)]


def _ends(ends: Range) -> str:
    return "..".join(dict.fromkeys(map(quantity, ends)))


def _advice(scaling: Scaling) -> Table:
    lines = [
        [
            f"{advice.compute:.1e}{BEYOND if advice.is_beyond else ' '}",
            f"{quantity(advice.best.parameters)} ({_quantities(advice.parameters)})",
            f"{quantity(advice.best.tokens)} ({_quantities(advice.tokens)})",
            f"{advice.best.loss:.3f}",
            *(quantity(advice.measured.parameters), quantity(advice.measured.tokens)),
        ]
        for advice in scaling.law.advice
    ]
    title = f"best use of a compute C = 6 N D, N {COUNTED[scaling.count]}"
    return Table(["C", "N (95%)", "D (95%)", "loss", "exact N", "exact D"], lines, title, "r" * 6)


def _quantities(interval: Interval) -> str:
    return f"{quantity(interval.low)}..{quantity(interval.high)}"


def advice_sentences(scaling: Scaling) -> list[str]:
    """The advice in plain words: for the most compute spent here, how it grows, what is beyond the runs."""
    law = scaling.law
    at = _at_most_spent(scaling)
    if not math.isfinite(at.best.parameters):
        return ["An exponent is zero: the law gives no best size, for one of N and D brings nothing here."]
    grows_N, grows_D = law.law.exponents
    sentences = [
        f"At your size: with {at.compute:.2e} operations train {quantity(at.best.parameters)} parameters "
        f"({_quantities(at.parameters)}) on {quantity(at.best.tokens)} {scaling.unit}s ({_quantities(at.tokens)}); "
        f"the law says {at.best.loss:.3f} nats.",
        f"Of ten times the compute, N takes {10**grows_N:.2g} times and D {10**grows_D:.2g} times "
        f"(exponents {grows_N:.2f} and {grows_D:.2f}).",
    ]
    if any(advice.is_beyond for advice in law.advice):
        beyond = f"{BEYOND} beyond the sizes, the data or the compute of these runs: the law is stretched there."
        sentences.append(beyond)
    return sentences


def _at_most_spent(scaling: Scaling) -> Advice:
    spent = max(run.six_ND(scaling.count) for run in scaling.runs)
    within = [advice for advice in scaling.law.advice if advice.compute <= spent * (1 + 1e-9)]
    return max(within or scaling.law.advice, key=lambda advice: advice.compute)


def measured_sentences(scaling: Scaling) -> list[str]:
    ratios = [run.six_ND(scaling.count) / run.operations for run in scaling.runs]
    return [
        f"6 N D is {100 * min(ratios):.0f} to {100 * max(ratios):.0f}% of the operations that these models take "
        "(output matrix and attention's products counted, those over masked positions too); "
        "N exact and D exact spend C of these."
    ]


def _predictions(law: CountedLaw) -> Table:
    lines = [
        [
            *(quantity(one.parameters), quantity(one.tokens), f"{one.measured:.3f}"),
            f"{one.predicted:.3f} ({_span(one.interval, '.3f')})",
            f"{100 * one.error:+.2f}%",
            "inside" if one.is_inside else "outside",
        ]
        for one in law.predictions
    ]
    title = "predicted by a law fitted without them: the cells of most compute"
    return Table(["N", "D", "measured", "predicted (95%)", "error", ""], lines, title, "r" * 6)


def prediction_sentence(law: CountedLaw) -> str:
    inside = sum(one.is_inside for one in law.predictions)
    worst = 100 * max(law.predictions, key=lambda one: abs(one.error)).error
    return (
        f"{inside} of {len(law.predictions)} cells lie inside their interval; the worst is predicted {worst:+.2f}% off"
    )
