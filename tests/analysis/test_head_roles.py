"""A role is given where it is clear against uniform attention, and nowhere else."""

import csv
import io

import pytest
from tests.analysis.planted import at, axis_of, causal, example_of, map_of, uniform

from attnlab.analysis.ablation import Effect
from attnlab.analysis.attention_maps import SELF
from attnlab.analysis.head_roles import BAR, as_csv, as_json, role_of, roles, strength
from attnlab.analysis.head_statistics import Head, Score, head_scores

N = 12
ALLOWED = causal(N)
BACK = at([None, *range(N - 1)], N)
TEXT = "abcdefghijkl"


def scores_of(*weights, text=TEXT):
    return head_scores([example_of(map_of(list(weights), ALLOWED), axis_of(text))])


def test_planted_heads_get_their_roles():
    found = roles(scores_of(BACK, at([0] * N, N), uniform(ALLOWED), 0.5 * BACK + 0.5 * at([0] * N, N)))
    assert [role and role.name for role in found.values()] == ["previous token", "first token", "even", None]
    assert found[Head(SELF, 0, 0)].strength == pytest.approx(1)


@pytest.mark.parametrize(("share", "name"), [(0.49, None), (0.51, "previous token")])
def test_the_bar_is_half_of_the_way_from_chance(share, name):
    # Of each query a share on the token before, the rest as uniform attention has it.
    (role,) = roles(scores_of(share * BACK + (1 - share) * uniform(ALLOWED))).values()
    assert BAR == 0.5
    assert (role.name if role else None) == name


def test_too_few_queries_and_certain_chance_give_no_role():
    assert role_of({"previous": Score(1.0, 0.2, 7)}) is None
    assert role_of({"previous": Score(1.0, 0.2, 8)}).name == "previous token"
    assert strength(Score(1.0, 1.0, 9)) == 0


def test_of_equals_the_one_that_says_more():
    induction = at([None, *[None] * 5, 1, 2, 3, 4, 5, 6], N)
    named = scores_of(induction, text="abcdefabcdef")[Head(SELF, 0, 0)]
    assert role_of({**named, "repeats": Score(1.0, 0.1, 50)}).statistic == "repeats"


def test_induction_on_repeated_tokens_comes_before_where_the_head_rests():
    rests = {"first": Score(0.97, 0.05, 60), "repeats": Score(0.69, 0.02, 400)}
    assert role_of(rests).name == "induction"
    assert role_of({**rests, "repeats": Score(0.4, 0.02, 400)}).name == "first token"


def test_the_table_as_csv_and_json():
    scores = scores_of(BACK, uniform(ALLOWED))
    effects = {Head(SELF, 0, 0): Effect(0.5, 0.25, 0.75, 2.0, 9)}
    rows = list(csv.DictReader(io.StringIO(as_csv(scores, effects))))
    assert [(row["kind"], row["layer"], row["head"], row["role"]) for row in rows] == [
        ("self", "0", "0", "previous token"),
        ("self", "0", "1", "even"),
    ]
    assert float(rows[0]["previous"]) == 1
    assert [rows[0][f"masked{end}"] for end in ("", "_low", "_high", "_verdict")] == ["0.5", "0.25", "0.75", "needed"]
    assert rows[1]["masked"] == ""
    found = as_json(scores, effects)
    assert found["heads"][0]["masked"]["verdict"] == "needed"
    assert found["heads"][0]["statistics"]["previous"]["queries"] == N - 1
    assert found["heads"][1]["role"]["name"] == "even"
    assert "50%" in found["rule"]
