"""Masked language modelling: its figures by hand, the output at masked positions alone, and that a tiny model learns."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from attnlab.data import Character, MaskedTextData, Masking, SpanCorruptionData, TextFiles
from attnlab.models import T5, Bert, Seq2Seq, T5LanguageModel
from attnlab.tasks import MaskedLanguageModelling, SpanCorruption


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefgh ijkl mnop. " * 400)

    def make(**fields):
        given = {
            "masking": Masking(),
            "context_length": 20,
            "batch_size": 8,
            "path": str(path),
            "cache": str(tmp_path / "c"),
        }
        module = MaskedTextData(TextFiles, Character(), **{**given, **fields})
        module.setup()
        return module

    return make


def task_of(module, **fields):
    torch.manual_seed(0)
    widths = module.dims()
    model = Bert(max_length=32, d_model=16, num_heads=2, num_layers=1, dropout=0.0, **widths)
    second = {"next_sentence": True} if widths.get("next_sentence") else {}
    return MaskedLanguageModelling(model, **second, **fields)


@pytest.mark.parametrize("next_sentence", [False, True])
def test_masked_positions_alone_give_the_same_loss_and_gradients(data, next_sentence):
    module = data(next_sentence=next_sentence)
    batch = next(iter(module.train_dataloader()))
    made = []
    for masked_only in (True, False):
        task = task_of(module, masked_only=masked_only)
        loss, tokens, _ = task.loss_sums(batch)
        loss.backward()
        made.append((loss, tokens, [p.grad for p in task.parameters()]))
    (one, tokens, gradients), (other, others, expected) = made
    assert tokens == others == int(batch["chosen"].sum())
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_figures_are_those_of_torch(data):
    module = data()
    task = task_of(module).eval()
    found = task.evaluate(module)
    nats = right = count = 0
    with torch.no_grad():
        for batch in module.evaluation_loader("test"):
            logits, targets = task.model(batch["tokens"])[batch["chosen"]], batch["targets"][batch["chosen"]]
            nats += F.cross_entropy(logits, targets, reduction="sum").item()
            right += (logits.argmax(dim=1) == targets).sum().item()
            count += len(targets)
    assert found["test/loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["test/accuracy"] == pytest.approx(right / count)
    assert found["test/perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_next_sentence_figures_are_means_over_pairs(data):
    module = data(next_sentence=True)
    task = task_of(module).eval()
    found = task.evaluate(module)
    nats = right = count = 0
    with torch.no_grad():
        for batch in module.evaluation_loader("test"):
            logits = task.model.follows(task.model.encode(batch["tokens"], segments_BT=batch["segments"]))
            nats += F.cross_entropy(logits, batch["follows"], reduction="sum").item()
            right += (logits.argmax(dim=1) == batch["follows"]).sum().item()
            count += len(logits)
    assert found["test/next_sentence_loss"] == pytest.approx(nats / count, rel=1e-4)
    assert found["test/next_sentence_accuracy"] == pytest.approx(right / count, rel=1e-5)
    assert found["test/loss"] == pytest.approx(
        found["test/masked_lm_loss"] + found["test/next_sentence_loss"], rel=1e-5
    )


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_batch_of_whole_words_may_be_split(data, next_sentence):
    module = data(next_sentence=next_sentence, masking=Masking(0.4, whole_words=True))
    task = task_of(module).eval()
    with torch.no_grad():
        for parameter in task.parameters():  # as initialised, all pairs would have the same loss
            parameter.normal_()
    batch = next(iter(module.train_dataloader()))
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(4), slice(4, 8))]
    numbers = [int(part["chosen"].sum()) for part in parts]
    assert numbers[0] != numbers[1]  # else this would prove nothing
    (loss, tokens, also), *halves = (task.loss_sums(each) for each in (batch, *parts))
    assert tokens == sum(part[1] for part in halves)
    torch.testing.assert_close(loss, halves[0][0] + halves[1][0], rtol=1e-5, atol=1e-5)
    for name, value in also.items():
        torch.testing.assert_close(value, halves[0][2][name] + halves[1][2][name], rtol=1e-5, atol=1e-5)


def test_a_tiny_model_learns_a_text_that_repeats(data):
    module = data()
    task = task_of(module)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    before = task.evaluate(module)["test/loss"]
    for batch, _ in zip(module.train_dataloader(), range(120), strict=False):
        loss, tokens, _ = task.loss_sums(batch)
        (loss / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.evaluate(module)
    assert after["test/loss"] < before - 1
    assert after["test/accuracy"] > 0.4


@pytest.mark.parametrize("next_sentence", [False, True])
def test_samples_have_the_text_what_was_masked_and_what_the_model_puts_there(data, next_sentence):
    module = data(next_sentence=next_sentence)
    task = task_of(module)
    with task.evaluating():
        table = task.samples(module)
        batch = next(iter(module.evaluation_loader("test")))
        guesses = task.model(batch["tokens"], segments_BT=batch.get("segments"))
        guesses = (guesses[0] if isinstance(guesses, tuple) else guesses).argmax(dim=-1)
    assert table.columns == ("text", "masked", "restored")
    for row, (text, masked, restored) in enumerate(table.rows):
        chosen = batch["chosen"][row]
        assert masked.split(" | ") == [module.vocabulary.decode([t]) for t in batch["targets"][row][chosen].tolist()]
        assert restored.split(" | ") == [module.vocabulary.decode([t]) for t in guesses[row][chosen].tolist()]
        assert all(letter in text for letter in masked.split(" | "))


@pytest.fixture
def spans(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghijklmnopqrstuvw" * 300)
    source = partial(TextFiles, path=path)
    return SpanCorruptionData(
        source, Character(), context_length=26, batch_size=16, num_sentinels=4, cache=str(tmp_path / "cache")
    )


class Counting(Seq2Seq):
    """Finds each token equally probable but the last one of the vocabulary, which is twice as probable as they."""

    def __init__(self, vocabulary_size):
        super().__init__()
        self.vocabulary_size, self.weight = vocabulary_size, torch.nn.Parameter(torch.tensor(2.0).log())

    def start(self, source_BS, is_source_BS=None, capacity=256):
        raise AssertionError("nothing is decoded here")

    def step(self, tokens_B, state):
        raise AssertionError("nothing is decoded here")

    def forward(self, source_BS, target_BT, is_source_BS=None):
        logits_BTV = torch.zeros(*target_BT.shape, self.vocabulary_size)
        logits_BTV[..., -1] = self.weight
        return logits_BTV


def test_figures_are_means_over_the_target_tokens(spans):
    size = spans.dims()["vocabulary_size"]
    task = SpanCorruption(Counting(size))
    figures = task.evaluate(spans)
    targets = torch.cat([batch["target_out"].flatten() for batch in spans.evaluation_loader("test")])
    right = float((targets == size - 1).float().mean())
    assert figures == {
        "test/loss": pytest.approx(torch.tensor(size + 1.0).log().item() - right * torch.tensor(2.0).log().item()),
        "test/accuracy": pytest.approx(right),
    }
    assert set(task.evaluate(spans, "validation")) == {"val/loss", "val/accuracy"}


@pytest.mark.parametrize(
    "make",
    [pytest.param(partial(T5, share_layers=True), marks=pytest.mark.slow), partial(T5LanguageModel, prefix=True)],
)
def test_a_t5_learns_what_the_spans_were(spans, make):
    torch.manual_seed(0)
    model = make(**spans.dims(), d_model=32, num_heads=2, num_layers=1, dropout=0.0)
    task = SpanCorruption(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = task.evaluate(spans)
    loader = spans.train_dataloader()
    for _ in range(120):
        nats, tokens, _ = task.loss_sums(next(loader))
        optimizer.zero_grad()
        (nats / tokens).backward()
        optimizer.step()
    after = task.evaluate(spans)
    assert after["test/loss"] < 0.6 * before["test/loss"]
    assert after["test/accuracy"] > 0.6
