"""Prepared data of every kind, damaged in every way: nothing damaged is used, nothing fails, one line says so, and it is made anew."""

import hashlib
import json
import logging
import random
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from tests.huggingface import save

from attnlab.data import (
    BPE,
    TSV,
    Character,
    ClassificationData,
    CoNLL,
    Digits,
    HubText,
    ImageData,
    MaskedTextData,
    Masking,
    ParallelText,
    SpanCorruptionData,
    SpanExtractionData,
    SQuADFiles,
    TextData,
    TextFiles,
    TokenClassificationData,
    TranslationData,
    read_tokenizer,
)
from attnlab.data.cache import download, problem_of

SPLIT = [0.6, 0.2, 0.2]


class Fetched(Digits):
    """Stands in for images that are fetched."""

    name, fetched = "mnist_5k", True

    def version(self):
        return "1"


class Download:
    """A file that is downloaded from beside the cache."""

    def __init__(self, path):
        self.path = path

    def prepare_data(self):
        content = self.path.read_bytes()
        self.found = download(self.path.as_uri(), hashlib.sha256(content).hexdigest(), "kept.txt")

    def setup(self):
        pass

    def train_dataloader(self):
        return [{"content": torch.from_numpy(np.frombuffer(self.found, dtype=np.uint8).copy())}]

    val_dataloader = train_dataloader


def squad(lines):
    answers = [{"text": line.split(" ")[0], "answer_start": 0} for line in lines]
    qas = [{"id": f"q{i}", "question": "which?", "answers": [answer]} for i, answer in enumerate(answers)]
    paragraphs = [{"context": line, "qas": [asked]} for line, asked in zip(lines, qas, strict=True)]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def hub_set(folder, lines):
    folder.mkdir()
    datasets.Dataset.from_dict({"text": lines}).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture
def modules(tmp_path, prose):
    """What makes a data module of each kind, with nothing in memory of what an earlier one prepared."""
    lines = [line for line in prose[:3000].split("\n") if line]
    (tmp_path / "conll").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text("".join(f"{split} {s}\t{i % 2}\n" for i, s in enumerate(lines)))
        words = "\n\n".join("\n".join(f"{word}\tO" for word in s.split()) for s in lines)
        (tmp_path / "conll" / f"{split}.txt").write_text(f"Ng\tB-per\n{words}\n")
    (tmp_path / "text.txt").write_text(prose[:6000])
    (tmp_path / "pairs").write_text("".join(f"{i} {line}\t{line} {i}\n" for i, line in enumerate(lines)))
    (tmp_path / "squad.json").write_text(squad(lines))
    text, bert = partial(TextFiles, tmp_path / "text.txt"), read_tokenizer(str(save("bert", tmp_path / "bert")))
    short = {"context_length": 16, "batch_size": 2, "split": SPLIT}
    made = {
        "text": partial(TextData, text, BPE(280), **short),
        "text of a pretrained tokenizer": partial(TextData, text, bert, **short),
        "masked": partial(MaskedTextData, text, Character(), Masking(), **short),
        "spans": partial(SpanCorruptionData, text, BPE(270), **short),
        "labelled": partial(ClassificationData, TSV, BPE(280), path=str(tmp_path)),
        "tokens": partial(TokenClassificationData, CoNLL(tmp_path / "conll"), BPE(280)),
        "questions": partial(SpanExtractionData, partial(SQuADFiles, split=SPLIT), BPE(280), path=tmp_path / "squad.json"),
        "pairs": partial(
            TranslationData, partial(ParallelText, split=SPLIT), BPE(280), "en-de", False, path=str(tmp_path / "pairs")
        ),
        "images": partial(ImageData, Fetched),
        "hub": partial(TextData, partial(HubText, hub_set(tmp_path / "hub", lines)), Character(), **short),
        "downloads": partial(Download, tmp_path / "text.txt"),
    }  # fmt: skip
    return made


def opened(make):
    """What training and validation see of newly opened data."""
    module = make()
    module.prepare_data()
    module.setup()
    batches = [next(iter(module.train_dataloader())), next(iter(module.val_dataloader()))]
    return [{name: values.numpy().copy() for name, values in batch.items()} for batch in batches]


def same(first, second):
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def flip(draw, content):
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def zero(draw, content):
    """The last half becomes zeros, as where a disk lost what was written last; one byte, where it is zeros already."""
    half = len(content) // 2
    zeroed = content[:half] + bytes(len(content) - half)
    return zeroed if zeroed != content else flip(draw, content)


DAMAGES = {
    "flipped bit": flip,
    "zeroed": zero,
    "cut": lambda draw, content: content[: draw.randrange(len(content))],
    "longer": lambda draw, content: content + b"\0",
    "empty": lambda draw, content: b"",
    "missing": None,
    "a folder": None,
}


def damage(draw, path):
    kind = draw.choice(list(DAMAGES))
    content = path.read_bytes()
    path.unlink()
    if change := DAMAGES[kind]:
        path.write_bytes(change(draw, content))
    elif kind == "a folder":
        path.mkdir()
    return kind


def check_damaged_states(make, cache, caplog, count, seed):
    """Damages one file at a time and opens the data again."""
    expected, draw = opened(make), random.Random(seed)
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)  # empty ones are locks
    assert files
    for _ in range(count):
        path = draw.choice(files)
        kind = damage(draw, path)
        caplog.clear()
        assert same(opened(make), expected), (path.name, kind)
        said = [record.getMessage() for record in caplog.records]
        # A download is then not there, and the hub's library sees itself that one of its tables is none.
        if not (kind == "missing" and {"downloads", "hub"} & set(path.parts)):
            assert len(said) >= 1, (path.name, kind)
            assert all(line.endswith("it is made anew") and str(path.parent) in line for line in said), said
        assert not list(cache.rglob(".making-*"))
        assert path.is_file()
        assert path.parent.name == "downloads" or problem_of(path.parent) is None
    caplog.clear()
    assert same(opened(make), expected)
    assert not caplog.records


KINDS = [
    *("text", "text of a pretrained tokenizer", "masked", "spans", "labelled", "tokens", "questions", "pairs"),
    *("images", "hub", "downloads"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_data_are_made_anew_and_said(kind, modules, own_cache, caplog):
    caplog.set_level(logging.WARNING)
    check_damaged_states(modules[kind], own_cache, caplog, 6, seed=KINDS.index(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_states_of_each_kind(kind, modules, own_cache, caplog):
    caplog.set_level(logging.WARNING)
    check_damaged_states(modules[kind], own_cache, caplog, 25, seed=100 + KINDS.index(kind))
