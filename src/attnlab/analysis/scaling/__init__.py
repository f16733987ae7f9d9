"""Scaling laws: what the runs of a study say about size, data and compute."""

from attnlab.analysis.scaling.figures import write_figures
from attnlab.analysis.scaling.fit import Fit, Points, fit
from attnlab.analysis.scaling.law import Law, Optimum
from attnlab.analysis.scaling.report import Scaling, scaling_of
from attnlab.analysis.scaling.tables import to_csv, to_json
from attnlab.analysis.scaling.terminal import print_scaling

__all__ = [
    "Fit",
    "Law",
    "Optimum",
    "Points",
    "Scaling",
    "fit",
    "print_scaling",
    "scaling_of",
    "to_csv",
    "to_json",
    "write_figures",
]
