"""What of a study a scaling law may be fitted to: finished runs with size, data and loss; what speaks against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from typing import NamedTuple

from attnlab.analysis.reader import Run, Study
from attnlab.analysis.scaling.fit import OPERATIONS
from attnlab.training.study_fields import ENDS, is_finite
from attnlab.training.targets import target_of

MIN_SIZES, MIN_BUDGETS = 5, 3
COUNTS = ("non_embedding", "total")
SAME = 0.02  # tokens that differ by less than this share are one budget

# A larger model, or more data, may go with these.
SIZE = ("model.d_model", "model.num_layers", "model.num_heads", "model.num_kv_heads", "model.d_ff", "*.num_heads")
BUDGET = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.accumulate_grad_batches",
    "trainer.devices",
    "trainer.num_nodes",
    "data.batch_size",
)
TUNED = ("optimizer.lr", "optimizer.weight_decay", "optimizer.betas", "schedule.*_steps", "init.*", "model.init.*")
# These change no loss: names, places, seeds, how often one looks.
IDENTITY = (
    *("seed", "*.seed", "cell", "study.*", "run_dir", "runs_dir", "progress", "logger.*", "data.cache"),
    *("trainer.threads", "trainer.val_check_interval", "trainer.diagnostics_every", "*.log_every_n_steps"),
    *("trainer.checkpoint_*", "trainer.plateau_share", "trainer.precision", "trainer.device", "trainer.strategy"),
)
MEASURED = ("data", "tokenizer", "task", "augmentation")  # what these differ in, losses cannot be compared over


@dataclass(frozen=True)
class Trained:
    """One finished run: `parameters` by count (those that a token meets, where it has experts that it does not),
    `tokens` trained on, loss, and measured floating-point operations."""

    cell: str
    seed: int
    parameters: dict[str, int]
    tokens: float
    loss: float
    operations: float
    epochs: float

    def six_ND(self, count: str) -> float:
        return OPERATIONS * self.parameters[count] * self.tokens


class Usable(NamedTuple):
    """The runs to fit, and sentences on what was left out or mixes with size and data."""

    runs: list[Trained]
    notes: list[str]


def usable_runs(study: Study, metric: str) -> Usable:
    """The runs of a study that a law of `metric` can be fitted to. Raises ValueError where the metric is no loss or no
    run has it, the data differ, or there are too few sizes or budgets.
    """
    if target := target_of(metric):
        raise ValueError(f"{metric}: a law is one of losses, and this is a cost; --metric takes {target.metric}")
    if study.better(metric) == "higher":
        raise ValueError(
            f"{metric}: of it more is better, and a law is one of losses; --metric takes another, as val/loss"
        )
    finished = [run for run in study.runs.values() if metric in run.final]
    if not finished:
        names = [name for name in study.metrics if any(name in run.final for run in study.runs.values())]
        raise ValueError(f"{study.name}: no finished run has {metric}; they have: {', '.join(names) or 'nothing yet'}")
    wrong = next((run for run in finished if not run.final[metric] > 0), None)
    if wrong is not None:
        raise ValueError(
            f"{metric} is {wrong.final[metric]:g} in {wrong.cell} seed={wrong.seed}; a law is fitted to the logarithm "
            "of a loss above 0"
        )
    _refuse_other_data(study.name, finished)
    trained = [found for run in finished if (found := _trained(run, metric))]
    _refuse_few(study.name, trained)
    silent = len(finished) - len(trained)
    unknown = [f"Left out: {silent} runs that do not say their parameters, tokens or operations."] if silent else []
    notes = [*_left_out(study, metric), *unknown, *_mixed(finished), *_repeated(trained), *_of_experts(finished)]
    return Usable(sorted(trained, key=lambda run: (run.parameters["total"], run.tokens, run.seed)), notes)


def _trained(run: Run, metric: str) -> Trained | None:
    """A run as the fit takes it, or None where it does not say its parameters, tokens or operations."""
    parameters, training = run.section("parameters"), run.section("training")
    counts = {count: _positive(parameters.get(f"active_{count}", parameters.get(count))) for count in COUNTS}
    tokens, cost = _positive(run.status.get("tokens")), _positive(run.record.get("flops_per_token"))
    if not (all(counts.values()) and tokens and cost):
        return None
    whole = {count: int(value) for count, value in counts.items()}
    return Trained(
        run.cell, run.seed, whole, tokens, run.final[metric], cost * tokens, _positive(training.get("epochs"))
    )


def _positive(value: object) -> float:
    return float(value) if is_finite(value) and value > 0 else 0.0


def distinct(values: Iterable[float]) -> list[float]:
    """The values, those within SAME of the one before counted once."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value > kept[-1] * (1 + SAME):
            kept.append(value)
    return kept


