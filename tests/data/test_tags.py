"""Entities of tags: equal to seqeval on any tags, schemes, there and back."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from attnlab.data.tags import Entity, entities_of, iob2_of, is_tag, may_follow, typed

TAGS = st.lists(st.sampled_from(["O", *(f"{p}-{kind}" for p in "BIES" for kind in ("x", "y", "creative-work"))]))


@settings(max_examples=400, deadline=None)
@given(tags=TAGS)
def test_any_tags_are_read_as_seqeval_reads_them(tags):
    expected = [Entity(first, last + 1, kind) for kind, first, last in get_entities(list(tags))]
    assert entities_of(tags) == expected


@settings(max_examples=200, deadline=None)
@given(tags=TAGS)
def test_iob2_keeps_the_entities_and_allows_every_step(tags):
    written = iob2_of(entities_of(tags), len(tags))
    assert entities_of(written) == entities_of(tags)
    assert all(may_follow(before, tag) for before, tag in zip([None, *written], written, strict=False))
    assert iob2_of(entities_of(written), len(tags)) == written


# "Wolff , in Paris , met Anna Lee Ng": Anna Lee and Ng are two persons.
@pytest.mark.parametrize(
    "tags",
    [
        "I-per O O I-loc O O I-per I-per B-per",
        "B-per O O B-loc O O B-per I-per B-per",
        "S-per O O S-loc O O B-per E-per S-per",
    ],
    ids=["IOB1", "IOB2", "BIOES"],
)
def test_all_schemes_spell_the_same_entities(tags):
    assert entities_of(tags.split()) == [(0, 1, "per"), (3, 4, "loc"), (6, 8, "per"), (8, 9, "per")]


def test_tags_without_a_type_are_of_one_type():
    tags = [typed(tag) for tag in ["O", "B", "I", "O", "B", "B", "I", "O", "S"]]
    assert entities_of(tags) == [(1, 3, "entity"), (4, 5, "entity"), (5, 7, "entity"), (8, 9, "entity")]
    assert typed("B-x") == "B-x"


def test_steps_that_no_scheme_has():
    assert entities_of(["O", "I-x", "I-x", "I-y", "E-y", "I-y", "O", "E-x"]) == [
        (1, 3, "x"),
        (3, 5, "y"),
        (5, 6, "y"),
        (7, 8, "x"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_entities(["O", "I-x", "I-x"]) == [("x", 1, 2)]


@pytest.mark.parametrize(
    ("tag", "good"),
    [
        ("O", True),
        ("B-x", True),
        ("S-a-b", True),
        ("B-", False),
        ("B", True),
        ("E", True),
        ("BI", False),
        ("X-a", False),
        ("", False),
    ],
)
def test_what_is_a_tag(tag, good):
    assert is_tag(tag) == good


def test_iob2_allows_an_i_only_within_its_type():
    assert may_follow("B-x", "I-x")
    assert may_follow("I-x", "I-x")
    assert may_follow("O", "B-x")
    assert not any(may_follow(before, "I-x") for before in (None, "O", "B-y", "I-y"))
