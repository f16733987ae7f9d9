"""Translations of cells against those of the baseline over resampled test sentences: sacreBLEU's paired bootstrap.

It holds the trained weights fixed and asks whether other sentences would tell the same story. Differences between seeds ask whether other
trainings would. Neither stands for the other, so both are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.listing import listing
from attnlab.analysis.reader import Run
from attnlab.analysis.sentences import SCORES, SentenceDifference, SentenceResult
from attnlab.training.bleu import DEFAULT, metrics, tokenizer_in
from attnlab.training.run_directory import open_to_read

RESAMPLES = 1000
OUTPUTS, TRANSLATIONS, REFERENCES = "outputs", "translations.txt", "references.txt"
NAMES = {"val": "validation"}


@dataclass(frozen=True)
class _Texts:
    """
    What a run translated, with the references, and what cut them into BLEU's words; `problem`: why they cannot be
    compared, or None.
    """

    translations: list[str]
    references: list[str]
    tokenize: str
    problem: str | None


def _texts(run: Run, split: str) -> _Texts:
    found, prefix = [], next((short for short, long in NAMES.items() if long == split), split)
    notes = run.status.get("notes")
    tokenize = tokenizer_in(str(notes.get(f"{prefix}/bleu", ""))) if isinstance(notes, Mapping) else DEFAULT
    for name in (TRANSLATIONS, REFERENCES):
        try:
            with open_to_read(run.directory / OUTPUTS / f"{split}.{name}", within=run.directory) as file:
                text = file.read().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return _Texts([], [], tokenize, f"no {OUTPUTS}/{split}.{name}")
        found.append(text.split("\n")[:-1])  # other marks that end a line for some stand inside of sentences
    sizes = [len(lines) for lines in found]
    problem = f"{sizes[0]} translations and {sizes[1]} references" if sizes[0] != sizes[1] or not sizes[0] else None
    return _Texts(found[0], found[1], tokenize, problem)


def with_resampled_sentences(comparison: Comparison, resamples: int = RESAMPLES) -> Comparison:
    """The comparison with `sentences` computed: a few seconds for every run, most of them for chrF.

    Raises:
        ValueError: the study has no baseline to hold translations against, or no run with translations, or the
            tokenizer that its BLEU was computed with cannot be loaded.
    """
    metric, baseline = comparison.metric, comparison.baseline
    if metric is None or baseline is None:
        raise ValueError(
            f"{comparison.study.name}: test sentences are resampled against a baseline, and the study names no baseline or metric"
        )
    prefix = metric.name.partition("/")[0] if "/" in metric.name else "test"
    split = NAMES.get(prefix, prefix)
    result = _bootstrap(comparison, baseline.cell.name, split, resamples)
    if not result.differences:
        raise ValueError(f"{comparison.study.name}: no translations to compare: {'; '.join(result.left_out)}")
    return replace(comparison, sentences=result)


def _bootstrap(comparison: Comparison, baseline: str, split: str, resamples: int) -> SentenceResult:
    runs = [run for run in comparison.study.runs.values() if run.state == "finished"]
    texts = {(run.cell, run.seed): _texts(run, split) for run in runs}
    labels = {cell.cell.name: cell.label for cell in comparison.cells}
    problems = _Problems()
    found: dict[tuple[str, str], tuple[dict[int, float], dict[int, float]]] = {}
    signatures: dict[str, str] = {}
    for seed in sorted({seed for cell, seed in texts if cell == baseline}):
        base = texts[baseline, seed]
        others = {
            label: texts[cell, seed] for cell, label in labels.items() if cell != baseline and (cell, seed) in texts
        }
        systems = _usable(base, others, seed, problems)
        for key, (difference, p) in _of_seed(base, systems, resamples, signatures).items():
            by_seed, p_by_seed = found.setdefault(key, ({}, {}))
            by_seed[seed], p_by_seed[seed] = difference, p
    ordered = [(label, score) for score in SCORES for label in labels.values() if (label, score) in found]
    differences = [SentenceDifference(*key, *found[key]) for key in ordered]
    return SentenceResult(differences, signatures, problems.sentences() or ([] if differences else [_nothing(split)]))


def _usable(base: _Texts, others: Mapping[str, _Texts], seed: int, problems: _Problems) -> dict[str, list[str]]:
    """{label: translations} of the runs that can be held against the baseline's; the reasons of the others go to `problems`."""
    if base.problem:
        problems.add(f"the baseline has {base.problem}", seed, "")
        return {}
    systems = {}
    for label, own in others.items():
        reason = own.problem or (None if own.references == base.references else "other references than the baseline")
        if reason is None and own.tokenize != base.tokenize:
            reason = f"BLEU by the tokenizer {own.tokenize}, the baseline's by {base.tokenize}"
        if reason:
            problems.add(reason, seed, label)
        else:
            systems[label] = own.translations
    return systems


def _nothing(split: str) -> str:
    return f"no finished run of another cell has the seed of a finished run of the baseline with {OUTPUTS}/{split}.{TRANSLATIONS}"


def _of_seed(
    base: _Texts, systems: Mapping[str, Sequence[str]], resamples: int, signatures: dict[str, str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """{(label, score): (difference, p)} of one seed's runs; the baseline is resampled once for all of them."""
    from sacrebleu.significance import PairedTest, Result

    # sacreBLEU finds two runs that translate all alike to differ for sure: a difference of nothing is beyond no resample of nothing.
    alike = {label for label, lines in systems.items() if list(lines) == base.translations}
    apart = {label: lines for label, lines in systems.items() if label not in alike}
    found = {(label, score): (0.0, 1.0) for label in alike for score in SCORES}
    if not apart:
        return found
    named: list[tuple[str, Sequence[str]]] = [("", base.translations), *apart.items()]
    signed, scores = PairedTest(named, metrics(base.tokenize), [base.references], test_type="bs", n_samples=resamples)()
    for score, name in SCORES.items():
        signatures[score] = str(signed[name])
        first, *others = [result for result in scores[name] if isinstance(result, Result)]
        for label, other in zip(apart, others, strict=True):
            difference = other.score - first.score
            found[label, score] = (difference, float(other.p_value or 1.0) if difference else 1.0)
    return found


class _Problems:
    """Why runs were left out, each reason once."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[dict[int, None], dict[str, None]]] = {}

    def add(self, reason: str, seed: int, label: str) -> None:
        """A run of the cell `label` ("" for the baseline) with this seed was left out for this reason."""
        seeds, labels = self._found.setdefault(reason, ({}, {}))
        seeds[seed] = None
        if label:
            labels[label] = None

    def sentences(self) -> list[str]:
        """ "seeds 0 and 1: no outputs/test.references.txt (rotary and alibi)"."""
        return [
            f"seed{'s' * (len(seeds) > 1)} {listing(list(map(str, seeds)))}: {reason}{f' ({listing(list(labels))})' if labels else ''}"
            for reason, (seeds, labels) in self._found.items()
        ]
