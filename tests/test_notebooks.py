"""The notebooks of docs/ run from their first cell to their last on a study that is there, and are kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
TEXT = "And God said, Let there be light: and there was light.\n" * 300


def cells_of(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def shown(value: object) -> object:
    """What a notebook shows of what a cell ends with: HTML before a picture, a picture before text."""
    for name in ("_repr_html_", "_repr_png_"):
        if hasattr(value, name) and (found := getattr(value, name)()):
            return found
    return repr(value)


def run_cells(path: Path) -> list[object]:
    """Runs the cells in order in one namespace; what each shows that ends with an expression."""
    names: dict[str, object] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(cells_of(path, "code")):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}[{number}]", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"{path.name}[{number}]", "eval"), names)
            found.append(None if value is None else shown(value))
    return found


@pytest.fixture
def trained(study, attnlab, here, tiny):
    """The study position_length, tiny, where `runs = "runs"` finds it."""
    (here / "text.txt").write_text(TEXT)
    own = [f"data.path={here / 'text.txt'}" if word.startswith("data.path") else word for word in tiny]
    study(
        "position_length",
        shared=own,
        factors={"position": ["sinusoidal", "alibi"]},
        baseline={"position": "sinusoidal"},
    )
    assert attnlab("sweep", "position_length", "hydra/launcher=basic").status == 0
    return here


def test_there_are_notebooks_without_outputs_of_plain_cells():
    assert [path.name for path in NOTEBOOKS] == ["attention.ipynb", "study.ipynb"]
    for path in NOTEBOOKS:
        whole = json.loads(path.read_text(encoding="utf-8"))
        assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
        assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells_of(path, "code"))
        assert 'runs = "runs"' in "".join(cells_of(path, "code")[0]["source"])
        assert path.stat().st_size < 10_000


@pytest.mark.slow
def test_they_run_from_first_to_last(trained, capfd):
    shows = {path.name: run_cells(path) for path in NOTEBOOKS}
    said = capfd.readouterr().out
    assert "And God said" in said  # generated
    assert "val/loss, lower is better" in said  # the comparison in text
    study, attention = shows["study.ipynb"], shows["attention.ipynb"]
    assert study[0].startswith("Study('runs/position_length': 2 cells x 2 seeds; runs: 4 finished")
    assert sum(isinstance(one, bytes) and one.startswith(b"\x89PNG") for one in study) == 3
    assert sum(isinstance(one, str) and '<table class="figures">' in one for one in study) == 1
    assert sum(isinstance(one, str) and one.startswith("<iframe srcdoc=") for one in attention) == 1
    assert {path.name for path in trained.iterdir()} >= {"lengths.pdf", "head.pdf", "report.html"}
