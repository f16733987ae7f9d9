"""Tokens are shown as what they are: blanks and marks can be told apart."""

import numpy as np

from attnlab.analysis.token_axis import joined, name_marks, output_axis, patch_axis, text_axis, visible
from attnlab.data import Byte, Character
from attnlab.data.marks import Marks
from attnlab.data.vocabulary import Vocabulary, marks_in_front


def test_what_cannot_be_seen_is_made_visible():
    assert visible(" a\n\tb") == "␣a⏎⇥b"
    assert visible("\x00\u200b\ud800") == "\\u0000\\u200b\\ud800"
    assert visible("") == "∅"
    assert visible("<b>é</b>") == "<b>é</b>"


def test_bytes_of_one_character_are_numbered():
    text = "aé!"
    axis = text_axis(text, *Byte().locate(text), Marks())
    assert axis.labels == ["a", "é", "é·2", "!"]
    assert axis.numbers_N.tolist() == [97, 0xC3, 0xA9, 33]


def test_marks_stand_around_a_text_with_their_names():
    vocabulary = Vocabulary(Character(alphabet="ab "), num_sentinels=2)
    axis = text_axis("ba", *vocabulary.locate("ba"), vocabulary.marks, (1,), (2, 6))
    assert axis.labels == ["[start]", "␣", "b", "a", "[end]", "<extra_id_1>"]  # a text is read behind a blank
    assert axis.is_mark_N.tolist() == [True, False, False, False, True, True]
    assert axis.places_N2.tolist() == [[-1, -1], [0, 0], [0, 1], [1, 2], [-1, -1], [-1, -1]]
    assert name_marks(marks_in_front())[4] == "[separator]"


def test_tokens_that_a_model_gave():
    vocabulary = Vocabulary(Character(alphabet="ab "))
    axis = output_axis(vocabulary, [5, 7, 3], (1,))
    assert axis.labels == ["[start]", "a", "␣", "[mask]"]
    assert (axis.places_N2 == -1).all()
    assert axis.is_mark_N.tolist() == [True, False, False, False]
    both = joined(axis, axis)
    assert len(both) == 8
    np.testing.assert_array_equal(both.numbers_N, [1, 5, 7, 3] * 2)


def test_patches_are_named_by_row_and_column_behind_class_and_registers():
    axis = patch_axis((2, 3), 2, has_class=True)
    assert axis.labels == ["[class]", "[register 1]", "1.1", "1.2", "1.3", "2.1", "2.2", "2.3"]
    assert (axis.grid, axis.before, axis.is_mark_N.sum()) == ((2, 3), 2, 2)
    assert patch_axis((1, 1), 1, has_class=False).labels == ["[register 1]", "1.1"]
