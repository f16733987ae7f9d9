"""Images and texts in one space: what each tower reads, the scores as a formula, sizes that differ between towers."""

import pytest
import torch
from torch.nn import functional as F

from attnlab.layers import ALiBi, AxialRotary, Learned, MultiHead, PositionEncoding, PostNorm, Rotary
from attnlab.models import CLIP, measure_size

SMALL = {"vocabulary_size": 17, "max_length": 9, "image_size": (8, 12), "channels": 2}
SMALL |= {"d_model": 16, "num_heads": 4, "num_layers": 1}
POOLINGS = ("class", "mean", "attention")


def build(**fields):
    torch.manual_seed(0)
    model = CLIP(**SMALL | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def images(count=3):
    return torch.randn(count, 2, 8, 12, generator=torch.Generator().manual_seed(1))


def texts(*lengths):
    tokens = torch.randint(3, 17, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(2))
    return tokens, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_score_is_a_cosine_times_the_scale(bias):
    model = build(logit_bias=bias)
    tokens, is_token = texts(4, 9)
    pooled = model.image(images()), model.text(tokens, is_token)
    first, second = (projected / projected.norm(dim=1, keepdim=True) for projected in (
        model.image_projection(pooled[0]), model.text_projection(pooled[1])
    ))  # fmt: skip
    expected = first @ second.T * model.log_scale.exp() + (model.logit_bias if bias else 0)
    found = model(images(), tokens, is_token)
    assert found.shape == (3, 2)
    assert_close(found, expected)
    assert_close(model.encode_images(images()), first)
    assert_close(model.encode_texts(tokens, is_token), second)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", [Learned, Rotary, ALiBi, PositionEncoding])
def test_a_text_is_seen_at_its_last_token_whatever_is_behind_it(position, causal):
    model = build(text={"position": position}, causal_text=causal)
    tokens, is_token = texts(9, 4, 1)
    found = model.encode_texts(tokens, is_token)
    for row, length in enumerate((9, 4, 1)):
        assert_close(found[row], model.encode_texts(tokens[row : row + 1, :length])[0])
        states = model.text.encode(tokens[row : row + 1, :length])[:, -1]
        assert_close(found[row], F.normalize(model.text_projection(states), dim=1)[0])
    changed = torch.where(is_token, tokens, (tokens + 1) % 17)
    assert_close(model.encode_texts(changed, is_token), found)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_image_is_pooled_as_asked(pooling):
    model = build(pooling=pooling, registers=2)
    states, tower = model.image.encode(images()), model.image
    assert states.shape[1] == 6 + 2 + (pooling == "class")
    patches = states[:, -6:]
    if pooling == "class":
        expected = states[:, 0]
    elif pooling == "mean":
        expected = patches.mean(dim=1)
    else:
        pool = tower.pool
        theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        names = ("query", "key", "value")
        with torch.no_grad():
            for kind in ("weight", "bias"):
                parts = [getattr(getattr(pool.attention, name), kind) for name in names]
                getattr(theirs, f"in_proj_{kind}").copy_(torch.cat(parts))
        theirs.out_proj.load_state_dict(pool.attention.output.state_dict())
        attended = theirs(pool.probe.weight.expand(3, 1, -1), patches, patches)[0][:, 0]
        expected = attended + pool.feed_forward(F.layer_norm(attended, (16,), pool.norm.weight, pool.norm.bias))
    assert_close(tower(images()), expected)


def test_each_tower_has_its_own_sizes_and_parts():
    model = build(
        image={"d_model": 24, "num_layers": 2, "position": AxialRotary, "num_heads": 2},
        text={"residual": PostNorm, "position": None, "bias": False},
        position=ALiBi,
        embedding_size=10,
    )
    assert (model.image.stack.position.__class__, model.text.stack.position.__class__) == (AxialRotary, ALiBi)
    assert (len(model.image.stack.layers), len(model.text.stack.layers)) == (2, 1)
    assert isinstance(model.text.stack.layers[0].residual, PostNorm)
    assert model.text.stack.layers[0].attention.query.bias is None
    assert isinstance(model.image.stack.layers[0].attention, MultiHead)
    assert model.encode_images(images()).shape == (3, 10)
    assert model.encode_texts(texts(4, 5)[0]).shape == (2, 10)


def test_the_operations_of_pooling_by_attention_are_counted():
    def operations(pooling):
        model, (tokens, _) = build(pooling=pooling), texts(9, 9)
        return measure_size(model, lambda: len(model(images(2), tokens))).flops_per_token

    width, hidden, patches = 16, 64, 6
    query_and_output, keys_and_values = 2 * width**2, 2 * patches * width**2
    once = query_and_output + keys_and_values + 2 * patches * width + 2 * width * hidden
    assert operations("attention") - operations("mean") == 3 * 2 * once


def test_scales_start_as_published_and_are_held_to_a_most():
    torch.manual_seed(0)
    assert CLIP(**SMALL).log_scale.exp().item() == pytest.approx(1 / 0.07)
    siglip = CLIP(**SMALL, logit_bias=True, max_scale=None)
    assert (siglip.log_scale.exp().item(), siglip.logit_bias.item()) == pytest.approx((10.0, -10.0))
    model = CLIP(**SMALL, initial_scale=250.0)
    model.after_step()
    assert model.log_scale.exp().item() == pytest.approx(100.0)
    model = CLIP(**SMALL, initial_scale=250.0, max_scale=None)
    model.after_step()
    assert model.log_scale.exp().item() == pytest.approx(250.0)


def test_texts_alone_are_projected_into_the_images_width():
    model = build(projection="text", image={"d_model": 24})
    assert isinstance(model.image_projection, torch.nn.Identity)
    assert model.text_projection.bias is not None
    assert model.embedding_size == model.encode_images(images()).shape[1] == 24
    with pytest.raises(
        ValueError, match=r"model\.embedding_size must be null or the image tower's width, 24, where texts"
    ):
        build(projection="text", image={"d_model": 24}, embedding_size=16)


def test_towers_of_one_seed_share_the_weights_that_they_share():
    torch.manual_seed(3)
    one = CLIP(**SMALL).state_dict()
    torch.manual_seed(3)
    other = CLIP(**SMALL, image={"position": AxialRotary}).state_dict()
    shared = [name for name in one if name in other]
    assert len(shared) > 30
    assert all(torch.equal(one[name], other[name]) for name in shared)


def test_images_of_another_size_are_taken_by_a_copy():
    model = build()
    larger = model.at_size((16, 12))
    assert larger.encode_images(torch.randn(1, 2, 16, 12)).isfinite().all()
    assert torch.equal(model.at_size((8, 12)).encode_images(images()), model.encode_images(images()))
    with pytest.raises(
        ValueError, match=r"images of \(2, 16, 12\) .* do not fit; accepted: \(2, 8, 12\), or ImageTower"
    ):
        model.encode_images(torch.randn(1, 2, 16, 12))


def test_compiling_compiles_both_towers():
    model, called = build(), []
    model.compile(backend=lambda graph, _: called.append(graph) or graph.forward)
    model.encode_images(images())
    model.encode_texts(texts(4)[0])
    assert len(called) >= 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pooling": "max"}, "pooling=max: there is no such pooling; accepted: class, mean, attention"),
        ({"patch_size": 5}, "patch_size=5 does not divide images of 8 x 12 pixels; accepted: 1, 2, 4"),
        ({"max_scale": 0.0}, "max_scale must be above 0, got 0.0"),
    ],
)
def test_what_makes_no_model(fields, said):
    with pytest.raises(ValueError, match=said):
        build(**fields)


def test_a_text_past_its_table_is_refused():
    with pytest.raises(ValueError, match="Learned ends at 9 positions; position 10 was asked for"):
        build().encode_texts(torch.zeros(1, 10, dtype=torch.long))
