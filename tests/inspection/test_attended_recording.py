"""What a model that hears attends to: seconds along one side, the words along the other, and both over the spectrogram."""

import pytest
import torch
from tests.speech_files import tones

from attnlab.data import Character, LogMel
from attnlab.data.special_tokens import START
from attnlab.data.speech_data import whisper_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.inspection.attended import read_recording
from attnlab.inspection.attention_maps import CROSS, DECODER, ENCODER, layer_maps
from attnlab.inspection.heads import head_scores
from attnlab.models import Whisper
from attnlab.report.figures.attention import write_figures


@pytest.fixture
def heard():
    """Reads a recording of three words, with what is said in it or without."""
    torch.manual_seed(0)
    tokenizer = Character().train("one two three four five ")
    vocabulary = Vocabulary(tokenizer)
    model = Whisper(vocabulary.size, 20, 60, 16, d_model=16, num_heads=2, num_layers=2)
    tokens, features = whisper_tokens(tokenizer, vocabulary.size), LogMel(20, 0.6)([tones("one two three")])[0]

    def read(said=None):
        return model, read_recording(model, vocabulary, tokens, features, said, "a.wav")

    return read


def test_the_maps_are_those_of_the_forward_pass_on_what_is_said(heard):
    model, found = heard("one two")
    features, target = found.tokens
    assert target[0, 0] == START
    maps = {(one.kind, one.layer): one.weights_HTS for one in layer_maps(model, lambda: model(features, target))}
    for one in found.maps:
        if (one.kind, one.layer) in maps:
            torch.testing.assert_close(one.weights_HTS, maps[one.kind, one.layer])
    queries, keys = found.axes[CROSS]
    assert queries.labels == ["[start]", "\u2423", *"one\u2423two"]  # a text stands behind a blank
    assert (keys.labels[0], keys.labels[-1], len(keys)) == ("0.00", "0.58", 30)
    assert found.of_kind(CROSS)[0].weights_HTS.shape == (2, 9, 30)
    assert {ENCODER, DECODER, CROSS} <= set(found.kinds)
    assert found.title == "a.wav: one two"


def test_without_a_target_it_is_what_the_model_hears(heard):
    _, found = heard()
    assert len(found.axes[CROSS][0]) == found.tokens[1].shape[1]
    assert found.tokens[1][0, 0] == START
    assert torch.equal(found.targets_T[:-1], found.tokens[1][0, 1:])


def test_a_target_over_the_table_is_refused(heard):
    with pytest.raises(
        ValueError, match=r"the target takes 20 positions, marks included, and the model's table has 16"
    ):
        heard("one two three four")


@pytest.mark.slow
def test_the_figures_have_the_spectrogram(heard, tmp_path):
    _, found = heard("one two")
    files = write_figures(tmp_path, found, head_scores([found]))
    assert "cross_over_spectrogram.pdf" in {file.name for file in files}
