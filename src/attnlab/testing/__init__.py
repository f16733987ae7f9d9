"""The contract of every seam: what a part must do in every family that takes it, for the project's tests and for yours.

```python
for check in contract("position", MyEncoding):  # or partial(MyEncoding, strength=2.0)
    check()  # raises AssertionError where the property does not hold
```

A family is a tiny model with weights that make a wrong mask or position show; each of its properties is one check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from attnlab.layers import PreNorm
from attnlab.testing.families import FAMILIES, properties

__all__ = ["SEAMS", "Check", "contract"]

SEAMS = ("position", "residual", "norm", "attention", "feed_forward", "init")


@dataclass(frozen=True)
class Check:
    """One property of one part in one family; calling it raises AssertionError, with what was found, where it fails.
    unavailable: why the family does not take the part, where it does not; then there is nothing to call.
    """

    family: str
    property: str
    run: Callable[[], None]
    unavailable: str | None = None

    def __call__(self) -> None:
        self.run()

    def __str__(self) -> str:
        return f"{self.family}: {self.property}"


def contract(seam: str, part: Callable[..., Any]) -> Iterator[Check]:
    """The checks of a part, a class or functools.partial of one, family by family. A family that refuses the part's
    dims with a ValueError gives one check that is `unavailable`. Raises ValueError for a seam that is none.
    """
    if seam not in SEAMS:
        raise ValueError(f"seam must be one of {', '.join(SEAMS)}, got {seam}")
    chosen = {"residual": partial(PreNorm, norm=part)} if seam == "norm" else {seam: part}
    for family in (kind(chosen) for kind in FAMILIES):
        try:
            family.build()
        except ValueError as error:
            yield Check(family.name, "", lambda: None, str(error))
            continue
        for words, check in properties(family).items():
            yield Check(family.name, words, check)
