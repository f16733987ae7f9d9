"""The front end against transformers' feature extractor, and augmentation that belongs to an example of its epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from attnlab.data import DataError, LogMel, SpeechAugmentation
from attnlab.data.audio import RATE
from attnlab.data.log_mel import at_speed, mel_filters, stretches


def noises(*seconds, seed=0):
    random = np.random.default_rng(seed)
    return [(0.1 * random.standard_normal(round(RATE * length))).astype(np.float32) for length in seconds]


@pytest.mark.parametrize("num_mels", [80, 128])
def test_features_are_those_of_transformers(num_mels):
    clips = [*noises(0.4, 1.0), np.zeros(3000, dtype=np.float32)]
    theirs = WhisperFeatureExtractor(feature_size=num_mels)
    theirs.n_samples = 2 * RATE
    expected = theirs(clips, sampling_rate=RATE, max_length=2 * RATE, return_tensors="np").input_features
    np.testing.assert_allclose(LogMel(num_mels, 2.0)(clips), expected, atol=1e-4)
    np.testing.assert_allclose(mel_filters(num_mels), theirs.mel_filters.T, atol=1e-12)


def test_a_whole_window_of_30_seconds_is_that_of_transformers():
    clips = noises(31.0)
    expected = WhisperFeatureExtractor()(clips, sampling_rate=RATE, return_tensors="np").input_features
    found = LogMel()(clips)
    assert found.shape == (1, 80, 3000)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_clip_has_the_same_features_whatever_is_beside_it():
    log_mel, clips = LogMel(80, 1.0), noises(0.3, 0.9, 1.0)
    together = log_mel(clips)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(log_mel([clip])[0], together[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.01, 0.015, 2.505, 1.01])
def test_a_window_is_an_even_number_of_frames(seconds):
    with pytest.raises(DataError, match=r"data\.seconds must be a whole number of 0\.02 seconds"):
        LogMel(80, seconds)


AUGMENTED = SpeechAugmentation((0.9, 1.0, 1.1), 2, 20, 2, 30, 0.5)


def augmented(clips, rows, epochs):
    clips = AUGMENTED.perturbed(clips, RATE, rows, 3, epochs)
    lengths = np.array([len(clip) // 160 for clip in clips])
    return clips, AUGMENTED.masked(LogMel(80, 1.0)(clips), lengths, rows, 3, epochs)


def test_an_example_of_its_epoch_is_drawn_the_same_in_any_batch():
    clips, rows, epochs = noises(0.5, 0.6, 0.7, 0.8), np.array([4, 9, 2, 7]), np.array([0, 0, 1, 1])
    together, features = augmented(clips, rows, epochs)
    for half in (slice(0, 1), slice(1, 4)):
        alone, its = augmented(clips[half], rows[half], epochs[half])
        assert all(np.array_equal(a, b) for a, b in zip(alone, together[half], strict=True))
        torch.testing.assert_close(its, features[half], rtol=0, atol=1e-6)
    assert not torch.equal(augmented(clips, rows, epochs + 1)[1], features)


def test_a_speed_changes_tempo_and_pitch_and_fits_into_the_window():
    tone = np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE).astype(np.float32)
    fast = at_speed(tone, 1.25, RATE)
    assert len(fast) == RATE * 4 // 5
    assert np.abs(np.fft.rfft(fast)).argmax() / len(fast) * RATE == pytest.approx(625)
    assert len(at_speed(tone, 0.9, RATE)) == RATE  # slower, it would not fit
    assert len(at_speed(tone, 0.9, 2 * RATE)) == pytest.approx(RATE / 0.9, abs=1)


def test_hidden_cells_have_the_mean_and_the_others_stay():
    features = LogMel(80, 1.0)(noises(1.0, 1.0))
    masked = AUGMENTED.masked(features, np.array([100, 100]), np.arange(2), 0, 0)
    hidden = masked != features
    for row in range(2):
        assert 0 < hidden[row].float().mean() < 1
        torch.testing.assert_close(masked[row][hidden[row]], features[row].mean().expand(int(hidden[row].sum())))
        bands, frames = hidden[row].all(dim=1), hidden[row].all(dim=0)
        assert bands.sum() <= 40  # two masks of at most 20 bins
        assert frames.sum() <= 60  # and two of at most 30 frames
        assert torch.equal(hidden[row], bands[:, None] | frames[None])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.999999), st.floats(0, 0.999999)), min_size=1, max_size=5),
    st.integers(0, 12),
    st.integers(1, 20),
)
def test_a_stretch_is_no_wider_than_allowed_and_lies_inside(draws, widest, length):
    found = stretches(np.array(draws), np.full(len(draws), widest), np.full(len(draws), length), 24)
    for (width, _), row in zip(draws, found, strict=True):
        places = torch.nonzero(row)[:, 0].tolist()
        assert places == list(range(places[0], places[-1] + 1)) if places else True
        assert len(places) <= min(widest, int(width * (widest + 1)))
        assert widest > length or all(place < length for place in places)


def test_every_width_is_as_probable():
    draws = (np.arange(1000) + 0.5) / 1000
    found = stretches(np.stack([draws, draws], axis=1), np.full(1000, 4), np.full(1000, 50), 50)
    assert torch.bincount(found.sum(dim=1)).tolist() == [200] * 5


def test_augmentation_that_does_nothing_changes_nothing():
    clips = noises(0.5)
    plain = SpeechAugmentation()
    assert plain.perturbed(clips, RATE, np.array([0]), 0, 0)[0] is clips[0]
    features = LogMel(80, 1.0)(clips)
    assert torch.equal(plain.masked(features, np.array([50]), np.array([0]), 0, 0), features)


def test_a_list_of_no_speed_is_refused():
    with pytest.raises(DataError, match=r"augmentation\.speeds must be one speed or more"):
        SpeechAugmentation(speeds=())
