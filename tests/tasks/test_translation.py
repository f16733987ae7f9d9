"""Translation: its loss against torch's, its scores against sacreBLEU's own, and that a tiny model learns to translate."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from tests.processes import program
from torch import nn

from attnlab.data import BPE, Byte, Character, ParallelText, TextTask, TextToTextData, TranslationData
from attnlab.data.special_tokens import PAD
from attnlab.generation import BeamSearch, Hypothesis
from attnlab.layers import Learned, PreNorm
from attnlab.models import T5, ConvolutionalSeq2Seq, EncoderDecoder
from attnlab.parts import build_part
from attnlab.tasks import TextToText, Translation
from attnlab.tasks.translation import scores_by_length
from attnlab.training.metrics import tokenizer_in

WORDS = ["ein", "kleiner", "Hund", "läuft", "über", "die", "Wiese", "und", "bellt", "laut", "heute"]
ENGLISH = dict(
    zip(WORDS, ["a", "small", "dog", "runs", "across", "the", "meadow", "and", "barks", "loudly", "today"], strict=True)
)


def sentence(length, first):
    return [WORDS[(first + 3 * place) % len(WORDS)] for place in range(length)]


def write_pairs(path, lengths):
    pairs = [sentence(length, number) for number, length in enumerate(lengths)]
    path.write_text("".join(f"{' '.join(words)}\t{' '.join(ENGLISH[w] for w in words)}\n" for words in pairs))
    return path


@pytest.fixture
def make(tmp_path):
    """Data out of three files: 12 pairs to train on, 5 to validate on, and 31 of 3 to 24 words to test on."""
    train = write_pairs(tmp_path / "train.tsv", [4 + i % 4 for i in range(12)])
    validation = write_pairs(tmp_path / "val.tsv", [5, 4, 7, 5, 6])
    test = write_pairs(tmp_path / "test.tsv", [3 + (5 * i) % 22 for i in range(31)])

    def build(**fields):
        source = partial(ParallelText, validation_path=str(validation), test_path=str(test))
        given = {"batch_tokens": 400, "max_length": 160, "path": str(train), "cache": str(tmp_path / "cache")}
        module = TranslationData(source, Character(), "de-en", **{**given, **fields})
        module.setup()
        return module

    return build


def task_of(module, **fields):
    torch.manual_seed(0)
    sizes = {"max_length": 200, "d_model": 48, "num_heads": 4, "num_layers": 1, "dropout": 0.0, "residual": PreNorm}
    model = build_part(partial(EncoderDecoder, **sizes), **module.dims())
    return Translation(model, module.vocabulary.special_tokens, **fields)


def logits_of(task, batch):
    return task.model(batch["source"], batch["target_in"], batch["is_source"]).flatten(0, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_the_loss_is_torchs_with_and_without_smoothing(make, smoothing):
    module = make()
    task = task_of(module, label_smoothing=smoothing)
    batch = next(iter(module.evaluation_loader("test")))
    nats, tokens, also = task.loss_sums(batch)
    cross_entropy = partial(nn.functional.cross_entropy, target=batch["target_out"].flatten(), ignore_index=PAD)
    expected = cross_entropy(logits_of(task, batch), reduction="sum", label_smoothing=smoothing)
    assert nats.item() == pytest.approx(expected.item(), rel=1e-6)
    assert tokens == int((batch["target_out"] != PAD).sum())
    found, wanted = (torch.autograd.grad(loss, task.model.parameters()) for loss in (nats, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    plain = cross_entropy(logits_of(task, batch), reduction="sum").item()
    assert {name: value.item() for name, value in also.items()} == (
        {"loss": pytest.approx(plain, rel=1e-6)} if smoothing else {}
    )
    assert task.loss_name == ("loss_smoothed" if smoothing else "loss")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_split_is_scored_by_its_token(make, smoothing):
    module = make()
    task = task_of(module, label_smoothing=smoothing).eval()
    found = task.score(module.evaluation_loader("test"))
    sums, tokens = {"loss_smoothed": 0.0, "loss": 0.0}, 0
    with torch.no_grad():
        for batch in module.evaluation_loader("test"):
            for name, share in {"loss_smoothed": smoothing, "loss": 0.0}.items():
                sums[name] += nn.functional.cross_entropy(
                    logits_of(task, batch), batch["target_out"].flatten(), ignore_index=PAD, reduction="sum",
                    label_smoothing=share,
                ).item()  # fmt: skip
            tokens += int(batch["is_target"].sum())
    expected = {name: pytest.approx(value / tokens, rel=1e-6) for name, value in sums.items()}
    assert found == (expected if smoothing else {"loss": expected["loss"]})


def damaged(text, number):
    """A translation that is right, reordered or short, by its number."""
    words = text.split()
    return " ".join([words, words[::-1], words[: 1 + len(words) // 2], [*words[1:], "today"]][number % 4])


@pytest.mark.parametrize("batch_tokens", [400, 900, 100_000])
def test_scores_are_sacrebleus_whatever_the_batches(make, monkeypatch, batch_tokens):
    module = make(batch_tokens=batch_tokens)
    task = task_of(module)
    sources, references = module.sources("test"), module.references("test")
    answers = [damaged(text, number) for number, text in enumerate(references)]

    def known(batch, search=None):
        return [[Hypothesis(module.vocabulary.encode(answers[i]).tolist(), 0.0, 0.0)] for i in batch["ids"].tolist()]

    monkeypatch.setattr(task, "translate_batch", known)
    figures = task.evaluate(module)
    assert figures["test/bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score)
    assert figures["test/chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score)
    assert 10 < figures["test/bleu"] < 90
    assert task.outputs["test.translations.txt"].split("\n") == [*answers, ""]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    bleu.corpus_score(answers, [references])
    chrf.corpus_score(answers, [references])
    assert task.notes == {"test/bleu": str(bleu.get_signature()), "test/chrf": str(chrf.get_signature())}
    assert "version:" in task.notes["test/bleu"]
    for name, lengths in {"1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21+": (21, 10**9)}.items():
        # A token a character, and a blank before them all.
        rows = [i for i, source in enumerate(sources) if lengths[0] <= len(source) + 1 <= lengths[1]]
        if rows:
            expected = sacrebleu.corpus_bleu([answers[i] for i in rows], [[references[i] for i in rows]]).score
            assert figures[f"test/bleu@{name}"] == pytest.approx(expected)
        else:
            assert task.unavailable[f"test/bleu@{name}"] == "no source has this many tokens"


def test_lengths_fall_into_buckets_at_their_borders():
    lengths = {"1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21+": (21, 40)}
    for name, both in lengths.items():
        for length in both:
            scores, empty = scores_by_length(["a b c d e"], ["a b c d e"], [length], "13a")
            assert scores == {f"bleu@{name}": pytest.approx(100)}
            assert empty == [other for other in lengths if other != name]


def test_lengths_that_no_sentence_has_are_named(make):
    module = make()
    task = task_of(module, num_beams=1, max_extra_length=0)
    figures = task.validate(module)
    assert set(figures) == {f"val/{name}" for name in ("loss", "loss_smoothed", "bleu", "chrf", "bleu@21+")}
    assert task.unavailable == {
        f"val/bleu@{name}": "no source has this many tokens" for name in ("1-5", "6-10", "11-20")
    }
    assert set(task.notes) == {"val/bleu", "val/chrf"}
    assert set(task.outputs) == {"validation.translations.txt", "validation.references.txt"}
    assert task.outputs["validation.references.txt"].split("\n") == [*module.references("validation"), ""]


CHINESE = ["一只小狗在草地上跑", "这本书很有意思我喜欢它", "昨天晚上下了一场大雨", "请把门关上再走开"]


def chinese(tmp_path, pair="en-zh"):
    lines = [f"{'word ' * (1 + i)}\t{text}" for i, text in enumerate(CHINESE)]
    path = tmp_path / "zh.tsv"
    path.write_text("\n".join(lines * 4), encoding="utf-8")
    source = partial(ParallelText, validation_path=str(path), test_path=str(path))
    return TranslationData(source, Byte(), pair, batch_tokens=900, path=str(path), cache=str(tmp_path / "cache"))


def perfect(task, module, monkeypatch, answers=None):
    """The task translates everything as its reference, or as these answers."""

    def known(batch, search=None):
        wanted = [(answers or module.references("test"))[i] for i in batch["ids"].tolist()]
        return [[Hypothesis(module.vocabulary.encode(text).tolist(), 0.0, 0.0)] for text in wanted]

    monkeypatch.setattr(task, "translate_batch", known)
    return task.evaluate(module)


@pytest.mark.parametrize("pair", ["en-zh", "en-zh_TW", "en-zho"])
def test_bleu_knows_the_language(tmp_path, monkeypatch, pair):
    module = chinese(tmp_path, pair)
    task = task_of(module)
    task.check_split(module, "test")
    assert perfect(task, module, monkeypatch)["test/bleu"] == pytest.approx(100)
    assert "|tok:zh|" in task.notes["test/bleu"]
    answers = [text[:-1] + "吗" for text in module.references("test")]
    figures = perfect(task, module, monkeypatch, answers)
    assert figures["test/bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(answers, [module.references("test")], tokenize="zh").score
    )
    assert 50 < figures["test/bleu"] < 99
    assert (
        50 < figures["test/bleu@11-20"] < 99
    )  # of bytes in English, of which there are 5 a word and a blank before them
    own = task_of(module, bleu_tokenize="char")
    perfect(own, module, monkeypatch)
    assert "|tok:char|" in own.notes["test/bleu"]


def test_a_tokenizer_that_is_not_there_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    module = chinese(tmp_path, "en-ja")
    monkeypatch.setitem(sys.modules, "MeCab", None)
    message = r'tokenizer ja-mecab needs what cannot be loaded here: pip install "sacrebleu\[ja\]", or set task.bleu_tokenize=char'
    with pytest.raises(ValueError, match=message):
        task_of(module).check_split(module, "validation")
    task_of(module, bleu_tokenize="char").check_split(module, "validation")
    with pytest.raises(ValueError, match=r"task.bleu_tokenize=mecab: accepted are none, .*zh, .*, or null"):
        task_of(module, bleu_tokenize="mecab")


def test_lines_keep_their_places_and_empty_ones_stay(make):
    module = make()
    task = task_of(module)
    lines = ["", "ein Hund", "  ", "die Wiese und ein kleiner Hund", "Hund", ""]
    search = BeamSearch(num_beams=3, max_extra_length=2, num_best=3)
    found = task.translate(module, lines, search)
    assert [len(best) for best in found] == [1, 3, 1, 3, 3, 1]
    for line, best in zip(lines, found, strict=True):
        if not line.strip():
            assert [(text, h.tokens) for text, h in best] == [("", [])]
            continue
        (alone,) = task.translate(module, [line], search)
        assert [text for text, _ in alone] == [text for text, _ in best]
        assert [h.score for _, h in alone] == pytest.approx([h.score for _, h in best], abs=1e-5)
        assert [text for text, _ in best] == [module.decode_target(h.tokens) for _, h in best]
        assert [h.score for _, h in best] == sorted((h.score for _, h in best), reverse=True)
    for nothing in ([], [""], [" ", ""]):
        assert [[text for text, _ in best] for best in task.translate(module, nothing)] == [[""]] * len(nothing)


@pytest.mark.slow
def test_a_tiny_model_learns_its_pairs_by_heart(make):
    module = make(batch_tokens=2000)
    task = task_of(module, label_smoothing=0.1, num_beams=2)
    before = task.evaluate(module, "train")
    optimizer = torch.optim.Adam(task.model.parameters(), 4e-3)
    for _, batch in zip(range(160), module.train_dataloader(), strict=False):
        nats, tokens, _ = task.loss_sums(batch)
        optimizer.zero_grad()
        (nats / tokens).backward()
        optimizer.step()
    after = task.evaluate(module, "train")
    assert after["train/bleu"] == pytest.approx(100)
    assert after["train/chrf"] == pytest.approx(100)
    assert after["train/loss"] < 0.15 < before["train/loss"]
    assert before["train/bleu"] < 5
    translated = [best[0][0] for best in task.translate(module, module.sources("train"))]
    assert translated == module.references("train")
    assert translated == task.outputs["train.translations.txt"].splitlines()


@pytest.mark.parametrize("model", [partial(EncoderDecoder, position=Learned), ConvolutionalSeq2Seq])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_what_is_longer_than_the_models_table_is_found_before_the_training(tmp_path, model, side, split):
    usual, long = ("kurz", "short"), {"source": ("lang " * 5, "long"), "target": ("lang", "long " * 5)}[side]
    for name in ("train", "validation", "test"):
        pairs = [usual, long if name == split else usual, usual]
        (tmp_path / name).write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    source = partial(ParallelText, validation_path=str(tmp_path / "validation"), test_path=str(tmp_path / "test"))
    module = TranslationData(source, Character(), "de-en", path=str(tmp_path / "train"), cache=str(tmp_path / "cache"))

    def check(limit):
        small = build_part(partial(model, max_length=limit, d_model=8, num_layers=1), **module.dims())
        for name in ("train", "validation", "test"):
            Translation(small, module.vocabulary.special_tokens).check_split(module, name)

    check(26)  # a space, 24 letters and spaces, and a mark
    found = f"the {side} of pair 2 of the {split} part takes 26 positions, a special token included, and the model's table has 25; "
    with pytest.raises(ValueError, match=f"^{found}set model.max_length=26 or more, or leave .*: (lang|long)( \\1)+$"):
        check(25)


def test_a_model_without_a_table_takes_every_length(make):
    module = make()
    for split in ("train", "validation", "test"):
        task_of(module).check_split(module, split)


RANKS = """
import json, sys
from functools import partial
from pathlib import Path
import torch; torch.set_num_threads(1)
import lightning.pytorch as pl
from attnlab.data import Character, ParallelText, TranslationData
from attnlab.layers import PreNorm
from attnlab.parts import build_part
from attnlab.models import EncoderDecoder
from attnlab.tasks import Translation
from attnlab.training import Optimization, TrainerSettings, adamw, resolve
from attnlab.training.trainer import build_trainer

