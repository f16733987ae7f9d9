"""Small local data sets, one of each form that attnlab reads, the same at every call; nothing of attnlab is imported."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consetetur",
    "Straße",
    "naïve",
    "—",
    "don't",
    "12",
    "x",
    "über,",
    "well-kept;",
    "“so”",
    "Zürich",
    "東京",
    "(e.g.)",
    "end.",
]
SPLITS = {"train": 400, "validation": 60, "test": 60}
TAGS = ["O", "B-person", "I-person", "B-place", "I-place"]


def write_files(folder: Path) -> None:
    """Every data set, each in a folder of its own."""
    for make in (texts, tsv, conll, squad, parallel, image_folder, idx, hub_text, hub_labelled, hub_entities):
        make(made(folder / make.__name__))
    for make in (hub_questions, hub_images, hub_pairs):
        make(made(folder / make.__name__))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sentence(draw: random.Random, least: int = 2, most: int = 24) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def texts(folder: Path) -> None:
    """Three text files, one with a byte-order mark and one with other line ends, and one that the usual pattern leaves out."""
    draw = random.Random(1)
    for name, end, mark in (
        ("a.txt", "\n", ""),
        ("b.txt", "\r\n", "\ufeff"),
        ("sub/c.txt", "\n", ""),
        ("d.md", "\n", ""),
    ):
        made((folder / name).parent)
        lines = [sentence(draw) for _ in range(700)]
        (folder / name).write_bytes((mark + end.join(lines) + end).encode())


def tsv(folder: Path) -> None:
    """Text and class without a header; and with a header, in columns in another order."""
    for name, header in (("plain", False), ("headed", True)):
        draw = random.Random(2)
        for split, count in SPLITS.items():
            lines = ["label\tnumber\tsentence"] if header else []
            for row in range(count):
                text, label = sentence(draw, 1, 40), draw.choice(["good", "bad", "neither"])
                lines.append(f"{label}\t{row}\t{text}" if header else f"{text}\t{label}")
            (made(folder / name) / f"{'dev' if split == 'validation' else split}.tsv").write_text(
                "\n".join(lines) + "\n"
            )


def tagged(draw: random.Random) -> tuple[list[str], list[str]]:
    """Words and their tags in IOB2."""
    words, tags = [], []
    while len(words) < 3 or draw.random() < 0.93:
        length = draw.choice([0, 0, 0, 1, 2])
        kind = draw.choice(["person", "place"])
        entity = [f"B-{kind}", f"I-{kind}"][:length]
        for tag in entity or ["O"]:
            words.append(draw.choice(WORDS))
            tags.append(tag)
    return words, tags


def conll(folder: Path) -> None:
    """Two columns between tabs; and four between blanks, in IOB1, with documents and comments."""
    draw = random.Random(3)
    for split, count in SPLITS.items():
        plain, columns = [], ["-DOCSTART- -X- O O", "", "# a comment"]
        for _ in range(count):
            words, tags = tagged(draw)
            plain += [f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True)] + [""]
            before = ["O", *tags]
            iob1 = [tag if before[i].endswith(tag[1:]) else tag.replace("B-", "I-") for i, tag in enumerate(tags)]
            columns += [f"{i} {word} NN {tag}" for i, (word, tag) in enumerate(zip(words, iob1, strict=True))] + [""]
        stem = "dev" if split == "validation" else split
        (made(folder / "plain") / f"{stem}.conll").write_text("\n".join(plain))
        (made(folder / "columns") / f"{stem}.txt").write_text("\n".join(columns))


def questions(draw: random.Random, count: int, impossible: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Contexts, each with its questions in SQuAD's fields."""
    for number in range(count):
        context = sentence(draw, 20, 160)
        words, asked = context.split(" "), []
        for place in range(draw.randint(1, 3)):
            first = draw.randrange(len(words))
            text = " ".join(words[first : first + draw.randint(1, 4)])
            start = len(" ".join(words[:first])) + (first > 0)
            asked.append({"id": f"{number}-{place}", "question": sentence(draw, 3, 12) + "?"})
            none = impossible and draw.random() < 0.3
            asked[-1]["answers"] = [] if none else [{"text": text, "answer_start": start}]
            if impossible:
                asked[-1]["is_impossible"] = none
        yield context, asked


def squad(folder: Path) -> None:
    """One file of SQuAD 1.1; and a folder in the form of SQuAD 2.0."""

    def write(path: Path, seed: int, count: int, impossible: bool) -> None:
        asked = questions(random.Random(seed), count, impossible)
        paragraphs = [{"context": context, "qas": its} for context, its in asked]
        path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}, ensure_ascii=False))

    write(folder / "one.json", 4, 120, False)
    write(made(folder / "second") / "train-v2.0.json", 5, 120, True)
    write(folder / "second" / "dev-v2.0.json", 6, 30, True)


