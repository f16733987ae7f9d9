"""What a study says of the published effect that it reproduces, and what it may not say."""

import pytest

from attnlab.training.published import published_of

WHOLE = {
    "effect": "A gate helps",
    "source": "Shazeer 2020, table 1",
    "minutes": 12,
    "figures": [
        {"cell": {"feed_forward": "glu"}, "metric": "log-perplexity", "value": 1.98, "of": "C4", "better": "lower"}
    ],
    "size": "model.d_model",
}


def test_a_published_effect_is_read():
    found = published_of(WHOLE)
    assert (found.effect, found.minutes, found.size) == ("A gate helps", 12.0, "model.d_model")
    assert (found.figures[0].value, found.figures[0].better, found.figures[0].beside) == (1.98, "lower", "")
    assert published_of(None) is published_of({}) is None


def test_a_law_alone_is_enough_of_a_published_number():
    alone = {key: value for key, value in WHOLE.items() if key != "figures"} | {"law": {"alpha": 0.348, "beta": 1}}
    assert published_of(alone).law == {"alpha": 0.348, "beta": 1.0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"effct": "x"}, "got 'effct'. Did you mean effect?"),
        ({"effect": ""}, "published.effect must be text, got ''"),
        ({"source": None}, "published.source must be text, got null"),
        ({"minutes": 0}, "published.minutes must be a number of minutes above 0, got 0"),
        ({"minutes": True}, "published.minutes must be a number of minutes above 0"),
        ({"figures": []}, "published must be a table with figure (in words), figures (a list) or law"),
        ({"law": {"gamma": 1}}, "published.law must have known fields"),
        ({"law": {"alpha": "0.3"}}, "published.law.alpha must be a number above 0, got '0.3'"),
        ({"law": [0.3]}, "published.law must be a table"),
        ({"figures": {}}, "published.figures must be a list of tables"),
        ({"figures": [{"cell": {}}]}, "published.figures[0].cell must be a table of choices"),
        ({"figures": [{**WHOLE["figures"][0], "value": "1.98"}]}, "published.figures[0].value must be a finite number"),
        (
            {"figures": [{**WHOLE["figures"][0], "better": "more"}]},
            "published.figures[0].better must be lower or higher",
        ),
        ({"figures": [{**WHOLE["figures"][0], "units": "nats"}]}, "published.figures[0] must have known fields"),
    ],
)
def test_what_is_no_published_effect_is_refused_with_its_field(fields, words):
    with pytest.raises(ValueError, match="published") as refused:
        published_of({**WHOLE, **fields})
    assert words in str(refused.value)
