"""ViT: an explicit formula, torch's encoder, where each patch stands, other image sizes."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.layers import (
    ALiBi,
    AxialRotary,
    DeepNorm,
    Learned,
    Learned2D,
    Parallel,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReZero,
    Rotary,
    Sandwich,
    Sinusoidal,
    Sinusoidal2D,
)
from attnlab.layers.positions import interpolated
from attnlab.models import ViT
from attnlab.models.vit import cut_patches

SMALL = {
    "num_classes": 5,
    "image_size": (8, 12),
    "channels": 2,
    "patch_size": 4,
    "d_model": 16,
    "num_heads": 4,
    "num_layers": 2,
}
IN_A_GRID = [Sinusoidal2D, Learned2D, AxialRotary]
IN_A_ROW = [PositionEncoding, Sinusoidal, Learned, Rotary, ALiBi, RelativeBias]
POSITIONS = [*IN_A_ROW, *IN_A_GRID]
RESIDUALS = [PostNorm, PreNorm, Sandwich, DeepNorm, ReZero, Parallel]


def build(seed=0, **fields):
    """A small model whose weights make a wrong patch or position show."""
    torch.manual_seed(seed)
    model = ViT(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 4),
    channels=st.integers(1, 3),
    count=st.integers(1, 3),
)
def test_patches_are_the_pixels_of_the_image_row_by_row(rows, columns, patch, channels, count):
    images = draw(count, channels, rows * patch, columns * patch)
    patches = cut_patches(images, patch)
    assert patches.shape == (count, rows * columns, channels * patch**2)
    for row in range(rows):
        for column in range(columns):
            block = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            assert torch.equal(patches[:, row * columns + column], block.reshape(count, -1))


def test_the_embedding_is_the_papers_convolution():
    model, images = build(), draw(2, 2, 8, 12)
    kernel = model.patches.weight.view(16, 2, 4, 4)
    expected = nn.functional.conv2d(images, kernel, model.patches.bias, stride=4).flatten(2).transpose(1, 2)
    assert_close(model.patches(cut_patches(images, 4)), expected)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("registers", [0, 3])
def test_agrees_with_torchs_encoder(pooling, registers):
    model, images = build(pooling=pooling, registers=registers), draw(3, 2, 8, 12)
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False).eval()
    for theirs, ours in zip(encoder.layers, model.stack.layers, strict=True):
        own = ours.attention
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        theirs.self_attn.out_proj.load_state_dict(own.output.state_dict())
        theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
        for norm, its in zip(ours.residual.norms, (theirs.norm1, theirs.norm2), strict=True):
            its.load_state_dict(norm.state_dict())
    encoder.norm.load_state_dict(model.stack.norm.state_dict())
    embedded = nn.functional.conv2d(images, model.patches.weight.view(16, 2, 4, 4), model.patches.bias, stride=4)
    tokens = embedded.flatten(2).transpose(1, 2)
    before = registers + (pooling == "class")
    if before:
        tokens = torch.cat([model.before.weight.expand(3, -1, -1), tokens], dim=1)
    states = encoder(tokens + model.stack.position.table.weight)
    assert_close(model.encode(images), states)
    pooled = states[:, 0] if pooling == "class" else states[:, before:].mean(dim=1)
    assert_close(model(images), pooled @ model.head.weight.t() + model.head.bias)


def explicit(model, images, drop):
    """The logits of one-layer, one-head models with an axial rotation, number by number; drop: what dropout makes of a number."""
    logits = []
    for image in images:
        columns = image.shape[2] // 4
        count = columns * (image.shape[1] // 4)
        x = [model.before.weight[0]]
        for patch in range(count):
            row, column = divmod(patch, columns)
            pixels = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            x.append(model.patches.weight @ pixels + model.patches.bias)
        x = [v * drop for v in x]
        [layer] = model.stack.layers
        attention, norms = layer.attention, layer.residual.norms
        queries, keys, values = (
            [own(norms[0](v)) for v in x] for own in (attention.query, attention.key, attention.value)
        )
        for patch in range(count):
            for vector in (queries[patch + 1], keys[patch + 1]):
                vector.copy_(turned(vector, *divmod(patch, columns)))
        attended = []
        for query in queries:
            scores = torch.stack([query @ key / math.sqrt(len(key)) for key in keys]).exp()
            attended.append(
                sum(score / scores.sum() * drop * value for score, value in zip(scores, values, strict=True))
            )
        x = [v + drop * attention.output(a) for v, a in zip(x, attended, strict=True)]
        up, down = layer.feed_forward.up, layer.feed_forward.down
        x = [v + drop * down(drop * nn.functional.gelu(up(norms[1](v)))) for v in x]
        logits.append(model.head(model.stack.norm(x[0])))
    return torch.stack(logits)


def turned(vector, row, column, base=100.0):
    """Dimension i pairs with i + half; the first half of the pairs turns with the row, the other half with the column."""
    half = len(vector) // 2
    turned = vector.clone()
    for pair in range(half):
        axis, index = (row, pair) if pair < half // 2 else (column, pair - half // 2)
        angle = axis * base ** (-2 * index / half)
        a, b = vector[pair], vector[pair + half]
        turned[pair] = a * math.cos(angle) - b * math.sin(angle)
        turned[pair + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
@torch.no_grad()
def test_agrees_with_the_explicit_formula_of_axial_rotary(rate):
    model = build(num_heads=1, num_layers=1, pooling="class", position=AxialRotary, dropout=rate).train()
    images = draw(2, 2, 8, 12)
    assert_close(model(images), explicit(model, images, 1 + rate))


@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("position", IN_A_GRID)
def test_class_and_register_tokens_have_no_place_and_patches_keep_theirs(position, before):
    model = build(position=position, pooling="class" if before else "mean", registers=max(0, before - 1))
    encoding, zeros = model.stack.position, torch.zeros(1, before + 6, 16)
    positions = encoding.image_positions(before, (2, 3), (2, 3), zeros.device)
    alone = encoding.image_positions(0, (2, 3), (2, 3), zeros.device)
    heads = draw(1, 4, before + 6, 4)
    added, rotated = encoding.embed(zeros, positions), encoding.rotate(heads, positions)
    assert torch.equal(added[:, :before], zeros[:, :before])
    assert torch.equal(rotated[:, :, :before], heads[:, :, :before])
    assert torch.equal(added[:, before:], encoding.embed(zeros[:, before:], alone))
    assert torch.equal(rotated[:, :, before:], encoding.rotate(heads[:, :, before:], alone))
    for patch in range(6):  # and two patches of one row share that half of the encoding, two of one column the other
        for other in range(6):
            row, column = (a == b for a, b in zip(divmod(patch, 3), divmod(other, 3), strict=True))
            if position is not AxialRotary:
                halves = added[0, before + patch].view(2, 8), added[0, before + other].view(2, 8)
                assert torch.equal(halves[0][0], halves[1][0]) == row
                assert torch.equal(halves[0][1], halves[1][1]) == column


@settings(max_examples=25, deadline=None)
@given(
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    pooling=st.sampled_from(["class", "mean"]),
    registers=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_images_of_a_batch_do_not_see_each_other(position, residual, pooling, registers, seed):
    model = build(seed, position=position, residual=residual, pooling=pooling, registers=registers)
    images = draw(3, 2, 8, 12, seed=seed)
    together = model(images)
    for row in range(3):
        assert_close(together[row : row + 1], model(images[row : row + 1]))


@pytest.mark.parametrize("position", POSITIONS)
def test_without_positions_alone_the_order_of_patches_is_not_seen(position):
    model, images = build(position=position, pooling="class"), draw(1, 2, 8, 12)
    swapped = torch.cat([images[:, :, 4:], images[:, :, :4]], dim=2)
    assert torch.allclose(model(images), model(swapped), atol=1e-5) == (position is PositionEncoding)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_reach_every_parameter(position, pooling):
    model = build(position=position, pooling=pooling, registers=1)
    model(draw(3, 2, 8, 12)).square().sum().backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # Two rows of patches are too near for most of the buckets of distances, and no score depends on the others.
    assert unreached == []


@pytest.mark.parametrize("position", POSITIONS)
def test_the_same_size_gives_the_same_bits(position):
    model, images = build(position=position, pooling="class", registers=2), draw(2, 2, 8, 12)
    assert torch.equal(model.at_size((8, 12))(images), model(images))


@pytest.mark.parametrize("position", POSITIONS)
def test_at_another_size_a_copy_sees_all_of_its_patches(position):
    model = build(position=position, pooling="class", registers=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = model.at_size((16, 20))
    assert other.encode(draw(1, 2, 16, 20)).shape == (1, 2 + 4 * 5, 16)
    images = draw(1, 2, 16, 20).requires_grad_()
    (gradient,) = torch.autograd.grad(other(images)[0, 0], images)
    assert (cut_patches(gradient, 4).abs().sum(dim=-1) > 0).all()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    with pytest.raises(
        ValueError, match=r"images of \(2, 16, 20\) .* do not fit; accepted: \(2, 8, 12\), or ViT.at_size"
    ):
        model(draw(1, 2, 16, 20))
    with pytest.raises(ValueError, match="patch_size=4 does not divide images of 16 x 18 pixels; accepted: 1, 2"):
        model.at_size((16, 18))


@pytest.mark.parametrize("position", [Learned, Learned2D])
def test_a_constant_table_stays_constant_and_a_smooth_one_near_itself(position):
    model = build(position=position, image_size=(32, 48), pooling="class")
    encoding = model.stack.position
    with torch.no_grad():
        for table in encoding.children():
            table.weight.fill_(0.75)
    zeros = torch.zeros(1, 1 + 16 * 24, 16)
    other = model.at_size((64, 96)).stack.position
    positions = other.image_positions(1, (16, 24), (8, 12), zeros.device)
    patches = other.embed(zeros, positions if positions is not None else torch.arange(1 + 16 * 24)[None])[0, 1:]
    assert_close(patches, torch.full_like(patches, 0.75))

    def wave(rows, columns):
        """A slow wave over the image in each dimension, sampled at the middles of cells."""
        y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
        phases = torch.arange(16) / 16
        return torch.cos(2 * y[:, None, None] + phases), torch.cos(2 * x[None, :, None] + phases)

    rows, columns = wave(8, 12)
    if position is Learned:
        encoding.table.weight.data[1:] = (rows * columns).flatten(0, 1)
    else:
        encoding.rows.weight.data[:] = rows[:, 0, :8]
        encoding.columns.weight.data[:] = columns[0, :, 8:]
    other = model.at_size((64, 96)).stack.position
    found = other.embed(zeros, positions if positions is not None else torch.arange(1 + 16 * 24)[None])[0, 1:]
    rows, columns = wave(16, 24)
    joined = torch.cat([rows[..., :8].expand(-1, 24, -1), columns[..., 8:].expand(16, -1, -1)], dim=-1)
    expected = (rows * columns if position is Learned else joined).flatten(0, 1)
    inside = torch.zeros(16, 24, dtype=torch.bool)
    inside[4:-4, 4:-4] = True  # at the edges a patch lies outside of all that were trained on
    assert (found - expected)[inside.flatten()].abs().max() < 2e-3
    assert (found - expected).abs().max() < 0.1
    if position is Learned:
        assert torch.equal(other.table.weight[:1], encoding.table.weight[:1])


@pytest.mark.parametrize("grid", [(8, 1), (1, 8), (8, 3)])
def test_a_table_is_interpolated_along_each_axis_by_itself(grid):
    line = torch.linspace(0, 1, 8).view(1, 8, 1) if grid[0] == 8 else torch.linspace(0, 1, 8).view(1, 1, 8)
    new = (16, grid[1]) if grid[0] == 8 else (grid[0], 16)
    found = interpolated(line.expand(2, *grid), new)
    assert found.shape == (2, *new)
    line = found[0, :, 0] if grid[0] == 8 else found[0, 0]
    assert_close(line[4:-4], ((torch.arange(16) + 0.5) / 2 - 0.5)[4:-4] / 7)
    half = interpolated(found, grid)  # a line that shrinks is smoothed, and stays a line
    assert_close((half[0, :, 0] if grid[0] == 8 else half[0, 0])[2:-2], torch.linspace(0, 1, 8)[2:-2], 1e-3)


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("position", [Sinusoidal2D, AxialRotary, Sinusoidal, Rotary, ALiBi, RelativeBias])
def test_a_patch_of_three_times_as_many_stands_where_the_one_that_it_is_the_middle_of_stood(position, before):
    model = build(position=position, pooling="class" if before else "mean", registers=max(0, before - 1))
    other, encoding = model.at_size((24, 36)).stack.position, model.stack.position
    there = other.image_positions(before, (6, 9), (2, 3), torch.device("cpu"))
    here = encoding.image_positions(before, (2, 3), (2, 3), torch.device("cpu"))
    here = torch.arange(before + 6)[None] if here is None else here
    middles = torch.arange(54).view(6, 9)[1::3, 1::3].flatten()
    kept = torch.cat([torch.arange(before), before + middles])
    added = other.embed(torch.zeros(1, before + 54, 16), there)[:, kept]
    assert_close(added, encoding.embed(torch.zeros(1, before + 6, 16), here))
    heads = draw(1, 4, 1, 4)
    rotated = other.rotate(heads.expand(-1, -1, before + 54, -1), there)[:, :, kept]
    assert_close(rotated, encoding.rotate(heads.expand(-1, -1, before + 6, -1), here))
    biases = other.bias(there, there), encoding.bias(here, here)
    assert (biases[0] is None) == (biases[1] is None) == (position not in (ALiBi, RelativeBias))
    if biases[0] is not None:
        assert_close(biases[0][:, :, kept][..., kept], biases[1])


def test_what_makes_no_model():
    with pytest.raises(
        ValueError, match=r"patch_size=5 does not divide images of 28 x 28 pixels; accepted: 1, 2, 4, 7, 14, 28"
    ):
        ViT(10, 28, 1, patch_size=5)
    with pytest.raises(
        ValueError, match=r"image_size=\(1, 2, 3\) is no size; accepted: a whole number from 1 on, or rows and"
    ):
        ViT(10, (1, 2, 3))
    with pytest.raises(ValueError, match="registers must be at least 0, got -1"):
        ViT(10, 28, registers=-1)
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        ViT(10, 28, channels=0)


def test_models_that_differ_in_positions_share_their_other_weights():
    models = []
    for position in (Learned, partial(Sinusoidal2D, base=100.0)):
        torch.manual_seed(3)
        models.append(ViT(**SMALL, position=position).state_dict())
    shared = [name for name in models[0] if name in models[1]]
    assert len(shared) > 20
    assert all(torch.equal(models[0][name], models[1][name]) for name in shared)
