"""What the heads of a model attend to: maps against the formula, rollouts, and the tokens along both sides."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from tests.inspection.planted import causal, map_of, uniform

from attnlab.data import Byte, Character
from attnlab.data.special_tokens import SpecialTokens, leading_special_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.inspection.attention_maps import (
    CROSS,
    DECODER,
    ENCODER,
    GAP,
    SELF,
    SIDE,
    attention_maps,
    joined,
    layer_maps,
    name_marks,
    output_axis,
    patch_axis,
    picture,
    rollout,
    text_axis,
    visible,
    with_rollouts,
)
from attnlab.layers import (
    ALiBi,
    CoPE,
    DifferentialAttention,
    ForgettingAttention,
    GroupedQuery,
    LatentAttention,
    Learned,
    MultiHead,
    MultiQuery,
    PositionEncoding,
    RelativeBias,
    Rotary,
    SharedKeyValues,
    SigmoidAttention,
    SinkLogit,
    Sinusoidal,
    SoftmaxPlusOne,
    TalkingHeads,
    ValueResidual,
)  # fmt: skip
from attnlab.layers.attention import Attention
from attnlab.layers.positions_2d import AxialRotary, Learned2D, Sinusoidal2D
from attnlab.models import (
    GPT,
    T5,
    Bert,
    ConvolutionalSeq2Seq,
    EncoderDecoder,
    RecurrentLanguageModel,
    RecurrentSeq2Seq,
    T5LanguageModel,
    ViT,
)  # fmt: skip

V, D, H, T, S = 11, 16, 4, 6, 7
SMALL = {"vocabulary_size": V, "d_model": D, "num_heads": H, "num_layers": 2}
POSITIONS = {
    "none": PositionEncoding, "sinusoidal": Sinusoidal, "learned": Learned, "rotary": Rotary,
    "interleaved": partial(Rotary, interleaved=True), "alibi": ALiBi, "relative": RelativeBias,
}  # fmt: skip
ATTENTIONS = {
    "multi_head": MultiHead, "grouped": GroupedQuery, "multi_query": MultiQuery, "window": partial(MultiHead, window=3),
    "soft_cap": partial(GroupedQuery, soft_cap=0.5), "scale": partial(MultiHead, scale=1.0, qk_norm=True, output_gate=True),
}  # fmt: skip


def shaken(model):
    """The model with weights so large that no map is flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def make_model(**parts):
    torch.manual_seed(0)
    return shaken(GPT(max_length=8, **{**SMALL, "position": ALiBi, **parts}))


def draw(*shape):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


def turned(x_HTK, position):
    """Rotary position by complex numbers (Su et al. 2021, section 3.2.2)."""
    half = x_HTK.shape[2] // 2
    pairs = x_HTK.unflatten(2, (half, 2)) if position.interleaved else x_HTK.unflatten(2, (2, half)).transpose(2, 3)
    angles_TP = torch.arange(x_HTK.shape[1])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    moved = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles_TP), angles_TP)
    back = torch.view_as_real(moved)
    return back.flatten(2) if position.interleaved else back.transpose(2, 3).flatten(2)


