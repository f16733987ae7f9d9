"""Reads run directories and says what came out: statistics, tables, a comparison in words.

Every word that judges rests on a test, and every test belongs to a family whose intervals are simultaneous
(`differences`): under no effect each family has a false word in at most 5% of studies. Runs without a finite value
count against every word (`differences.Outcomes`).

- Differences and ranks. "better", "worse", "no difference that counts", "Against BASELINE, ...": paired t interval
  against the baseline, at 1 - 5% / comparisons. A place (the interval of a rank), "X is best", "X has the best mean,
  but ...", "No single best: ...": those verdicts; other pairs at what they leave of the 5%
  (`cells.rank_intervals`).
- Changes with length. "holds", "improves", "degrades", "From 1x to 8x the training length, ...": paired t interval of
  the longest minus the shortest, over cells.
- Average effects. "The largest average effect is ..." (only where sure): t interval of the mean over settings, one
  value a seed. Interactions. "depends", "The largest interaction is ...": t interval of the difference of
  differences.
- Size. "grows", "shrinks", "changes": t intervals of the change of an effect from one size to another and of the mean
  of both effects, one family over all choices (`size_trends`).
- Published figures. "as published", "opposite": paired t intervals against the baseline, over all figures.
- Claims. "met", "not met", "open": t interval of the value or paired difference, over all claims and cells.
- Clusters. "N of M cells are far behind ...": permutation bound on cells that are all alike (`Comparison.clusters`).
- Failed runs. "Lost runs, against ...", "beyond chance": Fisher's exact test against the baseline, Holm.
- What is 0 or 1 a run (`training.metrics.Metric.is_proportion`). Shares of runs, in the same families: Newcombe's
  interval and Fisher's exact test have to agree on "better" and "worse"; "no difference that counts" and claims against
  another cell take bounds that hold for any shares; changes with length, of the same runs, McNemar's exact test.
  No effects, no interactions. Missing runs are counted as they are worst.
- In no family: "at most 0.05 in 3 of 3 seeds" (one p a seed: sacreBLEU's paired bootstrap over test sentences).
  Described and not judged, each interval by itself: means and their 95% intervals, wins, P(better), curves, costs,
  seeds to settle.

Where runs are missing the interval is the sign test's, of the median (of shares their own), with each missing run
counted against the word; what has not ended is missing.
"""

from attnlab.analysis.comparison import Comparison, asked, compare, parts_of_study
from attnlab.analysis.reader import Study, StudyReader, load_study
from attnlab.analysis.tables import to_csv, to_latex, to_markdown, write_tables
from attnlab.analysis.terminal import print_comparison

__all__ = [
    "Comparison",
    "Study",
    "StudyReader",
    "asked",
    "compare",
    "load_study",
    "parts_of_study",
    "print_comparison",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_tables",
]
