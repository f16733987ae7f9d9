"""What the name of a metric says."""

import pytest

from attnlab.training.measures import better_of, known_better, parts_of


@pytest.mark.parametrize(
    ("metric", "parts", "better"),
    [
        ("test/nats@8x", ("test", "nats", "8x"), "lower"),
        ("test/sliding_nats@1x", ("test", "sliding_nats", "1x"), "lower"),
        ("val/next_sentence_nats", ("val", "next_sentence_nats", ""), "lower"),
        ("val/next_sentence_accuracy", ("val", "next_sentence_accuracy", ""), "higher"),
        ("val/bits_per_byte", ("val", "bits_per_byte", ""), "lower"),
        ("test/bleu@6-10", ("test", "bleu", "6-10"), "higher"),
        ("test/f1@person", ("test", "f1", "person"), "higher"),
        ("test/macro_f1", ("test", "macro_f1", ""), "higher"),
        ("test/exact_match", ("test", "exact_match", ""), "higher"),
        ("chrf", ("", "chrf", ""), "higher"),
    ],
)
def test_the_parts_and_the_direction(metric, parts, better):
    assert parts_of(metric) == parts
    assert known_better(metric) == better_of(metric) == better


def test_a_measure_of_ones_own_may_go_either_way():
    assert known_better("test/regret") is None
    assert better_of("test/regret") == "lower"
