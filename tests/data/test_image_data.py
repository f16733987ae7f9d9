"""Batches of images: each once an epoch, the same for any number of ranks, resumable, normalised by the training part."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.loading import place, take

from attnlab.data import Augmentation, DataError, Digits, ImageData
from attnlab.data.images import Images, ImageSource


class Stripes(ImageSource):
    """Images whose class is the row that is bright."""

    name = "stripes"

    def __init__(self, path=None, count=60, parts=("train", "test"), size=4):
        self.count, self.parts, self.size = count, parts, size

    def read(self, cache=None):
        return {name: self.part(seed) for seed, name in enumerate(self.parts)}

    def part(self, seed):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 120, (self.count, 2, self.size, self.size), dtype=np.uint8)
        rows = np.arange(self.count) % 3
        pixels[np.arange(self.count), :, rows] += np.uint8(100)
        return Images(pixels, [f"row {row}" for row in rows])


MIXED = Augmentation(shift=1, degrees=20, flip=0.5, operations=1, erase=0.5, mixup=0.4, cutmix=0.5)


def data(**fields):
    module = ImageData(**{"source": Stripes(), "batch_size": 8, **fields})
    module.setup()
    return module


def assert_same(batch, other):
    assert set(batch) == set(other)
    for name in batch:
        assert torch.equal(batch[name], other[name]), name


def test_widths_and_facts():
    module = data()
    assert module.dims() == {"image_size": (4, 4), "channels": 2, "num_classes": 3}
    assert set(module.placeholder_dims()) == set(module.dims())
    assert ImageData(Digits).placeholder_dims() == {"image_size": (8, 8), "channels": 1, "num_classes": 2}
    facts = module.facts()
    assert facts["images"] == {"train": 54, "validation": 6, "test": 60}
    assert (facts["classes"], facts["shape"]) == (["row 0", "row 1", "row 2"], [2, 4, 4])
    assert module.describe() == "stripes: images train 54, validation 6, test 60 of 4 x 4 x 2; 3 classes"
    assert (module.train_tokens, module.tokens_per_batch, module.unit) == (54, 8, "image")


def test_normalisation_is_by_the_training_part():
    module = data()
    pixels = module.split("train").pixels / 255
    assert module.mean_C == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-12)
    assert module.deviation_C == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-12)
    [epoch] = [batch["images"] for batch in take(data(batch_size=54), 1)]
    assert epoch.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (epoch.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    [test] = module.evaluation_loader("test")
    given = torch.from_numpy(module.split("test").pixels).float()[test["ids"]] / 255
    mean, deviation = (torch.from_numpy(v).float()[:, None, None] for v in (module.mean_C, module.deviation_C))
    torch.testing.assert_close(test["images"], (given - mean) / deviation)
    dark = data(source=Constant())
    assert dark.deviation_C.tolist() == [1.0]
    assert dark.split("train").pixels.max() == 0


class Constant(Stripes):
    """Images without a bright pixel."""

    def part(self, seed):
        return Images(
            np.zeros((self.count, 1, 4, 4), dtype=np.uint8), [f"row {place % 2}" for place in range(self.count)]
        )


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    world_size=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_a_step_is_the_same_however_it_is_split(batch_size, world_size, accumulate, seed):
    whole = take(data(batch_size=batch_size * world_size * accumulate, seed=seed, augmentation=MIXED), 3)
    ranks = [
        take(
            place(data(batch_size=batch_size, seed=seed, augmentation=MIXED), rank, world_size, accumulate),
            3 * accumulate,
        )
        for rank in range(world_size)
    ]
    for step, expected in enumerate(whole):
        micro = range(step * accumulate, (step + 1) * accumulate)
        given = [rank[number] for number in micro for rank in ranks]
        for name in expected:
            joined = torch.cat([batch[name] for batch in given])
            torch.testing.assert_close(joined, expected[name], rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 130), seed=st.integers(0, 9))
def test_every_epoch_gives_each_image_once(batch_size, seed):
    seen = [
        row
        for batch in take(data(batch_size=batch_size, seed=seed), -(-3 * 54 // batch_size))
        for row in batch["ids"].tolist()
    ]
    for epoch in range(3):
        assert sorted(seen[epoch * 54 : (epoch + 1) * 54]) == list(range(54))
    assert seen[:54] != seen[54:108]


def test_two_epochs_have_other_orders_and_other_augmentations():
    module = data(batch_size=54, augmentation=MIXED)
    first, second = take(module, 2)
    assert not torch.equal(first["ids"], second["ids"])
    assert torch.equal(first["ids"].sort().values, second["ids"].sort().values)
    assert not torch.allclose(first["images"][first["ids"].argsort()], second["images"][second["ids"].argsort()])
    assert_same(take(data(batch_size=54, augmentation=MIXED), 1)[0], first)
    assert not torch.equal(take(data(batch_size=54, augmentation=MIXED, seed=1), 1)[0]["ids"], first["ids"])


@pytest.mark.parametrize("stop", [1, 6, 7, 9])
def test_a_saved_place_goes_on_with_the_same_bits(stop):
    whole = take(data(augmentation=MIXED), 12)  # 54 images are 7 batches less 2
    stopped = data(augmentation=MIXED)
    take(stopped, stop)
    resumed = data(augmentation=MIXED)
    resumed.load_state_dict(stopped.state_dict())
    for batch, expected in zip(take(resumed, 12 - stop), whole[stop:], strict=True):
        assert_same(batch, expected)


@settings(max_examples=20, deadline=None)
@given(world_size=st.integers(1, 4), split=st.sampled_from(["train", "validation", "test"]))
def test_evaluation_gives_each_image_once_over_all_ranks_as_it_is(world_size, split):
    modules = [
        place(data(augmentation=MIXED, source=Stripes(count=300)), rank, world_size) for rank in range(world_size)
    ]
    batches = [batch for module in modules for batch in module.evaluation_loader(split)]
    ids = torch.cat([batch["ids"] for batch in batches])
    part = modules[0].split(split)
    assert sorted(ids.tolist()) == list(range(len(part)))
    for batch in batches:
        pixels = torch.from_numpy(part.pixels[batch["ids"].numpy()]).float() / 255
        assert torch.equal(batch["images"], modules[0].normalised(pixels))
        assert [label.item() for label in batch["labels"]] == [part.labels[row] for row in batch["ids"]]
        assert "targets" not in batch


@pytest.mark.parametrize("flip", [0.0, 1.0])  # a partner is augmented, too
def test_mixed_images_have_shares_of_two_classes(flip):
    module = data(augmentation=Augmentation(mixup=1.0, flip=flip), batch_size=54)
    [batch] = take(module, 1)
    targets = batch["targets"]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(54))
    assert ((targets > 0).sum(dim=1) <= 2).all()
    assert torch.equal(targets.argmax(dim=1), batch["labels"])
    pixels = torch.from_numpy(module.split("train").pixels).float() / 255
    pixels = pixels.flip(3) if flip else pixels
    labels = torch.from_numpy(module.labels("train"))
    others = module.augmentation.partners(batch["ids"].numpy(), 54, 0, 0)
    _, kept = module.augmentation.mix(pixels[batch["ids"]], pixels[others], batch["ids"].numpy(), 0, 0)
    mixed = kept[:, None, None, None] * pixels[batch["ids"]] + (1 - kept)[:, None, None, None] * pixels[others]
    torch.testing.assert_close(batch["images"], module.normalised(mixed), rtol=0, atol=1e-5)
    for row in range(54):
        expected = torch.zeros(3)
        expected[labels[batch["ids"][row]]] += kept[row]
        expected[labels[others[row]]] += 1 - kept[row]
        torch.testing.assert_close(targets[row], expected)


def test_validation_is_held_out_unless_all_are_to_be_trained_on():
    held_out, all_of_them = data(), data(validation_share=0.0)
    as_sets = [{p.tobytes() for p in held_out.split(name).pixels} for name in ("train", "validation")]
    assert not as_sets[0] & as_sets[1]
    assert len(as_sets[0] | as_sets[1]) == 60
    assert len(all_of_them.split("train")) == 60
    assert {p.tobytes() for p in all_of_them.split("validation").pixels} <= {
        p.tobytes() for p in all_of_them.split("train").pixels
    }
    assert all_of_them.facts()["validated_on_training_images"] is True
    assert all_of_them.describe().endswith("; validation is on a part of the training images")
    own = data(source=Stripes(parts=("train", "validation", "test")), validation_share=0.0)
    assert len(own.split("train")) == len(own.split("validation")) == 60
    assert own.facts()["validated_on_training_images"] is False


def test_a_class_of_one_image_can_be_trained_on_and_not_held_out():
    module = data(source=Lonely(), validation_share=0.0)
    assert (module.labels("validation") == module.classes.index("row 9")).sum() == 1
    with pytest.raises(
        DataError, match=r"the class 'row 9' has too few images .* 'validation': 1; accepted: 2 or more"
    ):
        data(source=Lonely())


class Lonely(Stripes):
    """One image of a class."""

    def part(self, seed):
        part = super().part(seed)
        return Images(part.pixels, ["row 9", *part.labels[1:]])


def test_mistakes():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ImageData(Digits, batch_size=0)
    with pytest.raises(ValueError, match=r"validation_share must be from 0 to 0.5, got 0.9"):
        ImageData(Digits, validation_share=0.9)
    with pytest.raises(DataError, match="stripes has no images in a split 'extra'; accepted: train, validation, test"):
        data().split("extra")
    with pytest.raises(DataError, match="the training part of stripes has 1 class"):
        data(source=OneClass())
    with pytest.raises(
        DataError, match=r"the test part of stripes has images of \(2, 5, 5\) .*\(2, 4, 4\); set data.source.im"
    ):
        data(source=Uneven())


class OneClass(Stripes):
    """A training part of one class, or a test part with another one."""

    def __init__(self, new=None):
        super().__init__()
        self.new = new

    def part(self, seed):
        part = super().part(seed)
        if self.new is None:
            return Images(part.pixels, ["same"] * len(part))
        return Images(part.pixels, [self.new, *part.labels[1:]] if seed else part.labels)


class Uneven(Stripes):
    """A test part of larger images."""

    def part(self, seed):
        self.size = 4 + seed
        return super().part(seed)


def test_a_source_is_completed_with_the_path():
    seen = []

    def source(path):
        seen.append(path)
        return Stripes()

    ImageData(partial(source), path="here")
    assert seen == ["here"]