def pairs(seed: int, count: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [(sentence(draw), sentence(draw)) for _ in range(count)]


def parallel(folder: Path) -> None:
    """A tab-separated file with a header; aligned files, gzip, with their own validation; and texts with a class."""
    (folder / "tabbed.tsv").write_text("\n".join(["en\tde", *map("\t".join, pairs(7, 600))]))
    for name, seed, count in (("corpus", 8, 500), ("held_out", 9, 50)):
        for side, language in enumerate(("en", "de")):
            lines = "\n".join(pair[side] for pair in pairs(seed, count)) + "\n"
            (folder / f"{name}.{language}.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    draw = random.Random(10)
    topics = [f"{sentence(draw)}\t{draw.choice(['sports', 'weather'])}" for _ in range(300)]
    (folder / "topics.tsv").write_text("\n".join(topics))


def picture(draw: np.random.Generator, rows: int, columns: int, channels: int) -> Image.Image:
    pixels = draw.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def image_folder(folder: Path) -> None:
    """Files of several sizes and colour modes, with and without parts."""
    draw = np.random.default_rng(11)
    parts = {"whole": 30, "parts/train": 24, "parts/test": 8, "parts/val": 8}
    for part, count in parts.items():
        for name in ("cat", "dog", "fish"):
            for i in range(count):
                rows, columns, channels = (
                    int(draw.integers(20, 60)),
                    int(draw.integers(20, 60)),
                    int(draw.choice([1, 3, 4])),
                )
                picture(draw, rows, columns, channels).save(made(folder / part / name) / f"{i}.png")


def idx(folder: Path) -> None:
    """MNIST's form, gzip and plain."""
    draw = np.random.default_rng(12)
    for prefix, count, ending in (("train", 1200, ".gz"), ("t10k", 300, "")):
        pixels, numbers = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", numbers)):
            head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            content = head + array.tobytes()
            content = gzip.compress(content, mtime=0) if ending else content
            (folder / f"{prefix}-{kind}-ubyte{ending}").write_bytes(content)


def write_hub(folder: Path, split: str, rows: Sequence[dict[str, Any]], features: dict[str, Any]) -> None:
    """A split of a data set in the hub's form."""
    from datasets import Dataset, Features

    path = folder / f"{split}-00000-of-00001.parquet"
    Dataset.from_list(list(rows), features=Features(features)).to_parquet(path)


def hub_text(folder: Path) -> None:
    """Rows of text, of which one is missing."""
    draw = random.Random(13)
    rows = [{"text": sentence(draw, 5, 60)} for _ in range(600)]
    rows[7] = {"text": None}
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))


def hub_labelled(folder: Path) -> None:
    """Texts with named classes."""
    from datasets import ClassLabel, Value

    draw, features = random.Random(14), {"text": Value("string"), "label": ClassLabel(names=["no", "yes"])}
    for split, count in SPLITS.items():
        rows = [{"text": sentence(draw, 1, 50), "label": draw.randrange(2)} for _ in range(count)]
        write_hub(folder, split, rows, features)


def hub_entities(folder: Path) -> None:
    """Words with numbers of named tags."""
    from datasets import ClassLabel, Value
    from datasets import Sequence as ListOf

    draw, features = random.Random(15), {"tokens": ListOf(Value("string")), "ner_tags": ListOf(ClassLabel(names=TAGS))}
    for split, count in SPLITS.items():
        rows = []
        for words, tags in (tagged(draw) for _ in range(count)):
            rows.append({"tokens": words, "ner_tags": [TAGS.index(tag) for tag in tags]})
        write_hub(folder, split, rows, features)


def hub_questions(folder: Path) -> None:
    """SQuAD's columns."""
    from datasets import Sequence as ListOf
    from datasets import Value

    features: dict[str, Any] = {name: Value("string") for name in ("id", "question", "context")}
    features["answers"] = {"text": ListOf(Value("string")), "answer_start": ListOf(Value("int32"))}
    for split, seed, count in (("train", 16, 120), ("validation", 17, 30)):
        rows = []
        for context, asked in questions(random.Random(seed), count, impossible=False):
            for one in asked:
                answers = {field: [answer[field] for answer in one["answers"]] for field in ("text", "answer_start")}
                rows.append({**one, "context": context, "answers": answers})
        write_hub(folder, split, rows, features)


def hub_images(folder: Path) -> None:
    """Images of several sizes with named classes."""
    from datasets import ClassLabel
    from datasets import Image as HubImage

    draw, features = np.random.default_rng(18), {"image": HubImage(), "label": ClassLabel(names=["no", "yes"])}
    for split, count in (("train", 240), ("test", 40)):
        sizes = draw.integers(20, 50, (count, 2)).tolist()
        rows = [{"image": picture(draw, *size, 3), "label": i % 2} for i, size in enumerate(sizes)]
        write_hub(folder, split, rows, features)


def hub_pairs(folder: Path) -> None:
    """Rows of WMT's form."""
    from datasets import Value

    features = {"translation": {"de": Value("string"), "en": Value("string")}}
    for seed, (split, count) in enumerate(SPLITS.items()):
        rows = [{"translation": {"de": a, "en": b}} for a, b in pairs(19 + seed, count)]
        write_hub(folder, split, rows, features)
