"""A checkpoint is whole or known to be damaged, and loading one runs no code."""

import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attnlab
from attnlab.training import CannotWrite, DamagedCheckpoint, UnusableCheckpoint, read_checkpoint, write_checkpoint

CONTENT = {"weights": torch.arange(50.0), "counts": {"step": 7, "best": None, "name": "a", "values": [1.5, True]}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "whole.ckpt"
    write_checkpoint(CONTENT, path)
    return path


def test_what_is_read_is_what_was_written(whole):
    content = read_checkpoint(whole)
    assert torch.equal(content.pop("weights"), CONTENT["weights"])
    assert content.pop("counts") == CONTENT["counts"]
    assert content == {"format": 2, "versions": {"attnlab": attnlab.__version__, "torch": torch.__version__}}


def test_other_readers_take_it_as_it_is(whole):
    assert torch.equal(torch.load(whole, weights_only=True)["weights"], CONTENT["weights"])
    with zipfile.ZipFile(whole) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"attnlab sha256 ")


anywhere = st.floats(0, 1, exclude_max=True)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(share=anywhere)
def test_one_that_was_cut_short_anywhere_is_found_out(whole, tmp_path, share):
    data = whole.read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(data[: int(share * len(data))])
    with pytest.raises(DamagedCheckpoint, match=r"torn\.ckpt is damaged: "):
        read_checkpoint(tmp_path / "torn.ckpt")


@quick
@given(share=anywhere, bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found_out(whole, tmp_path, share, bit):
    data = bytearray(whole.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    (tmp_path / "flipped.ckpt").write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"flipped\.ckpt is damaged: "):
        read_checkpoint(tmp_path / "flipped.ckpt")


def test_flips_in_the_end_that_says_the_checksum_are_found_out(whole, tmp_path):
    """The last 120 bytes are the archive's own end, the length of its comment, the mark and the digest."""
    data = whole.read_bytes()
    for place in range(len(data) - 120, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        (tmp_path / "flipped.ckpt").write_bytes(flipped)
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(tmp_path / "flipped.ckpt")


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["archive", "sealed", "pickle", "old pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, kind):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "code-was-run"
    if kind == "archive":
        torch.save({"state_dict": Code(trace)}, path)
    elif kind == "sealed":
        write_checkpoint({"state_dict": Code(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Code(trace)}, protocol=4 if kind == "pickle" else 2))
    with pytest.raises(UnusableCheckpoint, match=r"evil\.ckpt is refused: .* could run code") as refused:
        read_checkpoint(path)
    assert not isinstance(refused.value, DamagedCheckpoint)
    assert not trace.exists()


def test_another_format_is_refused_with_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "attnlab": {"step": 3}}, path)
    with pytest.raises(
        UnusableCheckpoint, match=r"format 1, this attnlab .* reads format 2; use the attnlab that wrote it, or"
    ):
        read_checkpoint(path)
    monkeypatch.setattr("attnlab.training.checkpoints.FORMAT", 3)
    monkeypatch.setattr("attnlab.training.checkpoints.versions", lambda: {"attnlab": "9.0", "torch": "9"})
    write_checkpoint(CONTENT, path)
    monkeypatch.undo()
    with pytest.raises(UnusableCheckpoint, match=r"format 3, .*the attnlab that wrote it \(9\.0\)") as refused:
        read_checkpoint(path)
    assert not isinstance(refused.value, DamagedCheckpoint)


def test_a_file_that_is_no_checkpoint_at_all(tmp_path):
    for content in (b"", b"no checkpoint", b"PK\x03\x04", os.urandom(500)):
        (tmp_path / "file.ckpt").write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match="is damaged"):
            read_checkpoint(tmp_path / "file.ckpt")
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nothing.ckpt")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CannotWrite, match=f"^cannot write {path}: the disk is full$"):
        write_checkpoint({"weights": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["last.ckpt"]
