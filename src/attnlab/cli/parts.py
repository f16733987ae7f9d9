"""`attnlab choices`, `contract` and `data`: what there is to choose, whether a part does what its seam asks, and which
data sets there are."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from attnlab.cli.main import CONFIG_DIR, command, option, settings
from attnlab.config import UsageError, shipped

if TYPE_CHECKING:
    from attnlab.config.choices import Field
    from attnlab.config.compose import ConfigSpace


@command(
    "choices",
    "list what there is to choose: groups, the choices of one, the fields of a choice",
    option("choice", "a group, as position, or one of its choices, as position/rotary", nargs="?"),
    CONFIG_DIR,
)
def choices(arguments: Namespace) -> int:
    """Prints a table of groups, of choices, or of fields with their types and defaults. Raises: UsageError."""
    from attnlab.config.choices import check_choice, find_choice
    from attnlab.config.compose import ConfigSpace

    group, _, name = (arguments.choice or "").replace("=", "/").partition("/")
    with ConfigSpace(arguments.config_dir) as space:
        if not group:
            _print_groups(space)
            return 0
        check_choice(space, group)
        if not name and len(space.groups[group]) > 1:
            _print_choices(space, group)
            return 0
        found = find_choice(space, group, name or space.groups[group][0])
    print(f"{found.group}={found.name}: {found.about}\n{found.target}\n")
    _print_fields(found.fields)
    return 0


def _print_groups(space: ConfigSpace) -> None:
    from attnlab.config.choices import defaults, of_a_run

    default = defaults(space)
    rows = [(group, default.get(group, ""), ", ".join(names)) for group, names in space.groups.items()]
    _print_table(("group", "default", "choices"), rows)
    print("\nFields of a run that are of no group:\n")
    _print_fields(of_a_run(space))
    print("\n`attnlab choices GROUP` says what each is, `attnlab choices GROUP/NAME` has its fields.")


def _print_choices(space: ConfigSpace, group: str) -> None:
    from attnlab.config.choices import about, defaults

    default = defaults(space).get(group)
    rows = [(name + " (default)" * (name == default), about(space, group, name)) for name in space.groups[group]]
    _print_table((group, "what it is"), rows)
    print(f"\n`{group}=NAME` chooses one, `attnlab choices {group}/NAME` has its fields.")


def _print_fields(fields: Iterable[Field]) -> None:
    _print_table(("field", "type", "default", "what it is"), fields)


def _print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


@command(
    "contract",
    "check a part, such as position=my_encoding, against its contract",
    option("words", "parts, such as position=my_encoding, and their fields", nargs="+"),
    CONFIG_DIR,
)
def contract(arguments: Namespace) -> int:
    """Prints a line a property, family by family; the exit status is 1 where one does not hold. Raises: UsageError."""
    from attnlab.config.compose import ConfigSpace
    from attnlab.config.engine import instantiate
    from attnlab.config.identity import key_and_value
    from attnlab.testing import SEAMS

    status = 0
    with ConfigSpace(arguments.config_dir) as space:
        for job in space.expand(arguments.words):
            chosen = dict(map(key_and_value, job))
            if not chosen.keys() & {*SEAMS}:
                raise UsageError(f"contract needs a part, as {SEAMS[0]}=rotary; the seams are {', '.join(SEAMS)}")
            resolved = space.compose(job).resolved
            for seam in (name for name in SEAMS if name in chosen):
                status |= _check(seam, chosen[seam], instantiate(resolved[seam], seam))
    return status


def _check(seam: str, choice: str, part: object) -> int:
    from attnlab.testing import contract as checks_of

    broken = held = 0
    print(f"{seam}={choice}")
    for check in checks_of(seam, part):  # type: ignore[arg-type]
        if check.unavailable is not None:
            print(f"  -       {check.family}: not built: {check.unavailable}")
            continue
        try:
            check()
        except Exception as error:  # a part of one's own may fail in any way
            broken += 1
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"  BROKEN  {check}: {reason}")
        else:
            held += 1
            print(f"  holds   {check}")
    print(f"{seam}={choice}: {held} properties hold, {broken} are broken")
    return int(broken > 0 or held == 0)


def _actions(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the data sets that attnlab knows")
    prepare = actions.add_parser("prepare", help="fetch and tokenise a data set")
    prepare.add_argument("name")
    settings(prepare)


@command("data", "list the data sets, or prepare one", _actions)
def data(arguments: Namespace) -> int:
    """Prints the table of data sets, or what is prepared of one. Raises: UsageError."""
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
    from attnlab.config.compose import read_yaml
    from attnlab.config.identity import targets_of

    found: dict[str, list[str]] = {}
    for path in sorted((shipped("conf") / "data").glob("*.yaml")):
        for target in dict.fromkeys(targets_of(read_yaml(path))):
            found.setdefault(target.rsplit(".", 1)[-1], []).append(path.stem)
    return found


def _prepare(name: str, overrides: list[str]) -> int:
    from attnlab.config.check import check_fields
    from attnlab.config.compose import ConfigSpace
    from attnlab.config.identity import quoted, readable
    from attnlab.runs.build import prepare_data

    with ConfigSpace() as space:
        composed = space.compose([f"data={quoted(name)}", *readable(overrides)])
        check_fields(composed)  # the model and task of the defaults say nothing about these data
    print(*(module.describe() for module in prepare_data([composed.resolved]).values()), sep="\n")
    return 0
