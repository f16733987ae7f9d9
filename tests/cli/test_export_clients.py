"""Exports under clients that nobody here wrote: lm-evaluation-harness, sentence-transformers, transformers' pipelines and generation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnlab.data.special_tokens import add_special_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.runs.trained import load_model

pytestmark = pytest.mark.slow
CONTEXT = 16
TINY = ["model.d_model=16", "model.num_heads=2", "model.num_layers=1", "trainer.max_steps=20", "trainer.threads=1",
        "trainer.val_check_interval=20", "schedule.warmup_steps=0", "optimizer.lr=0.01", "progress=off"]  # fmt: skip
SUBWORDS = ["tokenizer.vocabulary_size=280"]
WINDOWS = [f"data.context_length={CONTEXT}", "data.batch_size=4", "data.max_validation_tokens=256"]


@pytest.fixture
def exported(attnlab, monkeypatch):
    """Trains a run `run` with these words and exports it to `out`, which the command has to have tried; gives what the command said."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def run(*words):
        said = attnlab("train", *TINY, *words, "run_dir=run")
        assert said.status == 0, said.err
        said = attnlab("export", "run", "--to", "out")
        assert said.status == 0, said.err
        assert "gives the same on" in said.out
        return said

    return run


@pytest.fixture
def pipeline():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    own = {"trust_remote_code": True}  # asked of no folder that is an architecture of transformers
    return lambda task, **more: transformers.pipeline(task, model="out", device="cpu", **own, **more)


# --- language models


def documents(folder: Path) -> list[str]:
    """
    A folder of texts, and how it is split: the test part is a lead-in of CONTEXT tokens and the text that is scored.

    Nothing is trained on the tilde, so that each is a token.
    """
    text = "the quick brown fox jumps over the lazy dog. " * 60
    parts = {"train": text, "validation": text[:400], "lead": "~" * CONTEXT, "scored": "a dog and a fox" + "~" * 200}
    folder.mkdir()
    for number, part in enumerate(parts.values()):
        (folder / f"{number}.txt").write_text(part)
    ends = np.cumsum([len(part) + 1 for part in parts.values()])
    shares = [(end + 0.5) / (ends[-1] - 1) for end in ends[:2]]
    return [f"data.path={folder}", f"data.split=[{shares[0]},{shares[1] - shares[0]},{1 - shares[1]}]"]


