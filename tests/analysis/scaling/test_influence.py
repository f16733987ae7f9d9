"""Runs that a law hangs on are named, and a law that hangs on none is left in peace."""

from types import SimpleNamespace

import numpy as np
import pytest

from attnlab.analysis.scaling import Law
from attnlab.analysis.scaling.fit import BOUNDS, NAMES, Points, fit, interval_of, resample_cells
from attnlab.analysis.scaling.laws import hangs_on_few, hardly_determined, influential

LAW = Law(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37)


def fitted(shift, least_data):
    """What is known of 120 runs, the first three of which have the least data and are off by `shift`."""
    random = np.random.default_rng(1)
    N = np.exp(random.uniform(np.log(4e7), np.log(1.6e10), 120))
    D = np.exp(random.uniform(np.log(least_data), np.log(3e11), 120))
    D[:3] = [1e9, 1.3e9, 1.7e9]
    losses = LAW.loss(N, D) * np.exp(0.004 * random.standard_normal(120))
    losses[:3] *= np.exp(shift)
    points = Points.of(N, D, losses)
    found = fit(points)
    thetas = resample_cells(points, [str(i) for i in range(120)], found, 100, 0)
    scaled = np.column_stack([np.exp(thetas[:, :3]), thetas[:, 3:]])
    intervals = {name: interval_of(scaled[:, i]) for i, name in enumerate(NAMES)}
    return SimpleNamespace(points=points, fit=found, law=found.law, intervals=intervals)


def test_far_runs_that_are_off_together_are_named_with_what_the_law_would_be_without_them():
    law = fitted(0.1, 3e10)
    assert law.law.beta > 0.45
    cells = [str(i) for i in range(120)]
    found = {one.parameter: one for one in influential(law.points, cells, law.fit, law.intervals)}
    assert found["beta"].runs == (0, 1, 2)
    assert found["beta"].without == pytest.approx(LAW.beta, abs=0.03)
    runs = [SimpleNamespace(cell=f"D={i}", seed=4) for i in range(120)]
    said = " ".join(hangs_on_few(law.points, law.fit, law.intervals, runs))
    assert "Without 3 of 120 runs, D=0 seed=4, D=1 seed=4 and D=2 seed=4" in said
    assert "beta would be 0.37" in said


def test_a_law_that_hangs_on_no_few_runs_names_none():
    law = fitted(0.0, 1e9)
    assert influential(law.points, [str(i) for i in range(120)], law.fit, law.intervals) == []


@pytest.mark.parametrize(("name", "end", "shown"), [("E", 0, "6.1e-06"), ("alpha", 0, "0"), ("beta", 1, "5")])
def test_a_parameter_at_its_bound_is_said_to_be_there(name, end, shown):
    position = NAMES.index(name)
    theta = np.array([6.0, 7.0, 0.5, 0.34, 0.37])
    theta[position] = BOUNDS[position][end]
    found = SimpleNamespace(theta=theta, law=Law.of(theta))
    intervals = dict.fromkeys(NAMES, interval_of(np.ones(2)))
    assert [
        note for note in hardly_determined(found, intervals) if note.startswith(f"{name} is at its bound ({shown})")
    ]
