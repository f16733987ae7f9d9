"""`attnlab train`: one run, or with -m a multirun or a search."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from attnlab.cli.options import Command, add_config_dir, add_settings


def _options(train: ArgumentParser) -> None:
    train.add_argument("-m", "--multirun", action="store_true", help="every combination of comma-separated choices")
    add_config_dir(train)
    train.add_argument("--cfg", action="store_true", help="print what would be run, and run nothing")
    add_settings(train)


def train(arguments: Namespace) -> int:
    """Trains; see `attnlab.studies.jobs`. Raises: UsageError before anything is built or read."""
    from attnlab.studies.jobs import train

    return train(arguments.overrides, arguments.config_dir, arguments.multirun, arguments.cfg)


COMMANDS = {"train": Command("train one run, or with -m a multirun: every combination of choices", _options, train)}
