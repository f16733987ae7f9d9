"""Any optimizer of torch, or of the library pytorch_optimizer, by its name, with attnlab's groups of parameters: once
it has shown on a few numbers that a training with it can be saved and gone on with exactly."""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import operator
import pickle
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.parts import Choices, unsharded
from attnlab.ranges import NonNegativeFloat, check_ranges, must_be
from attnlab.training.optimizers import decay_groups
from attnlab.training.study_fields import did_you_mean
from attnlab.training.update_rules import Groups, hidden_matrices
from attnlab.training.widths import BY_NAME, NO_RULE, Rule, no_rule

Kinds = Mapping[str, type[Optimizer]]
SHAPE = (4, 6, 2, 2, 2)  # of what an optimizer is tried on, as far as a parameter has ranks
STEPS = 3  # before it is saved, and after
PLAIN = (int, float, str, bool, type(None))
# What a trial would say less clearly.
REFUSED = {
    "LBFGS": "evaluates the loss several times a step, and here each step's gradient is computed once",
    "SparseAdam": "takes sparse gradients alone, and these are dense",
    **dict.fromkeys(("AdaHessian", "SophiaH"), "needs second derivatives, which no step here computes"),
}
MATRICES = "is for matrices alone; choose optimizer=muon, which has AdamW for the rest"
NO_MATRICES = (
    "is for hidden matrices: nn.Linear weights inside a stack of layers (an nn.ModuleList); the model has none"
)
SQUARES = 8192  # rows of the largest square matrix that one may keep of a parameter
ALL_RANKS_DRAW = "draws random numbers, each rank its own, so that the ranks' weights would drift apart"
SCHEDULE_FREE = "evaluates other weights than it trains; choose optimizer=schedule_free"


@check_ranges
def torch_optimizer(
    model: nn.Module,
    name: str,
    lr: NonNegativeFloat | None = None,
    weight_decay: NonNegativeFloat | None = None,
    **arguments: Any,
) -> Optimizer:
    """An optimizer of torch.optim; None is its own default. Raises ValueError for one that cannot train here."""
    return _made(_of_torch(), model, name, lr, weight_decay, arguments)


@check_ranges
def pytorch_optimizer(
    model: nn.Module,
    name: str,
    lr: NonNegativeFloat | None = None,
    weight_decay: NonNegativeFloat | None = None,
    **arguments: Any,
) -> Optimizer:
    """The same of the library pytorch_optimizer (Kim 2021, github.com/kozistr/pytorch_optimizer)."""
    return _made(_of_library(), model, name, lr, weight_decay, arguments)


