"""Small models, each made once and written once by transformers itself."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.interop.tiny_models import MODELS, reference

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def references() -> Callable[[str], Any]:
    """The model of each architecture, by its name; made once."""
    return functools.cache(lambda name: reference(*MODELS[name]))


@pytest.fixture(scope="session")
def saved(references: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each architecture's model, by its name; written once, and not to be changed."""

    @functools.cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        references(name).save_pretrained(path)
        return path

    return folder
