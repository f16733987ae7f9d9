"""`attnlab attention`: the maps of published models as transformers gives them; tables, page and messages."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.huggingface import MODELS, slowly

from attnlab.inspection.ablation import TaskLosses
from attnlab.inspection.attended import Reader, read_image
from attnlab.inspection.attention_maps import CROSS, DECODER, ENCODER, SELF
from attnlab.runs.trained import load_model, load_run
from attnlab.training.run_directory import read_json

TEXT, TARGET = "The quick brown fox, naïve as ever", "Ein Straßenhund läuft"
TREE = [
    (1, "The", 4, "det"),
    (2, "quick", 4, "amod"),
    (3, "brown", 4, "amod"),
    (4, "fox", 5, "nsubj"),
    (5, "jumps", 0, "root"),
]


def theirs(folder):
    """The model of transformers in a folder, which gives its attention away."""
    import transformers

    kind = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
    return kind.from_pretrained(folder, attn_implementation="eager").eval()


@torch.inference_mode()
def their_maps(kind, folder, tokens):
    """Kind to maps (H, T, S) by layer."""
    model = theirs(folder)
    if kind == "vit":
        return {SELF: model(*tokens, output_attentions=True).attentions}
    if kind not in ("t5", "bart"):
        return {SELF: model(input_ids=tokens[0], output_attentions=True).attentions}
    out = model(input_ids=tokens[0], decoder_input_ids=tokens[1], output_attentions=True)
    return {ENCODER: out.encoder_attentions, DECODER: out.decoder_attentions, CROSS: out.cross_attentions}


@pytest.mark.parametrize("kind", slowly(*MODELS))
def test_maps_are_those_of_transformers(kind, imported, published):
    model, tokenizer = load_model(imported(kind), "last")
    if kind == "vit":
        pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
        found = read_image(model, pixels, np.full(3, 0.4), np.full(3, 0.3), "noise")
        torch.testing.assert_close(found.tokens[0][0], (torch.tensor(pixels).float() / 255 - 0.4) / 0.3)
    else:
        found = Reader(model, tokenizer).read(TEXT, TARGET if kind in ("t5", "bart") else None)
    for name, layers in their_maps(kind, published(kind), found.tokens).items():
        assert len(found.of_kind(name)) == len(layers)
        for one, expected_1HTS in zip(found.of_kind(name), layers, strict=True):
            torch.testing.assert_close(one.weights_HTS, expected_1HTS[0], atol=2e-6, rtol=0)
            queries, keys = found.axes[name]
            assert one.weights_HTS.shape[1:] == (len(queries), len(keys))


@pytest.mark.parametrize("kind", slowly("gpt2", "bert", "t5", "bart"))
def test_tokens_are_those_of_transformers_and_their_labels_spell_the_text(kind, imported, published):
    from transformers import AutoTokenizer

    found = Reader(*load_model(imported(kind), "last")).read(TEXT)
    expected = AutoTokenizer.from_pretrained(published(kind))(TEXT)["input_ids"]
    assert found.tokens[0][0].tolist() == expected
    axis = found.axes[ENCODER if kind in ("t5", "bart") else SELF][0]
    covered = {place for start, end in axis.places_N2 for place in range(start, end)}
    assert {place for place, character in enumerate(TEXT) if character != " "} <= covered
    for label, (start, end) in zip(axis.labels, axis.places_N2, strict=True):
        assert start < 0 or label.split("·")[0] == TEXT[start:end].replace(" ", "␣")
    marks = [label for label, is_mark in zip(axis.labels, axis.is_mark_N, strict=True) if is_mark]
    assert marks == {"gpt2": [], "bert": ["[start]", "[end]"], "t5": ["[end]"], "bart": ["[start]", "[end]"]}[kind]


def test_a_target_that_is_not_given_is_the_models_own_translation(imported, attnlab, here):
    Path("line.txt").write_text("the quick fox\n")
    own = attnlab("translate", str(imported("t5")), "--input", "line.txt").out.strip()
    said = attnlab("attention", str(imported("t5")), "--text", "the quick fox", "--to", "out")
    assert said.status == 0, said.err
    data = data_of(Path("out/attention.html"))
    assert data["examples"][0]["title"] == f"the quick fox → {own} (the model's own)"
    assert [kind["name"] for kind in data["examples"][0]["kinds"]] == [
        "encoder self", "decoder self", "cross", "encoder rollout", "decoder rollout",
    ]  # fmt: skip


def data_of(page):
    """What the page's script reads."""
    text = page.read_text()
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_a_language_model_leaves_a_page_and_tables_and_the_effect_of_every_head(imported, attnlab, here):
    run = imported("gpt2")
    words = ["--text", TEXT, "--text", "a <b> dog", "--ablate", "--batches", "2", "--to", "out"]
    said = attnlab("attention", str(run), *words)
    assert said.status == 0, said.err
    assert "masking 4 heads, one at a time; validation examples: " in said.err
    assert said.out.splitlines()[0].split()[:2] == ["self", "role"]
    assert "repeat" in said.out.splitlines()[0]
    assert said.out.splitlines()[-1] == "out/attention.html"
    rows = list(csv.DictReader(Path("out/heads.csv").read_text().splitlines()))
    assert [(row["kind"], row["layer"], row["head"]) for row in rows] == [
        ("self", str(i), str(j)) for i in range(2) for j in range(2)
    ]
    assert all(float(row["masked_low"]) <= float(row["masked"]) <= float(row["masked_high"]) for row in rows)
    heads = read_json(Path("out/heads.json"))["heads"]
    assert heads[0]["statistics"]["repeats"]["queries"] > 0
    page = Path("out/attention.html").read_text()
    assert "a &lt;b&gt; dog" not in page.split('id="data">')[1]
    assert "<b> dog" not in page
    assert data_of(Path("out/attention.html"))["examples"][1]["title"] == "a <b> dog"
    assert "http" not in page.replace("http-equiv", "")


