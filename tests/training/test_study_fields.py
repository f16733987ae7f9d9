"""What a study says of itself: right fields are taken as they are, and each mistake ends in one sentence that names the field."""

import copy

import pytest

from attnlab.training.study_fields import check_claim, checked_metric, checked_seeds, checked_study, same

NAN, INF = float("nan"), float("inf")
STUDY = {
    "question": "Which?",
    "needs": ["before"],
    "config_dirs": ["my_conf"],
    "shared": ["model=gpt", "model.d_model=64"],
    "factors": {"position": ["none", "alibi"], "optimizer.lr": [0.001, 0.003]},
    "cells": [{"name": "alone", "overrides": ["model=recurrent_lm"]}],
    "baseline": {"position": "none", "optimizer.lr": 0.001},
    "seeds": 2,
    "metric": {"name": "test/loss@1x", "better": "lower", "margin": 0.01},
    "claims": [{"says": "it wins", "cell": {"position": "alibi"}, "metric": "test/loss@2x", "against": {"metric": "test/loss@1x"}, "below": 0.1,
                "strength": "must", "source": "a paper"}],
}  # fmt: skip
ABSENT = object()
SAYS = "claim 'it wins': "

MISTAKES = [
    # a path in the study, what stands there, and what the sentence says
    (("question",), 3, "question must be text"),
    (("question",), ["Which?"], "question must be text"),
    (("question",), None, "question must be text"),
    (("questions",), "x", "Did you mean question?"),
    (("metrics",), {}, "Did you mean metric?"),
    (("seed",), 3, "Did you mean seeds?"),
    ((3,), 3, "got 3"),
    (("needs",), "before", "needs must be a list"),
    (("needs",), {"before": 1}, "needs must be a list"),
    (("needs", 0), 3, "needs[0] must be text"),
    (("needs", 0), "", "needs[0] must be text"),
    (("needs", 0), ["a"], "needs[0] must be text"),
    (("config_dirs",), "my_conf", "config_dirs must be a list"),
    (("config_dirs", 0), 3, "config_dirs[0] must be text"),
    (("shared",), "model=gpt", "shared must be a list"),
    (("shared",), {"model": "gpt"}, "shared must be a list"),
    (("shared",), 0, "shared must be a list"),
    (("shared",), False, "shared must be a list"),
    (("shared", 0), {"model": "gpt"}, "shared must hold settings as name=value"),
    (("shared", 0), "model", "shared must hold settings as name=value"),
    (("shared", 0), 3, "shared must hold settings as name=value"),
    (("shared", 0), None, "shared must hold settings as name=value"),
    (("shared", 0), "model.d_model=32", "shared must set each field once, got model.d_model twice"),
    (("shared", 0), "+model.d_model=32", "shared must set each field once, got model.d_model twice"),
    (("factors",), 3, "factors must be a table"),
    (("factors",), ["position"], "factors must be a table"),
    (("factors",), "position", "factors must be a table"),
    (("factors", 3), ["a"], "factors must be a table by the names of fields"),
    (("factors", True), ["a"], "factors must be a table by the names of fields"),
    (("factors", "position"), "alibi", "factors.position must be a list of choices"),
    (("factors", "position"), None, "factors.position must be a list of choices"),
    (("factors", "position"), [], "factors.position must be a list of choices"),
    (("factors", "position"), {"a": 1}, "factors.position must be a list of choices"),
    (("factors", "position"), ["none", "none"], "factors.position must list different choices, got 'none' twice"),
    (("factors", "optimizer.lr"), [1e-3, 0.001], "factors.optimizer.lr must list different choices, got 0.001 twice"),
    (("factors", "optimizer.lr"), [1, 1.0], "factors.optimizer.lr must list different choices"),
    (("cells",), 3, "cells must be a list"),
    (("cells",), {"alone": []}, "cells must be a list"),
    (("cells", 0), "alone", "cells[0] must be a table"),
    (("cells", 0, "name"), ABSENT, "cells[0] must be a table with name and overrides"),
    (("cells", 0, "overrides"), ABSENT, "cells[0] must be a table with name and overrides"),
    (("cells", 0, "override"), [], "Did you mean overrides?"),
    (("cells", 0, "seeds"), 3, "cells[0] must have known fields"),
    (("cells", 0, "name"), None, "cells[0].name must be text"),
    (("cells", 0, "name"), True, "cells[0].name must be text"),
    (("cells", 0, "name"), 1.5, "cells[0].name must be text"),
    (("cells", 0, "name"), " ", "cells[0].name must be text"),
    (("cells", 0, "name"), ["a"], "cells[0].name must be text"),
    (("cells", 0, "overrides"), "model=gpt", "cell 'alone': overrides must be a list"),
    (("cells", 0, "overrides"), None, "cell 'alone': overrides must be a list"),
    (("cells", 0, "overrides", 0), 3, "cell 'alone': overrides must hold settings as name=value"),
    (("cells", 0, "overrides"), ["a=1", "a=2"], "cell 'alone': overrides must set each field once, got a twice"),
    (("baseline",), 3, "baseline must be a table"),
    (("baseline",), "none", "baseline must be a table"),
    (("baseline",), ["none"], "baseline must be a table"),
    (("baseline", 1), "x", "baseline must be a table by the names of fields"),
    (("seeds",), 0, "seeds must be how many seeds"),
    (("seeds",), -1, "got -1"),
    (("seeds",), 1.7, "got 1.7"),
    (("seeds",), 2.0, "got 2.0"),
    (("seeds",), True, "got True"),
    (("seeds",), None, "got nothing"),
    (("seeds",), "4", "got '4'"),
    (("seeds",), "many", "got 'many'"),
    (("seeds",), [], "got []"),
    (("seeds",), [0.5, 1.2], "got [0.5, 1.2]"),
    (("seeds",), [True, False], "got [True, False]"),
    (("seeds",), [0, "1"], "got [0, '1']"),
    (("seeds",), [1, 1], "got [1, 1]"),
    (("seeds",), [-1], "got [-1]"),
    (("seeds",), [1 << 32], "below 2^32"),
    (("seeds",), 10**9, "from 1 to 1,000"),
    (("seeds",), {"from": 0}, "seeds must be"),
    (("seeds",), NAN, "got nan"),
    (("stop",), 16, "stop must be a table"),
    (("stop",), {"when": "settled"}, "stop.at_most must be a whole number above seeds (2), to 1,000, got nothing"),
    (("stop",), {"at_most": 8}, "stop.when must be settled, got nothing"),
    (("stop",), {"when": "bored", "at_most": 8}, "stop.when must be settled, got 'bored'"),
    (("stop",), {"when": "settled", "at_most": 2}, "above seeds (2)"),
    (("stop",), {"when": "settled", "at_most": 1001}, "to 1,000, got 1001"),
    (("stop",), {"when": "settled", "at_most": True}, "got True"),
    (("stop",), {"when": "settled", "at_most": 8, "step": 0}, "stop.step must be a whole number from 1, got 0"),
    (("stop",), {"when": "settled", "at_most": 8, "steps": 2}, "Did you mean step?"),
    (("metric",), ABSENT, "metric must be a table with a name"),
    (("metric",), None, "metric must be a table with a name"),
    (("metric",), "test/loss@1x", "metric must be a table with a name"),
    (("metric",), ["test/loss@1x"], "metric must be a table with a name"),
    (("metric", "name"), ABSENT, "metric.name must be text, got nothing"),
    (("metric", "name"), 3, "metric.name must be text, got 3"),
    (("metric", "name"), "", "metric.name must be text"),
    (("metric", "better"), ABSENT, "metric.better must be lower or higher, got nothing"),
    (("metric", "better"), "less", "metric.better must be lower or higher, got 'less'"),
    (("metric", "better"), True, "metric.better must be lower or higher"),
    (("metric", "better"), ["lower"], "metric.better must be lower or higher"),
    (("metric", "better"), "higher", "metric.better must be lower"),
    (("metric", "margin"), -1, "metric.margin must be a finite number from 0"),
    (("metric", "margin"), NAN, "metric.margin must be a finite number from 0"),
    (("metric", "margin"), INF, "metric.margin must be a finite number from 0"),
    (("metric", "margin"), "1e-2", "metric.margin must be a finite number from 0, or left out, got '1e-2'"),
    (("metric", "margin"), "small", "got 'small'"),
    (("metric", "margin"), True, "metric.margin must be"),
    (("metric", "margin"), [0.1], "metric.margin must be"),
    (("metric", "margins"), 0.1, "Did you mean margin?"),
    (("metric", "unit"), "loss", "metric must have known fields"),
    (("claims",), "it wins", "claims must be a list"),
    (("claims",), {"says": "x"}, "claims must be a list"),
    (("claims", 0), "it wins", "claims[0]: a claim must be a table"),
    (("claims", 0), None, "claims[0]: a claim must be a table"),
    (("claims", 0, "says"), ABSENT, "claims[0]: says must be text"),
    (("claims", 0, "says"), 3, "claims[0]: says must be text"),
    (("claims", 0, "says"), "", "claims[0]: says must be text"),
    (("claims", 0, "source"), 2022, SAYS + "source must be text, got 2022"),
    (("claims", 0, "strength"), "maybe", SAYS + "strength must be must or should, got 'maybe'"),
    (("claims", 0, "metrik"), "x", "Did you mean metric?"),
    (("claims", 0, "metric"), 3, SAYS + "metric must be text"),
    (("claims", 0, "metric"), None, SAYS + "metric must be text"),
    (("claims", 0, "cell"), "alibi", SAYS + "cell must be a table of choices"),
    (("claims", 0, "cell"), None, SAYS + "cell must be a table of choices"),
    (("claims", 0, "cell"), ["position", "alibi"], SAYS + "cell must be a table of choices"),
    (("claims", 0, "below"), ABSENT, SAYS + "there must be exactly one of"),
    (("claims", 0, "above"), 1, SAYS + "there must be exactly one of"),
    (("claims", 0, "below"), "three", SAYS + "below must be a finite number, got 'three'"),
    (("claims", 0, "below"), None, SAYS + "below must be a finite number"),
    (("claims", 0, "below"), True, SAYS + "below must be a finite number"),
    (("claims", 0, "below"), NAN, SAYS + "below must be a finite number"),
    (("claims", 0, "below"), -INF, SAYS + "below must be a finite number"),
    (("claims", 0, "below"), "1e-2", SAYS + "below must be a finite number"),
    (("claims", 0, "against"), {}, SAYS + "against must name another cell or another metric"),
    (("claims", 0, "against"), {"metric": "test/loss@2x"}, SAYS + "against must name another"),
    (("claims", 0, "against"), None, SAYS + "against must be a table"),
    (("claims", 0, "against"), "test/loss@1x", SAYS + "against must be a table"),
    (("claims", 0, "against"), {"metrics": "x"}, "Did you mean metric?"),
    (("claims", 0, "against"), {"metric": 3}, SAYS + "against.metric must be text"),
    (("claims", 0, "against"), {"cell": "none"}, SAYS + "against.cell must be a table"),
    (("claims", 0, "against"), {"position": "none"}, SAYS + "against must have known fields"),
]  # fmt: skip

