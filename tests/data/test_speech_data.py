"""Batches of speech: features and tokens of each recording, the same for any number of ranks, resumable; what does not fit
is counted."""

import wave
from functools import partial

import numpy as np
import pytest
import torch
from tests.data.loading import place, take
from tests.speech_files import sentence, tones, write_folder, write_recording

from attnlab.data import Character, DataError, LogMel, SpeechAugmentation, SpeechData, SpeechFiles
from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import END, PAD, START

COUNTS = {"train": 12, "validation": 3, "test": 4}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "speech", COUNTS)


def data(folder, **fields):
    given = {"seconds": 0.6, "max_length": 24, "batch_size": 4, "path": str(folder)}
    module = SpeechData(SpeechFiles, Character(), **given | fields)
    module.setup()
    return module


def assert_same(batch, other):
    assert set(batch) == set(other)
    for name in batch:
        torch.testing.assert_close(batch[name], other[name], rtol=0, atol=1e-6)


def test_a_batch_is_what_is_heard_and_said(folder):
    module = data(folder)
    (batch,) = module.evaluation_loader("test")
    order = batch["ids"].tolist()
    assert sorted(order) == [0, 1, 2, 3]
    numbers = [15 + row for row in order]
    texts = [sentence(number, 1 + number % 3) for number in numbers]
    assert [module.references("test")[row] for row in order] == texts
    torch.testing.assert_close(
        batch["features"], LogMel(80, 0.6)([tones(text) for text in texts]), atol=0.15, rtol=0
    )  # 16 bits a sample
    for row, text in enumerate(texts):
        tokens = module.vocabulary.encode_text(text).tolist()
        assert batch["tokens_in"][row].tolist() == [
            START,
            *tokens,
            *[PAD] * (batch["tokens_in"].shape[1] - len(tokens) - 1),
        ]
        assert [token for token in batch["targets"][row].tolist() if token != IGNORED] == [*tokens, END]
        assert module.decode_target(batch["targets"][row].clamp(min=0).tolist()) == text


def test_dims_and_facts(folder):
    module = data(folder, num_mels=40)
    dims = module.dims()
    assert {name: dims[name] for name in ("num_mels", "num_frames", "max_length")} == {
        "num_mels": 40,
        "num_frames": 60,
        "max_length": 24,
    }
    assert dims["vocabulary_size"] == module.vocabulary.size
    assert set(module.placeholder_dims()) == set(dims)
    assert module.facts()["recordings"] == COUNTS
    assert "recordings train 12, validation 3, test 4" in module.describe()
    assert module.train_tokens == sum(len(module.vocabulary.encode_text(t)) + 1 for t in module.references("train"))


AUGMENTED = SpeechAugmentation((0.9, 1.0, 1.1), 1, 20, 1, 20, 0.5)


def test_two_ranks_see_what_one_sees_at_once(folder):
    (whole,) = take(place(data(folder, batch_size=8, augmentation=AUGMENTED)), 1)
    halves = [take(place(data(folder, augmentation=AUGMENTED), rank, 2), 1)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([half["ids"] for half in halves]), whole["ids"])
    torch.testing.assert_close(torch.cat([half["features"] for half in halves]), whole["features"], rtol=0, atol=1e-6)


def test_a_training_goes_on_where_it_stopped(folder):
    module = data(folder, augmentation=AUGMENTED)
    loader = iter(module.train_dataloader())
    for _ in range(2):
        next(loader)
    state = module.state_dict()
    expected = [next(loader) for _ in range(4)]
    resumed = data(folder, augmentation=AUGMENTED)
    resumed.load_state_dict(state)
    for batch, other in zip(take(resumed, 4), expected, strict=True):
        assert_same(batch, other)


def test_what_does_not_fit_is_left_out_of_training_and_cut_where_it_is_scored(folder):
    long, wordy = "one two three four five", "five five five five five"
    for part in ("train", "test"):
        write_recording(folder / part / "long.wav", long).with_suffix(".txt").write_text("one")
        write_recording(folder / part / "wordy.wav", "one").with_suffix(".txt").write_text(wordy)
        (folder / part / "silent.txt").write_text("one")
        with wave.open(str(folder / part / "silent.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
    module = data(folder, max_length=18)
    assert module.split("train").counts == {
        "without transcript, left out": 0,
        "without sound, left out": 1,
        "longer than the window, left out": 1,
        "transcript over data.max_length, left out": 1,
    }
    test = module.split("test")
    assert len(module.split("train")) == 12
    assert len(test) == 6
    assert test.counts["longer than the window, cut"] == test.counts["transcript over data.max_length, cut"] == 1
    assert wordy in module.references("test")
    assert max(map(len, test.targets)) == 18
    batches = list(module.evaluation_loader("test"))
    assert max(batch["tokens_in"].shape[1] for batch in batches) == 18
    assert "without sound, left out in train: 1" in module.describe()


def test_every_form_of_recording_becomes_the_same_window(folder):
    write_recording(folder / "test" / "0015.wav", sentence(15, 1), rate=8000)
    features = {
        row: f
        for b in data(folder).evaluation_loader("test")
        for row, f in zip(b["ids"].tolist(), b["features"], strict=True)
    }
    expected = LogMel(80, 0.6)([tones(sentence(15, 1), 8000).repeat(2)])[0]
    loudest = features[0].argmax() // features[0].shape[1]
    assert loudest == expected.argmax() // expected.shape[1]


def test_the_second_start_reads_what_the_first_has_decoded(folder, monkeypatch):
    first = data(folder)
    monkeypatch.setattr("attnlab.data.audio._decoded", lambda *given: pytest.fail("decoded again"))
    second = data(folder)
    assert second.fingerprint == first.fingerprint
    assert_same(take(second, 1)[0], take(first, 1)[0])


def test_a_damaged_recording_is_named(folder):
    (folder / "train" / "0003.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"0003\.wav cannot be read as audio"):
        data(folder)


def test_a_part_of_which_nothing_is_left_says_why(tmp_path):
    folder = write_folder(tmp_path, COUNTS)
    with pytest.raises(DataError, match=r"no recordings in a split 'train' \(longer than the window, left out: 12\)"):
        data(folder, seconds=0.1)


def test_noises_differ_between_epochs_and_not_between_runs(folder):
    epochs = [take(data(folder, augmentation=AUGMENTED, batch_size=12), 2) for _ in range(2)]
    assert_same(epochs[0][0], epochs[1][0])
    rows = [batch["ids"].argsort() for batch in epochs[0]]
    first, second = (batch["features"][order] for batch, order in zip(epochs[0], rows, strict=True))
    assert not torch.equal(first, second)
    plain = partial(data, folder, batch_size=12)
    again = [batch["features"][batch["ids"].argsort()] for batch in take(plain(), 2)]
    assert np.array_equal(*again)
