"""The Lightning trainer of a run, without what costs time or lines and serves no run here."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from attnlab.ranges import (
    Ge,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_ranges,
    must_be,
)
from attnlab.training.automatic import Precision, arithmetic

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.pytorch.loggers.logger import Logger
    from lightning.pytorch.profilers import Profiler
    from torch import nn

# Lightning's banners, tips, and advice about choices that are made here on purpose.
QUIET_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning")
QUIET_WARNINGS = (
    *(".*num_workers.*", ".*does not have many workers.*", ".*srun.*", ".*does not exist or is not.*"),
    *(".*isinstance.treespec.*", ".*no `val_dataloader`.*", ".*smaller than the logging interval.*"),
    ".*your dataloader is not resumable.*",  # the data module keeps the place
    ".*overridden `on_before_batch_transfer`.*",  # a task knows what its loss needs, a data module does not
)


class Passed(TypedDict, total=False):
    """Arguments of Lightning's Trainer as they are; `limit_val_batches` is of the validations during the training."""

    benchmark: bool | None
    detect_anomaly: bool
    limit_val_batches: NonNegativeInt | float
    min_steps: NonNegativeInt
    num_sanity_val_steps: Annotated[int, Ge(-1)]
    sync_batchnorm: bool


@check_ranges
@dataclass
class TrainerSettings:
    """How long and on what a run trains. Steps are optimizer steps; of `max_steps` and `max_epochs` the first that is
    reached ends it, and one may be None (see `in_steps`).

    `precision` and `compile` auto are settled by timings of the run's own step (see `automatic`);
    `float32_matmul_precision` is torch's (high: TF32 on a GPU);
    `accumulate_grad_batches` micro-batches make a step; `gradient_clip_val` None clips nothing; `val_check_interval` 0
    never validates; `checkpoint_budget_gb` bounds the disk that a run's checkpoints take (see Checkpoints);
    `plateau_share` None never ends a run on a plateau (see DivergenceCheck); `diagnostics_every` None never looks
    inside (see Diagnostics); `threads` None leaves torch's number; `devices` of each of `num_nodes` nodes train
    together, each on batches of its own: a step has as many more tokens. Each keeps the whole model (`strategy` ddp, or
    auto), or its share of the weights, gradients and optimizer states (fsdp2). `lightning` goes to Lightning's Trainer
    as it is. Raises ValueError for a number that makes no sense.
    """

    max_steps: PositiveInt | None = 1000
    max_epochs: PositiveInt | None = None
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: PositiveFloat | None = 1.0
    val_check_interval: NonNegativeInt = 100
    log_every_n_steps: PositiveInt = 10
    checkpoint_every_seconds: NonNegativeFloat = 60.0
    checkpoint_budget_gb: NonNegativeFloat = 0.1
    keep_checkpoints: Sequence[PositiveInt] = field(default_factory=list)
    branch_from: str | None = None
    plateau_share: Annotated[float, Interval(gt=0, le=1)] | None = 0.5
    diagnostics_every: PositiveInt | None = None
    compile: bool | Literal["auto"] = False
    checkpoint_activations: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    deterministic: bool = True
    lightning: Passed = field(default_factory=Passed)

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError(must_be("trainer.max_steps", "at least 1 where trainer.max_epochs is null", None))
        limit = self.lightning.get("limit_val_batches", 0)
        if isinstance(limit, float) and not 0 <= limit <= 1:
            wanted = "a number of batches, or a share of them from 0 to 1"
            raise ValueError(must_be("trainer.lightning.limit_val_batches", wanted, limit))
        if self.strategy == "fsdp2" and self.world_size == 1:
            raise ValueError(
                "trainer.strategy=fsdp2 shards a model over devices, and trainer.devices=1: accepted are 2 devices "
                "and more, or trainer.strategy=auto"
            )

    def in_steps(self, steps_in: Callable[[int, int, int], int]) -> TrainerSettings:
        """The same with epochs as steps; `steps_in` is the data's (epochs, batches of a step on each rank, ranks)."""
        if self.max_epochs is None:
            return self
        steps = steps_in(self.max_epochs, self.accumulate_grad_batches, self.world_size)
        return replace(self, max_steps=min(steps, self.max_steps or steps))

    @property
    def steps(self) -> int:
        """How many steps the training has, once epochs are steps."""
        assert self.max_steps is not None, "the data have not said how many steps an epoch has"
        return self.max_steps

    @property
    def world_size(self) -> int:
        """Devices that train together."""
        return self.devices * self.num_nodes

    @property
    def device_type(self) -> str:
        """The kind of device that the run will use: cpu, cuda or mps."""
        import torch

        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def cluster_environment(settings: TrainerSettings) -> ClusterEnvironment | None:
    """How the ranks find each other; None leaves it to Lightning. Slurm's requeue is not Lightning's."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if settings.world_size == 1:
        return LightningEnvironment()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # One of several tasks of a step by srun; a batch script and a single task are alone.
    is_one_of_several = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return SLURMEnvironment(auto_requeue=False) if is_one_of_several else None


def apply_to_model(settings: TrainerSettings, model: nn.Module) -> None:
    """Switches on activation checkpointing, and compiles in place (so that no name in a checkpoint changes).

    Raises ValueError where the model has no stack of layers to checkpoint, or to look into.
    """
    if settings.diagnostics_every is not None:
        from attnlab.training.diagnostics import stacks

        stacks(model)
    if settings.checkpoint_activations:
        switched = [module for module in model.modules() if hasattr(module, "checkpoint_activations")]
        if not switched:
            raise ValueError(
                f"trainer.checkpoint_activations=true: {type(model).__name__} has no stack of layers; accepted is false"
            )
        for module in switched:
            module.checkpoint_activations = True  # type: ignore[assignment]
    if settings.compile == "auto":
        raise ValueError(
            "trainer.compile=auto is settled by timings before a model is changed; accepted here: true, false"
        )
    if settings.compile:
        model.compile()


def build_trainer(
    settings: TrainerSettings,
    precision: Precision,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[pl.Callback] = (),
    directory: str | os.PathLike[str] | None = None,
    profiler: Profiler | None = None,
) -> pl.Trainer:
    """Lightning's Trainer for these settings; sets torch's threads, determinism and products for the process."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message)
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import Checkpoint, ModelSummary

    from attnlab.training.checkpoints import CheckpointFiles
    from attnlab.training.loggers import follow
    from attnlab.training.sharding import FullySharded

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision(settings.float32_matmul_precision)
    parts, every, device = settings.accumulate_grad_batches, settings.val_check_interval, settings.device_type
    environment = cluster_environment(settings)
    passed: dict[str, Any] = {"num_sanity_val_steps": 0, **settings.lightning}
    passed |= {} if every else {"limit_val_batches": 0}
    trainer = pl.Trainer(
        max_steps=settings.steps,
        min_epochs=0,
        max_epochs=-1,
        # A known number of batches: Lightning then fetches none ahead, and a checkpoint's train order is what was used.
        limit_train_batches=settings.steps * parts,
        val_check_interval=(every or settings.steps) * parts,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=parts,
        gradient_clip_val=settings.gradient_clip_val,
        accelerator=settings.device,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=FullySharded(settings.world_size) if settings.strategy == "fsdp2" else settings.strategy,
        plugins=[CheckpointFiles(), arithmetic(precision.used, device), *([environment] if environment else [])],
        # "warn" refuses no operation; what has a deterministic form uses it.
        deterministic="warn" if settings.deterministic and device == "cuda" else None,
        logger=list(loggers),
        callbacks=list(callbacks),
        default_root_dir=None if directory is None else os.fspath(directory),
        log_every_n_steps=settings.log_every_n_steps,
        enable_progress_bar=False,
        enable_model_summary=any(isinstance(callback, ModelSummary) for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        use_distributed_sampler=False,
        profiler=profiler,
        **passed,
    )
    follow(loggers, trainer)
    return trainer