BOUNDS = [
    ("within", -0.1, "within must be a finite number from 0"),
    ("within", "0.1", "within must be"),
    ("above", "three", "above must be a finite number"),
    ("above", [1], "above must be a finite number"),
    ("between", [3], "between must be two finite numbers, the lower first"),
    ("between", [2, 1], "between must be two finite numbers, the lower first"),
    ("between", [1, 2, 3], "between must be"),
    ("between", ["a", "b"], "between must be"),
    ("between", [NAN, 1], "between must be"),
    ("between", 3, "between must be"),
    ("between", "1 to 2", "between must be"),
    ("unavailable", False, "unavailable must be true"),
    ("unavailable", "yes", "unavailable must be true"),
    ("unavailable", 1, "unavailable must be true"),
    ("state", "finshed", "Did you mean finished?"),
    ("state", "running", "state must be one of finished, failed, diverged"),
    ("state", True, "state must be one of"),
    ("state", ["finished"], "state must be one of"),
]


def changed(path, value):
    study = copy.deepcopy(STUDY)
    node = study
    for key in path[:-1]:
        node = node[key]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return study


def sentence(function, *arguments):
    with pytest.raises(ValueError, match=r"\S") as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(("path", "value", "words"), MISTAKES)
def test_a_mistake_in_a_study_ends_in_one_sentence_that_names_the_field(path, value, words):
    assert words in sentence(checked_study, changed(path, value))


