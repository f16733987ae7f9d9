"""What data modules of labelled text share: every row once an epoch whatever the ranks, padding on the right, a tokenizer kept once."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Character, DataError
from attnlab.data.module import padded
from attnlab.data.special_tokens import PAD
from attnlab.data.token_data import RowData, Rows, collate_rows


class Lines:
    """Texts of many lengths."""

    name = shelf = "lines"

    def __init__(self, train=40):
        self.parts = {"train": ["ab " * (1 + i % 9) for i in range(train)], "validation": ["a"], "test": ["b a"]}

    def read(self, cache=None):
        return self.parts

    def fingerprint(self, parts):
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class LineData(RowData):
    """Lines as they are."""

    examples = "lines"

    def lines(self, part):
        return part

    def encode(self, parts):
        return {name: Rows([self.vocabulary.encode(line) for line in part], {}) for name, part in parts.items()}

    def collate(self, part, rows_B, drawn_B=None):
        return collate_rows(part, rows_B, PAD)


def on_ranks(world_size, rank, micro_batches=1):
    module = LineData(Lines(), Character(), batch_tokens=60, max_length=30)
    module.rank_and_world_size = lambda: (rank, world_size)
    module.trainer = SimpleNamespace(accumulate_grad_batches=micro_batches)
    return module


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    filler=st.integers(-3, 0),
)
def test_rows_are_filled_on_the_right(rows, filler):
    together = padded([np.array(row) for row in rows], filler)
    assert together.shape == (len(rows), max(map(len, rows)))
    for row, found in zip(rows, together.tolist(), strict=True):
        assert found == row + [filler] * (together.shape[1] - len(row))


def test_ranks_and_micro_batches_share_what_one_batch_would_have():
    def epoch(module, steps, parts):
        loader = iter(module.train_dataloader())
        return [[next(loader)["ids"].tolist() for _ in range(parts)] for _ in range(steps)]

    steps = 12
    ranks = [epoch(on_ranks(2, rank), steps, 1) for rank in (0, 1)]
    halves = epoch(on_ranks(1, 0, micro_batches=2), steps, 2)
    for first, second, both in zip(*ranks, halves, strict=True):
        assert sorted(first[0] + second[0]) == sorted(both[0] + both[1])


def test_every_row_is_seen_once_in_training_and_in_evaluation():
    module = on_ranks(1, 0)
    loader, seen = iter(module.train_dataloader()), []
    while len(seen) < 40:
        batch = next(loader)
        seen += batch["ids"].tolist()
        assert batch["tokens"].numel() <= 60
        assert ((batch["tokens"] == PAD) == ~batch["is_token"]).all()
    assert sorted(seen) == list(range(40))
    parts = [
        [i for batch in on_ranks(3, rank).evaluation_loader("train") for i in batch["ids"].tolist()]
        for rank in range(3)
    ]
    assert sorted(row for part in parts for row in part) == list(range(40))
    steps = len(module.order(1).epoch(0))
    assert module.tokens_per_batch == 40 // steps


def test_a_tokenizer_is_trained_once_and_what_is_damaged_again(own_cache, monkeypatch):
    first = LineData(Lines(), BPE(260))
    first.setup()
    [kept] = own_cache.glob("lines/lines-*/tokenizer.json")
    with monkeypatch.context() as patch:
        patch.setattr(BPE, "train", None)
        assert LineData(Lines(), BPE(260)).tokenizers()["tokenizer.json"] == first.vocabulary.tokenizer
    kept.write_text("{")
    assert LineData(Lines(), BPE(260)).tokenizers()["tokenizer.json"] == first.vocabulary.tokenizer


def test_what_cannot_be_used():
    for name in ("max_length", "batch_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be at least 3, got 2"):
            LineData(Lines(), Character(), **{name: 2})
    with pytest.raises(DataError, match="lines has no lines in a split 'dev'; accepted: train, validation, test"):
        LineData(Lines(), Character()).split("dev")


@pytest.mark.parametrize(("accumulated", "ranks"), [(1, 1), (2, 1), (1, 2)])
def test_so_many_steps_are_so_many_epochs(accumulated, ranks):
    data = on_ranks(ranks, 0, accumulated)
    data.setup()
    order = data.order(accumulated * ranks, 0, ranks)
    for _ in range(data.steps_in(2, accumulated, ranks) * accumulated):
        order.draw()
    assert order.state_dict() == {"epoch": 2, "step": 0}