@pytest.mark.parametrize("arm", ["rotary", "relative_bias"])
def test_the_evaluation_harness_gives_the_bits_a_byte_of_evaluate(arm, exported, pipeline, attnlab, here, tmp_path):
    """Of an architecture of transformers, and of what none of them computes; that one also goes on from texts."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "texts"
    words = documents(folder)
    run = [
        "data=text",
        *words,
        *WINDOWS,
        "tokenizer=bpe",
        *SUBWORDS,
        "task.evaluation_lengths=[1]",
        "task.sliding=false",
        f"position={arm}",
    ]
    said = exported(*run)
    is_known = arm == "rotary"
    assert said.err == "" if is_known else said.err.startswith("note: it is loaded with trust_remote_code=True")
    _, tokenizer = load_model(Path("run"), "last")
    scored = (folder / "3.txt").read_text()
    whole = len(tokenizer.encode(scored)) // CONTEXT * CONTEXT
    (here / "page.json").write_text(json.dumps({"page": tokenizer.decode(tokenizer.encode(scored)[:whole])}))
    task = {
        "task": "pages",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(here / "page.json")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "page",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    model = HFLM(pretrained="out", device="cpu", batch_size=4, trust_remote_code=not is_known)
    assert (model.prefix_token_id, model.max_length) == (tokenizer.end, CONTEXT)
    tasks = TaskManager(include_defaults=False)
    results = simple_evaluate(model=model, tasks=[task], task_manager=tasks, bootstrap_iters=0)["results"]
    found = results["pages"]["bits_per_byte,none"]
    expected = json.loads(attnlab("evaluate", "run").out)["test/bits_per_byte@1x"]
    assert found == pytest.approx(expected, rel=1e-5)
    if not is_known:
        prompts = ["the quick", "a dog and a"]  # of two lengths in one batch
        client = pipeline("text-generation", max_new_tokens=5, do_sample=False, batch_size=2)
        client.tokenizer.pad_token = client.tokenizer.eos_token
        given = ("generate", "run", "--temperature", "0", "--max-new-tokens", "5")
        ours = attnlab(*given, "--prompt", prompts[0], "--prompt", prompts[1]).out.rstrip("\n").split("\n\n")
        assert [one[0]["generated_text"] for one in client(prompts)] == ours


def test_text_is_generated_until_its_end(exported, pipeline, library):
    exported(
        "data=text",
        f"data.path={library}/text.txt",
        *WINDOWS,
        "tokenizer=bpe",
        *SUBWORDS,
        "task.evaluation_lengths=[1]",
    )
    client = pipeline("text-generation", max_new_tokens=4, do_sample=False)
    model, tokenizer = load_model(Path("run"), "last")
    tokens = tokenizer.encode("the quick").tolist()
    for _ in range(4):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert client("the quick")[0]["generated_text"] == tokenizer.decode(tokens)
    with torch.no_grad():  # the mark becomes the likeliest token of all
        end = client.tokenizer.eos_token_id
        client.model.lm_head.weight[end] = client.model.lm_head.weight.sum(dim=0)
        client.model.model.norm.weight.fill_(1e-6)
        client.model.model.norm.bias.copy_(client.model.lm_head.weight[end])
    assert client("the quick", return_full_text=False)[0]["generated_text"] == ""


def test_a_run_without_an_end_says_what_its_clients_will_miss(exported, here, library):
    said = exported(
        "data=text", f"data.path={library}/text.txt", *WINDOWS, "tokenizer=byte", "task.evaluation_lengths=[1]"
    )
    assert "note: the tokenizer has no end-of-text token" in said.err
    assert "train with data.end_of_text=true" in said.err


# --- encoders


@pytest.mark.parametrize("arm", ["learned", "alibi"])
def test_masks_are_filled_and_texts_embedded(arm, exported, pipeline, library):
    """By the defaults of BERT, whose tables have no segments, and by what is no architecture of transformers."""
    position = f"position={arm}"
    exported("model=bert", "data=text_masked", f"data.path={library}/text.txt", *WINDOWS, *SUBWORDS, position)
    model, tokenizer = load_model(Path("run"), "last")
    vocabulary = Vocabulary(tokenizer)
    tokens = [
        vocabulary.start,
        *vocabulary.encode_text("the quick"),
        vocabulary.mask,
        *vocabulary.encode(" fox."),
        vocabulary.end,
    ]
    place = tokens.index(vocabulary.mask)
    scores_V = model(torch.tensor([tokens]))[0, place].softmax(dim=-1)
    found = pipeline("fill-mask")("the quick <mask> fox.", top_k=3)
    assert [entry["token"] for entry in found] == scores_V.topk(3).indices.tolist()
    assert [entry["score"] for entry in found] == pytest.approx(scores_V.topk(3).values.tolist(), rel=1e-4)

    if arm == "alibi":
        return
    sentence_transformers = pytest.importorskip("sentence_transformers")
    client = sentence_transformers.SentenceTransformer("out", device="cpu")
    texts = ["the quick fox", "a dog"]
    rows = [add_special_tokens(vocabulary.special_tokens.text, vocabulary.encode_text(text)) for text in texts]
    expected = [model.encode(torch.from_numpy(row)[None])[0].mean(dim=0).detach().numpy() for row in rows]
    np.testing.assert_allclose(client.encode(texts), np.stack(expected), atol=1e-5)


ENCODER = ["model=bert", "data.batch_tokens=400", *SUBWORDS]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_texts_are_classified(pooling, exported, pipeline, attnlab, library):
    """transformers itself reads the first token's state: the mean goes out with code that imports attnlab."""
    task = ("task=sequence_classification", f"task.pooling={pooling}", "data=tsv", f"data.path={library}/labelled")
    said = exported(*ENCODER, *task)
    if pooling == "mean":
        assert said.out.startswith("out: attnlab (AttnlabForSequenceClassification)")
        assert "trust_remote_code=True, where Python finds attnlab (it reads the mean of the states" in said.err
        said = attnlab("export", "run", "--to", "known", "--as", "bert")
        assert said.out.startswith("known: bert (BertForMaskedLM)")
        assert "left out: output.weight, output.bias (it reads the mean of the states" in said.err
        assert "task.pooling=first" in said.err
    model, tokenizer = load_model(Path("run"), "last")
    vocabulary, client = Vocabulary(tokenizer), pipeline("text-classification", top_k=None)
    texts = ["the quick fox", "a dog and old trees"]  # of two lengths in one batch
    for text, found in zip(texts, client(texts, batch_size=2), strict=True):
        row = add_special_tokens(vocabulary.special_tokens.text, vocabulary.encode_text(text))
        scores = model(torch.from_numpy(row)[None])[0].softmax(dim=0).tolist()
        assert {one["label"]: one["score"] for one in found} == pytest.approx(
            dict(zip(("with", "without"), scores, strict=True)), rel=1e-4
        )


