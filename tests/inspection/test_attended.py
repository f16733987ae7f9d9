"""A model is given a text as it was trained to see it; what does not fit is told."""

import re

import numpy as np
import pytest
import torch

from attnlab.data import Character
from attnlab.generation.beam import BeamSearch
from attnlab.inspection import attended
from attnlab.inspection.attended import Reader, read_image
from attnlab.inspection.attention_maps import CROSS, DECODER, ENCODER, SELF
from attnlab.layers import Learned
from attnlab.models import (
    GPT,
    Bert,
    ConvolutionalLanguageModel,
    EncoderDecoder,
    RecurrentSeq2Seq,
    T5LanguageModel,
    ViT,
)  # fmt: skip
from attnlab.models.heads import SequenceClassifier

LETTERS = Character(alphabet=" abcdefg")
PLAIN, MARKED = 8, 13  # tokens, without and with the five marks
SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 1}


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def test_a_causal_model_sees_the_text_alone_and_predicts_what_follows():
    found = Reader(shaken(GPT(PLAIN, 8, **SMALL)), LETTERS).read("bad")
    assert found.tokens[0].tolist() == [[2, 1, 4]]
    assert found.targets_T.tolist() == [1, 4, -1]
    assert found.kinds == [SELF, "rollout"]
    assert found.axes[SELF][0].labels == ["b", "a", "d"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_encoder_sees_marks_around_it_after_a_blank(wrapped):
    encoder = Bert(MARKED, 8, dropout=0.0, **SMALL)
    model = shaken(SequenceClassifier(encoder, 2) if wrapped else encoder)
    found = Reader(model, LETTERS).read("bad")
    assert found.tokens[0].tolist() == [[1, 5, 7, 6, 9, 2]]
    assert found.axes[SELF][0].labels == ["[start]", "␣", "b", "a", "d", "[end]"]
    assert found.targets_T is None


@pytest.mark.parametrize("own_source", [False, True])
def test_a_translator_sees_source_and_target_in_their_vocabularies(own_source):
    source = Character(alphabet="abcdefg ") if own_source else None
    model = shaken(EncoderDecoder(MARKED, max_length=16, dropout=0.0, **SMALL, share_embeddings=not own_source))
    found = Reader(model, LETTERS, source).read(" bad ", "dab")
    assert found.tokens[0].tolist() == [[12, 6, 5, 8, 2] if own_source else [5, 7, 6, 9, 2]]
    assert found.tokens[1].tolist() == [[1, 5, 9, 6, 7]]
    assert found.targets_T.tolist() == [5, 9, 6, 7, 2]
    assert found.axes[CROSS][0].labels == ["[start]", "␣", "d", "a", "b"]
    assert found.axes[CROSS][1].labels[-1] == "[end]"
    assert found.title == "bad → dab"
    (cross,) = found.of_kind(CROSS)
    assert cross.weights_HTS.shape == (2, 5, 5)


def test_a_target_that_is_not_given_is_what_the_search_finds():
    model = shaken(EncoderDecoder(MARKED, max_length=16, dropout=0.0, **SMALL))
    found = Reader(model, LETTERS, search=BeamSearch(num_beams=1, max_extra_length=3)).read("bad")
    from attnlab.generation.beam import decode

    greedy = decode(model, found.tokens[0], search=BeamSearch(num_beams=1, max_extra_length=3), never=(0, 1, 3, 4))[0][
        0
    ].tokens
    assert found.tokens[1].tolist() == [[1, *greedy]]
    assert found.title.endswith("(the model's own)")


def test_one_stack_that_reads_both_has_one_axis_and_sentinels_are_what_the_vocabulary_leaves_over():
    model = shaken(T5LanguageModel(MARKED + 3, dropout=0.0, **SMALL))
    found = Reader(model, LETTERS).read("ab", "ba")
    assert found.tokens[0].tolist() == [[8, 9, 10, 2]]
    axis = found.axes[SELF][0]
    assert axis.labels == ["␣", "a", "b", "[end]", "[start]", "␣", "b", "a"]
    assert found.of_kind(SELF)[0].weights_HTS.shape == (2, 8, 8)


REFUSED = {
    "empty": (lambda: GPT(PLAIN, 8, **SMALL), ("",), "the text '' has no token"),
    "too long": (lambda: GPT(PLAIN, 8, **SMALL, position=Learned), ("abcdefgab",), "takes 9 positions, marks included, and the model's table has 8; shorten it by 1"),
    "unknown": (lambda: GPT(PLAIN, 8, **SMALL), ("abx",), "the character 'x' (U+0078) is not in the alphabet"),
    "target": (lambda: GPT(PLAIN, 8, **SMALL), ("a", "b"), "GPT reads one text; a target belongs to a sequence-to-sequence model"),
    "image model": (lambda: ViT(2, 8, **SMALL), ("a",), "ViT reads no text"),
    "no attention": (lambda: ConvolutionalLanguageModel(PLAIN, d_model=8, num_layers=1), ("a",), "ConvolutionalLanguageModel has no attention to show: a convolution"),
    "one vector": (lambda: RecurrentSeq2Seq(MARKED, d_model=8, attention="none"), ("a", "b"), "RecurrentSeq2Seq has no attention to show: with model.attention=none its decoder"),
    "another tokenizer": (lambda: Bert(9, 8, **SMALL), ("a",), "the tokenizer has 13 tokens with its marks, the model 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_told(name):
    make, words, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        Reader(make().eval(), LETTERS).read(*words)


def test_more_weights_than_memory_is_meant_to_hold_are_refused(monkeypatch):
    monkeypatch.setattr(attended, "MOST_WEIGHTS", 50)
    model = shaken(GPT(PLAIN, 8, **SMALL))
    assert Reader(model, LETTERS).read("abcde").of_kind(SELF)
    with pytest.raises(
        ValueError, match=r"6 tokens give up to 72 attention weights in 2 heads; accepted: 50, which are 5 tokens"
    ):
        Reader(model, LETTERS).read("abcdef")


def test_an_image_is_normalised_and_kept_as_it_is():
    model = shaken(ViT(2, 8, 1, patch_size=4, pooling="class", registers=1, **SMALL))
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    found = read_image(model, pixels, np.array([0.5]), np.array([0.25]), "a.png")
    torch.testing.assert_close(found.tokens[0][0, 0, 0, 1], torch.tensor((1 / 255 - 0.5) / 0.25))
    assert found.pixels_YXC.shape == (8, 8, 3)
    assert found.pixels_YXC[0, 5].tolist() == [5, 5, 5]
    assert found.axes[SELF][0].labels == ["[class]", "[register 1]", "1.1", "1.2", "2.1", "2.2"]
    assert found.of_kind("rollout")[0].weights_HTS.shape == (1, 6, 6)


def test_convolutional_and_recurrent_translators_have_cross_attention():
    model = shaken(RecurrentSeq2Seq(MARKED, d_model=8, num_layers=1, dropout=0.0))
    found = Reader(model, LETTERS).read("bad", "dab")
    assert found.kinds == [CROSS]
    assert DECODER in found.axes
    assert ENCODER in found.axes


def test_a_model_in_training_is_looked_at_without_dropout_and_goes_on_training():
    model = shaken(GPT(PLAIN, 8, dropout=0.5, **SMALL))
    expected = Reader(model, LETTERS).read("bad").maps[0].weights_HTS
    model.train()
    assert torch.equal(Reader(model, LETTERS).read("bad").maps[0].weights_HTS, expected)
    assert model.training
    assert model.stack.training
