"""`attnlab serve`: what it says, what it refuses, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import webbrowser
from contextlib import contextmanager
from http.cookiejar import CookieJar

import pytest

from attnlab.cli.serve import invitation, named, split_words, studies_in
from attnlab.report.live.server import Server


def refused(said):
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("attnlab: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture
def runs(here):
    """Two studies as plans alone, and a folder that is none."""
    for name in ("first", "second"):
        (here / "runs" / name).mkdir(parents=True)
        plan = {"study": name, "question": f"The {name}?", "cells": [{"name": "a", "choices": {}}], "seeds": [0]}
        (here / "runs" / name / "plan.json").write_text(json.dumps(plan))
    (here / "runs" / "wandb").mkdir()
    return here / "runs"


def test_what_cannot_be_served_is_one_message(attnlab, runs):
    assert "third: no such study has run in runs; there are first, second" in refused(attnlab("serve", "third"))
    assert "nowhere: there is no such folder" in refused(attnlab("serve", "runs_dir=nowhere"))
    assert "model=gpt: only runs_dir=DIR" in refused(attnlab("serve", "model=gpt"))
    assert "--port must be from 1 to 65535, or 0 for the first that is free, got 70000" in refused(
        attnlab("serve", "--port", "70000")
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(attnlab("serve", "first", "--port", str(port)))
    assert message == f"attnlab: port {port} is in use; choose another by --port, or leave it out for the first that is free\n"  # fmt: skip


def test_there_is_no_way_to_another_interface(attnlab, runs):
    assert attnlab("serve", "--host", "0.0.0.0").status == 2


def test_studies_are_found_where_they_have_run_and_one_that_appears_is_there(runs):
    assert list(studies_in(runs)) == ["first", "second"]
    (runs / "third" / "cell" / "seed=0").mkdir(parents=True)
    (runs / "third" / "cell" / "seed=0" / "run.json").write_text("{}")
    assert list(studies_in(runs)) == ["first", "second", "third"]
    assert studies_in(runs / "nowhere") == {}


def test_words_are_studies_or_settings(here):
    (here / "lr=1").mkdir()
    words = ["first", "runs_dir=r", "lr=1", "second"]
    assert split_words(words) == (["first", "lr=1", "second"], ["runs_dir=r"])


def test_two_studies_of_one_name_are_told_apart(here):
    folders = [here / "a" / "same", here / "b" / "same", here / "a" / "same"]
    assert named(folders) == {"same": folders[0], "same (2)": folders[1]}


def test_the_invitation_names_this_machine(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    monkeypatch.setenv("LOGNAME", "ada")
    assert invitation("http://127.0.0.1:8790/?token=t", 8790).splitlines() == [
        "http://127.0.0.1:8790/?token=t",
        "from another machine: ssh -L 8790:127.0.0.1:8790 ada@node17, then the same address there",
        "Ctrl-C ends it",
    ]


@contextmanager
def started(*words):
    command = [sys.executable, "-m", "attnlab", "serve", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def opened(address):
    """The text that a browser would show, cookie and redirection included."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    with browser.open(address, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_it_serves_until_it_is_stopped_and_leaves_nothing(runs, left):
    before = left(runs)
    with started() as all_of_them, started("first") as one:
        listed = opened(all_of_them.stdout.readline().strip())
        assert "/study/first/" in listed
        assert "/study/second/" in listed
        address = one.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/study/first/\?token=[\w-]{32,}", address)
        assert "The first?" in opened(address)
        for process, number, status in ((all_of_them, signal.SIGTERM, 0), (one, signal.SIGINT, 130)):
            process.send_signal(number)
            assert process.wait(timeout=20) == status
            assert "Traceback" not in process.stderr.read()
    assert left(runs) == before


def test_the_browser_is_opened_where_it_is_asked_for(attnlab, runs, monkeypatch):
    given, is_open = [], threading.Event()
    monkeypatch.setattr(webbrowser, "open", lambda address: given.append(address) or is_open.set())

    def interrupted(server):
        assert is_open.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    said = attnlab("serve", "second", "--open")
    assert said.status == 130
    printed = said.out.splitlines()[0]
    assert given[0].partition("=")[0] == printed.partition("=")[0]
    assert given[0] != printed  # a token for one visit: command lines are seen by all users of a machine
