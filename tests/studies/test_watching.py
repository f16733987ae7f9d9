"""Watching a study: what is shown while its runs write, and when it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from tests.stored_studies import cell, learning_curve, write_plan, write_run, write_task_study

from attnlab.analysis import compare, compare_tasks, load_study
from attnlab.analysis.headline import headline
from attnlab.config import UsageError
from attnlab.studies import watching
from attnlab.studies.cluster import Job
from attnlab.studies.watching import PATIENCE_SECONDS, awaited, frame, progress, watch
from attnlab.training.run_directory import RunDirectory

NAMES = ["alibi", "rotary", "none"]


@pytest.fixture
def study(tmp_path):
    """A study of three cells and two seeds, of which one run is over."""
    root = write_plan(
        tmp_path / "s",
        question="Which?",
        cells=[cell({"position": name}) for name in NAMES],
        factors={"position": NAMES},
        seeds=[0, 1],
        metric={"name": "test/loss", "better": "lower"},
        baseline={"position": "none"},
    )
    write_run(root, {"position": "alibi"}, 0, {"test/loss": 2.0}, curve=learning_curve(2.0, 0))
    return root


def running(root, name, seed, step, **status):
    """A run that this process owns."""
    directory = write_run(root, {"position": name}, seed, {}, state="running")
    owned = RunDirectory(directory)
    owned.claim(even_if_over=True)
    text = (directory / "status.json").read_text().replace('"attempt": 0', '"attempt": 1').replace("800", str(step), 1)
    (directory / "status.json").write_text(text[:-1] + "".join(f', "{k}": {v}' for k, v in status.items()) + "}")
    return owned


def dies(owned):
    """As if the run's owner were another process that is gone."""
    attempt = owned.path / "attempts" / "1.json"
    attempt.write_text(json.dumps({**json.loads(attempt.read_text()), "process_start": "of another"}))


def finish(root, leave=()):
    for name in NAMES:
        for seed in (0, 1):
            if (name, seed) not in leave:
                status = write_run(root, {"position": name}, seed, {"test/loss": 2.0 + len(name) / 10}) / "status.json"
                status.write_text(status.read_text().replace('"attempt": 0', '"attempt": 1'))


class Clock:
    """Seconds that pass when a watch pauses; `then` is done at each pause, until Ctrl-C."""

    def __init__(self, *then):
        self.now, self.then, self.pauses = 1000.0, list(then), 0

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        self.pauses += 1
        assert self.pauses < 300, "it never ends"
        if self.then:
            self.then.pop(0)()


def watched(root, clock, terminal=False, every=1.0, jobs=lambda folder: {}, width=90):
    out = io.StringIO()
    watch(root, Console(file=out, width=width, force_terminal=terminal), every, jobs, clock, clock.pause)
    return out.getvalue()


def interrupt():
    raise KeyboardInterrupt


def test_a_finished_study_is_shown_once(study):
    finish(study)
    clock = Clock()
    text = watched(study, clock)
    assert clock.pauses == 0
    assert text.count("6 finished") == 1
    assert "\x1b" not in text


def test_between_two_stages_it_goes_on(study):
    """The plan has no more seeds for a moment when the runs of a stage are over; at the last one it ends at once."""
    plan = json.loads((study / "plan.json").read_text()) | {"looks": {"stages": [2, 3]}}
    (study / "plan.json").write_text(json.dumps(plan))
    finish(study)

    def grow():
        (study / "plan.json").write_text(json.dumps(plan | {"seeds": [0, 1, 2]}))
        for name in NAMES:
            write_run(study, {"position": name}, 2, {"test/loss": 2.0})

    clock = Clock(lambda: None, grow)
    text = watched(study, clock)
    assert clock.pauses == 2
    assert "this is look 1 of 2" in " ".join(text.split())
    assert "9 finished" in text