@pytest.mark.parametrize(("bound", "value", "words"), BOUNDS)
def test_a_bound_has_to_be_one(bound, value, words):
    assert words in sentence(check_claim, {"says": "x", bound: value})


@pytest.mark.parametrize(
    "idle", [{"state": "failed", "metric": "m"}, {"unavailable": True, "against": {"metric": "m"}}]
)
def test_what_has_no_meaning_beside_a_bound_is_refused(idle):
    assert "has no meaning beside" in sentence(check_claim, {"says": "x", **idle})


def test_there_are_mistakes_enough():
    assert len(MISTAKES) + len(BOUNDS) >= 140


@pytest.mark.parametrize("raw", [None, 3, "a study", ["question"], {}, {"question": "Which?"}])
def test_what_is_no_study(raw):
    assert "must be a table" in sentence(checked_study, raw)


def test_a_right_study_is_taken_as_it_is():
    study = checked_study(STUDY)
    defaults = {"trunk": False, "on_end": None, "stop": None, "tune": None, "across": None, "published": {}}
    assert study == {**STUDY, "seeds": [0, 1], **defaults}
    least = checked_study({"metric": {"name": "mine", "better": "higher"}, "claims": None, "cells": []})
    assert (least["seeds"], least["metric"]["margin"], least["claims"]) == ([0, 1, 2, 3], None, [])


