"""Augmentation: random numbers without a state, geometry, PIL's operations, shares of mixed images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from attnlab.data import Augmentation
from attnlab.data.augment import (
    OPERATIONS,
    autocontrast,
    box,
    brightness,
    colour,
    contrast,
    equalize,
    posterize,
    rand_augment,
    rotation,
    scaling,
    sharpness,
    shearing,
    solarize,
    warp_affine,
)
from attnlab.data.order import uniforms

ROWS = np.arange(64)
EVERYTHING = {
    "crop": (0.5, 1.0),
    "shift": 2,
    "flip": 0.5,
    "degrees": 20,
    "scale": (0.8, 1.2),
    "shear": 10,
    "operations": 2,
    "erase": 0.5,
}


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_draws_are_uniform_and_independent():
    numbers = uniforms(3, 5, np.arange(20_000), "a", 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    others = [
        uniforms(3, 6, np.arange(20_000), "a", 4),
        uniforms(4, 5, np.arange(20_000), "a", 4),
        uniforms(3, 5, np.arange(20_000), "b", 4),
    ]
    others += [np.roll(numbers, 1, axis=0), np.roll(numbers, 1, axis=1)]
    for other in others:
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.02
        assert not np.isin(other[:, 0], numbers[:, 0]).all() or other is others[-2]
    bits = (numbers[:, 0, None] * 2.0 ** np.arange(1, 9)).astype(np.int64) % 2
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=9),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 10**6),
)
def test_a_draw_is_a_function_of_seed_epoch_and_example_alone(rows, seed, epoch):
    together = uniforms(seed, epoch, np.array(rows), "warp", 5)
    epochs = np.arange(len(rows)) + epoch  # each example may be in an epoch of its own
    apart = uniforms(seed, epochs, np.array(rows), "warp", 5)
    for place, row in enumerate(rows):
        assert np.array_equal(uniforms(seed, epoch, np.array([row]), "warp", 5)[0], together[place])
        assert np.array_equal(uniforms(seed, int(epochs[place]), np.array([row]), "warp", 5)[0], apart[place])
        assert np.array_equal(uniforms(seed, epoch, np.array([row]), "warp", 3)[0], together[place, :3])


@settings(max_examples=20, deadline=None)
@given(rows=st.permutations(range(6)), size=st.integers(1, 6), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_image_is_augmented_alike_in_every_batch(rows, size, seed, epoch):
    augmentation, images = Augmentation(**EVERYTHING), draw(6, 3, 8, 10)
    whole = augmentation(images, np.arange(6), seed, epoch)
    chosen = np.array(rows[:size])
    assert_close(augmentation(images[chosen], chosen, seed, epoch), whole[chosen], 1e-6)


def test_without_a_choice_nothing_changes_and_no_pixel_leaves_its_range_with_all():
    images = draw(64, 3, 8, 10)
    assert torch.equal(Augmentation()(images, ROWS, 0, 0), images)
    before = images.clone()
    changed = Augmentation(**EVERYTHING)(images, ROWS, 0, 0)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(images, before)
    assert (changed != images).flatten(1).any(dim=1).all()
    again = Augmentation(**EVERYTHING)(images, ROWS, 0, 1)
    assert (changed != again).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("size", [(5, 5), (4, 6)])
def test_whole_pixels_are_moved_exactly(size):
    images = draw(1, 2, *size)
    matrix, zero = torch.eye(2)[None], torch.zeros(1)
    moved = warp_affine(images, matrix, torch.tensor([[2.0, -1.0]]))  # to the right, and up
    assert_close(moved[..., :-1, 2:], images[..., 1:, :-2])
    assert (moved[..., :2] == 0).all()
    assert_close(moved[..., -1, :], torch.zeros_like(moved[..., -1, :]))
    assert_close(warp_affine(images, torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]])), images.flip(3))
    assert_close(warp_affine(images, rotation(torch.tensor([math.pi]))), images.rot90(2, (2, 3)))
    sheared = warp_affine(
        images, shearing(zero, zero + 1)
    )  # a column goes down by as much as it is right of the middle
    middle = (size[1] - 1) / 2
    for column in range(size[1]):
        down = column - middle
        if down == int(down):
            expected = torch.zeros_like(images[..., column])
            for row in range(size[0]):
                if 0 <= row - int(down) < size[0]:
                    expected[..., row] = images[..., row - int(down), column]
            assert_close(sheared[..., column], expected)


def test_a_quarter_turn_goes_clockwise():
    images = draw(1, 1, 6, 6)
    assert_close(warp_affine(images, rotation(torch.tensor([math.pi / 2]))), images.rot90(-1, (2, 3)))


def test_a_warp_moves_a_point_as_its_matrix_says():
    images = torch.zeros(1, 1, 41, 61)
    images[0, 0, 20 - 4, 30 + 6] = 1.0  # right 6, down -4
    matrix = (
        rotation(torch.tensor([0.3]))
        @ shearing(torch.tensor([0.2]), torch.tensor([0.0]))
        @ scaling(torch.tensor([1.5]), torch.tensor([1.2]))
    )
    shift, origin = torch.tensor([[3.0, 2.0]]), torch.tensor([[1.0, -2.0]])
    found = warp_affine(images, matrix, shift, origin)[0, 0]
    right, down = (matrix[0] @ (torch.tensor([6.0, -4.0]) - origin[0]) + shift[0]).tolist()
    rows, columns = torch.arange(41.0) - 20, torch.arange(61.0) - 30
    assert (found.sum(dim=0) @ columns / found.sum()).item() == pytest.approx(right, abs=0.2)
    assert (found.sum(dim=1) @ rows / found.sum()).item() == pytest.approx(down, abs=0.2)


def test_a_shift_is_a_crop_of_the_image_padded_with_black():
    images, count = draw(1, 1, 6, 7).expand(200, -1, -1, -1), np.arange(200)
    shifted = Augmentation(shift=2)(images, count, 0, 0)
    padded = torch.nn.functional.pad(images[0, 0], (2, 2, 2, 2))
    crops = {(y, x): padded[y : y + 6, x : x + 7] for y in range(5) for x in range(5)}
    seen = []
    for image in shifted[:, 0]:
        found = [place for place, crop in crops.items() if torch.allclose(image, crop, atol=1e-5)]
        assert len(found) == 1
        seen += found
    assert len(set(seen)) == 25


@pytest.mark.parametrize("shift", [1, 2.0])
def test_every_shift_is_as_probable_as_another(shift):
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 1.0
    shifted = Augmentation(shift=shift)(image.expand(5000, -1, -1, -1), np.arange(5000), 0, 0)
    places = shifted.flatten(1).argmax(dim=1).numpy()
    counts = np.bincount(places, minlength=81).reshape(9, 9)
    first, last = 4 - int(shift), 5 + int(shift)
    inside = counts[first:last, first:last]
    assert inside.sum() == 5000
    assert stats.chisquare(inside.ravel()).pvalue > 1e-3


def blob(right, down, size=61):
    """A spot so many pixels from the middle."""
    places = torch.arange(size) - (size - 1) / 2
    return torch.exp(-((places - down)[:, None] ** 2 + (places - right) ** 2) / 8)[None, None]


def centre(images):
    """How far right and down of the middle the spot of each image is, (B, 2)."""
    places = torch.arange(images.shape[3]) - (images.shape[3] - 1) / 2
    mass = images.sum(dim=(1, 2, 3))
    return torch.stack([images.sum(dim=(1, 2)) @ places / mass, images.sum(dim=(1, 3)) @ places / mass], dim=1)


def assert_spans(values, lowest, highest):
    """Evenly drawn over the whole range and nowhere else."""
    assert values.min() > lowest - 0.05
    assert values.max() < highest + 0.05
    assert stats.kstest(values.numpy(), stats.uniform(lowest, highest - lowest).cdf).pvalue > 1e-3
    near = (highest - lowest) / 20
    assert values.min() < lowest + near
    assert values.max() > highest - near


@pytest.mark.parametrize("degrees", [20, 90])
def test_images_are_turned_by_up_to_so_many_degrees_either_way(degrees):
    turned = centre(Augmentation(degrees=degrees)(blob(20, 0).expand(400, -1, -1, -1), np.arange(400), 0, 0))
    assert_close(turned.norm(dim=1), torch.full((400,), 20.0), 0.05)
    assert_spans(torch.atan2(turned[:, 1], turned[:, 0]).rad2deg(), -degrees, degrees)


def test_images_are_sheared_by_up_to_so_many_degrees_either_way():
    sheared = centre(Augmentation(shear=15)(blob(0, 20).expand(400, -1, -1, -1), np.arange(400), 0, 0))
    assert_close(sheared[:, 1], torch.full((400,), 20.0), 0.05)
    most = 20 * math.tan(math.radians(15))
    assert_spans(sheared[:, 0], -most, most)
    still = centre(Augmentation(shear=15)(blob(20, 0).expand(400, -1, -1, -1), np.arange(400), 0, 0))
    assert_close(still, torch.tensor([[20.0, 0.0]]).expand(400, -1), 0.05)


def test_images_are_scaled_within_the_range():
    for right, down in ((20, 0), (0, 20)):
        spot = blob(right, down).expand(400, -1, -1, -1)
        scaled = centre(Augmentation(scale=(0.8, 1.2))(spot, np.arange(400), 0, 0))
        along, across = (scaled[:, 0], scaled[:, 1]) if right else (scaled[:, 1], scaled[:, 0])
        assert_spans(along, 16.0, 24.0)
        assert across.abs().max() < 0.05


def test_half_of_the_images_are_mirrored():
    images = draw(200, 1, 4, 4)
    flipped = Augmentation(flip=0.5)(images, np.arange(200), 0, 0)
    kept = torch.isclose(flipped, images, atol=1e-5).flatten(1).all(dim=1)
    mirrored = torch.isclose(flipped, images.flip(3), atol=1e-5).flatten(1).all(dim=1)
    assert (kept ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_a_crop_lies_inside_the_image():
    ramp = torch.stack(
        [torch.linspace(0.2, 1.0, 24)[:, None].expand(24, 20), torch.linspace(0.2, 1.0, 20).expand(24, 20)]
    )
    crops = Augmentation(crop=(0.25, 0.5))(ramp.expand(100, -1, -1, -1), np.arange(100), 0, 0)
    assert crops[..., 1:-1, 1:-1].min() > 0.19  # nowhere black
    heights = (crops[:, 0, -2, 5] - crops[:, 0, 1, 5]) / 0.8 * 23 / 21
    widths = (crops[:, 1, 5, -2] - crops[:, 1, 5, 1]) / 0.8 * 19 / 17
    areas = heights * widths
    assert areas.min() > 0.23
    assert areas.max() < 0.52
    assert (widths / heights).min() > 0.73
    assert (widths / heights).max() < 1.37
    assert (widths / heights).std() > 0.1


def as_image(image):
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[..., 0])


def from_image(image):
    array = np.asarray(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1).float() / 255


PILS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "colour": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 1.6])
def test_enhancements_are_those_of_pil(channels, factor):
    images = (draw(1, channels, 9, 11) * 255).round() / 255
    for ours in (brightness, contrast, colour, sharpness):
        expected = from_image(PILS[ours.__name__](as_image(images[0])).enhance(factor))
        assert_close(ours(images, torch.tensor([factor]))[0], expected, 2.5 / 255)  # it rounds to bytes on the way


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_on_levels_are_those_of_pil(channels):
    images = (draw(1, channels, 9, 11) ** 2 * 200).round() / 255
    image = as_image(images[0])
    for bits in (4, 6, 8):
        assert_close(posterize(images, bits)[0], from_image(ImageOps.posterize(image, bits)))
    assert_close(solarize(images, 100 / 255)[0], from_image(ImageOps.solarize(image, 100)))
    assert_close(autocontrast(images)[0], from_image(ImageOps.autocontrast(image)), 1.01 / 255)
    assert_close(equalize(images)[0], from_image(ImageOps.equalize(image)))
    large = (draw(1, channels, 40, 50) ** 2 * 200).round() / 255
    assert_close(equalize(large)[0], from_image(ImageOps.equalize(as_image(large[0]))))
    flat = torch.full((1, channels, 4, 4), 0.4)
    assert_close(autocontrast(flat), flat)
    assert_close(equalize(flat), flat)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_the_range_and_does_least_at_level_0(name, channels):
    images = (draw(4, channels, 20, 21) ** 2 * 255).round() / 255
    changed = OPERATIONS[name](images, torch.tensor([0.5, -0.5, 0.5, -0.5]))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    is_same = torch.allclose(changed, images, atol=1e-4)
    assert is_same == (name == "identity" or (name == "colour" and channels == 1))
    if name not in ("autocontrast", "equalize", "solarize"):  # these have no level, or turn over white at 0
        assert_close(OPERATIONS[name](images, torch.zeros(4)), images, 1e-4)


STRAIGHT = {  # where a spot starts, and how far it goes right and down: Cubuk et al. 2019, table 6, of images of 201 pixels
    "shear_x": ((0, 30), (0.3 * 30, 0)),
    "shear_y": ((30, 0), (0, 0.3 * 30)),
    "translate_x": ((0, 5), (150 / 331 * 201, 0)),  # there 150 of 331 pixels
    "translate_y": ((5, 0), (0, 150 / 331 * 201)),
}


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_images_are_moved_as_far_as_in_the_table_of_autoaugment(direction):
    for name, (start, way) in STRAIGHT.items():
        moved = centre(OPERATIONS[name](blob(*start, size=201), torch.tensor([direction])))
        assert_close(moved, torch.tensor([start]) + direction * torch.tensor([way]), 0.05)
    turned = centre(OPERATIONS["rotate"](blob(20, 0), torch.tensor([direction])))
    assert_close(turned, 20 * torch.tensor([[math.cos(math.pi / 6), direction * math.sin(math.pi / 6)]]), 0.05)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_levels_go_as_far_as_in_the_table_of_autoaugment(direction):
    images = (draw(1, 3, 9, 11) * 255).round() / 255
    image, level = as_image(images[0]), torch.tensor([direction])
    for name, their in PILS.items():
        expected = from_image(their(image).enhance(1 + direction * 0.9))
        assert_close(OPERATIONS[name](images, level)[0], expected, 2.5 / 255)
    assert_close(OPERATIONS["posterize"](images, level)[0], from_image(ImageOps.posterize(image, 4)))
    assert_close(OPERATIONS["solarize"](images, level)[0], from_image(ImageOps.solarize(image, 0)))


def test_operations_and_their_directions_are_drawn_alike():
    image = (draw(1, 3, 18, 18) ** 2 * 255).round() / 255
    changed = rand_augment(image.expand(1400, -1, -1, -1), np.arange(1400), 1, 0, 1, 15.0)
    counts = []
    for operation in OPERATIONS.values():
        ways = [operation(image, torch.tensor([level])) for level in (0.5, -0.5)]
        hits = [(changed - way).abs().flatten(1).amax(dim=1) < 1e-4 for way in ways]
        counts.append((hits[0] | hits[1]).sum().item())
        if not torch.equal(*ways):
            assert hits[0].sum() > 20
            assert hits[1].sum() > 20
    assert sum(counts) == 1400
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_rectangles_are_erased_with_noise(probability):
    images = torch.full((400, 3, 32, 32), 2.0)  # no noise has this value
    erased = Augmentation(erase=probability)(images, np.arange(400), 0, 0)
    gone = (erased != 2.0).all(dim=1)
    assert torch.equal(gone, (erased != 2.0).any(dim=1))
    some = gone.flatten(1).any(dim=1)
    assert some.float().mean().item() == pytest.approx(probability, abs=0.07)
    for one in gone[some]:
        rows, columns = one.any(dim=1).nonzero().flatten(), one.any(dim=0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert one.sum() == height * width  # one rectangle, all of it
        assert 0.01 < height * width / 32**2 < 0.37
    if some.any():
        noise = erased[erased != 2.0]
        assert stats.kstest(noise[:20_000].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_are_drawn_from_a_beta_distribution(alpha):
    rows, images = np.arange(5000), draw(5000, 1, 2, 2)
    others = images.flip(0)
    mixed, kept = Augmentation(mixup=alpha).mix(images, others, rows, 0, 0)
    assert stats.kstest(kept.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    share = kept[:, None, None, None]
    assert_close(mixed, share * images + (1 - share) * others)


def test_cutmix_pastes_a_rectangle_and_counts_its_area():
    rows, zeros = np.arange(500), torch.zeros(500, 3, 12, 16)
    mixed, kept = Augmentation(cutmix=1.0).mix(zeros, torch.ones(500, 3, 12, 16), rows, 0, 0)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert_close(kept, 1 - mixed.mean(dim=(1, 2, 3)))
    for one in mixed[:, 0].bool():
        if one.any():
            rows, columns = one.any(dim=1).nonzero().flatten(), one.any(dim=0).nonzero().flatten()
            assert one.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert kept.std() > 0.1


def test_one_or_the_other_where_both_are_chosen():
    rows = np.arange(1000)
    mixed, kept = Augmentation(mixup=1.0, cutmix=1.0).mix(
        torch.zeros(1000, 1, 8, 8), torch.ones(1000, 1, 8, 8), rows, 0, 0
    )
    blended = ((mixed > 0) & (mixed < 1)).flatten(1).any(dim=1)
    assert 400 < blended.sum() < 600
    assert_close(kept, 1 - mixed.mean(dim=(1, 2, 3)))


def test_partners_are_any_of_the_training_part():
    partners = Augmentation(mixup=1.0).partners(np.arange(20_000), 10, 0, 0)
    counts = np.bincount(partners, minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_box_is_of_whole_pixels():
    found = box(np.array([0.5]), np.array([0.0]), torch.tensor([2.0]), torch.tensor([4.0]), 6, 8)[0, 0]
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[2:4, 0:2] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crop": (0.0, 1.0)}, r"crop\[0\] must be above 0 and at most 1, got 0.0"),
        ({"crop": (0.5, 1.5)}, r"crop\[1\] must be above 0 and at most 1, got 1.5"),
        ({"scale": (1.2, 0.8)}, "augmentation.scale must be two numbers, the lower one first"),
        ({"flip": 1.5}, "flip must be from 0 to 1, got 1.5"),
        ({"shift": 0.5}, "augmentation.shift must be whole pixels, got 0.5"),
        ({"shift": -1}, "shift must be at least 0, got -1"),
        ({"mixup": -1.0}, "mixup must be at least 0, got -1.0"),
        ({"magnitude": 31.0}, "magnitude must be from 0 to 30, got 31.0"),
    ],
)
def test_what_is_no_augmentation(fields, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**fields)
