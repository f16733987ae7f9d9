"""Named entities: figures equal to seqeval's, the best allowed tags equal to an exhaustive search, padding, and that a tiny model learns."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from attnlab.data import BPE, CoNLL, TokenClassificationData
from attnlab.data.entities import Tagged, iob2, may_follow
from attnlab.data.module import IGNORED
from attnlab.models import Bert
from attnlab.tasks import TokenClassification
from attnlab.tasks.token_classification import as_conll, best_allowed, count_entities, entity_scores
from attnlab.training import write_checkpoint

NAMES = ["O", "B-x", "I-x", "B-y", "I-y"]


@st.composite
def corpora(draw):
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    return [[draw(st.lists(st.sampled_from(NAMES), min_size=n, max_size=n)) for n in lengths] for _ in range(2)]


@settings(max_examples=80, deadline=None)
@given(both=corpora())
def test_figures_are_those_of_seqeval(both):
    tags, predicted = both
    counts = count_entities(tags, predicted)
    found = entity_scores([(0, 0, 0), *counts.values()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["precision"] == pytest.approx(precision_score(tags, predicted))
        assert found["recall"] == pytest.approx(recall_score(tags, predicted))
        assert found["f1"] == pytest.approx(f1_score(tags, predicted))
        if counts:
            report = classification_report(tags, predicted, output_dict=True)
            assert {kind: entity_scores([c])["f1"] for kind, c in counts.items()} == pytest.approx(
                {kind: report[kind]["f1-score"] for kind in counts}
            )


def conlleval(tags, predicted):
    """
    Phrases right, found and there by the rules that conlleval states (version of 2004-01-26), for tags B, I and O.

    It goes through the words once, an O between sentences, and knows of a phrase only whether it has been right so far.
    """

    def ends(last, now):
        return last != "O" and (now[0] in "BO" or last[2:] != now[2:])

    def starts(last, now):
        return now != "O" and (now[0] == "B" or last == "O" or last[2:] != now[2:])

    right_so_far, counts, last = False, [0, 0, 0], ("O", "O")
    for both in zip(tags, predicted, strict=True):
        for now in [*zip(*both, strict=True), ("O", "O")]:
            ended, started = (list(map(rule, last, now)) for rule in (ends, starts))
            same_last, same = (one[2:] == other[2:] for one, other in (last, now))
            counts[0] += right_so_far and all(ended) and same_last
            right_so_far = right_so_far and not any(ended) and same
            right_so_far = right_so_far or (all(started) and same)
            counts[1], counts[2], last = counts[1] + started[1], counts[2] + started[0], now
    return tuple(counts)


@settings(max_examples=100, deadline=None)
@given(both=corpora())
def test_figures_are_those_of_conlleval(both):
    tags, predicted = both
    counts = count_entities(tags, predicted)
    expected = conlleval(tags, predicted)
    assert tuple(map(sum, zip((0, 0, 0), *counts.values(), strict=True))) == expected
    for place, name in ((1, "precision"), (2, "recall")):
        assert entity_scores([expected])[name] == (expected[0] / expected[place] if expected[place] else 0.0)
    # Data come as IOB2, and whatever they were before, conlleval reads both alike.
    assert conlleval([iob2(each) for each in tags], predicted) == expected


def test_conlleval_by_hand():
    # Begun within another type, cut short, two in one, right at a sentence's end, right though begun with I.
    tags = [["B-x", "I-y", "O", "B-x", "I-x", "O"], ["B-x", "B-x", "I-x"], ["O", "I-y"]]
    predicted = [["I-x", "B-y", "O", "B-x", "O", "O"], ["B-x", "I-x", "I-x"], ["O", "B-y"]]
    assert conlleval(tags, predicted) == (3, 5, 6)


def test_figures_by_hand():
    # Of three entities one is found rightly, one with a word too many, one as another type; a fourth is invented.
    tags = [["B-x", "I-x", "O", "B-y", "O", "O", "B-x", "O"]]
    predicted = [["B-x", "I-x", "O", "B-y", "I-y", "O", "B-y", "B-x"]]
    assert count_entities(tags, predicted) == {"x": (1, 2, 2), "y": (0, 2, 1)}
    assert entity_scores([(1, 2, 2), (0, 2, 1)]) == {"precision": 1 / 4, "recall": 1 / 3, "f1": 2 / 7}
    assert entity_scores([(0, 0, 0)]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_the_best_allowed_tags_are_those_of_an_exhaustive_search(length, seed):
    scores = np.random.default_rng(seed).normal(size=(length, len(NAMES)))
    best, expected = -math.inf, None
    for path in itertools.product(range(len(NAMES)), repeat=length):
        steps = zip([None, *(NAMES[i] for i in path)], (NAMES[i] for i in path), strict=False)
        total = sum(scores[place, i] for place, i in enumerate(path))
        if all(may_follow(*step) for step in steps) and total > best:
            best, expected = total, path
    assert tuple(best_allowed(scores, NAMES)) == expected


def test_the_file_for_the_official_scorer():
    texts = Tagged([["New York", "!"], ["ok"]], [["B-x", "O"], ["O"]])
    assert as_conll(texts, [["B-x", "I-x"], ["O"]]) == "NewYork B-x B-x\n! O I-x\n\nok O O\n\n"
    odd = Tagged([["10\xa0000", "\u3000", "a\u2028b"]], [["O", "B-x", "O"]])
    assert as_conll(odd, [["O", "O", "O"]]) == "10\xa0000 O O\n\u3000 B-x O\na\u2028b O O\n\n"


@pytest.fixture
def data(tmp_path):
    """The word after "the" is a place, capital words are persons; some sentences are longer than a row."""
    people, places = ["Ann", "Bob", "Cy"], ["bay", "sea", "hill"]
    for name, count in {"train": 120, "dev": 12, "test": 12}.items():
        lines = []
        for i in range(count):
            lines += ["xx O"] * (i % 4) + [
                f"{people[i % 3]} B-per",
                "Lee I-per",
                "saw O",
                "the O",
                f"{places[i % 3]} B-loc",
            ]
            lines += ["yy O"] * (25 if i % 10 == 0 else i % 3) + [""]
        (tmp_path / f"{name}.conll").write_text("\n".join(lines))
    module = TokenClassificationData(
        CoNLL, BPE(270), path=str(tmp_path), max_length=24, batch_tokens=300, cache=str(tmp_path / "cache")
    )
    module.setup()
    assert module.split("test").counts["split"] == 2
    return module


def task_of(module, **fields):
    torch.manual_seed(0)
    encoder = Bert(module.dims()["vocabulary_size"], 32, d_model=16, num_heads=2, num_layers=1, dropout=0.0)
    return TokenClassification(
        encoder, module.dims()["num_classes"], module.vocabulary.special_tokens, dropout=0.0, **fields
    )


def train(task, module, steps=120):
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    for batch, _ in zip(module.train_dataloader(), range(steps), strict=False):
        loss, count, _ = task.loss_sums(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("constrained", [False, True])
def test_a_split_is_scored_as_its_own_file_says(data, constrained):
    task = task_of(data, constrained=constrained)
    train(task, data, 25)
    found = task.evaluate(data)
    blocks = task.outputs["test.entities.conll"].strip().split("\n\n")
    rows = [[line.split(" ") for line in block.split("\n")] for block in blocks]
    tags, predicted = ([[row[column] for row in block] for block in rows] for column in (1, 2))
    assert [[row[0] for row in block] for block in rows] == data.split("test").texts.words
    assert tags == data.split("test").texts.tags
    wrong = [block for block in rows if any(a != b for _, a, b in block)] or rows
    as_shown = [
        tuple(" ".join(row[0] + f"/{row[at]}" * (row[at] != "O") for row in block) for at in (1, 2)) for block in wrong
    ]
    assert task.samples(data).rows == as_shown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["test/f1"] == pytest.approx(f1_score(tags, predicted))
    words = [(a, b) for both in zip(tags, predicted, strict=True) for a, b in zip(*both, strict=True)]
    if not constrained:
        assert found["test/accuracy"] == pytest.approx(sum(a == b for a, b in words) / len(words))
    else:
        assert all(may_follow(a, b) for block in predicted for a, b in zip([None, *block], block, strict=False))


def test_the_loss_is_a_word(data):
    task, part = task_of(data).eval(), data.split("test")
    sums, words = task.score_sums(data.evaluation_loader("test"))
    assert words == sum(map(len, part.texts.words))
    expected = 0.0
    for row, labels in zip(part.rows, part.labels, strict=True):
        with torch.no_grad():
            states = task.model.encoder.encode(torch.tensor(row)[None])
            logits = task.model.output(states[0])
        expected += torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels), ignore_index=IGNORED, reduction="sum"
        ).item()
    assert sums["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_validation_while_training_tells_the_figures_of_entities(data):
    task = task_of(data)
    train(task, data, 60)
    sums, words = task.score_sums(data.val_dataloader())
    while_training, final = task.figures_of_sums(sums, words), task.validate(data)
    assert set(while_training) == {"loss", "accuracy", "precision", "recall", "f1"}
    assert while_training["f1"] > 0.3
    assert while_training == pytest.approx({name: final[f"val/{name}"] for name in while_training}, abs=0.1)


def test_a_tiny_model_learns(data):
    task = task_of(data)
    train(task, data)
    found = task.evaluate(data)
    assert found["test/f1"] > 0.95
    assert min(found["test/f1@per"], found["test/f1@loc"]) > 0.9


def test_a_type_that_is_nowhere_cannot_be_scored(data):
    task = task_of(data)
    figures = task.entity_figures([["B-per"]], [["B-per"]], data.types, "test")
    assert figures == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "f1@per": 1.0}
    assert set(task.unavailable) == {"test/f1@loc"}


def test_an_encoder_is_taken_from_another_run(data, tmp_path):
    source = task_of(data)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    state = {f"model.{name}": tensor + 1 for name, tensor in source.model.encoder.state_dict().items()}
    write_checkpoint({"state_dict": state}, tmp_path / "run" / "checkpoints" / "best.ckpt")
    task = task_of(data, pretrained=str(tmp_path / "run"))
    assert task.initialise()[0].startswith(f"took {len(state)} tensors from")
    assert torch.equal(task.model.encoder.embedding.weight, state["model.embedding.weight"])


def test_shares_are_checked(data):
    with pytest.raises(ValueError, match=r"token_dropout must be at least 0 and below 1, got 1.0"):
        task_of(data, token_dropout=1.0)
