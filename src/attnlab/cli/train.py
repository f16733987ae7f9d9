"""`attnlab train`: one run, or with -m a multirun."""

from __future__ import annotations

import argparse

from omegaconf import OmegaConf

from attnlab.cli.check import check
from attnlab.cli.compose import ConfigSpace, Mistake
from attnlab.cli.launch import launch, split_hydra


def train(arguments: argparse.Namespace) -> int:
    """
    Checks every job of the command, then hands it to Hydra; returns the exit status.

    Raises: Mistake before anything is built or read.
    """
    own, _ = split_hydra(arguments.overrides)
    with ConfigSpace(arguments.config_dir) as space:
        jobs = space.expand(own) if arguments.multirun else [own]
        composed = [space.compose(job) for job in jobs]
        directories = [str(c.config.run_dir) for c in composed]
        if len(set(directories)) != len(directories):
            raise Mistake(
                f"these {len(jobs)} jobs would share the directory {directories[0]}: leave run_dir out and set runs_dir"
            )
        if arguments.cfg:
            print("\n".join(OmegaConf.to_yaml(c.config, resolve=True) for c in composed), end="")
            return 0
        for one in composed:
            check(one)
    from attnlab.cli.build import rehearse

    for one in composed:
        rehearse(one.config)
    launch(arguments.overrides, space, arguments.multirun)
    return 0
