"""The page's sections on how sure each comparison is: every test, what so many seeds can see, other test sentences, and how to read it."""

from __future__ import annotations

from attnlab.analysis import wording
from attnlab.analysis.caveats import power_sentence
from attnlab.analysis.comparison import CellSummary, Comparison
from attnlab.analysis.differences import Difference
from attnlab.analysis.report.markup import Html, join, prose, table, tag
from attnlab.analysis.sentences import p_summary, sentences_of
from attnlab.analysis.statistics import BOOTSTRAP_HOLDS

TERMS = [
    (
        "Effect size",
        "Hedges' g_z: the mean paired difference in standard deviations of the differences, corrected for few seeds. "
        "It says how plainly an effect stands out from chance, not whether it matters: that is for the difference itself and the margin.",
    ),
    (
        "P(better)",
        "The chance that a run of the cell beats a run of the baseline, whichever seeds they have. Lost runs count as worse than every other.",
    ),
    (
        "p (same)",
        "Equivalence by TOST, two one-sided t tests that the difference lies within the margin, adjusted for all comparisons. The word \u201cno difference\u201d asks for more: "
        "that the whole interval that is drawn lies there.",
    ),
    (
        "Smallest seen",
        "The difference that so many seeds would find in 80% of cases, at the level of one of so many comparisons, if the spread is the one measured. "
        "Seeds to settle: how many would find the measured difference, or show it to be within the margin. Both come from few seeds and are rough.",
    ),
    (
        "Bootstrap",
        "An interval that assumes no normal distribution (BCa). "
        f"Below {BOOTSTRAP_HOLDS} seeds it is too narrow: at 95% it holds the truth in about 80% of cases with 4 seeds, 89% with 8. No verdict rests on it.",
    ),
    (
        "Lost runs",
        "Runs that ended without a finite value: diverged, failed, or finished with NaN or an infinity. A word beside them would stand whatever "
        "they had given (the sign test, counting each of them against it), and where Fisher's exact test against the baseline (Holm) finds that "
        "more are lost than chance explains, none is given.",
    ),
]


def evidence_section(comparison: Comparison) -> Html | None:
    """One row a comparison with every figure that speaks for or against it."""
    compared = [cell for cell in comparison.cells if cell.difference or cell.lost]
    if comparison.metric is None or not compared:
        return None
    decimals = wording.decimals_for(cell.difference.interval for cell in compared if cell.difference)
    equivalence = comparison.metric.margin > 0
    lost = any(cell.lost for cell in compared)
    head = ["cell", "effect size", "P(better)", "p", "p (sign flip)", *(["p (same)"] if equivalence else [])]
    head += ["bootstrap", "smallest seen", "seeds to settle", *(["lost runs"] if lost else [])]
    rows = []
    for cell in compared:
        figures = _figures(cell, cell.difference, decimals, equivalence)
        rows.append([cell.label, *(prose(text) for text in figures), *([_lost(cell)] if lost else [])])
    lead = [tag("p", prose(sentence), class_="lead") for sentence in power_sentence(comparison)]
    note = tag(
        "p",
        "All p values are adjusted for the number of comparisons (Bonferroni). What the columns mean is said in \u201cHow to read this\u201d.",
        class_="soft",
    )
    return join([*lead, table(head, rows, "How sure each comparison is", "sortable"), note])


def _lost(cell: CellSummary) -> str:
    """ "4 of 4 (p 0.029)"."""
    return wording.lost_text(cell).replace(" runs lost", "") or "-"


def _figures(cell: CellSummary, found: Difference | None, decimals: int, equivalence: bool) -> list[str]:
    chance = wording.number(cell.probability_better, 2)
    if found is None:
        return ["-", chance, *["-"] * (5 + equivalence)]
    tests = [found.p_adjusted, found.p_sign_flip_adjusted, *([found.p_equivalence_adjusted] if equivalence else [])]
    drawn = found.bootstrap
    bounds = (wording.number(end, decimals, sign=True) for end in (drawn.low, drawn.high))
    return [
        wording.number(found.effect_size, 1, sign=True),
        chance,
        *(wording.p_text(p) for p in tests),
        " to ".join(bounds) if drawn.is_bounded else "-",
        wording.number(found.smallest_effect, decimals),
        wording.seeds_text(found.seeds_to_settle),
    ]


def sentences_section(comparison: Comparison) -> Html | None:
    """The differences on resampled test sentences, where they were asked for."""
    found = comparison.sentences
    if found is None:
        return None
    lead = [tag("p", prose(sentence), class_="lead") for sentence in sentences_of(found)]
    rows = [
        [one.label, one.score, prose(wording.number(one.mean, 2, sign=True)), p_summary(one)]
        for one in found.differences
    ]
    notes = [tag("p", tag("code", signature), class_="soft") for signature in found.signatures.values()]
    return join([*lead, table(["cell", "score", "difference", "p by seed"], rows, "Other test sentences"), *notes])
