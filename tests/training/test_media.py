"""Figures of parts of a split become one table a split."""

from attnlab.training import Table, restricted_figures


def test_a_row_a_restriction_and_a_column_a_measure():
    figures = {
        "test/bleu": 1.0,
        "test/nats@1x": 2.0,
        "test/sliding_nats@1x": 3.0,
        "test/nats@2x": 4.0,
        "val/bleu@1-5": 5.0,
    }
    assert restricted_figures(figures) == {
        "test/by_part": Table(("part", "nats", "sliding_nats"), [("1x", 2.0, 3.0), ("2x", 4.0, None)]),
        "val/by_part": Table(("part", "bleu"), [("1-5", 5.0)]),
    }
    assert restricted_figures({"test/bleu": 1.0}) == {}


def test_markdown_keeps_bars_and_lines_inside_their_cells():
    table = Table(("a", "b"), [("x|y", "one\ntwo")])
    assert table.as_markdown() == "| a | b |\n| --- | --- |\n| x\\|y | one two |"
