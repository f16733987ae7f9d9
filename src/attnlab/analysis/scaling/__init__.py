"""Scaling laws: what the runs of a study say about size, data and compute."""

from attnlab.analysis.scaling.fit import Fit, Law, Optimum, Points, fit
from attnlab.analysis.scaling.laws import Scaling, scaling_of
from attnlab.analysis.scaling.tables import law_table, print_scaling, to_csv, to_json

__all__ = [
    "Fit",
    "Law",
    "Optimum",
    "Points",
    "Scaling",
    "fit",
    "law_table",
    "print_scaling",
    "scaling_of",
    "to_csv",
    "to_json",
]