def test_the_effect_on_texts_is_that_on_their_nats(imported, attnlab, here):
    run = imported("gpt2")
    assert (
        attnlab("attention", str(run), "--text", TEXT, "--text", "a lazy dog", "--ablate", "text", "--to", "out").status
        == 0
    )
    model, tokenizer = load_model(run, "last")
    nats = targets = 0
    with torch.inference_mode():
        for text in (TEXT, "a lazy dog"):
            tokens = Reader(model, tokenizer).read(text).tokens[0]
            logits = model(tokens)[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
            targets += tokens.shape[1] - 1
    masked = read_json(Path("out/heads.json"))["heads"][0]["masked"]
    assert masked["before"] == pytest.approx(nats / targets, rel=1e-5)
    assert masked["examples"] == 2


@pytest.mark.parametrize("kind", slowly("bart", "bert", "vit"))
def test_losses_of_single_examples_are_parts_of_the_runs_own(kind, imported, here):
    parts, task = load_run(imported(kind), "last")
    batches = list(parts.data.val_dataloader())
    losses = TaskLosses(task, batches)()
    assert len(losses.loss_N) == sum(len(next(iter(batch.values()))) for batch in batches)
    whole = task.score(batches)["loss"]
    assert (losses.loss_N.sum() / losses.targets_N.sum()).item() == pytest.approx(whole, rel=1e-5)
    few = TaskLosses(task, batches, most=2)
    assert few.count == 2
    assert few().loss_N[0].item() == pytest.approx(losses.loss_N[0].item(), rel=1e-6)


def write_tree(path):
    rows = ["\t".join([str(i), form, *"____", str(head), relation, "_", "_"]) for i, form, head, relation in TREE]
    Path(path).write_text("\n".join(rows) + "\n\n" + "\n".join(rows) + "\n")


def test_a_dependency_file_gives_texts_and_syntax(imported, attnlab, here):
    write_tree("tree.conllu")
    said = attnlab("attention", str(imported("bert")), "--dependencies", "tree.conllu", "--to", "out")
    assert said.status == 0, said.err
    rows = list(csv.DictReader(Path("out/syntax.csv").read_text().splitlines()))
    assert {(row["relation"], row["direction"], row["pairs"]) for row in rows} >= {
        ("amod", "dependent to head", "4"),
        ("nsubj", "head to dependent", "2"),
    }
    assert all(row["baseline"] in ("0.5", "1") for row in rows)
    assert "no relation comes 10 times; syntax.csv has all" in said.out


def test_of_many_texts_the_page_has_the_first_and_the_statistics_have_all(imported, attnlab, here, monkeypatch):
    monkeypatch.setattr("attnlab.report.attention.MOST_EXAMPLES", 2)
    Path("lines.txt").write_text("a fox\n\nthe dog\nthe lazy dog\n")
    run = str(imported("gpt2"))
    assert attnlab("attention", run, "--input", "lines.txt", "--ablate", "text", "--to", "out").status == 0
    assert [example["title"] for example in data_of(Path("out/attention.html"))["examples"]] == ["a fox", "the dog"]
    assert "In the statistics alone: 1 more." in Path("out/attention.html").read_text()
    head = read_json(Path("out/heads.json"))["heads"][0]
    assert head["masked"]["examples"] == 3
    reader = Reader(*load_model(imported("gpt2"), "last"))
    lengths = [reader.read(text).tokens[0].shape[1] for text in ("a fox", "the dog", "the lazy dog")]
    assert head["statistics"]["entropy"]["queries"] == sum(lengths)


def test_an_image_and_a_default_folder(imported, attnlab, here, images):
    run = imported("vit")
    name = str(images(16, 2) / "0" / "3.png")
    said = attnlab("attention", str(run), "--image", name)
    assert said.status == 0, said.err
    (example,) = data_of(run / "attention" / "attention.html")["examples"]
    assert (example["title"], example["size"]) == ("3.png", [16, 16])
    assert [kind["name"] for kind in example["kinds"]] == ["self", "rollout"]
    assert example["kinds"][0]["keys"] == ["[class]", "1.1", "1.2", "2.1", "2.2"]
    assert "marks" in json.dumps(read_json(run / "attention" / "heads.json"))


REFUSED = {
    "no text": ("gpt2", [], "give what the model is to look at: --text TEXT, --input FILE (one text a line), --image FILE or --audio FILE"),
    "a blank text": ("gpt2", ["--text", " "], "--text is empty"),
    "nothing in it": ("t5", ["--input", "empty.txt"], "--input empty.txt holds no text"),
    "too long": ("gpt2", ["--text", "fox " * 100], "the text takes 201 positions, marks included, and the model's table has 64; shorten it by 137 tokens"),
    "a long target": ("bart", ["--text", "fox", "--target", "fox " * 100], "the target takes"),
    "a target": ("gpt2", ["--text", "fox", "--target", "dog"], "GPT takes no --target; it belongs to a sequence-to-sequence model"),
    "targets": ("t5", ["--text", "fox", "--target", "a", "--target", "b"], "2 times --target and 1 times --text"),
    "both": ("gpt2", ["--text", "fox", "--image", "a.png"], "--image is for runs on images"),
    "an image": ("gpt2", ["--image", "a.png"], "GPT looks at no image; give it --text TEXT"),
    "a text": ("vit", ["--text", "fox"], "ViT reads no text; give it --image FILE"),
    "no image": ("vit", ["--image", "empty.txt"], "empty.txt cannot be read as an image"),
    "gone": ("vit", ["--image", "gone.png"], "gone.png cannot be read as an image"),
    "other words": ("bert", ["--dependencies", "other.conllu"], "line 2: the word 'way' does not fit the text"),
    "no tree": ("bert", ["--dependencies", "empty.txt"], "empty.txt holds no sentence"),
    "no loss": ("bert", ["--text", "fox", "--ablate", "text"], "Bert gives a text no probability"),
    "batches": ("gpt2", ["--text", "fox", "--ablate", "--batches", "0"], "--batches must be at least 1, got 0"),
    "a head": ("gpt2", ["--text", "fox", "--figures", "--head", "9.0"], "--head 9.0: there is no such head; accepted are LAYER.HEAD"),
    "a head alone": ("gpt2", ["--text", "fox", "--head", "0.0"], "add --figures"),
    "no run": (None, ["--text", "fox"], "nowhere: there is no run (no run.json)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_message(name, imported, attnlab, here):
    kind, words, message = REFUSED[name]
    Path("empty.txt").write_text("\n")
    Path("other.conllu").write_text("# text = Now\n" + "\t".join(["1", "way", *"____", "0", "root", "_", "_"]) + "\n")
    said = attnlab("attention", str(imported(kind)) if kind else "nowhere", *words, "--to", "out")
    assert said.status == 2, said.err
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not Path("out").exists()


def test_a_model_without_attention_and_an_unknown_character_are_told(attnlab, tiny):
    words = [*tiny, "model=recurrent_lm", "trainer.max_steps=2", "run_dir=run", "model.num_layers=1"]
    words = [word for word in words if not word.startswith("model.num_heads")]
    assert attnlab("train", *words).status == 0
    said = attnlab("attention", "run", "--text", "the fox")
    assert (said.status, said.err) == (
        2, "attnlab: run: RecurrentLanguageModel has no attention to show: a recurrence sees what came before through its state alone\n",
    )  # fmt: skip
    assert "the character 'é' (U+00E9) is not in the alphabet" in attnlab("attention", "run", "--text", "thé").err


def test_other_pixels_are_scaled_and_cut_as_in_training(imported, attnlab, here):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save("wide.png")
    assert attnlab("attention", str(imported("vit")), "--image", "wide.png", "--to", "out").status == 0
    assert data_of(Path("out/attention.html"))["examples"][0]["size"] == [16, 16]