def _refuse_few(name: str, trained: Sequence[Trained]) -> None:
    sizes = distinct(run.parameters["non_embedding"] for run in trained)
    budgets = distinct(run.tokens for run in trained)
    if len(sizes) >= MIN_SIZES and len(budgets) >= MIN_BUDGETS:
        return
    if len(budgets) == 1:
        raise ValueError(
            f"{name}: all finished runs trained on the same {budgets[0]:,.0f} tokens, so that nothing says what more "
            f"data bring; a law needs {MIN_BUDGETS} budgets (trainer.max_steps) of {MIN_SIZES} sizes"
        )
    raise ValueError(
        f"{name}: finished runs have {len(sizes)} sizes and {len(budgets)} budgets of tokens; a law of five numbers "
        f"needs at least {MIN_SIZES} sizes (model.d_model, model.num_layers) and {MIN_BUDGETS} budgets "
        "(trainer.max_steps)"
    )


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs, with what they are, names and seeds left out."""
    configs = [run.config for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    found = {}
    for name in names:
        values = list(dict.fromkeys(str(config.get(name)) for config in configs))
        if len(values) > 1 and not _any(name, IDENTITY):
            found[name] = values
    return found


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _refuse_other_data(study: str, finished: Sequence[Run]) -> None:
    allowed = (*SIZE, *BUDGET, *TUNED)
    for name, values in _differing(finished).items():
        if name.partition(".")[0] in MEASURED and not _any(name, allowed):
            raise ValueError(
                f"{study}: runs differ in {name} ({_some(values)}), so that their losses are not those of one text; "
                "fit each apart, as a study of its own"
            )


def _mixed(finished: Sequence[Run]) -> list[str]:
    """Runs that differ in more than size and data; settings tuned to a size count only within one size."""
    differing = _differing(finished)
    notes = []
    others = {name: values for name, values in differing.items() if not _any(name, (*SIZE, *BUDGET, *TUNED))}
    # A setting of the model that only repeats one of a group of its own (model.position.* is position.*) is left out.
    others = {name: values for name, values in others.items() if name.removeprefix("model.") not in {*others} - {name}}
    if others:
        listed = "; ".join(f"{name} ({_some(values)})" for name, values in list(others.items())[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"Runs differ in more than size and data: {listed}{more}; the law mixes what these do with it.")
    by_size: dict[tuple[str, str, object], set[str]] = {}
    tuned = [name for name in differing if _any(name, TUNED)]
    for name, run in product(tuned, finished):
        size = name, str(run.record.get("parameters")), run.status.get("tokens")
        by_size.setdefault(size, set()).add(str(run.config.get(name)))
    tuned = [name for name in tuned if any(len(found) > 1 for size, found in by_size.items() if size[0] == name)]
    if tuned:
        notes.append(f"Runs of the same size and data differ in {', '.join(tuned)}; the law is that of their mixture.")
    return notes


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:3]) + (", ..." if len(values) > 3 else "")


def _left_out(study: Study, metric: str) -> list[str]:
    """A sentence for each kind of run that is no part of the fit."""
    not_a_number, without = f"ended with {metric} not a number", f"have no {metric}"
    left_out: dict[str, list[str]] = {
        "diverged": [], "failed": [], not_a_number: [], "are not finished": [], without: []
    }  # fmt: skip
    for run in study.runs.values():
        named = f"{run.cell} seed={run.seed}"
        if metric in run.non_finite:
            left_out[not_a_number].append(named)
        elif run.state == "finished" and metric not in run.final:
            left_out[without].append(named)
        elif run.state != "finished":
            left_out[run.state if run.state in ENDS else "are not finished"].append(named)
    return [
        f"Left out, for they {what}: {_some(runs)} ({len(runs)} of {len(study.runs)} runs)"
        f"{'; a law of the rest says nothing of how often that happens' if what == 'diverged' else ''}."
        for what, runs in left_out.items()
        if runs
    ]


def _of_experts(finished: Sequence[Run]) -> list[str]:
    sparse = sum("active_total" in run.section("parameters") for run in finished)
    said = f"N counts the parameters that a token meets: {sparse} runs are mixtures of experts, which have more."
    return [said] if sparse else []


def _repeated(trained: Sequence[Trained]) -> list[str]:
    repeated = [run.epochs for run in trained if run.epochs > 1.0]
    said = (
        f"{len(repeated)} runs saw their text more than once (up to {max(repeated, default=0.0):.1f} epochs); the law "
        "is one of fresh data, of which repeated ones are worth less (Muennighoff et al. 2023)."
    )
    return [said] if repeated else []
