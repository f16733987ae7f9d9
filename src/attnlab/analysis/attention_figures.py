"""Attention maps as figures for a paper. Legend: T queries, S keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.analysis.attended import Attended
from attnlab.analysis.attention_maps import LayerMap
from attnlab.analysis.head_roles import Role, clearest, role_of
from attnlab.analysis.head_statistics import Head, Scores
from attnlab.analysis.rollout import rollout_of

COLOURS = "cividis"  # the same to who cannot tell red from green (Nunez et al. 2018, arXiv 1712.01662)
MOST_LABELS = 80  # tokens along a side that are written out
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.titlesize": 8,
    "savefig.bbox": "tight",
    "savefig.dpi": 200,
}


def write_figures(folder: Path, example: Attended, scores: Scores, head: Head | None = None) -> list[Path]:
    """
    Figures of an example, each as PNG and as PDF with vector text: all heads of every kind, one head of every kind with its tokens, and of an
    image the rollout over it. Returns the files. head: the one shown; None: the one whose role is clearest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    roles = {one: role_of(named) for one, named in scores.items()}
    written: list[Path] = []
    with _drawing() as plot:
        for kind in example.kinds:
            name = kind.replace(" ", "_")
            written += _save(_overview(plot, example.of_kind(kind), roles), folder / f"{name}_overview", plot)
            shown = head if head is not None and head.kind == kind else _shown(scores, example.of_kind(kind))
            written += _save(
                _one(plot, example, shown, roles.get(shown)), folder / f"{name}_{shown.layer}.{shown.head}", plot
            )
        if example.pixels_YXC is not None:
            written += _save(_over_image(plot, example), folder / "rollout_over_image", plot)
    return written


@contextmanager
def _drawing() -> Iterator[Any]:
    """matplotlib without a screen, in the style of the figures; what was set before is set again."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        import matplotlib.pyplot as plt

        with plt.ioff():
            yield plt


def _save(figure: Any, path: Path, plot: Any) -> list[Path]:
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "pdf")]
    for file in files:
        figure.savefig(file, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
    plot.close(figure)
    return files


def _shown(scores: Scores, layers: list[LayerMap]) -> Head:
    """The head of a kind whose role is clearest; the first one where none has any, and of rollouts that of all layers."""
    kind = layers[0].kind
    return clearest(scores, kind) or Head(kind, layers[-1].layer if kind.endswith("rollout") else 0, 0)


def _overview(plot: Any, layers: list[LayerMap], roles: Mapping[Head, Role | None]) -> Any:
    """A square a head, layers upwards; each has its own scale, from 0 to its greatest weight."""
    columns = max(len(one.weights_HTS) for one in layers)
    figure, axes = plot.subplots(
        len(layers), columns, figsize=(1.25 * columns + 0.4, 1.35 * len(layers) + 0.2), squeeze=False
    )
    for row, one in zip(reversed(range(len(layers))), layers, strict=True):
        for head in range(len(one.weights_HTS)):
            axis, role = axes[row][head], roles.get(Head(one.kind, one.layer, head))
            axis.imshow(_seen(one, head), cmap=COLOURS, vmin=0, interpolation="nearest", aspect="auto")
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{one.layer}.{head}" + (f" {role.name}" if role else ""), fontsize=6, pad=2)
        axes[row][0].set_ylabel(f"layer {one.layer}", fontsize=7)
    return figure


def _seen(one: LayerMap, head: int) -> Any:
    """The weights of a head (T, S), masked where a query may not attend to a key: these places stay white."""
    hidden_TS = np.broadcast_to(~one.allowed_TS.numpy(), one.allowed_TS.shape)
    return np.ma.masked_array(one.weights_HTS[head].numpy(), mask=hidden_TS)


def _one(plot: Any, example: Attended, head: Head, role: Role | None) -> Any:
    """One head with its tokens on both sides."""
    import seaborn

    queries, keys = example.axes[head.kind]
    weights_TS = _seen(example.of_kind(head.kind)[head.layer], head.head)
    high, wide = (min(10.0, 0.16 * len(side) + 0.8) for side in (queries, keys))
    figure, axis = plot.subplots(figsize=(wide + 0.7, high))
    labels = [
        [_plain(label) for label in side.labels] if len(side) <= MOST_LABELS else "auto" for side in (keys, queries)
    ]
    seaborn.heatmap(
        weights_TS, mask=weights_TS.mask, xticklabels=labels[0], yticklabels=labels[1], cmap=COLOURS, vmin=0, square=len(queries) == len(keys),
        linewidths=0, cbar_kws={"label": "attention weight", "shrink": 0.7}, ax=axis, rasterized=True,
    )  # fmt: skip
    axis.tick_params(length=0, labelsize=6)
    for label in axis.get_xticklabels():
        label.set_rotation(90)
    for label in axis.get_yticklabels():
        label.set_rotation(0)
    axis.set(xlabel="key", ylabel="query")
    what = head.kind if head.kind.endswith("rollout") else f"{head.kind}, layer {head.layer}, head {head.head}"
    axis.set_title(what + (f": {role.name}" if role else ""))
    return figure


def _over_image(plot: Any, example: Attended) -> Any:
    """The image, and how much of the output comes from each patch by the rollout of all layers."""
    kind = rollout_of("self")
    axis, last = example.axes[kind][0], example.of_kind(kind)[-1]
    assert axis.grid is not None
    assert example.pixels_YXC is not None
    weights_TT = last.weights_HTS[0].numpy()
    read = weights_TT[0] if "[class]" in axis.labels else weights_TT[axis.before :].mean(axis=0)
    figure, (left, right) = plot.subplots(1, 2, figsize=(5.2, 2.4), layout="constrained")
    rows, columns, _ = example.pixels_YXC.shape
    left.imshow(example.pixels_YXC, interpolation="nearest")
    right.imshow(example.pixels_YXC.mean(axis=2), cmap="gray", interpolation="nearest")
    drawn = right.imshow(
        read[axis.before :].reshape(axis.grid), cmap=COLOURS, alpha=0.65, vmin=0, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="nearest"
    )  # fmt: skip
    for one, title in ((left, example.title), (right, "rollout of all layers")):
        one.set(xticks=[], yticks=[])
        one.set_title(_plain(title))
    figure.colorbar(drawn, ax=[left, right], shrink=0.8, label="share of what is read")
    return figure


def _plain(label: str) -> str:
    """A label in which nothing is taken for a formula."""
    return label.replace("$", r"\$")
