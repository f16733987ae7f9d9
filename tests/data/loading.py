"""Data modules as one rank of a training has them, and the batches that it gets."""

from types import SimpleNamespace


def place(module, rank=0, world_size=1, accumulate=1):
    """The data module, as one of so many ranks."""
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, accumulate_grad_batches=accumulate)
    return module


def take(module, count):
    """The first training batches."""
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(count)]
