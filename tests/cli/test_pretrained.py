"""Another run's weights as a start: what fits by name and shape but computes something else is refused; a ViT goes on at another size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnlab.training.run_directory import read_json

SMALL = [
    "model=bert", "position=rotary", "model.d_model=16", "model.num_heads=4", "model.num_layers=1", "tokenizer.vocabulary_size=280",
    "trainer.max_steps=2", "trainer.validate_every=2", "trainer.threads=1", "schedule.warmup_steps=0",
]  # fmt: skip
RUN = Path("runs/words/bert/seed=0")
TUNED = ["task=sequence_classification", "data=tsv", "data.batch_tokens=400", f'task.pretrained="{RUN}"', "cell=tuned"]


@pytest.fixture
def tuned(attnlab, library):
    """Pretrains a small BERT; gives a command that fine-tunes it under further overrides."""
    text = ["data=text_masked", f"data.path={library / 'text.txt'}", "data.context=16", "data.batch_size=4"]
    assert attnlab("train", *text, *SMALL, "study.name=words", "cell=bert", "progress=off").status == 0
    path = f"data.path={library / 'labelled'}"
    return lambda *overrides: attnlab("train", *TUNED, path, *SMALL, *overrides, "progress=plain")


DIFFERENCES = {
    "model.num_heads=2": "model.num_heads: 4 there, 2 here",
    "position=none": "model.position._target_: attnlab.layers.Rotary there, attnlab.layers.PositionEncoding here",
    "position.base=500": "model.position.base: 10000.0 there, 500 here",
    "residual=pre_ln": "model.residual._target_: attnlab.layers.PostNorm there, attnlab.layers.PreNorm here",
    "model.embedding_norm=false": "model.embedding_norm: True there, False here",
    "model.scale_embedding=true": "model.scale_embedding: False there, True here",
    "feed_forward=relu": "model.feed_forward._target_: attnlab.layers.GELU there, attnlab.layers.ReLU here",
    "attention.window=4": "model.attention.window: None there, 4 here",
}


def test_an_encoder_that_computes_something_else_with_these_weights_is_refused(tuned):
    for override, difference in DIFFERENCES.items():
        said = tuned(override)
        assert said.status == 2
        assert "task.pretrained: the encoder of that run is another one" in said.err
        assert difference in said.err
    assert not Path("runs/train").exists()


def test_what_leaves_an_encoder_as_it_is_may_differ(tuned):
    said = tuned("model.dropout=0.3", "init=xavier", "attention.backend=plain", "model.max_length=150")
    assert said.status == 0, said.err
    assert "fresh: none and the output" in said.err


@pytest.mark.slow
def test_another_tokenizer_of_the_same_size_is_refused(tuned):
    said = tuned("data.tokenizer_from=null")
    assert said.status == 2
    assert f"task.pretrained={RUN}: tokenizer.json there is not this run's" in said.err
    assert "leave data.tokenizer_from and tokenizer out" in said.err
    shutil.copytree(RUN, "elsewhere/run")
    said = tuned("data.tokenizer_from=elsewhere/run", "study.name=same")
    assert said.status == 0, said.err  # the same tokenizer, from another place


def test_a_vit_goes_on_at_a_higher_resolution(attnlab):
    noise = np.random.default_rng(0)
    for name in ("bright", "dark"):
        Path("images", name).mkdir(parents=True)
        for number in range(20):
            pixels = noise.integers(0, 100, (16, 16), dtype=np.uint8) + 100 * (name == "bright")
            Image.fromarray(pixels.astype(np.uint8)).save(f"images/{name}/{number}.png")
    small = ["model=vit", "data=image_folder", "data.path=images", "augmentation=none", "model.d_model=16", "model.num_heads=2",
             "model.num_layers=1", "data.batch_size=8", "trainer.max_steps=2", "trainer.threads=1", "schedule.warmup_steps=0"]  # fmt: skip
    said = attnlab("train", *small, "data.source.image_size=8", "cell=low", "progress=off")
    assert said.status == 0, said.err
    high = [*small, "data.source.image_size=16", 'task.pretrained="runs/train/low/seed=0"']
    said = attnlab("train", *high, "cell=high", "progress=plain")
    assert said.status == 0, said.err
    assert "positions (2, 2) -> (4, 4)" in said.err
    final = read_json(Path("runs/train/high/seed=0/status.json"))["final"]
    said = attnlab("evaluate", "runs/train/high/seed=0")
    assert said.status == 0, said.err
    assert f"{final['test/nats']:.6f}"[:6] in said.out
    assert attnlab("train", *high, "model.patch_size=2", "cell=other").status == 2
