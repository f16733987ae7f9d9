"""A composed configuration with one field changed, without composing anew."""

from copy import deepcopy
from dataclasses import replace


def changed(composed, path, value, overrides=()):
    """As OmegaConf.update, without the override's name where none is given."""
    raw = deepcopy(composed.raw)
    *above, last = path.split(".")
    node = raw
    for word in above:
        node = node[word]
    node[last] = value
    cell = value if path == "cell" else composed.cell
    return replace(composed, raw=raw, overrides=list(overrides), cell=cell)
