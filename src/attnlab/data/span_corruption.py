"""Span corruption (Raffel et al. 2020, section 3.1.4): spans of a text give way to sentinels, and the target tells what they were.

Letters of shapes: N tokens, K spans.
"""

from __future__ import annotations

import numpy as np

from attnlab.data.cache import DataError


def count_noise(length: int, density: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """
    How many of `length` tokens are noise, and in how many spans: numbers that do not depend on chance.

    At least one token is noise and one is not, and every span has a token of its own before it.
    """
    assert length >= 2, length
    num_noise = min(max(round(length * density), 1), length - 1)
    num_spans = max(round(num_noise / mean_length), 1)
    return num_noise, min(num_spans, num_noise, length - num_noise)


def lengths(length: int, density: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """Of the input and the target that `corrupt` makes of `length` tokens."""
    num_noise, num_spans = count_noise(length, density, mean_length)
    return length - num_noise + num_spans, num_noise + num_spans + 1


def draw_noise(length: int, random: np.random.Generator, density: float = 0.15, mean_length: float = 3.0) -> np.ndarray:
    """
    True at the tokens (N,) that are noise.

    Noise and the rest are each cut into as many parts, all ways to cut them equally likely, and the parts take turns, the
    text's own first: T5's random spans.
    """
    num_noise, num_spans = count_noise(length, density, mean_length)
    parts = np.stack([_cut(length - num_noise, num_spans, random), _cut(num_noise, num_spans, random)], axis=1)
    return np.repeat(np.tile([False, True], num_spans), parts.flatten())


def corrupt(tokens_N: np.ndarray, is_noise_N: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The text with a sentinel for each span of noise, and the spans, each after its sentinel, with one more sentinel at the end.

    sentinels: their numbers, in the order in which they are used. Raises DataError where the spans are more than they.
    """
    is_start_N = is_noise_N & ~np.concatenate([[False], is_noise_N[:-1]])
    num_spans = int(is_start_N.sum())
    if num_spans >= len(sentinels):
        raise DataError(
            f"{num_spans} spans of noise need {num_spans + 1} sentinels; data.num_sentinels={len(sentinels)}"
        )
    sentinels_N = sentinels[is_start_N.cumsum() - 1]
    input_tokens = np.where(is_start_N, sentinels_N, tokens_N)[~is_noise_N | is_start_N]
    starts_K = (is_noise_N.cumsum() - 1)[is_start_N]  # among the tokens that are noise
    spans = np.insert(tokens_N[is_noise_N], starts_K, sentinels_N[is_start_N])
    return input_tokens, np.append(spans, sentinels[num_spans])


def _cut(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Lengths (K,) of `parts` parts, each 1 or more, of `total`."""
    ends = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(ends, prepend=0, append=total)
