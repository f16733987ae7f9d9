"""Learning curves against a plain reading line by line, however the lines are parsed and in however many steps they come."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.analysis import curves as module
from attnlab.analysis.curves import AXES, Curves
from attnlab.training.run_directory import open_to_read
from attnlab.training.study_fields import is_finite

NAMES = st.sampled_from(["a", "b", "test/loss@1x", "test/loss@2x", 'quo"ted', "näme", "step", "cell"])
ODD = [None, True, "2.5", "x", math.nan, math.inf, 10**30, 10**400, [1], {"deep": 1}, -0.0, 1e-320]
VALUES = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63), st.sampled_from(ODD))
GOOD = st.fixed_dictionaries(
    {
        "step": st.integers(0, 5),
        "tokens": st.integers(0, 10**12),
        "seconds": st.floats(0, 1e6),
        "attempt": st.just(1),
        "values": st.dictionaries(NAMES, st.floats(-1e300, 1e300) | st.integers(-9, 9), max_size=3),
    }
)
STRANGE = st.fixed_dictionaries(
    {},
    optional={
        "step": st.integers(0, 5) | VALUES,
        "tokens": VALUES,
        "seconds": VALUES,
        "values": st.dictionaries(NAMES, VALUES, max_size=3) | VALUES,
        "non_finite": st.just(["a"]),
    },
)
RAW = [b"", b"nonsense", b"[1]", b"null", b'{"step": 3, "tok', b"\xff\xfe", b"\x00", b'{"step":1} x', b"[" * 5000]
RAW += [b"3", b'{"step": 1, "values": {"a": 1e999, "b": 2}}', b"  "]
LINES = st.lists(GOOD.map(json.dumps).map(str.encode) | STRANGE.map(json.dumps).map(str.encode) | st.sampled_from(RAW))
LINES = st.one_of(st.lists(GOOD.map(json.dumps).map(str.encode)), LINES)


def by_hand(lines: list[bytes]) -> dict[float, dict[str, float]]:
    """{step: {column: last finite value}} of the lines that are objects with a step."""
    rows: dict[float, dict[str, float]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not is_finite(entry.get("step")):
            continue
        axes = {axis: entry.get(axis) for axis in AXES}
        if not all(value is None or is_finite(value) for value in axes.values()):
            continue
        values = entry.get("values") if isinstance(entry.get("values"), dict) else {}
        found = {k.encode("utf-8", "replace").decode(): v for k, v in values.items() if k not in ("cell", *AXES)}
        found |= {axis: value for axis, value in axes.items() if value is not None}
        row = rows.setdefault(float(entry["step"]), {})
        row |= {name: float(value) for name, value in found.items() if is_finite(value)}
    return rows


def as_rows(frame: pl.DataFrame) -> dict[float, dict[str, float]]:
    """The same of a frame of one run."""
    rows = frame.drop("cell", "seed").rows(named=True)
    return {row["step"]: {name: value for name, value in row.items() if value is not None} for row in rows}


@pytest.mark.parametrize("few", [1, 64])
@settings(max_examples=120, deadline=None)
@given(LINES)
def test_curves_are_those_of_a_plain_reading(few, lines):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW_LINES", few)
        Path(folder, "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        frame = Curves().read([("c", 0, folder)])
    assert as_rows(frame) == by_hand(lines)
    assert frame["step"].is_sorted()
    assert frame.columns[:5] == ["cell", "seed", *AXES]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(GOOD.map(json.dumps).map(str.encode), max_size=4), min_size=2, max_size=5), st.booleans())
def test_it_does_not_matter_in_how_many_steps_a_file_grew(steps, small):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECKED_BYTES", 10 if small else 4096)
        path, curves = Path(folder, "metrics.jsonl"), Curves()
        for lines in steps:
            with open(path, "ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
            frame = curves.read([("c", 0, folder)])
        assert frame.equals(Curves().read([("c", 0, folder)]))
        assert as_rows(frame) == by_hand([line for lines in steps for line in lines])


def line(step: int, **values: float) -> bytes:
    return json.dumps({"step": step, "tokens": 1, "seconds": 1.0, "attempt": 1, "values": values}).encode() + b"\n"


def test_batches_and_neighbours_keep_their_rows_apart(tmp_path, monkeypatch):
    keys = []
    for number in range(9):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "metrics.jsonl").write_bytes(b"".join(line(step, a=number + step / 10) for step in (1, 2, 3)))
        keys.append((f"c{number // 3}", number % 3, str(folder)))
    whole = Curves().read(keys)
    monkeypatch.setattr(module, "BATCH_BYTES", 200)
    curves = Curves()
    assert curves.read(reversed(keys)).equals(whole)
    with open(tmp_path / "4" / "metrics.jsonl", "ab") as file:
        file.write(line(4, b=7.0))
    rows = curves.read(keys).filter(cell="c1", seed=1)
    assert rows.select("step", "a", "b").rows() == [(1, 4.1, None), (2, 4.2, None), (3, 4.3, None), (4, None, 7.0)]
    assert curves.read(keys[:4]).equals(whole.head(12))


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """A file of 200 lines that was read, its reader, and how many bytes of it are read from then on."""
    path, sizes = tmp_path / "metrics.jsonl", []
    path.write_bytes(b"".join(line(step, a=step / 10) for step in range(200)))
    curves = Curves()
    curves.read([("c", 0, str(tmp_path))])

    class Counted:
        def __init__(self, *where):
            self.file = open_to_read(*where)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            data = self.file.read(size)
            sizes.append(len(data))
            return data

    monkeypatch.setattr(module, "open_to_read", Counted)
    return path, curves, sizes


def test_of_a_file_that_grew_only_the_new_lines_are_read(grown):
    path, curves, sizes = grown
    with open(path, "ab") as file:
        file.write(line(200, a=1.0))
    assert curves.read([("c", 0, str(path.parent))]).height == 201
    assert sum(sizes) == module.CHECKED_BYTES + len(line(200, a=1.0))


@pytest.mark.parametrize(
    "change", [lambda data: data[:500], lambda data: data[::-1] * 2, lambda data: data.replace(b"1.0", b"2.0") + data]
)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_shrank_or_was_written_anew_is_read_anew(grown, change, in_place):
    path, curves, _ = grown
    data = change(path.read_bytes())
    if in_place:
        path.write_bytes(data)
    else:
        path.with_name("new").write_bytes(data)
        os.replace(path.with_name("new"), path)
    frame = curves.read([("c", 0, str(path.parent))])
    assert as_rows(frame) == by_hand(data[: data.rfind(b"\n") + 1].split(b"\n"))


def test_a_torn_line_is_read_once_it_is_whole(grown):
    path, curves, _ = grown
    for torn, height in ((line(200, a=1.0)[:30], 200), (line(200, a=1.0)[30:], 201)):
        with open(path, "ab") as file:
            file.write(torn)
        assert curves.read([("c", 0, str(path.parent))]).height == height


def test_a_torn_line_that_is_cut_off_before_the_next_is_written_is_forgotten(grown):
    path, curves, _ = grown
    whole = path.read_bytes()
    path.open("ab").write(line(200, a=1.0)[:-5])
    curves.read([("c", 0, str(path.parent))])
    os.truncate(path, len(whole))
    with open(path, "ab") as file:
        file.write(line(201))
    assert curves.read([("c", 0, str(path.parent))])["step"].to_list()[-2:] == [199, 201]


def test_a_huge_line_is_a_line(tmp_path):
    huge = json.dumps({"step": 1, "tokens": 1, "seconds": 1, "values": {"a": 1.5}, "note": "x" * 5_000_000}).encode()
    (tmp_path / "metrics.jsonl").write_bytes(line(0, a=1.0) + huge + b"\n" + line(2, a=2.0))
    assert Curves().read([("c", 0, str(tmp_path))])["a"].to_list() == [1.0, 1.5, 2.0]


def test_half_a_character_in_a_name_does_no_harm(tmp_path):
    odd = b'{"step": 1, "values": {"\\ud800": %s}}\n'
    (tmp_path / "metrics.jsonl").write_bytes(odd % b"2" + odd % b"NaN" + line(2, a=1.0))
    assert Curves().read([("c", 0, str(tmp_path))])["step"].to_list() == [1.0, 2.0]


def test_an_interrupt_while_reading_leaves_nothing_at_odds(grown, monkeypatch):
    path, curves, _ = grown
    with open(path, "ab") as file:
        file.write(line(200, a=1.0))
    with monkeypatch.context() as patch:
        patch.setattr(module, "parts_of", lambda texts: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            curves.read([("c", 0, str(path.parent))])
    assert curves.read([("c", 0, str(path.parent))]).height == 201
