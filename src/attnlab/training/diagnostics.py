"""A look inside a training, every so many steps: norms of gradients and updates by depth, the scale of the stream, the
entropy of attention. Legend: B batch, T target length, S source length, D model width, H heads."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.layers.attention import DotProductAttention
from attnlab.layers.backends import Eager
from attnlab.layers.residuals import Stream
from attnlab.layers.scope import Scope
from attnlab.layers.stack import Layer, Stack
from attnlab.parts import Config, find
from attnlab.training.loss import whole_norm
from attnlab.training.metrics import Metric
from attnlab.training.task import Batch, Task, as_task

REST = "rest"
START, END = "start", "end"  # of a training: its first look, and its last
GRADIENT_NORM_RATIO = Metric(
    "gradient_norm_ratio", "lower", "gradient norm of the last layer over that of the first", any_tokenizer=True
)


class Diagnostics(pl.Callback):
    """Reports at the first step and at every multiple of `every`, under diagnostics/<what>/<where>; <where> is layer=0,
    ... (encoder/layer=0, ... where there are two stacks), or rest: the parameters of no layer.

    gradient_norm: of the gradient of the mean over the step's tokens, before it is clipped. update_norm: of the change
    of the weights in that step. stream_rms: the root mean square of the stream after a layer, and attention_entropy,
    cross_attention_entropy: that of the weights of a query, in nats, a mean over heads and queries; both in one more
    forward pass without dropout on the step's last batch of the first rank, after the step, over positions that are no
    padding. Nothing that the training computes changes by it.

    At the end `figures` has what the first look (@start) and the last one (@end) say of a whole stack, under
    diagnostics/<what> (diagnostics/encoder/<what>, ... where there are two stacks). gradient_norm_ratio: the gradient
    norm of its last layer over that of its first, which Post-LN has above 1 and Pre-LN below (Xiong et al. 2020, arXiv
    2002.04745, section 3.3; lower values are called better, as large gradients near the output are what asks for a
    warm-up).
    """

    metrics: ClassVar[tuple[Metric, ...]] = (GRADIENT_NORM_RATIO.on("diagnostics", "diagnostics/*", at=(START, END)),)

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._looks: dict[str, dict[str, float]] = {}  # the first and the last
        self._before: dict[str, list[Tensor]] = {}
        self._gradient_norms: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keeps the norms of the gradients as they are accumulated, and the weights before the update."""
        if (step := trainer.global_step + 1) % self.every and step != 1:
            return
        for where, parameters in by_depth(as_task(pl_module).model).items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                self._gradient_norms[where] = whole_norm(gradients)
            self._before[where] = [parameter.detach().clone() for parameter in parameters]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Reports, once the step is over."""
        if not self._before:
            return
        task = as_task(pl_module)
        values = {f"gradient_norm/{where}": norm * task.sums.scale for where, norm in self._gradient_norms.items()}
        for where, parameters in by_depth(task.model).items():
            changes = [after.detach() - before for after, before in zip(parameters, self._before[where], strict=True)]
            values[f"update_norm/{where}"] = whole_norm(changes)
        self._before, self._gradient_norms = {}, {}
        values |= look(task, batch)
        seen = {name: float(value) for name, value in values.items()}
        self._looks = {START: self._looks.get(START, seen), END: seen}
        task.report({f"diagnostics/{name}": value for name, value in seen.items()}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return self._looks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._looks = dict(state_dict)

    def figures(self, task: Task) -> dict[str, float]:
        """What the first and the last look say of each stack; `unavailable` of the task says why one has no figure."""
        found = {}
        for prefix, stack in stacks(task.model).items():
            ends = [f"gradient_norm/{prefix}layer={index}" for index in (0, len(stack.layers) - 1)]
            for when, seen in self._looks.items():
                name = f"diagnostics/{prefix}{GRADIENT_NORM_RATIO.name}@{when}"
                if len(stack.layers) == 1 or not seen.keys() >= {*ends}:
                    task.unavailable[name] = "its first and its last layer are not two that train weights of their own"
                else:
                    first, last = (torch.tensor(seen[end], dtype=torch.double) for end in ends)
                    found[name] = float(last / first)
        return found


def stacks(model: nn.Module) -> dict[str, Stack]:
    """The stacks of a model by what stands before layer=0 in the names of values: nothing for the only one. Raises
    ValueError for none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Stack)}
    if not found:
        raise ValueError(
            f"trainer.diagnostics_every: {type(model).__name__} has no stack of layers to look into; accepted is null"
        )
    return {
        f"{name.removesuffix('.stack').rsplit('.', 1)[-1]}/" if len(found) > 1 else "": stack
        for name, stack in found.items()
    }


