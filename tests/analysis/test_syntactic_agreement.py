"""Words attend to words as their tokens do, and a head that was made to attend to syntactic heads is found."""

import numpy as np
from tests.analysis.planted import at, axis_of, causal, example_of, map_of, uniform

from attnlab.analysis.attention_maps import SELF
from attnlab.analysis.conllu import Sentence
from attnlab.analysis.head_statistics import Head
from attnlab.analysis.syntactic_agreement import (
    TO_DEPENDENT,
    TO_HEAD,
    agreement,
    as_csv,
    most_attended,
    owners,
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
    rows = as_csv(agreement(examples, sentences)).splitlines()
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
