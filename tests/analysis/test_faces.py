"""Terminal and tables: what they say, and that what they say can be read back."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tests.analysis.memory import study_of
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import formatting as wording
from attnlab.analysis.comparison import compare
from attnlab.analysis.formatting import listing
from attnlab.analysis.reader import load_study
from attnlab.analysis.sparklines import sparklines
from attnlab.analysis.statistics import mean_interval
from attnlab.analysis.tables import to_csv, to_latex, to_markdown
from attnlab.analysis.terminal import print_comparison


def printed(comparison, width=160) -> str:
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=width))
    return out.getvalue()


def test_piped_output_is_plain_text(position):
    text = printed(position)
    assert "\x1b" not in text
    assert all(ord(character) < 128 for character in text)


def test_the_terminal_says_what_came_out(position):
    text = printed(position)
    for part in (
        "Which position encoding generalises",
        "24 finished",
        "learned: test/loss@8x unavailable (the learned table ends at 64 positions; position 65 was asked for)",
        "p flip, of the exact sign flip, 0.500 in every row",
        "alibi is best: test/loss@8x 2.2",
        "Of 5 claims made beforehand: 5 met.",
        "cannot give p below 0.125",
    ):
        assert part in " ".join(text.split())


def test_names_with_markup_are_printed_as_they_are(position):
    study = replace(position.study, name="[bold]x[/]", question="[red]why[/nonsense]")
    assert "[bold]x[/]  [red]why[/nonsense]" in printed(replace(position, study=study))


def row_of(text: str, *words: str) -> list[str]:
    """The lines of the first table that have all of `words`."""
    table = text.split("\n\n")[1].splitlines()
    return [line for line in table if all(word in line.split() for word in words)]


@pytest.mark.parametrize("width", [60, 80, 100, 130, 160])
@pytest.mark.parametrize("name", ["position", "grid_comparison"])
def test_no_line_is_longer_than_the_terminal(name, width, request):
    lines = printed(request.getfixturevalue(name), width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(("width", "whole"), [(80, False), (100, True), (160, True)])
def test_each_cell_is_one_row(position, width, whole):
    text = printed(position, width)
    for summary in position.measured:
        (row,) = row_of(text, summary.label)
        assert ("(" in row) == whole
        if summary.difference:
            assert row.split()[-1] == "better"
            assert "4/4" in row.split()
    assert [row.split() for row in row_of(text)].count(["learned", "unavailable"]) == 1


@pytest.mark.parametrize("width", [130, 160])
def test_each_cell_of_a_grid_is_one_row_with_a_column_a_factor(grid_comparison, width):
    text = printed(grid_comparison, width)
    for summary in grid_comparison.cells:
        choices = [str(choice) for choice in summary.cell.choices.values()]
        rows = [row for row in row_of(text) if row.split()[: len(choices)] == choices]
        assert len(rows) == 1
        assert f"{summary.interval.mean:.3f}" in rows[0]
        assert rows[0].rstrip().endswith(str(wording.verdict(summary.difference)) if summary.difference else "baseline")
    assert "warmup" in text
    assert "2/3" in text


def test_a_grid_at_80_columns_keeps_its_intervals_in_two_tables(grid_comparison):
    text = printed(grid_comparison, 80)
    means, differences = text.split("\n\n")[1:3]
    summary = next(cell for cell in grid_comparison.measured if cell.difference)
    for table, interval, sign in ((means, summary.interval, ""), (differences, summary.difference.interval, "+")):
        mean, low, high = (f"{value:{sign}.3f}" for value in (interval.mean, interval.low, interval.high))
        assert f"{mean} ({low} to {high})" in table


def test_runs_that_lack_the_same_seed_are_told_in_one_line(tmp_path):
    names = ["a", "b", "c"]
    root = write_plan(
        tmp_path / "s", cells=[cell({"norm": name}) for name in names], seeds=[0, 1], metric={"name": "m"}
    )
    for i, name in enumerate(names):
        write_run(root, {"norm": name}, 0, {"m": 2.0 + i})
    lines = printed(compare(load_study(root))).splitlines()
    assert lines[-1] == "  missing: seed=1 of 3 cells"
    assert lines[3] == "m, lower is better: mean and 95% interval, n = 1 of 2"


def test_sentences_never_part_a_number_from_its_interval(position):
    for width in range(60, 120, 7):
        for line in printed(position, width).splitlines():
            assert not re.match(r"\s*(\+-|to [+-]?[\d.]+\))", line)


def test_csv_holds_every_figure_at_full_precision(position):
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO(to_csv(position)))}
    assert len(rows) == 6
    for summary in position.cells:
        row = rows[summary.cell.name]
        assert row["outcome"] == summary.outcome
        if summary.interval:
            assert float(row["mean"]) == pytest.approx(summary.interval.mean, rel=1e-9)
            assert float(row["seed=3"]) == pytest.approx(summary.values[3], rel=1e-9)
        if summary.difference:
            assert float(row["difference_high"]) == pytest.approx(summary.difference.interval.high, rel=1e-8)
            assert float(row["p_adjusted"]) == pytest.approx(summary.difference.p_adjusted, rel=1e-8)
    assert rows["position=learned"]["mean"] == ""
    assert rows["position=sinusoidal"]["verdict"] == "baseline"


def test_markdown_rows_have_equal_columns(position):
    lines = [line for line in to_markdown(position).splitlines() if line.startswith("|")]
    assert len(lines) == 8
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {12}


def test_latex_is_escaped_and_complete(position):
    text = to_latex(position)
    assert r"relative\_bias" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 7
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    assert "$-$0.6" in text


def test_numbers_keep_two_digits_of_their_interval():
    assert wording.decimals_for([mean_interval([2.0, 2.02, 2.04])]) == 3
    assert wording.decimals_for([mean_interval([200.0, 220.0, 250.0])]) == 0
    assert wording.decimals_for([mean_interval([2.0])]) == 3
    assert wording.decimals_for([]) == 3
    assert wording.number(-0.0001, 3, sign=True) == "0.000"
    assert wording.number(0.5, 2, sign=True) == "+0.50"
    assert wording.number(math.nan, 2) == "-"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("test/loss@8x", "loss in nats per token on the test part, at 8 times the training length"),
        (
            "test/sliding_loss@1x",
            "loss in nats per token on the test part, at the training length, in a sliding window",
        ),
        ("val/bits_per_byte", "bits per byte on the validation part"),
        ("f1_score", "f1 score"),
        ("test/bleu", "BLEU (0 to 100) on the test part"),
        ("test/bleu@11-20", "BLEU (0 to 100) on the test part, for sources of 11 to 20 tokens"),
        ("test/bleu@21+", "BLEU (0 to 100) on the test part, for sources of 21 or more tokens"),
        ("test/f1@person", "F1 (0 to 1) on the test part, for person alone"),
    ],
)
def test_metrics_in_words(metric, words):
    assert wording.describe(metric, study_of({("layer_norm",): {0: 1.0}})) == words


def test_listing():
    assert [listing(list(names)) for names in ("", "a", "ab", "abc", "abcdefghi")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c, d, e, f, g and 2 more",
    ]


def on_terminal(comparison, width=140, encoding="utf-8") -> str:
    """What a terminal without colours shows."""
    data = io.BytesIO()
    file = io.TextIOWrapper(data, encoding=encoding, write_through=True)
    print_comparison(comparison, Console(file=file, width=width, force_terminal=True, color_system=None))
    return data.getvalue().decode(encoding)


def test_a_terminal_shows_each_cell_s_curve_on_one_scale(position):
    text, lines = on_terminal(position), sparklines(position.study)
    for summary in position.cells:
        assert any(lines.text(summary.cell.name, "utf-8") in row for row in row_of(text, summary.label))
    assert "curve: val/loss from step 100 to 800" in text
    assert f"from {lines.low:.3f} (bottom) to {lines.high:.3f} (top)" in text


def test_where_blocks_cannot_be_written_the_curve_is_in_plain_characters(position):
    text, lines = on_terminal(position, encoding="ascii"), sparklines(position.study)
    assert lines.text("position=alibi", "ascii") in text


@pytest.mark.parametrize("name", ["position", "grid_comparison"])
def test_the_curve_is_what_a_narrow_terminal_leaves_out_first(name, request):
    comparison = request.getfixturevalue(name)
    for width in (66, 79, 92, 104, 121, 133):
        shown, plain = (on_terminal(comparison, width), printed(comparison, width))
        assert max(map(len, shown.splitlines())) <= width
        table = "\n".join(row_of(shown))
        if "curve" not in table:
            assert table == "\n".join(row_of(plain))
        assert "…" not in table or "…" in plain
    assert "curve" in row_of(on_terminal(comparison, 150))[1 if name == "position" else 2]


def test_a_newcomer_s_80_columns_have_the_figures_and_no_curve(position):
    assert on_terminal(position, 80) == printed(position, 80)


def test_curves_are_not_read_for_a_pipe(position):
    study = replace(position.study, read_curves=lambda keys: pytest.fail("read"))
    assert printed(replace(position, study=study)) == printed(position)


def test_names_cannot_act_on_the_terminal(tmp_path):
    name = "a\x1b[2Jb\x07\u202ec"
    root = write_plan(tmp_path / "s", cells=[cell({"norm": name})], seeds=[0, 1], metric={"name": "m"}, question=name)
    write_run(root, {"norm": name}, 0, {"m": 2.0})
    write_run(root, {"norm": name}, 1, {}, state="failed", error=f"wrong: {name}")
    text = on_terminal(compare(load_study(root)))
    assert not set("\x1b\x07\u202e") & set(text)
    assert text.count("a\\x1b[2Jb\\x07\\u202ec") >= 3


@pytest.mark.parametrize("finals", [{}, {"a": [2.0]}, {"a": [2.0, 2.1]}, {"a": [2.0], "b": [2.5]}, {"a": [None]}])
@pytest.mark.parametrize("metric", [{"name": "m"}, None])
def test_studies_of_one_seed_one_cell_or_nothing_have_a_face(tmp_path, finals, metric):
    cells = [cell({"norm": name}) for name in finals]
    seeds = list(range(max(map(len, finals.values()), default=0)))
    root = write_plan(tmp_path / "s", cells=cells, seeds=seeds, metric=metric, baseline={"norm": "a"})
    for name, values in finals.items():
        for seed, value in enumerate(values):
            write_run(root, {"norm": name}, seed, {"m": value})
    comparison = compare(load_study(root))
    assert len(list(csv.DictReader(io.StringIO(to_csv(comparison))))) == len(finals)
    assert "nan" not in to_csv(comparison).replace("came out as NaN", "")
    assert to_markdown(comparison).count("\n| ") == 1 + len(finals)
    assert to_latex(comparison).count("\\\\\n") == 1 + len(finals)
    assert f"{len(finals)} cells x {len(seeds)} seeds" in on_terminal(comparison, 80)


def test_an_interval_that_excludes_zero_is_seen_to():
    """Beside changes of tenths, one of -0.0004 is no "improves, 0.00 (0.00 to 0.00)"."""
    small = mean_interval([-0.00041, -0.00042, -0.00040, -0.00041])
    assert wording.interval_text(small, 2, sign=True) == "-0.00041 (-0.00042 to -0.00040)"
    assert wording.spread_text(small, 2, sign=True) == "-0.00041 +-0.00001"
    assert wording.interval_text(mean_interval([0.1, -0.1, 0.05, -0.06]), 1) == "-0.0 (-0.2 to 0.1)".replace(
        "-0.0 ", "0.0 "
    )
