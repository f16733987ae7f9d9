"""The fit: its gradient, its optimum against other optimisers, planted parameters, units, and why losses are summed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, differential_evolution, least_squares
from scipy.special import huber, logsumexp
from threadpoolctl import threadpool_info, threadpool_limits

from attnlab.analysis.scaling import Law, Points, fit
from attnlab.analysis.scaling.fit import CHOSEN, DELTA, GRID, Objective, follow, refit

LAWS = {
    "Hoffmann et al. 2022": Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "Besiroglu et al. 2024": Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
}


def grid(law, noise=0.0, seed=0, sizes=8, budgets=6):
    """Runs of 44 million to 16 billion parameters on 5 to 500 billion tokens, with noise on log loss."""
    N, D = (one.ravel() for one in np.meshgrid(np.geomspace(4.4e7, 1.6e10, sizes), np.geomspace(5e9, 5e11, budgets)))
    return Points.of(N, D, law.loss(N, D) * np.exp(noise * np.random.default_rng(seed).standard_normal(N.size)))


def theta_of(law):
    return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])


def plain_objective(theta, points):
    """The formula, word for word, by scipy's functions."""
    a, b, e, alpha, beta = theta
    terms = [a - alpha * np.log(points.parameters), b - beta * np.log(points.tokens), np.full(len(points), e)]
    return float(np.sum(huber(DELTA, np.log(points.losses) - logsumexp(terms, axis=0))))


@pytest.fixture(scope="module")
def noisy():
    points = grid(LAWS["Besiroglu et al. 2024"], noise=0.005)
    return points, fit(points)


def test_one_thread_of_blas_fits_and_the_others_are_given_back(monkeypatch):
    import scipy.optimize  # noqa: F401  loads its own

    seen, whole = set(), Objective.value_and_gradient

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.setattr(Objective, "value_and_gradient", lambda *given: seen.update(threads()) or whole(*given))
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        refit(grid(LAWS["Besiroglu et al. 2024"], sizes=3, budgets=2), (theta_of(LAWS["Hoffmann et al. 2022"]),))
        assert (before, seen, threads()) == ({2}, {1}, {2})


@settings(max_examples=25, deadline=None)
@given(
    theta=st.tuples(st.floats(0, 25), st.floats(0, 25), st.floats(-1, 1), st.floats(0, 2), st.floats(0, 2)),
    scale=st.sampled_from([1e-4, 1.0]),
)
def test_the_gradient_is_that_of_finite_differences(theta, scale):
    points = grid(LAWS["Hoffmann et al. 2022"], noise=scale)
    objective = Objective(points)
    centred = objective.to_centre(np.array(theta))
    value, _ = objective.value_and_gradient(centred)
    assert value == pytest.approx(plain_objective(theta, points), rel=1e-9, abs=1e-15)
    assert value == pytest.approx(float(objective.values(centred[None])[0]), rel=1e-12)
    apart = check_grad(
        lambda t: objective.value_and_gradient(t)[0], lambda t: objective.value_and_gradient(t)[1], centred
    )
    assert apart < 1e-5 * (1 + len(points))  # finite differences of a function whose second derivative jumps


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_published_parameters_are_found_again_to_five_digits(law):
    found = fit(grid(law)).law
    assert theta_of(found) == pytest.approx(theta_of(law), rel=1e-5)


def test_no_other_optimiser_does_better_on_the_same_objective(noisy):
    points, found = noisy
    assert found.objective == pytest.approx(plain_objective(found.theta, points), rel=1e-9)
    objective = Objective(points)
    centre = objective.to_centre(found.theta)
    box = [(c - w, c + w) for c, w in zip(centre, (1.0, 1.0, 0.3, 0.3, 0.3), strict=True)]
    evolved = differential_evolution(
        lambda theta: float(objective.values(theta[None])[0]) / DELTA**2, box, seed=0, tol=1e-8, maxiter=150, popsize=8
    )
    assert found.objective <= evolved.fun * DELTA**2 * (1 + 1e-6)
    assert Law.of(objective.from_centre(evolved.x)).alpha == pytest.approx(found.law.alpha, abs=2e-3)


