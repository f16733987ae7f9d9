"""Random tokens twice over: what shows whether a head continues a pattern by induction alone. Legend: B sequences, T length, N tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from attnlab.analysis.attended import Attended
from attnlab.analysis.attention_maps import SELF, layer_maps
from attnlab.analysis.head_statistics import Head, Score, head_scores
from attnlab.analysis.token_axis import Axis
from attnlab.data.marks import Marks
from attnlab.data.tokenizers import Tokenizer
from attnlab.models.language_model import LanguageModel

SEQUENCES = 8
LONGEST = 50  # random tokens, before they are repeated
SHORTEST = 4


def repeated_rows(
    text_tokens_N: np.ndarray, length: int, count: int, before: Sequence[int] = (), seed: int = 0
) -> np.ndarray:
    """`count` rows of `length` random tokens, all different where there are so many, and the same ones again; marks stand before them."""
    random = np.random.default_rng(seed)
    again = length > len(text_tokens_N)
    halves = np.stack([random.choice(text_tokens_N, length, replace=again) for _ in range(count)])
    return np.concatenate(
        [np.broadcast_to(np.array(before, dtype=np.int64), (count, len(before))), halves, halves], axis=1
    )


@torch.inference_mode()
def repeat_scores(model: LanguageModel, tokenizer: Tokenizer, room: int | None = None) -> dict[Head, dict[str, Score]]:
    """
    `repeats`: the induction score of each head (see `mass_targets`) on random tokens that are repeated (Olsson et al. 2022, arXiv 2209.11895,
    "Model Analysis Table"), where no word, no grammar and no other habit of the text can help.

    room: the most tokens of a sequence, such as the length trained at. Nothing where a pattern of four does not fit.
    """
    before = (tokenizer.marks or Marks()).text[0]
    limits = [limit for limit in (room, model.longest) if limit is not None]
    length = min([LONGEST, len(tokenizer.text_tokens), *((limit - len(before)) // 2 for limit in limits)])
    if length < SHORTEST:
        return {}
    rows_BT = repeated_rows(tokenizer.text_tokens, length, SEQUENCES, before)
    examples = [_example(model, row_T, len(before)) for row_T in rows_BT]
    scores = head_scores(examples)
    return {head: {"repeats": named["induction"]} for head, named in scores.items() if "induction" in named}


def _example(model: LanguageModel, row_T: np.ndarray, num_before: int) -> Attended:
    tokens_1T = torch.from_numpy(row_T.astype(np.int64))[None]
    maps = layer_maps(model, lambda: model(tokens_1T))
    is_mark_T = np.arange(len(row_T)) < num_before
    axis = Axis([""] * len(row_T), row_T, is_mark_T, np.full((len(row_T), 2), -1))
    return Attended("", maps, {SELF: (axis, axis)})
