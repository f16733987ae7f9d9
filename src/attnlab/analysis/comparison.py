"""What a study's runs say: cells, paired differences, ranks, what changes with length, effects, claims and caveats.

Compared are runs of one task, data set, tokenizer and unit (`parts_of_study`): a loss in nats a token says nothing
beside one of another tokenizer, nor one of images beside one of texts. Where a study varies the data or the tokenizer
on purpose, measures that do not depend on how a text is cut (accuracy, BLEU, bits a byte) are compared all the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from attnlab.analysis.cells import CellSummary, summarize
from attnlab.analysis.claims import Claim, check_claims
from attnlab.analysis.clusters import Clusters, clusters_of
from attnlab.analysis.differences import ALPHA, outcomes_of
from attnlab.analysis.factors import Effect, Factorial, Interaction, factor_effects, interactions, unmatched
from attnlab.analysis.file_cache import Stamp, mapping, stamp_of
from attnlab.analysis.formatting import listing
from attnlab.analysis.lengths import LengthCurve, length_curves, multiples_of
from attnlab.analysis.proportions import is_proportion
from attnlab.analysis.reader import JOINT, Choice, Metric, Run, Study, metric_of
from attnlab.analysis.sentence_bootstrap import RESAMPLES, SentenceResult, resample_sentences
from attnlab.analysis.size_trends import SizeTrend, size_trends
from attnlab.analysis.tasks import arms_of, cells_of, claims_with_metrics, tasks_of
from attnlab.analysis.tuning import TuningSummary, summarize_tuning, tuning_caveats
from attnlab.analysis.warnings import caveats_of
from attnlab.training.run_directory import ENDED, open_to_read
from attnlab.training.targets import Target, checked, target_of

IDENTITY = ("study", "cell", "seed", "run_dir", "runs_dir", "hydra", "logger")
ON_PURPOSE = ("data", "tokenizer")  # what a study may vary where its metric compares across them
MOST_NAMES = 40  # that a message lists
TOKENIZERS = "*tokenizer.json"  # of a run's directory: one, or that of the sources beside it


@dataclass(frozen=True)
class Comparison:
    """All that the terminal, the tables and the page say about a study.

    `sentences` is there where it was asked for (see `with_resampled_sentences`), `tuning` where cells were tuned;
    alpha: of a family, at this look.
    """

    study: Study
    metric: Metric | None
    cells: list[CellSummary]
    claims: list[Claim]
    lengths: list[LengthCurve]
    effects: list[Effect]
    interactions: list[Interaction]
    caveats: list[str]
    size_trends: list[SizeTrend] = field(default_factory=list)
    sentences: SentenceResult | None = None
    tuning: TuningSummary | None = None
    alpha: float = ALPHA

    @cached_property
    def is_proportion(self) -> bool:
        """Whether the metric is 0 or 1 a run."""
        return self.metric is not None and is_proportion(self.study, self.metric.name)

    @cached_property
    def target(self) -> Target | None:
        """What runs have to reach, where the metric is the cost of it."""
        return target_of(self.metric.name) if self.metric else None

    @property
    def is_all_censored(self) -> bool:
        """Whether no run reached the target of a cost, and of some it is known."""
        costs = [cost for cell in self.cells for cost in cell.costs.values()]
        return bool(costs) and not any(cost.is_reached for cost in costs)

    @property
    def average(self) -> str:
        """What stands for the runs of a cell: "mean", "median" of costs, "share" of what is 0 or 1 a run."""
        return "share" if self.is_proportion else "median" if self.target else "mean"

    @property
    def baseline(self) -> CellSummary | None:
        return next((cell for cell in self.cells if cell.is_baseline), None)

    @property
    def measured(self) -> list[CellSummary]:
        """The cells of which something is known, best average first, then medians that were not reached, then those of
        which runs failed: for reading, no ranking."""
        sign = -1 if self.metric and self.metric.better == "higher" else 1

        def order(cell: CellSummary) -> tuple[bool, bool, float]:
            found = cell.interval
            assert found is not None
            return cell.n_failed > 0, found.is_beyond, sign * found.position

        return sorted((cell for cell in self.cells if cell.interval is not None), key=order)

    @property
    def best_first(self) -> list[CellSummary]:
        """All cells for a table: those with a value as `measured` has them, then the others."""
        return [*self.measured, *(cell for cell in self.cells if cell.interval is None)]

    @property
    def states(self) -> dict[str, int]:
        return dict(Counter(run.state for run in self.study.runs.values()))

    @property
    def problems(self) -> list[Run]:
        return [run for run in self.study.runs.values() if run.state != "finished" or run.non_finite]

    @property
    def unsettled(self) -> list[str]:
        """What more seeds may settle: cells without a word against the baseline, and claims that are open. A cell of
        which more runs fail than chance explains is settled as such."""
        outcomes = ("measured", "failed", "diverged", "pruned", "not a number")
        others = [cell for cell in self.cells if self.baseline and not cell.is_baseline and cell.outcome in outcomes]
        cells = [cell.label for cell in others if not cell.is_settled(self.alpha)]
        claims = [claim for claim in self.claims if claim.verdict == "open"]
        return cells + [f"the claim {one.says!r}" for one in claims if any(cell.may_settle for cell in one.cells)]

    @cached_property
    def settings(self) -> dict[str, dict[str, object]]:
        return differing_settings(self.study)

    def with_resampled_sentences(self, resamples: int = RESAMPLES) -> Comparison:
        """The comparison with `sentences` computed: a few seconds for every run, most of them for chrF. Raises
        ValueError where the study has no baseline to hold translations against, or no run with translations, or the
        tokenizer that its BLEU was computed with cannot be loaded.
        """
        return replace(self, sentences=resample_sentences(self.study, resamples))

    @cached_property
    def primary_lengths(self) -> list[LengthCurve]:
        """The curves of the primary metric's family, or of the first; the best at the greatest length first."""
        prefixes = [curve.prefix for curve in self.lengths]
        own = (self.metric.name if self.metric else "").partition("@")[0]
        found = [curve for curve in self.lengths if curve.prefix == (own if own in prefixes else prefixes[0])]
        longest = max(multiples_of(found), default=0.0)
        sign = -1 if self.metric and self.metric.better == "higher" else 1
        return sorted(found, key=lambda c: sign * c.points[longest].mean if longest in c.points else math.inf)

    @cached_property
    def clusters(self) -> Clusters | None:
        """The two groups that the cells fall into, once all runs are over; None where they do not. Costs have none."""
        if self.target or any(run.state not in ENDED for run in self.study.runs.values()):
            return None
        return clusters_of(self.measured, self.alpha)


