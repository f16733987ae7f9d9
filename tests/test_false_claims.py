"""experiments/false_claims on a few pages: whole pages, compared as a user's, hold a false word no more often than they promise."""

import math
from collections import Counter

import pytest
from experiments.false_claims import measure as script


@pytest.mark.slow
@pytest.mark.parametrize("effects", [False, True])
def test_no_family_of_words_is_false_in_more_pages_than_promised(effects):
    """Together over all ways to lose runs, with the sampling error of so many pages."""
    counts = script.measure(70, 1, effects)
    total = sum(counts.values(), Counter())
    assert total["pages"] == 70 * len(script.LOSSES)
    for family in script.FAMILIES:
        for found, errors in ((total, 3), *((found, 4) for found in counts.values())):
            bound = 0.05 + errors * math.sqrt(0.05 * 0.95 / found[f"of {family}"])
            assert script.share(found, family) / 100 <= bound, family


@pytest.mark.slow
def test_nor_where_seeds_come_in_stages():
    """A word that was false at any look counts."""
    counts = script.measure_staged(10, 1, False)
    total = sum(counts.values(), Counter())
    for family in script.FAMILIES:
        bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / total[f"of {family}"])
        assert script.share(total, family) / 100 <= bound, family


def test_the_simulation_knows_a_false_word():
    """Pages whose truth is misstated are caught: otherwise the rates above would mean nothing."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = script.page((3, 1), 8, "none", rng, True)
    while len(set(drawn.truth.values())) == 1:
        drawn = script.page((3, 1), 8, "none", rng, True)
    found = script.compare(drawn.study)
    assert script.false_words(drawn, found) <= {"claims", "lengths"}
    untrue = script.Page(drawn.study, dict.fromkeys(drawn.truth, 0.0))
    assert "differences and ranks" in script.false_words(untrue, found)
