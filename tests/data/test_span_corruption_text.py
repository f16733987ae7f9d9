"""Batches of corrupted windows: what they hold, in which order, over ranks, and after a restart."""

from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch

from attnlab.data import Character, DataError, TextFiles
from attnlab.data.span_corruption_text import SpanCorruptionData
from attnlab.data.vocabulary import END, START


def make_data(path, **changes):
    options = {"context": 40, "batch_size": 4, "split": (0.8, 0.1, 0.1), "seed": 3, "path": str(path), **changes}
    return SpanCorruptionData(partial(TextFiles, pattern="*.txt"), Character(), num_sentinels=8, **options)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def text_of(data, source, target):
    """The window that an input and its target were made of."""
    first = data.vocabulary.sentinel(0)
    sentinels = range(first, first + data.num_sentinels)
    said, current = {}, None
    for token in target[:-1]:
        if token in sentinels:
            current = token
            said[current] = []
        else:
            said[current].append(token)
    tokens = [token for t in source[:-1] for token in (said[t] if t in sentinels else [t])]
    return data.vocabulary.decode(tokens)


def test_every_batch_is_text_of_its_part(prose, prose_file):
    data = make_data(prose_file)
    data.prepare_data()
    data.setup()
    end = int(len(prose) * 0.8)
    for batch in take(data.train_dataloader(), 30):
        assert batch["source"].shape == (4, 40 - 6 + 2 + 1)
        assert batch["target_out"].shape == batch["target_in"].shape == (4, data.target_length) == (4, 6 + 2 + 1 + 1)
        assert batch["is_source"].all()
        assert batch["is_target"].all()
        assert (batch["target_in"][:, 0] == START).all()
        assert batch["target_in"][:, 1:].equal(batch["target_out"][:, :-1])
        assert (batch["source"][:, -1] == END).all()
        assert (batch["target_out"][:, -1] == END).all()
        for source, target in zip(batch["source"].tolist(), batch["target_out"].tolist(), strict=True):
            assert text_of(data, source, target) in prose[:end]
    assert data.tokens_per_batch == 40
    assert data.widths() == {"vocabulary_size": data.vocabulary.size, "source_vocabulary_size": data.vocabulary.size}
    assert data.vocabulary.size == 5 + 8 + len(set(prose))
    assert data.rehearsal_widths().keys() == data.widths().keys()
    assert "windows of 40 tokens: 37 in, 10 out" in data.describe()
    assert data.facts()["train_tokens"] == data.train_tokens == (end - 40) // 40 * 10


def test_an_epoch_has_every_window_once_and_the_next_has_other_noise(prose_file):
    data = make_data(prose_file, batch_size=1)
    loader = data.train_dataloader()
    epoch = loader.windows.windows_per_epoch
    batches = take(loader, 2 * epoch)
    texts = [text_of(data, batch["source"][0].tolist(), batch["target_out"][0].tolist()) for batch in batches]
    for part in (texts[:epoch], texts[epoch:]):
        assert len(set(part)) == epoch
    noise = [tuple((batch["source"][0] < data.vocabulary.first_text).tolist()) for batch in batches]
    assert len(set(noise)) == 33  # the places of two sentinels, one of them always last
    assert torch.cat([batch["ids"] for batch in batches]).tolist() == list(range(2 * epoch))


def test_ranks_share_what_one_would_have(prose_file):
    whole = take(make_data(prose_file, batch_size=8).train_dataloader(), 5)
    shares = []
    for rank in range(2):
        data = make_data(prose_file, batch_size=4)
        data.place = lambda rank=rank: (rank, 2)
        shares.append(take(data.train_dataloader(), 5))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert_same(batch, {name: torch.cat([part[name] for part in parts]) for name in batch})


def test_it_goes_on_where_it_was_saved(prose_file):
    whole = take(make_data(prose_file).train_dataloader(), 9)
    data, resumed = make_data(prose_file), make_data(prose_file)
    take(data.train_dataloader(), 4)
    resumed.load_state_dict(data.state_dict())
    for batch, expected in zip(take(resumed.train_dataloader(), 5), whole[4:], strict=True):
        assert_same(batch, expected)


def test_other_seeds_train_on_other_noise_and_are_evaluated_on_the_same(prose_file):
    one, other = make_data(prose_file), make_data(prose_file, seed=4)
    assert not next(one.train_dataloader())["source"].equal(next(other.train_dataloader())["source"])
    for first, second in zip(one.evaluation_loader("test"), other.evaluation_loader("test"), strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_window_of_a_split_is_scored_once_over_the_ranks(prose, prose_file, world_size):
    ids, texts = [], {}
    for rank in range(world_size):
        data = make_data(prose_file)
        data.place = lambda rank=rank: (rank, world_size)
        loader = data.evaluation_loader("test")
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            ids += batch["ids"].tolist()
            for number, source, target in zip(batch["ids"], batch["source"], batch["target_out"], strict=True):
                texts[int(number)] = text_of(data, source.tolist(), target.tolist())
    part = prose[int(len(prose) * 0.9) :]
    assert sorted(ids) == list(range(len(part) // 40))
    assert "".join(texts[i] for i in sorted(texts)) == part[: len(part) // 40 * 40]
    assert sum(len(batch["ids"]) for batch in make_data(prose_file, max_validation_tokens=200).val_dataloader()) == 5


def test_lightning_takes_it(prose_file):
    class Counter(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, index):
            return self.weight**2 * batch["source"].shape[0]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    data = make_data(prose_file)
    lightning.Trainer(max_steps=3, accelerator="cpu", **quiet).fit(Counter(), datamodule=data)
    assert data.state_dict() == {"windows_seen": 12}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_density": 0.0}, r"noise_density must be above 0 and below 1"),
        ({"noise_density": 1.0}, r"noise_density must be above 0 and below 1"),
        ({"mean_span_length": 0.5}, r"mean_span_length must be at least 1"),
        ({"context": 1}, r"context must be at least 2"),
        ({"context": 1000}, r"data\.num_sentinels=8 is too few for the 50 spans of 1000 tokens; accepted: 51 or more"),
        ({"batch_size": 0}, r"batch_size must be at least 1"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(prose_file, changes, message):
    with pytest.raises(ValueError, match=message):
        make_data(prose_file, **changes)


def test_text_that_is_too_short_is_found_at_setup(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abcdefghij" * 10)
    with pytest.raises(DataError, match="the validation part of data=text has 10 tokens, too few for a window of 40"):
        make_data(path).setup()
    path.write_text("abc")
    with pytest.raises(DataError, match="the train part of data=text: 2 tokens are too few"):
        make_data(path).setup()


def test_more_ranks_than_windows_are_refused_and_each_window_is_one_ranks(prose_file):
    data = make_data(prose_file, context=100)
    windows = data.corpus.test.num_tokens // 100
    ids = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        ids += [number for batch in data.evaluation_loader("test") for number in batch["ids"].tolist()]
    assert sorted(ids) == list(range(windows))
    data.trainer = SimpleNamespace(global_rank=0, world_size=windows + 1)
    with pytest.raises(DataError, match=f"{windows} windows to evaluate are too few for {windows + 1} ranks"):
        data.evaluation_loader("test")
