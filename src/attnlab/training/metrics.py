"""Metrics: what their names say, which values are better, what they measure in words; and the scores of texts.

A metric's full name is split/name@restriction, such as test/bleu@6-10. A task says which metrics it reports; a run's
record keeps what it says, so that whoever reads runs knows a metric of anybody's task. Needs neither torch nor
Lightning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from attnlab.training.targets import target_of

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreBLEUMetric

ANY, POSITIVE = (-math.inf, math.inf), (0.0, math.inf)  # ranges


@dataclass(frozen=True)
class Metric:
    """What a task reports under a name.

    better: which values are, lower or higher ones. words: what it measures and its unit, as an axis says it; {unit}
    stands for a term of the loss. any_tokenizer: figures of runs with other tokenizers compare. is_proportion: it is 0
    or 1 a run, so that several runs give a proportion of them. perfect: the best value that there can be. range: the
    least and the greatest value that there can be. splits, at: where it is reported, and what it is restricted to
    there: "" is a whole split, and * what only the data know.
    """

    name: str
    better: str
    words: str = ""
    any_tokenizer: bool = False
    is_proportion: bool = field(default=False, kw_only=True)
    perfect: float | None = field(default=None, kw_only=True)
    range: tuple[float, float] = field(default=ANY, kw_only=True)
    splits: tuple[str, ...] = ("val", "test")
    at: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(
                f"the better values of the metric {self.name} must be lower or higher, got {self.better!r}"
            )

    def on(self, *splits: str, at: Sequence[str] = ("",)) -> Metric:
        """The same metric, reported of these splits alone and restricted so."""
        return replace(self, splits=splits, at=tuple(at))

    def names(self) -> list[str]:
        """Its full names."""
        return [f"{split}/{self.name}{at and f'@{at}'}" for split in self.splits for at in self.at]

    def record(self) -> dict[str, object]:
        """What a run's record keeps of it, under its name."""
        said: dict[str, object] = {"better": self.better, "words": self.words, "any_tokenizer": self.any_tokenizer}
        said |= {"is_proportion": True} if self.is_proportion else {}
        return said | {
            "perfect": self.perfect,
            "range": [end if math.isfinite(end) else None for end in self.range],
        }

    @property
    def limits(self) -> tuple[float, float]:
        """Between which values it lies: its range, which ends at the perfect value where there is one."""
        low, high = self.range
        if self.perfect is None:
            return low, high
        return (low, min(high, self.perfect)) if self.better == "higher" else (max(low, self.perfect), high)


def share(name: str, words: str = "", highest: float = 1.0) -> Metric:
    """A metric from 0 to `highest`, the best, which compares across tokenizers."""
    return Metric(name, "higher", words, any_tokenizer=True, perfect=highest, range=(0.0, highest))


LOSS = Metric("loss", "lower", "loss in nats per {unit}", range=POSITIVE)
LOSS_SMOOTHED = Metric("loss_smoothed", "lower", "loss with label smoothing, in nats per {unit}", range=POSITIVE)
PERPLEXITY = Metric("perplexity", "lower", "perplexity per {unit}", range=(1.0, math.inf))
WORD_PERPLEXITY = Metric("word_perplexity", "lower", "perplexity per word", any_tokenizer=True, range=(1.0, math.inf))
BITS_PER_BYTE = Metric("bits_per_byte", "lower", any_tokenizer=True, range=POSITIVE)
ACCURACY = share("accuracy", "accuracy (0 to 1)")
PRECISION = share("precision", "precision (0 to 1)")
RECALL = share("recall", "recall (0 to 1)")
F1 = share("f1", "F1 (0 to 1)")
MACRO_F1 = share("macro_f1", "mean F1 of all classes (0 to 1)")
EXACT = share("exact", "outputs equal to the reference (0 to 1)")
EXACT_MATCH = share("exact_match", "exact match (0 to 100)", highest=100.0)
BLEU = share("bleu", "BLEU (0 to 100)", highest=100.0)
CHRF = share("chrf", "chrF (0 to 100)", highest=100.0)
WER = Metric("wer", "lower", "word error rate (0 to 1, or more)", any_tokenizer=True, perfect=0.0, range=POSITIVE)
CER = Metric("cer", "lower", "character error rate (0 to 1, or more)", any_tokenizer=True, perfect=0.0, range=POSITIVE)
MASKED_LM_LOSS = Metric("masked_lm_loss", "lower", "loss in nats per {unit}", range=POSITIVE)
NEXT_SENTENCE_LOSS = Metric("next_sentence_loss", "lower", range=POSITIVE)
NEXT_SENTENCE_ACCURACY = share("next_sentence_accuracy")
SLIDING = "sliding_"  # before a metric of windows that overlap
# What is known of a metric without a record: what several tasks report, and what runs of old may have.
KNOWN = {metric.name: metric for metric in list(vars().values()) if isinstance(metric, Metric)}


def parts_of(metric: str) -> tuple[str, str, str]:
    """("test", "bleu", "6-10") of test/bleu@6-10; what a name lacks is empty. The cost to a target is all measure."""
    if target_of(metric):
        return "", metric, ""
    name, _, restriction = metric.partition("@")
    split, _, measure = name.rpartition("/")
    return split, measure, restriction


