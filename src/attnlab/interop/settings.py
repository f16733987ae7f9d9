"""What a model computes, as flat settings: two models with the same settings and weights are one function.

Settings are `{"model": "GPT", "d_model": 128, "position": "Rotary", "position.base": 10000.0, ...}`: the names of
classes and the fields of their constructors, every default spelt out and every width settled. Those of a model of
several stacks (its `towers`) stand under each: `{"model": "CLIP", "image.d_model": 64, "text.position": "ALiBi", ...}`.
Where layers differ by a pattern, the settings are those of the first layer, `pattern` numbers the kinds of layers, and
what differs in one stands under `layers.1.`, ...: `{"pattern": [0, 0, 1], "layers.1.attention.window": None, ...}`.
Fields that change only the training (dropout, initialisation but for muP's) or only how fast something is computed
(backend) are no settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

import attnlab.layers
import attnlab.models
from attnlab.layers.attention import Attention, DotProductAttention, GroupedQuery, MultiHead, MultiQuery, head_width
from attnlab.layers.pointwise import gated_width
from attnlab.layers.stack import StackFields
from attnlab.parts import parameters_of, unwrapped

Settings = dict[str, Any]

OUTSIDE = ("dropout", "stochastic_depth", "backend", "init", "initial_scale", "max_scale", "random_positions")
OF_PATTERNS = ("pattern", "layers")
# What a model tells its parts, so that it is no field of a part unless that binds it.
TOLD = (
    "d_model",
    "num_heads",
    "num_layers",
    "num_decoder_layers",
    "causal",
    "max_length",
    "grid",
    "num_sublayers",
    "layer_index",
    "d_ff",
)
# What is said of the norm of queries and keys, where there is none.
NORM_OF_QUERIES: Settings = {"attention.qk_norm_eps": 1e-6, "attention.qk_norm_zero_centered": False}
SAME_FUNCTION = (Attention, MultiHead, GroupedQuery, MultiQuery)
TOLD_TO = (("position.", "d_head"), ("attention.", "bias"), ("feed_forward.", "bias"))
PACKAGES = {"attnlab.models": attnlab.models, "attnlab.layers": attnlab.layers}
WITH_LENGTH = ("Learned", "CoPE", "SigmoidAttention")  # parts in whose function max_length shows
TEXTS = ("text", "decoder")  # the towers whose number of places max_length is


def canonical(node: Mapping[str, Any], **widths: object) -> Settings:
    """The settings of a model's node in a configuration; widths: what data told it. KeyError: no _target_."""
    return _settled(node["_target_"], {**widths, **node})


def completed(settings: Mapping[str, Any]) -> Settings:
    """The same settings with every default spelt out."""
    return _settled(settings["model"], nested(settings))


def build(settings: Mapping[str, Any]) -> nn.Module:
    """A new model of these settings, which may leave defaults out. Raises ValueError where a part refuses them."""
    model: nn.Module = _part(nested(settings))()
    return model


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as nodes: {"_target_": "attnlab.models.GPT", "position": {"_target_": ..., "_partial_": True}}."""
    node: dict[str, Any] = {"_target_": f"attnlab.models.{settings['model']}"}
    for key, value in settings.items():
        if key == "model":
            continue
        *path, last = key.split(".")
        place = node
        for word in path:
            place = place.setdefault(word, {"_partial_": True})
        if isinstance(value, str) and inspect.isclass(vars(attnlab.layers).get(value)):
            place.setdefault(last, {"_partial_": True})["_target_"] = f"attnlab.layers.{value}"
        else:
            place[last] = value
    node = _named(node)
    for tower in ("", *getattr(find(node["_target_"]), "towers", ())):
        _with_entries(node.get(tower, {}) if tower else node, node)
    return node


def _with_entries(stack: dict[str, Any], model: Mapping[str, Any]) -> None:
    """Gives each kind of layers its whole parts: where it says fields alone, those of the part that others have."""
    if pattern := stack.get("pattern"):
        stack["pattern"] = [str(number) for number in pattern]
        given: Mapping[str, Any] = stack.get("layers", {})
        defaults = _parameters(find(model["_target_"]))
        kinds = stack["layers"] = {number: dict(given.get(number, {})) for number in stack["pattern"]}
        for kind in kinds.values():
            for name in (name for name, value in kind.items() if isinstance(value, dict) and "_target_" not in value):
                kind[name] = _named(_merged(stack.get(name) or _node_of(defaults[name]), kind[name]))


def different(here: Settings, there: Settings) -> list[str]:
    """What tells two completed settings apart, a line each, without fields that one of two different parts lacks."""
    nothing = "nothing"
    places = [
        f"{tower}{seam}" for tower in ("", *(f"{tower}." for tower in TEXTS)) for seam in ("position", "attention")
    ]
    has_length = any(here.get(place) in WITH_LENGTH for place in places)
    keys = {*here, *there} - (set() if has_length else {"max_length"})
    other = {key for key in keys if here.get(key, nothing) != there.get(key, nothing)}
    return [
        f"{key}: {here.get(key, nothing)} here, {there.get(key, nothing)} there"
        for key in sorted(other)
        if (key in here and key in there) or key.rpartition(".")[0] not in other
    ]


def find(target: str) -> Any:
    """The class of a name of attnlab's models and layers, with or without its package. Raises KeyError for others."""
    package, _, name = target.rpartition(".")
    for known, module in PACKAGES.items():
        if package in ("", known) and name in module.__all__:
            return getattr(module, name)
    raise KeyError(f"{target} is none of attnlab's own models and layers")


