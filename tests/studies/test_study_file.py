"""A study.yaml becomes a plan, or one message that says what is wrong with it."""

import pytest

from attnlab.config import UsageError
from attnlab.config.compose import ConfigSpace
from attnlab.config.identity import literal
from attnlab.studies.study_file import load_plan

PUBLISHED = {"effect": "e", "source": "s", "figure": "f", "minutes": 1}
FIGURE = {"cell": {"position": "alibi"}, "metric": "perplexity", "value": 18.4, "of": "WikiText-103"}


@pytest.fixture(scope="module")
def space():
    with ConfigSpace() as opened:
        yield opened


def test_a_grid_is_compiled_to_overrides_seed_by_seed(study, space):
    path = (
        study("grid", factors={"position": ["none", "alibi"], "model.num_layers": [1, 2]}, baseline={}) / "study.yaml"
    )
    plan = load_plan(path, ["study.seeds=[3,5]", "optimizer.lr=0.01"], space)
    jobs = list(plan.jobs())
    assert [seed for _, seed in jobs] == [3] * 4 + [5] * 4
    assert [cell.name for cell, _ in jobs[:4]] == [
        f"num_layers={layers},position={position}" for position in ("none", "alibi") for layers in (1, 2)
    ]
    config = space.compose(plan.overrides(*jobs[1])).resolved
    assert config["study"]["name"] == "grid"
    assert config["cell"] == "num_layers=2,position=none"
    assert config["run_dir"] == "runs/grid/num_layers=2,position=none/seed=3"
    assert (config["seed"], config["model"]["num_layers"], config["optimizer"]["lr"]) == (3, 2, 0.01)