@functools.cache
def _of_torch() -> Kinds:
    found = {name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    return {name: kind for name, kind in found.items() if issubclass(kind, Optimizer) and kind is not Optimizer}


@functools.cache
def _of_library() -> Kinds:
    """Raises ValueError where it is not installed."""
    try:
        import pytorch_optimizer as library
    except ImportError as error:
        raise ValueError(
            f"optimizer=pytorch_optimizer needs that library ({error}): pip install 'attnlab[optimizers]'"
        ) from error
    kinds = map(library.load_optimizer, library.get_supported_optimizers())
    return {kind.__name__: kind for kind in kinds}


def _find(kinds: Kinds, name: object) -> Any:  # a class, which mypy takes for what has no hash
    """Raises ValueError for a name that there is not."""
    by_name = {known.lower(): kind for known, kind in kinds.items()}
    if str(name).lower() not in by_name:
        near = did_you_mean(str(name), [*kinds])
        raise ValueError(must_be("optimizer.name", f"one of {', '.join(sorted(kinds))}", name) + (near and f".{near}"))
    return by_name[str(name).lower()]


def fields_of(kind: Any) -> dict[str, object]:
    """The arguments of an optimizer but its parameters, with what their annotations say about plain values."""
    try:
        hints = typing.get_type_hints(kind.__init__)
    except (NameError, TypeError):
        hints = {}
    known = inspect.signature(kind).parameters.values()
    named = [one.name for one in known if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    is_cautious = not _for_matrices(kind) and "group.get('cautious')" in _source(kind)
    flags = {"cautious": bool} if is_cautious and "cautious" not in named else {}
    return {name: _plain(hints.get(name, Any)) for name in named[1:]} | flags


@functools.cache
def _for_matrices(kind: Any) -> bool:
    """Whether an optimizer of the library wants the groups of hidden matrices marked."""
    return any("'use_muon' not in group" in _source(one) for one in kind.__mro__)


def _source(kind: Any) -> str:
    """The library's source of a class: it takes some fields under no name of their own."""
    return inspect.getsource(kind) if kind.__module__.startswith("pytorch_optimizer.optimizer") else ""


def _plain(annotation: object) -> object:
    """An annotation without the options that no YAML can write; Any where nothing is left."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        options = [found for one in inner if (found := _plain(one)) is not Any]
        return functools.reduce(operator.or_, options) if options else Any
    if origin is tuple:
        return tuple[tuple(one if one is Ellipsis else _plain(one) for one in inner)]  # type: ignore[misc]
    return annotation if annotation in PLAIN or origin is typing.Literal else Any


def _made(
    kinds: Kinds, model: nn.Module, name: str, lr: float | None, weight_decay: float | None, given: Mapping[str, Any]
) -> Optimizer:
    kind = _find(kinds, name)
    name, known = kind.__name__, inspect.signature(kind).parameters
    arguments = _Arguments((key, tuple(value) if isinstance(value, list) else value) for key, value in given.items())
    arguments |= {"lr": lr} if lr is not None else {}
    if unknown := sorted(arguments.keys() - fields_of(kind).keys()):
        raise ValueError(f"optimizer.{unknown[0]}: {name} has no such field; it has {', '.join(fields_of(kind))}")
    decays = "weight_decay" in known
    if weight_decay is not None and not decays:
        raise ValueError(f"optimizer.weight_decay: {name} has no weight decay; leave it out")
    default = known["weight_decay"].default if decays else 0.0
    if "weight_decay_1d" in known:  # MARS has rates and decays of its own for tensors of rank one
        arguments = _Arguments({"weight_decay_1d": 0.0, "lr_1d": arguments.get("lr", known["lr"].default)} | arguments)
    asked, flagged = default if weight_decay is None else weight_decay, _for_matrices(kind)
    base = {key: arguments.get(key, known[key].default) for key in ("lr", "eps") if key in known}
    groups = _groups(model, asked, flagged, _rule(kinds, name, asked), base)
    if flagged and not any(group["use_muon"] for group in groups):
        raise ValueError(f"optimizer.name: {name} {NO_MATRICES}")
    groups = groups if decays else [{"params": group["params"]} for group in groups]
    ranks = tuple(sorted({p.ndim for group in groups for p in group["params"]}))
    longest = max(size for group in groups for p in group["params"] for size in (p.shape or (1,)))
    if name == "Shampoo" and longest > SQUARES:
        raise ValueError(
            f"optimizer.name: Shampoo keeps a square matrix for each side of a parameter, and decomposes it at every "
            f"step; the longest side may have {SQUARES:,}, here it has {longest:,}. Choose SOAP, which leaves long "
            "sides out (optimizer.max_precondition_dim)"
        )
    if reason := _why_not(kind, arguments, ranks, decays):
        raise ValueError(f"optimizer.name: {name} {reason}")
    optimizer: Optimizer = kind(groups, **arguments)
    return optimizer


def _rule(kinds: Kinds, name: str, weight_decay: float) -> Rule:
    """By which the rates of an optimizer go with the width of a model, where its init asks."""
    if weight_decay and name in ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop"):
        return no_rule("its weight decay is in the gradient; choose optimizer.weight_decay=0")
    return BY_NAME.get(name, NO_RULE) if kinds is _of_torch() else NO_RULE


def _groups(model: nn.Module, weight_decay: float, flagged: bool, rule: Rule, base: Mapping[str, float]) -> Groups:
    """Parameters that decay and those that do not; where `flagged`, hidden matrices by themselves, marked as such."""
    if not flagged:
        return decay_groups(model, weight_decay, (), rule, **base)
    matrices = hidden_matrices(model)
    rest = decay_groups(model, weight_decay, matrices, rule, **base)
    of_matrices = [{"params": matrices, "weight_decay": weight_decay, "use_muon": True}] if matrices else []
    return [*of_matrices, *({**group, "use_muon": False} for group in rest)]


class _Arguments(dict[str, Any]):
    """Arguments that a cache can keep."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@functools.cache
def _why_not(kind: Any, arguments: _Arguments, ranks: Sequence[int], decays: bool) -> str | None:
    """Why an optimizer cannot train here, by a trial on parameters of these ranks; None where it can."""
    name, [first, *more] = kind.__name__, inspect.signature(kind).parameters.values()
    if name in REFUSED or name.startswith("ScheduleFree"):
        return REFUSED.get(name, SCHEDULE_FREE)
    if first.name == "model":
        return "is made of a whole model, and here it is given groups of parameters"
    needed = [one.name for one in more if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if missing := [field for field in needed if field not in arguments]:
        return f"needs a value for {missing[0]}: add optimizer.{missing[0]}=..."
    try:
        with torch.random.fork_rng(), torch.device("cpu"), torch.enable_grad():
            straight = _Trial(kind, arguments, ranks, decays)
            straight.go_on(0)
            saved = io.BytesIO()
            torch.save([straight.optimizer.state_dict(), straight.weights], saved)
            saved.seek(0)
            state, weights = torch.load(saved, weights_only=True)
            resumed = _Trial(kind, arguments, ranks, decays, weights)
            resumed.optimizer.load_state_dict(state)
            straight.go_on(STEPS)
            resumed.go_on(STEPS)
    except pickle.UnpicklingError:
        return "keeps more than tensors and numbers, which no checkpoint of attnlab holds"
    except Exception as error:  # an optimizer of a stranger's may fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        if "use_muon" in said or ("Muon" in name and "2D" in said):
            return MATRICES
        return f"cannot train this model with these fields: {said[:300]}"
    if not all(isinstance(group.get("lr"), float) for group in straight.optimizer.param_groups):
        return "has no learning rate for a schedule to set"
    same = all(torch.equal(a, b) for a, b in zip(straight.weights, resumed.weights, strict=True))
    return None if same else "does not keep all of its state, so that a stopped run could not go on with the same bits"


class _Trial:
    """An optimizer on one parameter of each rank, with gradients that are a function of the step."""

    def __init__(
        self,
        kind: Any,
        arguments: Mapping[str, Any],
        ranks: Sequence[int],
        decays: bool,
        weights: Sequence[Tensor] | None = None,
    ) -> None:
        drawn = torch.Generator().manual_seed(0)
        shapes = [tuple(itertools.islice(SHAPE, rank)) for rank in ranks]
        made = [torch.randn(shape, generator=drawn) for shape in shapes] if weights is None else weights
        self.weights = [nn.Parameter(tensor.detach().clone()) for tensor in made]
        groups: Groups = [
            {"params": [weight], **({"weight_decay": 0.01 * (weight.ndim > 1)} if decays else {})}
            for weight in self.weights
        ]
        for group in groups if _for_matrices(kind) else ():
            group["use_muon"] = group["params"][0].ndim == 2
        self.optimizer: Optimizer = kind(groups, **arguments)

    def go_on(self, first: int, seed: int = 0) -> None:
        """The steps from one on. Raises whatever the optimizer raises."""
        torch.manual_seed(first + seed)  # what it draws a checkpoint restores
        for step in range(first, first + STEPS):
            asked = itertools.count()

            def closure(step: int = step, asked: Iterator[int] = asked) -> Tensor:
                assert next(asked) == 0, "it evaluates the loss several times a step"
                drawn = torch.Generator().manual_seed(1 + step)
                for weight in self.weights:
                    weight.grad = torch.randn(weight.shape, generator=drawn)
                return torch.zeros(())

            self.optimizer.step(closure)  # type: ignore[arg-type]


@functools.cache
def _draws(kind: Any) -> bool:
    """Whether an optimizer's steps depend on the random numbers of the process; False where it takes none."""
    found, decays = [], "weight_decay" in inspect.signature(kind).parameters
    try:
        with torch.random.fork_rng(), torch.device("cpu"), torch.enable_grad():
            for seed in (0, 1):
                trial = _Trial(kind, {}, (1, 2), decays)
                trial.go_on(0, 100 * seed)
                trial.go_on(STEPS, 100 * seed)
                found.append(trial.weights)
    except Exception:  # whatever it is, the trial of the model's own parameters says it
        return False
    return not all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _refused(choices: Choices) -> Iterator[str]:
    name, part = str(choices.get("optimizer.name")), choices.parts.get("optimizer")
    if part is pytorch_optimizer or name.lower() == "adafactor":
        yield from unsharded(choices, "optimizer", f"({name}) may not work on shards")
    world_size = (choices.get("trainer.devices") or 1) * (choices.get("trainer.num_nodes") or 1)
    of_library = _of_library() if world_size > 1 and part is pytorch_optimizer else {}
    is_known = name.lower() in map(str.lower, of_library)
    if is_known and _draws(_find(of_library, name)):
        yield f"optimizer.name: {name} {ALL_RANKS_DRAW}; choose another, or trainer.devices=1"


for function, all_kinds in ((torch_optimizer, _of_torch), (pytorch_optimizer, _of_library)):
    function.incompatible = _refused  # type: ignore[attr-defined]
    # The fields that a node may have beside those of the function, by its `name`.
    function.open_fields = lambda node, kinds=all_kinds: fields_of(_find(kinds(), node.get("name")))  # type: ignore[attr-defined]
