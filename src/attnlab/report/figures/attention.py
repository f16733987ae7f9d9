"""Attention maps as figures for a paper. Legend: T queries, S keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import CROSS, Head, LayerMap, rollout_of
from attnlab.inspection.heads import Role, Scores, clearest, role_of
from attnlab.report.figures import style
from attnlab.report.figures.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "cividis"  # the same to who cannot tell red from green (Nunez et al. 2018, arXiv 1712.01662)
MOST_LABELS = 80  # tokens along a side that are written out


def write_figures(folder: Path, example: Attended, scores: Scores, head: Head | None = None) -> list[Path]:
    """Writes figures of an example and returns the files: all heads of every kind, one head of every kind with its
    tokens, of an image the rollout over it, of a recording what is read of its spectrogram for each token. head: the
    one shown; None: the one whose role is clearest."""
    return style.write_figures(_figures(example, scores, head), folder)


def _figures(example: Attended, scores: Scores, head: Head | None) -> Iterator[tuple[str, Figure]]:
    roles = {one: role_of(named) for one, named in scores.items()}
    for kind in example.kinds:
        name, layers = kind.replace(" ", "_"), example.of_kind(kind)
        yield f"{name}_overview", _overview(layers, roles)
        shown = head if head is not None and head.kind == kind else _clearest(example, kind, scores)
        yield f"{name}_{shown.layer}.{shown.head}", _one(example, shown, roles.get(shown))
    if example.pixels_YXC is not None and rollout_of("self") in example.kinds:
        yield "rollout_over_image", _over_image(example, example.pixels_YXC)
    if example.features_MF is not None:
        yield "cross_over_spectrogram", _over_spectrogram(example, example.features_MF, head)


def head_figure(example: Attended, scores: Scores, head: Head | None = None) -> Figure:
    """One head with its tokens, to be drawn within `paper_style`; None: of the first kind the one of clearest role."""
    shown = head or _clearest(example, example.kinds[0], scores)
    return _one(example, shown, role_of(scores[shown]) if shown in scores else None)


def _clearest(example: Attended, kind: str, scores: Scores) -> Head:
    """The head of a kind whose role is clearest, else the first; of rollouts that of all layers."""
    layers = example.of_kind(kind)
    return clearest(scores, kind) or Head(kind, layers[-1 if kind.endswith("rollout") else 0].layer, 0)


def _overview(layers: Sequence[LayerMap], roles: Mapping[Head, Role | None]) -> Figure:
    """A square a head, layers upwards; each has its own scale, from 0 to its greatest weight."""
    columns = max(len(one.weights_HTS) for one in layers)
    figure = new_figure(1.25 * columns + 0.4, 1.35 * len(layers) + 0.2)
    panels = figure.subplots(len(layers), columns, squeeze=False)
    for row, one in zip(reversed(range(len(layers))), layers, strict=True):
        for head in range(len(one.weights_HTS)):
            axes, role = panels[row][head], roles.get(Head(one.kind, one.layer, head))
            axes.imshow(_seen(one, head), cmap=COLOURS, vmin=0, interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{one.layer}.{head}" + (f" {role.name}" if role else ""), fontsize=6, pad=2)
        panels[row][0].set_ylabel(f"layer {one.layer}", fontsize=7)
    return figure


def _seen(one: LayerMap, head: int) -> np.ma.MaskedArray:
    """The weights of a head (T, S), masked where a query may not attend to a key: these places stay white."""
    return np.ma.masked_array(one.weights_HTS[head].numpy(), mask=~one.allowed_TS.numpy())


def _one(example: Attended, head: Head, role: Role | None) -> Figure:
    queries, keys = example.axes[head.kind]
    high, wide = (min(10.0, 0.16 * len(side) + 0.8) for side in (queries, keys))
    figure = new_figure(wide + 0.7, high)
    axes = figure.subplots()
    seen_TS = _seen(example.layer(head.kind, head.layer), head.head)
    drawn = axes.imshow(seen_TS, cmap=COLOURS, vmin=0, interpolation="nearest")
    axes.set_aspect("equal" if len(queries) == len(keys) else "auto")
    for axis, side in ((axes.xaxis, keys), (axes.yaxis, queries)):
        if len(side) <= MOST_LABELS:
            axis.set_ticks(range(len(side)), side.labels)
    axes.tick_params(length=0, labelsize=6)
    axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="key", ylabel="query")
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="attention weight")
    what = head.kind if head.kind.endswith("rollout") else f"{head.kind}, layer {head.layer}, head {head.head}"
    axes.set_title(what + (f": {role.name}" if role else ""))
    return figure


def _over_image(example: Attended, pixels_YXC: np.ndarray) -> Figure:
    """The image, and how much of the output comes from each patch by the rollout of all layers."""
    kind = rollout_of("self")
    axis, last = example.axes[kind][0], example.of_kind(kind)[-1]
    assert axis.grid is not None
    weights_TT = last.weights_HTS[0].numpy()
    read_T = weights_TT[0] if "[class]" in axis.labels else weights_TT[axis.before :].mean(axis=0)
    read_YX = read_T[axis.before :].reshape(axis.grid)
    figure = new_figure(5.2, 2.4)
    left, right = figure.subplots(1, 2)
    rows, columns, _ = pixels_YXC.shape
    edges = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    left.imshow(pixels_YXC, interpolation="nearest")
    right.imshow(pixels_YXC.mean(axis=2), cmap="gray", interpolation="nearest")
    drawn = right.imshow(read_YX, cmap=COLOURS, alpha=0.65, vmin=0, extent=edges, interpolation="nearest")
    for axes, title in ((left, example.title), (right, "rollout of all layers")):
        axes.set(xticks=[], yticks=[])
        axes.set_title(title)
    figure.colorbar(drawn, ax=[left, right], shrink=0.8, label="share of what is read")
    return figure


def _over_spectrogram(example: Attended, features_MF: np.ndarray, head: Head | None) -> Figure:
    """The spectrogram, and below it, on the same seconds, what is read for each token: by the head that is asked for,
    or by the heads of the last layer on average."""
    layers = example.of_kind(CROSS)
    if head is not None and head.kind == CROSS:
        what, read_TS = f"layer {head.layer}, head {head.head}", example.layer(CROSS, head.layer).weights_HTS[head.head]
    else:
        what, read_TS = f"layer {layers[-1].layer}, mean of all heads", layers[-1].weights_HTS.mean(dim=0)
    queries, _ = example.axes[CROSS]
    seconds = features_MF.shape[1] / 100
    figure = new_figure(6.0, 1.6 + min(6.0, 0.16 * len(queries) + 0.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, max(1.0, 0.16 * len(queries))])
    above.imshow(features_MF, cmap=COLOURS, aspect="auto", origin="lower", extent=(0, seconds, 0, len(features_MF)))
    above.set(ylabel="mel bin", title=example.title)
    edges = (0, seconds, len(queries) - 0.5, -0.5)
    drawn = below.imshow(read_TS.numpy(), cmap=COLOURS, vmin=0, aspect="auto", interpolation="nearest", extent=edges)
    below.set(xlabel="seconds", ylabel="token")
    if len(queries) <= MOST_LABELS:
        below.yaxis.set_ticks(range(len(queries)), queries.labels)
        below.tick_params(axis="y", length=0, labelsize=6)
    figure.colorbar(drawn, ax=[above, below], shrink=0.7, label=f"cross-attention weight ({what})")
    return figure
