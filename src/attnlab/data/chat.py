"""Chat templates: a conversation as the text that a model was trained to go on with, in the Jinja that Hugging Face's files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attnlab.data.cache import DataError


def render(template: str | None, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
    """
    The text of a conversation, up to where the answer begins.

    special: texts of special tokens by name, which templates write (bos_token, eos_token). Raises DataError where there is no
    template, and where it is wrong or refuses the messages.
    """
    from jinja2 import TemplateError

    if template is None:
        raise DataError(
            "the tokenizer has no chat template (chat_template.jinja); its model was not trained to answer messages"
        )
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **special}
    try:
        return _environment().from_string(template).render(messages=list(messages), **given)
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template does not take these messages: {error}") from error


def _environment() -> Any:
    """What templates are written for: no access to Python, blocks that leave no lines, and three functions more."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the model says, for those who train on it; here it is text like any other."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
