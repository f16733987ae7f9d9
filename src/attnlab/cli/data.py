"""`attnlab data list` and `attnlab data prepare`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from attnlab.cli.options import Command, add_settings


def _options(data: ArgumentParser) -> None:
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the data sets that attnlab knows")
    prepare = actions.add_parser("prepare", help="fetch and tokenise a data set")
    prepare.add_argument("name")
    add_settings(prepare)


def data(arguments: Namespace) -> int:
    """Dispatches the two."""
    return _list() if arguments.action == "list" else _prepare(arguments.name, arguments.overrides)


def _list() -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from attnlab.data import describe_sources

    table = Table(box=None, pad_edge=False)
    for heading in ("source", "what it is, its size and licence, and the choices that read it", "prepared"):
        table.add_column(heading, overflow="fold", no_wrap=" " not in heading)
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
    from attnlab.config.compose import read_yaml, shipped
    from attnlab.config.identity import targets_of

    found: dict[str, list[str]] = {}
    for path in sorted((shipped("conf") / "data").glob("*.yaml")):
        for target in dict.fromkeys(targets_of(read_yaml(path))):
            found.setdefault(target.rsplit(".", 1)[-1], []).append(path.stem)
    return found


def _prepare(name: str, overrides: list[str]) -> int:
    from attnlab.config.check import check_fields
    from attnlab.config.compose import ConfigSpace
    from attnlab.config.overrides import quoted, readable
    from attnlab.runs.build import prepare_data

    with ConfigSpace() as space:
        composed = space.compose([f"data={quoted(name)}", *readable(overrides)])
        check_fields(composed)  # the model and task of the defaults say nothing about these data
    print("\n".join(prepare_data([composed.resolved])))
    return 0


COMMANDS = {"data": Command("list the data sets, or prepare one", _options, data)}
