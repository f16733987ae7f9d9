"""Span corruption against the paper's example and its definition. Letters of shapes: N tokens."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import Character, DataError, TextFiles
from attnlab.data.span_corruption import (
    MixtureOfDenoisersData,
    SpanCorruptionData,
    corrupt,
    count_noise,
    draw_noise,
    lengths,
)
from attnlab.data.special_tokens import END, START

SENTINELS = ["<X>", "<Y>", "<Z>"]


def random_generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def spans(is_noise):
    """The lengths of runs, with what each is."""
    runs = [[bool(is_noise[0]), 0]]
    for value in is_noise:
        if bool(value) != runs[-1][0]:
            runs.append([bool(value), 0])
        runs[-1][1] += 1
    return runs


def restored(source, target, first_sentinel):
    """The text again: each sentinel of the input gives way to what the target says after it."""
    said, sentinel = {}, None
    for token in target:
        if token >= first_sentinel:
            sentinel = token
            said[sentinel] = []
        else:
            said[sentinel].append(token)
    return [token for t in source for token in (said[t] if t >= first_sentinel else [t])], said


def test_the_example_of_the_paper():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    is_noise = np.array([word in {"for", "inviting", "last"} for word in words])
    made = corrupt(np.arange(10), is_noise, np.arange(10, 13))
    texts = [" ".join([*words, *SENTINELS][token] for token in row) for row in made]
    assert texts == ["Thank you <X> me to your party <Y> week", "<X> for inviting <Y> last <Z>"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_nothing_is_lost_and_nothing_said_twice(noise):
    tokens, is_noise = np.arange(len(noise)), np.array(noise)
    source, target = corrupt(tokens, is_noise, np.arange(100, 150))
    again, said = restored(source.tolist(), target.tolist(), 100)
    assert again == tokens.tolist()
    assert sorted(token for row in said.values() for token in row) == np.flatnonzero(is_noise).tolist()
    assert list(said) == list(range(100, 100 + len(said)))
    assert said[target[-1]] == []
    assert all(said[sentinel] for sentinel in list(said)[:-1])
    assert [token for token in source if token >= 100] == list(said)[:-1]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(2, 600),
    density=st.floats(0.01, 0.99),
    mean_length=st.floats(1.0, 20.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_noise_has_the_numbers_that_were_asked_for(length, density, mean_length, seed):
    is_noise = draw_noise(length, random_generator(seed), density, mean_length)
    num_noise, num_spans = count_noise(length, density, mean_length)
    runs = spans(is_noise)
    assert len(is_noise) == length
    assert is_noise.sum() == num_noise == min(max(round(length * density), 1), length - 1)
    assert [what for what, _ in runs] == [False, True] * num_spans
    assert 1 <= num_spans <= max(1, round(num_noise / mean_length))
    source, target = corrupt(np.arange(length), is_noise, np.arange(1000, 1700))
    assert (len(source), len(target)) == lengths(length, density, mean_length)


def test_t5s_512_tokens():
    # 15% of 512 in spans of 3: 77 tokens in 26 spans.
    assert count_noise(512) == (77, 26)
    assert lengths(512) == (512 - 77 + 26, 77 + 26 + 1)
    means = [length for seed in range(40) for what, length in spans(draw_noise(512, random_generator(seed))) if what]
    assert np.mean(means) == pytest.approx(77 / 26)


def test_all_ways_to_cut_are_equally_likely():
    # 4 noise tokens in 2 spans among 8 tokens: 3 ways to cut the noise times 3 to cut the rest.
    random = random_generator()
    drawn = Counter(tuple(draw_noise(8, random, 0.5, 2.0)) for _ in range(9000))
    assert len(drawn) == 9
    assert min(drawn.values()) > 880
    assert max(drawn.values()) < 1120


def test_the_same_numbers_give_the_same_noise():
    assert (draw_noise(64, random_generator(3)) == draw_noise(64, random_generator(3))).all()
    assert (draw_noise(64, random_generator(3)) != draw_noise(64, random_generator(4))).any()


def test_more_spans_than_sentinels_are_refused():
    noise = np.array([False, True] * 3)
    with pytest.raises(DataError, match=r"3 spans of noise need 4 sentinels; data\.num_sentinels=3"):
        corrupt(np.arange(6), noise, np.arange(10, 13))


def make_data(path, **changes):
    options = {"context_length": 40, "batch_size": 4, "split": (0.8, 0.1, 0.1), "seed": 3, "path": str(path), **changes}
    return SpanCorruptionData(partial(TextFiles, pattern="*.txt"), Character(), num_sentinels=8, **options)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def text_of(data, source, target):
    """The window that an input and its target were made of."""
    first = data.vocabulary.sentinels[0]
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
    assert data.dims() == {"vocabulary_size": data.vocabulary.size, "source_vocabulary_size": data.vocabulary.size}
    assert data.vocabulary.size == 5 + 8 + len(set(prose))
    assert data.placeholder_dims().keys() == data.dims().keys()
    assert "windows of 40 tokens: 37 in, 10 out" in data.describe()
    assert data.facts()["train_tokens"] == data.train_tokens == (end - 40) // 40 * 10


def test_an_epoch_has_every_window_once_and_the_next_has_other_noise(prose_file):
    data = make_data(prose_file, batch_size=1)
    loader = data.train_dataloader()
    epoch = loader.order.count
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
        data.rank_and_world_size = lambda rank=rank: (rank, 2)
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
        data.rank_and_world_size = lambda rank=rank: (rank, world_size)
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
        ({"context_length": 1}, r"context_length must be at least 2"),
        (
            {"context_length": 1000},
            r"data\.num_sentinels=8 is too few for the 50 spans of 1000 tokens; accepted: 51 or more",
        ),
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
    data = make_data(prose_file, context_length=100)
    windows = data.corpus.test.num_tokens // 100
    ids = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        ids += [number for batch in data.evaluation_loader("test") for number in batch["ids"].tolist()]
    assert sorted(ids) == list(range(windows))
    data.trainer = SimpleNamespace(global_rank=0, world_size=windows + 1)
    with pytest.raises(DataError, match=f"{windows} windows to evaluate are too few for {windows + 1} ranks"):
        data.evaluation_loader("test")


@pytest.fixture
def mixed(tmp_path):
    """UL2's mixture on a text of letters."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefgh ijkl mnop. " * 800)

    def make(**fields):
        given = {"context_length": 40, "batch_size": 64, "path": str(path), "cache": str(tmp_path / "c")} | fields
        module = MixtureOfDenoisersData(TextFiles, Character(), **given)
        module.setup()
        return module

    return make


