"""Entities and answers from the command line: a run leaves what the official scorers read, and is evaluated again to the same figures."""

import json
from pathlib import Path

import pytest

from attnlab.training.run_directory import read_json

SMALL = [
    "model=bert",
    "model.d_model=16",
    "model.num_heads=2",
    "model.num_layers=1",
    "tokenizer.vocabulary_size=280",
    "data.batch_tokens=400",
    "trainer.max_steps=3",
    "trainer.val_check_interval=2",
    "trainer.threads=1",
    "schedule.warmup_steps=0",
    "progress=off",
]
CHOICES = {
    "token_classification": ("conll", "tagged", "test.entities.conll"),
    "span_extraction": ("squad_files", "questions.json", "test.answers.json"),
}


@pytest.mark.parametrize("task", CHOICES)
def test_a_run_and_its_evaluation(attnlab, library, task):
    data, path, output = CHOICES[task]
    said = attnlab("train", f"task={task}", f"data={data}", f"data.path={library / path}", *SMALL)
    assert said.status == 0, said.err
    [folder] = Path("runs/train").glob("*/seed=0")
    final = read_json(folder / "status.json")["final"]
    assert {"test/loss", "test/f1", "val/f1"} <= set(final)
    assert (folder / "outputs" / output).stat().st_size > 100
    again = attnlab("evaluate", str(folder))
    assert again.status == 0, again.err
    assert json.loads(again.out) == pytest.approx({name: value for name, value in final.items() if name[:4] == "test"})


@pytest.mark.slow
@pytest.mark.parametrize("task", CHOICES)
def test_an_encoder_and_its_tokenizer_are_taken_from_a_run(attnlab, library, task):
    text = ["data=text_masked", f"data.path={library / 'text.txt'}", "data.context_length=16", "data.batch_size=4"]
    small = [word for word in SMALL if not word.startswith("data.")]
    assert attnlab("train", *text, *small, "study.name=words", "cell=bert").status == 0
    data, path, _ = CHOICES[task]
    run = Path("runs/words/bert/seed=0")
    own = [f"task={task}", f"data={data}", f"data.path={library / path}", f'task.pretrained="{run}"', "cell=tuned"]
    said = attnlab("train", *own, *SMALL[:-1], "progress=plain")
    assert said.status == 0, said.err
    assert f"from {run}/checkpoints/" in said.err
    assert (Path("runs/train/tuned/seed=0") / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()


def test_rows_longer_than_a_learned_table_are_refused(attnlab, library):
    said = attnlab(
        "train",
        "task=token_classification",
        "data=conll",
        f"data.path={library / 'tagged'}",
        *SMALL,
        "data.max_length=300",
    )
    assert said.status == 2
    assert "a learned table of 130 positions (model.max_length) cannot serve rows of 300 tokens" in said.err


MASKED = ["data=text_masked", "data.batch_size=4", *(word for word in SMALL if word != "data.batch_tokens=400")]


def test_next_sentences_are_learned_without_another_word(attnlab, library):
    said = attnlab("train", f"data.path={library / 'text.txt'}", "data.next_sentence=true", *MASKED)
    assert said.status == 0, said.err
    [folder] = Path("runs/train").glob("*/seed=0")
    final = read_json(folder / "status.json")["final"]
    assert {
        "test/loss",
        "test/masked_lm_loss",
        "test/next_sentence_loss",
        "test/next_sentence_accuracy",
        "val/loss",
    } <= set(final)
    assert final["test/loss"] == pytest.approx(final["test/masked_lm_loss"] + final["test/next_sentence_loss"])


@pytest.mark.slow
@pytest.mark.parametrize(("next_sentence", "marks"), [("false", 2), ("true", 3)])
def test_a_learned_table_has_to_hold_a_windows_marks_too(attnlab, library, next_sentence, marks):
    asked = [
        f"data.path={library / 'text.txt'}",
        f"data.next_sentence={next_sentence}",
        "data.context_length=14",
        *MASKED,
    ]
    assert attnlab("train", *asked, f"model.max_length={14 + marks}").status == 0
    said = attnlab("train", *asked, f"model.max_length={13 + marks}")
    assert said.status == 2
    words = f"table of {13 + marks} positions (model.max_length) cannot serve rows of {14 + marks} tokens (data.context_length, and its special tokens)"
    assert words in said.err