def test_a_cell_that_makes_no_sense_carries_the_reason(study, space):
    path = study("odd", factors={"model.num_heads": [1, 3]}, baseline={"model.num_heads": 1}) / "study.yaml"
    plan = load_plan(path, [], space)
    assert [cell.skip is None for cell in plan.cells] == [True, False]
    assert "which divide model.d_model=16, got 3" in plan.cells[1].skip
    assert {cell.name for cell, _ in plan.jobs()} == {"num_heads=1"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"factor": {}}, "Did you mean factors?"),
        ({"factors": {}}, "needs factors or cells"),
        ({"factors": 3}, "factors must be a table"),
        ({"factors": {"position": "alibi"}}, "factors.position must be a list of choices"),
        ({"factors": {"position": ["none", "none"]}}, "different choices, got 'none' twice"),
        ({"factors": {"positon": ["none"]}, "baseline": {}}, "Did you mean position?"),
        ({"factors": {"position": ["none", "alibbi"]}}, "Did you mean alibi?"),
        (
            {"factors": {"model.num_heads": [2, "x"]}, "baseline": {}},
            "model.num_heads must be a whole number at least 1, got 'x'",
        ),
        ({"cells": 3}, "cells must be a list"),
        ({"cells": [{"name": "a"}]}, "a table with name and overrides"),
        ({"cells": [{"name": "a/b", "overrides": []}]}, "cells: name must be the name of one folder"),
        ({"baseline": 3}, "baseline must be a table"),
        ({"baseline": {"position": "rotary"}}, "baseline must be one of the cells"),
        ({"seeds": 0}, "got 0"),
        ({"seeds": "many"}, "got 'many'"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": [-1]}, "got [-1]"),
        ({"metric": None}, "metric must be a table with a name"),
        ({"metric": {"name": "x", "better": "up"}}, "lower or higher"),
        ({"metric": {"name": "test/bleu", "better": "lower"}}, "write better: higher"),
        ({"metric": {"steps_to": {"test/loss@2x": 2.0}}}, "metric.steps_to must name a metric of the validations"),
        (
            {"metric": {"steps_to": {"val/loss": "low"}}},
            "finite value to reach, as in {val/loss: 2.0}, got {'val/loss'",
        ),
        ({"metric": {"steps_to": {"val/bleu": 2}}}, "metric.name must be one of what these runs report, got val/bleu."),
        ({"metric": {"steps_to": {"val/loss": 2}, "tokens_to": {"val/loss": 2}}}, "got steps_to and tokens_to; leave"),
        ({"metric": {"steps_to": {"val/loss": 2}, "better": "higher"}}, "write better: lower"),
        ({"metric": {"step_to": {"val/loss": 2}}}, "Did you mean steps_to?"),
        (
            {
                "metric": {"flops_to": {"val/loss": 2}},
                "factors": {"trainer.val_check_interval": [5, 0]},
                "baseline": {},
            },
            "there are none (trainer.val_check_interval=0, trainer.max_steps=10); set trainer.val_check_interval",
        ),
        (
            {"claims": [{"says": "x", "metric": {"steps_to": {"train/loss": 2}}, "below": 9}]},
            "claim 'x': metric.steps_to must name a metric of the validations",
        ),
        ({"shared": "position"}, "shared must be a list"),
        ({"claims": "x"}, "claims must be a list"),
        ({"claims": ["x"]}, "a claim must be a table"),
        ({"claims": [{"says": "x", "metric": "m"}]}, "exactly one of"),
        (
            {"claims": [{"says": "x", "metric": "m", "below": 0, "cell": {"position": "x"}}]},
            "position is one of none, alibi, got x",
        ),
        ({"claims": [{"says": "x", "metrik": "m", "below": 0}]}, "Did you mean metric?"),
        ({"metric": {"name": "test/loss@2x", "better": "lower", "marginn": 0.1}}, "Did you mean margin?"),
        ({"cells": [{"name": "a", "override": []}]}, "Did you mean overrides?"),
        ({"claims": [{"says": "x", "below": 0, "against": {"metricc": "m"}}]}, "Did you mean metric?"),
        (
            {"factors": {"position": ["none", "alibi"], "model.d_ff": [16, 32]}},
            "baseline must be one cell, and position=none is 2 of them (d_ff=16,position=none; d_ff=32,position=none); "
            "name model.d_ff, too",
        ),
        ({"published": 3}, "published must be a table, as in {effect: "),
        ({"published": {**PUBLISHED, "source": ""}}, "published.source must be text, got ''"),
        ({"published": {**PUBLISHED, "size": "position"}}, "size must be a factor of the study that is two numbers"),
        ({"published": {**PUBLISHED, "size": "model.d_model"}}, "size must be a factor of the study that is two"),
        (
            {
                "factors": {"position": ["none", "alibi"], "model.num_layers": [1, 2]},
                "baseline": {"position": "none", "model.num_layers": 2},
                "published": {**PUBLISHED, "size": "model.num_layers"},
            },
            "baseline must be of the smaller model.num_layers",
        ),
        (
            {"published": {**PUBLISHED, "figures": [{**FIGURE, "cell": {"position": "alibbi"}}]}},
            "published.figures[0].cell must be one of the cells: position is one of none, alibi, got alibbi",
        ),
        (
            {"published": {**PUBLISHED, "figures": [{**FIGURE, "beside": "test/bleu"}]}},
            "published.figures[0].beside must be one of what these runs report",
        ),
        ({"on_end": 3}, "on_end must be text, got 3"),
        ({"on_end": "say 'x"}, "on_end must be a command in words, got"),
        ({"shared": ["seed=7"]}, "shared must not set seed"),
        ({"shared": ["+seed=7"]}, "shared must not set seed"),
        ({"shared": ["study.name=other"]}, "shared must not set study.name"),
        ({"shared": ["study.seeds=3"]}, "shared must not set study.seeds"),
        ({"shared": ["run_dir=x"]}, "shared must not set run_dir"),
        ({"shared": ["cell=x"]}, "shared must not set cell"),
        ({"shared": ["hydra/launcher=slurm"]}, "shared must not set hydra/launcher"),
        ({"shared": ["position=alibi,rotary"]}, "shared must set one value of each field, got 'position=alibi,rotary'"),
        ({"shared": ["model d_model=3"]}, "shared must set fields by their names"),
        ({"shared": ["=3"]}, "shared must set fields by their names"),
        ({"cells": [{"name": "a", "overrides": ["model.d_model=range(1,3)"]}]}, "cell 'a' must set one value"),
        ({"factors": {"": [1]}}, "factors must set fields by their names"),
        ({"factors": {"~position": [1]}}, "factors must set fields by their names"),
        ({"factors": {"model d_model": [1]}}, "factors must set fields by their names"),
        ({"factors": {"seed": [0, 1]}}, "factors must not set seed"),
        ({"factors": {"runs_dir": ["a", "b"]}}, "factors must not set runs_dir"),
        ({"factors": {"cell": ["a", "b"]}}, "factors must not set cell"),
        ({"cells": [{"name": "a", "overrides": ["seed=5"]}]}, "cell 'a' must not set seed"),
        ({"cells": [{"name": "a", "overrides": ["runs_dir=x"]}]}, "cell 'a' must not set runs_dir"),
        ({"cells": [{"name": "a", "overrides": ["study.name=x"]}]}, "cell 'a' must not set study.name"),
        ({"cells": [{"name": "position=none", "overrides": []}]}, "got position=none twice"),
        ({"factors": {"position": ["none", "alibi"], "progress": ["off", "plain"]}}, "factors must not set progress"),
        ({"cells": [{"name": "a", "overrides": ["position=none"]}]}, "position=none and a must be different cells"),
        ({"factors": {f"model.f{n}": list(range(23)) for n in range(4)}}, "cells, got 279,841"),
        ({"factors": {"model.d_model": list(range(1001))}}, "1 to 1,000 cells, got 1,001"),
        ({"needs": ["nowhere"]}, "nowhere: there is no such study"),
        ({"baseline": {"positon": "none"}}, "got positon. Did you mean position?"),
        ({"baseline": {"position": "alibbi"}}, "Did you mean alibi?"),
        ({"metric": {"name": "test/natz@1x", "better": "lower"}}, "got test/natz@1x. Did you mean test/loss@1x?"),
        ({"metric": {"name": "test/loss@8x", "better": "lower"}}, "got test/loss@8x. Did you mean test/loss@"),
        ({"metric": {"name": "test/loss", "better": "lower"}}, "must be one of what these runs report"),
        ({"metric": {"name": "train/loss", "better": "lower"}}, "must be one of what these runs report"),
        ({"claims": [{"says": "x", "metric": "test/bleu", "below": 0}]}, "claim 'x': metric must be one of"),
        (
            {"claims": [{"says": "x", "against": {"metric": "m"}, "below": 0}]},
            "claim 'x': against.metric must be one of",
        ),
        (
            {"claims": [{"says": "x", "below": 0, "against": {"cell": {"position": "rope"}}}]},
            "claim 'x': against.cell must be",
        ),
        (
            {
                "claims": [
                    {"says": "x", "cell": {"position": "none"}, "below": 0, "against": {"cell": {"position": "none"}}}
                ]
            },
            "claim 'x': against must name another cell",
        ),
        (
            {
                "cells": [{"name": "a", "overrides": ["position=rotary"]}],
                "claims": [{"says": "x", "below": 0, "against": {"cell": {"position": "none"}}}],
            },
            "against.cell must be one of the cells, and none has cell=a, position=none",
        ),
    ],
)
def test_a_study_with_a_mistake(study, space, fields, words):
    path = study("wrong", **fields) / "study.yaml"
    with pytest.raises(UsageError) as caught:
        load_plan(path, [], space)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_baseline_is_the_one_cell_that_it_can_mean(study, space, tiny):
    """Of the cells that it names all but one may be such as cannot be run."""
    shared = [word for word in tiny if not word.startswith("model.num_heads")]
    factors = {"model": ["recurrent_lm", "gpt"], "position": ["none", "alibi"]}
    folder = study("mixed", shared=shared, factors=factors)
    plan = load_plan(folder / "study.yaml", [], space)
    assert plan.baseline == {"model": "gpt", "position": "none"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "metric: {name: a, better: lower}\nmetric: {name: b, better: lower}",
            "line 2, column 1: found duplicate key metric",
        ),
        ("metric: {name: a, name: b}", "line 1, column 19: found duplicate key name"),
        ("seeds: [1", "line 1"),
        ("seeds: *none", "undefined alias"),
        ("cells: &all [*all]", "a study must hold texts, numbers, lists and tables alone"),
        ("shared: !!binary aGVsbG8=", "a study must hold texts, numbers, lists and tables alone"),
        ("question: !!python/object:os.system x", "could not determine a constructor"),
        ("question: a\n---\nquestion: b", "expected a single document in the stream, but found another document"),
        ("question: a\n\tseeds: 3", "found character"),
        ("just words", "must be a table"),
        ("", "must be a table"),
    ],
)
def test_a_file_whose_yaml_is_wrong(study, space, text, words):
    path = study("mine") / "study.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_plan(path, [], space)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_are_read_as_hydra_reads_them_and_choices_are_told_apart_by_value(study, space):
    path = study("numbers") / "study.yaml"
    text = path.read_text().replace("margin: 0.01", "margin: 1e-2")
    text = text.replace("position:\n  - none\n  - alibi", "optimizer.lr: [1e-3, 0.003]").replace(
        "position: none", "optimizer.lr: 0.001"
    )
    path.write_text(text + "claims: [{says: x, cell: {optimizer.lr: 3e-3}, below: 1e1}]\n")
    plan = load_plan(path, [], space)
    assert plan.metric["margin"] == 0.01
    assert plan.baseline == {"optimizer.lr": 0.001}
    assert plan.claims[0]["cell"] == {"optimizer.lr": 0.003}
    assert [cell.name for cell in plan.cells] == ["lr=0.001", "lr=0.003"]
    path.write_text(text.replace("0.003", "0.001"))
    with pytest.raises(UsageError, match=r"factors.optimizer.lr must list different choices, got 0.001 twice"):
        load_plan(path, [], space)


