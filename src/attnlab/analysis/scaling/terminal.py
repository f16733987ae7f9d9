"""The law in a terminal: one table a count, the advice, what was foretold, and what to be careful of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnlab.analysis.budget import quantity
from attnlab.analysis.scaling.bootstrap import Interval
from attnlab.analysis.scaling.report import Advice, CountedLaw, Scaling

COUNTED = {"non_embedding": "without embeddings", "total": "with embeddings"}
ORDER = ("E", "A", "alpha", "B", "beta")
BEYOND = "*"
MOST_SIZES, MOST_BUDGETS = 12, 6  # that the table of runs lists one by one


def print_scaling(scaling: Scaling, console: Console) -> None:
    """Prints the law in both counts, runs against fit, advice, prediction and caveats; no colours where `console` has none."""
    cells = {run.cell for run in scaling.runs}
    sizes, budgets = (
        len(set(v)) for v in ([r.parameters["total"] for r in scaling.runs], [r.tokens for r in scaling.runs])
    )
    console.print(f"[bold]{escape(scaling.study)}[/bold]  {escape(scaling.question)}", highlight=False)
    console.print(
        f"{scaling.metric}: {len(scaling.runs)} runs of {len(cells)} cells, {sizes} sizes, {budgets} budgets of data",
        highlight=False,
        markup=False,
    )
    console.print("\nL = E + A / N^alpha + B / D^beta, with 95% intervals", highlight=False)
    console.print(_laws(scaling))
    _say(console, [_quality(scaling)])
    console.print(_runs(scaling))
    if _is_large(scaling):
        _say(console, ["runs are summed up by ranges of size and data; --format csv lists every one"])
    console.print(_advice(scaling))
    _say(console, [*advice_sentences(scaling), *measured_sentences(scaling)])
    if scaling.law.foretold:
        console.print(_foretold(scaling))
        _say(console, [foretold_sentence(scaling.law)])
    console.print()
    for note in scaling.notes:
        console.print(f"[yellow]![/yellow] {escape(note)}", highlight=False)


def _say(console: Console, sentences: Iterable[str]) -> None:
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False, markup=False)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table


def _laws(scaling: Scaling) -> Table:
    """A row a parameter, a column a count, the asked one first."""
    laws = [scaling.laws[count] for count in sorted(scaling.laws, key=lambda name: name != scaling.count)]
    table = _table("", "", *(f"N {COUNTED[law.count]}" for law in laws))
    for name in ORDER:
        table.add_row(name, *(f"{getattr(law.law, name):.3g} ({_span(law.intervals[name])})" for law in laws))
    table.add_row("R2 of log loss", *(f"{law.r_squared:.4f}" for law in laws))
    table.add_row("misfit", *(percent(law.scatter) for law in laws))
    table.add_row("best N and D", *("C^{:.2f} and C^{:.2f}".format(*law.law.exponents) for law in laws))
    return table


def _span(interval: Interval, form: str = ".3g") -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def percent(share: float) -> str:
    """A share in per cent, two digits."""
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
    law = scaling.law
    budgets = sorted({run.tokens for run in scaling.runs})
    if _is_large(scaling):
        return _summed_up(scaling)
    table = _table(
        f"measured {escape(scaling.metric)}, and measured less fitted in %",
        "N",
        "6N/exact",
        *(f"D {quantity(d)}" for d in budgets),
    )
    sizes = sorted({run.parameters[scaling.count] for run in scaling.runs})
    for size in sizes:
        row = [quantity(size), f"{_cost_ratio(scaling, size):.2f}"]
        for budget in budgets:
            here = [i for i, r in enumerate(scaling.runs) if r.parameters[scaling.count] == size and r.tokens == budget]
            loss = sum(scaling.runs[i].loss for i in here) / len(here) if here else math.nan
            off = sum(law.residuals[i] for i in here) / len(here) if here else math.nan
            row.append(f"{loss:.3f} {100 * off:+5.1f}" if here else "-")
        table.add_row(*row)
    return table


def _is_large(scaling: Scaling) -> bool:
    """Whether there are too many sizes or budgets for a table of each."""
    sizes, budgets = {run.parameters[scaling.count] for run in scaling.runs}, {run.tokens for run in scaling.runs}
    return len(sizes) > MOST_SIZES or len(budgets) > MOST_BUDGETS


def _summed_up(scaling: Scaling) -> Table:
    """The same of many sizes or budgets, by ranges of them."""
    sizes = _ranges([run.parameters[scaling.count] for run in scaling.runs], MOST_SIZES)
    budgets = _ranges([run.tokens for run in scaling.runs], MOST_BUDGETS)
    table = _table("runs, and measured less fitted in %", "N", *(f"D {_span_of(range_)}" for range_ in budgets))
    for size in sizes:
        row = [_span_of(size)]
        for budget in budgets:
            here = [
                scaling.law.residuals[i]
                for i, run in enumerate(scaling.runs)
                if size[0] <= run.parameters[scaling.count] <= size[1] and budget[0] <= run.tokens <= budget[1]
            ]
            row.append(f"{len(here)} {100 * sum(here) / len(here):+5.1f}" if here else "-")
        table.add_row(*row)
    return table


def _ranges(values: Iterable[float], most: int) -> list[tuple[float, float]]:
    """The different values in at most so many ranges, with about as many values in each."""
    different = sorted(set(values))
    count = min(most, len(different))
    cuts = [round(i * len(different) / count) for i in range(count + 1)]
    return [(different[low], different[high - 1]) for low, high in pairwise(cuts)]


def _span_of(ends: tuple[float, float]) -> str:
    low, high = quantity(ends[0]), quantity(ends[1])
    return low if low == high else f"{low}..{high}"


def _cost_ratio(scaling: Scaling, size: int) -> float:
    run = next(run for run in scaling.runs if run.parameters[scaling.count] == size)
    return run.six_ND(scaling.count) / run.operations


def _advice(scaling: Scaling) -> Table:
    table = _table(
        f"best use of a compute C = 6 N D, N {COUNTED[scaling.count]}",
        *("C", "N (95%)", "D (95%)", "loss", "exact N", "exact D"),
        left=0,
    )
    for advice in scaling.law.advice:
        best, measured = advice.best, advice.measured
        table.add_row(
            f"{advice.compute:.1e}{BEYOND if advice.is_beyond else ' '}",
            f"{quantity(best.parameters)} ({_quantities(advice.parameters)})",
            f"{quantity(best.tokens)} ({_quantities(advice.tokens)})",
            f"{best.loss:.3f}",
            *(quantity(measured.parameters), quantity(measured.tokens)),
        )
    return table


def _quantities(interval: Interval) -> str:
    return f"{quantity(interval.low)}..{quantity(interval.high)}"


def advice_sentences(scaling: Scaling) -> list[str]:
    """The advice in plain words: for the most compute that was spent here, how it grows, and what is beyond the runs."""
    law = scaling.law
    at = _at_most_spent(scaling)
    if not math.isfinite(at.best.parameters):
        return ["An exponent is zero: the law gives no best size, for one of N and D brings nothing here."]
    grows_N, grows_D = law.law.exponents
    sentences = [
        f"At your size: with {at.compute:.2e} operations train {quantity(at.best.parameters)} parameters "
        f"({_quantities(at.parameters)}) on {quantity(at.best.tokens)} {scaling.unit}s ({_quantities(at.tokens)}); the law says {at.best.loss:.3f} nats.",
        f"Of ten times the compute, N takes {10**grows_N:.2g} times and D {10**grows_D:.2g} times (exponents {grows_N:.2f} and {grows_D:.2f}).",
    ]
    if any(advice.is_beyond for advice in law.advice):
        sentences.append(
            f"{BEYOND} beyond the sizes, the data or the compute of these runs: the law is stretched there."
        )
    return sentences


def _at_most_spent(scaling: Scaling) -> Advice:
    """The advice for the most compute that is still within the runs, or the last."""
    spent = max(run.six_ND(scaling.count) for run in scaling.runs)
    within = [advice for advice in scaling.law.advice if advice.compute <= spent * (1 + 1e-9)]
    return max(within or scaling.law.advice, key=lambda advice: advice.compute)


def measured_sentences(scaling: Scaling) -> list[str]:
    """What the rule of thumb leaves out."""
    ratios = [run.six_ND(scaling.count) / run.operations for run in scaling.runs]
    return [
        f"6 N D is {100 * min(ratios):.0f} to {100 * max(ratios):.0f}% of the operations that these models take (output matrix and attention's "
        "products counted, those over masked positions too); N exact and D exact spend C of these."
    ]


def _foretold(scaling: Scaling) -> Table:
    table = _table(
        "foretold by a law fitted without them: the cells of most compute",
        *("N", "D", "measured", "foretold (95%)", "error", ""),
        left=0,
    )
    for one in scaling.law.foretold:
        table.add_row(
            *(quantity(one.parameters), quantity(one.tokens), f"{one.measured:.3f}"),
            f"{one.predicted:.3f} ({_span(one.interval, '.3f')})",
            f"{100 * one.error:+.2f}%",
            "inside" if one.is_inside else "outside",
        )
    return table


def foretold_sentence(law: CountedLaw) -> str:
    """How the prediction did."""
    inside = sum(one.is_inside for one in law.foretold)
    worst = max(law.foretold, key=lambda one: abs(one.error))
    return f"{inside} of {len(law.foretold)} cells lie inside their interval; the worst is foretold {100 * worst.error:+.2f}% off"
