"""Span corruption as a task: its figures by hand, and that a T5 learns what a text repeats. Legend: B batch, T length, V vocabulary."""

from functools import partial

import pytest
import torch

from attnlab.data import Character, SpanCorruptionData, TextFiles
from attnlab.models import T5, Seq2Seq, T5LanguageModel
from attnlab.tasks import SpanCorruption
from attnlab.training import Constant, adamw


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghijklmnopqrstuvw" * 300)
    source = partial(TextFiles, path=path)
    return SpanCorruptionData(
        source, Character(), context=26, batch_size=16, num_sentinels=4, cache=str(tmp_path / "cache")
    )


class Counting(Seq2Seq):
    """Finds each token equally probable but the last one of the vocabulary, which is twice as probable as they."""

    def __init__(self, vocabulary_size):
        super().__init__()
        self.vocabulary_size, self.weight = vocabulary_size, torch.nn.Parameter(torch.tensor(2.0).log())

    def forward(self, source_BS, target_BT, is_source_BS=None, is_target_BT=None):
        logits_BTV = torch.zeros(*target_BT.shape, self.vocabulary_size)
        logits_BTV[..., -1] = self.weight
        return logits_BTV


def test_figures_are_means_over_the_target_tokens(data):
    size = data.widths()["vocabulary_size"]
    task = SpanCorruption(Counting(size), partial(adamw, lr=1e-3), Constant)
    figures = task.evaluate(data)
    targets = torch.cat([batch["target_out"].flatten() for batch in data.evaluation_loader("test")])
    right = float((targets == size - 1).float().mean())
    assert figures == {
        "test/nats": pytest.approx(torch.tensor(size + 1.0).log().item() - right * torch.tensor(2.0).log().item()),
        "test/accuracy": pytest.approx(right),
    }
    assert set(task.evaluate(data, "validation")) == {"val/nats", "val/accuracy"}


@pytest.mark.parametrize("make", [partial(T5, share_layers=True), partial(T5LanguageModel, prefix=True)])
def test_a_t5_learns_what_the_spans_were(data, make):
    torch.manual_seed(0)
    model = make(**data.widths(), d_model=32, num_heads=2, num_layers=1, dropout=0.0)
    task = SpanCorruption(model, partial(adamw, lr=3e-3), Constant)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = task.evaluate(data)
    loader = data.train_dataloader()
    for _ in range(120):
        nats, tokens, _ = task.all_sums(next(loader))
        optimizer.zero_grad()
        (nats / tokens).backward()
        optimizer.step()
    after = task.evaluate(data)
    assert after["test/nats"] < 0.6 * before["test/nats"]
    assert after["test/accuracy"] > 0.6
