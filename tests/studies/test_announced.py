"""What a sweep says beforehand that its seeds cannot decide: never of what some outcome would decide."""

import pytest
from tests.analysis.test_costs import falling
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import compare, load_study
from attnlab.studies.announced import undecidable
from attnlab.studies.plan import Cell, Plan
from attnlab.training.looks import Looks, stages_of

COST = "steps to val/loss 2.0"


def planned(arms, seeds, stages=(), metric=COST, **more):
    names = list("abcdef"[:arms])
    cells = [Cell(f"arm={name}", {"arm": name}, []) for name in names]
    metric = {"name": metric, "better": "lower", "margin": None}
    return Plan(
        "s", "", {"arm": names}, {"arm": "a"}, cells, list(range(seeds)), metric, looks=Looks(list(stages)), **more
    )


def clearest(root, arms, seeds, looks):
    """The words of costs that are apart in every seed: as sure as they can be."""
    names = list("abcdef"[:arms])
    write_plan(root, factors={"arm": names}, baseline={"arm": "a"}, cells=[cell({"arm": name}) for name in names],
               seeds=list(range(seeds)), metric={"name": COST, "better": "lower"}, looks=looks)  # fmt: skip
    for at, name in enumerate(names):
        for seed in range(seeds):
            write_run(root, {"arm": name}, seed, {"val/loss": 1.9}, curve=falling(700 - 100 * at))
    return {one.difference.verdict for one in compare(load_study(root)).cells if one.difference}


@pytest.mark.parametrize("arms", [2, 3, 5])
def test_it_names_the_fewest_seeds_with_which_a_cost_can_be_told_apart(tmp_path, arms):
    [said] = undecidable(planned(arms, 4), [], False)
    assert said.startswith(f"{COST}: with 4 seeds the sign test finds no difference, whatever comes out (p is 0.125")
    enough = int(said.rpartition("study.seeds=")[2].partition(" ")[0])
    assert clearest(tmp_path / "fewer", arms, enough - 1, {}) == {"undecided"}
    assert undecidable(planned(arms, enough - 1), [], False)
    assert clearest(tmp_path / "enough", arms, enough, {}) == {"better"}
    assert not undecidable(planned(arms, enough), [], False)


def test_it_knows_the_part_of_the_5_percent_that_each_look_has(tmp_path):
    [said] = undecidable(planned(2, 2, [2, 4, 6]), [], False)
    assert said.startswith(f"{COST}: at none of the looks at 2, 4 and 6 seeds can the sign test find a difference")
    most = int(said.rpartition("at_most: ")[2].partition(" ")[0])
    stages = stages_of(2, 2, most)
    assert clearest(tmp_path / "enough", 2, most, {"stages": stages}) == {"better"}
    [later] = undecidable(planned(2, 2, stages), [], False)
    assert later.startswith(f"{COST}: at no look before that of")
    first = int(later.partition("that of ")[2].partition(" ")[0])
    assert clearest(tmp_path / "first", 2, first, {"stages": stages}) == {"better"}
    before = stages[stages.index(first) - 1]
    assert clearest(tmp_path / "before", 2, before, {"stages": stages}) == {"undecided"}


def test_of_costs_of_tuned_cells_nothing_is_decided_by_any_number_of_seeds():
    [said] = undecidable(planned(2, 40), [], True)
    assert "no cell will be called better or worse" in said
    assert not undecidable(planned(2, 2, metric="test/loss"), [], True)


def test_data_apart_are_families_of_their_own():
    names = [(data, arm) for data in ("copy", "sort") for arm in ("a", "b")]
    cells = [Cell(f"{data},{arm}", {"data": data, "arm": arm}, []) for data, arm in names]
    metric = {"name": COST, "better": "lower"}
    plan = Plan("s", "", {"data": ["copy", "sort"], "arm": ["a", "b"]}, {}, cells, list(range(6)), metric)
    assert not undecidable(plan, [], False)
    [size] = undecidable(planned(2, 6, published={"size": "model.d_model"}), [], False)
    assert size.endswith("whether effects grow with model.d_model is judged of means alone, so it is left out")
