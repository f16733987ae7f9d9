"""What a reader must know before trusting the figures."""

from __future__ import annotations

import numpy as np
import pytest
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import load_study
from attnlab.analysis.warnings import two_places


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([0.998, 0.998, 0.996, 0.997, 0.159, 0.998], ([0.159], [0.996, 0.997, 0.998, 0.998, 0.998])),
        ([2.3, 2.31, 3.0, 3.01, 2.29, 3.02], ([2.29, 2.3, 2.31], [3.0, 3.01, 3.02])),
        ([0.998, 0.998, 0.159], ([], [])),  # too few to tell
        ([2.1, 2.2, 2.3, 2.4, 2.5, 2.9], ([], [])),
        ([0.95, 0.95, 0.95, 0.95, 0.95, 0.96], ([], [])),  # the next value of a coarse metric
        ([1.0] * 6, ([], [])),
    ],
)
def test_runs_that_end_in_two_places_are_seen(values, parts):
    assert two_places(values) == parts


def test_few_normal_samples_seem_to_end_in_two_places():
    samples = 10 + np.random.default_rng(0).standard_normal((4000, 6))
    share = np.mean([bool(two_places(sample)[0]) for sample in samples])
    assert share < 0.01


def test_a_mean_that_no_run_is_near_is_said(tmp_path):
    cells = [cell({"arm": name}) for name in "ab"]
    metric = {"name": "test/accuracy", "better": "higher"}
    root = write_plan(
        tmp_path / "s",
        factors={"arm": [*"ab"]}, cells=cells, baseline={"arm": "a"}, seeds=[*range(6)], metric=metric
    )  # fmt: skip
    for seed, value in enumerate([0.998, 0.998, 0.996, 0.997, 0.159, 0.998]):
        write_run(root, {"arm": "a"}, seed, {"test/accuracy": value})
        write_run(root, {"arm": "b"}, seed, {"test/accuracy": 0.15 + seed / 100})
    said = [caveat for caveat in compare(load_study(root)).caveats if "two places" in caveat]
    assert said == [
        "Runs of a (1 at 0.159, 5 at 0.996 to 0.998) end in two places that no spread explains, and a mean is neither; "
        "a share of runs (task.success_above, where the task has it) is judged without one."
    ]