def test_values_of_factors_are_taken_as_they_are(study, space, tmp_path):
    names = ["é.txt", "a(1).txt", "it's.txt", "c,d.txt", "two words", "32", "null"]
    path = study("texts", factors={"data.path": names}, baseline={"data.path": "c,d.txt"}) / "study.yaml"
    plan = load_plan(path, [], space)
    composed = [space.compose(plan.overrides(cell, 0)) for cell in plan.cells]
    assert [one.config.data.path for one in composed] == names
    assert [one.config.cell for one in composed] == [cell.name for cell in plan.cells]
    assert len({cell.name for cell in plan.cells}) == len(names)


def test_a_task_that_names_no_metric_may_report_any(study, space, tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(
        "from attnlab.tasks import CausalLanguageModelling\n"
        "class Own(CausalLanguageModelling):\n"
        "    def evaluate(self, data, split='test'):\n        return {'test/mine': 1.0}\n"
        "class Silent(CausalLanguageModelling):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = {"name": "test/mine", "better": "lower"}
    path = study("own", metric=metric) / "study.yaml"
    assert load_plan(path, ["task._target_=own_task.Own"], space).metric["name"] == "test/mine"
    with pytest.raises(UsageError, match="must be one of what these runs report"):
        load_plan(path, ["task._target_=own_task.Silent"], space)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=3", "study.seeds"),
        ("run_dir=x", "runs_dir"),
        ("position=rotary", "what the cells of this study differ in"),
        ("study.seed=3", "Did you mean study.seeds?"),
        ("study.seeds=abc", "got 'abc'"),
        ("study.name=a/b", "one folder"),
        ("study.name=..", "one folder"),
    ],
)
def test_a_study_cannot_be_run_under_every_override(study, space, override, words):
    with pytest.raises(UsageError) as caught:
        load_plan(study("mine") / "study.yaml", [override], space)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"a: [b", b"\xff\xfe\x00", b"- a list"])
