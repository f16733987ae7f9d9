"""A model that starts from another model's weights under an ablation: what can be kept, what is converted, what is new.

Legend: G key/value heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from attnlab.interop.architecture import CannotConvert, some
from attnlab.interop.settings import Settings

# Where the tensors of a seam stand in the names of a model's state.
PLACES = {
    "position": (".position.",),
    "residual": (".residual.", "stack.norm.", "encoder.norm.", "decoder.norm.", "embedding_norm.", "transform_norm."),
    "attention": (".attention.", ".cross_attention."),
    "feed_forward": (".feed_forward.",),
}
LISTED = 8


@dataclass
class Start:
    """Names of the tensors that were kept, converted (how), initialised (why), and of the source what was left."""

    kept: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The same in words, a line of each kind."""
        converted = [f"{name} ({how})" for name, how in self.converted.items()]
        fresh = [f"{name} ({why})" if why else name for name, why in self.fresh.items()]
        rows = {"converted": converted, "fresh": fresh, "left behind": self.left}
        kept = f"kept {len(self.kept)} tensors as they are"
        return [kept, *(f"{what}: {len(names)}: {some(names, LISTED)}" for what, names in rows.items() if names)]


def start_from(model: nn.Module, here: Settings, given: Mapping[str, Tensor], there: Settings) -> Start:
    """Copies into `model` what it shares with the tensors `given`, which are those of a model of the settings `there`.

    A tensor is kept where both have it in one shape, and converted where that has a meaning: keys and values of a group
    of heads become their mean, those of one head are repeated (Ainslie et al. 2023, arXiv 2305.13245, section 2.1), the
    first rows serve a shorter table of positions of text, an output that is no longer tied starts as the embedding.
    What else is of a seam that was chosen anew stays fresh; so does a table of positions of another kind, whatever its
    shape, and the output of a task with another number of classes. Raises CannotConvert where a tensor has another
    shape, or other heads, and no choice of a seam says why, and where nothing is shared.
    """
    state = own_tensors(model.state_dict())
    given = under_own_names(state, given)
    # Of layers that two stacks share, those of the first.
    first = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    own = {name: tensor for name, tensor in state.items() if name in first}
    start, taken = Start(), {}
    refused: list[str] = []
    for name, tensor in own.items():
        source, tower = given.get(name), _tower_of(name, here)
        here_of, there_of = _of_stack(tower, here), _of_stack(tower, there)
        seam = seam_of(name)
        is_changed = seam is not None and _of(seam, here_of) != _of(seam, there_of)
        if source is not None and seam == "position" and not _same_table(here_of, there_of):
            start.fresh[name] = "its rows stand for other positions"
        elif source is not None and source.shape == tensor.shape:
            start.kept.append(name)
            taken[name] = source
        elif (made := _converted(name, tensor, given, here_of, there_of)) and made[0].shape == tensor.shape:
            taken[name], start.converted[name] = made
        elif source is None or is_changed or _is_of_the_task(name, here):
            start.fresh[name] = "" if source is None else f"{tuple(source.shape)} there, {tuple(tensor.shape)} here"
        else:
            refused.append(f"{name}: {tuple(source.shape)} there, {tuple(tensor.shape)} here")
    # Tensors of one shape may be cut into heads elsewhere.
    sizes = [size for size in dict.fromkeys([*here, *there]) if size.endswith(("num_heads", "attention.d_head"))]
    refused += [
        f"{size}: {there.get(size)} there, {here.get(size)} here" for size in sizes if here.get(size) != there.get(size)
    ]
    if refused:
        raise CannotConvert(
            f"tensors of other shapes, which no part that was chosen anew explains: {some(refused, LISTED)}. "
            "Give this model the sizes of that one"
        )
    if not start.kept:
        raise CannotConvert(
            f"the two models share no tensor ({some(sorted(given), LISTED)} there, {some(sorted(own), LISTED)} here)"
        )
    model.load_state_dict(taken, strict=False)
    # Of layers that two stacks share, the second's names are no loss where they hold the same.
    left = {*given} - {*own}
    same = {name for name in left & {*state} if given[name].equal(state[name].to(given[name].device))}
    start.left = sorted(left - same)
    return start


def _tower_of(name: str, settings: Settings) -> str:
    """The tower that a tensor belongs to, by its name; empty where the model has none."""
    first = name.partition(".")[0]
    return first if f"{first}.d_model" in settings else ""


def _of_stack(tower: str, settings: Settings) -> Settings:
    """The settings of a model's stack: its tower's, with what kind of input it has, or all of them."""
    if not tower:
        return settings
    own = {key.removeprefix(f"{tower}."): value for key, value in settings.items() if key.startswith(f"{tower}.")}
    return own | ({"image_size": settings["image_size"]} if tower == "image" else {})


def seam_of(name: str) -> str | None:
    """The seam that a tensor of a model belongs to, by its name."""
    return next((seam for seam, places in PLACES.items() if any(place in name for place in places)), None)


def _is_of_the_task(name: str, here: Settings) -> bool:
    """Whether a tensor is of the output of a task, whose size its data give: a ViT's classes, or one on an encoder."""
    return name.startswith("head." if here["model"] == "ViT" else "output.")


def _of(seam: str, settings: Settings) -> Settings:
    return {key: value for key, value in settings.items() if key == seam or key.startswith(f"{seam}.")}


def _same_table(here: Settings, there: Settings) -> bool:
    """Whether a row of one table of positions means what it means in the other."""
    return all(here.get(key) == there.get(key) for key in ("position", "position.offset"))


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a state dict that are weights or buffers."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}


def under_own_names(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given tensors under the names that they have here: a task's model holds an encoder under `encoder.`."""
    given = own_tensors(given)
    wrapped = "encoder.embedding.weight"
    if wrapped in own and wrapped not in given:
        return {f"encoder.{name}": tensor for name, tensor in given.items()}
    if wrapped in given and wrapped not in own:
        return {name.removeprefix("encoder."): tensor for name, tensor in given.items()}
    return given


def _converted(
    name: str, tensor: Tensor, given: Mapping[str, Tensor], here: Settings, there: Settings
) -> tuple[Tensor, str] | None:
    """The tensor made out of another one, and how; None where there is no way."""
    source = given.get(name)
    if source is None:
        table = given.get(name.replace("head.weight", "embedding.weight"))
        is_output = name in ("head.weight", "encoder.head.weight")
        return (table, "the embedding") if is_output and there.get("tie_embeddings") and table is not None else None
    if ".attention." in name or ".cross_attention." in name:
        return _regrouped(name, tensor, source, here, there)
    of_text = here.get("position") == "Learned" and "image_size" not in here
    if of_text and seam_of(name) == "position" and len(source) > len(tensor):
        return source[: len(tensor)], f"the first {len(tensor)} of {len(source)} rows"
    return None


def _regrouped(name: str, tensor: Tensor, source: Tensor, here: Settings, there: Settings) -> tuple[Tensor, str] | None:
    number, before = (settings.get("attention.num_key_value_heads") for settings in (here, there))
    same = all(here.get(size) == there.get(size) for size in ("attention.d_head", "num_heads"))
    if not (same and number and before and number != before and (".key." in name or ".value." in name)):
        return None
    heads_GK = source.unflatten(0, (before, -1))
    if before % number == 0:
        return heads_GK.unflatten(0, (number, -1)).mean(dim=1).flatten(0, 1), f"means of {before // number} heads"
    if number % before == 0:
        return heads_GK.repeat_interleave(number // before, dim=0).flatten(0, 1), f"each head {number // before} times"
    return None