def compare(study: Study, alpha: float = ALPHA) -> Comparison:
    """Compares the cells of a study on its primary metric. `alpha` is the chance of any false word in a family, over
    all looks at the study."""
    outcomes = outcomes_of(study, alpha)
    factorial = Factorial(outcomes)
    cells, cross = summarize(outcomes), interactions(factorial)
    tuning = summarize_tuning(outcomes)
    return Comparison(
        study,
        study.metric,
        cells,
        check_claims(outcomes),
        length_curves(outcomes),
        factor_effects(factorial, cross),
        cross,
        [*tuning_caveats(tuning, cells), *caveats_of(study, cells, unmatched(factorial), outcomes.alpha)],
        size_trends(factorial),
        tuning=tuning,
        alpha=outcomes.alpha,
    )


def differing_settings(study: Study) -> dict[str, dict[str, object]]:
    """{configuration key: {cell label: value}} of keys that differ between cells, and not between a cell's seeds."""
    configs: dict[str, dict[str, object]] = {}
    varying: set[str] = set()
    for cell in study.cells:
        of_runs = [run.config for run in study.runs_of(cell.name) if run.record]
        for key in dict.fromkeys(key for config in of_runs for key in config if key.split(".")[0] not in IDENTITY):
            first, *others = [config.get(key) for config in of_runs]
            configs.setdefault(key, {})[study.label(cell)] = first
            if any(value != first for value in others):
                varying.add(key)
    cells = {label for of_cells in configs.values() for label in of_cells}
    apart = {
        key: of_cells
        for key, of_cells in configs.items()
        if key not in varying and (len({repr(v) for v in of_cells.values()}) > 1 or set(of_cells) != cells)
    }
    return {key: of_cells for key, of_cells in apart.items() if not _is_copy(key, apart)}


def _is_copy(key: str, settings: Mapping[str, dict[str, object]]) -> bool:
    tails = (key.split(".", i)[-1] for i in range(1, key.count(".") + 1))
    return any(settings.get(tail) == settings[key] for tail in tails)


# --- which runs can be compared at all


@dataclass(frozen=True)
class Kind:
    """What a run's figures are of. unit, data and tokenizer are None where the metric compares across them."""

    task: str
    unit: str | None
    data: str | None
    tokenizer: str | None
    words: str = field(compare=False)


