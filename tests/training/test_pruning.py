"""A trial is given up exactly where its best value so far is worse than the median of the others at the same step."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from attnlab.training.pruning import Pruned, Pruning, validations


def write(path: Path, values: dict[int, float | None], metric: str = "val/nats") -> Path:
    lines = [json.dumps({"step": step, "values": {metric: value, "train/nats": 9.0}}) for step, value in values.items()]
    path.write_text("\n".join(lines) + '\n{"step": 99, "val')
    return path


def test_validations_are_read_past_a_cut_line_and_values_that_were_not_finite(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {5: 2.0, 10: None, 15: 1.0})
    assert validations(path, "val/nats") == {5: 2.0, 15: 1.0}
    assert validations(path, "val/bleu") == validations(tmp_path / "absent", "val/nats") == {}


class FakeTrainer(SimpleNamespace):
    is_global_zero, max_steps = True, 20
    state = SimpleNamespace(fn="fit")
    strategy = SimpleNamespace(broadcast=lambda value: value)


@pytest.mark.parametrize(("metric", "sign"), [("val/nats", 1), ("val/bleu", -1)])
@pytest.mark.parametrize("own", [1.0, 2.4, 2.6, 4.0])
@pytest.mark.parametrize("num_peers", [2, 4])
def test_pruned_above_the_median_of_enough_finished_trials(tmp_path, metric, sign, own, num_peers):
    others = [sign * value for value in (1.0, 2.0, 3.0, 4.0)][:num_peers]
    peers = [write(tmp_path / f"{i}", {5: 9.0 * sign, 10: value}, metric) for i, value in enumerate(others)]
    mine = write(tmp_path / "mine", {10: sign * own}, metric)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    callback = Pruning(pruner, metric, mine, lambda: peers)
    expected = num_peers >= 3 and own > statistics.median(map(abs, others))
    if not expected:
        callback.on_validation_end(FakeTrainer(global_step=10), None)
        return
    with pytest.raises(Pruned) as raised:
        callback.on_validation_end(FakeTrainer(global_step=10), None)
    assert (raised.value.step, raised.value.metric, raised.value.value) == (10, metric, sign * own)
    callback.on_validation_end(FakeTrainer(global_step=20), None)  # it is over anyway
