"""Where speech comes from: recordings and what is said in each, in files of one's own or of the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Unpack

from attnlab.data.audio import ACCEPTED, EXTENSIONS, Clip
from attnlab.data.cache import DataError
from attnlab.data.readers import HubSet, is_missing, read_text, refuse_half_characters, text_of
from attnlab.data.source import (
    PARTS,
    SPLITS,
    VALIDATION_SHARE,
    Examples,
    ExampleSource,
    InHub,
    check_split,
    divide,
    existing,
    parts_among,
)
from attnlab.data.tables import TABLES, records
from attnlab.ranges import Probability, check_ranges

FORM = (
    "a folder of recordings, each with its transcript in a .txt file of the same name beside it, with or without "
    "folders train, validation and test; or a table (.csv, .tsv, .jsonl) with columns audio and transcript"
)
AUDIO = ("audio", "path", "file", "file_name", "wav", "clip")  # what tables call the column of the files
TRANSCRIPT = ("transcript", "transcription", "sentence", "text", "normalized_text")
SPEAKER = ("speaker", "speaker_id", "client_id")


@dataclass(frozen=True)
class Speech(Examples):
    """Recordings, what is said in each, and by whom: empty where nobody says."""

    clips: list[Clip]
    transcripts: list[str]
    speakers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.speakers:
            object.__setattr__(self, "speakers", [""] * len(self.clips))

    @property
    def keys(self) -> list[str]:
        """Speakers, so that nobody is in two splits; of recordings without one, what is said."""
        return [who or said for who, said in zip(self.speakers, self.transcripts, strict=True)]

    def update(self, digest: hashlib._Hash, name: str) -> None:
        digest.update(name.encode())
        for clip, transcript in zip(self.clips, self.transcripts, strict=True):
            digest.update(f"\n{clip.digest()}\t{transcript}".encode())


class SpeechSource(ExampleSource[Speech]):
    """Recordings with transcripts, in train, validation and test."""

    kind, shelf = "speech", "speech"


@check_ranges
class SpeechFiles(SpeechSource):
    """A folder of recordings with a .txt file beside each, or a table of recordings and transcripts.

    A folder with folders train, validation (val, dev) and test has these parts, a table with a column split those that
    it names; others are split by `split`, all recordings of one speaker (a table's column speaker) or, without one, of
    one transcript together. audio, transcript: columns of a table; None: by their usual names. Paths in a table are
    from its folder.
    """

    name = "speech"
    what = "recordings of your own with transcripts: data.path=FOLDER or TABLE"

    def __init__(
        self,
        path: str | Path,
        audio: str | None = None,
        transcript: str | None = None,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
    ) -> None:
        self.path = existing(path, FORM)
        self.audio, self.transcript = audio, transcript
        self.split = check_split(split, "data.source.split")

    def read(self, cache: str | Path | None = None) -> dict[str, Speech]:
        shares = dict(zip(SPLITS, self.split, strict=True))
        if self.path.is_file():
            whole, parts = self._table()
            return divide(whole, shares) if parts is None else with_all_parts(parts)
        folders = parts_among((child for child in sorted(self.path.iterdir()) if child.is_dir()), self.path)
        if "train" in folders:
            return with_all_parts({split: self._folder(folder) for split, folder in folders.items()})
        return divide(self._folder(self.path), shares)

    def _folder(self, folder: Path) -> Speech:
        files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in EXTENSIONS and file.is_file()]
        for file in files:
            refuse_half_characters(str(file), "the name of a file")
        told = [file for file in files if file.with_suffix(".txt").is_file()]
        if not told:
            what = f"{len(files):,} recordings and no transcript" if files else "no recording"
            raise DataError(f"data.path={folder} holds {what}; accepted: {FORM}; recordings are {ACCEPTED}")
        texts = [" ".join(read_text(file.with_suffix(".txt")).split()) for file in told]
        silent = len(files) - len(told)
        remarks = (f"recordings without a .txt file in {folder.name}, left out: {silent:,}",) if silent else ()
        return spoken([Clip.of_file(file) for file in told], texts, [""] * len(told), remarks)

    def _table(self) -> tuple[Speech, dict[str, Speech] | None]:
        """All rows, and by split where the table says it."""
        if self.path.suffix.lower() not in TABLES:
            raise DataError(f"data.path={self.path} is no table that its ending tells; accepted: {', '.join(TABLES)}")
        rows = list(records(self.path, {}))
        columns = list(dict.fromkeys(name for _, row in rows for name in row))
        audio = self._column("audio", self.audio, AUDIO, columns)
        transcript = self._column("transcript", self.transcript, TRANSCRIPT, columns)
        speaker = next((name for name in SPEAKER if name in columns), None)
        clips, texts, speakers, splits = [], [], [], []
        for place, row in rows:
            file = self.path.parent / text_of(row.get(audio), f"the column {audio} in {place}")
            if not file.is_file():
                raise DataError(f"{place} names {file}, which is not there; mend the path (from the table's folder)")
            clips.append(Clip.of_file(file))
            texts.append(_said(row.get(transcript), f"the column {transcript} in {place}"))
            speakers.append(str(row.get(speaker) or "") if speaker else "")
            splits.append(_part_of(row["split"], place) if "split" in row else "")
        whole = spoken(clips, texts, speakers)
        if not any(splits):
            return whole, None
        kept = [split for split, text in zip(splits, texts, strict=True) if text]
        return whole, {name: whole.take([i for i, own in enumerate(kept) if own == name]) for name in set(kept)}

    def _column(self, field: str, asked: str | None, usual: Sequence[str], columns: Sequence[str]) -> str:
        found = next((name for name in ([asked] if asked else usual) if name in columns), None)
        if found is None:
            there = ", ".join(columns) or "none"
            wanted = f"no column {asked!r}" if asked else f"no column {' or '.join(usual)}"
            raise DataError(f"{self.path} has {wanted}; it has {there}. Set data.source.{field} to the right one")
        return found


class HubSpeech(InHub, SpeechSource):
    """Speech of a data set of the hub."""

    name = "hub_speech"
    what = 'speech of the hub: data.path=NAME (needs pip install "attnlab[hub]")'
    defaults: ClassVar[HubSet] = {"validation": "validation"}

    def __init__(
        self,
        path: str,
        audio: str = "audio",
        transcript: str = "text",
        test: str | None = "test",
        **fields: Unpack[HubSet],
    ) -> None:
        super().__init__(path, test, **self.defaults | fields)
        self.audio, self.transcript = audio, transcript

    def read(self, cache: str | Path | None = None) -> dict[str, Speech]:
        return with_all_parts({name: self._part(split, cache) for name, split in self.splits.items()})

    def _part(self, split: str, cache: str | Path | None) -> Speech:
        rows: Any = self.table.rows(split, cache, audio=self.audio, transcript=self.transcript)
        if type(rows.features[self.audio]).__name__ == "Audio":  # as it lies there: the library decodes by torchcodec
            from datasets import Audio

            rows = rows.cast_column(self.audio, Audio(decode=False))
        places = [self.table.place(split, number) for number in range(1, len(rows) + 1)]
        clips = [_hub_clip(recording, place) for recording, place in zip(rows[self.audio], places, strict=True)]
        texts = [_said(text, place) for text, place in zip(rows[self.transcript], places, strict=True)]
        speaker = next((name for name in SPEAKER if name in rows.column_names), None)
        return spoken(clips, texts, [str(who) for who in rows[speaker]] if speaker else [""] * len(clips))


def _hub_clip(recording: Any, place: str) -> Clip:
    content = recording.get("bytes") if isinstance(recording, Mapping) else None
    path = recording.get("path") if isinstance(recording, Mapping) else recording
    if content:
        return Clip.of_bytes(place, content)
    if not isinstance(path, str):
        raise DataError(f"{place} has no recording; accepted: a file's bytes or its path")
    return Clip.of_file(Path(path))


def spoken(clips: list[Clip], texts: list[str], speakers: list[str], remarks: tuple[str, ...] = ()) -> Speech:
    """Recordings of which something is said; those without a transcript are dropped and counted."""
    whole = Speech(clips, texts, speakers)
    kept = [row for row, text in enumerate(texts) if text]
    return replace(whole.take(kept), dropped=len(texts) - len(kept), remarks=remarks)


def with_all_parts(parts: Mapping[str, Speech]) -> dict[str, Speech]:
    """Train, validation and test; of what is not there, a share of the training part."""
    if "train" not in parts:
        raise DataError(f"there is no training part; there is {', '.join(sorted(parts))}: name one train")
    missing = [name for name in SPLITS if name not in parts]
    shares = {"train": 1 - VALIDATION_SHARE * len(missing), **dict.fromkeys(missing, VALIDATION_SHARE)}
    return {**parts, **(divide(parts["train"], shares) if missing else {})}


def _said(value: object, place: str) -> str:
    return "" if is_missing(value) else " ".join(text_of(value, place).split())


def _part_of(value: object, place: str) -> str:
    if str(value).strip().lower() not in PARTS:
        raise DataError(f"{place} is in the split {value!r}; accepted: {', '.join(PARTS)}")
    return PARTS[str(value).strip().lower()]
