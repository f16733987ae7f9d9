"""Trunks: of a study's cells that differ in `trainer.max_steps` alone, the longest makes the steps that the others
share with it, and they branch off (Hägele et al. 2024, arXiv 2405.18392, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from attnlab.config.compose import Composed
from attnlab.config.engine import instantiate
from attnlab.config.identity import identity, run_path
from attnlab.parts import build_part
from attnlab.studies.plan import Branch, Key, Plan
from attnlab.training.branching import END
from attnlab.training.branching import Branch as ToGoOnFrom
from attnlab.training.schedules import shared_steps


def branches_of(composed: Mapping[str, Composed]) -> dict[str, Branch]:
    """The branches among cells, by the cells' names. Raises: ValueError where there are none."""
    families: dict[str, list[str]] = {}
    for name, one in composed.items():
        same = {key: value for key, value in identity(one.resolved).items() if key not in (END, "seed")}
        families.setdefault(repr(sorted(same.items())), []).append(name)
    found: dict[str, Branch] = {}
    for family in families.values():
        *shorter, trunk = sorted(family, key=lambda name: _steps(composed[name]))
        for name in shorter:
            steps = _steps(composed[name])
            shared = min(steps - 1, _shared(composed[name], composed[trunk]))
            if shared < 1:
                raise ValueError(
                    f"trunk: the rates of {steps} and of {_steps(composed[trunk])} steps differ from the first one on, "
                    "so there is nothing to share; set schedule.warmup_steps, which else follows from the length"
                )
            found[name] = Branch(trunk, shared)
    if not found:
        raise ValueError(f"trunk: there must be cells that differ in {END} alone, as by a factor of that name")
    return found


def _steps(one: Composed) -> int:
    if one.get("trainer.max_epochs") is not None:
        raise ValueError("trunk: lengths must be in steps (trainer.max_steps), and trainer.max_epochs null")
    return int(one.get(END))


def _shared(one: Composed, other: Composed) -> int:
    part, width = instantiate(one.resolved["schedule"], "schedule"), int(one.get("model.d_model") or 1)
    first, second = (build_part(part, total_steps=_steps(each), d_model=width, lr=1.0) for each in (one, other))
    return shared_steps(first, second, _steps(one))


def branching(plan: Plan, runs_dir: Path, pending: Set[Key]) -> dict[str, Branch]:
    """The branches of a plan whose trunks are still to be trained, or have kept what their pending runs go on from."""

    def is_there(branch: Branch, seed: int) -> bool:
        run = runs_dir / plan.study / run_path(branch.trunk, seed)
        return (branch.trunk, seed) in pending or ToGoOnFrom(run, branch.step).checkpoint.is_file()

    seeds = {name: [seed for cell, seed in pending if cell == name] for name in plan.branches}
    return {name: one for name, one in plan.branches.items() if all(is_there(one, seed) for seed in seeds[name])}
