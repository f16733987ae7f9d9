"""Compares two files of numbers; prints every difference and a summary, and ends with 1 where there is a difference."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Columns = Mapping[str, list[str]]
WORDS = "words"  # of a column whose text may change


@dataclass
class Compared:
    """What was found. notes: other names of equal numbers, and other words."""

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    equal: int = 0

    def columns(self, place: str, old: Columns, new: Columns, renames: Mapping[str, str]) -> None:
        """Columns by their names; those whose name one side has alone by their values, in their order."""
        gone = [name for name in old if name not in new]
        come = [name for name in new if name not in old]
        for name in gone:
            known = [other for other in come if renamed(name, renames) == other]
            same = known or [other for other in come if new[other] == old[name]]
            if not same:
                self.differences.append(f"{place}: {name} is gone ({shown(old[name])})")
                continue
            come.remove(same[0])
            if not known:
                self.notes.append(f"{place}: {name} is now called {same[0]}")
            self.values(f"{place}: {name}", old[name], new[same[0]])
        self.differences += [f"{place}: {name} is new ({shown(new[name])})" for name in come]
        for name in old:
            if name in new:
                self.values(f"{place}: {name}", old[name], new[name])

    def values(self, place: str, old: list[str], new: list[str]) -> None:
        """One column."""
        if old == new:
            self.equal += len(old)
            return
        found = self.notes if place.endswith(WORDS) else self.differences
        wrong = [row for row, both in enumerate(zip(old, new, strict=False)) if both[0] != both[1]]
        counts = f"{len(wrong)} of {len(old)} differ" + (
            f", and there are {len(new)} now" if len(old) != len(new) else ""
        )
        first = f"; the first, number {wrong[0] + 1}: {told(old[wrong[0]])} -> {told(new[wrong[0]])}" if wrong else ""
        found.append(f"{place}: {counts}{first}")
        self.equal += max(0, len(old) - len(wrong))


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """A name in which each part that the table knows is replaced, the whole one first."""
    if name in renames:
        return renames[name]
    for old, new in renames.items():
        name = name.replace(old, new)
    return name


def told(value: str) -> str:
    """A value, and as a decimal where its last word is a float in hexadecimal."""
    *_, last = value.split(" ")
    try:
        return f"{value} ({float.fromhex(last):.9g})" if "0x" in last else value
    except ValueError:
        return value


def shown(values: list[str]) -> str:
    return f"{len(values)} values, the first {told(values[0])}" if values else "no value"


def compare(old: Mapping[str, Any], new: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Compared]:
    """What was found, by part; a part or item that was measured on one side alone is a difference."""
    found: dict[str, Compared] = {}
    for part in [*old["parts"], *(part for part in new["parts"] if part not in old["parts"])]:
        both = [side["parts"].get(part, {}) for side in (old, new)]
        found[part] = Compared()
        for item in [*both[0], *(item for item in both[1] if item not in both[0])]:
            if item in both[0] and item in both[1]:
                found[part].columns(f"{part}, {item}", both[0][item], both[1][item], renames)
            else:
                found[part].differences.append(
                    f"{part}, {item}: measured on the {'old' if item in both[0] else 'new'} side alone"
                )
    return found


def main() -> int:
    """Prints what differs; 1 where something does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--renames", type=Path, help="a JSON file {old: new} of metrics, fields and facts that have other names now"
    )
    parser.add_argument("--only", action="append", help="a part; give it several times for several")
    arguments = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (arguments.old, arguments.new))
    renames = json.loads(arguments.renames.read_text()) if arguments.renames else {}
    if arguments.only:
        for side in (old, new):
            side["parts"] = {part: found for part, found in side["parts"].items() if part in arguments.only}
    machines = {key: (old["machine"].get(key), new["machine"].get(key)) for key in {**old["machine"], **new["machine"]}}
    for key, both in machines.items():
        if both[0] != both[1]:
            print(f"not comparable? {key}: {both[0]} -> {both[1]}")
    found = compare(old, new, renames)
    for compared in found.values():
        print(
            "".join(f"note: {line}\n" for line in compared.notes)
            + "".join(f"{line}\n" for line in compared.differences),
            end="",
        )
    for part, compared in found.items():
        counts = f"{compared.equal:,} values are equal, {len(compared.differences):,} differences"
        print(f"{part}: {len(old['parts'].get(part, {}))} items, {counts}, {len(compared.notes):,} notes")
    return int(any(compared.differences for compared in found.values()) or not found)


if __name__ == "__main__":
    sys.exit(main())
