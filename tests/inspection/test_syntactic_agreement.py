"""Syntax: sentences in CoNLL-U, and whether heads attend along their dependencies."""

from __future__ import annotations

import numpy as np
import pytest
from tests.inspection.planted import at, axis_of, causal, example_of, map_of, uniform

from attnlab.inspection.attention_maps import SELF
from attnlab.inspection.heads import Head
from attnlab.inspection.syntactic_agreement import (
    TO_DEPENDENT,
    TO_HEAD,
    Sentence,
    agreement,
    most_attended,
    owners,
    read_sentences,
    syntax_csv,
    word_attention,
)  # fmt: skip

# "^ab cd e": a mark, two words of two characters, one of one.
TEXT = "ab cd e"
PLACES = np.array([[0, 2], [3, 5], [6, 7]])


def sentence(heads, relations, places=PLACES):
    return Sentence(TEXT, places, np.array(heads), relations, ["ab", "cd", "e"])


def axis():
    """A mark, and the characters of the text."""
    drawn = axis_of("^" + TEXT, 1)
    drawn.places_N2[1:] -= 1
    return drawn


def test_tokens_belong_to_the_word_that_they_are_in():
    np.testing.assert_array_equal(owners(axis(), sentence([1, -1, 1], ["a", "root", "b"])), [-1, 0, 0, -1, 1, 1, -1, 2])


def test_a_token_with_a_blank_before_its_word_and_words_that_share_characters():
    drawn = axis()
    drawn.places_N2[3] = [2, 5]  # " cd" as one token
    places = PLACES.copy()
    places[2] = -1
    np.testing.assert_array_equal(
        owners(drawn, sentence([1, -1, 1], ["a", "root", "b"], places)), [-1, 0, 0, 1, 1, 1, -1, -1]
    )


def test_attention_between_words_is_a_sum_over_keys_and_a_mean_over_queries():
    weights = np.array([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.1, 0.3], [0.25] * 4, [0.0, 0.0, 1.0, 0.0]]])
    words = word_attention(weights, np.array([0, 0, -1, 1]), 2)
    # from word 0: the mean of its two tokens; to word 0: both of them; token 2 is in no word
    np.testing.assert_allclose(words, [[[(0.3 + 0.6) / 2, (0.4 + 0.3) / 2], [0.0, 0.0]]])
    np.testing.assert_array_equal(most_attended(words), [[1, -1]])


def test_a_planted_head_and_the_baseline_of_a_fixed_offset():
    # Heads: 0 attends to the word before (a character of it), 1 to the syntactic head, 2 to all alike.
    trees = [([1, -1, 1], ["det", "root", "obj"]), ([2, 2, -1], ["det", "obj", "root"])]
    before = at([0, 0, 0, 0, 1, 1, 0, 4], 8)
    flat = np.full((8, 8), 1 / 8)
    examples, sentences = [], []
    for heads, relations in trees:
        starts = [1, 4, 7]
        goal = [starts[head] if head >= 0 else 0 for head in heads]
        to_head = at([0, goal[0], goal[0], 0, goal[1], goal[1], 0, goal[2]], 8)
        examples.append(example_of(map_of([before, to_head, flat]), axis()))
        sentences.append(sentence(heads, relations))
    found = {(one.relation, one.direction): one for one in agreement(examples, sentences)}
    assert set(found) == {(relation, direction) for relation in ("det", "obj") for direction in (TO_HEAD, TO_DEPENDENT)}
    det = found["det", TO_HEAD]
    assert (det.count, det.best, det.shares[Head(SELF, 0, 1)]) == (2, Head(SELF, 0, 1), 1.0)
    # The first tree's determiner stands one before its head, the second's two before.
    assert (det.baseline, det.offset) == (0.5, 1)
    obj = found["obj", TO_HEAD]
    # "obj" is word 2 with head 1 in one tree, word 1 with head 2 in the other: the word before is right once.
    assert obj.shares[Head(SELF, 0, 0)] == 0.5
    assert found["obj", TO_DEPENDENT].shares[Head(SELF, 0, 1)] == 0.0
    # Uniform attention goes to the longer of the other words, the first of equals.
    assert det.shares[Head(SELF, 0, 2)] == 0.5
    rows = syntax_csv(agreement(examples, sentences)).splitlines()
    assert rows[0] == "relation,direction,pairs,kind,layer,head,share,baseline,offset"
    assert "det,dependent to head,2,self,0,1,1,0.5,1" in rows
    assert len(rows) == 1 + 4 * 3


