"""Fully sharded training (FSDP2): every rank keeps its share of the weights, gradients and optimizer states alone
(Rajbhandari et al. 2020; torch's fully_shard). What is saved is whole, so that any strategy and any number of devices
goes on from it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from attnlab.layers.stack import Stack

State = TypeVar("State")


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for fully_shard over `count` ranks, with checkpoints like every other strategy's: all ranks
    have to ask for a state, which is whole, and each takes its share of one."""

    lightning_restore_optimizer = True

    def __init__(self, count: int) -> None:
        super().__init__(data_parallel_size=count, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(ParallelStrategy.optimizer_state(self, optimizer))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """What the file holds: the task says what of it are the weights to train."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        # torch's set_model_state_dict cannot load modules that stand in a model twice, as T5's shared layers do.
        task = self.lightning_module
        assert task is not None
        own, given = task.state_dict(), checkpoint["state_dict"]
        shares = {name: placed_as(value, own[name]) if name in own else value for name, value in given.items()}
        task.load_state_dict(shares, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        ParallelStrategy.load_optimizer_state_dict(self, checkpoint)
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = placed_as(value, parameter)


def shard(task: pl.LightningModule, mesh: DeviceMesh) -> None:
    """Shards a task's model over a mesh: its `own_layers` one by one, the rest together; gathered for `loss_sums`.

    Raises ValueError for a model with a parameter that is a single number.
    """
    for name, parameter in task.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(
                f"trainer.strategy=fsdp2 cannot shard {name}, a single number (residual=rezero, norm=dynamic_tanh"
                " have such); accepted are other choices, or trainer.strategy=ddp"
            )
    for module in (*own_layers(task), task):
        fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(task, "loss_sums")


def own_layers(task: nn.Module) -> list[nn.Module]:
    """The layers of all stacks that share no parameter with another one (as T5's may)."""
    layers = [layer for stack in task.modules() if isinstance(stack, Stack) for layer in stack.layers]
    owners = Counter(parameter for layer in layers for parameter in layer.parameters())
    return [layer for layer in layers if all(owners[parameter] == 1 for parameter in layer.parameters())]


@contextlib.contextmanager
def gathered(task: nn.Module) -> Iterator[None]:
    """Inside, every rank has all weights of a sharded task, and no forward or backward waits for another rank; all have
    to enter. Ranks may then run the model as often as they like: shares of what is evaluated are unequal."""

    def reshards(module: FSDPModule, does: bool) -> None:
        # torch keeps the root's own weights until the backward pass needs them.
        module.set_reshard_after_forward(does and not isinstance(module, pl.LightningModule), recurse=False)
        module.set_reshard_after_backward(does, recurse=False)

    modules = [module for module in task.modules() if isinstance(module, FSDPModule)]
    # What is gathered for the first time within inference mode could not be trained on.
    with torch.inference_mode(False), torch.no_grad():
        for module in modules:
            reshards(module, False)
            module.unshard()
    try:
        yield
    finally:
        for module in modules:
            reshards(module, True)
            module.reshard()


def whole(state: State) -> State:
    """A state of tensors, numbers and containers with all tensors whole; all ranks have to ask."""
    gathered_state: State = tree_map(lambda v: v.full_tensor().cpu() if isinstance(v, DTensor) else v, state)
    return gathered_state


def placed_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of another one of the same shape, sharded as that one is."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(other.device)
    mine = tensor.to(other.to_local().device)
    return distribute_tensor(mine, other.device_mesh, other.placements, src_data_rank=None)
