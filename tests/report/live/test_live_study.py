"""Studies that are followed while they run: what is shown of them, and that it is made no more often than it takes."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
from tests.stored_studies import cell, learning_curve, write_plan, write_run, write_task_study

from attnlab.analysis.across import aggregate_of
from attnlab.analysis.across_words import sentences
from attnlab.analysis.comparison import compare
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import load_study
from attnlab.report.live import live_study as following
from attnlab.report.live.live_study import FollowedStudy, Kept, Shelf, Shown, Trouble, last_change, overview_of
from attnlab.report.live.routes import Answers

METRIC = {"name": "val/loss", "better": "lower", "margin": 0.02}


def followed_at_once(path):
    """A study that is read whenever it is asked for: by this clock nothing takes any time."""
    return FollowedStudy(path, pause=0.0, clock=lambda: 0.0)


@pytest.fixture
def running(tmp_path):
    """Two cells of two seeds, of which none's second seed has begun."""
    root = tmp_path / "running"
    choices = [{"position": "none"}, {"position": "alibi"}]
    write_plan(root, cells=[cell(c) for c in choices], seeds=[0, 1], metric=METRIC, baseline=choices[0])
    for level, c in zip((2.5, 2.3), choices, strict=True):
        write_run(root, c, 0, {"val/loss": level}, curve=learning_curve(level, 0, steps=100))
    return root


@pytest.fixture
def rendered(monkeypatch):
    """How often a page was rendered."""
    made = []
    original = following.study_content
    monkeypatch.setattr(following, "study_content", lambda *given: made.append(1) or original(*given))
    return made


def test_it_is_rendered_again_only_where_something_has_changed(running, rendered):
    followed = followed_at_once(running)
    first = followed.shown.get()
    assert isinstance(first, Shown)
    assert followed.shown.get() is first
    assert len(rendered) == 1
    write_run(running, {"position": "alibi"}, 1, {"val/loss": 2.31})
    second = followed.shown.get()
    assert second.version != first.version
    assert "3 of 4 runs finished" in second.content
    assert len(rendered) == 2


def test_new_lines_of_a_curve_are_a_change(running, rendered):
    followed = followed_at_once(running)
    first = followed.shown.get()
    path = running / "position=alibi" / "seed=0" / "metrics.jsonl"
    line = {"step": 120, "tokens": 9, "seconds": 9, "values": {"train/loss": 2.2}}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert followed.shown.get().version != first.version
    with path.open("a") as file:
        file.write('{"step": 140, "tok')  # torn: no change
    assert followed.shown.get().version == followed.shown.get().version
    assert len(rendered) == 2


def test_a_heartbeat_renders_but_changes_no_version(running):
    followed = followed_at_once(running)
    first = followed.shown.get()
    path = running / "position=alibi" / "seed=0" / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat": 1.0}))
    second = followed.shown.get()
    assert (second.version, second.since) == (first.version, first.since)
    assert second.study != first.study


def test_a_study_that_vanishes_is_said_and_comes_back(running, tmp_path):
    followed = followed_at_once(running)
    version = followed.shown.get().version
    shutil.move(running, tmp_path / "away")
    assert followed.shown.get() == Trouble("The study running is not there any more.")
    shutil.move(tmp_path / "away", running)
    assert followed.shown.get().version == version


def test_what_nobody_thought_of_is_a_sentence(running, monkeypatch):
    def odd(*_):
        raise KeyError("odd")

    monkeypatch.setattr(following, "study_content", odd)
    trouble = FollowedStudy(running).shown.get()
    assert isinstance(trouble, Trouble)
    assert trouble.sentence.startswith("The study running cannot be shown: KeyError: 'odd'")


def test_the_shelf_has_what_is_there_now_and_remembers_what_was(running):
    there = {"running": running}
    shelf = Shelf(lambda: there)
    followed = shelf.get("running")
    assert followed is shelf.all()["running"]
    assert shelf.get("../running") is None
    there.clear()
    assert shelf.all() == {}
    assert shelf.get("running") is followed


def test_an_overview_counts_runs_and_says_what_the_page_says(running):
    overview = overview_of("key", load_study(running))
    assert overview.counts == {"finished": 2, "missing": 2}
    assert overview.best == "One seed a cell: on val/loss no cell can be told from another."
    newest = running / "position=none" / "seed=0" / "metrics.jsonl"
    assert overview.changed >= newest.stat().st_mtime
    write_run(running, {"position": "alibi"}, 1, {}, state="diverged")
    assert overview_of("key", load_study(running)).best == headline(compare(load_study(running)))[0]
    assert last_change(load_study(running)) >= overview.changed


