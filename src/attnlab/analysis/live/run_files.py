"""The files of a run as a server shows them: these names in known run directories, as plain text, and nothing else."""

from __future__ import annotations

from pathlib import Path

from attnlab.analysis.reader import Run, Study
from attnlab.analysis.report.run_data import path_of
from attnlab.training.run_directory import METRICS, RUN, STATUS, NotOfTheRun, open_to_read
from attnlab.training.run_log import LOG

FILES = (RUN, STATUS, METRICS, LOG, "outputs/samples.json")
MOST_BYTES = 16_000_000


def run_at(study: Study, path: str) -> Run | None:
    """The run that stands at `path` in the study's directory; found among its runs, not on the disk."""
    return next((run for run in study.runs.values() if path_of(run) == path), None)


def files_of(run: Run) -> list[str]:
    """Which of the files are there and can be opened."""
    return [name for name in FILES if _can_be_opened(run, name)]


def _can_be_opened(run: Run, name: str) -> bool:
    try:
        open_to_read(run.directory / name, within=run.directory).close()
    except OSError:
        return False
    return True


def text_of(run: Run, name: str) -> str | None:
    """What a file holds, of a long one the end; None where the run has no such file.

    Raises:
        OSError: it is there and cannot be read.
    """
    return _end_of(run.directory, name) if name in FILES else None


def _end_of(directory: Path, name: str) -> str | None:
    try:
        with open_to_read(directory / name, within=directory) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MOST_BYTES))
            return file.read(MOST_BYTES).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError, NotOfTheRun):
        return None
