"""`attnlab embed`: texts as vectors, by the states of a trained encoder. Legend: N texts, T length, D model width."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attnlab.cli.compose import Mistake
from attnlab.cli.trained import load_model
from attnlab.data import Tokenizer
from attnlab.data.pairs import read_lines
from attnlab.data.vocabulary import Vocabulary, framed
from attnlab.models.encoder import Encoder
from attnlab.models.heads import EncoderHead

BATCH = 32
SHOWN = 60  # characters of a text


def embed(arguments: argparse.Namespace) -> int:
    """Prints how alike the texts are, or writes their embeddings or a picture of them; returns the exit status. Raises: Mistake."""
    picture = Path(arguments.picture) if arguments.picture else None
    if picture and (picture.suffix not in (".pdf", ".png") or not picture.parent.is_dir()):
        raise Mistake(f"--picture {picture}: accepted is a file that ends in .pdf or .png, in a folder that is there")
    texts = [*arguments.text, *(read_lines(Path(arguments.input)) if arguments.input else [])]
    if not texts or not all(text.strip() for text in texts):
        raise Mistake("give one text or more that are not empty, with --text TEXT or --input FILE (one a line)")
    model, tokenizer = load_model(Path(arguments.run), arguments.checkpoint)
    encoder = model.encoder if isinstance(model, EncoderHead) else model
    if not isinstance(encoder, Encoder) or tokenizer is None:
        raise Mistake(
            f"{arguments.run}: {type(model).__name__} is no encoder of texts; give a run of one, such as model=bert"
        )
    rows, cut = encode(tokenizer, texts, encoder.longest)
    if nothing := [text for text, row in zip(texts, rows, strict=True) if not len(row)]:
        raise Mistake(f"{nothing[0]!r} has no token in this run's tokenizer; leave it out")
    if cut:
        print(f"{len(cut)} of {len(texts)} texts cut at {encoder.longest} tokens", file=sys.stderr)
    embeddings_ND = embeddings(encoder, rows, arguments.pooling)
    if picture:
        _draw(picture, embeddings_ND.numpy(), texts)
        print(f"{picture}: {len(texts)} texts")
    if arguments.to:
        with open(arguments.to, "wb") as file:  # by its name, numpy would put .npy behind it
            np.save(file, embeddings_ND.numpy())
        print(f"{arguments.to}: {len(texts)} rows of {embeddings_ND.shape[1]} numbers")
    if arguments.to or picture:
        return 0
    for row, text in enumerate(texts):
        alike = " ".join(f"{value:6.3f}" for value in (embeddings_ND @ embeddings_ND[row]).tolist())
        print(f"{row + 1:3} {alike}  {text[:SHOWN]}")
    return 0


def _draw(picture: Path, embeddings_ND: np.ndarray, texts: Sequence[str]) -> None:
    from attnlab.analysis.figure_embeddings import embeddings_figure
    from attnlab.analysis.figure_style import paper_style, write_figure

    with paper_style():
        write_figure(embeddings_figure(embeddings_ND, texts), picture)


def encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int | None) -> tuple[list[np.ndarray], list[int]]:
    """The token rows of texts with the marks that an encoder sees around them, and the places of those that were cut."""
    vocabulary = Vocabulary(tokenizer)
    marks = vocabulary.marks.text
    room = None if longest is None else longest - sum(map(len, marks))
    encoded = [vocabulary.encode_text(text) for text in texts]
    cut = [] if room is None else [place for place, row in enumerate(encoded) if len(row) > room]
    return [framed(marks, row[:room]) for row in encoded], cut


@torch.inference_mode()
def embeddings(encoder: Encoder, rows: Sequence[np.ndarray], pooling: str = "mean") -> Tensor:
    """
    A vector of length 1 a text (N, D), from its states: their mean over all tokens, marks included, or the first one's.

    The mean is the published pooling of sentence-transformers (Reimers & Gurevych 2019, arXiv 1908.10084, section 3).
    """
    found = []
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        tokens_NT = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        is_token_NT = torch.zeros(tokens_NT.shape, dtype=torch.bool)
        for place, row in enumerate(part):
            tokens_NT[place, : len(row)], is_token_NT[place, : len(row)] = torch.from_numpy(row), True
        states_NTD = encoder.encode(tokens_NT, is_token_NT)
        real_NT1 = is_token_NT[:, :, None].to(states_NTD.dtype)
        pooled_ND = states_NTD[:, 0] if pooling == "first" else (states_NTD * real_NT1).sum(1) / real_NT1.sum(1)
        found.append(torch.nn.functional.normalize(pooled_ND, dim=1))
    return torch.cat(found)
