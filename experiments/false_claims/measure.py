"""How often a whole page has a false word: simulated studies with nothing to find in them, or with effects of known size, and with lost runs.

python experiments/false_claims/measure.py [--pages 1000] [--seed 0] [--stages]

A page has a factor of 2 to 10 choices, or two crossed factors, 3 to 16 seeds, figures at two lengths, and claims about them. It is compared as
`attnlab compare` does. A word is false where what it says is not so: better or worse of a cell that is the baseline's equal, a rank that parts
equals, an effect or an interaction where there is none, a change with length, a claim met or not met whose bound is the truth itself.
Lost runs are lost at random, or the worst (or best) of one cell or of the baseline, as runs that fail because they do badly are.
The table has the share of pages with a false word in each family, of those that have the family (only crossed factors have effects and
interactions, only six cells or more groups); a family holds what the page promises where that is at most 5%.
With --stages each page is a study whose seeds come in stages, looked at after each until all is settled; a word that was false at any look counts.
A second table has what stages save: two cells, their difference in standard deviations of a paired difference.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.differences import DECIDED
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import Cell, Metric, Run, Study
from attnlab.training.looks import Looks

FAMILIES = ("differences and ranks", "effects", "interactions", "lengths", "claims", "groups")
LOSSES = ("none", "random", "worst of a cell", "best of a cell", "worst of the baseline", "best of the baseline")
SHAPES = ((2, 1), (3, 1), (5, 1), (10, 1), (2, 2), (3, 2), (3, 3))
SEEDS = (3, 4, 6, 8, 16)
STAGES = ((2, 4, 6, 8), (4, 8, 12, 16), (3, 16), (2, 3, 4, 5, 6, 7, 8), (4, 9, 14, 16))
APART = (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)  # standard deviations of a paired difference
NEAR, FAR = "m@1x", "m@8x"


@dataclass(frozen=True)
class Page:
    """A study, and the true mean of each of its cells; what is not said by these is not there."""

    study: Study
    truth: dict[str, float]


def page(shape: tuple[int, int], seeds: int, losses: str, rng: np.random.Generator, effects: bool) -> Page:
    """A page without an effect, or (`effects`) with cells of the first factor far from the others, of which some are equal."""
    first, second = shape
    levels = {"f": [f"f{i}" for i in range(first)], "g": [f"g{i}" for i in range(second)]}
    levels = {name: choices for name, choices in levels.items() if len(choices) > 1 or name == "f"}
    cells = [dict(zip(levels, choices, strict=True)) for choices in itertools.product(*levels.values())]
    shift = {f"f{i}": 20.0 * rng.integers(0, 3) if effects else 0.0 for i in range(first)}
    names = [",".join(f"{name}={choice}" for name, choice in choices.items()) for choices in cells]
    truth = {name: shift[choices["f"]] for name, choices in zip(names, cells, strict=True)}
    shared = 2 * rng.standard_normal(seeds)
    spread = rng.choice([0.3, 1.0, 3.0], len(cells)) if rng.random() < 0.5 else np.ones(len(cells))
    figures = {
        (name, at): truth[name] + shared + spread[i] * rng.standard_normal(seeds)
        for (i, name), at in itertools.product(enumerate(names), (NEAR, FAR))
    }
    gone = dict(_lost(figures, names, seeds, losses, rng))
    runs = {}
    for name, seed in itertools.product(names, range(seeds)):
        final: dict[str, float | None] = {at: float(figures[name, at][seed]) for at in (NEAR, FAR)}
        state = gone.get((name, seed), "finished")
        if state == "nan":
            final, state = dict.fromkeys(final), "finished"
        status = {"final": final if state == "finished" else {}}
        runs[name, seed] = Run(name, seed, Path("/none"), state, {"seed": seed}, status)
    return Page(_study(levels, cells, names, seeds, runs, truth), truth)


def _lost(
    figures: dict[tuple[str, str], np.ndarray], names: Sequence[str], seeds: int, losses: str, rng: np.random.Generator
) -> Iterator[tuple[tuple[str, int], str]]:
    """((cell, seed), state) of the runs that are lost: up to half of those of a cell, or each with a chance of 15%."""
    states = ["diverged", "failed", "nan", "running"]
    if losses == "random":
        for name, seed in itertools.product(names, range(seeds)):
            if rng.random() < 0.15:
                yield (name, seed), str(rng.choice(states))
    elif losses != "none":
        cell = names[0] if "baseline" in losses else str(rng.choice(names[1:]))
        order = np.argsort(figures[cell, FAR] - np.mean([figures[name, FAR] for name in names], axis=0))
        order = order[::-1] if losses.startswith("worst") else order
        state = str(rng.choice(states))
        for seed in order[: rng.integers(1, max(2, seeds // 2 + 1))]:
            yield (cell, int(seed)), state


def _study(
    levels: dict[str, list[str]],
    cells: list[dict[str, str]],
    names: Sequence[str],
    seeds: int,
    runs: dict[tuple[str, int], Run],
    truth: dict[str, float],
) -> Study:
    base = {name: choices[0] for name, choices in levels.items()}
    claims: list[dict[str, Any]] = [
        {"says": "no change", "cell": cells[0], "metric": FAR, "against": {"metric": NEAR}, "below": 0.0},
        {"says": "value", "cell": cells[-1], "metric": NEAR, "above": truth[names[-1]]},
        {
            "says": "difference",
            "cell": cells[-1],
            "metric": NEAR,
            "against": {"cell": cells[0]},
            "below": truth[names[-1]] - truth[names[0]],
        },
    ]
    return Study(
        path=Path("/none"),
        name="page",
        question="",
        factors=dict(levels),
        baseline=base,
        cells=[Cell(name, choices) for name, choices in zip(names, cells, strict=True)],
        seeds=list(range(seeds)),
        metric=Metric(FAR, "lower", 0.0),
        claims=claims,
        shared=[],
        code={},
        runs=runs,
    )


def false_words(page: Page, found: Comparison) -> set[str]:
    """The families in which a word is false."""
    truth, wrong = page.truth, set()
    base = next(iter(truth))
    for cell in found.cells:
        own, difference = truth[cell.cell.name], cell.difference
        if difference and difference.verdict in DECIDED and own == truth[base]:
            wrong.add("differences and ranks")
        if cell.rank_interval and _parts_equals(
            cell.rank_interval, own, [truth[c.cell.name] for c in found.cells if c.rank_interval]
        ):
            wrong.add("differences and ranks")
    if any("is best" in sentence for sentence in headline(found)):
        first = min(truth.values())
        if sum(value == first for value in truth.values()) > 1:
            wrong.add("differences and ranks")
    wrong |= {"effects" for effect in found.effects if effect.verdict in DECIDED and not _true_effect(truth, effect)}
    wrong |= {"interactions" for one in found.interactions if one.verdict in DECIDED}
    wrong |= {"lengths" for curve in found.lengths if curve.verdict in DECIDED}
    wrong |= {"claims" for claim in found.claims if claim.verdict != "open"}
    if len(set(truth.values())) == 1 and any("far behind" in sentence for sentence in headline(found)):
        wrong.add("groups")
    return wrong


def _parts_equals(places: tuple[int, int], own: float, others: list[float]) -> bool:
    """Whether a cell's ranks leave out one that it shares with its equals."""
    best = 1 + sum(other < own for other in others)
    worst = len(others) - sum(other > own for other in others)
    return places[0] > best or places[1] < worst


