"""Where images with texts come from: pixels and a text each. Shapes: N pairs, C channels, Y and X rows and columns."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Unpack

import numpy as np
from PIL import Image

from attnlab.data.cache import DataError, Wheel
from attnlab.data.images import (
    EXTENSIONS,
    LIKE_PARTS,
    Pictures,
    PictureSource,
    checked_channels,
    decode_pixels,
    hub_image,
    is_image,
)
from attnlab.data.readers import HubSet, class_of, is_missing, read_text, refuse_half_characters, text_of
from attnlab.data.source import SPLITS, VALIDATION_SHARE, InHub, InWheel, existing, parts_among
from attnlab.data.tables import TABLES, records
from attnlab.ranges import Ge, PositiveInt, check_ranges

FORMS = (
    "a folder of images with a text file of its name beside each (cat.png, cat.txt); or a table (.csv or .tsv whose "
    "line 1 names columns, .jsonl) of images and captions; or a folder with train, test and perhaps validation of these"
)


@dataclass(frozen=True)
class Captioned(Pictures):
    """Images with a text each and, where there are classes, one each (else ""). An image of several texts stands once
    with each; images without a text are dropped.
    """

    captions: list[str]
    labels: list[str]


class CaptionedSource(PictureSource[Captioned]):
    """Images with texts."""

    kind, shelf, part_type = "images with texts", "captions", Captioned


@check_ranges
class Icons(InWheel, CaptionedSource):
    """Material Design icons, white on black, with their names in words.

    All icons of a base word, the first of a name (cards is card), stand in one part, and its class is that word; a
    tenth, at most 500, are to validate and to test on, at most a twentieth of these of one word. Left out are those
    that the font has no glyph for, and a picture that has another name already. image_size: pixels of the square of 24
    units that icons are drawn in. `path` is a copy of the wheel.
    """

    name = "icons"
    what = "Material Design icons and their names (PyPI wheel qtawesome 1.4.2, fetched once)"
    size = "6,343 + 1,000 icons"
    licence = "MIT (wheel), Apache-2.0 (icons)"
    channels = 1
    wheel = Wheel("qtawesome", "1.4.2", "dbf08524428fa2df73918ce362153254cd44f089380576d84bfaad8f40eece45")
    fonts: ClassVar[str] = "qtawesome/fonts/materialdesignicons6-webfont"
    edition: ClassVar[str] = "6.9.96"
    held_out: ClassVar[int] = 500
    edition_of_parts: ClassVar[int] = 2  # another with each change of what is held out

    def __init__(self, path: str | Path | None = None, image_size: Annotated[int, Ge(8)] = 32) -> None:
        super().__init__(path)
        self.image_size: int = image_size

    def version(self) -> str:
        return f"{self.wheel.sha256} {self.image_size} {self.edition_of_parts}"

    def read(self, cache: str | Path | None = None) -> dict[str, Captioned]:
        content = self.wheel.read(f"{self.fonts}-charmap-{self.edition}.json", cache, self.path)
        points: dict[str, str] = json.loads(content)
        font = self.wheel.read(f"{self.fonts}-{self.edition}.ttf", cache, self.path)
        drawn = drawn_glyphs(font, {name: chr(int(point, 16)) for name, point in points.items()}, self.image_size)
        kept = {pixels.tobytes(): name for name, pixels in reversed(drawn.items())}  # of two, the first name
        names = [name for name in drawn if kept[drawn[name].tobytes()] == name]
        words = base_words(names)
        pixels_NCYX = np.stack([drawn[name] for name in names])[:, None]
        left_out = {
            "that the font has no glyph for": len(points) - len(drawn),
            "of a picture that has another": len(drawn) - len(names),
        }
        remarks = tuple(f"names {why}, left out: {count:,}" for why, count in left_out.items() if count)
        whole = Captioned(pixels_NCYX, [name.replace("-", " ") for name in names], words, remarks=remarks)
        count = min(self.held_out, len(names) // 10)
        return hold_out(whole, words, {"test": count, "validation": count}, largest=max(1, count // 20))


def drawn_glyphs(font: bytes, texts: Mapping[str, str], image_size: int) -> dict[str, np.ndarray]:
    """The glyph (Y, X) of each text, white on black, without those that a font lacks or that show nothing.

    font: a TrueType file. What is above the baseline and what is below share the square as the font's ascent and
    descent do.
    """
    from PIL import ImageDraw, ImageFont

    drawing = ImageFont.truetype(io.BytesIO(font), image_size, layout_engine=ImageFont.Layout.BASIC)
    ascent, descent = drawing.getmetrics()
    baseline = round(image_size * ascent / (ascent + descent))

    def draw(text: str) -> np.ndarray:
        image = Image.new("L", (image_size, image_size))
        ImageDraw.Draw(image).text((0, baseline), text, font=drawing, fill=255, anchor="ls")
        return np.asarray(image)

    missing = draw("\U0010ffff")  # no character, so no font has a glyph for it
    found = {name: draw(text) for name, text in texts.items()}
    return {name: its for name, its in found.items() if its.any() and not np.array_equal(its, missing)}


def base_words(names: Sequence[str]) -> list[str]:
    """The first word of each name, in the singular where that is the first word of another."""
    words = [name.split("-")[0] for name in names]
    known = set(words)

    def singular(word: str) -> str:
        shorter = (word[: -len(ending)] for ending in ("s", "es") if word.endswith(ending))
        return next((one for one in shorter if one in known), word)

    return [singular(word) for word in words]


def hold_out(
    whole: Captioned, groups: Sequence[str], counts: Mapping[str, int], largest: int | None = None
) -> dict[str, Captioned]:
    """Parts of so many pairs, or as many as whole groups allow, in the order of the groups' sha256; the rest is to
    train on, and so are groups of more pairs than `largest`, which would be most of a part. The training part keeps
    what was dropped and remarked.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rows: dict[str, list[int]] = {name: [] for name in (*counts, "train")}
    for group in sorted(members, key=lambda group: hashlib.sha256(group.encode()).digest()):
        size = len(members[group])
        fits = (name for name, count in counts.items() if size <= min(largest or count, count - len(rows[name])))
        rows[next(fits, "train")] += members[group]
    parts = {name: whole.take(sorted(its)) for name, its in rows.items()}
    return parts | {"train": replace(parts["train"], dropped=whole.dropped, remarks=whole.remarks)}


