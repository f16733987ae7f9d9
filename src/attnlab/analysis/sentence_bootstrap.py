"""Translations of cells against those of the baseline over resampled test sentences: sacreBLEU's paired bootstrap.

It holds the trained weights fixed and asks whether other sentences would tell the same story. Differences between seeds
ask whether other trainings would. Neither stands for the other, so both are reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attnlab.analysis.file_cache import mapping
from attnlab.analysis.formatting import listing
from attnlab.analysis.reader import Run, Study
from attnlab.training.metrics import text_metrics, tokenizer_in
from attnlab.training.run_directory import OUTPUTS, open_to_read

SCORES = {"bleu": "BLEU", "chrf": "chrF2"}
RESAMPLES = 1000
TRANSLATIONS, REFERENCES = "translations.txt", "references.txt"
NAMES = {"val": "validation"}
Problems = dict[str, list[tuple[int, str]]]  # {why runs were left out: their seeds, and cells but for the baseline}


@dataclass(frozen=True)
class SentenceDifference:
    """One cell against the baseline's run of the same seed, for one score: {seed: difference} and {seed: p}."""

    label: str
    score: str
    differences: dict[int, float] = field(default_factory=dict)
    p_values: dict[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return sum(self.differences.values()) / len(self.differences)

    def sure(self, alpha: float = 0.05) -> int:
        return sum(p <= alpha for p in self.p_values.values())


@dataclass(frozen=True)
class SentenceResult:
    """The differences, sacreBLEU's signature of each score, and why runs were left out."""

    differences: list[SentenceDifference]
    signatures: dict[str, str]
    left_out: list[str]


def sentences_of(result: SentenceResult) -> list[str]:
    sentence = (
        "By sentences: the same weights on resampled test sentences (sacreBLEU's paired bootstrap), one p a seed. It "
        "says whether other test sentences would show the difference; whether other trainings would, the paired "
        "differences between seeds say. Trust what holds in both."
    )
    return [sentence, *(f"Left out: {reason}." for reason in result.left_out)]


def p_summary(found: SentenceDifference) -> str:
    """ "0.001 to 0.034, at most 0.05 in 3 of 3 seeds"."""
    low, high = min(found.p_values.values()), max(found.p_values.values())
    ends = f"{low:.3f}" if math.isclose(low, high) else f"{low:.3f} to {high:.3f}"
    return f"{ends}, at most 0.05 in {found.sure()} of {len(found.p_values)} seeds"


@dataclass(frozen=True)
class _Texts:
    """What a run translated, with the references, and what cut them into BLEU's words; `problem`: why they cannot be
    compared."""

    translations: list[str]
    references: list[str]
    tokenize: str
    problem: str


def _texts(run: Run, split: str) -> _Texts:
    found, prefix = [], next((short for short, long in NAMES.items() if long == split), split)
    tokenize = tokenizer_in(str(mapping(run.status.get("notes")).get(f"{prefix}/bleu", "")))
    for name in (TRANSLATIONS, REFERENCES):
        try:
            with open_to_read(run.directory / OUTPUTS / f"{split}.{name}", within=run.directory) as file:
                text = file.read().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return _Texts([], [], tokenize, f"no {OUTPUTS}/{split}.{name}")
        found.append(text.split("\n")[:-1])  # other marks that end a line for some stand inside of sentences
    sizes = [len(lines) for lines in found]
    problem = f"{sizes[0]} translations and {sizes[1]} references" if sizes[0] != sizes[1] or not sizes[0] else ""
    return _Texts(found[0], found[1], tokenize, problem)


def resample_sentences(study: Study, resamples: int = RESAMPLES) -> SentenceResult:
    """Every cell's translations against the baseline's of the same seed; a few seconds a run. Raises ValueError: see
    `Comparison.with_resampled_sentences`.
    """
    metric, baseline = study.metric, study.baseline_cell
    if metric is None or baseline is None:
        raise ValueError(
            f"{study.name}: test sentences are resampled against a baseline, and the study names no baseline or metric"
        )
    prefix = metric.name.partition("/")[0] if "/" in metric.name else "test"
    split = NAMES.get(prefix, prefix)
    texts = {(r.cell, r.seed): _texts(r, split) for r in study.runs.values() if r.state == "finished"}
    labels = {cell.name: study.label(cell) for cell in study.cells}
    problems: Problems = {}
    signatures: dict[str, str] = {}
    found = {(label, score): SentenceDifference(label, score) for score in SCORES for label in labels.values()}
    for seed in sorted({seed for cell, seed in texts if cell == baseline.name}):
        base = texts[baseline.name, seed]
        others = {labels[cell]: texts[cell, seed] for cell in labels if cell != baseline.name and (cell, seed) in texts}
        systems = _usable(base, others, seed, problems)
        for key, (difference, p) in _of_seed(base, systems, resamples, signatures).items():
            found[key].differences[seed], found[key].p_values[seed] = difference, p
    differences = [one for one in found.values() if one.differences]
    if not differences:
        file = f"{OUTPUTS}/{split}.{TRANSLATIONS}"
        nothing = f"no finished run of another cell has the seed of a finished run of the baseline with {file}"
        raise ValueError(f"{study.name}: no translations to compare: {'; '.join(_told(problems) or [nothing])}")
    return SentenceResult(differences, signatures, _told(problems))


def _usable(base: _Texts, others: Mapping[str, _Texts], seed: int, problems: Problems) -> dict[str, list[str]]:
    """{label: translations} that can be held against the baseline's; why others cannot goes to `problems`."""
    if base.problem:
        problems.setdefault(f"the baseline has {base.problem}", []).append((seed, ""))
        return {}
    systems = {}
    for label, own in others.items():
        reason = own.problem or ("" if own.references == base.references else "other references than the baseline")
        if not reason and own.tokenize != base.tokenize:
            reason = f"BLEU by the tokenizer {own.tokenize}, the baseline's by {base.tokenize}"
        if reason:
            problems.setdefault(reason, []).append((seed, label))
        else:
            systems[label] = own.translations
    return systems


def _of_seed(
    base: _Texts, systems: Mapping[str, Sequence[str]], resamples: int, signatures: dict[str, str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """{(label, score): (difference, p)} of one seed's runs; the baseline is resampled once for all of them."""
    from sacrebleu.significance import PairedTest, Result

    # sacreBLEU finds two runs that translate all alike to differ for sure: nothing is beyond no resample of nothing.
    apart = {label: lines for label, lines in systems.items() if list(lines) != base.translations}
    found = {(label, score): (0.0, 1.0) for label in systems if label not in apart for score in SCORES}
    if not apart:
        return found
    named: list[tuple[str, Sequence[str]]] = [("", base.translations), *apart.items()]
    metrics = text_metrics(base.tokenize)
    signed, scores = PairedTest(named, metrics, [base.references], test_type="bs", n_samples=resamples)()
    for score, name in SCORES.items():
        signatures[score] = str(signed[name])
        first, *others = [result for result in scores[name] if isinstance(result, Result)]
        for label, other in zip(apart, others, strict=True):
            difference = other.score - first.score
            found[label, score] = (difference, float(other.p_value or 1.0) if difference else 1.0)
    return found


def _told(problems: Problems) -> list[str]:
    """ "seeds 0 and 1: no outputs/test.references.txt (rotary and alibi)"."""
    sentences = []
    for reason, runs in problems.items():
        seeds = list(dict.fromkeys(str(seed) for seed, _ in runs))
        labels = list(dict.fromkeys(label for _, label in runs if label))
        whose = f" ({listing(labels)})" if labels else ""
        sentences.append(f"seed{'s' * (len(seeds) > 1)} {listing(seeds)}: {reason}{whose}")
    return sentences
