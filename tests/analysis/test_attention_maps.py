"""Maps are the weights that the model computes with, and the picture shows them where they are."""

import numpy as np
import torch

from attnlab.analysis.attention_maps import GAP, SIDE, attention_maps, picture
from attnlab.layers import ALiBi
from attnlab.models import GPT, RecurrentLanguageModel


def make_model():
    torch.manual_seed(0)
    return GPT(vocabulary_size=11, max_length=8, num_layers=2, d_model=16, num_heads=4, position=ALiBi).eval()


def test_maps_are_the_softmax_of_the_models_own_scores_and_leave_it_as_it_was():
    model = make_model()
    tokens_BT = torch.randint(11, (3, 6))
    backends = [layer.attention.backend for layer in model.stack.layers]
    inputs = []
    handle = model.stack.layers[0].attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    maps = attention_maps(model, lambda: model(tokens_BT))
    handle.remove()
    assert list(maps) == ["stack.layers.0.attention", "stack.layers.1.attention"]
    assert [layer.attention.backend for layer in model.stack.layers] == backends

    attention = model.stack.layers[0].attention
    q_HTK, k_HTK = (attention._heads(part(inputs[0]), 4)[0] for part in (attention.query, attention.key))
    distance_TS = torch.arange(6)[None, :] - torch.arange(6)[:, None]
    slopes_H = 2.0 ** -(8.0 / 4 * torch.arange(1, 5))
    scores_HTS = q_HTK @ k_HTK.transpose(1, 2) / 2 + slopes_H[:, None, None] * distance_TS
    expected_HTS = scores_HTS.masked_fill(distance_TS > 0, float("-inf")).softmax(dim=-1)
    torch.testing.assert_close(maps["stack.layers.0.attention"], expected_HTS, atol=1e-6, rtol=0)


def test_a_failing_forward_leaves_the_backends_as_they_were():
    model = make_model()
    before = model.stack.layers[0].attention.backend
    try:
        attention_maps(model, lambda: 1 / 0)
    except ZeroDivisionError:
        assert model.stack.layers[0].attention.backend == before
    else:
        raise AssertionError("the error was swallowed")


def test_a_model_without_heads_has_no_maps():
    model = RecurrentLanguageModel(vocabulary_size=11, num_layers=1, d_model=8)
    assert attention_maps(model, lambda: model(torch.zeros(1, 3, dtype=torch.long))) == {}


def test_the_picture_is_dark_where_a_query_attends():
    eye, flat = torch.eye(2)[None], torch.full((1, 2, 2), 0.5)
    drawn = picture({"a": torch.cat([eye, flat]), "b": torch.cat([flat, eye])})
    assert drawn.caption == "rows: a, b; columns: heads"
    assert drawn.pixels_HW.shape == (2 * SIDE + GAP, 2 * SIDE + GAP)
    half, second = SIDE // 2, SIDE + GAP
    first = drawn.pixels_HW[:SIDE, :SIDE]
    assert (first[:half, :half] == 0).all()
    assert (first[:half, half:] == 255).all()
    assert (drawn.pixels_HW[:SIDE, second:] == 0).all()
    assert (drawn.pixels_HW[SIDE:second] == 255).all()
    np.testing.assert_array_equal(drawn.pixels_HW[second:, second:], first)
