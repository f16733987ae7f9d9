"""`attnlab embed`: vectors as the mean of a published encoder's states, whatever stands beside a text in its batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

TEXTS = ["the quick brown fox", "a lazy dog", "the quick brown fox jumps over the lazy dog and then it sleeps"]


def theirs(folder, pooling):
    """The embeddings by transformers: each text alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    rows = torch.stack([state[0] if pooling == "first" else state.mean(dim=0) for state in states])
    return torch.nn.functional.normalize(rows, dim=1).numpy()


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_the_embeddings_are_those_of_transformers(pooling, imported, published, attnlab, here):
    Path("texts.txt").write_text("\n".join(TEXTS[1:]) + "\n")
    said = attnlab(
        "embed",
        str(imported("bert")),
        "--text",
        TEXTS[0],
        "--input",
        "texts.txt",
        "--pooling",
        pooling,
        "--to",
        "out.vectors",
    )
    assert said.status == 0, said.err
    assert said.out == "out.vectors: 3 rows of 16 numbers\n"
    np.testing.assert_allclose(np.load("out.vectors"), theirs(published("bert"), pooling), atol=1e-5)


def test_how_alike_texts_are_is_shown(imported, published, attnlab):
    said = attnlab("embed", str(imported("bert")), *(word for text in TEXTS for word in ("--text", text)))
    vectors_ND = theirs(published("bert"), "mean")
    for number, line in enumerate(said.out.splitlines()):
        shown = [float(word) for word in line.split()[1:4]]
        assert shown == pytest.approx((vectors_ND @ vectors_ND[number]).tolist(), abs=6e-4)
        assert line.endswith(TEXTS[number][:60])


def test_texts_that_are_too_long_are_cut_and_told(imported, attnlab, here):
    said = attnlab("embed", str(imported("bert")), "--text", "fox " * 100, "--text", "fox " * 200, "--text", "dog")
    assert said.status == 0
    assert "2 of 3 texts cut at 64 tokens" in said.err
    assert said.out.splitlines()[0].split()[2] == "1.000"


def test_an_encoder_that_was_trained_here(attnlab, library):
    words = ["model=bert", "data=text_masked", f"data.path={library}/text.txt", "data.context_length=16", "data.batch_size=4", "model.d_model=16",
             "model.num_heads=2", "model.num_layers=1", "tokenizer.vocabulary_size=280", "trainer.max_steps=2", "trainer.threads=1"]  # fmt: skip
    assert attnlab("train", *words, "schedule.warmup_steps=0", "run_dir=run", "progress=off").status == 0
    said = attnlab("embed", "run", "--text", "the fox", "--to", "out.npy")
    assert said.status == 0, said.err
    assert np.linalg.norm(np.load("out.npy"), axis=1) == pytest.approx([1.0])
    assert json.loads(attnlab("evaluate", "run").out)


REFUSED = {
    "a decoder": ("gpt2", ["--text", "fox"], "GPT is no encoder of texts; give a run of one, such as model=bert"),
    "images": ("vit", ["--text", "fox"], "ViT is no encoder of texts"),
    "a blank text": ("bert", ["--text", " "], "give one text or more that are not empty, with --text TEXT or --input FILE"),
    "no text": ("bert", [], "give one text or more that are not empty"),
    "no run": (None, ["--text", "fox"], "nowhere: there is no run (no run.json)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_embedded_is_one_message(name, imported, attnlab):
    kind, words, message = REFUSED[name]
    said = attnlab("embed", str(imported(kind)) if kind else "nowhere", *words)
    assert said.status == 2
    assert message in said.err
    assert len(said.err.splitlines()) == 1


def test_a_picture_beside_the_vectors(imported, attnlab, here):
    run = str(imported("bert"))
    said = attnlab("embed", run, "--text", TEXTS[0], "--text", TEXTS[1], "--picture", "alike.png", "--to", "out.npy")
    assert said.status == 0, said.err
    assert said.out == "alike.png: 2 texts\nout.npy: 2 rows of 16 numbers\n"
    assert Path("alike.png").read_bytes().startswith(b"\x89PNG")
    for name in ("alike.svg", "nowhere/alike.png"):
        said = attnlab("embed", run, "--text", TEXTS[0], "--picture", name)
        assert said.status == 2
        assert (
            f"--picture must be a file that ends in .pdf or .png, in a folder that is there, got '{name}'" in said.err
        )
