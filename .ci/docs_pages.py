"""The pages of the documentation that follow from the code, made while the site is built (MkDocs' hooks): every choice
with its formula, source, fields and picture, every command, the library, the notebooks, and what pages link to outside
of docs/: the READMEs of studies, their pictures, and files as they are."""

from __future__ import annotations

import importlib
import inspect
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS, ELSEWHERE = ROOT / "docs", "repository"
sys.path.insert(0, str(ROOT / ".ci"))
from docs_pictures import picture  # noqa: E402

from attnlab.config import choices as read  # noqa: E402
from attnlab.config.compose import ConfigSpace  # noqa: E402

LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
PICTURES = (".png", ".svg", ".jpg")
LIBRARY = {  # the rooms that are a library for others, with what stands at the head of the page of each
    "attnlab.layers": "The parts of Transformers, in torch alone.",
    "attnlab.models": "Models made of them.",
    "attnlab.generation": "Decoding: greedy, beams, sampling, transcription.",
    "attnlab.data": "Sources, tokenizers and batches.",
    "attnlab.tasks": "What models are trained for.",
    "attnlab.training": "Optimizers, schedules, losses, loggers, checkpoints, run directories.",
    "attnlab.interop": "Weights of other libraries, in and out.",
    "attnlab.analysis": "Studies read, compared and written as tables.",
    "attnlab.testing": "The contract of every seam.",
    "attnlab": "What `import attnlab` gives.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what follows from the code, then what all pages link to."""
    pages = {"choices": choices(), "library": library()}
    for uri, content in {**pages["choices"], **pages["library"], "commands.md": commands(), **notebooks()}.items():
        files.append(File.generated(config, uri, content=content))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
    texts = {file.src_uri: file.content_string for file in files if file.src_uri.endswith(".md")}
    for path in sorted(linked(texts)):
        files.append(File.generated(config, uri_of(path), content=as_page(path), inclusion=InclusionLevel.NOT_IN_NAV))
    pages["gallery"] = {file.src_uri: "" for file in files if file.src_uri.startswith("gallery/")}
    fill(config.nav, {name: [uri for uri in made if uri.endswith(".md")] for name, made in pages.items()})
    return files


def fill(nav: list, folders: dict[str, list[str]]) -> None:
    """Names the pages of a folder where the navigation names the folder."""
    for entry in nav:
        for title, inside in entry.items():
            if isinstance(inside, list):
                fill(inside, folders)
            elif inside.rstrip("/") in folders:
                entry[title] = sorted(folders[inside.rstrip("/")], key=lambda uri: not uri.endswith("index.md"))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a file of the repository leads to its page here."""
    here = origin(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        path = target(here, link[2])
        if path is None:
            return link[0]
        return link[1] + posixpath.relpath(uri_of(path), posixpath.dirname(page.file.src_uri) or ".") + link[3]

    return LINK.sub(led, markdown)


# --- what stands elsewhere in the repository


def origin(uri: str) -> Path:
    """The file of the repository that a page shows."""
    inside = uri.removeprefix(f"{ELSEWHERE}/")
    return (ROOT if inside != uri else DOCS) / inside


def target(here: Path, link: str) -> Path | None:
    """The file outside of docs/ (or the README in it) that a link leads to; None for any other."""
    path = (here.parent / link).resolve()
    if ":" in link or link.startswith("/") or not path.is_relative_to(ROOT):
        return None
    path = path / "README.md" if path.is_dir() else path
    outside = not path.is_relative_to(DOCS) or not here.is_relative_to(DOCS) or path.suffix == ".ipynb"
    return path if path.is_file() and outside else None


def uri_of(path: Path) -> str:
    """Where a file of the repository is shown."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).with_suffix(".md").as_posix()
    uri = f"{ELSEWHERE}/{path.relative_to(ROOT).as_posix().lstrip('.')}"  # what begins with a dot is left out of a site
    return uri if path.suffix in (".md", *PICTURES) else f"{uri}.md"


def as_page(path: Path) -> str | bytes:
    if path.suffix in PICTURES:
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    language = path.suffix.lstrip(".").replace("py", "python")
    return text if path.suffix == ".md" else f"# {path.relative_to(ROOT)}\n\n````{language}\n{text}````\n"


def linked(texts: dict[str, str]) -> set[Path]:
    """What pages link to outside of docs/, and what that links to in turn."""
    found: set[Path] = set()
    waiting = [(origin(uri), text) for uri, text in texts.items()]
    while waiting:
        here, text = waiting.pop()
        paths = {target(here, link[2]) for link in LINK.finditer(text)} - found - {None}
        new = {path for path in paths if path and not path.is_relative_to(DOCS)}
        found |= new
        waiting += [(path, path.read_text(encoding="utf-8")) for path in new if path.suffix == ".md"]
    return found


# --- what follows from the code


def choices() -> dict[str, str | bytes]:
    """A page a group, with every choice of it."""
    with ConfigSpace([]) as space:
        return _choices(space)


def _choices(space: ConfigSpace) -> dict[str, str | bytes]:
    defaults = read.defaults(space)
    pages: dict[str, str | bytes] = {}
    lines = ["# Choices", "", "One page a config group; `attnlab choices GROUP/NAME` says the same in a terminal.", ""]
    for group, names in space.groups.items():
        lines.append(f"- [`{group}`]({group}.md): {', '.join(f'[{name}]({group}.md#{name})' for name in names)}")
        page = [f"# {group}", ""]
        for name in names:
            choice = read.find_choice(space, group, name)
            page += [
                f"## {name} {{ #{name} }}",
                "",
                choice.about + (" (default)" if defaults.get(group) == name else ""),
            ]
            page += ["", *of_class(choice.target)]
            if drawn := picture(group, name, space.compose([f"{group}={name}"]).raw.get(group, {})):
                pages[f"choices/{group}-{name}.svg"] = drawn
                page += [f"![{group}={name}: formula and picture]({group}-{name}.svg)", ""]
            page += [*table_of(choice.fields), ""]
        pages[f"choices/{group}.md"] = "\n".join(page)
    lines += ["", "## Fields of a run", "", *table_of(read.of_a_run(space))]
    return {**pages, "choices/index.md": "\n".join(lines)}


def of_class(name: str) -> list[str]:
    """What the class of a choice says of itself."""
    if not name:
        return []
    home, _, last = name.rpartition(".")
    said = inspect.getdoc(getattr(importlib.import_module(home), last)) or ""
    return [*(f"> {line}" for line in said.splitlines()), "", f"Class: `{name}`", ""]


def table_of(fields: list) -> list[str]:
    if not fields:
        return ["It has no fields."]
    rows = [(f"`{f.name}`", f.kind, f"`{f.default}`", f.about) for f in fields]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| field | type | default | what it does |", "|---|---|---|---|", *body]


def commands() -> str:
    """Every command with its words, as its own help says them."""
    import argparse

    from attnlab.cli.main import parser

    def help_of(one: argparse.ArgumentParser) -> str:
        one.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
        return f"```text\n{one.format_help()}```\n"

    whole = parser()
    (subs,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    pages = [f"## attnlab {name} {{ #{name} }}\n\n{help_of(one)}" for name, one in subs.choices.items()]
    return "\n".join(["# Commands", "", help_of(whole), *pages])


def library() -> dict[str, str]:
    """A page a room, with all of its public names. Raises: ValueError for one without a docstring."""
    shown: dict[str, str] = {}  # by what it is of
    pages, lines = (
        {},
        ["# Library", "", "Everything but the commands takes plain arguments, and works without Hydra.", ""],
    )
    for room, about in LIBRARY.items():
        module = importlib.import_module(room)
        page = [f"# {room}", "", about, ""]
        for name in module.__all__:
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            if not thing.__doc__:
                raise ValueError(f"{room}.{name} has no docstring")
            full = f"{thing.__module__}.{thing.__qualname__}"
            page += [f"- [`{name}`]({shown[full]}.md#{full})" if full in shown else f"::: {full}", ""]
            shown.setdefault(full, room)
        pages[f"library/{room}.md"] = "\n".join(page)
        lines.append(f"- [`{room}`]({room}.md): {about}")
    return {**pages, "library/index.md": "\n".join(lines)}


def notebooks() -> dict[str, str]:
    """The notebooks, read."""

    def cells(path: Path) -> Iterator[str]:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"

    return {f"notebooks/{path.stem}.md": "\n\n".join(cells(path)) for path in (DOCS / "notebooks").glob("*.ipynb")}
