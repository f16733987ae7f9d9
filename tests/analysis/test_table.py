"""One table in its five forms: each shows the same rows, escaped as the form needs it, and numbers are exact where they are read back."""

from __future__ import annotations

import csv
import io
import re

import pytest
from markupsafe import Markup
from rich.console import Console

from attnlab.analysis.table import Column, Entry, Table, coloured, html, latex, typographic

THIRD = 1 / 3
TABLE = Table(
    ["cell", "loss", "verdict"],
    [
        [
            "a|b_<c>",
            Entry("0.333", THIRD, note="+-0.010"),
            [Entry("better", mood="better"), Entry("by -2", mood="soft")],
        ],
        ["[red]d", Entry("-", link="runs/d?x=1&y"), Entry("x_y", is_code=True)],
        ["e", 2, None],
    ],
    title="All <cells>",
    align="lrl",
    notes=["fewer than 3 & more"],
)


def shown(table: Table, **console) -> str:
    out = io.StringIO()
    Console(file=out, width=80, **console).print(table.to_rich(), highlight=False)
    return out.getvalue()


def test_a_terminal_has_aligned_columns_and_moods_as_colours():
    lines = shown(TABLE, color_system=None).splitlines()
    assert [line.split() for line in lines] == [
        ["cell", "loss", "verdict"],
        ["a|b_<c>", "0.333", "+-0.010", "better", "by", "-2"],
        ["[red]d", "-", "x_y"],
        ["e", "2"],
    ]
    assert len({line.index(word) for line, word in zip(lines[:3], ("verdict", "better", "x_y"), strict=True)}) == 1
    assert "\x1b[32mbetter\x1b[0m" in shown(TABLE, force_terminal=True, color_system="standard")


def test_nothing_in_a_table_acts_on_the_terminal():
    text = shown(Table(["\x1b[2J"], [["a\u202eb"], ["[bold]c[/]"]]), force_terminal=True, color_system=None)
    assert not set("\x1b\u202e") & set(text)
    assert "\\x1b[2J" in text
    assert "[bold]c[/]" in text
    assert coloured("no style") == "no style"


def test_text_is_as_long_as_it_needs_to_be():
    header, line = Table(["name", "directory"], [["a", "x" * 500]], align="ll").to_text().splitlines()
    assert (header, line) == ("name  directory", f"a     {'x' * 500}")


def test_csv_is_exact_and_takes_numbers_from_behind_their_texts():
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    assert rows == [
        ["cell", "loss", "verdict"],
        ["a|b_<c>", repr(THIRD), "better by -2"],
        ["[red]d", "-", "x_y"],
        ["e", "2", ""],
    ]
    assert Table(["a", "b"], [[THIRD, float("nan")]]).to_csv(digits=3) == "a,b\n0.333,\n"


def test_markdown_has_equal_rows_and_its_notes_below():
    table, note = TABLE.to_markdown().split("\n\n")
    header, rule, *rows = table.splitlines()
    assert (header, rule) == ("| cell | loss | verdict |", "| --- | ---: | --- |")
    assert rows[0] == r"| a\|b_\<c\> | 0.333 +-0.010 | better by -2 |"
    assert rows[1] == "| [red]d | [-](runs/d?x=1&y) | `x_y` |"
    assert note == "fewer than 3 & more\n"


def test_latex_is_a_whole_tabular():
    size, *lines = TABLE.to_latex().splitlines()
    assert size == r"{\footnotesize\setlength{\tabcolsep}{3pt}%"
    assert lines[0] == r"\begin{tabular}{@{}lrl@{}}"
    assert r"a\textbar{}b\_$<$c$>$ & 0.333~$\pm$0.010 & better by $-$2 \\" in lines
    assert lines[-2:] == [r"\end{tabular}}", "% fewer than 3 & more"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5% {x}", r"a\_b \& 5\% \{x\}"),
        ("\\~^<", r"\textbackslash{}\textasciitilde{}\textasciicircum{}$<$"),
        ("1e-3 and -2", "1e-3 and $-$2"),
    ],
)
def test_latex_characters(text, expected):
    assert latex(text) == expected


def test_html_is_escaped_names_its_rows_and_sorts_by_the_numbers():
    page = str(
        Table(TABLE.headings, TABLE.rows, TABLE.title, notes=TABLE.notes, keys=["1", '"2', "3"]).to_html(
            "sortable", "cells"
        )
    )
    assert 'role="region" aria-label="All &lt;cells&gt;"' in page
    assert '<table class="figures sortable" data-of="cells">' in page
    assert '<th scope="row">a|b_&lt;c&gt;</th>' in page
    assert f'<td><span data-value="{THIRD}">0.333</span><span class="soft">\u00a0\u00b10.010</span></td>' in page
    assert (
        '<span class="chip better"><span aria-hidden="true">\u25b2</span> better</span> <span class="soft">by -2</span>'
        in page
    )
    assert '<a href="runs/d?x=1&amp;y">-</a>' in page
    assert "<td><code>x_y</code></td>" in page
    assert re.findall(r'data-row="([^"]*)"', page) == ["1", "&#34;2", "3"]
    assert "<td>2</td><td></td>" in page
    assert page.endswith('<p class="soft">fewer than 3 &amp; more</p>')


def test_a_template_takes_a_table_or_an_entry_as_markup_and_markup_stands_as_it_is():
    from jinja2 import Environment

    page = (
        Environment(autoescape=True)
        .from_string("{{ table }}{{ entry }}")
        .render(table=Table(["a"], [[Markup("<b>x</b>")]]), entry=Entry("no", mood="not met"))
    )
    assert "<td><b>x</b></td>" in page or '<th scope="row"><b>x</b></th>' in page
    assert '<span class="chip not-met">' in page
    assert html(["a<", None, Markup("<i>")]) == "a&lt; <i>"


def test_signs_are_true_ones():
    assert (
        typographic("-2 +-0.1 at 8x of a-1 and test/loss@8x")
        == "\u22122\u00a0\u00b10.1 at 8\u00d7 of a-1 and test/loss@8x"
    )


def test_a_table_by_what_its_columns_say_of_items():
    table = Table.of([Column("n", lambda n: f"{n}", "l"), Column("square", lambda n: n * n)], [2, 3], "squares")
    assert (table.headings, table.rows, table.align) == (["n", "square"], [["2", 4], ["3", 9]], "lr")
    assert table.transposed().rows == [("square", 4, 9)]
    assert table.transposed().headings == ["n", "2", "3"]
