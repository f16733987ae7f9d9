"""Receptive fields of stacks: counted by gradients as the formula says, whatever the residual, the attention and the weights are."""

from functools import partial

import pytest
import torch

from attnlab.inspection.positions import Field, fields_of
from attnlab.layers import (
    ALiBi,
    DeepNorm,
    GroupedQuery,
    MultiHead,
    Parallel,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReZero,
    Sandwich,
)
from attnlab.models import (
    GPT,
    Bert,
    ConvolutionalEncoder,
    ConvolutionalLanguageModel,
    EncoderDecoder,
    RecurrentLanguageModel,
)
from attnlab.report.figures.inspection import fields_figure
from attnlab.report.figures.style import paper_style

SIZES = {"vocabulary_size": 20, "max_length": 16, "d_model": 16, "num_heads": 2}


def reached_by(model, length):
    """L (w - 1) + 1 positions before and at the last one, or on both sides of the middle one."""
    (field,) = fields_of(model, length)
    assert field.counted == field.expected
    return field


@pytest.mark.parametrize("window", [1, 2, 5])
def test_causal_windows_add_up(window):
    field = reached_by(GPT(**SIZES, num_layers=3, attention=partial(MultiHead, window=window)), 40)
    assert field.counted == [layers * (window - 1) + 1 for layers in (1, 2, 3)]
    assert field.reached[2] == [position > 39 - field.counted[2] for position in range(40)]


def test_windows_on_both_sides_end_where_the_text_ends():
    field = reached_by(Bert(**SIZES, num_layers=3, attention=partial(MultiHead, window=4), position=ALiBi), 11)
    assert field.at == 5
    assert field.counted == [7, 11, 11]


@pytest.mark.parametrize("residual", [PreNorm, PostNorm, Sandwich, DeepNorm, ReZero, Parallel])
def test_no_residual_and_no_gate_changes_what_is_reached(residual):
    attention = partial(GroupedQuery, window=3, output_gate=True, qk_norm=True)
    model = GPT(**SIZES, num_layers=2, residual=residual, attention=attention, position=RelativeBias)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert reached_by(model, 12).counted == [3, 5]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_causal_kernels(kernel):
    field = reached_by(ConvolutionalLanguageModel(20, d_model=8, num_layers=3, kernel_size=kernel), 24)
    assert field.counted == [layers * (kernel - 1) + 1 for layers in (1, 2, 3)]


def test_kernels_around_their_position():
    assert reached_by(ConvolutionalEncoder(20, 64, d_model=8, num_layers=3, kernel_size=5), 32).counted == [5, 9, 13]


def test_both_stacks_of_an_encoder_decoder():
    encoder, decoder = fields_of(EncoderDecoder(20, 20, d_model=16, num_heads=2, num_layers=2), 10)
    assert (encoder.counted, decoder.counted) == ([10, 10], [10, 10])
    assert (encoder.at, decoder.at) == (5, 9)


def test_by_default_the_whole_field_is_seen():
    (field,) = fields_of(GPT(**SIZES, num_layers=3, attention=partial(MultiHead, window=9)))
    assert len(field.reached[0]) > field.counted[-1] == 25


def test_a_recurrence_has_no_stack_and_one_position_is_too_few():
    assert fields_of(RecurrentLanguageModel(20, d_model=8)) == []
    with pytest.raises(ValueError, match="accepted are 2 or more"):
        fields_of(GPT(**SIZES, num_layers=1), 1)


def test_the_picture_shows_each_layer_and_its_count():
    field = Field(
        "stack", "attention in a window of 2", 3, 1, 0, [[False, False, True, True], [False, True, True, True]]
    )
    with paper_style():
        figure = fields_figure([("a_$b$", field)])
        figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.collections[0].get_array().reshape(2, 4).astype(bool).tolist() == field.reached
    assert [text.get_text() for text in axes.texts] == ["2", "3"]
    assert axes.get_title() == "a_$b$: attention in a window of 2"
