"""`attnlab contract`: whether a part, attnlab's or one's own, does what every part of its seam must do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from attnlab.cli.options import Command, add_config_dir
from attnlab.config import UsageError


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", help="parts, such as position=my_encoding, and their fields")
    add_config_dir(parser)


def contract(arguments: Namespace) -> int:
    """Prints a line a property, family by family; the exit status is 1 where one does not hold. Raises: UsageError."""
    from attnlab.config.compose import ConfigSpace
    from attnlab.config.engine import instantiate
    from attnlab.config.overrides import key_and_value
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


COMMANDS = {"contract": Command("check a part, such as position=my_encoding, against its contract", _options, contract)}
