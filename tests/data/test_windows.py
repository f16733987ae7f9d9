import subprocess
import sys
from dataclasses import replace
from functools import partial

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.huggingface import save

from attnlab.data import (
    BPE,
    Byte,
    Character,
    DataError,
    EvaluationWindows,
    MaskedTextData,
    Masking,
    TextData,
    TextFiles,
    read_tokenizer,
)
from attnlab.data.order import TrainingLoader
from attnlab.data.windows import WindowOrder, Windows


def batches(tokens, context_length, *fields, **named):
    """The loader of a text's windows."""
    windows = Windows(tokens, context_length)
    return TrainingLoader(
        WindowOrder(len(tokens), context_length, *fields, **named), lambda starts, _: windows.batch(starts)
    )


def numbered(num_tokens):
    """Tokens that are their own places, so that a batch shows where it was cut."""
    return np.arange(num_tokens, dtype=np.uint16)


sizes = st.tuples(st.integers(1, 9), st.integers(2, 200)).map(
    lambda pair: (pair[0], max(pair))
)  # context_length, number of tokens
sizes = sizes.map(lambda pair: (pair[0], max(pair[1], pair[0] + 1)))


def test_target_is_the_next_token():
    batch = Windows(np.array([5, 6, 7, 8, 9], dtype=np.uint16), 3).batch(np.array([0, 1]))
    assert batch["tokens"].tolist() == [[5, 6, 7], [6, 7, 8]]
    assert batch["targets"].tolist() == [[6, 7, 8], [7, 8, 9]]
    assert batch["tokens"].dtype == torch.int64


@pytest.mark.parametrize(
    "make", [lambda t: Windows(t, 64), lambda t: batches(t, 64, 4), lambda t: EvaluationWindows(t, 64)]
)
def test_text_shorter_than_a_window_is_refused_with_both_numbers(make):
    make(numbered(65))
    with pytest.raises(
        DataError, match=r"64 tokens are too few for one window of 64 tokens .* 65 in all.*data\.context"
    ):
        make(numbered(64))


