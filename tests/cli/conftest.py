"""A tiny text, a tiny run and the command itself, in a folder of their own."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from attnlab.cli.main import main

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "then",
    "sleeps",
    "well",
    "under",
    "old",
    "trees",
]


class Said(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of some 30 KB and the cache that all tests share."""
    folder = tmp_path_factory.mktemp("library")
    draw = random.Random(0)
    text = "".join(draw.choice(WORDS) + draw.choice([" ", " ", ". ", "\n"]) for _ in range(6000))
    (folder / "text.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def tiny(library: Path) -> list[str]:
    """The settings of a run of a second."""
    return [
        "data=text",
        f"data.path={library / 'text.txt'}",
        "data.context=16",
        "data.batch_size=4",
        "data.max_validation_tokens=256",
        "model.d_model=16",
        "model.num_heads=2",
        "model.num_layers=1",
        "trainer.max_steps=10",
        "trainer.validate_every=5",
        "trainer.threads=1",
        "task.evaluation_lengths=[1,2]",
        "task.evaluation_tokens=256",
        "progress=off",
    ]


@pytest.fixture
def here(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNLAB_CACHE", str(library / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def attnlab(here: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs one command in this process."""

    def run(*words: str) -> Said:
        capfd.readouterr()
        try:
            status = main(list(words))
        except SystemExit as error:
            status = int(str(error.code))
        return Said(status, *capfd.readouterr())

    return run


@pytest.fixture
def study(here: Path, tiny: list[str]) -> Callable[..., Path]:
    """Writes experiments/NAME/study.yaml; the runs of it train in this process."""

    def write(name: str, **fields: Any) -> Path:
        folder = here / "experiments" / name
        folder.mkdir(parents=True, exist_ok=True)
        usual = {
            "question": "Which?",
            "shared": tiny,
            "factors": {"position": ["none", "alibi"]},
            "baseline": {"position": "none"},
            "seeds": 2,
            "metric": {"name": "test/nats@2x", "better": "lower", "margin": 0.01},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(usual | fields, sort_keys=False))
        return folder

    return write


def left_behind(folder: Path) -> list[str]:
    """Everything in `folder`, by its path in it."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*"))


@pytest.fixture
def left() -> Callable[[Path], list[str]]:
    """Everything in a folder."""
    return left_behind
