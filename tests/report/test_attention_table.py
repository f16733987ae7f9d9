"""The terminal shows every head of a small model, and of a large one the clearest of each role."""

import math

from attnlab.inspection.ablation import Effect
from attnlab.inspection.heads import Head, Score
from attnlab.inspection.syntactic_agreement import TO_HEAD, Agreement
from attnlab.report.attention import print_heads, print_syntax


def test_all_heads_by_kind_and_the_most_needed_first(capsys):
    scores = {
        Head("self", 0, 0): {"previous": Score(0.9, 0.1, 50), "distance": Score(12.25, 20.0, 50)},
        Head("cross", 0, 0): {"monotonic": Score(-0.5, 0.0, 50)},
    }
    effects = {
        Head("self", 0, 0): Effect(0.1, 0.05, 0.15, 2.0, 9),
        Head("cross", 0, 0): Effect(0.3, -math.inf, math.inf, 2.0, 9),
    }
    print_heads(scores, effects)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        "self  role                 prev  dist",
        "0.0   previous token 0.89  0.90  12.2",
        "",
        "cross  role   mono",
        "0.0          -0.50",
    ]
    first = lines.index("masked        loss      +-")
    assert lines[first + 1 : first + 3] == [
        "cross 0.0  +0.3000          undecided",
        "self 0.0   +0.1000  0.0500  needed",
    ]


def test_of_many_heads_the_clearest(capsys):
    scores = {Head("self", layer, 0): {"first": Score(layer / 100, 0.0, 50)} for layer in range(100)}
    print_heads(scores, None)
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:6]] == ["99.0", "98.0", "97.0", "96.0", "95.0"]
    assert "100 heads: 50 no role, 50 first token. Above are the 5 clearest" in " ".join(out.split())


def test_relations_with_enough_pairs(capsys):
    shares = {Head("self", 0, 0): 0.25, Head("self", 0, 1): 0.75}
    print_syntax([Agreement("amod", TO_HEAD, 40, shares, 0.5, 1), Agreement("det", TO_HEAD, 9, shares, 0.5, 1)])
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["amod", "dependent", "to", "head", "40", "self", "0.1", "75%", "+1", "50%"]
    assert "det" not in out
    print_syntax([])
    assert capsys.readouterr().out == ""
