"""Every measuring script of the experiments still finds what it uses."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "experiments").glob("*/*.py"))


@pytest.mark.parametrize("path", [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in SCRIPTS])
def test_a_script_can_be_loaded(path, monkeypatch):
    name = f"experiment_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # its dataclasses look themselves up there
    monkeypatch.syspath_prepend(path.parent)  # scripts of one folder may use one another
    spec.loader.exec_module(module)
    assert callable(getattr(module, "main", None)) or "__main__" not in path.read_text()