folder, devices = Path(sys.argv[1]), int(sys.argv[2])
source = partial(ParallelText, validation_path=folder / "val.tsv", test_path=folder / "test.tsv")
data = TranslationData(source, Character(), "de-en", batch_tokens=400, max_length=160, path=folder / "train.tsv", cache=folder / "cache")
data.setup()
torch.manual_seed(0)
sizes = {"max_length": 200, "d_model": 16, "num_heads": 2, "num_layers": 1, "dropout": 0.0, "residual": PreNorm}
model = build_part(partial(EncoderDecoder, **sizes), **data.dims())
task = Translation(model, data.vocabulary.special_tokens, num_beams=2, max_extra_length=2)
task.optimization = Optimization(partial(adamw, lr=0.0))

class Evaluate(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        figures = pl_module.evaluate(data, "test")
        own = [i for batch in data.evaluation_loader("test") for i in batch["ids"].tolist()]
        said = {"figures": figures, "own": own, "outputs": pl_module.outputs, "unavailable": pl_module.unavailable, "latest": pl_module.latest}
        (folder / f"{devices}-{trainer.global_rank}.json").write_text(json.dumps(said))

settings = TrainerSettings(max_steps=2, val_check_interval=2, device="cpu", precision="32", devices=devices, strategy="ddp_fork" if devices > 1 else "auto")
trainer = build_trainer(settings, resolve("32", "cpu"), callbacks=[Evaluate()], directory=folder)
trainer.fit(task, datamodule=data)
"""


@pytest.mark.slow
def test_two_ranks_count_each_example_once(make, tmp_path):
    module = make()
    for devices in (1, 2):
        done = program(RANKS, str(tmp_path), str(devices))
        assert done.wait(120) == 0, done.said
    alone, *both = (json.loads(Path(tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert sorted(alone["own"]) == sorted(both[0]["own"] + both[1]["own"]) == list(range(len(module.sources("test"))))
    for rank in both:
        assert rank["figures"] == pytest.approx(alone["figures"], abs=1e-5)
        assert rank["outputs"] == alone["outputs"]
        assert rank["unavailable"] == alone["unavailable"]
        for name in ("val/loss", "val/loss_smoothed"):
            assert rank["latest"][name] == pytest.approx(alone["latest"][name], abs=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_that_leaves_no_target_is_refused(make, smoothing):
    with pytest.raises(ValueError, match=f"label_smoothing must be at least 0 and below 1, got {smoothing}"):
        task_of(make(), label_smoothing=smoothing)


@pytest.fixture
def data(tmp_path):
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in ("o", "ee") for c in ("t", "nd", "rst")]
    (tmp_path / "same.tsv").write_text("\n".join(f"{w} {w}\t{w} is {w} is {w}" for w in words))
    (tmp_path / "size.tsv").write_text("\n".join(f"{w}\t{'short' if len(w) < 4 else 'long'}" for w in words))
    (tmp_path / "few.tsv").write_text("one\teins")
    split = (0.5, 0.25, 0.25)
    tasks = {
        "same": TextTask("same", ParallelText("text-text", tmp_path / "same.tsv", split=split)),
        "size": TextTask("size", ParallelText("text-class", tmp_path / "size.tsv", split=split)),
        "few": TextTask("few", ParallelText("en-de", tmp_path / "few.tsv", split=(1.0, 0.0, 0.0))),
    }
    return TextToTextData(tasks, BPE(vocabulary_size=280), cache=str(tmp_path / "cache"))


def test_each_task_has_its_own_figures(data, monkeypatch):
    model = build_part(partial(T5, d_model=8, num_heads=2, num_layers=1), **data.dims())
    task = TextToText(model, data.vocabulary.special_tokens, label_smoothing=0.0)
    references, tasks = data.references("test"), data.tasks_of("test")
    first = tasks.index("size")
    # All of `same` is right, and of `size` all but its first.
    answers = {i: "wrong" if i == first else text for i, text in enumerate(references)}
    found = {i: [SimpleNamespace(tokens=data.vocabulary.encode(text))] for i, text in answers.items()}
    monkeypatch.setattr(task, "translations", lambda loader: found)
    figures = task.evaluate(data)
    size = tasks.count("size")
    assert figures["test/exact@same"] == 1.0
    assert figures["test/exact@size"] == pytest.approx((size - 1) / size)
    assert figures["test/exact"] == pytest.approx((1 + (size - 1) / size) / 2)
    assert figures["test/bleu@same"] == pytest.approx(100)
    assert figures["test/chrf@same"] == pytest.approx(100)
    assert figures["test/loss"] > 0
    assert task.unavailable == {"test/exact@few": "the task has no example in the test part"}
    assert task.outputs["test.outputs.txt"].splitlines() == [f"{name}\t{answers[i]}" for i, name in enumerate(tasks)]
    assert {name.split("@")[0] for name in task.notes} == {"test/bleu", "test/chrf"}
    assert all("nrefs:1" in signature for signature in task.notes.values())


def test_each_task_is_scored_in_its_language(tmp_path, monkeypatch):
    (tmp_path / "a.tsv").write_text("\n".join(f"w{i}\t我喜欢这本书吗{i}" for i in range(20)), encoding="utf-8")
    tasks = {
        pair: TextTask(pair, ParallelText(pair, tmp_path / "a.tsv", split=(0.4, 0.3, 0.3)))
        for pair in ("en-zh", "en-th", "en-de")
    }
    module = TextToTextData(tasks, BPE(vocabulary_size=280), cache=str(tmp_path / "cache"))
    model = build_part(partial(T5, d_model=8, num_heads=2, num_layers=1), **module.dims())
    task = TextToText(model, module.vocabulary.special_tokens)
    task.check_split(module, "test")
    references = module.references("test")
    found = {i: [SimpleNamespace(tokens=module.vocabulary.encode(text))] for i, text in enumerate(references)}
    monkeypatch.setattr(task, "translations", lambda loader: found)
    assert task.evaluate(module)["test/bleu@en-zh"] == pytest.approx(100)
    used = {name: tokenizer_in(task.notes[f"test/bleu@{name}"]) for name in tasks}
    assert used == {"en-zh": "zh", "en-th": "char", "en-de": "13a"}


def test_a_model_searches_for_outputs(data):
    model = build_part(partial(T5, d_model=8, num_heads=2, num_layers=1), **data.dims())
    task = TextToText(model, data.vocabulary.special_tokens, num_beams=2, max_extra_length=1)
    figures = task.evaluate(data, "validation")
    assert {"val/loss", "val/exact", "val/exact@same", "val/bleu@size"} <= set(figures)
    outputs = task.translations(data.evaluation_loader("validation"))
    assert sorted(outputs) == list(range(len(data.references("validation"))))
    assert all(isinstance(best[0], Hypothesis) for best in outputs.values())


@pytest.mark.parametrize("kind", [Translation, TextToText])
def test_without_decoding_the_loss_alone_is_reported(make, data, monkeypatch, kind):
    module = make() if kind is Translation else data
    model = build_part(partial(T5, d_model=8, num_heads=2, num_layers=1), **module.dims())
    task = kind(model, module.vocabulary.special_tokens, decode=False)

    def refuse(*_):
        raise AssertionError("it decodes")

    monkeypatch.setattr(task, "translations", refuse)
    monkeypatch.setattr(task, "tokenizer_of", refuse)  # so BLEU of its language needs nothing
    task.check_split(module, "test")
    config = {"task": {"label_smoothing": 0.1, "decode": False}, "data": {"tasks": ["same"]}}
    promised = {name for metric in kind.metrics(config) for name in metric.names()}
    reported = task.evaluate(module) | task.evaluate(module, "validation")
    assert (
        reported.keys() == promised == {f"{split}/{n}" for split in ("val", "test") for n in ("loss", "loss_smoothed")}
    )
    whole = kind(model, module.vocabulary.special_tokens)
    assert task.evaluate(module)["test/loss"] == whole.evaluate(module)["test/loss"]
    assert (task.samples(module), task.outputs, task.notes) == (None, {}, {})
    assert not kind.reports("test/bleu", config)
    assert kind.reports("test/exact" if kind is TextToText else "test/bleu", {**config, "task": {}})