def parts_of_study(study: Study) -> list[Study]:
    """The study in parts whose runs can be compared, that of the baseline first, then the largest, each with a note on
    the others; a study of one kind as it is.

    A run that has no record yet counts as its cell's others, or as most runs do. Claims stay with the part that has all
    of their cells. A study `across` its tasks is in parts by task, in the plan's order.
    """
    if study.across is not None:
        return [part for task in tasks_of(study, study.across) for part in parts_of_study(task)]
    across = _compares_across(study)
    found = {key: _kind(run) for key, run in study.runs.items()}
    nothing: dict[str, Any] = dict.fromkeys(across)
    kinds = _by_tokens(study, {key: replace(kind, **nothing) for key, kind in found.items() if kind is not None})
    sizes = Counter(kinds.values())
    if len(sizes) < 2:
        return [study]
    of_cells = {cell: kinds[cell, seed] for cell, seed in sorted(kinds, reverse=True)}
    named = study.baseline_cell if study.baseline_named else None
    of_baseline = of_cells.get(named.name) if named else None
    most = sorted(sizes, key=lambda kind: (kind != of_baseline, -sizes[kind]))
    belongs = {key: kinds.get(key, of_cells.get(key[0], most[0])) for key in study.runs}
    skipped = {cell.name: of_cells.get(cell.name, most[0]) for cell in study.cells}
    parts = [_part(study, kind, belongs, skipped) for kind in most]
    for part, kind in zip(parts, most, strict=True):
        others = [f"{other.words} ({sizes[other]})" for other in most if other is not kind]
        part.apart.append(
            f"Compared here are runs of {kind.words} ({sizes[kind]}) alone: figures of another task, data set, "
            f"tokenizer or unit cannot be compared with theirs. Set apart are runs of {listing(others)}."
        )
    return parts


def asked(study: Study, metric: str | None = None, baseline: str | Mapping[str, Choice] | None = None) -> list[Study]:
    """`parts_of_study` with another metric or baseline than the study's own; parts without that metric are left out.

    metric: a final metric, or the cost to a target; the study's own alone has its margin. baseline: a cell by its label
    or name, or by its choices, in words (`position=rotary model.d_model=64`) or as a mapping. Raises ValueError for a
    metric or a cell that the study does not have.
    """
    parts = parts_of_study(study := as_asked(study, metric, baseline))
    if metric is None:
        return parts
    return [replace(part, metric=own) for part in parts if (own := study.metric) and own.name in part.metrics]


def as_asked(study: Study, metric: str | None, baseline: str | Mapping[str, Choice] | None) -> Study:
    """The study with another metric or baseline than its own: see `asked`. Of a study `across` its tasks the baseline
    is an arm, and ends that are stated of another metric are none of this one's. Claims are about the metrics that they
    were about."""
    if baseline is not None:
        among = study if study.across is None else arms_of(study, study.across)
        study = replace(study, baseline=_the_cell(among, baseline), baseline_named=True)
    if metric is None:
        return study
    if target := target_of(metric):
        metric = str(target)
        study = study.with_costs([metric])
        _check_validated(study, checked(target, "metric"))
    elif metric not in study.metrics:
        there = listing(study.metrics, MOST_NAMES) or "none, because no run has finished"
        raise ValueError(f"metric must be a final metric of the study {study.name}, got {metric!r}; there are {there}")
    own = study.metric if study.metric and study.metric.name == metric else Metric(metric, study.better(metric))
    across = study.across and study.across.on(metric, study.metric.name if study.metric else "")
    return replace(study, metric=own, across=across, claims=claims_with_metrics(study))


def _check_validated(study: Study, target: Target) -> None:
    """Raises ValueError for a target in a metric that the runs have not had along their training."""
    there = [name for name in study.curves.columns if name.startswith("val/")]
    if target.metric not in there:
        known = listing(there, MOST_NAMES) or "none; trainer.val_check_interval says how often runs are validated"
        raise ValueError(
            f"metric must be the cost to a target in a validation curve of the study {study.name}, got "
            f"{target.metric}; there are {known}"
        )


def _the_cell(study: Study, given: str | Mapping[str, Choice]) -> dict[str, Choice]:
    """The choices of the one cell that is meant. Raises ValueError where there is none, or several."""
    cells = [cell for cell in study.cells if cell.skip is None and cell.choices]
    labels = {cell.name: study.label(cell) for cell in cells}
    words = re.split(rf"[\s,{JOINT}]+", given) if isinstance(given, str) else []  # a comma does for the dot of a label
    found = [cell for cell in cells if given == cell.name or words == re.split(rf"[\s,{JOINT}]+", labels[cell.name])]
    choices = dict(word.split("=", 1) for word in words if "=" in word) if isinstance(given, str) else given
    if not found and choices:
        found = [cell for cell in study.matching(choices) if cell in cells]
        found = [cell for cell in found if len(cell.choices) == len(choices)] or found
    if len(found) != 1:
        fits = f" ({len(found)} cells fit it)" if found else ""
        there = "; ".join(labels.values()) or "none"
        raise ValueError(
            f"baseline must be one cell of the study {study.name}, got {given!r}{fits}; give a label or "
            f"all choices, of: {there}"
        )
    return dict(found[0].choices)


