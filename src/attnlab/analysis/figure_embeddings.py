"""Texts as points: how alike they are as a heat map, many of them as a map of their two main directions. Legend: N texts, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attnlab.analysis.figure_style import COLUMN, PAGE, colour, new_figure, readable
from attnlab.analysis.wording import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS, MOST_FIGURES, MOST_LABELS = (
    30,
    15,
    60,
)  # texts of a heat map, of one with figures in it, of a map with words on it
LETTERS = 24


def embeddings_figure(embeddings_ND: np.ndarray, texts: Sequence[str]) -> Figure:
    """The heat map of cosines for up to 30 texts, else the map; to be drawn within `paper_style`. Rows have length 1."""
    cut = [text if len(text) <= LETTERS else f"{text[:LETTERS]}\u2026" for text in texts]
    names = [f"{place} {text}" for place, text in enumerate(cut, start=1)]
    return alike_figure(embeddings_ND, names) if len(texts) <= MOST_ROWS else map_figure(embeddings_ND, names)


def alike_figure(embeddings_ND: np.ndarray, names: Sequence[str]) -> Figure:
    """The cosine of every pair of texts."""
    import seaborn

    count = len(names)
    side = min(PAGE - 1.8, max(1.2, 0.32 * count))
    figure = new_figure(1.8 + side, 0.4 + side)
    axes = figure.subplots()
    alike_NN = embeddings_ND @ embeddings_ND.T
    figures = np.array([[number(value, 2) for value in row] for row in alike_NN]) if count <= MOST_FIGURES else None
    shades = seaborn.light_palette(colour("c0"), as_cmap=True)
    low = min(0.0, float(alike_NN.min()))
    seaborn.heatmap(
        alike_NN,
        ax=axes,
        cmap=shades,
        vmin=low,
        vmax=1,
        annot=False if figures is None else figures,
        fmt="",
        annot_kws={"fontsize": 6},
        linewidths=0.5,
        cbar=figures is None,
        xticklabels=[name.partition(" ")[0] for name in names],
        yticklabels=list(names),
    )
    readable(axes, count)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0)
    axes.set_xlabel("cosine of the embeddings")
    return figure


def map_figure(embeddings_ND: np.ndarray, names: Sequence[str]) -> Figure:
    """The texts on their two main directions (PCA), which show the share of the variance that the axes name."""
    from sklearn.decomposition import PCA

    kept = PCA(n_components=2, svd_solver="full")
    places_N2 = kept.fit_transform(embeddings_ND.astype(np.float64))
    few = len(names) <= MOST_LABELS
    figure = new_figure(PAGE if few else COLUMN, 5.0 if few else COLUMN)
    axes = figure.subplots()
    axes.scatter(places_N2[:, 0], places_N2[:, 1], s=10 if few else 4, color=colour("c0"), linewidth=0)
    for (x, y), name in zip(places_N2, names, strict=True):
        label = name if few else name.partition(" ")[0]
        axes.annotate(label, (x, y), (2, 2), textcoords="offset points", fontsize=5.5 if few else 4)
    shares = [f"{100 * share:.0f}% of the variance" for share in kept.explained_variance_ratio_]
    axes.set(xlabel=f"first direction ({shares[0]})", ylabel=f"second direction ({shares[1]})")
    return figure
