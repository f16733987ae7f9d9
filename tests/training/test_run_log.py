"""log.txt: whole lines with their time, of which the page takes the last, and never an error."""

import re

from attnlab.training.run_log import RunLog, last_lines


def test_lines_have_their_time_and_the_last_are_read(tmp_path):
    log = RunLog(tmp_path / "run")
    for number in range(5):
        log.say(f"line {number}\nand more")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert len(lines) == 10
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .+", line) for line in lines)
    assert last_lines(tmp_path / "run", 2, 1000) == "\u2026" + "\n".join(lines[-2:])
    assert last_lines(tmp_path / "run", 100, 1000) == "\n".join(lines)
    assert last_lines(tmp_path / "run", 100, 10) == "\u2026" + lines[-1][-10:]
    assert last_lines(tmp_path / "run", 100, 0) == ""


def test_bytes_that_are_no_text_are_read(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"\xff torn \xe2\x82")
    assert "torn" in last_lines(tmp_path, 5, 100)


def test_no_log_is_an_empty_one(tmp_path):
    assert last_lines(tmp_path, 5, 100) == ""


def test_whoever_cannot_write_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    RunLog(tmp_path / "file").say("nobody reads this")
    assert (tmp_path / "file").read_text() == ""
