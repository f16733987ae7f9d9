"""Exact match and F1 of answers: the official definition by hand, and equal to torchmetrics."""

import pytest
import torchmetrics.functional.text as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data.questions import Question
from attnlab.tasks.answers import answer_scores, exact_match, normalised, word_f1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the Eiffel Tower!", "eiffel tower"),
        ("An  apple, a\tday", "apple day"),
        ("U.S.", "us"),
        ("theory of A", "theory of"),
        ("the-end", "theend"),
        ("“The” café", "“ ” café"),
        ("The", ""),
    ],
)
def test_normalised_as_the_official_script_does(answer, expected):
    assert normalised(answer) == expected


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("the Eiffel Tower!", "Eiffel tower", 1, 1),
        ("Eiffel Tower in Paris", "the Eiffel tower", 0, 2 / 3),  # 2 words in common of 4 and 2
        ("Paris", "London", 0, 0),
        ("to be or not to be", "to be", 0, 1 / 2),  # 2 in common of 6 and 2
        ("be be", "to be", 0, 1 / 2),  # a word counts as often as both have it
        ("", "", 1, 1),
        ("", "Paris", 0, 0),
        ("the", "Paris", 0, 0),
    ],
)
def test_by_hand(answer, wanted, exact, f1):
    assert exact_match(answer, wanted) == exact
    assert word_f1(answer, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("北京市", "北京市。", 1, 1),
        ("北京", "北京市", 0, 4 / 5),  # 2 characters in common of 2 and 3
        ("在 北京", "「在北京」", 1, 1),
        ("2008年北京", "2008年", 0, 2 * 2 / 6),  # 2008, 年, 北, 京
        ("Beijing", "北京", 0, 0),
        ("とうきょう", "とうきょうと", 0, 10 / 11),
    ],
)
def test_where_no_blanks_part_words_each_character_is_one(answer, wanted, exact, f1):
    assert exact_match(answer, wanted) == exact
    assert word_f1(answer, wanted) == pytest.approx(f1)


def question(number, *references):
    return Question(str(number), "q", "c", tuple((text, 0) for text in references))


def test_the_best_reference_counts_and_questions_are_averaged():
    questions = [question(1, "Paris", "the city of Paris"), question(2, "1990"), question(3), question(4)]
    answers = {"1": "city of Paris", "2": "in 1990", "3": "", "4": "something"}
    found = answer_scores(answers, questions)
    assert found["exact_match"] == pytest.approx(100 * (1 + 0 + 1 + 0) / 4)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)


WORDS = st.lists(st.sampled_from(["the", "A", "Tower", "tower.", "of", "Paris,", "1990", "—"]), max_size=5).map(
    " ".join
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(WORDS, st.lists(WORDS.filter(normalised), min_size=1, max_size=3)), min_size=1, max_size=4)
)
def test_equal_to_torchmetrics(rows):
    questions = [question(i, *references) for i, (_, references) in enumerate(rows)]
    answers = {str(i): answer for i, (answer, _) in enumerate(rows)}
    expected = reference.squad(
        [{"prediction_text": text, "id": i} for i, text in answers.items()],
        [{"answers": {"answer_start": [0] * len(r), "text": r}, "id": str(i)} for i, (_, r) in enumerate(rows)],
    )
    found = answer_scores(answers, questions)
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-3)
