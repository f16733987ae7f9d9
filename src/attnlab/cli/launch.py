"""Hands words to Hydra itself: its parser, its launchers, its multirun."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from unittest.mock import patch

import hydra

from attnlab.cli.compose import CONFIG_NAME, ConfigSpace, shipped
from attnlab.cli.run import run


def split_hydra(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings of the run, settings of Hydra)."""
    hydra_own = [o for o in overrides if o.lstrip("+~").startswith("hydra")]
    return [o for o in overrides if o not in hydra_own], hydra_own


def launch(overrides: Sequence[str], space: ConfigSpace, multirun: bool) -> None:
    """
    Runs Hydra over `overrides`; exceptions of a run come through as they are.

    Raises: whatever the run, the launcher or the sweeper raises.
    """
    words = ["attnlab", *(["-m"] if multirun else []), *space.search_path, *overrides]
    # Hydra would print a traceback of its own and exit; this makes it hand the exception on.
    with patch.object(sys, "argv", words), patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}):
        hydra.main(version_base="1.3", config_path=str(shipped("conf").resolve()), config_name=CONFIG_NAME)(run)()
