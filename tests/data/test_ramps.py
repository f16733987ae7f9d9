"""Ramps: the sizes of steps are those of the papers' formulas; the examples are those of the same order, dealt out alike however a step is split."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import (
    Character,
    DataError,
    GeometricRamp,
    LinearRamp,
    MaskedTextData,
    Masking,
    MixtureOfDenoisersData,
    Ramp,
    Ramps,
    SpanCorruptionData,
    StagedRamp,
    TextData,
    TextFiles,
)
from attnlab.data.order import ShuffledOrder, TokenBatchOrder
from attnlab.data.ramps import StepSizes
from attnlab.data.tokenizers import BPE

STARTS, STEPS = st.sampled_from([1 / 8, 0.25, 1 / 3, 0.5, 0.9]), st.integers(1, 12)
ONES_OWN = st.lists(st.tuples(st.sampled_from([0.25, 1 / 3, 0.5, 1.0]), st.integers(1, 4)), max_size=3)
RAMPS = st.one_of(
    st.just(Ramp()),
    st.builds(LinearRamp, STARTS, STEPS),
    st.builds(GeometricRamp, STARTS, STEPS),
    st.builds(StagedRamp, ONES_OWN),
)


def sizes(ramp, full, steps):
    return [ramp.size(full, step) for step in range(steps)]


# --- what a ramp says


def test_a_linear_ramp_is_the_pacing_of_sequence_length_warm_up():
    """Li et al. 2021, section 4: seqlen_t = seqlen_s + (seqlen_e - seqlen_s) min(t / T, 1), less what is left over by 8."""
    for begin, end, over in ((8, 64, 100), (64, 1024, 37)):
        ramp = LinearRamp(begin / end, over, multiple_of=8)
        wanted = [begin + (end - begin) * min(t, over) // over for t in range(over + 5)]
        assert sizes(ramp, end, over + 5) == [length - length % 8 for length in wanted]


def test_stages_are_equally_long_and_grow_by_one_amount_or_one_factor():
    assert sizes(LinearRamp(0.25, 6, 3), 16, 8) == [4, 4, 8, 8, 12, 12, 16, 16]
    assert sizes(GeometricRamp(0.125, 6, 3), 16, 8) == [2, 2, 4, 4, 8, 8, 16, 16]
    assert sizes(StagedRamp([(0.5, 1), (0.25, 2)]), 16, 5) == [8, 4, 4, 16, 16]
    assert sizes(Ramp(), 16, 2) == sizes(StagedRamp([]), 16, 2) == [16, 16]


def test_a_geometric_ramp_is_linear_in_the_examples_seen():
    """Brown et al. 2020, appendix B, grow the batch linearly over tokens."""
    full, start, steps = 1_000_000, 1 / 16, 200
    batches = np.array(sizes(GeometricRamp(start, steps), full, steps + 1), dtype=float)
    seen = np.concatenate([[0], np.cumsum(batches)])[:-1]
    line = full * start + (full - full * start) * seen / seen[-1]
    assert np.abs(batches / line - 1).max() < 1e-4


@given(ramp=RAMPS, full=st.integers(1, 300), multiple=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_sizes_are_multiples_from_the_first_up_to_the_full_one(ramp, full, multiple):
    ramp.multiple_of = multiple
    found = sizes(ramp, full, ramp.steps + 3)
    assert found[ramp.steps :] == [full] * 3
    assert all(min(full, multiple) <= size <= full for size in found)
    assert all(size % multiple == 0 or size == full for size in found)
    if isinstance(ramp, LinearRamp):
        assert found == sorted(found)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearRamp(0, 5), "start must be above 0 and at most 1, got 0"),
        (lambda: LinearRamp(0.5, 0), "steps must be at least 1, got 0"),
        (lambda: GeometricRamp(0.5, 3, 4), "stages must be at most as many as there are steps, 3, got 4"),
        (lambda: StagedRamp([[0.5, 1.5]]), r"stages must be a list of \[share"),
        (lambda: StagedRamp([[1.5, 2]]), r"stages\[0\]\[0\] must be above 0 and at most 1, got 1.5"),
    ],
)
def test_what_is_no_ramp_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@given(ramp=RAMPS, full=st.integers(1, 40), examples=st.integers(0, 900))
@settings(max_examples=80, deadline=None)
def test_steps_are_counted_as_one_by_one(ramp, full, examples):
    steps, seen, number = StepSizes(ramp, full), 0, 0
    while seen < examples:
        assert (steps.step_at(seen), steps.size(number)) == (number, ramp.size(full, number))
        assert steps.step_at(seen + steps.size(number) - 1) == number
        seen, number = seen + steps.size(number), number + 1
    assert steps.needed(examples) == number


# --- the training order


def ramped(batch_size, ramp, micro_batches=1, rank=0, world_size=1, seed=0, count=23):
    order = ShuffledOrder(count, batch_size, seed, rank, world_size)
    order.follow(ramp, micro_batches)
    return order


@given(
    ramp=RAMPS, batch_size=st.integers(1, 6), ranks=st.integers(1, 3), micro=st.integers(1, 3), seed=st.integers(0, 9)
)
@settings(max_examples=80, deadline=None)
def test_a_step_has_the_same_examples_however_it_is_split(ramp, batch_size, ranks, micro, seed):
    parts, full = ranks * micro, batch_size * ranks * micro
    if min(sizes(ramp, full, ramp.steps + 1)) < parts:
        with pytest.raises(DataError, match=rf"too few for {parts} batches"):
            ramped(batch_size, ramp, micro, 0, ranks, seed)
        return
    whole = ramped(full, ramp, seed=seed)
    split = [ramped(batch_size, ramp, micro, rank, ranks, seed) for rank in range(ranks)]
    plain = ShuffledOrder(23, full, seed)
    rows = np.concatenate([plain.draw()[0] for _ in range(ramp.steps + 4)])
    seen = 0
    for step in range(ramp.steps + 3):
        expected, numbers = whole.draw()
        dealt = [[order.draw() for order in split] for _ in range(micro)]
        for place in (0, 1):
            together = np.concatenate([drawn[place] for micro_batch in dealt for drawn in micro_batch])
            assert together.tolist() == (expected, numbers)[place].tolist()
        shares = [len(drawn[0]) for micro_batch in dealt for drawn in micro_batch]
        assert min(shares) >= 1
        assert max(shares) - min(shares) <= 1
        assert len(expected) == ramp.size(full, step)
        assert expected.tolist() == rows[seen : seen + len(expected)].tolist()  # the order without a ramp
        seen += len(expected)
        assert {order.seen for order in (whole, *split)} == {seen}
        assert {order.step for order in (whole, *split)} == {step}


@given(ramp=RAMPS, stop=st.integers(0, 15), micro=st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_a_saved_position_goes_on_within_a_ramp(ramp, stop, micro):
    if min(sizes(ramp, 8 * micro, ramp.steps + 1)) < micro:
        return
    order, resumed = ramped(8, ramp, micro), ramped(8, ramp, micro)
    for _ in range(stop * micro):
        order.draw()
    resumed.load_state_dict(order.state_dict())
    for _ in range(4 * micro):
        assert [x.tolist() for x in resumed.draw()] == [x.tolist() for x in order.draw()]
        assert resumed.step == order.step


def test_batches_by_length_follow_no_ramp():
    order = TokenBatchOrder(np.full(9, 3), 12)
    order.follow(Ramp())
    with pytest.raises(DataError, match="TokenBatchOrder has no batches of a fixed number of examples"):
        order.follow(LinearRamp(0.5, 3))


# --- windows of a text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ramps")
    draw = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"]
    (folder / "text.txt").write_text(" ".join(draw.choice(words, 3000)))
    return folder


def made(kind, folder, length=16, batch_size=6):
    given = {"cache": str(folder / "cache"), "path": str(folder / "text.txt"), "batch_size": batch_size}
    given["context_length"] = length
    match kind:
        case "text":
            return TextData(TextFiles, Character(), **given)
        case "spans":
            return SpanCorruptionData(TextFiles, BPE(vocabulary_size=300), **given)
        case "ul2":
            return MixtureOfDenoisersData(TextFiles, BPE(vocabulary_size=300), **given)
    masks = "static" if kind == "static" else "dynamic"
    return MaskedTextData(TextFiles, Character(), Masking(0.3), masks, next_sentence=kind == "pairs", **given)


def terms(batch):
    """The terms of the loss, as the tasks count them."""
    if "chosen" in batch:
        return int(batch["chosen"].sum())
    return int(batch["is_target"].sum()) if "is_target" in batch else batch["targets"].numel()


def test_windows_are_cut_to_their_first_tokens(folder):
    data, whole = made("text", folder), made("text", folder)
    data.ramps = Ramps(length=StagedRamp([(0.25, 2), (0.5, 1)]))
    for length, batch, full in zip((4, 4, 8, 16, 16), data.train_dataloader(), whole.train_dataloader(), strict=False):
        for name in ("tokens", "targets"):
            assert torch.equal(batch[name], full[name][:, :length])


@pytest.mark.parametrize("kind", ["text", "masked", "static", "pairs", "spans", "ul2"])
def test_the_tokens_of_steps_are_those_that_their_batches_have(kind, folder):
    data = made(kind, folder)
    data.ramps = Ramps(GeometricRamp(0.25, 3), LinearRamp(0.25, 4))
    batches = [next(loader) for loader in [iter(data.train_dataloader())] for _ in range(6)]
    counted = [terms(batch) for batch in batches]
    assert len(set(counted[:4])) == 4
    told = data.tokens_of_steps(6, 1)
    if kind == "ul2":  # whose windows are corrupted in one of several ways: a mean
        assert sum(counted) == pytest.approx(sum(told), rel=0.3)
        assert told[-1] == data.tokens_per_step(1)
        return
    assert counted == told
    assert data.tokens_in(6, 1) == sum(told)
    assert data.tokens_in(40, 1) - data.tokens_in(39, 1) == data.tokens_per_step(1)


@pytest.mark.parametrize("kind", ["masked", "static", "pairs", "spans", "ul2"])
def test_a_cut_window_is_the_one_of_data_of_that_length(kind, folder):
    """Masks, noise and special tokens included: what is trained on at first is what such data would be."""
    data, short = made(kind, folder), made(kind, folder, 8)
    data.ramps = Ramps(length=StagedRamp([(0.5, 2)]))
    order, text = data.order(), data.corpus.train.tokens
    for batch in [next(loader) for loader in [iter(data.train_dataloader())] for _ in range(2)]:
        expected = short.collate(text, *order.draw())
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_evaluation_and_the_example_batch_are_of_full_size(folder):
    data, plain = made("text", folder), made("text", folder)
    data.ramps = Ramps(LinearRamp(0.25, 9), LinearRamp(0.25, 9))
    assert torch.equal(data.example_batch()["tokens"], plain.example_batch()["tokens"])
    assert [b["tokens"].shape for b in data.val_dataloader()] == [b["tokens"].shape for b in plain.val_dataloader()]
    assert len(next(iter(data.train_dataloader()))["tokens"]) == 1


def test_so_many_steps_are_so_many_epochs(folder):
    data = made("text", folder)
    data.ramps = Ramps(LinearRamp(0.25, 40), LinearRamp(0.5, 5))
    count = data.order().count
    for accumulated, ranks in ((1, 1), (2, 1), (1, 3)):
        steps = data.steps_in(2, accumulated, ranks)
        full = data.batch_size * accumulated * ranks
        taken = [data.ramps.batch.size(full, step) for step in range(steps)]
        assert sum(taken[:-1]) < 2 * count <= sum(taken)


def test_what_cannot_be_cut_or_shared_out_is_refused(folder):
    data = made("masked", folder)
    data.ramps = Ramps(length=LinearRamp(0.1, 9))
    with pytest.raises(DataError, match=r"length_ramp: windows of 1 tokens are too short .* 2 tokens or more"):
        data.setup()
    data = made("text", folder, batch_size=1)
    data.ramps = Ramps(LinearRamp(0.25, 9))
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, accumulate_grad_batches=4)
    with pytest.raises(DataError, match="batch_ramp: a step of 2 examples is too few for 8 batches"):
        data.train_dataloader()