def _settled(target: str, node: Mapping[str, Any]) -> Settings:
    """The settings of a model's class and node."""
    cls = find(target)
    towers: Mapping[str, Sequence[str]] = getattr(cls, "towers", {})
    if not towers:
        return _by_pattern(node, lambda fields: settle(_fields("", cls, fields))) | {"model": _name(target)}
    of_model = _fields("", cls, node)
    own = {
        key: value
        for key, value in of_model.items()
        if key.split(".")[0] not in (*StackFields.__annotations__, *towers)
    }
    told = {"max_length": own.get("max_length")}
    for tower in towers:
        levels = (getattr(cls, "of_towers", {}).get(tower, {}), node, node.get(tower) or {})
        given = {name: value for level in levels for name, value in level.items() if value is not None}
        settled = _by_pattern(given, partial(_of_tower, cls, told))
        own |= {f"{tower}.{key}": value for key, value in settled.items() if key not in told}
    return settle(own | {"model": _name(target)})


def _of_tower(cls: Callable[..., object], told: Settings, node: Mapping[str, Any]) -> Settings:
    settings = _fields("", cls, node)
    return settle({k: v for k, v in settings.items() if k.split(".")[0] in StackFields.__annotations__} | told)


def _by_pattern(node: Mapping[str, Any], settled: Callable[[Mapping[str, Any]], Settings]) -> Settings:
    """The settings of a stack, `settled` of its fields: those of the first layer, and what differs in other layers."""
    plain = {name: value for name, value in node.items() if name not in OF_PATTERNS}
    pattern, entries = list(node.get("pattern") or []), node.get("layers") or {}
    if not pattern:
        return settled(plain)
    kinds: list[Settings] = []
    numbers: dict[str, int] = {}
    for name in dict.fromkeys(pattern):
        own = {key: value for key, value in (entries.get(name) or {}).items() if value is not None}
        of_entry = settled(plain | own)
        if of_entry not in kinds:
            kinds.append(of_entry)
        numbers[name] = kinds.index(of_entry)
    if len(kinds) == 1:
        return kinds[0]
    depth = kinds[0]["num_layers"]
    found = kinds[0] | {"pattern": [numbers[pattern[index % len(pattern)]] for index in range(depth)]}
    for number, kind in enumerate(kinds[1:], 1):
        parts = {key for key, value in kind.items() if "." not in key and kinds[0].get(key) != value}
        other = {key for key, value in kind.items() if key.split(".")[0] in parts or kinds[0].get(key) != value}
        found |= {f"layers.{number}.{key}": kind[key] for key in sorted(other)}
    return found