def t5_bucket(distance, causal, buckets=32, longest=128):
    """The bucket of key minus query as in T5's own code."""
    bucket, back = 0, -distance
    if not causal:
        buckets //= 2
        bucket, back = (buckets if distance > 0 else 0), abs(distance)
    back = max(back, 0)
    if back < buckets // 2:
        return bucket + back
    log = math.log(back / (buckets // 2)) / math.log(longest / (buckets // 2)) * (buckets - buckets // 2)
    return bucket + min(buckets - 1, buckets // 2 + int(log))


def biased(scores_HTS, position, causal):
    """Scores with the bias of a position encoding, from its paper's formula."""
    distance_TS = torch.arange(scores_HTS.shape[2])[None] - torch.arange(scores_HTS.shape[1])[:, None]
    if isinstance(position, ALiBi):
        slopes_H = 2.0 ** (-8 / H * torch.arange(1, H + 1))
        return scores_HTS - slopes_H[:, None, None] * distance_TS.abs()
    if isinstance(position, RelativeBias):
        table = position.table.weight
        rows = [[table[t5_bucket(int(d), causal)] for d in row] for row in distance_TS]
        return scores_HTS + torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1)
    return scores_HTS


def by_hand(attention, x_TD, memory_SD, position, causal):
    """softmax(cap(Q K^T scale) + bias + mask) of one example, head by head."""
    source_SD = x_TD if memory_SD is None else memory_SD
    queries, keys = attention.query(x_TD), attention.key(source_SD)
    per_group = H // attention.num_key_value_heads
    k = attention.d_head
    rows = []
    for head in range(H):
        group = head // per_group
        q_TK, k_SK = queries[:, head * k : (head + 1) * k], keys[:, group * k : (group + 1) * k]
        if attention.query_norm is not None:
            q_TK, k_SK = attention.query_norm(q_TK), attention.key_norm(k_SK)
        if memory_SD is None and isinstance(position, Rotary):
            q_TK, k_SK = turned(q_TK[None], position)[0], turned(k_SK[None], position)[0]
        rows.append(q_TK @ k_SK.T)
    scores_HTS = torch.stack(rows) * attention.scale
    if attention.soft_cap is not None:
        scores_HTS = attention.soft_cap * torch.tanh(scores_HTS / attention.soft_cap)
    if memory_SD is not None:
        return scores_HTS.softmax(dim=-1)
    distance_TS = torch.arange(len(x_TD))[None] - torch.arange(len(x_TD))[:, None]
    hidden_TS = (distance_TS > 0) & torch.tensor(causal)
    if attention.window is not None:
        hidden_TS |= distance_TS.abs() >= attention.window
    return biased(scores_HTS, position, causal).masked_fill(hidden_TS, -math.inf).softmax(dim=-1)


def check(model, forward, kinds):
    """Every map of the model equals the formula on what went into that attention; returns the maps."""
    calls, hooks = [], []
    for module in model.modules():
        if isinstance(module, Attention):

            def keep(module, args, kwargs):
                calls.append((module, args[0][0], kwargs.get("memory"), args[1].causal))

            hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        maps = layer_maps(model, forward)
        for hook in hooks:
            hook.remove()
        assert [found.kind for found in maps] == kinds
        for found, (attention, x_TD, memory, causal) in zip(maps, calls, strict=True):
            stack = model.get_submodule(found.name.split("layers")[0].rstrip("."))
            memory_SD = None if memory is None else memory.states_BSD[0]
            expected = by_hand(attention, x_TD, memory_SD, stack.position, causal)
            torch.testing.assert_close(found.weights_HTS, expected, atol=2e-6, rtol=0)
            torch.testing.assert_close(found.weights_HTS.sum(-1), torch.ones(H, len(x_TD)), atol=1e-6, rtol=0)
            assert (found.weights_HTS[:, ~found.allowed_TS] == 0).all()
            assert found.allowed_TS.any(-1).all()
            if causal and memory is None:
                assert (found.weights_HTS.triu(1) == 0).all()
    return maps


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_maps_of_every_attention_are_the_formula(attention, position):
    model = make_model(position=POSITIONS[position], attention=ATTENTIONS[attention])
    maps = check(model, lambda: model(draw(2, T)), [SELF, SELF])
    assert [found.layer for found in maps] == [0, 1]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", ["gpt", "bert", "encoder_decoder"])
def test_maps_of_every_family_and_position_are_the_formula(family, position):
    torch.manual_seed(0)
    fields = {**SMALL, "max_length": 8, "position": POSITIONS[position]}
    if family == "encoder_decoder":
        model = shaken(EncoderDecoder(dropout=0.0, **fields))
        kinds = [ENCODER, ENCODER, DECODER, CROSS, DECODER, CROSS]
        maps = check(model, lambda: model(draw(1, S), draw(1, T)), kinds)
        assert [found.layer for found in maps] == [0, 1, 0, 0, 1, 1]
        assert maps[3].weights_HTS.shape == (H, T, S)
    else:
        model = shaken((GPT if family == "gpt" else Bert)(**fields))
        check(model, lambda: model(draw(1, T)), [SELF, SELF])


def test_what_is_below_nought_is_as_white_as_nought():
    weights_HTS = torch.tensor([[[1.0, -0.5], [0.0, 0.5]]])
    assert np.unique(picture({"one": weights_HTS}).pixels_HW).tolist() == [0, 127, 255]


OTHERS = {
    "sink_logit": SinkLogit, "softmax_plus_one": SoftmaxPlusOne, "sigmoid": SigmoidAttention,
    "forgetting": ForgettingAttention, "talking_heads": TalkingHeads, "latent": LatentAttention,
    "shared_key_value": SharedKeyValues, "value_residual": ValueResidual, "differential": DifferentialAttention,
}  # fmt: skip


@pytest.mark.parametrize("position", [ALiBi, CoPE])
@pytest.mark.parametrize("name", OTHERS)
def test_maps_are_the_weights_that_values_are_mixed_with(name, position):
    if name == "latent" and position is CoPE:
        assert LatentAttention.refuses(CoPE)
        return
    model, given, mixed = make_model(position=position, attention=OTHERS[name]), [], []
    for layer in model.stack.layers:
        attention = layer.attention
        attention.projected = lambda *args, whole=attention.projected: given.append(whole(*args)) or given[-1]
        attention.finished = lambda out, x, whole=attention.finished: mixed.append(out) or whole(out, x)
    with torch.no_grad():
        maps = layer_maps(model, lambda: model(draw(2, T)), row=1)
        expected = model(draw(2, T))
    for found, (_, _, v_BHSV), out_BHTV in zip(maps, given, mixed, strict=False):
        torch.testing.assert_close(found.weights_HTS @ v_BHSV[1], out_BHTV[1], atol=1e-5, rtol=1e-5)
        assert (found.weights_HTS.triu(1) == 0).all()
        assert (found.weights_HTS[:, 1:] != 0).any()
        if name in ("sink_logit", "softmax_plus_one"):
            assert (found.weights_HTS.sum(-1) < 1).all()
    for own, again in zip(mixed[:2], mixed[2:], strict=True):  # the backend that serves the model gives the same
        torch.testing.assert_close(own, again, atol=1e-5, rtol=1e-5)
    assert expected.isfinite().all()


def test_layers_that_two_stacks_share_have_a_map_in_each():
    torch.manual_seed(0)
    model = shaken(T5(**SMALL, dropout=0.0, share_layers=True))
    maps = check(model, lambda: model(draw(1, S), draw(1, T)), [ENCODER, ENCODER, DECODER, CROSS, DECODER, CROSS])
    assert [found.weights_HTS.shape[1] for found in maps] == [S, S, T, T, T, T]


def test_a_prefix_is_seen_from_both_sides():
    torch.manual_seed(0)
    model = shaken(T5LanguageModel(**SMALL, dropout=0.0))
    maps = layer_maps(model, lambda: model(draw(1, S), draw(1, T)))
    assert [found.kind for found in maps] == [SELF, SELF]
    sees_TS = torch.ones(S + T, S + T).tril().bool()
    sees_TS[:, :S] = True
    assert torch.equal(maps[0].allowed_TS, sees_TS)
    assert torch.equal(maps[0].weights_HTS[0] > 0, sees_TS)


@pytest.mark.parametrize("position", [Learned, Learned2D, Sinusoidal2D, AxialRotary])
def test_maps_of_images(position):
    torch.manual_seed(0)
    model = shaken(ViT(3, 8, 1, patch_size=4, d_model=D, num_heads=2, num_layers=1, pooling="class", position=position))
    maps = layer_maps(model, lambda: model(torch.rand(1, 1, 8, 8)))
    assert maps[0].weights_HTS.shape == (2, 5, 5)
    torch.testing.assert_close(maps[0].weights_HTS.sum(-1), torch.ones(2, 5))
    assert maps[0].allowed_TS.all()


@pytest.mark.parametrize(
    "fields", [{"attention": "luong"}, {"attention": "luong", "input_feeding": True}, {"attention": "bahdanau"}]
)
def test_alignments_of_a_recurrent_decoder_are_the_softmax_of_its_scores(fields):
    torch.manual_seed(0)
    model = shaken(RecurrentSeq2Seq(vocabulary_size=V, d_model=8, num_layers=1, dropout=0.0, **fields))
    scores, attention = [], model.decoder.attention
    theirs = type(attention).scores
    attention.scores = lambda *args: scores.append(theirs(attention, *args)) or scores[-1]
    is_source_BS = torch.arange(S)[None] < torch.tensor([[S], [4]])
    with torch.no_grad():
        (found,) = layer_maps(model, lambda: model(draw(2, S), draw(2, T), is_source_BS), row=1)
    assert (found.kind, found.layer, found.weights_HTS.shape) == (CROSS, 0, (1, T, S))
    expected_TS = torch.cat(scores, dim=1)[1, :, :4].softmax(-1)
    torch.testing.assert_close(found.weights_HTS[0, :, :4], expected_TS, atol=1e-6, rtol=0)
    assert (found.weights_HTS[0, :, 4:] == 0).all()
    assert torch.equal(found.allowed_TS[0], is_source_BS[1])


def test_a_convolutional_decoder_has_a_map_in_every_layer():
    torch.manual_seed(0)
    model = shaken(ConvolutionalSeq2Seq(V, d_model=8, num_layers=2, num_decoder_layers=3, dropout=0.0))
    with torch.no_grad():
        maps = layer_maps(model, lambda: model(draw(1, S), draw(1, T)))
    assert [(found.kind, found.layer, found.weights_HTS.shape) for found in maps] == [
        (CROSS, i, (1, T, S)) for i in range(3)
    ]
    torch.testing.assert_close(maps[2].weights_HTS.sum(-1), torch.ones(1, T))
    assert not torch.allclose(maps[0].weights_HTS, maps[2].weights_HTS, atol=0.01)


def test_padding_gets_nothing_and_the_row_of_the_batch_is_the_one_asked_for():
    torch.manual_seed(0)
    model = shaken(Bert(**SMALL, max_length=8))
    is_token_BT = torch.arange(T)[None] < torch.tensor([[T], [4]])
    tokens_BT = draw(2, T)
    with torch.no_grad():
        padded = layer_maps(model, lambda: model(tokens_BT, is_token_BT), row=1)
        alone = layer_maps(model, lambda: model(tokens_BT[1:, :4]))
    torch.testing.assert_close(padded[1].weights_HTS[:, :4, :4], alone[1].weights_HTS, atol=1e-6, rtol=0)
    assert (padded[1].weights_HTS[:, :, 4:] == 0).all()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_stays_changed(fails):
    model = make_model(attention=partial(MultiHead, backend="fused"))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    logits = model(draw(1, T))

    def forward():
        model(draw(1, T))
        if fails:
            raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            attention_maps(model, forward)
    else:
        assert list(attention_maps(model, forward)) == ["stack.layers.0.attention", "stack.layers.1.attention"]
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert torch.equal(model(draw(1, T)), logits)
    from attnlab.layers import baselines

    assert baselines._watchers == []


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


def test_two_layers_by_hand():
    first = torch.tensor(
        [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
    )  # two heads: their mean is [[1, 0], [.5, .5]]
    second = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    one, both = rollout([first, second])
    torch.testing.assert_close(one, torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    # [[.5, .5], [.25, .75]] times the one before
    torch.testing.assert_close(both, torch.tensor([[0.625, 0.375], [0.4375, 0.5625]]))


def test_it_is_the_papers_recursion_and_keeps_rows_and_masks():
    random = np.random.default_rng(0)
    allowed = causal(5)
    layers = []
    for layer in range(3):
        drawn = random.random((2, 5, 5)) * allowed.numpy()
        layers.append(map_of(drawn / drawn.sum(2, keepdims=True), allowed, SELF, layer))
    found = [one for one in with_rollouts(layers) if one.kind == "rollout"]
    expected = np.eye(5)
    for one, layer in zip(found, layers, strict=True):
        expected = (0.5 * layer.weights_HTS.numpy().mean(0) + 0.5 * np.eye(5)) @ expected
        np.testing.assert_allclose(one.weights_HTS[0], expected, atol=1e-6)
        np.testing.assert_allclose(one.weights_HTS[0].sum(1), 1, atol=1e-6)
        assert torch.equal(one.allowed_TS, allowed)
        assert (one.weights_HTS[0].triu(1) == 0).all()


def test_windows_reach_further_with_every_layer_and_cross_attention_has_no_rollout():
    offsets = torch.arange(5)[None] - torch.arange(5)[:, None]
    near = (offsets <= 0) & (offsets > -2)
    maps = [map_of([uniform(near)], near, ENCODER, layer) for layer in range(2)]
    found = with_rollouts([*maps, map_of([np.full((3, 5), 0.2)], kind=CROSS)])
    assert [one.kind for one in found] == [ENCODER, ENCODER, CROSS, "encoder rollout", "encoder rollout"]
    assert torch.equal(found[3].allowed_TS, near)
    assert torch.equal(found[4].allowed_TS, (offsets <= 0) & (offsets > -3))


def test_what_cannot_be_seen_is_made_visible():
    assert visible(" a\n\tb") == "␣a⏎⇥b"
    assert visible("\x00\u200b\ud800") == "\\u0000\\u200b\\ud800"
    assert visible("") == "∅"
    assert visible("<b>é</b>") == "<b>é</b>"


def test_bytes_of_one_character_are_numbered():
    text = "aé!"
    axis = text_axis(text, *Byte().locate(text), SpecialTokens())
    assert axis.labels == ["a", "é", "é·2", "!"]
    assert axis.numbers_N.tolist() == [97, 0xC3, 0xA9, 33]


def test_marks_stand_around_a_text_with_their_names():
    vocabulary = Vocabulary(Character(alphabet="ab "), num_sentinels=2)
    axis = text_axis("ba", *vocabulary.locate("ba"), vocabulary.special_tokens, (1,), (2, 6))
    assert axis.labels == ["[start]", "␣", "b", "a", "[end]", "<extra_id_1>"]  # a text is read behind a blank
    assert axis.is_mark_N.tolist() == [True, False, False, False, True, True]
    assert axis.places_N2.tolist() == [[-1, -1], [0, 0], [0, 1], [1, 2], [-1, -1], [-1, -1]]
    assert name_marks(leading_special_tokens())[4] == "[separator]"


def test_tokens_that_a_model_gave():
    vocabulary = Vocabulary(Character(alphabet="ab "))
    axis = output_axis(vocabulary, [5, 7, 3], (1,))
    assert axis.labels == ["[start]", "a", "␣", "[mask]"]
    assert (axis.places_N2 == -1).all()
    assert axis.is_mark_N.tolist() == [True, False, False, False]
    both = joined(axis, axis)
    assert len(both) == 8
    np.testing.assert_array_equal(both.numbers_N, [1, 5, 7, 3] * 2)


def test_patches_are_named_by_row_and_column_behind_class_and_registers():
    axis = patch_axis((2, 3), 2, has_class=True)
    assert axis.labels == ["[class]", "[register 1]", "1.1", "1.2", "1.3", "2.1", "2.2", "2.3"]
    assert (axis.grid, axis.before, axis.is_mark_N.sum()) == ((2, 3), 2, 2)
    assert patch_axis((1, 1), 1, has_class=False).labels == ["[register 1]", "1.1"]