def by_depth(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of every layer, and the rest; what layers share belongs to the first of them."""
    rest = {id(parameter): parameter for parameter in model.parameters() if parameter.requires_grad}
    found = {}
    for where, layer in _layers(model):
        found[where] = [rest.pop(id(parameter)) for parameter in layer.parameters() if id(parameter) in rest]
    found[REST] = list(rest.values())
    return {where: parameters for where, parameters in found.items() if parameters}


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    for prefix, stack in stacks(model).items():
        for index, layer in enumerate(stack.layers):
            assert isinstance(layer, Layer)
            yield f"{prefix}layer={index}", layer


def look(task: Task, batch: Batch) -> dict[str, Tensor]:
    """The scale of the stream after each layer, and the entropy of attention in it, on a batch; all ranks look."""
    found: dict[str, Tensor] = {}
    is_target_BT = batch.get("is_target")  # no decoder is told of this padding
    with task.evaluating(), contextlib.ExitStack() as undo:
        undo.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled model would run past the hooks
        for where, layer in _layers(task.model):
            attentions = {"attention_entropy": layer.attention, "cross_attention_entropy": layer.cross_attention}
            kept = {
                name: undo.enter_context(_keeping_weights(attention))
                for name, attention in attentions.items()
                if isinstance(attention, DotProductAttention)
            }

            def after(
                layer: nn.Module, args: tuple[Tensor, Scope], stream: Stream,
                where: str = where, kept: dict[str, Eager] = kept,
            ) -> None:  # fmt: skip
                output_BTD = cast(Layer, layer).residual.leave(stream)
                is_real_BT = _real(args[1], output_BTD, is_target_BT)
                found[f"stream_rms/{where}"] = output_BTD[is_real_BT].float().square().mean().sqrt()
                for name, backend in kept.items():
                    found[f"{name}/{where}"] = entropy(backend.weights_BHTS, is_real_BT)
                    backend.weights_BHTS = None

            undo.callback(layer.register_forward_hook(after).remove)
        task.loss_sums(batch)
    return found


@contextlib.contextmanager
def _keeping_weights(attention: DotProductAttention) -> Iterator[Eager]:
    """Inside, an attention computes with a backend that keeps its weights: the same one, where stacks share it."""
    given = attention.backend
    keeping = given if isinstance(given, Eager) and given.keep_weights else Eager(keep_weights=True)
    attention.backend = keeping
    try:
        yield keeping
    finally:
        attention.backend = given


def _real(scope: Scope, x_BTD: Tensor, is_target_BT: Tensor | None) -> Tensor:
    """True where a stream's position is no padding, (B, T); targets are the last positions of a causal stream."""
    is_real_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    if scope.is_token_BS is not None:
        is_real_BT &= scope.is_token_BS
    if scope.causal and is_target_BT is not None:
        is_real_BT[:, -is_target_BT.shape[1] :] &= is_target_BT
    return is_real_BT


def entropy(weights_BHTS: Tensor | None, is_real_BT: Tensor) -> Tensor:
    """The entropy of attention weights in nats, a mean over heads and real queries; where they are no distribution,
    that of their shares in the sum of their sizes.
    """
    assert weights_BHTS is not None, "the attention did not keep its weights"
    sizes_BHTS = weights_BHTS.abs()
    weights_BHTS = sizes_BHTS / sizes_BHTS.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(sizes_BHTS.dtype).tiny)
    entropy_BT: Tensor = -torch.special.xlogy(weights_BHTS, weights_BHTS).sum(dim=-1).mean(dim=1)
    return entropy_BT[is_real_BT].mean()


def reported(task: type[Task], config: Config) -> Sequence[Metric]:
    """All metrics of a finished run of this resolved configuration: its task's own, and those of a look inside."""
    return [*task.metrics(config), *_of_looks(config)]


def reports(task: type[Task], metric: str, config: Config) -> bool:
    """Whether such a run can report a metric."""
    names = [name for one in _of_looks(config) for name in one.names()]
    return any(fnmatch.fnmatchcase(metric, name) for name in names) or task.reports(metric, config)


def _of_looks(config: Config) -> Sequence[Metric]:
    return () if find(config, "trainer.diagnostics_every") is None else Diagnostics.metrics
