"""Small wheels and texts that the tests of this room make for themselves; no test needs a network."""

import hashlib
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has a cache of its own, and pip sees no package index."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("ATTNLAB_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return cache


def make_wheel(folder: Path, content: str, package: str = "small_text", version: str = "1.0") -> tuple[Path, str]:
    """A wheel that pip can download, with one text file in it; its path and sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    facts = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package}/text.py", content)
        archive.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{facts}/RECORD", "")
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def wheel_maker():
    """The function that makes a wheel."""
    return make_wheel


WORDS = ["lorem", "ipsum", "dolor", "sit", "amet", "consetetur", "Straße", "naïve", "—", "don't", "12", "x"]


@pytest.fixture
def prose() -> str:
    """About 20,000 characters with lines, marks and letters of more than one byte."""
    state, words = 1, []
    for i in range(3600):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        words.append(WORDS[(state >> 16) % len(WORDS)] + ("\n" if i % 11 == 10 else " "))
    return "".join(words)


@pytest.fixture
def prose_file(tmp_path, prose) -> Path:
    """The prose as a file."""
    path = tmp_path / "prose.txt"
    path.write_text(prose, encoding="utf-8")
    return path
