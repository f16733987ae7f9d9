"""The rooms of the house: imports run downwards only, none go in circles, and Hydra stays where configurations are composed."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import attnlab

PACKAGE = Path(attnlab.__file__).parent
# From the top: a room imports from those below its line alone, and none from another on its own line.
ORDER = (
    ("cli", "notebook"),
    ("report",),
    ("studies",),
    ("runs",),
    ("analysis", "inspection", "testing"),
    ("config", "tasks"),
    ("training", "data", "generation", "interop"),
    ("models",),
    ("layers",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Views and what they show read run directories and models, without what composed, trained or launched them.
NEVER = {(room, other) for room in ("report", "analysis", "inspection") for other in ("config", "runs", "studies")}
HYDRA = ("hydra", "omegaconf")
MAY_USE_HYDRA = ("config", "cli")


def modules() -> dict[str, Path]:
    """{name below attnlab: file} of every module; a package is its __init__."""
    found = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix("__init__").rstrip("."): path for path, parts in found.items()}


@cache
def imported(path: Path) -> set[str]:
    """Every name that a module imports, wherever it does so: at its top, in a function, for a type checker alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def graph() -> dict[str, set[str]]:
    """{module: the modules that it imports}; `from attnlab.a import b` is an import of attnlab.a.b where that is a module."""
    known = modules()

    def target(name: str) -> str:
        while name not in known:
            name = name.rpartition(".")[0]
        return name

    ours = {
        module: {name.removeprefix("attnlab").lstrip(".") for name in imported(path) if name.split(".")[0] == "attnlab"}
        for module, path in known.items()
    }
    return {module: {target(name) for name in names} - {module} for module, names in ours.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that import one another, directly or through others (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            circle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            found.append(sorted(circle))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return [circle for circle in found if len(circle) > 1]


def room_of(module: str) -> str:
    return module.partition(".")[0]


def upward(edges: dict[str, set[str]]) -> dict[tuple[str, str], list[str]]:
    """{(room, room that it may not import): the imports}."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, others in edges.items():
        for other in others:
            pair = room_of(module), room_of(other)
            if pair[0] == pair[1] or not {*pair} <= LEVEL.keys():
                continue
            if LEVEL[pair[0]] >= LEVEL[pair[1]] or pair in NEVER:
                found.setdefault(pair, []).append(f"{module} imports {other}")
    return found


def of_hydra(files: dict[str, Path]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for module, path in files.items():
        libraries = {name.split(".")[0] for name in imported(path)} & {*HYDRA}
        for library in libraries if room_of(module) not in MAY_USE_HYDRA else ():
            found.setdefault((room_of(module), library), []).append(f"{module} imports {library}")
    return found


def test_every_room_stands_in_the_order():
    assert {room_of(module) for module in modules() if "." in module} <= LEVEL.keys()


def test_imports_run_downwards_and_hydra_is_for_composing():
    found = upward(graph()) | of_hydra(modules())
    assert not sorted(line for lines in found.values() for line in lines)


def test_no_module_imports_itself_through_others():
    edges = graph()
    edges[""] = set()  # the public names, which attnlab/__init__ loads at their first use
    assert circles(edges) == []


def test_the_graph_sees_what_it_is_drawn_for(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import attnlab.b\ndef f():\n    from attnlab.c import d\nif TYPE_CHECKING:\n    import omegaconf as o"
    )
    assert imported(file) == {"attnlab.b", "attnlab.c.d", "omegaconf"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert upward({"layers.a": {"models.b"}, "models.b": {"layers.a", "ranges"}}) == {
        ("layers", "models"): ["layers.a imports models.b"]
    }
    assert of_hydra({"data.x": file, "cli.x": file}) == {("data", "omegaconf"): ["data.x imports omegaconf"]}