@given(size=sizes, batch_size=st.integers(1, 7), seed=st.integers(0, 99), epoch=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_epoch_covers_the_text_once_without_overlap(size, batch_size, seed, epoch):
    context_length, num_tokens = size
    order = WindowOrder(num_tokens, context_length, batch_size, seed)
    per_epoch = order.count
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    numbers = range(first // batch_size, -(-last // batch_size))
    starts = np.concatenate([order.examples(i * batch_size, batch_size) for i in numbers])
    mine = np.sort(starts[first - numbers[0] * batch_size :][:per_epoch])
    assert (np.diff(mine) == context_length).all()
    assert 0 <= mine[0] < context_length
    assert mine[-1] + context_length < num_tokens
    assert (
        num_tokens - per_epoch * context_length <= 2 * context_length
    )  # what an epoch leaves out, at both ends together


@given(size=sizes, batch_size=st.integers(1, 5), world_size=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_ranks_share_what_one_rank_would_take(size, batch_size, world_size, seed):
    context_length, num_tokens = size
    alone = batches(numbered(num_tokens), context_length, batch_size * world_size, seed)
    ranks = [batches(numbered(num_tokens), context_length, batch_size, seed, r, world_size) for r in range(world_size)]
    accumulated = batches(numbered(num_tokens), context_length, batch_size, seed)
    for _ in range(4):
        whole = next(alone)["tokens"]
        assert torch.equal(whole, torch.cat([next(rank)["tokens"] for rank in ranks]))
        assert torch.equal(whole, torch.cat([next(accumulated)["tokens"] for _ in range(world_size)]))


@given(size=sizes, batch_size=st.integers(1, 7), seen=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_order_goes_on_where_it_was_saved_and_batches_are_a_function_of_their_index(size, batch_size, seen, seed):
    context_length, num_tokens = size
    loader, resumed = (batches(numbered(num_tokens), context_length, batch_size, seed) for _ in range(2))
    for _ in range(seen):
        next(loader)
    resumed.order.load_state_dict(loader.order.state_dict())
    for i in range(3):
        expected = next(loader)
        assert torch.equal(next(resumed)["targets"], expected["targets"])
        assert expected["tokens"][:, 0].tolist() == resumed.order.examples((seen + i) * batch_size, batch_size).tolist()


def test_seeds_and_epochs_differ_and_the_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    a, b = (WindowOrder(5000, 10, 499, seed) for seed in (0, 1))
    assert a.examples(0, 499).tolist() != b.examples(0, 499).tolist()
    assert a.examples(0, 499).tolist() != a.examples(499, 499).tolist()
    assert len({int(a.epoch(number).min()) for number in range(20)}) > 5
    fixed = WindowOrder(5000, 10, 499, is_fixed=True)
    assert len({int(fixed.epoch(number).min()) for number in range(20)}) == 1
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_batch_size_below_one_is_refused():
    with pytest.raises(DataError, match=r"data\.batch_size=0"):
        WindowOrder(100, 10, 0)


def scored_targets(windows):
    """The scored targets and, for each, how many tokens its window has before it (the input token itself included)."""
    targets, contexts = [], []
    for batch in windows:
        width = torch.arange(1, batch["tokens"].shape[1] + 1).expand_as(batch["tokens"])
        assert torch.equal(batch["targets"], batch["tokens"] + 1)
        targets += batch["targets"][batch["scored"]].tolist()
        contexts += width[batch["scored"]].tolist()
    return targets, contexts


@given(
    context_length=st.integers(1, 6),
    num_tokens=st.integers(60, 200),
    max_tokens=st.none() | st.integers(1, 400),
    batch_size=st.integers(2, 9),
)
@settings(max_examples=50, deadline=None)
def test_every_length_and_both_kinds_score_the_same_targets_once(context_length, num_tokens, max_tokens, batch_size):
    longest, found = 8 * context_length, []
    for length in (context_length, 2 * context_length, 4 * context_length, longest):
        for stride in {length, max(1, length // 2)}:
            windows = EvaluationWindows(numbered(num_tokens), length, longest, stride, max_tokens, batch_size)
            assert len(list(windows)) == len(windows)
            targets, contexts = scored_targets(windows)
            assert len(targets) == windows.num_targets
            assert windows.num_targets % longest == 0
            found.append(targets)
            if stride == length:
                assert contexts == list(range(1, length + 1)) * (len(targets) // length)
            elif num_tokens > 2 * longest:
                assert min(contexts) >= length - stride + 1
    assert all(targets == found[0] for targets in found)
    assert found[0] == list(range(found[0][0], found[0][0] + len(found[0])))
    assert len(found[0]) <= max(longest, max_tokens or num_tokens)


@given(world_size=st.integers(1, 4), stride=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_ranks_divide_the_scored_targets(world_size, stride):
    whole, _ = scored_targets(EvaluationWindows(numbered(200), 8, stride=stride))
    parts = [
        target
        for rank in range(world_size)
        for target in scored_targets(
            EvaluationWindows(numbered(200), 8, stride=stride, rank=rank, world_size=world_size)
        )[0]
    ]
    assert sorted(parts) == whole


def test_stride_longer_than_the_window_is_refused():
    with pytest.raises(DataError, match="1 <= stride <= length <= longest"):
        EvaluationWindows(numbered(100), 8, stride=9)


def make_data(path, **changes):
    options = {"context_length": 16, "batch_size": 4, "split": (0.8, 0.1, 0.1), "seed": 3, "path": str(path), **changes}
    return TextData(partial(TextFiles, pattern="*.txt"), Character(), **options)


class Recorder(lightning.LightningModule):
    """Trains one number and remembers which windows it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches, self.num_scored = [], 0

    def training_step(self, batch, index):
        self.batches.append(batch["tokens"].clone())
        return self.weight**2

    def validation_step(self, batch, index):
        self.num_scored += int(batch["scored"].sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(path, folder, max_steps, resume=None, **options):
    module, data = Recorder(), make_data(path)
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=5,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")],
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.mark.parametrize("step", [3, 6])
def test_lightning_goes_on_in_the_middle_of_an_epoch(prose_file, tmp_path, step):
    whole = fit(prose_file, tmp_path / "whole", 12)
    fit(prose_file, tmp_path / "first", 7)
    rest = fit(prose_file, tmp_path / "rest", 12, resume=tmp_path / "first" / f"step={step}.ckpt")
    assert len(whole.batches) == 12
    assert torch.equal(torch.stack(whole.batches[step:]), torch.stack(rest.batches))


def test_validation_scores_all_targets_it_is_given(prose_file, tmp_path):
    scored = fit(prose_file, tmp_path, 5).num_scored
    data = make_data(prose_file)
    assert scored == data.val_dataloader().num_targets
    assert data.corpus.validation.num_tokens - 3 * 16 < scored < data.corpus.validation.num_tokens


def test_batches_are_text_of_the_training_part(prose, prose_file):
    data = make_data(prose_file)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
    assert data.tokens_per_batch == 64
    assert data.vocabulary_size == len(set(prose))
    for row in batch["tokens"]:
        assert data.tokenizer.decode(row.numpy()) in prose[: int(len(prose) * 0.8)]


def test_evaluation_lengths_share_their_targets(prose_file):
    data = make_data(prose_file)
    loaders = [data.evaluation_loader("test", k * 16, sliding, 500) for k in (1, 2, 4, 8) for sliding in (False, True)]
    texts = {
        tuple(token for batch in loader for token in batch["targets"][batch["scored"]].tolist()) for loader in loaders
    }
    assert len(texts) == 1
    assert len(texts.pop()) == 384  # of 500, what the longest window of 128 divides


def test_lengths_that_fit_work_where_the_longest_does_not(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abcdefghij" * 60)
    data = make_data(path)
    assert [data.evaluation_loader("test", length).num_targets for length in (16, 32)] == [32, 32]
    with pytest.raises(DataError, match=r"the test part of data=text: 60 tokens are too few for one window of 64"):
        data.evaluation_loader("test", 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 0}, r"context_length must be at least 1"),
        ({"batch_size": -1}, r"batch_size must be at least 1"),
        ({"path": "nowhere.txt"}, r"data\.path=nowhere\.txt does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(prose_file, changes, message):
    with pytest.raises(ValueError, match=message):
        make_data(**{"path": prose_file, **changes})


def test_text_shorter_than_a_context_is_found_at_setup(tmp_path, prose_file):
    path = tmp_path / "short.txt"
    path.write_text("abc")
    with pytest.raises(DataError, match="the train part of data=text: 2 tokens are too few for one window of 16"):
        make_data(path).setup()
    with pytest.raises(DataError, match="the validation part is empty"):
        make_data(prose_file, split=(1.0, 0.0, 0.0)).setup()


def test_source_may_be_given_whole(prose_file):
    assert TextData(TextFiles(prose_file), Byte()).vocabulary_size == 256


def test_listing_data_loads_neither_torch_nor_lightning():
    code = "import sys, attnlab.data as d; d.describe_sources(); print({'torch', 'lightning', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(("tokenizer", "marked"), [(Character(), False), (Byte(), False), (BPE(300), True)])
def test_documents_in_sub_words_end_in_a_mark_and_others_where_it_is_asked_for(prose_file, tokenizer, marked):
    plain = TextData(TextFiles, tokenizer, path=str(prose_file), end_of_text=False)
    for asked, expected in ((None, marked), (True, True), (False, False)):
        data = TextData(TextFiles, tokenizer, path=str(prose_file), end_of_text=asked)
        assert data.vocabulary_size == plain.vocabulary_size + expected
        assert (data.tokenizer.special_tokens is not None) == expected


def test_windows_with_marks_of_their_own_have_no_other_mark(prose_file, tmp_path):
    """Whether their tokenizer is new or that of a language model."""
    masked = MaskedTextData(TextFiles, BPE(300), Masking(), context_length=8, path=str(prose_file))
    data = TextData(TextFiles, BPE(300), path=str(prose_file))
    data.tokenizer.save(tmp_path / "tokenizer.json")
    again = MaskedTextData(TextFiles, read_tokenizer(str(tmp_path)), Masking(), context_length=8, path=str(prose_file))
    assert masked.tokenizer == again.tokenizer == data.tokenizer.own


def test_a_tokenizer_whose_marks_have_no_end_cannot_mark_it(prose_file, tmp_path):
    tokenizer = read_tokenizer(str(save("gpt2", tmp_path)))
    assert TextData(TextFiles, tokenizer, path=str(prose_file)).end_of_text
    without = replace(tokenizer, special={}, also_ends=[])
    assert not TextData(TextFiles, without, path=str(prose_file)).end_of_text
    with pytest.raises(DataError, match="this tokenizer has no end token"):
        TextData(TextFiles, without, path=str(prose_file), end_of_text=True)