def completed(parts: Mapping[str, Captioned]) -> dict[str, Captioned]:
    """Train, validation and test: what is missing is a tenth of the training part, at least one image, all texts of an
    image together.
    """
    train = parts["train"]
    count = max(1, round(VALIDATION_SHARE * len(train)))
    missing = {name: count for name in reversed(SPLITS[1:]) if name not in parts}
    return {**parts, **hold_out(train, train.keys, missing)} if missing else dict(parts)


# --- of your own


@dataclass(frozen=True)
class Row:
    """An image as a folder or a table has it: what messages call it, what opens it, its texts and its class."""

    place: str
    opens: Callable[[], Image.Image]
    texts: list[str]
    label: str = ""


@dataclass(frozen=True)
class Columns:
    """What a table calls its columns; label: None where there are no classes."""

    image: str
    caption: str
    label: str | None

    def names(self) -> dict[str, str]:
        """The names by the fields that say them."""
        named = {"image": self.image, "caption": self.caption, "label": self.label}
        return {name: column for name, column in named.items() if column is not None}


@check_ranges
class ImageText(CaptionedSource):
    """Images of your own with texts: a folder of images, each with a file of its name and .txt beside it that has a
    text a line; or a table.

    A table is .csv, .tsv or .jsonl (where a caption may be a list of them), the paths of its images relative to its
    folder. image, caption, label: its columns; an image in several rows has several texts. A folder may hold train,
    test and, where there is one, validation (or val, dev), each such a folder or table; what is missing is a tenth of
    the training part. image_size, channels: as in ImageFolder. Raises DataError.
    """

    name = "image_text"
    what = "images of your own with texts: data.path=FOLDER (cat.png beside cat.txt) or a table of images and captions"

    def __init__(
        self,
        path: str | Path,
        image: str = "image",
        caption: str = "caption",
        label: str | None = None,
        image_size: PositiveInt | None = None,
        channels: PositiveInt = 3,
    ) -> None:
        self.path, self.columns = existing(path, FORMS), Columns(image, caption, label)
        self.image_size = image_size
        self.channels: int = checked_channels(channels)

    def read(self, cache: str | Path | None = None) -> dict[str, Captioned]:
        places = places_of_parts(self.path) if self.path.is_dir() else {}
        if places and "train" not in places:
            raise DataError(f"data.path={self.path} holds {', '.join(places)} and no train; accepted: {FORMS}")
        return completed({name: self._part(place) for name, place in (places or {"train": self.path}).items()})

    def _part(self, place: Path) -> Captioned:
        remarks: tuple[str, ...] = ()
        if place.is_dir():
            rows, remarks = rows_of_folder(place)
        elif place.suffix.lower() in TABLES:
            rows = rows_of_table(place, self.columns)
        else:
            raise DataError(f"data.path={place} is neither a folder nor a table; accepted: {FORMS}")
        return replace(captioned(rows, str(place), self.image_size, self.channels), remarks=remarks)


