"""Recordings: whatever a file holds, its samples are mono at 16 kHz, or one message says what is wrong."""

import io
import wave

import numpy as np
import pytest
import soundfile

from attnlab.data import DataError
from attnlab.data.audio import RATE, Clip, from_int16, quietest, read_audio, resampled, to_int16


def tone(rate, seconds=0.25, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_width_of_a_sample_is_the_same_sound(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE, subtype=subtype)
    np.testing.assert_allclose(
        read_audio(tmp_path / "a.wav"), tone(RATE), atol=2**-7 if subtype == "PCM_U8" else 2**-14
    )


def test_flac_is_read_without_loss(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "a.flac", read_audio(tmp_path / "a.wav"), RATE, subtype="PCM_16")
    assert np.array_equal(read_audio(tmp_path / "a.flac"), read_audio(tmp_path / "a.wav"))


def test_python_reads_the_same_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE, subtype="PCM_16")
    with wave.open(str(tmp_path / "a.wav")) as file:
        theirs = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert np.array_equal(read_audio(tmp_path / "a.wav"), theirs.astype(np.float32) / 32768)


def test_channels_become_their_mean(tmp_path):
    left, right = tone(RATE), tone(RATE, hertz=1000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_another_rate_is_the_same_tone_at_16_khz(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    found = read_audio(tmp_path / "a.wav")
    assert len(found) == RATE // 4
    middle = slice(400, -400)  # the filter rings where a sound begins and ends
    np.testing.assert_allclose(found[middle], tone(RATE)[middle], atol=2e-3)


def test_what_a_lower_rate_cannot_hold_is_filtered_out():
    assert np.abs(resampled(tone(48_000, hertz=12_000), 48_000)[400:-400]).max() < 1e-3


def test_a_file_of_no_length_has_no_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 8000)
    assert read_audio(tmp_path / "a.wav").shape == (0,)


def test_text_named_wav_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("Hello, I am no sound.")
    with pytest.raises(DataError, match=r"a\.wav cannot be read as audio .*; accepted: \.wav, \.flac.* take it out"):
        read_audio(tmp_path / "a.wav")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.wav does not exist"):
        read_audio(tmp_path / "nothing.wav")


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"NaN or inf"):
        read_audio(tmp_path / "a.wav")


def test_the_three_kinds_of_clips_hear_the_same(tmp_path):
    samples = to_int16(tone(RATE))
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    (tmp_path / "a.wav").write_bytes(file.getvalue())
    clips = [Clip.of_file(tmp_path / "a.wav"), Clip.of_bytes("row 1", file.getvalue()), Clip.of_samples("x", samples)]
    for clip in clips:
        np.testing.assert_allclose(clip.read(), tone(RATE), atol=1e-4)
    assert clips[0].digest() == clips[1].digest() != clips[2].digest()


def test_samples_of_16_bits_are_kept_and_louder_ones_cut():
    levels = np.arange(-32767, 32768, 111, dtype=np.int16)
    assert np.array_equal(to_int16(from_int16(levels)), levels)
    assert to_int16(np.array([-2.0, 2.0])).tolist() == [-32767, 32767]


def test_the_quietest_place_is_found():
    sound = np.ones(RATE)
    sound[9000:11000] = 0.01
    assert 9000 <= quietest(sound, 2000, 15_000) <= 11_000