def test_least_squares_with_a_soft_corner_ends_at_the_same_law(noisy):
    points, found = noisy

    def residuals(theta):
        return np.log(points.losses) - np.log(Law.of(theta).loss(points.parameters, points.tokens))

    soft = least_squares(residuals, found.theta + 0.05, loss="soft_l1", f_scale=DELTA, x_scale="jac", max_nfev=2000)
    assert soft.x[2:] == pytest.approx(found.theta[2:], abs=0.02)


def test_a_mean_of_losses_stops_early_and_a_sum_does_not():
    """Besiroglu et al. 2024, section 3.2: with L-BFGS-B's own tolerances a mean is too small to go on."""
    points = grid(LAWS["Hoffmann et al. 2022"])
    objective = Objective(points)
    # Starts far from the law; where L-BFGS-B stops from one of them depends on the processor's rounding, so all are taken.
    starts = [(20.0, 20.0, 0.5, 1.0, 1.0), (0.0, 0.0, -1.0, 0.0, 0.0), (5.0, 5.0, 0.0, 0.5, 0.5)]

    def reached(**share):
        return sum(follow(objective, objective.to_centre(np.array(start)), **share)[1] for start in starts)

    by_mean, by_sum, as_shown = reached(share=1 / len(points)), reached(share=1.0), reached()
    assert by_mean > 1e-8
    assert by_sum < 1e-2 * by_mean
    assert as_shown < 1e-2 * by_sum


def test_the_starts_left_out_would_have_led_to_nothing_better(noisy):
    points, found = noisy
    objective = Objective(points)
    starts = objective.to_centre(np.array(list(itertools.product(*GRID))))
    assert len(starts) == 4500 > 20 * CHOSEN
    drawn = np.random.default_rng(0).choice(len(starts), 40, replace=False)
    assert min(follow(objective, start)[1] for start in starts[drawn]) >= found.objective * (1 - 1e-6)


@pytest.mark.parametrize(("N_unit", "D_unit"), [(1e6, 1.0), (1e-3, 1e9)])
def test_units_change_A_and_B_alone(noisy, N_unit, D_unit):
    points, found = noisy
    other = fit(Points.of(points.parameters / N_unit, points.tokens / D_unit, points.losses)).law
    law = found.law
    assert (other.E, other.alpha, other.beta) == pytest.approx((law.E, law.alpha, law.beta), rel=1e-3)
    scaled = (law.A * N_unit**-law.alpha, law.B * D_unit**-law.beta)
    assert pytest.approx(scaled, rel=1e-2) == (other.A, other.B)


def test_a_weight_is_as_many_runs(noisy):
    points, found = noisy
    weights = np.where(np.arange(len(points)) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(points)), weights.astype(int))
    repeated = Points.of(points.parameters[twice], points.tokens[twice], points.losses[twice])
    once, many = refit(points.weighted(weights), found.ends), refit(repeated, found.ends)
    assert once.objective == pytest.approx(many.objective, rel=1e-6)
    assert once.law.alpha == pytest.approx(many.law.alpha, abs=1e-3)


def test_a_wild_run_hardly_moves_the_law(noisy):
    points, found = noisy
    losses = points.losses.copy()
    losses[17] *= 1.5
    moved = fit(Points.of(points.parameters, points.tokens, losses)).law
    assert moved.alpha == pytest.approx(found.law.alpha, abs=0.02)
    squares = least_squares(
        lambda t: np.log(losses) - np.log(Law.of(t).loss(points.parameters, points.tokens)), found.theta, x_scale="jac"
    )
    assert abs(squares.x[3] - found.law.alpha) > 3 * abs(moved.alpha - found.law.alpha)


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="4 runs cannot fit 5 parameters"):
        fit(Points.of([1e6, 2e6, 3e6, 4e6], [1e6] * 4, [3, 2.9, 2.8, 2.7]))