@check_ranges
class HubImageText(InHub, CaptionedSource):
    """Images with texts of a data set of the hub; a caption may be a list of them."""

    name = "hub_image_text"
    what = 'images with texts of the hub: data.path=NAME (needs pip install "attnlab[hub]")'

    def __init__(
        self,
        path: str,
        image: str = "image",
        caption: str = "caption",
        label: str | None = None,
        test: str | None = "test",
        image_size: PositiveInt | None = None,
        channels: PositiveInt = 3,
        **fields: Unpack[HubSet],
    ) -> None:
        super().__init__(path, test, **fields)
        self.columns, self.image_size = Columns(image, caption, label), image_size
        self.channels: int = checked_channels(channels)

    def read(self, cache: str | Path | None = None) -> dict[str, Captioned]:
        return completed({name: self._part(split, cache) for name, split in self.splits.items()})

    def _part(self, split: str, cache: str | Path | None) -> Captioned:
        table = self.table.rows(split, cache, **self.columns.names())
        label = self.columns.label
        names = getattr(table.features[label], "names", None) if label else None
        captions, labels = table[self.columns.caption], table[label] if label else [""] * len(table)
        rows = []
        for number, (caption, its) in enumerate(zip(captions, labels, strict=True)):
            place, opens = self.table.place(split, number + 1), partial(hub_image, table, number, self.columns.image)
            rows.append(Row(place, opens, texts_in(caption, place), class_of(its, names, place) if label else ""))
        return captioned(rows, f"{self.table.path} ({split})", self.image_size, self.channels)


def captioned(rows: Sequence[Row], where: str, image_size: int | None, channels: int) -> Captioned:
    """Pairs of images and texts, images without a text dropped. Raises DataError where none has one."""
    kept = [row for row in rows if row.texts]
    if not kept:
        raise DataError(
            f"{where} holds no image with a caption (images found: {len(rows):,}, of {', '.join(EXTENSIONS)}); "
            f"accepted: {FORMS}"
        )
    pixels_NCYX = decode_pixels([(row.place, row.opens) for row in kept], image_size, channels)
    captions = [text for row in kept for text in row.texts]
    labels = [row.label for row in kept for _ in row.texts]
    repeated_NCYX = np.repeat(pixels_NCYX, [len(row.texts) for row in kept], axis=0)
    return Captioned(repeated_NCYX, captions, labels, dropped=len(rows) - len(kept))


def places_of_parts(folder: Path) -> dict[str, Path]:
    """Where the parts of a data set are, in folders or tables of their names; none where it is not in parts. Raises
    DataError for what looks like a part and has another name: its images would be taken for more of the others.
    """
    named = [child for child in sorted(folder.iterdir()) if child.is_dir() or child.suffix.lower() in TABLES]
    found = parts_among(named, folder)
    unclear = [one.name for one in named if one.stem.lower() in LIKE_PARTS and one not in found.values()]
    if unclear:
        raise DataError(
            f"data.path={folder} holds {', '.join(unclear)}, which may be a part of a data set; accepted: one "
            "folder or table each of the names train, test and, where there is one, validation: rename it"
        )
    return found


def rows_of_folder(folder: Path) -> tuple[list[Row], tuple[str, ...]]:
    """The images in a folder and in those below it, with the texts beside them, and what is to be said of it."""
    files = [file for file in sorted(folder.rglob("*")) if is_image(file)]
    beside = {file: file.with_suffix(".txt") for file in files}
    rows = []
    for file, text in beside.items():
        lines = read_text(text).split("\n") if text.is_file() else []
        rows.append(
            Row(str(file), partial(Image.open, file), [" ".join(line.split()) for line in lines if line.strip()])
        )
    lonely = len(set(folder.rglob("*.txt")) - set(beside.values()))
    return rows, (f"text files in {folder.name} without an image of their name: {lonely:,}",) if lonely else ()


def rows_of_table(path: Path, columns: Columns) -> list[Row]:
    """The images of a table with their texts, an image of several rows once. Raises DataError."""
    found: dict[tuple[Path, str], Row] = {}
    for place, row in records(path, columns.names()):
        file = path.parent / text_of(row[columns.image], f"the image of {place}")
        label = class_of(row[columns.label], None, place) if columns.label else ""
        if not file.is_file():
            raise DataError(
                f"{place} names the image {row[columns.image]}, and there is no file {file}; write its path as seen "
                f"from {path.parent}, or take the row out"
            )
        found.setdefault((file, label), Row(str(file), partial(Image.open, file), [], label))
        found[file, label].texts.extend(texts_in(row[columns.caption], place))
    return list(found.values())


def texts_in(given: object, place: str) -> list[str]:
    """The texts of a caption that is a text or a list of texts, without empty ones. Raises DataError for another."""
    captions = given if isinstance(given, list) else [given]
    texts = [text_of(caption, f"the caption of {place}") for caption in captions if not is_missing(caption)]
    for text in texts:
        refuse_half_characters(text, f"the caption of {place}")
    return [" ".join(text.split()) for text in texts if text.strip()]
