import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import forbid_writing

from attnlab.data import DataError, TextFiles, cache_root, prepare
from attnlab.data.cache import DIGESTS, MINUTE, WEEK, digest, kept, problem_of, scratch_folder
from attnlab.data.tokenizers import Byte


def test_root_is_the_argument_then_the_variables_then_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNLAB_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root("/given") == Path("/given")
    assert cache_root() == Path("/a")
    monkeypatch.delenv("ATTNLAB_CACHE")
    assert cache_root() == Path("/x/attnlab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "attnlab"


def test_scratch_folder_is_gone_after_an_error(tmp_path):
    def fail():
        with scratch_folder(tmp_path / "deep" / "target") as scratch:
            (scratch / "file").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []


def test_cache_that_cannot_be_a_folder_is_a_data_error(prose_file):
    with pytest.raises(DataError, match=r"cannot write to .*Not a directory.*ATTNLAB_CACHE"):
        prepare(TextFiles(prose_file), Byte(), cache=prose_file / "below_a_file")


def test_read_only_cache_is_a_data_error_unless_the_corpus_is_there(prose_file, read_only_folder):
    text = read_only_folder / "text.txt"
    text.write_text(prose_file.read_text())
    prepare(TextFiles(text), Byte(), cache=read_only_folder)
    forbid_writing(read_only_folder)
    assert prepare(TextFiles(text), Byte(), cache=read_only_folder).train.num_tokens
    with pytest.raises(DataError, match="Permission denied"):
        prepare(TextFiles(text), Byte(), split=(0.5, 0.25, 0.25), cache=read_only_folder)


FULL_DISK = """
import resource, sys
from attnlab.data import Byte, DataError, TextFiles, prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    prepare(TextFiles(sys.argv[1]), Byte(), cache=sys.argv[2])
except DataError as error:
    print(error)
"""


def test_disk_that_takes_no_more_is_a_data_error_and_leaves_nothing(prose_file, tmp_path):
    cache = tmp_path / "small_disk"
    command = [sys.executable, "-c", FULL_DISK, str(prose_file), str(cache)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("cannot write to ")
    assert "ATTNLAB_CACHE" in result.stdout
    assert list((cache / "corpora").iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("8000 requested and 1234 written")]
)
def test_a_disk_that_is_full_is_said_with_what_to_do(tmp_path, error):
    words = "the disk is full; the cache has to be a writable folder with free space"
    with pytest.raises(DataError, match=words), scratch_folder(tmp_path / "corpus"):
        raise error
    assert list(tmp_path.iterdir()) == []


def make_older(folder, seconds):
    """As if nothing had been written there for so long."""
    then = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


KILLED = """
import os, signal, sys
from pathlib import Path
from attnlab.data.cache import scratch_folder
with scratch_folder(Path(sys.argv[1])) as scratch:
    (scratch / "half.npy").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_was_making_is_swept_and_what_a_living_one_makes_is_not(tmp_path):
    target = tmp_path / "corpora" / "one"
    dead = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert dead.returncode == -signal.SIGKILL
    [left] = target.parent.iterdir()
    with scratch_folder(target) as living:
        make_older(living, 2 * MINUTE)
        assert left.exists()  # another machine's clock may be a little behind
        make_older(left, 2 * MINUTE)
        with scratch_folder(target):
            assert living.exists()
            assert not left.exists()


@pytest.mark.parametrize("lock", [None, "another machine"])
def test_what_nobody_can_tell_the_maker_of_is_swept_after_a_week(tmp_path, lock):
    left = tmp_path / ".making-elsewhere"
    left.mkdir()
    if lock:
        (left / ".lock").write_text(lock)
    for age, is_swept in ((WEEK - 10 * MINUTE, False), (WEEK + 10 * MINUTE, True)):
        make_older(left, age)
        with scratch_folder(tmp_path / "one"):
            assert left.exists() != is_swept


@contextlib.contextmanager
def no_files_to_open():
    """The process can open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_cannot_be_read_for_another_reason_is_neither_absent_nor_damaged(prose_file, caplog):
    good = prepare(TextFiles(prose_file), Byte())
    source = TextFiles(prose_file)
    source.text_sha256 = good.fingerprint  # so that nothing but the cache is read
    with (
        no_files_to_open(),
        pytest.raises(DataError, match=r"cannot read .*corpora.*: Too many open files; nothing says"),
    ):
        prepare(source, Byte())
    assert problem_of(good.folder) is None
    assert not caplog.records
    np.testing.assert_array_equal(prepare(source, Byte()).train.tokens, good.train.tokens)


def test_who_has_damaged_data_open_keeps_them_while_they_are_made_anew(prose_file):
    good = prepare(TextFiles(prose_file), Byte())
    tokens = good.train.tokens.copy()
    (good.folder / "corpus.json").unlink()
    again = prepare(TextFiles(prose_file), Byte())
    np.testing.assert_array_equal(good.train.tokens, tokens)
    np.testing.assert_array_equal(again.train.tokens, tokens)
    assert again.folder == good.folder


def test_a_folder_of_an_older_version_is_made_anew(prose_file, caplog):
    good = prepare(TextFiles(prose_file), Byte())
    (good.folder / DIGESTS).unlink()
    prepare(TextFiles(prose_file), Byte())
    assert [r.getMessage() for r in caplog.records] == [f"{good.folder} has no {DIGESTS}: it is made anew"]


def test_a_file_that_lies_in_the_way_is_replaced(tmp_path, caplog):
    folder = tmp_path / "kind" / "one"
    folder.parent.mkdir()
    folder.write_text("no folder")

    def read():
        return kept(folder, lambda scratch: (scratch / "x").write_text("made"), lambda there: (there / "x").read_text())

    assert read() == read() == "made"
    assert len(caplog.records) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_a_file_is_read_once_a_process_and_again_when_it_is_touched(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("abc")
    monkeypatch.setattr("attnlab.data.cache.SETTLED", 0.05)
    time.sleep(0.1)
    first = digest(path)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert digest(path) == first
    facts = path.stat()
    path.write_text("abd")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert digest(path) != first
