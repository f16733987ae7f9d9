"""Reads run directories and says what came out: statistics, tables and the comparison page."""

from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.partition import parts_of_study
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
    "parts_of_study",
    "print_comparison",
    "read_study",
    "to_csv",
    "to_latex",
    "to_markdown",
    "with_resampled_sentences",
    "write_report",
    "write_tables",
]