def _true_effect(truth: dict[str, float], effect: Any) -> bool:
    values = {name.split(",")[0].split("=")[1]: value for name, value in truth.items()}
    return effect.factor == "f" and values[effect.choice] != values[effect.reference]


def measure(pages: int, seed: int, effects: bool) -> dict[str, Counter[str]]:
    """{losses: {family: pages with a false word, "of family": pages that have it, "any": of all "pages"}} over shapes and seeds in turn."""
    rng = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {losses: Counter() for losses in LOSSES}
    for index, losses in itertools.product(range(pages), LOSSES):
        shape, seeds = SHAPES[index % len(SHAPES)], SEEDS[index // len(SHAPES) % len(SEEDS)]
        drawn = page(shape, seeds, losses, rng, effects)
        wrong = false_words(drawn, compare(drawn.study))
        there = [f"of {family}" for family in FAMILIES if _has(family, shape)]
        counts[losses].update([*wrong, "pages", *there, *(["any"] if wrong else [])])
    return counts


def looked_at(study: Study, stages: Sequence[int]) -> Iterator[Comparison]:
    """The comparisons of a study whose seeds come in stages: one a look, until all is settled or no seeds are left."""
    for seeds in stages:
        runs = {key: run for key, run in study.runs.items() if run.seed < seeds}
        part = replace(study, seeds=list(range(seeds)), runs=runs, looks=Looks(list(stages)))
        yield (found := compare(part))
        if not found.unsettled:
            return


def measure_staged(pages: int, seed: int, effects: bool) -> dict[str, Counter[str]]:
    """As `measure`, of studies whose seeds come in stages: false words at any of their looks."""
    rng = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {losses: Counter() for losses in LOSSES}
    for index, losses in itertools.product(range(pages), LOSSES):
        shape, stages = SHAPES[index % len(SHAPES)], STAGES[index // len(SHAPES) % len(STAGES)]
        drawn = page(shape, stages[-1], losses, rng, effects)
        wrong = set[str]().union(*(false_words(drawn, found) for found in looked_at(drawn.study, stages)))
        there = [f"of {family}" for family in FAMILIES if _has(family, shape)]
        counts[losses].update([*wrong, "pages", *there, *(["any"] if wrong else [])])
    return counts


def saved(studies: int, seed: int, apart: float, margin: float) -> tuple[Counter[int], Counter[str], Counter[str]]:
    """{seeds at which it stopped: studies} of two cells that are so far apart, what was said then, and what 16 seeds at once say."""
    rng = np.random.default_rng(seed)
    stopped, said, at_once = Counter[int](), Counter[str](), Counter[str]()
    for _ in range(studies):
        drawn = page((2, 1), 16, "none", rng, False)
        runs = {}
        for (name, number), run in drawn.study.runs.items():
            value = rng.standard_normal() / math.sqrt(2) - apart * (name != "f=f0")
            runs[name, number] = replace(run, status={"final": {FAR: value}})
        study = replace(drawn.study, claims=[], runs=runs, metric=Metric(FAR, "lower", margin))
        *_, last = looked_at(study, (4, 8, 12, 16))
        stopped[len(last.study.seeds)] += 1
        for counter, found in ((said, last), (at_once, compare(study))):
            counter.update(cell.difference.verdict for cell in found.cells if cell.difference)
    return stopped, said, at_once


def share(found: Counter[str], family: str) -> float:
    """Per cent of the pages with a family in which a word of it is false."""
    return 100 * found[family] / max(1, found[f"of {family}"])


def _has(family: str, shape: tuple[int, int]) -> bool:
    if family == "groups":
        return math.prod(shape) >= 6
    return shape[1] > 1 if family in ("effects", "interactions") else True


def main() -> None:
    """Prints a row for each way to lose runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", action="store_true")
    arguments = parser.parse_args()
    measured = measure_staged if arguments.stages else measure
    for effects in (False, True):
        print(f"\n{'some cells far from the others' if effects else 'no effect at all'}: false words, % of pages")
        print(
            f"{'lost runs':22}{'pages':>6}"
            + "".join(f"{family:>{len(family) + 2}}" for family in FAMILIES)
            + f"{'any':>7}"
        )
        for losses, found in measured(arguments.pages, arguments.seed, effects).items():
            n = found["pages"]
            shares = "".join(f"{share(found, family):{len(family) + 2}.2f}" for family in FAMILIES)
            print(f"{losses:22}{n:6}{shares}{100 * found['any'] / n:7.2f}")
    print(f"\nsampling error of 5%: {100 * math.sqrt(0.05 * 0.95 / arguments.pages):.2f} (one standard error)")
    if arguments.stages:
        print_saved(arguments.pages, arguments.seed)


def print_saved(studies: int, seed: int) -> None:
    """Prints what stages of 4 seeds, 16 at most, save: a row for each difference, with and without a margin."""
    print(
        "\nseeds in stages of 4, at most 16: where it stopped, what was said, and what 16 seeds at once say, % of studies"
    )
    print(" apart  margin  seeds  at 4  at 8 at 12 at 16  better  same  at once: better  same")
    for margin, apart in itertools.product((0.0, 1.5), APART):
        stopped, said, at_once = saved(studies, seed, apart, margin)
        mean = sum(seeds * n for seeds, n in stopped.items()) / studies
        row = "".join(f"{100 * stopped[seeds] / studies:6.1f}" for seeds in (4, 8, 12, 16))
        better, same, *once = [100 * found[word] / studies for found in (said, at_once) for word in ("better", "same")]
        print(f"{apart:6.1f}{margin:8.1f}{mean:7.1f}{row}{better:8.1f}{same:6.1f}{once[0]:17.1f}{once[1]:6.1f}")


if __name__ == "__main__":
    main()
