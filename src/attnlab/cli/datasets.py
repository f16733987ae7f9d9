"""`attnlab data list` and `attnlab data prepare`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnlab.cli.check import check
from attnlab.cli.compose import ConfigSpace


def data(arguments: argparse.Namespace) -> int:
    """Dispatches the two; returns the exit status."""
    return _list() if arguments.action == "list" else _prepare(arguments.name, arguments.overrides)


def _list() -> int:
    from attnlab.data import describe_sources

    table = Table(box=None, pad_edge=False)
    for heading in ("data", "what", "size", "licence", "prepared"):
        table.add_column(heading, overflow="fold")
    prepared = {True: "yes", False: "no", None: "-"}
    for row in describe_sources():
        table.add_row(*(Text(cell) for cell in (row.name, row.what, row.size, row.licence, prepared[row.is_prepared])))
    Console().print(table)
    return 0


def _prepare(name: str, overrides: list[str]) -> int:
    with ConfigSpace() as space:
        composed = space.compose([f"data={name}", *overrides])
        check(composed)
    from attnlab.cli.build import prepare_data

    for line in prepare_data([composed.config]):
        print(line)
    return 0
