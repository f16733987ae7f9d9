"""`attnlab data list` and `attnlab data prepare`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnlab.cli.check import check_fields
from attnlab.cli.compose import ConfigSpace, read_yaml, shipped, targets_of
from attnlab.cli.overrides import quoted, readable


def data(arguments: argparse.Namespace) -> int:
    """Dispatches the two; returns the exit status."""
    return _list() if arguments.action == "list" else _prepare(arguments.name, arguments.overrides)


def _list() -> int:
    from attnlab.data import describe_sources

    table = Table(box=None, pad_edge=False)
    for heading, stays in (
        ("source", True),
        ("what it is, its size and licence, and the choices that read it", False),
        ("prepared", True),
    ):
        table.add_column(heading, overflow="fold", no_wrap=stays)
    prepared = {True: "yes", False: "no", None: "-"}
    choices, kind = choices_of_sources(), ""
    for row in describe_sources():
        if row.kind != kind:
            kind = row.kind
            table.add_row(Text(kind, style="bold"))
        names = ", ".join(choices.get(row.class_name, ["(no choice reads it)"]))
        about = f"{row.what}\nsize: {row.size}; licence: {row.licence}\ndata={names}"
        table.add_row(*map(Text, (f"  {row.name}", about, prepared[row.is_prepared])))
    Console().print(table)
    return 0


def choices_of_sources() -> dict[str, list[str]]:
    """The choices of the group data that read each source, by its class."""
    found: dict[str, list[str]] = {}
    for path in sorted((shipped("conf") / "data").glob("*.yaml")):
        for target in dict.fromkeys(targets_of(read_yaml(path))):
            found.setdefault(target.rsplit(".", 1)[-1], []).append(path.stem)
    return found


def _prepare(name: str, overrides: list[str]) -> int:
    with ConfigSpace() as space:
        composed = space.compose([f"data={quoted(name)}", *readable(overrides)])
        check_fields(composed)  # the model and task of the defaults say nothing about these data
    from attnlab.cli.build import prepare_data

    for line in prepare_data([composed.config]):
        print(line)
    return 0
