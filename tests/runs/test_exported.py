"""`attnlab export`: what was trained or imported here says the same in transformers, text for text."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.huggingface import slowly

from attnlab.data.special_tokens import add_special_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.runs.trained import load_model
from attnlab.training.run_directory import read_json

TEXT, TARGET = "the quick brown fox jumps", "dog lazy"
SIZES = ["model.d_model=16", "model.num_heads=2", "model.num_layers=1", "trainer.max_steps=2", "trainer.threads=1",
         "trainer.val_check_interval=2", "schedule.warmup_steps=0", "optimizer.lr=0.1", "progress=off"]  # fmt: skip


@pytest.fixture
def train(attnlab, library):
    """Trains a step or two into the directory `run`."""
    windows = [
        f"data.path={library}/text.txt",
        "data.context_length=16",
        "data.batch_size=4",
        "data.max_validation_tokens=256",
    ]
    pairs = ["data=parallel_text", f"data.path={library}/pairs.tsv", "data.language_pair=en-de", "data.batch_tokens=400", "data.max_length=60",
             "task.num_beams=1", "task.max_extra_length=2"]  # fmt: skip
    data = {
        "gpt": ["model=gpt", "data=text", *windows, "task.evaluation_lengths=[1]"],
        "bert": ["model=bert", "data=text_masked", *windows],
        "classifier": [
            "model=bert",
            "task=sequence_classification",
            "data=tsv",
            f"data.path={library}/labelled",
            "data.batch_tokens=400",
        ],
        "encoder_decoder": ["model=encoder_decoder", *pairs],
        "t5": ["model=t5", *pairs],
        "vit": ["model=vit", "data=digits"],
    }

    def run(family, *words):
        said = attnlab("train", *data[family], *SIZES, *words, "run_dir=run")
        assert said.status == 0, said.err

    return run


BPE = ["tokenizer=bpe", "tokenizer.vocabulary_size=280"]
GPT2 = ["position=learned", "model.bias=true", "model.max_length=64"]
MARIAN = ["residual=post_ln", "feed_forward=relu", "position.interleaved=false", "model.output_bias=true"]
WRITTEN = {
    "gpt by default": ("gpt", BPE, "starcoder2", {"tie_word_embeddings": True, "use_bias": False, "eos_token_id": 280}),
    "gpt by default, characters with an end": ("gpt", ["tokenizer=character", "data.end_of_text=true"], "starcoder2", {}),
    "gpt2 without biases": ("gpt", ["position=learned", "model.max_length=64", *BPE], "gpt2", {}),
    "starcoder2 of yarn and a window": ("gpt", ["position=rotary_yarn", "model.bias=true", "attention.window=5", *BPE], "starcoder2", {"sliding_window": 5}),
    "bert by default": ("bert", BPE, "bert", {"type_vocab_size": 1, "pad_token_id": 0}),
    "bert of next sentences": ("bert", ["data.next_sentence=true", *BPE], "bert", {"architectures": ["BertForPreTraining"], "type_vocab_size": 2}),
    "roberta": ("bert", ["position.offset=1", *BPE], "roberta", {"type_vocab_size": 1, "pad_token_id": 0}),
    "bart": ("encoder_decoder", ["residual=post_ln", "position=learned", "position.offset=2", "model.embedding_norm=true", *BPE], "bart", {}),
    "gpt2, bytes": ("gpt", [*GPT2, "tokenizer=byte"], "gpt2", {"vocab_size": 256, "eos_token_id": None}),
    "gpt2, characters": ("gpt", [*GPT2, "tokenizer=character"], "gpt2", {"bos_token_id": None}),
    "gpt2, bpe": ("gpt", [*GPT2, *BPE], "gpt2", {"vocab_size": 281, "bos_token_id": 280, "eos_token_id": 280, "pad_token_id": None}),
    "llama": ("gpt", ["norm=rms_norm", "feed_forward=swiglu", "attention=multi_query", *BPE], "llama", {"eos_token_id": 280}),
    "bloom": ("gpt", ["position=alibi", "model.bias=true", "model.embedding_norm=true", "feed_forward.approximate=tanh", *BPE], "bloom", {}),
    "neox": ("gpt", ["residual=parallel", "model.bias=true", "model.tie_embeddings=false", "residual.shared_norm=false", *BPE], "gpt_neox", {}),
    "bert": ("bert", ["+model.num_segments=2", *BPE], "bert", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "marian": ("encoder_decoder", [*MARIAN, *BPE], "marian", {"decoder_start_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}),
    "t5": ("t5", ["attention.scale=1.0", "model.scale_embedding=false", "feed_forward.approximate=tanh", *BPE], "t5", {"decoder_start_token_id": 1, "pad_token_id": 0}),
}  # fmt: skip


def loaded(folder):
    """The model and tokenizer of transformers, nothing left out or made up."""
    import transformers

    cls = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
    model, told = cls.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_a_run_of_ours_says_the_same_in_transformers(name, train, attnlab, here):
    family, words, architecture, fields = WRITTEN[name]
    train(family, *words)
    said = attnlab("export", "run", "--to", "out")
    assert said.status == 0, said.err
    assert said.out.startswith(f"out: {architecture} (")
    assert "transformers loads it, and gives the same on texts" in said.out
    config = read_json(Path("out/config.json"))
    assert fields.items() <= config.items()
    model, tokenizer = load_model(Path("run"), "last")
    other, theirs = loaded(Path("out"))
    given = theirs(TEXT, return_tensors="pt")
    vocabulary = Vocabulary(tokenizer)
    if family == "gpt":
        row = torch.from_numpy(tokenizer.encode(TEXT).astype(int))[None]
        found, expected = other(given.input_ids).logits, model(row)
    elif family == "bert":
        row = torch.from_numpy(add_special_tokens(vocabulary.special_tokens.text, vocabulary.encode_text(TEXT)))[None]
        written = other(**given)
        found, expected = written.prediction_logits if "prediction_logits" in written else written.logits, model(row)
    else:
        row = torch.from_numpy(add_special_tokens(vocabulary.special_tokens.source, vocabulary.encode_text(TEXT)))[None]
        into = torch.tensor([[vocabulary.target_start, *vocabulary.encode_text(TARGET).tolist()]])
        found, expected = other(given.input_ids, decoder_input_ids=into).logits, model(row, into)
    assert given.input_ids.tolist() == row.tolist()
    torch.testing.assert_close(found.detach(), expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", slowly("llama", "bart", "vit"))
def test_what_was_imported_goes_back_as_it_came(kind, imported, published, attnlab, here):
    from safetensors.torch import load_file

    said = attnlab("export", str(imported(kind)), "--to", "out", "--as", kind)
    assert said.status == 0, said.err
    back, before = (load_file(Path(folder) / "model.safetensors") for folder in ("out", published(kind)))
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in back)
    if kind != "vit":
        from transformers import AutoTokenizer

        one, two = (AutoTokenizer.from_pretrained(folder) for folder in ("out", published(kind)))
        assert one(TEXT).input_ids == two(TEXT).input_ids
        assert (
            attnlab("import", "out", "--name", "again", *(["data.max_length=60"] if kind == "bart" else [])).status == 0
        )


def test_nothing_is_kept_that_transformers_does_not_give_the_same_on(train, attnlab, here, monkeypatch):
    """As where one of the two libraries has a fault."""
    from attnlab.interop import convert

    def spoilt(rules, ours, settings):
        made = right_to_theirs(rules, ours, settings)
        return {name: -tensor if name.endswith("norm.bias") else tensor for name, tensor in made.items()}

    right_to_theirs = convert.to_theirs
    train("gpt", *BPE)
    monkeypatch.setattr(convert, "to_theirs", spoilt)
    said = attnlab("export", "run", "--to", "out")
    assert said.status == 2
    assert "transformers.Starcoder2ForCausalLM gives other logits than the model here, by " in said.err
    assert not Path("out").exists()
    monkeypatch.setattr(convert, "to_theirs", lambda *given: {})
    said = attnlab("export", "run", "--to", "out")
    assert said.status == 2
    assert [path.name for path in here.iterdir()] == ["run"]


def test_an_export_that_cannot_be_tried_says_so(train, attnlab, here, monkeypatch):
    from attnlab.runs import exported

    train("gpt", *BPE)
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    said = attnlab("export", "run", "--to", "out")
    assert said.status == 0, said.err
    assert "not checked: transformers is not installed" in said.out


def test_an_architecture_that_computes_something_else_is_refused_with_what_differs(train, attnlab, here):
    train("gpt", "residual=sandwich", *BPE)
    said = attnlab("export", "run", "--to", "out", "--as", "gpt2")
    assert said.status == 2
    assert "gpt2, which was asked for, computes something else" in said.err
    assert "residual: Sandwich here, " in said.err
    said = attnlab("export", "run", "--to", "out", "--as", "mamba")
    assert "--as mamba: there is no such architecture; accepted: gpt2" in said.err
    assert not Path("out").exists()


def test_a_model_of_grey_images_says_what_its_clients_will_miss(train, attnlab, here):
    train("vit", "model.pooling=class", "model.patch_size=4")
    said = attnlab("export", "run", "--to", "out")
    assert said.status == 0, said.err
    assert "gives the same on images" in said.out
    assert "image pipeline makes every image RGB, and this model reads grey ones" in said.err
    assert len(read_json(Path("out/config.json"))["id2label"]) == 10


def test_two_tokenizers_go_out_with_code_of_their_own(train, attnlab, here):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    train("encoder_decoder", "data.joint_vocabulary=false", "model.share_embeddings=false", "optimizer.lr=1e-5", *BPE)
    said = attnlab("export", "run", "--to", "out", "--as", "marian")
    assert said.status == 2
    assert "source and target have a tokenizer each, and no architecture that is written has two" in said.err
    said = attnlab("export", "run", "--to", "out")
    assert said.status == 0, said.err
    assert "out: attnlab (AttnlabForSeq2SeqLM)" in said.out
    Path("lines.txt").write_text("the quick fox\n")
    ours = attnlab("translate", "run", "--input", "lines.txt", "--num-beams", "1").out.rstrip("\n")
    model = AutoModelForSeq2SeqLM.from_pretrained("out", trust_remote_code=True)
    given = AutoTokenizer.from_pretrained("out", trust_remote_code=True)("the quick fox", return_tensors="pt")
    (row,) = model.generate(**given, do_sample=False, max_new_tokens=given["input_ids"].shape[1] + 2).tolist()
    assert (
        AutoTokenizer.from_pretrained("out/target").decode(row, skip_special_tokens=True).strip() == ours.strip() != ""
    )


def test_nothing_that_is_there_is_written_over(imported, attnlab, here):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    for target in ("out", "out/mine.txt"):
        said = attnlab("export", str(imported("gpt2")), "--to", target)
        assert said.status == 2
        assert f"--to {target}: there is something already; give a folder that is new or empty" in said.err
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]
    said = attnlab("export", "nowhere", "--to", "new")
    assert said.status == 2
    assert "nowhere: there is no run (no run.json)" in said.err
    said = attnlab("export", str(imported("gpt2")), "--to", "new", "--checkpoint", "best")
    assert said.status == 2
    assert "there is no best.ckpt yet; the run is finished" in said.err


def test_all_marks_that_end_a_text_are_written(published, attnlab, here, small_data):
    """As models of conversations have several."""
    folder = shutil.copytree(published("llama"), "model")
    generation = (
        read_json(folder / Path("generation_config.json")) if Path(folder, "generation_config.json").exists() else {}
    )
    Path(folder, "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [2, 7]}))
    assert attnlab("import", "model", *small_data["llama"]).status == 0
    assert attnlab("export", "runs/imported/model/seed=0", "--to", "out").status == 0
    assert read_json(Path("out/config.json"))["eos_token_id"] == [2, 7]


def test_what_a_model_is_told_of_its_generation_is_written_back(published, attnlab, here, small_data):
    """As BART is, of the tokens that a text of the greatest length ends in, and of those that never come."""
    from transformers import BartForConditionalGeneration

    told = {"forced_eos_token_id": 2, "forced_bos_token_id": 5, "bad_words_ids": [[7], [8, 9]]}
    folder = shutil.copytree(published("bart"), "model")
    path = Path(folder, "generation_config.json")
    path.write_text(json.dumps((read_json(path) or {}) | told))
    assert attnlab("import", "model", *small_data["bart"]).status == 0
    assert attnlab("export", "runs/imported/model/seed=0", "--to", "out").status == 0
    generation = BartForConditionalGeneration.from_pretrained("out").generation_config
    assert {name: getattr(generation, name) for name in told} == told


def test_a_marian_of_sentencepiece_files_comes_translates_and_goes(attnlab, here, library):
    from tests.huggingface import save_marian
    from transformers import MarianMTModel, MarianTokenizer

    pytest.importorskip("sentencepiece")
    words = (library / "text.txt").read_text()[:400]
    folder = save_marian(here / "model", words, words[::-1])
    data = [
        "data=parallel_text",
        f"data.path={library}/pairs.tsv",
        "data.language_pair=en-de",
        "data.batch_tokens=400",
        "data.max_length=60",
    ]
    said = attnlab("import", "model", *data)
    assert said.status == 0, said.err
    (here / "lines.txt").write_text(f"{TEXT}\n{TARGET}\n")
    run = "runs/imported/model/seed=0"
    ours = attnlab("translate", run, "--input", "lines.txt", "--num-beams", "1")
    assert ours.status == 0, ours.err
    model, tokenizer = MarianMTModel.from_pretrained(folder).eval(), MarianTokenizer.from_pretrained(folder)
    given = [tokenizer(text, return_tensors="pt") for text in (TEXT, TARGET)]
    theirs = [model.generate(**one, num_beams=1, do_sample=False, max_new_tokens=12)[0] for one in given]
    for line, row in zip(ours.out.splitlines(), theirs, strict=True):
        expected = tokenizer.decode(row, skip_special_tokens=True)
        assert expected
        assert line.startswith(expected[:12])
    said = attnlab("export", run, "--to", "out")
    assert said.status == 0, said.err
    for name in ("source.spm", "target.spm"):
        assert (here / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert MarianTokenizer.from_pretrained("out")(TEXT) == tokenizer(TEXT)