def test_a_file_that_is_no_study(study, space, content):
    path = study("mine") / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"study\.yaml"):
        load_plan(path, [], space)


@pytest.mark.parametrize("name", ["plain", "2024", "null", "lr=1e-3,position=alibi", "two words", "it's", 'a"b'])
def test_any_name_passes_through_an_override(space, name):
    config = space.compose([f"study.name={literal(name)}", f"cell={literal(name)}"]).config
    assert config.study.name == name
    assert config.cell == name


TASKS = {
    "factors": {"data.context_length": [8, 16], "position": ["none", "alibi"]},
    "baseline": {"position": "none"},
    "metric": {"name": "test/loss@1x", "better": "lower"},
}


def test_a_study_across_tasks_has_one_baseline_for_all_and_ends_for_each(study, space):
    said = {"factor": "data.context_length", "ends": {16: [4.0, 1.0], 8: "baseline_and_best"}}
    plan = load_plan(study("tasks", **TASKS, across=said) / "study.yaml", [], space)
    assert plan.baseline == {"position": "none", "data.context_length": 8}
    assert plan.across["ends"] == {"8": "baseline_and_best", "16": [4.0, 1.0]}
    assert plan.across["tasks"] == "all"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"across": "data.context_length"},
            "across.ends of 8 must be stated, for no perfect value of test/loss@1x is known",
        ),
        ({"across": "cell"}, "across.factor must be one of the factors"),
        ({"across": "position", "factors": {"position": ["none", "alibi"]}}, "two tasks and two arms"),
        ({"across": "position", "cells": [{"name": "a", "overrides": []}]}, "single cells have no position"),
        (
            {
                "across": {
                    "factor": "data.context_length",
                    "ends": "baseline_and_best",
                    "metric": {16: {"name": "test/accuracy@1x", "better": "higher"}},
                }
            },
            "across.metric.16.name must be one of what these runs report, got test/accuracy@1x",
        ),
        (
            {
                "across": {
                    "factor": "position",
                    "ends": "baseline_and_best",
                    "metric": {"alibi": {"name": "test/loss", "better": "higher"}},
                }
            },
            "metric.better must be lower",
        ),
    ],
)
def test_what_cannot_be_meant_by_tasks_is_refused(study, space, fields, words):
    path = study("wrong", **{**TASKS, **fields}) / "study.yaml"
    with pytest.raises(UsageError) as refused:
        load_plan(path, [], space)
    assert words in str(refused.value)
