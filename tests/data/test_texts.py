import codecs
import hashlib
import json
import sys
from dataclasses import replace

import pytest

from attnlab.data import KJV, DataError, HubText, TextFiles, TinyShakespeare, describe_sources, prepare
from attnlab.data.tokenizers import Byte

MODULE = 'bible = Bible(\n    """\nAnd darkness [was] here.\nLet there be light.\n""",\n    {"GENESIS": "title"},\n)\n'


def test_kjv_is_the_text_between_the_quotes_without_brackets(tmp_path, wheel_maker, monkeypatch):
    wheel, sha256 = wheel_maker(tmp_path, MODULE)
    monkeypatch.setattr(KJV, "wheel", replace(KJV.wheel, sha256=sha256))
    monkeypatch.setattr(KJV, "member", "small_text/text.py")
    assert KJV(wheel).read() == "And darkness was here.\nLet there be light."


def test_pinned_source_is_recognised_without_being_read():
    assert KJV().fingerprint() == KJV.text_sha256
    assert TinyShakespeare().fingerprint() == TinyShakespeare.text_sha256


def test_tiny_shakespeare_takes_only_the_pinned_text(tmp_path, monkeypatch):
    copy = tmp_path / "input.txt"
    copy.write_text("First Citizen:\n")
    with pytest.raises(DataError, match="so it is not https://raw"):
        TinyShakespeare(copy).read()
    monkeypatch.setattr(TinyShakespeare, "text_sha256", hashlib.sha256(copy.read_bytes()).hexdigest())
    assert TinyShakespeare(copy).read() == "First Citizen:\n"


@pytest.mark.parametrize("source", [KJV, TinyShakespeare, TextFiles])
def test_path_that_is_not_there_is_refused_before_anything_is_read(source, tmp_path):
    with pytest.raises(DataError, match=r"data\.path=.*absent does not exist.*accepted: a"):
        source(tmp_path / "absent")


def test_byte_order_mark_and_line_ends_of_windows_vanish(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(codecs.BOM_UTF8 + "é\r\nb\rc\n".encode())
    assert TextFiles(path).read() == "é\nb\nc\n"
    assert TextFiles(path).fingerprint() == hashlib.sha256("é\nb\nc\n".encode()).hexdigest()


def test_folder_is_read_in_the_order_of_names_with_its_subfolders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.txt").write_text("third")
    (tmp_path / "c.md").write_text("other")
    assert TextFiles(tmp_path).read() == "first\nsecond\nthird"
    assert TextFiles(tmp_path, pattern="*.md").read() == "other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b" \n\t", "holds no text"),
        (b"abc\0def", r"bad\.txt is binary \(byte 3 is zero\)"),
        (b"caf\xe9 au lait", r"bad\.txt is no UTF-8 text \(byte 3 is 0xe9.*iconv -f LATIN1"),
        (b"un\ncaf\xe9 au lait", r"line 2 of .*bad\.txt is no UTF-8 text \(byte 6 is 0xe9"),
        (codecs.BOM_UTF8 + b"un\ncaf\xe9 au lait", r"line 2 of .*bad\.txt is no UTF-8 text \(byte 9 is 0xe9"),
        ("text".encode("utf-16"), "is in UTF-16; accepted: UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    for path in (tmp_path / "bad.txt", tmp_path):
        with pytest.raises(DataError, match=message):
            TextFiles(path).read()


def test_folder_without_a_match_and_what_is_neither_file_nor_folder(tmp_path):
    with pytest.raises(DataError, match=r"no file that matches '\*\.txt'; set data\.source\.pattern"):
        TextFiles(tmp_path).read()
    with pytest.raises(DataError, match="must be a UTF-8 text file or a folder"):
        TextFiles("/dev/null").read()


def test_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "attnlab\[hub\]"'):
        HubText("somebody/some_text").read()


def test_hub_reads_a_local_folder_of_the_same_format(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"text": "In the beginning"}, {"text": None}, {"text": "was the Word"}]
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert HubText(str(folder)).read() == "In the beginning\nwas the Word"
    with pytest.raises(DataError, match=r"has no column 'body' \(data\.source\.column\); accepted: text"):
        HubText(str(folder), column="body").read()
    with pytest.raises(DataError, match=r"cannot load the data set .*nope"):
        HubText(str(folder), split="nope").read()


def test_list_of_sources_says_what_is_prepared(tmp_path, wheel_maker, monkeypatch):
    wheel, sha256 = wheel_maker(tmp_path, MODULE)
    monkeypatch.setattr(KJV, "wheel", replace(KJV.wheel, sha256=sha256))
    monkeypatch.setattr(KJV, "member", "small_text/text.py")
    assert {row.name: row.is_prepared for row in describe_sources() if row.kind == "text"} == {
        "kjv": False,
        "tiny_shakespeare": False,
        "text": None,
        "hub": None,
    }
    prepare(KJV(wheel), Byte())
    assert [row.name for row in describe_sources() if row.is_prepared] == ["kjv"]
