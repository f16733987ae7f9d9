"""Parts that a model completes with the widths it knows: `partial(PreNorm, norm=RMSNorm)` says which, the model says how wide."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def complete(part: Callable[..., T], **widths: Any) -> T:
    """Calls `part` (a class or a functools.partial) with those of `widths` that its constructor names and that are not already bound.

    Raises ValueError where the part needs a width that is not among them.
    """
    bound = _bound(part)
    parameters = inspect.signature(part).parameters
    given = {name: value for name, value in widths.items() if name in parameters and name not in bound}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in given
    ]
    if missing:
        raise ValueError(
            f"{_class(part).__name__} needs {', '.join(missing)}, which is not given here; given: {', '.join(widths)}"
        )
    return part(**given)


def accepts(part: Callable[..., Any], name: str) -> bool:
    """Whether the constructor of a part names this argument and the part does not bind it."""
    return name in inspect.signature(part).parameters and name not in _bound(part)


def _bound(part: Callable[..., Any]) -> dict[str, Any]:
    """The fields that a part binds; of partials within partials, the outer one's win."""
    return {**_bound(part.func), **part.keywords} if isinstance(part, partial) else {}


def _class(part: Callable[..., Any]) -> Any:
    return _class(part.func) if isinstance(part, partial) else part
