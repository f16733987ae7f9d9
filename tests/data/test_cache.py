import errno
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import forbid_writing

from attnlab.data import DataError, TextFiles, cache_root, prepare
from attnlab.data.cache import scratch_folder
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