@pytest.mark.parametrize(("given", "seeds"), [(1, [0]), (3, [0, 1, 2]), ([5, 0], [5, 0]), ([(1 << 32) - 1], [(1 << 32) - 1])])  # fmt: skip
def test_seeds(given, seeds):
    assert checked_seeds(given) == seeds


@pytest.mark.parametrize("margin", [0, 0.0, 1e-2, 3, None])
def test_margins(margin):
    assert checked_metric({"name": "m", "better": "lower", "margin": margin})["margin"] == margin


@pytest.mark.parametrize(
    "bound",
    [{"within": 0}, {"below": -1}, {"above": 0.5}, {"between": [1, 1]}, {"unavailable": True}, {"state": "diverged"}],
)
def test_right_bounds(bound):
    check_claim({"says": "x", **bound})


def test_choices_are_the_same_by_value():
    assert same(0.001, 1e-3)
    assert same("1e-3", 0.001)
    assert same(1, 1.0)
    assert same([1, 2], [1, 2])
    assert not same(True, 1)
    assert not same("none", None)


NONSENSE = [
    None,
    True,
    0,
    -1,
    1.5,
    NAN,
    INF,
    "",
    "x",
    "a=b",
    "~",
    "1e-3",
    "a\nb",
    10**30,
    [],
    [None],
    [[1]],
    ["a=1", "a=2"],
    {},
    {"a": 1},
    {1: 2},
]


def places(node, path=()):
    """The paths of everything in a study."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def test_whatever_stands_anywhere_is_taken_or_refused_in_one_line():
    said = []
    for path in places(STUDY):
        for value in NONSENSE:
            try:
                checked_study(changed(path, value))
            except ValueError as error:
                said.append(str(error))
    assert [text for text in said if "\n" in text] == []
    assert len(said) > len(NONSENSE) * len(list(places(STUDY))) / 2
