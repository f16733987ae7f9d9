"""A tiny text, a tiny run and the command itself, in a folder of their own."""

import json
import os
import random
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from attnlab.cli.main import main
from attnlab.config.compose import Composed, ConfigSpace
from tests.huggingface import save_model
from tests.once import made_once
from tests.speech_files import write_folder

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
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(300)]
    (folder / "pairs.tsv").write_text("".join(f"{line}\t{' '.join(line.split()[::-1])}\n" for line in lines))
    (folder / "labelled").mkdir()
    for number, split in enumerate(("train", "dev", "test")):
        rows = [f"{line}\t{'with' if 'fox' in line else 'without'}\n" for line in lines[number * 60 : 60 + number * 60]]
        (folder / "labelled" / f"{split}.tsv").write_text("".join(["text\tlabel\n", *rows]))
    (folder / "tagged").mkdir()
    for number, split in enumerate(("train", "dev", "test")):
        words = ("\n".join(line.split()) for line in lines[number * 60 : 60 + number * 60])
        tagged = "\n\n".join(re.sub("$", " O", each, flags=re.M).replace("fox O", "fox B-animal") for each in words)
        (folder / "tagged" / f"{split}.conll").write_text(tagged)
    asked = [{"id": str(i), "question": "what?", "answers": [{"text": line.split()[1], "answer_start": line.index(" ") + 1}]}
             for i, line in enumerate(lines)]  # fmt: skip
    paragraphs = [{"context": line, "qas": [question]} for line, question in zip(lines, asked, strict=True)]
    (folder / "questions.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    (folder / "shaded").mkdir()
    noise = np.random.default_rng(0)
    for number in range(160):  # darker and brighter ones, of a word each
        pixels = noise.integers(0, 60, (8, 8)) + 60 * (number % 4)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "shaded" / f"{number}.png")
        (folder / "shaded" / f"{number}.txt").write_text(f"{WORDS[number % 4]}\n")
    write_captioned(folder / "captioned")
    write_folder(folder / "spoken", {"train": 40, "validation": 8, "test": 8})
    return folder


def write_captioned(folder: Path) -> None:
    """60 images of 16 pixels a side, each with a bright square and beside it in words where that is."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number, (row, column) in enumerate(noise.integers(0, 4, (60, 2)).tolist()):
        pixels = noise.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += np.uint8(180)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a square in row {row} of column {column}\n")


@pytest.fixture(scope="session")
def own_data(library: Path) -> Callable[[ConfigSpace, Composed], list[str]]:
    """The overrides that put small data of the same kind, which need no network, in place of those of a configuration."""
    text = f"data.path={library / 'text.txt'}"
    choices = {
        "text": [text],
        "text_masked": [text],
        "text_spans": [text],
        "text_ul2": [text],
        "parallel_text": [
            f"data.path={library / 'pairs.tsv'}",
            "data.language_pair=en-de",
            "data.source.split=[0.8,0.1,0.1]",
        ],
        "tsv": [f"data.path={library / 'labelled'}"],
        "conll": [f"data.path={library / 'tagged'}"],
        "squad_files": [f"data.path={library / 'questions.json'}"],
        "digits": [],
        "image_text": [
            f"data.path={library / 'shaded'}",
            "data.source.image_size=8",
            "data.source.channels=1",
            "data.max_length=32",
        ],
        "speech": [f"data.path={library / 'spoken'}", "data.seconds=0.6", "data.max_length=24"],
    }

    targets: dict[str, str] = {}

    def find(space: ConfigSpace, composed: Composed) -> list[str]:
        if composed.config.data._target_ == "attnlab.data.SyntheticData":  # which is of no file
            return [f"data={composed.names['data']}", "data.test_rows=16", "data.validation_rows=16"]
        for choice in choices.keys() & set(space.groups["data"]):
            if choice not in targets:
                targets[choice] = space.compose([f"data={choice}"]).config.data._target_
            if targets[choice] == composed.config.data._target_:
                return [f"data={choice}", *choices[choice]]
        raise LookupError(f"give tests/tiny_runs.py small data of the kind {composed.config.data._target_}")

    return find


@pytest.fixture(scope="session")
def tiny(library: Path) -> list[str]:
    """The settings of a run of a second."""
    return [
        "data=text",
        f"data.path={library / 'text.txt'}",
        "data.context_length=16",
        "data.batch_size=4",
        "data.max_validation_tokens=256",
        "model.d_model=16",
        "model.num_heads=2",
        "model.num_layers=1",
        "trainer.max_steps=10",
        "trainer.val_check_interval=5",
        "trainer.threads=1",
        "task.evaluation_lengths=[1,2]",
        "task.evaluation_tokens=256",
        "progress=off",
    ]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """A folder of images of so many pixels a side, which are brighter from class to class."""
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    def folder(size: int, classes: int) -> Path:
        made = root / f"{size}-{classes}"
        for number in range(0 if made.is_dir() else classes):
            (made / str(number)).mkdir(parents=True)
            for image in range(20):
                pixels = noise.integers(0, 60, (size, size, 3)) + 60 * number
                Image.fromarray(pixels.astype(np.uint8)).save(made / str(number) / f"{image}.png")
        return made

    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of tests.huggingface, as transformers writes it; tests that change it take a copy."""

    @cache
    def folder(kind: str) -> Path:
        return made_once(tmp_path_factory, f"published-{kind}", lambda place: save_model(kind, place / kind)) / kind

    return folder


@pytest.fixture(scope="session")
def small_data(library: Path, images: Callable[[int, int], Path]) -> dict[str, list[str]]:
    """The overrides that give an imported model of each kind something small to be evaluated on."""
    text = [
        f"data.path={library / 'text.txt'}",
        "data.context_length=16",
        "data.batch_size=4",
        "data.max_validation_tokens=256",
    ]
    lm = ["data=text", *text, "task.evaluation_lengths=[1]", "task.evaluation_tokens=256"]
    pairs = ["data=parallel_text", f"data.path={library / 'pairs.tsv'}", "data.language_pair=en-de", "data.source.split=[0.8,0.1,0.1]",
             "data.batch_tokens=400", "data.max_length=60", "task.num_beams=1", "task.max_extra_length=2"]  # fmt: skip
    pictures = ["data=image_folder", f"data.path={images(16, 2)}", "data.source.image_size=16", "augmentation=none"]
    masked = ["data=text_masked", *text]
    return {"gpt2": lm, "llama": lm, "bert": masked, "t5": pairs, "bart": pairs, "vit": pictures}


@pytest.fixture(scope="session")
def imported(
    published: Callable[[str], Path],
    small_data: dict[str, list[str]],
    library: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """The run that `attnlab import` made of a published model; tests that change it take a copy."""

    def make(kind: str, place: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ATTNLAB_CACHE", str(library / "cache"))
            assert main(["import", str(published(kind)), *small_data[kind], f"runs_dir={place}"]) == 0

    @cache
    def run(kind: str) -> Path:
        place = made_once(tmp_path_factory, f"imported-{kind}", partial(make, kind))
        return place / "imported" / kind / "seed=0"

    return run


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
            "metric": {"name": "test/loss@2x", "better": "lower", "margin": 0.01},
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