def test_in_a_pipe_there_is_one_block_a_change(study):
    owned = running(study, "alibi", 1, 100)

    def step():
        path = owned.path / "status.json"
        path.write_text(path.read_text().replace('"step": 100', '"step": 200'))

    def ends():
        owned.release()
        finish(study)

    text = watched(study, Clock(lambda: None, step, lambda: None, ends))
    assert text.count("Which?") == 2
    first, last = text.split("\n\ns  Which?")[0], text.split("s  Which?")[2]
    assert "1 of 6 runs over, 1 running, 4 waiting" in first
    assert "alibi seed=1: step 100 of 800" in first
    assert "6 finished" in last


def test_a_terminal_is_redrawn_and_keeps_the_last_table(study):
    owned = running(study, "rotary", 0, 100)
    text = watched(study, Clock(owned.release, lambda: finish(study)), terminal=True, width=110)
    assert text.count("Which?") >= 3  # each look and the last one
    assert "\x1b[2K" in text  # lines are taken back
    assert "▁" in text
    after = text.rpartition("\x1b[2K")[2]
    assert after.count("Which?") == 1
    assert "6 finished" in after


def test_ctrl_c_leaves_the_last_table(study):
    owned = running(study, "rotary", 0, 100)
    for terminal in (True, False):
        text = watched(study, Clock(lambda: None, interrupt), terminal)
        after = text.rpartition("\x1b[2K")[2]
        assert after.count("Which?") == 1
        assert "1 finished, 1 running, 4 missing" in after
    owned.release()


def test_it_waits_while_a_process_owns_a_run(study):
    owned = running(study, "rotary", 0, 100)
    clock = Clock(*[lambda: None] * 9, lambda: dies(owned))
    watched(study, clock, every=10.0)
    owned.release()
    assert clock.now - 1000 == 90 + PATIENCE_SECONDS
    assert load_study(study).runs["position=rotary", 0].state == "interrupted"


def test_it_ends_when_no_process_owns_a_run_for_a_while(study):
    clock = Clock()
    assert "5 missing" in watched(study, clock, every=10.0)
    assert clock.now - 1000 == PATIENCE_SECONDS


def test_it_waits_for_jobs_of_a_cluster(study):
    clock = Clock()
    queue = iter([{"position=none/seed=0": Job("1_0", "PENDING", "Priority")}] * 5)
    watched(study, clock, every=10.0, jobs=lambda folder: next(queue, {}))
    assert clock.now - 1000 == 40 + PATIENCE_SECONDS


def test_a_study_that_takes_long_to_look_at_is_looked_at_less_often(study, monkeypatch):
    clock = Clock(lambda: finish(study))
    real = watching.compare

    def slow(found):
        clock.now += 7
        return real(found)

    monkeypatch.setattr(watching, "compare", slow)
    watched(study, clock)
    assert clock.now - 1000 == 7 + 14 + 7


def test_a_study_that_is_deleted_meanwhile_ends_in_one_message(study):
    import shutil

    with pytest.raises(ValueError, match="no study at"):
        watched(study, Clock(lambda: shutil.rmtree(study)), terminal=True)


def test_progress_estimates_what_is_left(study, monkeypatch):
    owned = running(study, "rotary", 1, 200, eta=95.2, started=1000)
    monkeypatch.setattr("attnlab.studies.remaining.time.time", lambda: 1050.0)
    lines = progress(load_study(study))
    owned.release()
    # A run of alibi took 21.5 s; 200 of 800 steps of rotary took as long, so that one takes 86 s, and one of none as long
    # as both on average: 64.5 s are left of the one that trains, then 21.5, 86 and twice 53.75 s by one worker.
    assert lines == [
        "1 of 6 runs over, 1 running, 4 waiting, about 4 min 40 s left",
        "  rotary seed=1: step 200 of 800, about 1 min 35 s left",
    ]
    finish(study)
    assert progress(load_study(study)) == []


