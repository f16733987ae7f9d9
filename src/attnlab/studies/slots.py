"""The slots of this machine: how many runs of a launch train at once, on which of its GPUs each, with how many threads.

Without GPUs, or for runs that use none, slots are cores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from joblib import cpu_count

from attnlab.config import UsageError
from attnlab.ranges import must_be

VISIBLE = "CUDA_VISIBLE_DEVICES"  # read by CUDA when it is initialised: a process sees these GPUs alone


def gpus() -> list[str]:
    """The GPUs that this process may use, by names that CUDA_VISIBLE_DEVICES takes: numbers, UUIDs, instances."""
    import torch

    found, given = torch.cuda.device_count(), os.environ.get(VISIBLE)
    if given is None:
        return [str(number) for number in range(found)]
    names = [name.strip() for name in given.split(",")]
    # A process can use one instance of a GPU that is parted (MIG), however many are named; another process another.
    return names if found and names[0].startswith("MIG-") else names[:found]


def gpus_of(trainer: Mapping[str, object]) -> int:
    """How many GPUs of this machine a run takes, by the fields of its trainer."""
    return int(str(trainer["devices"])) if trainer["device"] in ("auto", "cuda") and gpus() else 0


class Slots:
    """Room for `runs`, each of which takes so many GPUs: several runs share a GPU, a run has each of its own once.

    n_jobs: as many runs at once as somebody asked for; -1: as many as there are slots; -2: one less.
    runs_per_device: that share a GPU; more where n_jobs asks for more. Raises: UsageError where a run takes more GPUs
    than there are.
    """

    def __init__(self, runs: Sequence[int], n_jobs: int = -1, runs_per_device: int = 1) -> None:
        names, most, least = gpus() if any(runs) else [], max(runs), min(filter(None, runs), default=0)
        if most > len(names):
            wanted = f"at most {len(names)}, as many GPUs as this machine has"
            raise UsageError(must_be("trainer.devices", wanted, most))
        cores: int = cpu_count()
        slots = len(names) * runs_per_device // least if least else cores
        self.at_once = min(len(runs), n_jobs if n_jobs > 0 else max(1, slots + 1 + n_jobs))
        self.threads = max(1, cores // (self.at_once * max(1, least)))
        share = max(runs_per_device, math.ceil(self.at_once * least / len(names))) if names else 0
        self._free = dict.fromkeys(names, share)
        self._described = (
            _in_words(least, most, min(share, math.ceil(self.at_once * most / len(names)))) if names else ""
        )

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} each"
        runs = f"{self.at_once} run{'s' if self.at_once > 1 else ''} at once"
        return ", ".join(filter(None, [runs, self._described, threads]))

    def has(self, number: int) -> bool:
        """Whether so many GPUs have room for a run now."""
        return sum(free > 0 for free in self._free.values()) >= number

    def take(self, number: int) -> tuple[str, ...]:
        """Takes room on so many GPUs, on those that have most, and returns their names."""
        assert self.has(number)
        roomy = sorted(self._free, key=self._free.__getitem__, reverse=True)[:number]
        taken = tuple(name for name in self._free if name in roomy)
        for name in taken:
            self._free[name] -= 1
        return taken

    def give_back(self, taken: Sequence[str]) -> None:
        """Leaves what `take` gave to others."""
        for name in taken:
            self._free[name] += 1


def _in_words(least: int, most: int, share: int) -> str:
    if most > 1:
        each = f"{most} GPUs each" if least == most else f"{least} to {most} GPUs each"
        return each if share == 1 else f"{each}, up to {share} runs a GPU"
    return "one a GPU" if share == 1 else f"up to {share} a GPU"
