"""What a trained run can do, and what it says where it cannot."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from attnlab.cli.main import main
from attnlab.training.run_directory import read_json


@pytest.fixture(scope="module")
def trained(tiny, library, tmp_path_factory):
    """A run with a learned table of 16 positions; tests that change it take a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNLAB_CACHE", str(library / "cache"))
        directory = tmp_path_factory.mktemp("trained") / "run"
        assert main(["train", *tiny, "position=learned", f"run_dir={directory}"]) == 0
    return directory


@pytest.fixture
def copy(trained, here):
    return shutil.copytree(trained, here / "copy")


def test_evaluating_gives_the_figures_of_the_training(attnlab, trained):
    said = attnlab("evaluate", str(trained))
    figures = json.loads(said.out)
    final = read_json(trained / "status.json")["final"]
    assert figures == {name: value for name, value in final.items() if name.startswith("test/")}
    assert "test/loss@2x unavailable: the learned table ends at 16 positions" in said.err
    validation = json.loads(attnlab("evaluate", str(trained), "--split", "validation", "--checkpoint", "best").out)
    assert {name.split("/")[0] for name in validation} == {"val"}


def test_the_same_seed_continues_a_prompt_the_same_way(attnlab, trained):
    words = ["generate", str(trained), "--prompt", "the", "--prompt", "a lazy", "--max-new-tokens", "8"]
    said = attnlab(*words)
    first, second = said.out.rstrip("\n").split("\n\n", 1)
    assert first.startswith("the")
    assert len(first) == 11
    assert second.startswith("a lazy")
    assert attnlab(*words).out == said.out
    assert attnlab(*words, "--seed", "1").out != said.out
    greedy = [attnlab(*words, "--temperature", "0", "--seed", seed).out for seed in ("0", "1")]
    assert greedy[0] == greedy[1]


def test_a_text_ends_where_the_end_mark_comes(attnlab, here, tiny, monkeypatch):
    """Of the texts of a folder in sub-words, whose mark is no letter and no newline of what is printed."""
    seen = []

    def generate(model, prompts, *more, ends, **options):
        seen.append(ends)
        return [[*prompts[0], *ends], [*prompts[1], prompts[1][0]]]

    words = ["tokenizer=bpe", "tokenizer.vocabulary_size=280", "trainer.max_steps=1", "task.evaluation_lengths=[1]"]
    assert attnlab("train", *tiny, *words, "run_dir=run").status == 0
    vocabulary = read_json(Path("run/run.json"))["data"]["vocabulary_size"]
    monkeypatch.setattr("attnlab.generation.generate", generate)
    said = attnlab("generate", "run", "--prompt", "the", "--prompt", "dog")
    assert said.out.startswith("thethe\n\ndogdog")
    assert seen == [(vocabulary - 1,)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "Ünï"], "'Ü' (U+00DC)"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "the quick brown fox jumps"], "the model's position encoding has 16"),
        (["--prompt", "the", "--max-new-tokens", "-1"], "max_new_tokens must be at least 0, got -1"),
        (["--prompt", "the", "--temperature", "-1"], "temperature must be at least 0"),
        (["--prompt", "the", "--top-k", "0"], "top_k must be at least 1"),
        (["--prompt", "the", "--top-p", "2"], "top_p must be above 0 and at most 1"),
    ],
)
def test_a_prompt_that_cannot_be_continued(attnlab, trained, words, message):
    said = attnlab("generate", str(trained), *words)
    assert said.status != 0
    assert said.out == ""
    assert said.err.startswith("attnlab: ")
    assert message in said.err
    assert len(said.err.splitlines()) == 1


def test_a_path_that_is_no_run(attnlab, trained, here):
    (here / "file").write_text("")
    for place in ("nowhere", "file"):
        assert "there is no run (no run.json)" in attnlab("evaluate", place).err
    assert f"below it are {trained}" in attnlab("evaluate", str(trained.parent)).err


def test_a_run_of_a_near_name_is_offered(attnlab, trained):
    for mistyped in (trained.with_name("ruin"), trained.parent.with_name(f"{trained.parent.name}x") / trained.name):
        said = attnlab("evaluate", str(mistyped)).err
        assert said.endswith(f"looks like runs/STUDY/CELL/seed=0. Did you mean {trained}?\n")


def test_a_run_whose_files_are_damaged(attnlab, copy):
    (copy / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    said = attnlab("evaluate", str(copy))
    assert said.status == 2
    assert (
        "last.ckpt is damaged: it was cut short, or is no checkpoint at all; --checkpoint best takes the other one"
        in said.err
    )
    assert len(said.err.splitlines()) == 1
    assert attnlab("evaluate", str(copy), "--checkpoint", "best").status == 0
    (copy / "checkpoints" / "last.ckpt").unlink()
    assert "there is no last.ckpt yet; the run is finished" in attnlab("evaluate", str(copy)).err
    (copy / "run.json").write_text("{")
    assert "its run.json cannot be read" in attnlab("evaluate", str(copy)).err


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch code-was-run",)


def test_code_in_a_checkpoint_is_refused_by_every_command_and_not_run(attnlab, copy, tiny):
    for name in ("last.ckpt", "best.ckpt"):
        (copy / "checkpoints" / name).unlink()
        torch.save({"state_dict": Code()}, copy / "checkpoints" / name)
    for words in (
        ["evaluate", "copy"],
        ["evaluate", "copy", "--checkpoint", "best"],
        ["generate", "copy", "--prompt", "the"],
    ):
        said = attnlab(*words)
        assert said.status == 2
        assert "is refused: it holds more than tensors and numbers" in said.err
        assert len(said.err.splitlines()) == 1
    shutil.rmtree(copy / "attempts")  # as if it had been stopped
    (copy / "status.json").unlink()
    for path in (copy / "checkpoints").glob("step=*.ckpt"):
        path.unlink()
    said = attnlab("train", *tiny, "position=learned", "run_dir=copy")
    assert said.status == 1
    assert "is refused: it holds more than tensors and numbers" in said.err
    assert not Path("code-was-run").exists()


def test_a_run_whose_text_has_gone(attnlab, copy):
    record = json.loads((copy / "run.json").read_text())
    record["config"]["data"]["path"] = str(Path("gone.txt"))
    (copy / "run.json").write_text(json.dumps(record))
    said = attnlab("evaluate", str(copy))
    assert said.status == 2
    assert "data.path=gone.txt does not exist" in said.err
