"""
BLEU and chrF as sacreBLEU has them (Post 2018, arXiv 1804.08771), the words of BLEU cut as the language asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
    """
    The tokenizer for a target language, such as zh, zh_CN or zho_Hans; that of European languages for one that is not
    known.
    """
    return TOKENIZERS.get(re.split(r"[_-]", language.lower())[0], DEFAULT)


def tokenizer_in(signature: str) -> str:
    """
    The tokenizer that a signature of sacreBLEU names, without the versions of what it cuts by (ja-mecab-0.996-IPA).
    """
    named = dict(part.partition(":")[::2] for part in signature.split("|")).get("tok", DEFAULT)
    return next((name for name in TOKENIZERS.values() if named.startswith(f"{name}-")), named)


def check_tokenizer(name: str) -> None:
    """Raises ValueError for a tokenizer that sacreBLEU does not have."""
    from sacrebleu.metrics.bleu import BLEU

    if name not in BLEU.TOKENIZERS:
        raise ValueError(
            f"task.bleu_tokenize={name}: accepted are {', '.join(BLEU.TOKENIZERS)}, or null for the one of the target "
            "language"
        )


def metrics(tokenize: str = DEFAULT) -> dict[str, Any]:
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
    made: Mapping[str, Any] = metrics(tokenize)
    scores = {name: metric.corpus_score(list(hypotheses), [list(references)]).score for name, metric in made.items()}
    return scores, {name: str(metric.get_signature()) for name, metric in made.items()}
