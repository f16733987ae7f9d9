"""Span extraction: the best span equal to a search by hand, windows that compare, token-exact losses, answers, and that a tiny model learns."""

import json
import math
from functools import partial

import pytest
import torch
import torchmetrics.functional.text as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import Character, SpanExtractionData, SQuAD
from attnlab.data.questions import Question
from attnlab.data.special_tokens import leading_special_tokens
from attnlab.models import Bert
from attnlab.parts import build_part
from attnlab.tasks import SpanExtraction
from attnlab.tasks.span_extraction import Found, answer_scores, answers_of, best_spans, exact_match, normalised, word_f1
from attnlab.training import write_checkpoint


@settings(max_examples=40, deadline=None)
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
    encoder = build_part(partial(Bert, **sizes), **module.dims())
    return SpanExtraction(encoder, module.vocabulary.special_tokens, **{"dropout": 0.0, "max_answer": 4, **fields})


def train(task, module, steps):
    optimizer = torch.optim.AdamW(task.parameters(), lr=4e-3)
    for batch, _ in zip(module.train_dataloader(), range(steps), strict=False):
        loss, count, _ = task.loss_sums(batch)
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
    assert sums["loss"] == pytest.approx(expected, rel=1e-5)
    assert sums["accuracy"] == right


def test_what_is_neither_text_nor_the_first_token_has_no_share_and_no_gradient(data):
    task = task_of(data)
    batch = next(iter(data.train_dataloader()))
    start, _ = task.logits(batch)
    choices = batch["is_text"].clone()
    choices[:, 0] = True
    assert torch.equal(start == -math.inf, ~choices)
    loss, *_ = task.loss_sums(batch)
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
    lifted = SpanExtraction(task.model.encoder, leading_special_tokens(), max_answer=4)
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
    assert set(found) == {f"test/{name}" for name in ("loss", "accuracy", "exact_match", "f1")}
    exact = sum(answers[q.id] == q.answers[0][0] for q in data.split("test").texts)
    assert found["test/exact_match"] == pytest.approx(100 * exact / len(answers))
    assert found["test/f1"] > 80
    shown = task.samples(data)
    wrong = [q for q in data.split("test").texts if answers[q.id] != q.answers[0][0]] or data.split("test").texts
    assert shown.rows == [(q.text, q.answers[0][0], answers[q.id]) for q in wrong[:32]]


def test_an_encoder_is_taken_from_another_run_that_had_no_segments(data, tmp_path):
    torch.manual_seed(1)
    source = Bert(data.dims()["vocabulary_size"], 32, d_model=32, num_heads=4, num_layers=2)
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
        SpanExtraction(encoder, leading_special_tokens())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the Eiffel Tower!", "eiffel tower"),
        ("An  apple, a\tday", "apple day"),
        ("U.S.", "us"),
        ("theory of A", "theory of"),
        ("the-end", "theend"),
        ("“The” café", "“ ” café"),
        ("The", ""),
    ],
)
def test_normalised_as_the_official_script_does(answer, expected):
    assert normalised(answer) == expected


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("the Eiffel Tower!", "Eiffel tower", 1, 1),
        ("Eiffel Tower in Paris", "the Eiffel tower", 0, 2 / 3),  # 2 words in common of 4 and 2
        ("Paris", "London", 0, 0),
        ("to be or not to be", "to be", 0, 1 / 2),  # 2 in common of 6 and 2
        ("be be", "to be", 0, 1 / 2),  # a word counts as often as both have it
        ("", "", 1, 1),
        ("", "Paris", 0, 0),
        ("the", "Paris", 0, 0),
    ],
)
def test_by_hand(answer, wanted, exact, f1):
    assert exact_match(answer, wanted) == exact
    assert word_f1(answer, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("北京市", "北京市。", 1, 1),
        ("北京", "北京市", 0, 4 / 5),  # 2 characters in common of 2 and 3
        ("在 北京", "「在北京」", 1, 1),
        ("2008年北京", "2008年", 0, 2 * 2 / 6),  # 2008, 年, 北, 京
        ("Beijing", "北京", 0, 0),
        ("とうきょう", "とうきょうと", 0, 10 / 11),
    ],
)
def test_where_no_blanks_part_words_each_character_is_one(answer, wanted, exact, f1):
    assert exact_match(answer, wanted) == exact
    assert word_f1(answer, wanted) == pytest.approx(f1)


def question(number, *references):
    return Question(str(number), "q", "c", tuple((text, 0) for text in references))


def test_the_best_reference_counts_and_questions_are_averaged():
    questions = [question(1, "Paris", "the city of Paris"), question(2, "1990"), question(3), question(4)]
    answers = {"1": "city of Paris", "2": "in 1990", "3": "", "4": "something"}
    found = answer_scores(answers, questions)
    assert found["exact_match"] == pytest.approx(100 * (1 + 0 + 1 + 0) / 4)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)


WORDS = st.lists(st.sampled_from(["the", "A", "Tower", "tower.", "of", "Paris,", "1990", "—"]), max_size=5).map(
    " ".join
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(WORDS, st.lists(WORDS.filter(normalised), min_size=1, max_size=3)), min_size=1, max_size=4)
)
def test_equal_to_torchmetrics(rows):
    questions = [question(i, *references) for i, (_, references) in enumerate(rows)]
    answers = {str(i): answer for i, (answer, _) in enumerate(rows)}
    expected = reference.squad(
        [{"prediction_text": text, "id": i} for i, text in answers.items()],
        [{"answers": {"answer_start": [0] * len(r), "text": r}, "id": str(i)} for i, (_, r) in enumerate(rows)],
    )
    found = answer_scores(answers, questions)
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-3)