def test_an_overview_of_a_study_without_a_figure_names_no_best(tmp_path):
    root = write_plan(tmp_path / "planned", cells=[cell({"position": "none"})], seeds=[0], metric=METRIC)
    overview = overview_of("planned", load_study(root))
    assert (overview.best, overview.counts) == ("", {"missing": 1})


SOON = 10.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def counting(clock, cost):
    def make(before):
        clock.now += cost
        return (before or 0) + 1

    return make


def test_a_value_is_kept_for_the_pause_and_then_made_from_the_one_before():
    clock = Clock()
    kept = Kept(counting(clock, 0.0), pause=1.0, clock=clock)
    assert [kept.get(), kept.get()] == [1, 1]
    clock.now += 0.99
    assert kept.get() == 1
    clock.now += 0.02
    assert kept.get() == 2


def test_what_takes_long_is_made_at_most_half_of_the_time():
    clock = Clock()
    kept = Kept(counting(clock, 30.0), pause=1.0, clock=clock)
    assert kept.get() == 1
    clock.now += 29.0
    assert kept.get() == 1
    clock.now += 2.0
    assert kept.get() == 2


def test_many_who_ask_at_once_share_one_making():
    made, begun, go_on = [], threading.Event(), threading.Event()

    def make(before):
        begun.set()
        assert go_on.wait(SOON)
        made.append(before)
        return len(made)

    kept = Kept(make, pause=1000.0)
    answers = []
    askers = [threading.Thread(target=lambda: answers.append(kept.get())) for _ in range(8)]
    for asker in askers:
        asker.start()
    assert begun.wait(SOON)
    go_on.set()
    for asker in askers:
        asker.join(SOON)
    assert made == [None]
    assert answers == [1] * 8


def test_what_is_raised_all_who_ask_are_given_until_it_is_made():
    clock = Clock()
    outcomes = [ValueError("broken"), 7]

    def make(before):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    kept = Kept(make, pause=1.0, clock=clock)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            kept.get()
    clock.now += 1.0
    assert kept.get() == 7


def test_who_has_no_patience_gets_the_one_before_and_the_next_one_later():
    go_on = threading.Event()
    go_on.set()

    def make(before):
        assert go_on.wait(SOON)
        return (before or 0) + 1

    kept = Kept(make, pause=0.0, clock=lambda: 0.0)
    assert kept.get(patience=0.0) == 1  # the first is waited for
    go_on.clear()
    assert kept.get(patience=0.0) == 1
    assert kept.get(patience=0.01) == 1
    go_on.set()
    assert kept.get() >= 2


def test_a_study_across_its_tasks_shows_what_came_out_over_all_of_them_first(tmp_path):
    root = write_task_study(tmp_path / "tasks", seeds=2)
    answers = Answers(Shelf(lambda: {"tasks": root}, pause=0.0), pause=0.0)
    whole, first = sentences(aggregate_of(load_study(root)))[0], load_study(root)
    page = answers.to("/study/tasks/")
    assert page.status == 200
    assert whole.split(",")[0] in page.body
    assert page.body.index("All tasks") < page.body.index("Task by task")
    assert "18 of 18 runs finished" in page.body
    assert all(f'href="task/{number}/"' in page.body for number in (1, 2, 3))
    assert "profiles" in page.body
    assert overview_of("tasks", first).best == whole
    last = answers.to("/study/tasks/task/3/content")
    assert "test/bits_per_byte@1x" in last.body
    assert 'href="../../run/' in answers.to("/study/tasks/task/1/").body
    assert answers.to("/study/tasks/task/4/").status == answers.to("/study/tasks/task//").status == 404
    versions = [json.loads(answers.to(f"/study/tasks/{place}state").body)["version"] for place in ("", "task/3/")]
    assert versions == [page.version, last.version]
    write_run(root, {"data": "copy", "position": "none"}, 0, {"test/accuracy@1x": 0.4, "test/chance@1x": 0.1})
    again = Answers(Shelf(lambda: {"tasks": root}, pause=0.0), pause=0.0)
    assert again.to("/study/tasks/content").version != versions[0]
    assert again.to("/study/tasks/task/3/content").version == versions[1]
