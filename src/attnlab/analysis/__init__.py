"""Reads run directories and says what came out: statistics, tables, a comparison in words.

Every word that judges rests on a test, and every test belongs to a family whose intervals are simultaneous
(`differences`): under no effect each family has a false word in at most 5% of studies. Runs without a finite value
count against every word (`differences.Outcomes`).

- Differences and ranks. "better", "worse", "no difference that counts", "Against BASELINE, ...": paired t interval
  against the baseline, at 1 - 5% / comparisons. A place (the interval of a rank), "X is best", "X has the best mean,
  but ...", "No single best: ...": those verdicts; other pairs at what they leave of the 5%
  (`cells.pairs_ahead`).
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
- Costs to a target (`training.targets`): steps, tokens, FLOPs or seconds until a validated metric reaches a value. In
  the same families, the sign test and the interval of the median that goes with it, of which a run that never got there
  is censored: a seed counts where it is sure which of two runs was cheaper, and all others against every word. No
  effects, no interactions. Beside them, in no family: the log-rank test, Fisher's of the share that reached it.
- Tuned cells. Words about differences, ranks, effects, interactions and claims against another cell are those that hold
  at the best settings of all cells: intervals are wider by bounds on what each choice may have missed, which have a
  fifth of each family's 5% (`regrets`). Curves, sensitivity and equal settings are described.
- Over tasks (`across`). "better", "worse", "no difference that counts", "Against BASELINE, by the mean normalised
  score: ...": paired t interval of the mean over tasks, by seed, over the arms. "Not told apart" by average ranks:
  Friedman's test and Nemenyi's, a family of their own. Each task has the families above by itself.
- In no family: "at most 0.05 in 3 of 3 seeds" (one p a seed: sacreBLEU's paired bootstrap over test sentences).
  Described and not judged, each interval by itself: means and their 95% intervals, wins, P(better), curves, costs,
  seeds to settle.

Where runs are lost the interval is the sign test's, of the median (of shares their own), with each lost run counted
against the word. Nothing is said of two cells before all of their planned runs are over. Where seeds come in stages,
each look has its part of the 5% (`training.looks`), and intervals and words are those of all looks so far together.
"""

from attnlab.analysis.across import Aggregate, Tasks, aggregate_of, compare_tasks
from attnlab.analysis.comparison import Comparison, as_asked, asked, compare, parts_of_study
from attnlab.analysis.reader import Study, StudyReader, load_study
from attnlab.analysis.tables import to_csv, to_latex, to_markdown, write_tables
from attnlab.analysis.terminal import print_comparison

__all__ = [
    "Aggregate",
    "Comparison",
    "Study",
    "StudyReader",
    "Tasks",
    "aggregate_of",
    "as_asked",
    "asked",
    "compare",
    "compare_tasks",
    "load_study",
    "parts_of_study",
    "print_comparison",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_tables",
]
