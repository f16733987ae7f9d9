"""The figures of each of several tasks, against outputs that are known."""

from functools import partial
from types import SimpleNamespace

import pytest

from attnlab.data import BPE, ParallelText, TextTask, TextToTextData
from attnlab.generation import Hypothesis
from attnlab.layers.parts import complete
from attnlab.models import T5
from attnlab.tasks import TextToText
from attnlab.training import Constant, adamw
from attnlab.training.bleu import tokenizer_in


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
    model = complete(partial(T5, d_model=8, num_heads=2, num_layers=1), **data.widths())
    task = TextToText(model, partial(adamw, lr=1e-3), Constant, data.vocabulary.marks, label_smoothing=0.0)
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
    assert figures["test/nats"] > 0
    assert task.cannot == {"test/exact@few": "the task has no example in the test part"}
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
    model = complete(partial(T5, d_model=8, num_heads=2, num_layers=1), **module.widths())
    task = TextToText(model, partial(adamw, lr=1e-3), Constant, module.vocabulary.marks)
    task.check_split(module, "test")
    references = module.references("test")
    found = {i: [SimpleNamespace(tokens=module.vocabulary.encode(text))] for i, text in enumerate(references)}
    monkeypatch.setattr(task, "translations", lambda loader: found)
    assert task.evaluate(module)["test/bleu@en-zh"] == pytest.approx(100)
    used = {name: tokenizer_in(task.notes[f"test/bleu@{name}"]) for name in tasks}
    assert used == {"en-zh": "zh", "en-th": "char", "en-de": "13a"}


def test_a_model_searches_for_outputs(data):
    model = complete(partial(T5, d_model=8, num_heads=2, num_layers=1), **data.widths())
    task = TextToText(model, partial(adamw, lr=1e-3), Constant, data.vocabulary.marks, beams=2, max_extra=1)
    figures = task.evaluate(data, "validation")
    assert {"val/nats", "val/exact", "val/exact@same", "val/bleu@size"} <= set(figures)
    outputs = task.translations(data.evaluation_loader("validation"))
    assert sorted(outputs) == list(range(len(data.references("validation"))))
    assert all(isinstance(best[0], Hypothesis) for best in outputs.values())
