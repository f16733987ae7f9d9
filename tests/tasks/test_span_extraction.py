"""Span extraction: the best span equal to a search by hand, windows that compare, token-exact losses, answers, and that a tiny model learns."""

import json
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import Character, SpanExtractionData, SQuAD
from attnlab.data.vocabulary import marks_in_front
from attnlab.layers.parts import complete
from attnlab.models import Bert
from attnlab.tasks import SpanExtraction
from attnlab.tasks.span_extraction import Found, answers_of, best_spans
from attnlab.training import write_checkpoint


@settings(max_examples=100, deadline=None)
@given(length=st.integers(2, 9), longest=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_the_best_span_is_that_of_a_search_by_hand(length, longest, seed):
    torch.manual_seed(seed)
    start, end = torch.randn(2, 3, length).log_softmax(dim=2)
    is_text = torch.rand(3, length) < 0.6
    is_text[:, 0], is_text[:, -1] = False, True
    for row, found in enumerate(best_spans(start, end, is_text, longest)):
        spans = {
            (i, j): (start[row, i] + end[row, j]).item()
            for i in range(length)
            for j in range(i, min(length, i + longest))
            if is_text[row, i] and is_text[row, j]
        }
        best = max(spans, key=lambda span: spans[span])
        assert ((found.begin, found.end), found.score) == (best, pytest.approx(spans[best]))
        assert found.nothing == pytest.approx((start[row, 0] + end[row, 0]).item())


@pytest.fixture
def data(tmp_path):
    """The answer is the capital word after the letter that is asked for; texts of one to four windows."""
    paragraphs = []
    for i in range(60):
        pairs = [
            (letter, "ABCDEFGH"[(i + 3 * place) % 8] * (1 + (i + place) % 2)) for place, letter in enumerate("xyz")
        ]
        context = " ".join(f"{letter} {word}" for letter, word in pairs) + f" {i}" + " -" * (12 * (i % 4))
        asked = [
            {"id": f"{i}{letter}", "question": letter, "answers": [{"text": word, "answer_start": context.index(word)}]}
            for letter, word in pairs
        ]
        paragraphs.append({"context": context, "qas": asked})
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    module = SpanExtractionData(
        SQuAD, Character(), path=str(tmp_path / "a.json"), max_length=32, stride=10, max_question=4, batch_tokens=600,
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    module.setup()
    return module


def task_of(module, **fields):
    torch.manual_seed(0)
    sizes = {
        "max_length": 32,
        "d_model": 32,
        "num_heads": 4,
        "num_layers": 2,
        "dropout": 0.0,
        **fields.pop("model", {}),
    }
    encoder = complete(partial(Bert, **sizes), **module.widths())
    return SpanExtraction(encoder, None, None, module.vocabulary.marks, **{"dropout": 0.0, "max_answer": 4, **fields})


def train(task, module, steps):
    optimizer = torch.optim.AdamW(task.parameters(), lr=4e-3)
    for batch, _ in zip(module.train_dataloader(), range(steps), strict=False):
        loss, count = task.loss_sums(batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_the_loss_is_that_of_each_window_alone(data):
    task, part = task_of(data).eval(), data.split("test")
    sums, windows = task.score_sums(data.evaluation_loader("test"))
    assert windows == len(part.rows) > len(part.texts)
    expected = right = 0
    for row, (begin, end) in enumerate(part.answers):
        first, length = part.first[row], len(part.rows[row])
        segments = torch.tensor([[0] * first + [1] * (length - first)])
        choices = [0, *range(first, length - 1)]
        with torch.no_grad():
            states = task.model.encoder.encode(torch.tensor(part.rows[row])[None], None, segments)
            logits = task.model.output(states[0])[choices]
        wanted = torch.tensor([choices.index(begin), choices.index(end)])
        expected += torch.nn.functional.cross_entropy(logits.T, wanted, reduction="sum").item()
        right += bool((logits.argmax(dim=0) == wanted).all())
    assert sums["nats"] == pytest.approx(expected, rel=1e-5)
    assert sums["accuracy"] == right


def test_what_is_neither_text_nor_the_first_token_has_no_share_and_no_gradient(data):
    task = task_of(data)
    batch = next(iter(data.train_dataloader()))
    start, _ = task.logits(batch)
    choices = batch["is_text"].clone()
    choices[:, 0] = True
    assert torch.equal(start == -math.inf, ~choices)
    loss, _ = task.loss_sums(batch)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    assert task.model.encoder.segments.weight.grad.abs().min() > 0


def test_scores_of_windows_compare_whatever_the_level_of_their_logits(data):
    task, part = task_of(data).eval(), data.split("test")
    train(task, data, 20)

    class Lifted(torch.nn.Module):
        """Logits of every window at a level of its own, which a softmax does not see."""

        def forward(self, tokens, is_token, segments):
            levels = tokens.sum(dim=1, keepdim=True) % 7 * 3.0
            start, end = task.model(tokens, is_token, segments)
            return start + levels, end - levels

    found = task.predictions(data.evaluation_loader("test"), task.predict)
    lifted = SpanExtraction(task.model.encoder, None, None, marks_in_front(), max_answer=4)
    lifted.model = Lifted()
    again = lifted.predictions(data.evaluation_loader("test"), lifted.predict)
    assert answers_of(part, found, False) == answers_of(part, again, False)


def test_the_best_window_answers_and_nothing_only_where_all_windows_say_so(data):
    part = data.split("test")
    several = next(q for q in range(len(part.texts)) if part.question_of.count(q) > 2)
    rows = [row for row, q in enumerate(part.question_of) if q == several]
    found = {row: Found(-9.0, part.first[row], part.first[row], -1.0) for row in range(len(part.rows))}
    best = rows[1]
    found[best] = Found(-2.0, part.first[best] + 1, part.first[best] + 2, -1.0)
    name = part.texts[several].id
    assert answers_of(part, found, False)[name] == part.words(best, part.first[best] + 1, part.first[best] + 2)
    assert answers_of(part, found, True)[name] == ""
    found[best] = found[best]._replace(nothing=-3.0)
    assert answers_of(part, found, True)[name] == part.words(best, part.first[best] + 1, part.first[best] + 2)


def test_a_tiny_model_learns_and_its_answers_are_kept(data):
    task = task_of(data)
    train(task, data, 150)
    found = task.evaluate(data)
    answers = json.loads(task.outputs["test.answers.json"])
    assert sorted(answers) == sorted(q.id for q in data.split("test").texts)
    assert set(found) == {f"test/{name}" for name in ("nats", "accuracy", "exact_match", "f1")}
    exact = sum(answers[q.id] == q.answers[0][0] for q in data.split("test").texts)
    assert found["test/exact_match"] == pytest.approx(100 * exact / len(answers))
    assert found["test/f1"] > 80
    shown = task.samples(data)
    wrong = [q for q in data.split("test").texts if answers[q.id] != q.answers[0][0]] or data.split("test").texts
    assert shown.rows == [(q.text, q.answers[0][0], answers[q.id]) for q in wrong[:32]]


def test_an_encoder_is_taken_from_another_run_that_had_no_segments(data, tmp_path):
    torch.manual_seed(1)
    source = Bert(data.widths()["vocabulary_size"], 32, d_model=32, num_heads=4, num_layers=2)
    (tmp_path / "checkpoints").mkdir()
    state = {f"model.{name}": tensor for name, tensor in source.state_dict().items()}
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    task = task_of(data, pretrained=str(tmp_path))
    assert "fresh: segments.weight" in task.initialise()[0]
    assert torch.equal(task.model.encoder.embedding.weight, source.embedding.weight)


def test_what_cannot_be_used(data):
    with pytest.raises(ValueError, match=r"max_answer must be at least 1, got 0"):
        task_of(data, max_answer=0)
    encoder = Bert(30, 32, d_model=8, num_heads=2, num_layers=1, num_segments=1)
    with pytest.raises(ValueError, match=r"model\.num_segments=1: question and text are two"):
        SpanExtraction(encoder, None, None, marks_in_front())
