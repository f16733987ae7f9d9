"""One rule for what a run is: where it stands, what tells it from its neighbours, and when it is another one."""

import pytest

from attnlab.config import UsageError
from attnlab.config.compose import ConfigSpace
from attnlab.config.identity import cell_name, recorded_choices, refuse_drift, run_path
from attnlab.training.run_directory import FORMAT, write_json


def test_a_run_stands_where_the_rule_says():
    with ConfigSpace([]) as space:
        composed = space.compose(["study.name=mine", "position=alibi", "seed=3", "runs_dir=there"])
    assert composed.run_dir == composed.runs_dir / "mine" / run_path("position=alibi", 3)
    assert recorded_choices(composed.overrides) == {"position": "alibi"}


def test_only_what_decides_the_numbers_makes_another_run(tmp_path):
    with ConfigSpace([]) as space:
        stored, watched, other = (
            space.compose([f"data.path={tmp_path}", *words]).resolved
            for words in ([], ["trainer.threads=2", "progress=off", "runs_dir=there"], ["seed=1", "model.d_model=64"])
        )
    refuse_drift(tmp_path, other)  # nothing has run there
    write_json(tmp_path / "run.json", {"format": FORMAT, "config": stored})
    refuse_drift(tmp_path, watched)
    with pytest.raises(UsageError, match=r"seed: 0 -> 1") as refused:
        refuse_drift(tmp_path, other)
    assert "model.d_model: 128 -> 64" in str(refused.value)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("callbacks=[early_stopping]", "callbacks=early_stopping"),
        ("callbacks=early_stopping", "callbacks=early_stopping"),
        ("callbacks=[early_stopping, timer]", "callbacks=early_stopping+timer"),
        ("callbacks=[]", "callbacks=none"),
    ],
)
def test_a_list_of_choices_is_named_by_them(word, name):
    assert cell_name([word]) == name
    assert cell_name(["callbacks.early_stopping.patience=5", word]) == f"{name},patience=5"