def settle(settings: Settings) -> Settings:
    """Settings with every width that depends on others worked out: two ways to ask for one function look the same."""
    s = dict(settings)
    if isinstance(s.get("image_size"), int):
        s["image_size"] = [s["image_size"]] * 2
    if "embedding_size" in s:
        s["embedding_size"] = s["embedding_size"] or s["image.d_model"]
    num_heads = s.get("num_heads")
    if num_heads is None:  # a model without seams, or whose stacks have them
        return s
    d_model = s["d_model"]
    s["d_ff"] = s.pop("feed_forward.d_ff", None) or s.get("d_ff") or 4 * d_model
    if s.get("feed_forward.matched"):
        s["d_ff"], s["feed_forward.matched"] = gated_width(s["d_ff"], True), False
    bias = s.pop("bias", False)
    for key in ("attention.bias", "feed_forward.bias"):
        s[key] = bias if s.get(key) is None else s[key]
    cls = find(s["attention"])
    if "bias" not in parameters_of(cls):
        del s["attention.bias"]
    if issubclass(cls, DotProductAttention):
        d_head = s["attention.d_head"] = head_width(d_model, num_heads, s.get("attention.d_head"))
    if issubclass(cls, Attention):
        s["attention.num_key_value_heads"] = cls.key_value_heads(num_heads, s.get("attention.num_key_value_heads"))
        if not s.get("attention.qk_norm"):
            s |= {key: default for key, default in NORM_OF_QUERIES.items() if key in s}
        usual = (d_head // cls.maps_per_head) ** -0.5
        s["attention.scale"] = None if s.get("attention.scale") == usual else s.get("attention.scale")
    if cls in SAME_FUNCTION:
        s["attention"] = "Attention"  # the number of key/value heads is all that these classes differ in
    same = {
        "source_vocabulary_size": "vocabulary_size",
        "num_decoder_layers": "num_layers",
        "position.original_length": "max_length",
    }
    s |= {key: s[key] or s.get(other) for key, other in same.items() if key in s}
    if s.get("next_sentence"):
        s["pooler"] = True
    return s


def _named(node: dict[str, Any]) -> dict[str, Any]:
    """A node in which parts that are told by their fields alone are the default ones."""
    cls = find(node["_target_"])
    return _with_parts(node, _parameters(cls), tuple(getattr(cls, "towers", ())))


def _with_parts(node: dict[str, Any], defaults: Mapping[str, object], towers: Sequence[str] = ()) -> dict[str, Any]:
    for name, value in node.items():
        if name in towers:
            node[name] = _with_parts({key: own for key, own in value.items() if key != "_partial_"}, defaults)
        elif isinstance(value, dict) and name not in OF_PATTERNS:
            node[name] = _named(value if "_target_" in value else _merged(_node_of(defaults.get(name)), value))
    return node


def _node_of(part: object) -> dict[str, object]:
    """The node of a class or partial; without one of anything else."""
    if isinstance(part, partial):
        return _node_of(part.func) | {name: _node_of(bound) or bound for name, bound in part.keywords.items()}
    return {"_target_": f"attnlab.layers.{part.__name__}", "_partial_": True} if isinstance(part, type) else {}


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both nodes; where both say something, what the second says."""
    both = [key for key, value in other.items() if isinstance(value, dict) and isinstance(one.get(key), dict)]
    return one | other | {key: _merged(one[key], other[key]) for key in both}


def _name(target: str) -> str:
    """The name of one of attnlab's own classes; the whole path of another's."""
    package, _, name = target.rpartition(".")
    return name if package in ("", *PACKAGES) else target


def _parameters(cls: Callable[..., object]) -> dict[str, object]:
    """The fields of a constructor with their defaults; None where there is none."""
    return {name: None if p.default is p.empty else p.default for name, p in parameters_of(cls).items()}


def _fields(prefix: str, cls: Callable[..., object], node: Mapping[str, object]) -> Settings:
    """The fields of a class as settings, those of its parts below them."""
    settings: Settings = {}
    for name, default in _parameters(cls).items():
        told = name in TOLD or (prefix, name) in TOLD_TO
        value, key = node.get(name, default), f"{prefix}{name}"
        is_outside = name in (*OUTSIDE, *OF_PATTERNS) and not _multiplies(value)
        if is_outside or (prefix and told and name not in node):
            continue
        if isinstance(value, Mapping) and "_target_" in value:
            settings[key] = _name(value["_target_"])
            try:
                part = find(value["_target_"])
            except KeyError:  # a part of the user's own, of which nothing is known but its name
                continue
            settings |= _fields(f"{key}.", part, value)
        elif isinstance(value, type | partial):
            part, bound = (value.func, value.keywords) if isinstance(value, partial) else (value, {})
            settings[key] = part.__name__
            settings |= _fields(f"{key}.", part, bound)
        else:
            settings[key] = list(value) if isinstance(value, tuple) else value
    return settings


def _multiplies(value: object) -> bool:
    """Whether a part is an init that is in the function, too, by what the model multiplies."""
    target = value.get("_target_", "") if isinstance(value, Mapping) else ""
    part = unwrapped(value) if callable(value) else vars(attnlab.layers).get(str(target).rpartition(".")[2])
    return inspect.isclass(part) and issubclass(part, attnlab.layers.MuP)


def _part(node: Mapping[str, Any]) -> Any:
    """The partial that a node describes; of one without a class, such as what differs in a tower, its fields."""
    given = {
        key: _part(value) if isinstance(value, Mapping) else value
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    return partial(find(node["_target_"]), **given) if "_target_" in node else given