def test_the_denoisers_are_those_of_ul2s_table_1(mixed):
    module = mixed(context_length=512)
    found = sorted((one.mode, one.mean_length, one.density) for one in module.denoisers)
    extreme = [("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5)]
    assert found == [("R", 3, 0.15), ("R", 8, 0.15), ("S", 1.0, 0.25), *extreme]
    assert [one.lengths(512) for one in module.denoisers if one.at_end] == [(512 - 128 + 1 + 1, 128 + 1 + 1)]


def test_every_window_of_a_mixture_says_its_mode_and_gives_its_text_again(mixed):
    module = mixed()
    batch, modes = next(iter(module.train_dataloader())), Counter()
    special, vocabulary = module.vocabulary.special_tokens, module.vocabulary
    first, numbers = special.sentinels[0], special.sentinels[module.num_sentinels - 3 : module.num_sentinels]
    for row in range(64):
        source, target = (batch[n][row][batch[f"is_{n[:6]}"][row]].tolist() for n in ("source", "target_out"))
        assert source[-1] == target[-1] == END
        assert batch["target_in"][row, : len(target)].tolist() == [START, *target[:-1]]
        mode = "RSX"[numbers.index(source[0])]
        # A sentinel is below the text here: numbers are turned so that `restored` can tell them.
        turned = [
            [10**6 + t if first <= t < vocabulary.first_text else t for t in of] for of in (source[1:-1], target[:-1])
        ]
        text, said = restored(*turned, 10**6)
        assert len(text) == 40
        assert "abcdefgh ijkl mnop. abcdefgh ijkl mnop. abcdefgh ijkl mnop. ".find(vocabulary.decode(text)) >= 0
        noise = sum(len(of) for of in said.values())
        allowed = {"R": {6}, "S": {10}, "X": {20, 6}}[mode]
        assert noise in allowed
        if mode == "S":
            assert turned[0] == [*text[:30], 10**6 + first]
            assert turned[1] == [10**6 + first, *text[30:], 10**6 + first + 1]
        modes[mode] += 1
    assert modes.keys() == {"R", "S", "X"}


def test_denoisers_are_equally_likely_and_depend_on_the_window_alone(mixed):
    module = mixed()
    tokens = module.corpus.train.tokens
    starts = np.arange(300) * 40
    whole = module.collate(tokens, starts, np.arange(300))
    assert module.collate(tokens, starts[5:6], np.array([5]))["source"][0].tolist() == (
        whole["source"][5][whole["is_source"][5]].tolist()
    )
    numbers = module.vocabulary.special_tokens.sentinels[module.num_sentinels - 3 : module.num_sentinels]
    counts = Counter(whole["source"][:, 0].tolist())
    for mode, share in zip(numbers, (2 / 7, 1 / 7, 4 / 7), strict=True):
        assert counts[mode] / 300 == pytest.approx(share, abs=4 * (share * (1 - share) / 300) ** 0.5)
    again = module.collate(module.corpus.validation.tokens, starts[:4])
    other = mixed(seed=7)
    assert torch.equal(again["source"], other.collate(other.corpus.validation.tokens, starts[:4])["source"])
    assert whole["target_out"].shape[1] > whole["is_target"].sum(1).min()


def test_a_batch_has_about_as_many_targets_as_is_planned(mixed):
    module = mixed()
    counted = np.mean(
        [int(batch["is_target"].sum()) for batch, _ in zip(module.train_dataloader(), range(5), strict=False)]
    )
    assert counted == pytest.approx(module.tokens_per_batch, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"num_sentinels": 10},
            "data.num_sentinels=10 is too few for the 7 spans of 40 tokens and the tokens of modes; accepted: 11",
        ),
        ({"regular": [[0.5, 0.15]]}, r"regular\[0\]\[0\] must be at least 1, got 0.5"),
        ({"extreme": [[3, 1.5]]}, r"extreme\[0\]\[1\] must be above 0 and below 1, got 1.5"),
        ({"sequential": [1.0]}, r"sequential\[0\] must be above 0 and below 1, got 1.0"),
        ({"regular": [], "sequential": [], "extreme": []}, "one has to name a denoiser"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(mixed, fields, said):
    with pytest.raises(ValueError, match=said):
        mixed(**fields)
