"""A study across its tasks: ends, aggregates by arm, words that hold their error, lost runs and missing tasks."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from tests.stored_studies import ACROSS, ARMS, write_task_study

from attnlab.analysis import aggregate_of, as_asked, asked, compare, load_study, parts_of_study
from attnlab.analysis.across import Arm, judge_arms
from attnlab.analysis.across_words import caveats, notes, print_aggregate, sentences, to_csv, to_latex, to_markdown
from attnlab.data.classification import chance_of
from attnlab.training.run_directory import write_json


def write(root, *given, **named):
    return load_study(write_task_study(root, *given, **named))


def arm_of(found, label):
    return next(arm for arm in found.arms if arm.label == label)


def test_each_task_is_normalised_between_its_ends(tmp_path):
    study = write(tmp_path / "s")
    found = aggregate_of(study)
    assert not found.problem
    assert [(task.label, task.ends.low, task.ends.high) for task in found.tasks] == [
        ("copy", pytest.approx(0.1), 1.0),
        ("sort", 0.2, 1.0),
        ("kjv", 4.0, 2.0),
    ]
    rotary = arm_of(found, "rotary")
    for at, task in enumerate(found.tasks):
        own = study.values(f"data={task.label},position=rotary", task.metric.name)
        low, high = task.ends.low, task.ends.high
        assert rotary.scores[:, at].tolist() == pytest.approx([(own[seed] - low) / (high - low) for seed in range(4)])
    differences = rotary.scores.mean(axis=1) - arm_of(found, "none").scores.mean(axis=1)
    assert rotary.difference.interval.mean == pytest.approx(differences.mean())
    assert rotary.difference.tests == 2
    assert rotary.difference.verdict == "better"
    assert rotary.improvement.mean == 1.0
    assert found.ranks.average[1] == 1.0
    said = " ".join([*sentences(found), *notes(found), *caveats(found)])
    assert "rotary has the highest interquartile mean" in said
    assert "kjv: test/bits_per_byte@1x, from 4 to 2, as the study says" in said
    assert "copy: test/accuracy@1x, from chance (0.1, test/chance@1x) to perfect (1)" in said
    assert "takes at least 3 tasks" not in said
    assert "rotary" in to_csv(found).splitlines()[2]
    assert to_markdown(found).count("| rotary |") == 2
    assert to_latex(found).count(r"\toprule") == 2


def test_the_chance_of_classes_is_that_of_the_most_frequent_one_in_training(tmp_path):
    shares = chance_of({"train": np.array([0, 1, 1]), "validation": np.array([1]), "test": np.array([0, 0, 0, 1])})
    assert shares == {"train": 2 / 3, "validation": 1.0, "test": 0.25}
    root = write_task_study(tmp_path / "s", seeds=2)
    for record in root.glob("data=copy*/*/run.json"):  # a task whose runs report no chance beside accuracy
        known = json.loads(record.read_text())
        write_json(record, known | {"data": known["data"] | {"chance": shares}})
    for status in root.glob("data=copy*/*/status.json"):
        known = json.loads(status.read_text())
        write_json(status, known | {"final": {"test/accuracy@1x": known["final"]["test/accuracy@1x"]}})
    ends = aggregate_of(load_study(root)).tasks[0].ends
    assert (ends.low, ends.high) == (0.25, 1.0)
    assert "the most frequent class" in ends.words


def test_scores_beyond_the_ends_are_kept(tmp_path):
    found = aggregate_of(write(tmp_path / "s", ACROSS | {"ends": {"kjv": [2.9, 2.8], "sort": [0.61, 0.7]}}))
    assert arm_of(found, "rotary").scores.max() > 2
    assert arm_of(found, "none").scores.min() < 0
    assert found.points[0] < 0
    assert found.points[-1] > 2


def test_tasks_are_parts_with_the_baselines_arm_their_metric_and_the_claims_about_them(tmp_path):
    claims = [
        {"says": "everywhere", "cell": {"position": "rotary"}, "against": {"cell": {"position": "none"}}, "above": 0},
        {"says": "of one task", "cell": {"data": "sort", "position": "rotary"}, "above": 0.5},
    ]
    study = write(tmp_path / "s", claims=claims)
    parts = parts_of_study(study)
    assert [part.metric.name for part in parts] == [
        *["test/accuracy@1x"] * 2,
        "test/bits_per_byte@1x",
    ]
    compared = [compare(part) for part in parts]
    assert [one.baseline.label for one in compared] == ["none"] * 3
    assert [[claim.says for claim in one.claims] for one in compared] == [
        ["everywhere"],
        ["everywhere", "of one task"],
        ["everywhere"],
    ]
    assert [cell.label for cell in compared[2].cells] == list(ARMS)
    # Another arm to hold them against, and another metric for all tasks: ends stated for the old one are none.
    assert [compare(part).baseline.label for part in asked(study, baseline="rotary")] == ["rotary"] * 3
    assert aggregate_of(as_asked(study, None, "position=alibi")).baseline.label == "alibi"
    other = aggregate_of(as_asked(study, "test/bits_per_byte@1x", None))
    assert "stated for another metric" in other.problem
    assert len(asked(study, "test/bits_per_byte@1x")) == 1


def test_a_lost_run_counts_as_the_lower_end_and_keeps_no_word_back(tmp_path):
    lost = {("copy", "alibi", seed) for seed in range(4)}
    found = aggregate_of(write(tmp_path / "s", lost=lost))
    alibi = arm_of(found, "alibi")
    assert alibi.scores[:, 0].tolist() == [0.0] * 4
    assert alibi.lost == 4
    assert alibi.difference.verdict == "worse"
    assert "count as 0, the lower end: alibi 4" in " ".join(caveats(found))


def test_between_baseline_and_best_nothing_is_judged_and_a_lost_run_leaves_its_arm_out(tmp_path):
    own = ACROSS | {"ends": "baseline_and_best"}
    found = aggregate_of(write(tmp_path / "s", own, lost={("sort", "alibi", 2)}))
    assert arm_of(found, "none").scores.mean(axis=0).tolist() == pytest.approx([0, 0, 0])
    assert arm_of(found, "rotary").scores.max(axis=0).tolist() == pytest.approx([1, 1, 1])
    assert all(arm.difference is None for arm in found.arms)
    assert not arm_of(found, "alibi").figures
    said = " ".join(caveats(found))
    assert "No word judges the aggregate: its ends are the baseline and the best" in said
    assert "alibi (1 of 4 seeds lost a run)" in said


def test_an_arm_without_a_task_has_no_aggregate_unless_common_tasks_are_asked_for(tmp_path):
    found = aggregate_of(write(tmp_path / "all", skip={("sort", "alibi")}))
    alibi = arm_of(found, "alibi")
    assert not alibi.figures
    assert alibi.lacks == "sort: skipped (makes no sense)"
    assert len(found.ranks.average) == 2
    found = aggregate_of(write(tmp_path / "common", ACROSS | {"tasks": "common"}, skip={("sort", "alibi")}))
    assert [task.label for task in found.used] == ["copy", "kjv"]
    assert arm_of(found, "alibi").scores.shape == (4, 2)
    assert "Left out are tasks that not every arm has: sort." in caveats(found)


def test_words_wait_for_runs_that_are_not_over(tmp_path):
    root = tmp_path / "s"
    write(root)
    status = root / "data=kjv,position=rotary" / "seed=3" / "status.json"
    write_json(status, json.loads(status.read_text()) | {"state": "planned", "final": {}})
    rotary = arm_of(aggregate_of(load_study(root)), "rotary")
    assert rotary.seeds == [0, 1, 2]
    assert rotary.difference.verdict == "undecided"
    assert "3 of 4 seeds in" in rotary.difference.reason


@pytest.mark.parametrize(
    ("across", "words"),
    [
        ({"factor": "data"}, "no perfect value"),
        ({"factor": "data", "ends": {"kjv": [4.0, 4.5]}}, "across.ends of kjv must have"),
        ({"factor": "data", "ends": [0.5, 0.1]}, "the worse value first, and higher values of test/accuracy@1x"),
        ({"factor": "data", "ends": {"kvj": [4.0, 2.0]}}, "Did you mean kjv?"),
        ({"factor": "data", "ends": "chance"}, "across.ends of copy must be chance_and_perfect"),
        ({"factor": "dta"}, "Did you mean data?"),
        ({"factor": "data", "end": 3}, "Did you mean ends?"),
        ({"factor": "data", "tasks": "some"}, "across.tasks must be all or common"),
        ({"factor": "data", "margin": -1}, "across.margin must be a finite number from 0"),
        ({"factor": "data", "metric": {"kjv": {"name": "x"}}}, "metric.better must be lower or higher"),
        (3, "across must be a factor, as in across: data"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(tmp_path, across, words):
    if isinstance(across, dict) and "metric" not in across:
        across = {"metric": ACROSS["metric"], **across}
    with pytest.raises(ValueError, match=r".") as refused:  # a plan that cannot be read, or no aggregate of it
        raise ValueError(aggregate_of(write(tmp_path / "s", across, seeds=1)).problem)
    assert words in str(refused.value)


def test_the_terminal_says_the_same_however_narrow(tmp_path):
    found = aggregate_of(write(tmp_path / "s"))
    for width in (60, 100, 200):
        out = io.StringIO()
        print_aggregate(found, Console(file=out, width=width, color_system=None))
        assert all(len(line) <= width for line in out.getvalue().splitlines())
        assert "better" in out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "skewed", "lost", "other tasks, same mean"])
def test_arms_that_are_alike_in_the_mean_are_parted_in_no_more_studies_than_promised(kind):
    """Also where arms differ on single tasks and not in the mean: that mean is what is judged."""
    rng, pages, parted = np.random.default_rng(5), 700, 0
    for page in range(pages):
        arms, seeds, tasks = ((2, 2, 2), (4, 3, 4), (4, 5, 3), (2, 8, 4))[page % 4]
        noise = 0.6 * rng.standard_normal((seeds, tasks)) + 0.8 * rng.standard_normal((arms, seeds, tasks))
        noise = np.exp(noise) if kind == "skewed" else noise
        scores = rng.random(tasks) + 10 ** rng.uniform(-2.5, -0.5, tasks) * noise
        if kind == "lost":
            scores = np.where(rng.random(scores.shape) < 0.15, 0.0, scores)
        if kind == "other tasks, same mean":
            moved = 0.2 * rng.standard_normal((arms, 1, tasks))
            scores = scores + moved - moved.mean(axis=-1, keepdims=True)
        ended = dict.fromkeys(range(seeds), "value")
        found = judge_arms([Arm(str(at), at == 0, [*ended], scores[at], ended) for at in range(arms)])
        parted += any(one.verdict in ("better", "worse") for one in found.values())
    assert parted / pages <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / pages)
