"""What is costly is made once for all who ask, and not more often than it takes."""

from __future__ import annotations

import threading

import pytest

from attnlab.analysis.kept import Kept

SOON = 10.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def counting(clock, cost):
    def make(before):
        clock.now += cost
        return (before or 0) + 1

    return make


def test_a_value_is_kept_for_the_pause_and_then_made_from_the_one_before():
    clock = Clock()
    kept = Kept(counting(clock, 0.0), pause=1.0, clock=clock)
    assert [kept.get(), kept.get()] == [1, 1]
    clock.now += 0.99
    assert kept.get() == 1
    clock.now += 0.02
    assert kept.get() == 2


def test_what_takes_long_is_made_at_most_half_of_the_time():
    clock = Clock()
    kept = Kept(counting(clock, 30.0), pause=1.0, clock=clock)
    assert kept.get() == 1
    clock.now += 29.0
    assert kept.get() == 1
    clock.now += 2.0
    assert kept.get() == 2


def test_many_who_ask_at_once_share_one_making():
    made, begun, go_on = [], threading.Event(), threading.Event()

    def make(before):
        begun.set()
        assert go_on.wait(SOON)
        made.append(before)
        return len(made)

    kept = Kept(make, pause=1000.0)
    answers = []
    askers = [threading.Thread(target=lambda: answers.append(kept.get())) for _ in range(8)]
    for asker in askers:
        asker.start()
    assert begun.wait(SOON)
    go_on.set()
    for asker in askers:
        asker.join(SOON)
    assert made == [None]
    assert answers == [1] * 8


def test_what_is_raised_all_who_ask_are_given_until_it_is_made():
    clock = Clock()
    outcomes = [ValueError("broken"), 7]

    def make(before):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    kept = Kept(make, pause=1.0, clock=clock)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            kept.get()
    clock.now += 1.0
    assert kept.get() == 7


def test_who_has_no_patience_gets_the_one_before_and_the_next_one_later():
    go_on = threading.Event()
    go_on.set()

    def make(before):
        assert go_on.wait(SOON)
        return (before or 0) + 1

    kept = Kept(make, pause=0.0, clock=lambda: 0.0)
    assert kept.get(patience=0.0) == 1  # the first is waited for
    go_on.clear()
    assert kept.get(patience=0.0) == 1
    assert kept.get(patience=0.01) == 1
    go_on.set()
    assert kept.get() >= 2
