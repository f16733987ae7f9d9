"""Fits laws to simulated studies whose law is known, and counts how often the 95% intervals hold it.

Plants the laws of Hoffmann et al. 2022 and Besiroglu et al. 2024 on a grid of 8 sizes and 6 budgets of their range, and a law like
that of this study on its own grid, with noise on log loss, one run a cell.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.scaling import Law, Points, fit
from attnlab.analysis.scaling.fit import interval_of, resample_cells

NAMES = ("E", "A", "alpha", "B", "beta")
COLUMNS = {"A": 0, "B": 1, "E": 2, "alpha": 3, "beta": 4}


@dataclass(frozen=True)
class Planted:
    """A law, and the sizes and budgets of the simulated studies; `compute` is what the best N is asked for."""

    name: str
    law: Law
    sizes: np.ndarray
    budgets: np.ndarray
    compute: float


LARGE = (np.geomspace(4.4e7, 1.6e10, 8), np.geomspace(5e9, 5e11, 6), 5.76e23)
WIDTHS = np.array([16, 24, 32, 48, 64, 96, 128])
SMALL = (36 * WIDTHS.astype(float) ** 2, 1024.0 * 450 * 2 ** np.arange(4), 1e13)
PLANTED = (
    Planted("Hoffmann et al. 2022", Law(1.69, 406.4, 410.7, 0.34, 0.28), *LARGE),
    Planted("Besiroglu et al. 2024", Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658), *LARGE),
    Planted("as in this study", Law(1.15, 60.0, 300.0, 0.42, 0.42), *SMALL),
)


def simulate(planted: Planted, noise: float, random: np.random.Generator) -> Points:
    """The runs of one study."""
    N, D = (one.ravel() for one in np.meshgrid(planted.sizes, planted.budgets))
    return Points.of(N, D, planted.law.loss(N, D) * np.exp(noise * random.standard_normal(N.size)))


def covered(planted: Planted, noise: float, resamples: int, seed: int) -> tuple[dict[str, bool], dict[str, float]]:
    """Of one study: whether each interval holds the truth, and each estimate; best N is that of `planted.compute`."""
    points = simulate(planted, noise, np.random.default_rng([seed, 7]))
    found = fit(points)
    thetas = resample_cells(points, [str(i) for i in range(len(points))], found, resamples, seed)
    held, estimates = {}, {}
    for name in NAMES:
        values = thetas[:, COLUMNS[name]] if COLUMNS[name] > 2 else np.exp(thetas[:, COLUMNS[name]])
        interval, truth = interval_of(values), getattr(planted.law, name)
        held[name], estimates[name] = interval.low <= truth <= interval.high, getattr(found.law, name)
    best = [Law.of(theta).optimum(planted.compute).parameters for theta in thetas]
    interval, truth = interval_of(np.array(best)), planted.law.optimum(planted.compute).parameters
    held["best N"], estimates["best N"] = (
        interval.low <= truth <= interval.high,
        found.law.optimum(planted.compute).parameters,
    )
    return held, estimates


def main() -> None:
    """Prints, a law and noise a line, the share of intervals that hold the truth, and the median estimate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--law", choices=[planted.name for planted in PLANTED], help="only this one")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.005, 0.01])
    arguments = parser.parse_args()
    columns = (*NAMES, "best N")
    print(
        f"share of {arguments.studies} studies whose 95% interval holds the truth; below, the median estimate over the truth"
    )
    print(f"{'law':22}{'noise':>7}" + "".join(f"{name:>9}" for name in columns))
    for planted in PLANTED:
        if arguments.law not in (None, planted.name):
            continue
        truth = {**{name: getattr(planted.law, name) for name in NAMES}}
        truth["best N"] = planted.law.optimum(planted.compute).parameters
        for noise in arguments.noise:
            outcomes = [covered(planted, noise, arguments.resamples, seed) for seed in range(arguments.studies)]
            shares = [np.mean([held[name] for held, _ in outcomes]) for name in columns]
            middles = [np.median([estimate[name] for _, estimate in outcomes]) / truth[name] for name in columns]
            print(f"{planted.name:22}{noise:7.1%}" + "".join(f"{share:9.0%}" for share in shares))
            print(f"{'':29}" + "".join(f"{middle:9.3f}" for middle in middles), flush=True)


if __name__ == "__main__":
    main()
