"""The models that attention replaced, from the command line: trained, gone on with, decoded, beside the Transformer."""

import json
import random
from pathlib import Path
from string import ascii_lowercase

import pytest

from attnlab.training import Checkpoints
from attnlab.training.run_directory import read_json

WORDS = {letter: letter.upper() for letter in ascii_lowercase}  # short: what has learned nothing decodes to the end
SMALL = ["trainer.threads=1", "progress=off", "schedule.warmup_steps=0"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Settings of a run on tab-separated sentence pairs of 1 to 8 words of a letter."""
    draw = random.Random(0)
    texts = [[draw.choice(list(WORDS)) for _ in range(1 + n % 8)] for n in range(400)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(f"{' '.join(t)}\t{' '.join(WORDS[w] for w in t)}\n" for t in texts))
    data = [
        "data=parallel_text",
        f"data.path={path}",
        "data.language_pair=en-de",
        "tokenizer=character",
        "data.batch_tokens=512",
    ]
    return [
        *data,
        *SMALL,
        "task.num_beams=1",
        "task.max_extra_length=5",
        "model.d_model=16",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
    ]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of labelled texts in three splits."""
    folder, draw = tmp_path_factory.mktemp("labelled"), random.Random(0)
    for split, count in {"train": 90, "validation": 30, "test": 30}.items():
        rows = [
            (label, [label, *draw.choices("abcdef", k=draw.randrange(8))]) for label in ["yes", "no"] * (count // 2)
        ]
        draw.shuffle(rows)
        (folder / f"{split}.tsv").write_text(
            "\n".join(["text\tlabel", *(f"{' '.join(t)}\t{label}" for label, t in rows)])
        )
    return folder


def final(directory):
    return read_json(Path(directory) / "status.json")["final"]


@pytest.mark.slow
def test_one_sweep_over_the_families_reports_bleu_by_length(attnlab, pairs):
    said = attnlab("train", "-m", "model=recurrent,convolutional,encoder_decoder", *pairs, "study.name=families")
    assert said.status == 0, said.err
    runs = list(Path("runs/families").glob("*/seed=0"))
    assert len(runs) == 3
    for run in runs:
        figures = final(run)
        assert {"test/loss", "test/bleu", "test/chrf", "test/bleu@1-5", "test/bleu@6-10", "test/bleu@11-20"} <= set(
            figures
        )
        assert read_json(run / "run.json")["flops_per_token"] > 0
        assert read_json(run / "run.json")["config"]["task"]["num_beams"] == 1


@pytest.mark.slow
def test_a_multirun_skips_the_jobs_that_make_no_sense_and_says_why(attnlab, pairs):
    words = [*pairs, "position=alibi,none", "study.name=families"]
    said = attnlab("train", "-m", "model=recurrent,encoder_decoder", *words)
    assert said.status == 0, said.err
    for position in ("alibi", "none"):
        reason = f"position: model=recurrent has no position, so position={position} would have no effect; leave it out"
        assert reason in said.err
    assert len(list(Path("runs/families").glob("*/seed=0/status.json"))) == 2
    assert not list(Path("runs/families").glob("*recurrent*"))


def test_a_multirun_in_which_no_job_makes_sense_is_refused(attnlab, pairs):
    said = attnlab("train", "-m", "model=recurrent", *pairs, "position=alibi,none")
    assert said.status == 2
    assert "position=alibi would have no effect" in said.err
    assert "position=none would have no effect" in said.err
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["recurrent model.attention=bahdanau", "recurrent model.cell=gru", "convolutional"])
def test_an_interrupted_translation_goes_on_to_the_same_numbers(attnlab, pairs, monkeypatch, model):
    words = ["train", *f"model={model}".split(), *pairs, "model.dropout=0.2"]
    assert attnlab(*words, "run_dir=whole").status == 0
    saved = Checkpoints.on_validation_end

    def stop_after_saving(self, trainer, module):
        saved(self, trainer, module)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_validation_end", stop_after_saving)
        assert attnlab(*words, "run_dir=parts").status != 0
    assert attnlab(*words, "run_dir=parts").status == 0
    assert final("parts") == final("whole")
    assert json.loads(attnlab("evaluate", "parts").out)["test/bleu"] == final("parts")["test/bleu"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["recurrent_lm", "recurrent_lm model.cell=gru", "convolutional_lm"])
def test_a_language_model_continues_a_prompt(attnlab, tiny, model):
    words = [word for word in tiny if not word.startswith("model.num_heads")]
    assert attnlab("train", *f"model={model}".split(), *words, "run_dir=run").status == 0
    assert {"test/loss@1x", "test/loss@2x", "test/sliding_loss@2x"} <= set(final("run"))
    asked = ["generate", "run", "--prompt", "the", "--prompt", "a lazy", "--max-new-tokens", "8", "--temperature", "0"]
    first, second = attnlab(*asked).out.rstrip("\n").split("\n\n", 1)
    assert (first[:3], len(first)) == ("the", 11)
    alone = attnlab("generate", "run", "--prompt", "a lazy", "--max-new-tokens", "8", "--temperature", "0")
    assert alone.out.rstrip("\n") == second


@pytest.mark.parametrize("model", ["recurrent_encoder", "convolutional_encoder"])
def test_an_encoder_learns_to_classify(attnlab, labelled, model):
    words = ["data=tsv", f"data.path={labelled}", "tokenizer=character", "data.batch_tokens=512", *SMALL]
    words += ["model.d_model=32", "trainer.max_steps=60", "trainer.val_check_interval=60", "optimizer.lr=1e-2"]
    said = attnlab("train", f"model={model}", "model.num_layers=2", *words, "run_dir=run")
    assert said.status == 0, said.err
    assert final("run")["test/accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("model", ["recurrent", "convolutional"])
def test_activations_that_cannot_be_recomputed_are_refused_and_bf16_is_not(attnlab, pairs, model):
    said = attnlab("train", f"model={model}", *pairs, "trainer.checkpoint_activations=true")
    assert said.status != 0
    assert "has no stack of layers; accepted is false" in said.err
    assert attnlab("train", f"model={model}", *pairs, "trainer.precision=bf16", "run_dir=half").status == 0
    assert final("half")["test/loss"] > 0
