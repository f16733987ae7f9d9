"""What the README shows is what works: its own position encoding trains, its own study sweeps."""

import re
from pathlib import Path

import pytest

from attnlab.analysis import load_study
from attnlab.cli.main import main
from attnlab.training.run_directory import read_json

README = (Path(__file__).parents[1] / "README.md").read_text()
TINY = ["data=text", "data.path=my_text.txt", "data.context_length=16", "data.batch_size=4", "model.num_layers=1"]
TINY += ["model.d_model=16", "model.num_heads=2", "trainer.max_steps=2", "task.evaluation_tokens=256", "progress=off"]


def block(language: str, containing: str) -> str:
    """The README's first block of code in `language` that has `containing` in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    return next(text for text in blocks if containing in text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my_text.txt").write_text("in the beginning was the word and the word was there. " * 400)
    return tmp_path


def test_the_position_encoding_of_the_readme_trains(folder, monkeypatch):
    (folder / "my_parts.py").write_text(block("python", "class LogBias"))
    (folder / "my_conf" / "position").mkdir(parents=True)
    (folder / "my_conf" / "position" / "log_bias.yaml").write_text(block("yaml", "my_parts.LogBias"))
    monkeypatch.syspath_prepend(str(folder))
    assert main(["train", "--config-dir", "my_conf", "position=log_bias", "study.name=mine", *TINY]) == 0
    status = next(folder.glob("runs/mine/*/seed=0/status.json"))
    assert read_json(status)["state"] == "finished"
    assert "test/loss@8x" in read_json(status)["final"]


@pytest.mark.slow
def test_the_study_of_the_readme_sweeps(folder, monkeypatch):
    (folder / "my_question").mkdir()
    (folder / "my_question" / "study.yaml").write_text(block("yaml", "feed_forward"))
    words = ["study.seeds=1", "hydra/launcher=basic", *[w for w in TINY if not w.startswith("progress")]]
    assert main(["sweep", "my_question", *words]) == 0
    study = load_study(folder / "runs" / "my_question")
    assert [run.state for run in study.runs.values()] == ["finished", "finished"]
    assert (folder / "runs" / "my_question" / "report.html").stat().st_size > 1e6
