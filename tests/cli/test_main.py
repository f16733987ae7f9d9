"""Whatever is wrong with a command ends in one message, with nothing made."""

import argparse
from pathlib import Path

import pytest

from attnlab.cli.main import parser
from attnlab.training.run_directory import write_json


def refused(said):
    """One message on stderr, from attnlab itself, without a traceback."""
    lines = said.err.strip().splitlines()
    assert said.status != 0
    assert lines[0].startswith("attnlab: "), said.err
    assert not any(line.startswith("attnlab: ") for line in lines[1:]), said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no text"),
        (b" \n\n ", "holds no text"),
        (bytes(range(256)) * 20, "is binary"),
        (b"caf\xe9 " * 500, "no UTF-8 text"),
        (b"hello", "too few for one window"),
        (b"hello world " * 20, "too few for one window"),
        (None, "does not exist"),
    ],
)
def test_a_text_that_cannot_be_trained_on(attnlab, here, left, tiny, content, words):
    if content is not None:
        (here / "bad.txt").write_bytes(content)
    before = left(here)
    assert words in refused(attnlab("train", *tiny, "data.path=bad.txt", "runs_dir=runs"))
    assert left(here) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=abc", "seed must be a whole number"),
        ("seed=-1", "seed must be at least 0"),
        ("model.num_heads=7", "model.num_heads must be one of 1, 2, 4, 8, 16"),
        ("model.num_heads=0", "model.num_heads must be at least 1, got 0"),
        ("model.d_model=0", "model.d_model must be at least 1, got 0"),
        ("position=alibbi", "Did you mean alibi?"),
        ("model.d_modl=3", "Did you mean model.d_model?"),
        ("+foo=1", "foo: there is no such field"),
        ("~position", "position takes exactly one of"),
        ("~callbacks", "callbacks takes any number of"),
        ("callbacks=[early_stoping]", "Did you mean early_stopping?"),
        (
            "callbacks.early_stopping.patience=2",
            "is not among the callbacks of this run; add callbacks=[early_stopping]",
        ),
        ("model=null", "model takes exactly one of"),
        ("=3", "the name is missing"),
        ("model.d_model", "name=value"),
        ("trainer.device=cuda0", "trainer.device must be one of auto, cpu, cuda, mps, got 'cuda0'"),
        ("trainer.max_steps=0", "trainer.max_steps must be at least 1"),
        ("optimizer.lr=-1", "-1"),
        ("study.name=a/b", "one folder"),
        ("study.name=..", "one folder"),
        ("cell=../x", "one folder"),
        ("runs_dir=", "runs_dir must be a path"),
        ("data.path=", "data.path must be a path"),
        ("hydra/launcher=slrum", "Did you mean slurm?"),
        ("hydra/launcher=slurm", "add -m"),
        ("hydra.nothing=1", "hydra.nothing"),
        ("position=alibi,none", "-m"),
        ("hydra/launcher=slurm hydra.launcher.timeout_min=0", "hydra.launcher.timeout_min must be at least 1, got 0"),
        ("hydra/launcher=slurm hydra.launcher.mem_gb=-4", "hydra.launcher.mem_gb must be above 0, got -4"),
        ("+trainer.threads=2", "Either remove + prefix"),
    ],
)
def test_a_mistaken_setting(attnlab, here, left, tiny, override, words):
    multirun = ["-m"] if "hydra.launcher." in override else []
    assert words in refused(attnlab("train", *multirun, *tiny, *override.split()))
    assert left(here) == []


def test_jobs_of_a_multirun_cannot_share_a_directory(attnlab, here, left, tiny):
    assert "share the directory one" in refused(attnlab("train", "-m", *tiny, "seed=0,1", "run_dir=one"))
    assert left(here) == []
    for twice in ("progress=off,plain", "seed=0,0"):
        assert "two of these jobs are one run; leave one out" in refused(attnlab("train", "-m", *tiny, twice))


def test_words_that_are_no_command(attnlab):
    assert attnlab("trian").status == 2
    assert attnlab().status == 2
    assert attnlab("train", "--frobnicate").status == 2
    assert "no such folder" in refused(attnlab("train", "--config-dir", "nowhere"))


def test_the_traceback_is_shown_where_it_is_asked_for(attnlab, tiny):
    with pytest.raises(Exception, match="must be a whole number"):
        attnlab("--traceback", "train", *tiny, "seed=abc")


def test_data_sets_are_listed_and_prepared(attnlab, tiny):
    listed = attnlab("data", "list").out
    assert all(name in listed for name in ("kjv", "tiny_shakespeare", "text", "hub"))
    prepared = attnlab("data", "prepare", "text", tiny[1])
    assert prepared.status == 0
    assert "vocabulary" in prepared.out
    assert "data.path is required" in refused(attnlab("data", "prepare", "text"))
    assert "Did you mean kjv?" in refused(attnlab("data", "prepare", "kvj"))


def test_a_study_that_has_not_run(attnlab, here, left):
    for command in ("status", "compare", "report"):
        assert "no such study has run" in refused(attnlab(command, "nothing"))
    assert "there is no such study" in refused(attnlab("sweep", "nothing"))
    assert left(here) == []


@pytest.fixture
def old(study):
    """A study whose first run an older attnlab trained: with its names of fields and metrics, and no format."""
    study("mine")
    run = Path("runs", "mine", "position=none", "seed=0")
    config = {"seed": 0, "data": {"context": 16}, "model": {"tied": True}}
    write_json(run / "run.json", {"attnlab": "0.0.9", "cell_name": "position=none", "seed": 0, "config": config})
    write_json(run / "status.json", {"state": "finished", "final": {"test/nats@2x": 2.0}})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    return str(run)


@pytest.mark.parametrize(
    "words",
    [
        "evaluate RUN",
        "generate RUN --prompt a",
        "attention RUN --text a",
        "export RUN --to out",
        "compare mine",
        "report mine",
        "scaling mine",
        "sweep mine",
        "train TINY run_dir=RUN",
        "train TINY model.init_from=RUN",
    ],
)
def test_a_run_of_an_older_attnlab_is_one_message(attnlab, left, here, tiny, old, words):
    before = left(here)
    words = [word for one in words.split() for word in (tiny if one == "TINY" else [one.replace("RUN", old)])]
    said = refused(attnlab(*words))
    assert "run.json must have format 2, got 1: another version of attnlab (0.0.9) wrote it" in said
    assert "use that version, or move the old runs away and train again" in said
    assert len(said.splitlines()) == 1
    assert left(here) == before


def test_every_command_can_say_what_it_takes():
    """argparse reads % in a help text as a format, when it is asked for help alone."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, one in commands.choices.items():
        assert f"usage: attnlab {name}" in one.format_help()
