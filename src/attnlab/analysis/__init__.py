"""Reads run directories and says what came out: statistics, tables and the comparison page.

Every word that judges rests on a test, and every test belongs to a family whose intervals are simultaneous (`differences`): under no effect each
family has a false word in at most 5% of studies. Runs without a finite value count against every word (`outcomes`).

| sentence or word | family | rests on |
|---|---|---|
| better, worse, no difference that counts; "Against BASELINE, on METRIC: ..." | differences and ranks | paired t interval against the baseline, at 1 - 5% / comparisons |
| place; "X is best", "X has the best mean, but ...", "No single best: ..." | differences and ranks | those verdicts; other pairs at what they leave of the 5% (`ranking`) |
| holds, improves, degrades; "From 1x to 8x the training length, ..." | changes with length | paired t interval of the longest minus the shortest, over cells |
| "The largest average effect is ..." (only where sure) | average effects | t interval of the mean over settings, one value a seed |
| depends; "it depends on the other settings, ...", "The largest interaction is ..." | interactions | t interval of the difference of differences |
| met, not met, open | claims | t interval of the value or paired difference, over all claims and cells |
| "N of M cells are far behind ..." | groups | permutation bound on cells that are all alike (`groups`) |
| "Lost runs, against ...", "beyond chance" | lost runs | Fisher's exact test against the baseline, Holm |
| "at most 0.05 in 3 of 3 seeds" | none: one p a seed | sacreBLEU's paired bootstrap over test sentences |
| means, their 95% intervals, wins, P(better), curves, costs, seeds to settle | none | described, not judged: each interval by itself |

Where runs are missing the interval is the sign test's, of the median, with each missing run counted against the word; what has not ended is missing.
"""

from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.reader import Study, StudyReader, read_study
from attnlab.analysis.report.page import write_report
from attnlab.analysis.resampling import with_resampled_sentences
from attnlab.analysis.tables import to_csv, to_latex, to_markdown, write_tables
from attnlab.analysis.terminal import print_comparison

__all__ = [
    "Comparison",
    "Study",
    "StudyReader",
    "compare",
    "print_comparison",
    "read_study",
    "to_csv",
    "to_latex",
    "to_markdown",
    "with_resampled_sentences",
    "write_report",
    "write_tables",
]
