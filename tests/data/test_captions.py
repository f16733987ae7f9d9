"""Sources of images with texts: what each reads, how it is split, what it refuses."""

import csv
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from attnlab.data import DataError, HubImageText, Icons, ImageText
from attnlab.data.captions import Captioned, base_words, drawn_glyphs, hold_out
from attnlab.data.image_data import read_images

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
NAMES = {f"letter-{chr(97 + n)}": 97 + n for n in range(26)} | {
    f"{w}-sign": ord(c) for w, c in zip(("plus", "star", "hash"), "+*#", strict=True)
}
NAMES |= {"letters-two": 0xE000 + 7, "plus-again": ord("+"), "empty": 0x20, **{f"digit{n}": 48 + n for n in range(10)}}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like the one of the icons, with the letters of another font."""
    path = tmp_path / "qtawesome-1.4.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(FONT, f"{Icons.fonts}-{Icons.edition}.ttf")
        archive.writestr(
            f"{Icons.fonts}-charmap-{Icons.edition}.json", json.dumps({n: hex(p) for n, p in NAMES.items()})
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(Icons, "wheel", replace(Icons.wheel, sha256=digest))
    return path


def test_icons_are_drawn_and_named_and_missing_glyphs_are_counted(wheel, own_cache):
    parts = read_images(Icons(wheel, image_size=24))
    found = {c: p for part in parts.values() for c, p in zip(part.captions, part.pixels[:, 0], strict=True)}
    assert set(found) == {name.replace("-", " ") for name in set(NAMES) - {"letters-two", "plus-again", "empty"}}
    font = ImageFont.truetype(str(FONT), 24, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("L", (24, 24))
    ImageDraw.Draw(image).text((0, round(24 * 23 / 29)), "g", font=font, fill=255, anchor="ls")
    assert font.getmetrics() == (23, 6)
    assert np.array_equal(found["letter g"], np.asarray(image))
    said = ("names that the font has no glyph for, left out: 2", "names of a picture that has another, left out: 1")
    assert parts["train"].remarks == said
    kept = read_images(Icons(wheel, image_size=24))["train"]
    assert (kept.remarks, kept.captions) == (said, parts["train"].captions)
    assert np.array_equal(kept.pixels, parts["train"].pixels)
    assert len(list(own_cache.glob("captions/icons-*"))) == 1
    assert read_images(Icons(wheel, image_size=16))["train"].pixels.shape[1:] == (1, 16, 16)


def test_a_glyph_that_is_not_there_is_none_whatever_the_font_shows_for_it():
    assert set(drawn_glyphs(FONT.read_bytes(), {"a": "a", "none": "\ue007", "blank": " "}, 16)) == {"a"}


def test_base_words_are_those_that_variants_share():
    names = ["card", "cards-outline", "glasses", "glass-wine", "bus-stop", "account-off", "lens"]
    assert base_words(names) == ["card", "card", "glass", "glass", "bus", "account", "lens"]


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 30), min_size=5, max_size=120),
    count=st.integers(0, 40),
    largest=st.sampled_from([None, 1, 3, 50]),
    seed=st.integers(0, 9),
)
def test_groups_are_held_out_whole_whatever_the_order(groups, count, largest, seed):
    groups = [f"group {number}" for number in groups]
    whole = Captioned(np.arange(len(groups), dtype=np.uint8).reshape(-1, 1, 1, 1), groups, [""] * len(groups))
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    counts = {"test": count, "validation": count}
    parts = hold_out(whole, groups, counts, largest)
    again = hold_out(whole.take(order), [groups[row] for row in order], counts, largest)
    members = {name: set(part.captions) for name, part in parts.items()}
    assert members == {name: set(part.captions) for name, part in again.items()}
    assert sum(map(len, members.values())) == len(set(groups))
    assert sum(map(len, parts.values())) == len(groups)
    for name in counts:
        assert len(parts[name]) <= count
        sizes = [groups.count(group) for group in members[name]]
        assert largest is None or max(sizes, default=0) <= largest
        left = [groups.count(group) for group in members["train"]]
        smallest = min((size for size in left if largest is None or size <= largest), default=999)
        assert len(parts[name]) + smallest > count


# --- of your own


def save(path, level=0, size=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), level, dtype=np.uint8)
    pixels[0, 0] = (level * 7 % 256, 3, 5)
    Image.fromarray(pixels).save(path)


def fill(folder, count=20):
    for number in range(count):
        save(folder / f"{number}.png", number)
        (folder / f"{number}.txt").write_text(f"picture  number\t{number}\n\n")


def all_of(parts):
    return sorted(
        (c, int(p[0, 1, 1])) for part in parts.values() for c, p in zip(part.captions, part.pixels, strict=True)
    )


def test_a_folder_of_images_with_a_text_beside_each(tmp_path):
    fill(tmp_path)
    save(tmp_path / "more" / "20.bmp", 20)
    (tmp_path / "more" / "20.txt").write_text("first\nsecond\n")
    save(tmp_path / "21.png", 21)
    save(tmp_path / "22.png", 22)
    (tmp_path / "22.txt").write_text(" \n")
    (tmp_path / "notes.txt").write_text("of no image")
    parts = ImageText(tmp_path).read()
    assert {name: len(part) for name, part in parts.items()} == {"train": 18, "validation": 2, "test": 2}
    expected = [(f"picture number {n}", n) for n in range(20)] + [("first", 20), ("second", 20)]
    assert all_of(parts) == sorted(expected)
    assert parts["train"].dropped == 2
    assert parts["train"].remarks == (f"text files in {tmp_path.name} without an image of their name: 1",)
    homes = [name for name, part in parts.items() if {"first", "second"} & set(part.captions)]
    assert len(homes) == 1
    assert {label for part in parts.values() for label in part.labels} == {""}


def test_parts_are_taken_as_they_are_and_what_is_missing_is_held_out(tmp_path):
    for name, count in (("train", 20), ("val", 3), ("test", 4)):
        fill(tmp_path / "all" / name, count)
    assert {name: len(part) for name, part in ImageText(tmp_path / "all").read().items()} == {
        "train": 20,
        "validation": 3,
        "test": 4,
    }
    fill(tmp_path / "two" / "train")
    fill(tmp_path / "two" / "test", 3)
    sizes = {name: len(part) for name, part in ImageText(tmp_path / "two").read().items()}
    assert sizes == {"train": 18, "validation": 2, "test": 3}


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_a_table_of_images_and_captions(tmp_path, kind):
    for number in range(12):
        save(tmp_path / "img" / f"{number}.png", number)
    rows = [(f"img/{n}.png", f'a "{n}", quoted', "odd" if n % 2 else "even") for n in range(12)]
    rows += [("img/3.png", "three again", "odd"), ("img/4.png", "", "even")]
    table = tmp_path / f"table{kind}"
    if kind == ".jsonl":
        named = [dict(zip(("file", "text", "kind"), row, strict=True)) for row in rows]
        named[5]["text"] = [named[5]["text"], None, " "]
        table.write_text("".join(f"{json.dumps(row)}\n" for row in named))
    elif kind == ".tsv":
        table.write_text("\n".join("\t".join(row) for row in [("file", "text", "kind"), *rows]))
    else:
        with table.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("file", "text", "kind"), *rows])
    parts = ImageText(table, image="file", caption="text", label="kind").read()
    assert all_of(parts) == sorted([(f'a "{n}", quoted', n) for n in range(12)] + [("three again", 3)])
    for part in parts.values():
        assert part.labels == ["odd" if pixels[0, 1, 1] % 2 else "even" for pixels in part.pixels]
    assert len(parts["train"]) >= 10


def test_images_are_scaled_and_greyed_as_asked(tmp_path):
    fill(tmp_path)
    save(tmp_path / "20.png", 9, size=12)
    (tmp_path / "20.txt").write_text("large")
    with pytest.raises(DataError, match=r"20.png has 12 x 12 pixels .*; set data.source.image_size"):
        ImageText(tmp_path).read()
    assert ImageText(tmp_path, image_size=8, channels=1).read()["train"].pixels.shape[1:] == (1, 8, 8)


def table(folder, *lines, name="t.csv"):
    save(folder / "a.png", 1)
    (folder / name).write_text("\n".join(lines))
    return folder / name


MISTAKES = {
    "a column": (["image,text", "a.png,x"], r"line 2 of .*t.csv has no column 'caption' \(data.source.caption\); it has: image, text"),
    "a file": (["image,caption", "b.png,x"], r"line 2 of .*t.csv names the image b.png, and there is no file .*b.png; write its path as seen from"),
    "cells": (["image,caption", "a.png,x", "a.png,x,y"], r"line 3 of .*t.csv has 3 columns; accepted: 2 as in line 1 \(image, caption\)"),
    "quotes": (["image,caption", '"a.png"x,y'], r"line 2 of .*t.csv cannot be read \(.*\); mend its quotes"),
    "no caption": (["image,caption", "a.png,"], r"t.csv holds no image with a caption \(images found: 1, of .png.*\); accepted: a folder of images"),
    "no rows": (["image,caption"], r"t.csv holds no image with a caption \(images found: 0"),
    "json": (["{"], r"line 1 of .*t.jsonl is no JSON \(.*\); accepted: an object a line"),
    "a list": (["[1]"], r"line 1 of .*t.jsonl is no object of JSON"),
    "a number": (['{"image": "a.png", "caption": 1.5}'], r"the caption of line 1 of .*t.jsonl is 1.5 \(float\); accepted: a text"),
    "half": (['{"image": "a.png", "caption": "\\ud800"}'], r"the caption of line 1 of .*t.jsonl holds '\\ud800', half of a character"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_tables_are_one_message(tmp_path, name):
    lines, words = MISTAKES[name]
    path = table(tmp_path, *lines, name="t.jsonl" if lines[0][0] in "{[" else "t.csv")
    with pytest.raises(DataError, match=words):
        ImageText(path).read()


def test_mistakes_in_folders_are_one_message(tmp_path):
    with pytest.raises(
        DataError, match=r"does not exist .*; accepted: a folder of images with a text file of its name"
    ):
        ImageText(tmp_path / "nowhere")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x.json is neither a folder nor a table; accepted: a folder of images"):
        ImageText(tmp_path / "x.json").read()
    save(tmp_path / "bare" / "a.png")
    with pytest.raises(DataError, match=r"bare holds no image with a caption"):
        ImageText(tmp_path / "bare").read()
    for name in ("train", "Test"):
        fill(tmp_path / "odd" / name, 3)
    with pytest.raises(DataError, match=r"odd holds Test, which may be a part of a data set; accepted: .*: rename it"):
        ImageText(tmp_path / "odd").read()
    fill(tmp_path / "half" / "test", 3)
    with pytest.raises(DataError, match=r"half holds test and no train; accepted"):
        ImageText(tmp_path / "half").read()
    fill(tmp_path / "twice" / "val", 3)
    fill(tmp_path / "twice" / "validation", 3)
    with pytest.raises(DataError, match=r"twice holds val and validation, and both are the validation part .*: rename"):
        ImageText(tmp_path / "twice").read()
    fill(tmp_path / "torn", 3)
    (tmp_path / "torn" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"torn/1.png cannot be read as an image"):
        ImageText(tmp_path / "torn").read()
    with pytest.raises(ValueError, match="image_size must be at least 8, got 4"):
        Icons(image_size=4)


@pytest.fixture
def hub(tmp_path):
    """A local data set in the hub's format: images in a folder, their captions in a table beside them."""
    for split, count in (("train", 12), ("test", 4)):
        for number in range(count):
            save(tmp_path / "set" / split / f"{number}.png", number)
        rows = [{"file_name": f"{n}.png", "text": [f"number {n}", f"the {n}"], "label": n % 2} for n in range(count)]
        (tmp_path / "set" / split / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path / "set"


@pytest.mark.slow  # loads the library
def test_images_of_the_hub_with_several_captions_each(hub, tmp_path):
    parts = HubImageText(str(hub), caption="text", label="label").read(tmp_path / "cache")
    assert {name: len(part) for name, part in parts.items()} == {"train": 22, "validation": 2, "test": 8}
    expected = [(text, n) for n in range(12) for text in (f"number {n}", f"the {n}")]
    assert all_of({name: parts[name] for name in ("train", "validation")}) == sorted(expected)
    assert parts["test"].labels == ["0", "0", "1", "1"] * 2
    with pytest.raises(
        DataError, match=r"has no column 'caption' \(data.source.caption\); accepted: image, text, label"
    ):
        HubImageText(str(hub)).read(tmp_path / "cache")
