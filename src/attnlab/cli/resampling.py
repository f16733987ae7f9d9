"""`--bootstrap-sentences` of `attnlab compare` and `report`: translations on resampled test sentences."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnlab.analysis import Comparison


def add_option(command: argparse.ArgumentParser) -> None:
    """Adds the option."""
    command.add_argument(
        "--bootstrap-sentences",
        action="store_true",
        help="translations: BLEU and chrF against the baseline on resampled test sentences, by sacreBLEU; takes seconds a run",
    )


def resampled(comparison: Comparison, wanted: bool) -> Comparison:
    """The comparison, with what resampled sentences say where that is wanted. Raises: Mistake where there are no translations."""
    from attnlab.analysis import with_resampled_sentences
    from attnlab.cli.compose import Mistake  # with it comes Hydra, which the words of a command can be read without

    try:
        return with_resampled_sentences(comparison) if wanted else comparison
    except ValueError as error:
        raise Mistake(f"--bootstrap-sentences: {error}") from error