def _compares_across(study: Study) -> tuple[str, ...]:
    """The fields of a kind in which runs may differ, because they vary on purpose and the metric compares across them:
    without a plan tokenizers of one text alone."""
    varies = any(name.split(".")[0] in ON_PURPOSE for name in study.varying)
    known = study.known_metric(study.metric.name) if study.metric else None
    if not varies or known is None or not known.any_tokenizer:
        return ()
    return ("unit", "data", "tokenizer") if _is_planned(study) else ("tokenizer",)


def _is_planned(study: Study) -> bool:
    return (study.path / "plan.json").is_file()


def _kind(run: Run) -> Kind | None:
    config, data = run.section("config"), run.section("data")
    if not config or "fingerprint" not in data:
        return None
    data_config = mapping(config.get("data"))
    task = _target(config.get("task"))
    source = _target(data_config.get("source")) or _target(data_config)
    tokenizer = _tokenizer_of(mapping(config.get("tokenizer"))) if "vocabulary_size" in data else ""
    size = f" of {data['vocabulary_size']}" if tokenizer else ""
    words = f"{task} on {source}{f' with {tokenizer}{size}' if tokenizer else ''}"
    cut = [config.get("tokenizer"), data_config.get("tokenizer_from"), data_config.get("joint_vocabulary")]
    known = json.dumps(cut, sort_keys=True, default=str) if tokenizer else None
    return Kind(task, str(data.get("unit") or "token"), str(data["fingerprint"]), known, words)


def _by_tokens(study: Study, kinds: dict[tuple[str, int], Kind]) -> dict[tuple[str, int], Kind]:
    """The same, but runs whose tokenizers are one to the byte have one, however each came by it: a run that starts
    from another one has that one's, whose folder may go with the seed."""
    if len({kind.tokenizer for kind in kinds.values()}) < 2:
        return kinds
    named: dict[tuple[tuple[str, str], ...], str | None] = {}
    found = dict(kinds)
    for key, kind in kinds.items():
        if kind.tokenizer is not None and (content := _tokenizers(study.runs[key])):
            found[key] = replace(kind, tokenizer=named.setdefault(content, kind.tokenizer))
    return found


def _tokenizers(run: Run) -> tuple[tuple[str, str], ...]:
    """The names and digests of the tokenizers that a run keeps; empty where it keeps none, or one cannot be read."""
    paths = sorted(run.directory.glob(TOKENIZERS))
    found = [(path.name, _digest(str(path), stamp_of(str(path)))) for path in paths]
    return tuple(found) if all(digest for _, digest in found) else ()


@lru_cache(maxsize=10_000)
def _digest(path: str, stamp: Stamp | None) -> str:
    """Of a file as it is at this stamp; empty where it cannot be read."""
    try:
        with open_to_read(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def _part(study: Study, kind: Kind, belongs: Mapping[tuple[str, int], Kind], skipped: Mapping[str, Kind]) -> Study:
    runs = {key: run for key, run in study.runs.items() if belongs[key] == kind}
    there = {cell for cell, _ in runs} | {c.name for c in study.cells if c.skip is not None and skipped[c.name] == kind}
    cells = [cell for cell in study.cells if cell.name in there]
    part = replace(study, cells=cells, runs=runs, apart=[], claims=[])
    if not _is_planned(study):  # what was made up of all runs is made up of these
        part.seeds = sorted({run.seed for run in runs.values() if run.record})
        part.runs = {key: run for key, run in runs.items() if run.seed in part.seeds}
        part.metric = metric_of(None, list(part.runs.values()))
        first = next((cell.choices for cell in part.cells if cell.choices), {})
        if not (study.baseline and part.matching(study.baseline)):  # it stands in another part
            part.baseline, part.baseline_named = dict(first), False
    if len(cells) == 1:  # is named by what sets it apart from the other parts
        part.varying = study.varying
    part.claims = [claim for claim in study.claims if all(map(part.matching, cells_of(claim)))]
    return part


def _tokenizer_of(config: Mapping[str, object]) -> str:
    """A tokenizer in words: its class, or the folder that it is read from."""
    return f"the tokenizer of {config['path']}" if config.get("path") else _target(config)


def _target(node: object) -> str:
    """The class that a node of a configuration names, without its package."""
    return str(mapping(node).get("_target_", "")).rpartition(".")[2]