@pytest.mark.parametrize("arm", ["learned", "rotary"])
def test_entities_are_found(arm, exported, pipeline, library):
    exported(*ENCODER, "task=token_classification", "data=conll", f"data.path={library}/tagged", f"position={arm}")
    model, tokenizer = load_model(Path("run"), "last")
    vocabulary, text = Vocabulary(tokenizer), "the quick fox sleeps"
    row = torch.from_numpy(add_special_tokens(vocabulary.special_tokens.text, vocabulary.encode_text(text)))[None]
    scores_TC = model(row, torch.arange(row.numel())).softmax(dim=1)[1:-1]
    found = pipeline("token-classification", ignore_labels=[])(text)
    labels = ("O", "B-animal", "I-animal")
    assert [one["entity"] for one in found] == [labels[i] for i in scores_TC.argmax(dim=1)]
    assert [one["score"] for one in found] == pytest.approx(scores_TC.max(dim=1).values.tolist(), rel=1e-4)


def test_questions_are_answered(exported, library):
    """transformers has no pipeline for it any more, but its model and tokenizer."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    exported(*ENCODER, "task=span_extraction", "data=squad_files", f"data.path={library}/questions.json")
    model, tokenizer = load_model(Path("run"), "last")
    client, question, text = AutoModelForQuestionAnswering.from_pretrained("out"), "what?", "the quick fox sleeps"
    given = AutoTokenizer.from_pretrained("out")(question, text, return_tensors="pt")
    vocabulary = Vocabulary(tokenizer)
    pair = [vocabulary.encode_text(part) for part in (question, text)]
    assert given["input_ids"].tolist() == [add_special_tokens(vocabulary.pair_special_tokens(), *pair).tolist()]
    assert given["token_type_ids"].sum() == len(pair[1]) + 1
    found = client(**given)
    start_BT, end_BT = model(given["input_ids"], None, given["token_type_ids"])
    torch.testing.assert_close((found.start_logits, found.end_logits), (start_BT, end_BT), atol=1e-5, rtol=1e-5)


# --- pairs and images


def test_sentences_are_translated(exported, attnlab, library):
    """transformers has no pipeline for it any more, but its model and tokenizer."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    pairs = [
        "data=parallel_text",
        f"data.path={library}/pairs.tsv",
        "data.language_pair=en-de",
        "data.batch_tokens=400",
        "data.max_length=60",
    ]
    exported(
        "model=encoder_decoder",
        *pairs,
        "residual=post_ln",
        "position.interleaved=false",
        "task.num_beams=1",
        "task.max_extra_length=2",
        "trainer.max_steps=120",
        "trainer.val_check_interval=120",
        *SUBWORDS,
    )
    Path("lines.txt").write_text("the quick fox\n")
    ours = attnlab("translate", "run", "--input", "lines.txt", "--num-beams", "1").out.rstrip("\n")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
    given = tokenizer("the quick fox", return_tensors="pt")
    limit = given["input_ids"].shape[1] + 2
    (row,) = model.generate(**given, num_beams=1, do_sample=False, max_new_tokens=limit).tolist()
    assert tokenizer.decode(row, skip_special_tokens=True).strip() == ours.strip() != ""


def test_images_are_classified(exported, pipeline, images):
    folder = images(16, 2)
    exported(
        "model=vit",
        "model.pooling=class",
        "data=image_folder",
        f"data.path={folder}",
        "data.source.image_size=16",
        "augmentation=none",
    )
    model, _ = load_model(Path("run"), "last")
    facts = json.loads(Path("run/run.json").read_text())["data"]
    path = folder / "1" / "3.png"
    pixels_CYX = np.asarray(Image.open(path)).transpose(2, 0, 1) / 255
    mean, deviation = (np.array(facts[name])[:, None, None] for name in ("mean", "deviation"))
    scores = model(torch.from_numpy((pixels_CYX - mean) / deviation).float()[None])[0].softmax(dim=0).tolist()
    found = pipeline("image-classification")(str(path))
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(facts["classes"], scores, strict=True)), rel=1e-4
    )


def test_grey_images_are_classified_by_a_default(exported, pipeline):
    """transformers' pipeline makes them RGB, and the model grey again."""
    from sklearn.datasets import load_digits

    exported("model=vit", "data=digits")
    model, _ = load_model(Path("run"), "last")
    facts = json.loads(Path("run/run.json").read_text())["data"]
    pixels_YX = load_digits().images[5] / 16 * 255
    Image.fromarray(pixels_YX.round().astype(np.uint8)).save("digit.png")
    grey_YX = np.asarray(Image.open("digit.png")) / 255
    given_YX = torch.from_numpy((grey_YX - facts["mean"][0]) / facts["deviation"][0]).float()
    scores = model(given_YX[None, None])[0].softmax(dim=0).tolist()
    found = pipeline("image-classification", top_k=10)("digit.png")
    labels = facts.get("classes") or [f"LABEL_{number}" for number in range(10)]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(labels, scores, strict=True)), rel=1e-4
    )
