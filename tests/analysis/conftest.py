"""Synthetic studies, written once for all tests that only read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from studies import write_grid_study, write_position_study

from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.reader import read_study


@pytest.fixture(scope="session")
def position(tmp_path_factory) -> Comparison:
    """The comparison of the synthetic study of position encodings."""
    return compare(read_study(write_position_study(tmp_path_factory.mktemp("runs") / "position_length")))


@pytest.fixture(scope="session")
def grid_comparison(tmp_path_factory) -> Comparison:
    """The comparison of the synthetic residual x depth x rate x warm-up grid."""
    return compare(read_study(write_grid_study(tmp_path_factory.mktemp("runs") / "norm_warmup")))