def curve_of(metric: str) -> str:
    """The validation curve that shows a final metric along training; of a cost, the one that reaches its target."""
    target = target_of(metric)
    return target.metric if target else f"val/{parts_of(metric)[1].removeprefix(SLIDING)}"


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A sorting key by which @16x follows @8x."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name))


def prefix_of(split: str) -> str:
    """What stands before the names of a split's metrics."""
    return "val" if split == "validation" else split


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is no number."""
    return math.exp(loss) if loss < 700 else math.inf


def known_metric(name: str, recorded: Mapping[str, object] | None = None) -> Metric | None:
    """What runs have recorded of a metric, given by its full name, else what attnlab knows of it, or None."""
    if target := target_of(name):
        reached = known_metric(target.metric, recorded)
        words = target.words(reached.better if reached else "lower")
        return Metric(name, "lower", words, reached is not None and reached.any_tokenizer and target.axis != "tokens")
    measure = parts_of(name)[1]
    for one in (measure, measure.removeprefix(SLIDING)):
        said = (recorded or {}).get(one)
        if isinstance(said, Mapping) and said.get("better") in ("lower", "higher"):
            across, is_proportion = (said.get(key) is True for key in ("any_tokenizer", "is_proportion"))
            words = str(said.get("words") or "")
            known = KNOWN.get(one, Metric(one, said["better"]))  # for older records, which lack what was not kept then
            perfect = said.get("perfect", known.perfect)
            limits = _range_of(said["range"]) if "range" in said else known.range
            return Metric(
                one, said["better"], words, across, is_proportion=is_proportion, perfect=perfect, range=limits
            )
    return KNOWN.get(measure.removeprefix(SLIDING))


def _range_of(recorded: object) -> tuple[float, float]:
    if not isinstance(recorded, Sequence) or len(recorded) != 2:
        return ANY
    low, high = (default if end is None else float(end) for end, default in zip(recorded, ANY, strict=True))
    return low, high


def limits_of(name: str, recorded: Mapping[str, object] | None = None) -> tuple[float, float]:
    """Between which values a metric lies, infinite where nobody has said."""
    found = known_metric(name, recorded)
    return found.limits if found else ANY


def known_better(name: str, recorded: Mapping[str, object] | None = None) -> str | None:
    """Which values of a metric are better, lower or higher; None of one that nobody has said."""
    found = known_metric(name, recorded)
    return found.better if found else None


def better_of(name: str, recorded: Mapping[str, object] | None = None) -> str:
    """The same; of an unknown metric "lower"."""
    return known_better(name, recorded) or "lower"


# --- BLEU and chrF as sacreBLEU has them (Post 2018, arXiv 1804.08771)

DEFAULT = "13a"
# sacreBLEU's tokenizers by language, in ISO 639-1 and -3: its own choices, and characters for others that put no blanks
# between words.
TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
    **dict.fromkeys(("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod"), "char"),
}


def tokenizer_for(language: str) -> str:
    """The tokenizer for a target language, such as zh, zh_CN or zho_Hans; that of European ones for an unknown one."""
    return TOKENIZERS.get(re.split(r"[_-]", language.lower())[0], DEFAULT)


def tokenizer_in(signature: str) -> str:
    """The tokenizer that sacreBLEU's signature names, without the versions of what it cuts by (ja-mecab-0.996-IPA)."""
    named = dict(part.partition(":")[::2] for part in signature.split("|")).get("tok", DEFAULT)
    return next((name for name in TOKENIZERS.values() if named.startswith(f"{name}-")), named)


def check_tokenizer(name: str) -> None:
    """Raises ValueError for a tokenizer that sacreBLEU does not have."""
    from sacrebleu.metrics import bleu

    if name not in bleu.BLEU.TOKENIZERS:
        raise ValueError(
            f"task.bleu_tokenize={name}: accepted are {', '.join(bleu.BLEU.TOKENIZERS)}, or null for the one of the "
            "target language"
        )


def text_metrics(tokenize: str = DEFAULT) -> dict[str, SacreBLEUMetric]:
    """sacreBLEU's BLEU and chrF. Raises ValueError where what the tokenizer needs is not installed."""
    import sacrebleu

    check_tokenizer(tokenize)
    try:
        return {"bleu": sacrebleu.BLEU(tokenize=tokenize), "chrf": sacrebleu.CHRF()}
    except (RuntimeError, ImportError, OSError) as error:
        extra = {"ja-mecab": '"sacrebleu[ja]"', "ko-mecab": '"sacrebleu[ko]"'}.get(tokenize, "sentencepiece")
        raise ValueError(
            f"BLEU by sacreBLEU's tokenizer {tokenize} needs what cannot be loaded here: pip install {extra}, or set "
            "task.bleu_tokenize=char, whose figures are other ones"
        ) from error


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str = DEFAULT
) -> tuple[dict[str, float], dict[str, str]]:
    """BLEU and chrF of a corpus, and the signatures of both."""
    made = text_metrics(tokenize)
    scores = {name: metric.corpus_score(list(hypotheses), [list(references)]).score for name, metric in made.items()}
    return scores, {name: str(metric.get_signature()) for name, metric in made.items()}
