"""Batches made ahead are those made when they are asked for, and so are positions; a fake stands for pinned memory."""

import gc
import itertools
import threading
import time
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from attnlab.data import DataModule
from attnlab.data.ahead import BatchesAhead
from attnlab.data.order import ShuffledOrder, TokenBatchOrder, TrainingLoader

COUNT = 10


def collate(rows_B, numbers_B=None):
    return {"rows": torch.from_numpy(np.asarray(rows_B))}


def pin(batch):
    return {name: x.clone() for name, x in batch.items()} | {"pinned": torch.ones(1)}


ORDERS = {
    "shuffled": lambda: ShuffledOrder(COUNT, 3, seed=4, rank=1, world_size=2),
    "by tokens": lambda: TokenBatchOrder(np.arange(1, COUNT + 1), 20, seed=4, parts=2, rank=0, world_size=1),
}


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches ahead"]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


@pytest.mark.parametrize("name", ORDERS)
def test_order_and_positions_are_those_of_the_loader(name):
    loader, ahead = (TrainingLoader(ORDERS[name](), collate) for _ in range(2))
    ahead = BatchesAhead(ahead, pin)
    assert ahead.position() == loader.position()
    for given, expected in itertools.islice(zip(ahead, loader, strict=True), 25):
        assert given["rows"].equal(expected["rows"])
        assert "pinned" in given
        assert ahead.position() == loader.position()
    ahead.close()
    assert ahead.position() == loader.position()


@pytest.mark.parametrize("name", ORDERS)
def test_a_position_goes_on_with_the_batch_after_the_one_given_out_last(name):
    ahead = BatchesAhead(TrainingLoader(ORDERS[name](), collate), pin)
    for _ in range(6):
        next(ahead)
    order = ORDERS[name]()
    order.load_state_dict(ahead.position())
    resumed = TrainingLoader(order, collate)
    for _ in range(12):
        assert next(ahead)["rows"].equal(next(resumed)["rows"])


def test_as_many_batches_are_made_as_are_to_wait():
    made = threading.Semaphore(0)

    def ready(batch):
        made.release()
        return batch

    ahead = BatchesAhead(TrainingLoader(ORDERS["shuffled"](), collate), ready, depth=2)
    assert not threads()  # none before the first batch
    next(ahead)
    for _ in range(4):  # the one given out, two that wait, and one that is in hand
        assert made.acquire(timeout=10)
    assert not made.acquire(timeout=0.2)


def test_an_error_is_raised_where_its_batch_would_have_come():
    calls = itertools.count()

    def failing(rows_B, numbers_B):
        if next(calls) == 3:
            raise OSError("the disk is gone")
        return collate(rows_B)

    ahead = BatchesAhead(TrainingLoader(ORDERS["shuffled"](), failing), pin)
    for _ in range(3):
        next(ahead)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert not threads()


def test_the_thread_ends_with_its_batches():
    ahead = BatchesAhead(TrainingLoader(ORDERS["shuffled"](), collate), pin)
    next(ahead)
    assert len(threads()) == 1
    del ahead  # and the fixture sees that it goes


class Numbers(DataModule):
    """The numbers below COUNT, shuffled."""

    name = "numbers"
    tokens_per_batch = 3
    train_tokens = COUNT

    def dims(self):
        return {}

    placeholder_dims = facts = dims

    def describe(self):
        return self.name

    def train_dataloader(self):
        return self.in_order(ShuffledOrder(COUNT, 3, seed=2), collate)


class Recorder(lightning.LightningModule):
    """Keeps what it was given; its weight depends on the order."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight, self.seen, self.fail_at = torch.nn.Parameter(torch.zeros(())), [], fail_at

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "first": batch["rows"][:1]}

    def training_step(self, batch):
        if self.global_step == self.fail_at:
            raise RuntimeError("stop here")
        self.seen.append(batch["rows"].tolist())
        return ((self.weight - batch["rows"].float()) ** 2).mean() + 0 * batch["first"].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, max_steps, resume=None, fail_at=None):
    module, data = Recorder(fail_at), Numbers()
    trainer = lightning.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        limit_train_batches=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")],
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(DataModule, "_ready_for_device", lambda self: pin)


def test_a_run_has_the_same_bits_and_its_checkpoints_the_same_positions(tmp_path, request):
    plain = fit(tmp_path / "plain", 10)
    request.getfixturevalue("as_on_a_gpu")
    ahead = fit(tmp_path / "ahead", 10)
    assert not threads()
    assert ahead.seen == plain.seen
    assert ahead.weight.equal(plain.weight)
    for step in (5, 10):
        found = [torch.load(tmp_path / kind / f"step={step}.ckpt", weights_only=True) for kind in ("plain", "ahead")]
        positions = [checkpoint["Numbers"] for checkpoint in found]
        assert positions[0] == positions[1] == {"images_seen": 3 * step}
    resumed = fit(tmp_path / "resumed", 10, tmp_path / "ahead" / "step=5.ckpt")
    assert resumed.seen == plain.seen[5:]
    assert resumed.weight.equal(plain.weight)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_thread_ends_with_a_run_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match="stop here"):
        fit(tmp_path, 10, fail_at=4)
    assert not threads()


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_batches_are_made_ahead_where_a_gpu_trains(monkeypatch, device):
    places = []
    monkeypatch.setattr("attnlab.data.module.pinned", lambda batch, place: places.append(place) or pin(batch))
    data, where = Numbers(), torch.device(device, 0)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=where), lightning_module=Recorder())
    loader = data.train_dataloader()
    assert isinstance(loader, BatchesAhead) == (device == "cuda")
    batch = next(loader)
    assert places[:1] == ([where] if device == "cuda" else [])
    assert ("first" in batch) == ("pinned" in batch) == (device == "cuda")
    assert data.state_dict() == {"images_seen": 3}
    data.teardown("fit")
    assert not threads()
    assert data.state_dict() == {"images_seen": 3}