@pytest.mark.parametrize("height", [24, 40, 200])
def test_24_cells_fit_a_terminal_and_the_conclusion_is_in_view(tmp_path, height):
    names = [f"encoding{i:02}" for i in range(24)]
    cells = [cell({"position": name}) for name in names]
    metric = {"name": "test/loss", "better": "lower", "margin": 0.01}
    root = write_plan(
        tmp_path / "s",
        question="Which of these many position encodings does a model need, and is it worth what it costs, on my own data?",
        cells=cells,
        factors={"position": names},
        seeds=[0, 1, 2, 3],
        metric=metric,
        baseline={"position": names[0]},
    )
    for number, name in enumerate(names):
        for seed in range(3):
            value = 2.0 + 0.1 * number + 0.001 * (7 * number * seed % 5)
            write_run(root, {"position": name}, seed, {"test/loss": value}, curve=learning_curve(value, seed))
    owned = [running(root, name, 3, 100) for name in names[:4]]
    study = load_study(root)
    console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in frame(compare(study), progress(study), console)]
    for each in owned:
        each.release()
    assert len(lines) < height
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("72 of 96 runs over, 4 running, 20 waiting")
    conclusion = headline(compare(study), with_reasons=False)[0]
    assert " ".join(conclusion.split()[:6]) in " ".join(" ".join(lines).split())
    assert any(line.startswith("encoding00 ") for line in lines)
    assert any("encoding23 " in line for line in lines) == (height > 24)
    assert ("`attnlab compare` shows all of it" in " ".join(lines)) == (height != 200)


def test_a_study_that_has_not_begun_is_waited_for(study, attnlab, monkeypatch):
    begun, out, pauses = iter([False, False, True]), io.StringIO(), []

    def find():
        if not next(begun):
            raise UsageError("s: no such study has run in runs")
        return study

    console = Console(file=out, width=90)
    assert awaited(find, console, 2.0, pauses.append) == study
    assert pauses == [2.0, 2.0]
    assert out.getvalue() == "waiting for runs to watch, until Ctrl-C: s: no such study has run in runs\n"
    monkeypatch.setattr(awaited, "__defaults__", (lambda seconds: interrupt(),))
    said = attnlab("compare", "nothing-yet", "--watch")
    assert (said.status, said.err) == (0, "")
    assert "nothing-yet: no such study has run in runs; there are none yet" in " ".join(said.out.split())
    assert attnlab("compare", "nothing-yet").status == 2
    assert attnlab("compare", "nothing-yet", "--watch", "model.d_model=3").status == 2


def test_of_many_running_runs_the_first_are_named(study):
    root = write_plan(study.parent / "t", cells=[cell({"position": "a"})], seeds=list(range(12)))
    owned = [running(root, "a", seed, 10) for seed in range(12)]
    assert progress(load_study(root))[-1] == "  and 4 more"
    for each in owned:
        each.release()


@pytest.mark.slow
def test_the_command_ends_cleanly_on_sigint(study):
    owned = running(study, "rotary", 0, 100)
    words = ["compare", str(study), "--watch", "--every", "0.1"]
    code = f"from attnlab.cli.main import main; import sys; sys.exit(main({words!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    seen = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    owned.release()
    assert process.returncode == 0, said
    assert said == ""
    assert "1 running" in "".join(seen)
    assert rest.endswith("report.html\n")


def test_of_a_study_across_its_tasks_the_aggregate_comes_first_and_is_what_is_left_where_room_is_short(tmp_path):
    root = write_task_study(tmp_path / "tasks", seeds=2)
    text = watched(root, Clock())
    heads = [text.index(words) for words in ("All tasks", "copy (--part 1)", "sort (--part 2)", "kjv (--part 3)")]
    assert heads == sorted(heads)
    console = Console(file=io.StringIO(), width=90, height=22, force_terminal=True)
    shown = "\n".join(frame(compare_tasks(load_study(root)), [], console))
    assert len(shown.splitlines()) <= 21
    assert "IQM" in shown
    assert "has the highest interquartile mean" in " ".join(shown.split())
    assert "--part 1" not in shown
