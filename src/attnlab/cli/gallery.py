"""`attnlab gallery`: published effects, each reproduced by one command, and the pages of what came out."""

from __future__ import annotations

import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.main import CONFIG_DIR, command, flag, option
from attnlab.config import UsageError

if TYPE_CHECKING:
    from attnlab.analysis import Comparison
    from attnlab.training.published import Published


@command(
    "gallery",
    "list the studies that reproduce a published effect; run one or all of them, and write their pages",
    option("study", "the study to run (default: list them all)", nargs="?"),
    flag("--all", "run what is missing of all, one after the other; one that fails does not stop the others"),
    flag("--pages", "write the pages of what has run, and train nothing"),
    option("--to", "the folder of the pages (default: gallery in the runs' directory)", metavar="FOLDER"),
    CONFIG_DIR,
    option("overrides", "settings that change nothing a run computes: runs_dir=DIR, hydra/launcher=NAME", nargs="*"),
)
def gallery(arguments: Namespace) -> int:
    """Lists, runs or writes. Returns exit status 1 when a run failed. Raises: UsageError before anything is run."""
    from attnlab.studies.gallery import gallery as all_of_it
    from attnlab.studies.gallery import of_gallery, refuse_changes

    study, overrides = arguments.study, arguments.overrides
    if "=" in (study or "") and not Path(study).exists():  # a setting, where no study was named
        study, overrides = None, [study, *overrides]
    if study and arguments.all:
        raise UsageError(f"--all runs every study, and {study} is named; leave one of them out")
    refuse_changes(study or "STUDY", overrides)
    known = all_of_it()
    one = _Gallery({**known, **({study: of_gallery(study, known)} if study else {})}, overrides, arguments.to)
    names = [study] if study else list(known)
    if arguments.pages:
        return one.write(names)
    if arguments.all:
        return one.run_all(names, arguments.config_dir)
    return one.run(names[0], arguments.config_dir) if study else one.show(names)


@dataclass(frozen=True)
class _Gallery:
    """The studies, the settings that were given, and the folder of the pages, where one is named."""

    known: Mapping[str, Published]
    overrides: Sequence[str]
    to: str | None

    @property
    def runs_dir(self) -> Path:
        from attnlab.config.identity import key_and_text

        return Path(dict(key_and_text(word) for word in self.overrides if "=" in word).get("runs_dir", "runs"))

    @property
    def pages(self) -> Path:
        return Path(self.to) if self.to else self.runs_dir / "gallery"

    def show(self, names: Sequence[str]) -> int:
        """Prints the studies with what came out here, each with its effect below."""
        from rich.console import Console

        from attnlab.analysis.table import plain
        from attnlab.report.gallery import NOT_RUN

        console, widest = Console(), max(map(len, names), default=0)
        for name in names:
            published, said = self.known[name], self.said(name)
            here = ", ".join([f"{said[0]} runs", *filter(None, said[1:])]) if said else NOT_RUN
            console.print(f"[bold]{name:{widest}}[/bold]  {published.minutes:>3g} min  {plain(here)}", highlight=False)
            about = f"{published.effect}. {published.source}"
            for line in textwrap.wrap(about, console.width, initial_indent="  ", subsequent_indent="  "):
                console.print(f"[dim]{plain(line)}[/dim]", highlight=False)
        print("attnlab gallery NAME runs one, attnlab gallery --all all of them; minutes: expected on 2 cores")
        return 0

    def said(self, name: str) -> list[str]:
        """How many runs have finished, which claims are met, and what becomes of the effects with size; [] without
        runs."""
        from attnlab.report.gallery import Outcome

        if (comparison := _compared(self.runs_dir / _name(name), self.known[name])) is None:
            return []
        finished = f"{comparison.states.get('finished', 0)} of {len(comparison.study.runs)}"
        outcome = Outcome.of(comparison)
        return [finished, f"{outcome.verdict} ({outcome.here})", outcome.size]

    def run(self, study: str, config_dirs: list[str]) -> int:
        """Runs what is missing of a study, and writes its page and the index."""
        from attnlab.cli.train import sweep

        words = {"study": study, "overrides": [*self.overrides], "config_dir": config_dirs}
        status = sweep(Namespace(**words, detach=False, cfg=False, dry_run=False))
        self.write([study])
        return status

    def run_all(self, names: Sequence[str], config_dirs: Sequence[str]) -> int:
        """Runs every study in a process of its own, and says at the end how each ended."""
        from rich.console import Console

        from attnlab.analysis.table import Entry, Table
        from attnlab.studies.gallery import run_all
        from attnlab.studies.monitor import duration

        folders = [word for folder in config_dirs for word in ("--config-dir", folder)]
        ended = run_all(names, ["--to", str(self.pages), *folders, *self.overrides])
        rows = []
        for one in ended:
            how = Entry(f"ended with {one.status}", mood="worse") if one.status else "all runs are over"
            rows.append([one.name, how, duration(one.seconds), *(self.said(one.name) or ["", "", ""])])
        headings = ["study", "", "time", "runs", "here", "with size"]
        Console().print(Table(headings, rows, align="llrlll").to_rich(), highlight=False)
        if failed := [one.name for one in ended if one.status]:
            print(f"attnlab: not over: {', '.join(failed)}; the same command runs what is left", file=sys.stderr)
        return int(any(one.status for one in ended))

    def write(self, studies: Sequence[str]) -> int:
        """Writes the pages of the studies that have run, and the index."""
        from attnlab.report.gallery import write_index, write_page
        from attnlab.studies.gallery import gallery, other_settings

        for study in studies:
            comparison = _compared(self.runs_dir / _name(study), self.known[study])
            if comparison is None:
                continue
            if others := other_settings(study, comparison.study.shared):
                print(
                    f"attnlab: no page of {study}: its runs and its study.yaml differ in {' '.join(others)}",
                    file=sys.stderr,
                )
                continue
            print(*write_page(comparison, self.pages, self._about(study)), sep="\n")
        print(write_index(gallery(), self.pages))
        return 0

    def _about(self, study: str) -> str:
        """A link to what the study's README says, where the pages stand in the same repository."""
        from attnlab.studies.plan import find_study

        readme, pages = find_study(study).with_name("README.md"), self.pages.resolve()
        if not readme.is_file() or not pages.is_relative_to(readme.parents[2]):
            return ""
        return f"Its configuration and what was known before: [{readme.parent.name}]({os.path.relpath(readme, pages)})."


def _name(study: str) -> str:
    """The name of a study that is given by its name, folder or file."""
    from attnlab.studies.plan import find_study

    return find_study(study).parent.name


def _compared(folder: Path, published: Published) -> Comparison | None:
    """The comparison of what has run of a study; None where nothing has."""
    from attnlab.analysis import compare, load_study, parts_of_study
    from attnlab.studies.plan import has_runs

    if not has_runs(folder):
        return None
    study = load_study(folder)
    return compare(parts_of_study(replace(study, published=study.published or published))[0])
