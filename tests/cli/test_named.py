"""What of Lightning and of other libraries a run names: callbacks, one's own too, optimizers, arguments of the Trainer."""

import json

import pytest

CALLBACK = """
import lightning.pytorch as pl


class Counted(pl.Callback):
    def __init__(self, every: int = 1) -> None:
        self.every, self.count = every, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count += 1
        if self.count % self.every == 0:
            pl_module.report({"own/count": float(self.count)})


class NoCallback:
    pass
"""
REFUSED = {
    "callbacks.mine.every=often": "callbacks.mine.every must be a whole number, got 'often'",
    "callbacks.mine.evry=2": "callbacks.mine.evry: there is no such field. Did you mean callbacks.mine.every?",
    "callbacks=[none]": "callbacks.none must be derived from lightning.Callback, got 'own_callbacks.NoCallback'",
    "callbacks=[swa]": "choose averaging=ema",
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=val/los": "must be a metric of the validations (val/loss,",
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=test/loss@1x": "must be a metric of the validations",
    "callbacks=[early_stopping] callbacks.early_stopping.mode=low": "callbacks.early_stopping: `mode` can be min, max, got low",
    "callbacks=[timer] callbacks.timer.duration=1h": "callbacks.timer: `Timer(duration='1h')` is not a valid duration",
}  # fmt: skip


@pytest.fixture
def words(here, monkeypatch, tiny):
    (here / "own_callbacks.py").write_text(CALLBACK)
    (here / "own/callbacks").mkdir(parents=True)
    for name, text in {
        "mine": "_target_: own_callbacks.Counted\nevery: 4\n",
        "none": "_target_: own_callbacks.NoCallback\n",
        "swa": "_target_: lightning.pytorch.callbacks.StochasticWeightAveraging\nswa_lrs: 0.01\n",
    }.items():
        (here / f"own/callbacks/{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(here))
    return ["--config-dir", "own", *tiny]


@pytest.mark.slow
def test_it_is_swept_and_does_what_it_is_there_for(attnlab, here, words):
    chosen = "callbacks=[],[mine,lr_monitor]"
    assert attnlab("train", "-m", *words, chosen, "trainer.max_steps=9", "trainer.log_every_n_steps=5").status == 0
    lines, callbacks = {}, {}
    for path in (here / "runs/train").glob("*/seed=0"):
        name = path.parent.name.split(",")[0]
        callbacks[name] = list(json.loads((path / "run.json").read_text())["config"].get("callbacks", {}))
        values = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        lines[name] = [
            (line["step"], key) for line in values for key in line["values"] if key.startswith(("own/", "lr-"))
        ]
    assert callbacks == {"callbacks=none": [], "callbacks=mine+lr_monitor": ["mine", "lr_monitor"]}
    rates = [(5, "lr-AdamW/pg1"), (5, "lr-AdamW/pg2")]
    assert lines == {"callbacks=none": [], "callbacks=mine+lr_monitor": [(4, "own/count"), *rates, (8, "own/count")]}


@pytest.mark.parametrize("given", REFUSED)
def test_a_mistake_is_one_line_before_anything_is_trained(attnlab, here, words, given):
    said = attnlab("train", *words, *(["callbacks=[mine]"] if "mine" in given else []), *given.split())
    assert said.status == 2
    assert REFUSED[given] in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("optimizer=torch", "optimizer.name is required"),
        ("optimizer=torch optimizer.name=SGD optimizer.momntum=0.9", "Did you mean momentum? Accepted: "),
        (
            "optimizer=torch optimizer.name=SGD optimizer.momentum=high",
            "optimizer.momentum must be a number, got 'high'",
        ),
        ("optimizer=torch optimizer.name=LBFGS", "optimizer.name: LBFGS evaluates the loss several times a step"),
        ("optimizer=adamw optimizer.momentum=0.9", "optimizer.momentum: there is no such field"),
        ("trainer.lightning.max_steps=3", "trainer.lightning.max_steps: set trainer.max_steps"),
        ("trainer.lightning.detect_anomly=true", "Did you mean detect_anomaly?"),
        ("trainer.lightning.limit_val_batches=1.5", "a share of them from 0 to 1, got 1.5"),
        ("callbacks=[early_stopping] trainer.val_check_interval=0", "is of validations, and there are none"),
    ],
)
def test_a_field_that_is_open_is_still_checked(attnlab, here, tiny, given, said):
    answered = attnlab("train", *tiny, *given.split())
    assert (answered.status, len(answered.err.strip().splitlines())) == (2, 1)
    assert said in answered.err
    assert not (here / "runs").exists()


def test_a_run_has_an_optimizer_by_name_for_so_many_epochs(attnlab, here, tiny):
    words = ["optimizer=torch", "optimizer.name=SGD", "optimizer.momentum=0.9", "data.batch_size=256"]
    said = attnlab("train", *tiny, *words, "trainer.max_epochs=2", "trainer.max_steps=null", "schedule=constant")
    assert said.status == 0
    [path] = (here / "runs/train").glob("*/seed=0/run.json")
    record = json.loads(path.read_text())
    windows = (record["data"]["train_tokens"] - 16) // 16
    assert record["training"]["steps"] == -(-2 * windows // 256)
    assert json.loads(path.with_name("status.json").read_text())["step"] == record["training"]["steps"]
