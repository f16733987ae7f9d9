"""A task of one's own is its class and its YAML: trained, evaluated and compared as attnlab's own, by a metric of its own."""

import pytest

from attnlab.analysis import formatting as wording
from attnlab.analysis import load_study
from attnlab.training import read_json

TASK = """
from attnlab.data import MaskedTextData
from attnlab.models import Bert
from attnlab.training import LossSums, Metric, Task, cross_entropy_sums

LOSS = Metric("loss", "lower", "loss in nats per {unit}")
AMONG = Metric("among", "higher", "tokens that are among the likeliest (0 to 1)")


class Likeliest(Task):
    monitor, headline = AMONG, ("val/*", "test/*")
    data_type, model_type = MaskedTextData, Bert

    def __init__(self, model: Bert, most: int = 5) -> None:
        super().__init__(model)
        self.most = most

    @classmethod
    def metrics(cls, config):
        return [LOSS, AMONG]

    def loss_sums(self, batch):
        chosen_BT = batch["chosen"]
        logits_NV = self.model.predict(self.model.encode(batch["tokens"]), chosen_BT)
        targets_N = batch["targets"][chosen_BT]
        among = (logits_NV.topk(self.most).indices == targets_N[:, None]).sum()
        return LossSums(cross_entropy_sums(logits_NV, targets_N)[0], len(targets_N), {"among": among})
"""


@pytest.fixture
def words(here, library, monkeypatch):
    """The settings of runs of the task; its class and YAML are all that is added."""
    (here / "own_tasks.py").write_text(TASK)
    (here / "own" / "task").mkdir(parents=True)
    (here / "own" / "task" / "likeliest.yaml").write_text("_target_: own_tasks.Likeliest\n_partial_: true\nmost: 3\n")
    monkeypatch.syspath_prepend(str(here))
    small = [
        "model.d_model=16",
        "model.num_heads=2",
        "model.num_layers=1",
        "data.context_length=16",
        "data.batch_size=4",
    ]
    data = ["data=text_masked", f"data.path={library / 'text.txt'}", "data.max_validation_tokens=256"]
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.threads=1", "progress=off"]
    return ["--config-dir", "own", "model=bert", "task=likeliest", *data, *small, *steps]


def test_a_task_of_ones_own_is_trained_evaluated_and_compared(attnlab, here, words):
    assert attnlab("train", "-m", *words, "position=none,sinusoidal", "seed=0,1", "study.name=mine").status == 0
    for path in (here / "runs" / "mine").glob("*/seed=*"):
        assert read_json(path / "run.json")["metrics"]["among"]["better"] == "higher"
        status = read_json(path / "status.json")
        assert {"val/loss", "val/among", "test/loss", "test/among"} == set(status["final"])
        assert status["best"]["metric"] == "val/among"
    [run, *_] = sorted((here / "runs" / "mine").glob("*/seed=0"))
    said = attnlab("evaluate", str(run))
    assert said.status == 0
    assert "test/among" in said.out
    assert "val/among, higher is better" in attnlab("compare", "mine").out
    study = load_study(here / "runs" / "mine")
    assert wording.describe("test/among", study) == "tokens that are among the likeliest (0 to 1) on the test part"
    assert study.better("test/among") == "higher"
    assert wording.describe("test/loss", study) == "loss in nats per masked token on the test part"


def test_a_study_cannot_have_it_the_other_way_round(attnlab, study, words):
    study("own", shared=words[2:], metric={"name": "val/among", "better": "lower"})
    said = attnlab("sweep", "own", *words[:2])
    assert said.status == 2
    assert "metric.better must be higher, for task=likeliest says so, got lower" in said.err


def test_it_says_what_data_it_needs_and_what_it_lacks(attnlab, here, words):
    said = attnlab("train", *words, "data=kjv")
    assert said.status == 2
    assert "task=likeliest needs masked-text data (kjv_masked, reuters_masked, text_masked), got data=kjv" in said.err
    (here / "own_lacking.py").write_text(TASK.replace("def metrics(", "def figures_of_mine("))
    lacking = attnlab("train", *words, "task._target_=own_lacking.Likeliest")
    assert lacking.status == 2
    assert "task: own_lacking.Likeliest lacks metrics, which attnlab.training.Task leaves to" in lacking.err
