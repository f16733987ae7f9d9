"""metrics.jsonl holds whole lines only, whatever a killed writer left."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.training import CannotWrite
from attnlab.training.json_lines import JsonLines, cut_partial_line


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_format_that_readers_expect(tmp_path):
    lines = JsonLines(tmp_path / "run" / "metrics.jsonl", attempt=3)
    lines.log_metrics({"train/nats": 2.5, "tokens": 4096, "seconds": 1.5}, 10)
    lines.finalize("success")
    lines.log_metrics({"test/nats@2x": 2}, 20)  # the file opens again
    assert read(lines.path) == [
        {"step": 10, "tokens": 4096, "seconds": 1.5, "attempt": 3, "values": {"train/nats": 2.5}},
        {"step": 20, "tokens": None, "seconds": None, "attempt": 3, "values": {"test/nats@2x": 2.0}},
    ]


def test_what_is_not_finite_is_null_and_named(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.log_metrics({"a": float("nan"), "b": float("-inf"), "c": 1.0}, 1)
    (line,) = read(lines.path)
    assert line["values"] == {"a": None, "b": None, "c": 1.0}
    assert line["non_finite"] == ["a", "b"]


def test_a_second_attempt_appends(tmp_path):
    for attempt in (1, 2):
        lines = JsonLines(tmp_path / "metrics.jsonl", attempt)
        lines.log_metrics({"a": 1.0}, attempt)
        lines.finalize("success")
    assert [line["attempt"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=5), st.binary(max_size=200_000))
def test_only_the_partial_line_is_cut(tmp_path_factory, lines, rest):
    rest = rest.replace(b"\n", b"-")
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    whole = b"".join(line + b"\n" for line in lines)
    path.write_bytes(whole + rest)
    cut_partial_line(path)
    assert path.read_bytes() == whole


def test_a_partial_line_longer_than_a_block_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"x" * 200_000)
    JsonLines(path).log_metrics({"a": 1.0}, 2)
    assert [line["step"] for line in read(path)] == [1, 2]


def test_a_missing_file_is_no_mistake(tmp_path):
    cut_partial_line(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_disk_that_fills_up_within_a_line_takes_nothing_of_it(tmp_path, monkeypatch):
    """A full disk first takes as many bytes as fit, and then refuses."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.log_metrics({"loss": 1.0}, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    given, room = os.write, [20]

    def fill_up(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = given(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(CannotWrite, match=r"cannot write .*metrics\.jsonl: the disk is full"):
        lines.log_metrics({"loss": 0.5}, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    # A write that is cut short for another reason is gone on with.
    monkeypatch.setattr(os, "write", lambda descriptor, data: given(descriptor, data[:7]))
    lines.log_metrics({"loss": 0.5}, 2)
    assert [line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())] == [1, 2]
