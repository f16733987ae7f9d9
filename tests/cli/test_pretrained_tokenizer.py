"""Every kind of data with the tokenizer of a published model: its own numbers reach the model, and its own marks end what is generated."""

import json
import shutil

import pytest
import torch
from tests.huggingface import CHATML, KINDS, save

from attnlab.data import Tokenizer, read_tokenizer
from attnlab.runs.texts import continuation
from attnlab.runs.trained import load_run
from attnlab.training.run_directory import read_json

MODEL = [
    "model.d_model=16",
    "model.num_heads=2",
    "model.num_layers=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
]
SMALL = [*MODEL, "trainer.threads=1", "progress=off"]
WINDOWS = ["data.context_length=20", "data.batch_size=4", "data.max_validation_tokens=256"]
PAIRS = ["data.batch_tokens=300", "task.num_beams=2", "task.max_extra_length=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    given = {"chat": CHATML}
    return {kind: save(kind, tmp_path_factory.mktemp(kind), given.get(kind)) for kind in KINDS}


@pytest.fixture
def train(attnlab, folders, here, library):
    """Trains a step or two with one of the tokenizers and gives what was said, and the run."""
    data = {
        "causal_lm": [f"data=text data.path={library}/text.txt model=gpt task.evaluation_lengths=[1]", WINDOWS],
        "masked_lm": [f"data=text_masked data.path={library}/text.txt model=bert model.max_length=40", WINDOWS],
        "sequence_classification": [f"data=tsv data.path={library}/labelled model=bert", ["data.batch_tokens=300"]],
        "token_classification": [f"data=conll data.path={library}/tagged model=bert", ["data.batch_tokens=300"]],
        "translation": [f"data=parallel_text data.path={library}/pairs.tsv data.language_pair=en-de model=t5", PAIRS],
        "span_corruption": [f"data=text_spans data.path={library}/text.txt model=t5", WINDOWS],
    }

    def run(kind, task, *words):
        first, more = data[task]
        published = shutil.copytree(folders[kind], here / "published", dirs_exist_ok=True)
        said = attnlab(
            "train", *first.split(), *more, f"task={task}", "tokenizer=pretrained", f"tokenizer.path={published}", "run_dir=run",
            *SMALL, "trainer.precision=32", *words,
        )  # fmt: skip
        return said, here / "run"

    return run


def parts_of(run):
    parts, task = load_run(run, "last")
    return parts.data, task


WORKING = [
    ("gpt2", "causal_lm"),
    ("bert", "masked_lm"),
    ("bert", "sequence_classification"),
    ("gpt2", "sequence_classification"),
    ("bart", "token_classification"),
    ("bart", "translation"),
    ("t5", "translation"),
    ("t5", "span_corruption"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), WORKING)
def test_it_trains_is_kept_and_evaluates_after_the_run_has_moved(train, attnlab, here, name, kind):
    said, run = train(kind, name)
    assert said.status == 0, said.err
    final = read_json(run / "status.json")["final"]
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    assert read_json(run / "run.json")["data"]["vocabulary_size"] == tokenizer.vocabulary_size
    moved = shutil.move(run, here / "moved")
    shutil.rmtree(here / "published")
    told = json.loads(attnlab("evaluate", str(moved)).out)
    assert told == pytest.approx({key: value for key, value in final.items() if key.startswith("test/")})
    data, task = parts_of(moved)
    assert task.model.vocabulary_size == tokenizer.vocabulary_size
    batch = next(iter(data.train_dataloader()))
    check(kind, name, batch, data, tokenizer)


def check(kind, name, batch, data, tokenizer):
    """What a batch holds, by the marks that the kind of tokenizer has."""
    if name == "masked_lm":
        assert (batch["tokens"][:, 0] == 2).all()
        assert (batch["tokens"][:, -1] == 3).all()
        assert (batch["tokens"] == 4).any()
    if "classification" in name:
        first, last = {"bert": (2, 3), "bart": (0, 2), "gpt2": (None, None)}[kind]
        for row, real in zip(batch["tokens"], batch["is_token"], strict=True):
            tokens = row[real].tolist()
            assert first is None or (tokens[0], tokens[-1]) == (first, last)
            assert set(row[~real].tolist()) <= {tokenizer.special_tokens.pad}
    if name == "translation":
        source, into, out = batch["source"], batch["target_in"], batch["target_out"]
        start, end = {"bart": (2, 2), "t5": (0, 1)}[kind]
        assert (into[:, 0] == start).all()
        assert torch.equal(into[:, 1:][batch["is_target"][:, 1:]], out[:, :-1][batch["is_target"][:, 1:]])
        lengths = batch["is_target"].sum(dim=1, keepdim=True)
        assert (out.gather(1, lengths - 1) == end).all()
        if kind == "bart":
            assert (source[:, 0] == 0).all()
            assert (out[:, 0] == 0).all()
    if name == "span_corruption":
        first, second = tokenizer.special_tokens.sentinels[:2]
        assert (batch["target_out"][:, 0] == first).all()
        assert ((batch["source"] == first).sum(dim=1) == 1).all()
        assert (batch["target_out"] == second).any(dim=1).all()
        assert (batch["target_in"][:, 0] == 0).all()
        assert (batch["source"][:, -1] == 1).all()


LACKING = [
    ("gpt2", "masked_lm", [], "this tokenizer has no mask token (pad 0, start 0, end 0, target_start 0)"),
    ("bart", "span_corruption", [], "the tokenizer has 0 sentinels (<extra_id_i>), too few"),
    (
        "t5",
        "span_corruption",
        ["data.context_length=300"],
        "the tokenizer has 12 sentinels (<extra_id_i>), too few for the 15 spans",
    ),
    ("gpt2", "sequence_classification", ["task.token_dropout=0.1"], "has no mask token"),
]


@pytest.mark.parametrize(("kind", "name", "words", "message"), LACKING)
def test_what_a_tokenizer_lacks_is_named_before_anything_is_read(train, kind, name, words, message):
    said, run = train(kind, name, *words)
    assert said.status == 2
    assert message in said.err
    assert not run.exists()


@pytest.mark.parametrize("token", ["end", "text"])
def test_generation_ends_at_the_end_mark(train, attnlab, monkeypatch, token):
    said, run = train("chat", "causal_lm")
    assert said.status == 0, said.err
    data, task = parts_of(run)
    tokenizer = data.tokenizer
    number = {"end": tokenizer.special_tokens.end, "text": int(tokenizer.encode(" fox")[-1])}[token]

    class Says(type(task.model)):
        """Says one token for ever."""

        def forward(self, *given, **named):
            logits_BTV = super().forward(*given, **named) * 0
            logits_BTV[..., number] = 9.0
            return logits_BTV

    task.model.__class__ = Says
    monkeypatch.setattr("attnlab.runs.trained.load_model", lambda *_: (task.model, tokenizer))
    words = ["generate", str(run), "--prompt", "the", "--temperature", "0", "--max-new-tokens", "3"]
    piece = tokenizer.decode([number])
    assert attnlab(*words).out == ("the" + piece * 3 if token == "text" else "the") + "\n"
    assert attnlab(*words, "--chat", "--system", "be brief").out == (piece * 3 if token == "text" else "") + "\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_keeps_the_blank_before_it(kind, folders):
    tokenizer = read_tokenizer(str(folders[kind]))
    prompt, whole = (
        [*tokenizer.special_tokens.text[0], *tokenizer.encode(text).tolist()] for text in ("the", "the fox")
    )
    assert continuation(tokenizer, prompt, whole[len(prompt) :]) == " fox"


def test_messages_are_asked_by_the_template(train, attnlab, monkeypatch):
    _, run = train("chat", "causal_lm")
    seen = []

    def remember(model, prompts, *given, **named):
        seen.append((prompts, named["ends"]))
        return [[] for _ in prompts]

    monkeypatch.setattr("attnlab.generation.generate", remember)
    attnlab("generate", str(run), "--prompt", "Who?", "--prompt", "The fox", "--chat")
    [(prompts, ends)] = seen
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(read_json(run / "run.json")["config"]["tokenizer"]["path"])
    for prompt, text in zip(prompts, ("Who?", "The fox"), strict=True):
        messages = [{"role": "user", "content": text}]
        assert prompt == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ends == (2,)


def test_without_a_template_messages_are_refused(train, attnlab):
    _, run = train("gpt2", "causal_lm")
    said = attnlab("generate", str(run), "--prompt", "Who?", "--chat")
    assert said.status == 2
    assert "--chat needs a tokenizer with a chat template, and this run's has none" in said.err
    said = attnlab("generate", str(run), "--prompt", "Who?", "--system", "x")
    assert said.status == 2
    assert "add --chat" in said.err


def test_a_run_gives_its_tokenizer_to_another_one(attnlab, here, library):
    small = ["model=gpt", "data=text", f"data.path={library}/text.txt", *WINDOWS, "task.evaluation_lengths=[1]", *SMALL]
    assert attnlab("train", *small, "tokenizer=bpe", "tokenizer.vocabulary_size=280", "run_dir=one").status == 0
    said = attnlab("train", *small, "tokenizer=pretrained", "tokenizer.path=one", "run_dir=other")
    assert said.status == 0, said.err
    assert (here / "one/tokenizer.json").read_bytes() == (here / "other/tokenizer.json").read_bytes()
    shutil.rmtree(here / "one")
    assert attnlab("evaluate", "other").status == 0


def test_what_is_no_tokenizer_is_one_message(attnlab, here, library):
    said = attnlab("train", "model=gpt", "data=text", f"data.path={library}/text.txt", "tokenizer=pretrained", *SMALL)
    assert said.err.startswith("attnlab: ")
    assert "tokenizer.path is required: add tokenizer.path=" in said.err
    words = ["data=text", f"data.path={library}/text.txt", "tokenizer=pretrained", "tokenizer.path=.", *SMALL]
    said = attnlab("train", "model=gpt", *words)
    assert said.status == 2
    assert "there is no tokenizer.json" in said.err
