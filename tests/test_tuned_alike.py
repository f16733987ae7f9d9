"""experiments/tuned_alike on few studies: where the best settings of all arms are equally good, tuning parts them no oftener than promised."""

import math

import pytest
from experiments.tuned_alike import measure as script


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tuning_seeds": 3, "between": True},
        {"how": "random"},
        {"trials": 12, "seeds": 16},
        {"tuning_seeds": 3, "seeds": 12, "end": 3.0},
    ],
    ids=str,
)
def test_no_arm_wins_by_its_sensitivity(fields):
    studies = 120
    found = script.rates(script.Design(script.SENSITIVITIES["mixed"], **fields), studies, 1)
    assert found["wrong"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.slow
def test_the_simulation_knows_a_wrong_word_and_a_better_arm_is_found():
    """By the settings chosen alone sensitive arms would be parted far oftener than 5%: else the rates above would mean nothing."""
    equal = script.rates(script.Design(script.SENSITIVITIES["mixed"], trials=12, seeds=16), 120, 1)
    assert equal["naive"] > 0.15
    better = script.rates(script.Design(script.SENSITIVITIES["sharp"], tuning_seeds=3, advantage=8.0), 40, 1)
    assert better["power"] > 0.9
    cheaper = script.Design((1.0,) * 3, "grid", 6, 3, 12, advantage=8.0, end=20.0)
    assert script.rates(cheaper, 20, 1)["power"] > 0.7