def test_a_causal_heads_baseline_looks_back_too():
    allowed = causal(8)
    example = example_of(map_of([uniform(allowed)], allowed), axis())
    (to_head, to_dependent) = agreement([example], [sentence([1, -1, -1], ["det", "root", "dep"])])
    assert (to_head.direction, to_head.baseline) == (TO_HEAD, 0.0)
    assert (to_dependent.baseline, to_dependent.offset) == (1.0, -1)
    assert to_dependent.shares[Head(SELF, 0, 0)] == 1.0  # nothing else stands before it
    assert to_head.shares[Head(SELF, 0, 0)] == 0.0  # the first word sees no other


def line(number, form, head="_", relation="_", misc="_"):
    return "\t".join([str(number), form, "_", "_", "_", "_", str(head), relation, "_", misc])


FRENCH = ["# sent_id = 1", "# text = Il va au lit.", line(1, "Il", 2, "nsubj"), line(2, "va", 0, "root"), line("3-4", "au"), line(3, "à", 5, "case"),
          line(4, "le", 5, "det"), line(5, "lit", 2, "obl", "SpaceAfter=No"), line("5.1", "nul"), line(6, ".", 2, "punct")]  # fmt: skip


def write(path, *blocks):
    path.write_text("\n\n".join("\n".join(block) for block in blocks) + "\n")
    return path


def test_words_stand_where_they_are_written(tmp_path):
    plain = [line(1, "No", 2, "det"), line(2, "way", 0, "root", "SpaceAfter=No"), line(3, "!", 2, "punct")]
    first, second = read_sentences(write(tmp_path / "a.conllu", FRENCH, plain))
    assert first.forms == ["Il", "va", "à", "le", "lit", "."]
    assert first.relations == ["nsubj", "root", "case", "det", "obl", "punct"]
    np.testing.assert_array_equal(first.heads_W, [1, -1, 4, 4, 1, 1])
    # "au" is two words, of which no token can be told to be.
    np.testing.assert_array_equal(first.places_W2, [[0, 2], [3, 5], [-1, -1], [-1, -1], [9, 12], [12, 13]])
    assert second.text == "No way!"
    assert [second.text[a:b] for a, b in second.places_W2] == ["No", "way", "!"]


REFUSED = {
    "columns": (["1\tNo\t_"], "line 1: 3 columns; accepted: CoNLL-U, ten between tabs"),
    "order": ([line(1, "No"), line(3, "way")], "line 2: the word number '3'; accepted here: 2"),
    "head": ([line(1, "No", 7)], "line 1: the head '7'; accepted: 0 (the root) to 1"),
    "text": (["# text = Now then", line(1, "No", 0), line(2, "way", 1)], "line 3: the word 'way' does not fit the text, which goes on with 'w then'"),
    "nothing": (["# text = none"], "holds no sentence"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told_with_its_line(name, tmp_path):
    lines, message = REFUSED[name]
    with pytest.raises(ValueError, match=r"a\.conllu") as error:
        read_sentences(write(tmp_path / "a.conllu", lines))
    assert message in str(error.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*gone\.conllu: No such file"):
        read_sentences(tmp_path / "gone.conllu")
    (tmp_path / "b.conllu").write_bytes(b"\n\xfe\xfa")
    with pytest.raises(ValueError, match=r"line 2 of .*b\.conllu is no UTF-8 text"):
        read_sentences(tmp_path / "b.conllu")


def test_marks_inside_of_words_end_no_line(tmp_path):
    [sentence] = read_sentences(write(tmp_path / "a.conllu", [line(1, "a\u2028b"), line(2, "\u3000c", 1)]))
    assert sentence.forms == ["a\u2028b", "\u3000c"]
