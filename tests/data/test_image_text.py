"""Batches of images with texts: what is in them, each pair once an epoch, resumable, over ranks, cut and counted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.loading import place, take

from attnlab.data import BPE, Augmentation, Character, DataError, ImageTextData
from attnlab.data.captions import Captioned, CaptionedSource, completed
from attnlab.data.special_tokens import END, PAD, leading_special_tokens

COUNT = 40


class Dots(CaptionedSource):
    """Images with one bright pixel, and where it is in words; every fifth image has a second text."""

    name = "dots"

    def __init__(self, path=None, labelled=False, long=False):
        self.labelled, self.long = labelled, long

    def read(self, cache=None):
        pixels = np.zeros((COUNT, 1, 8, 8), dtype=np.uint8)
        pixels[np.arange(COUNT), 0, np.arange(COUNT) // 8, np.arange(COUNT) % 8] = 200
        captions = [f"row {n // 8} column {n % 8}" + " and so on" * (self.long and n % 4 == 0) for n in range(COUNT)]
        again = [n for n in range(COUNT) if n % 5 == 0]
        captions += [f"again {n}" for n in again]
        rows = [*range(COUNT), *again]
        labels = [f"row {n // 8}" if self.labelled else "" for n in rows]
        return completed({"train": Captioned(pixels[rows], captions, labels, dropped=3)})


SHIFTED = Augmentation(shift=1, degrees=10)


def data(**fields):
    module = ImageTextData(**{"source": Dots(), "tokenizer": Character(), "batch_size": 8, "max_length": 24, **fields})
    module.setup()
    return module


def test_a_batch_is_the_images_and_their_captions_up_to_the_end():
    module = data(tokenizer=BPE(vocabulary_size=280))
    part = module.split("train")
    for batch in take(module, 6):
        assert {name: value.dtype for name, value in batch.items()} == {
            "images": torch.float32,
            "tokens": torch.int64,
            "is_token": torch.bool,
            "ids": torch.int64,
        }
        for row, number in enumerate(batch["ids"].tolist()):
            tokens = batch["tokens"][row][batch["is_token"][row]]
            assert (tokens == END).nonzero().tolist() == [[len(tokens) - 1]]
            assert module.vocabulary.decode(tokens).strip() == part.captions[number]
            assert (batch["tokens"][row][~batch["is_token"][row]] == PAD).all()
            assert batch["is_token"][row].tolist() == sorted(batch["is_token"][row].tolist(), reverse=True)
            bright = divmod(int(part.pixels[number, 0].argmax()), 8)
            assert divmod(int(batch["images"][row, 0].argmax()), 8) == bright
    images = module.images_of("train", batch["ids"].numpy())
    assert torch.equal(images, batch["images"])
    tokens, is_token = module.encode_texts([part.captions[number] for number in batch["ids"].tolist()])
    assert torch.equal(tokens, batch["tokens"])
    assert torch.equal(is_token, batch["is_token"])


def test_widths_facts_and_words():
    module = data()
    size = module.vocabulary.size
    widths = {"vocabulary_size": size, "special_tokens": leading_special_tokens(), "max_length": 24}
    assert module.dims() == {"image_size": (8, 8), "channels": 1, **widths}
    assert set(ImageTextData(Dots, Character()).placeholder_dims()) == set(module.dims())
    facts = module.facts()
    assert facts["pairs"] == {"train": 38, "validation": 5, "test": 5}
    assert facts["left_out"]["train"] == {"without caption": 3, "cut": 0}
    assert (facts["shape"], facts["vocabulary_size"]) == ([1, 8, 8], size)
    assert module.describe() == (
        f"dots: pairs train 38, validation 5, test 5 of 8 x 8 x 1; vocabulary {size}; without caption in train: 3"
    )
    pixels = module.split("train").pixels / 255
    assert (facts["mean"], facts["deviation"]) == (pytest.approx([pixels.mean()]), pytest.approx([pixels.std()]))
    assert (module.train_tokens, module.tokens_per_batch, module.unit) == (38, 8, "pair")
    assert (module.classes, module.split("test").labels) == (None, None)


def test_an_image_of_several_captions_is_known_again_and_stands_in_one_part():
    module = data()
    seen = set()
    for name in ("train", "validation", "test"):
        part = module.split(name)
        pictures = [pixels.tobytes() for pixels in part.pixels]
        for row, number in enumerate(part.image_of):
            assert [other == number for other in part.image_of] == [its == pictures[row] for its in pictures]
        assert not seen & set(pictures)
        seen |= set(pictures)
    assert len(seen) == COUNT


def test_classes_are_numbers_where_there_are_some():
    module = data(source=Dots(labelled=True))
    assert module.classes == [f"row {n}" for n in range(5)]
    part = module.split("train")
    assert [module.classes[n] for n in part.labels] == [f"row {p[0].argmax() // 8}" for p in part.pixels]


def test_long_captions_are_cut_before_their_end_and_counted():
    module = data(source=Dots(long=True), max_length=18)
    part = module.split("train")
    # 14 characters, the blank before a text and the end are 16; those with more words do not fit.
    long = sum("and so on" in caption for caption in part.captions)
    assert part.counts["cut"] == long > 0
    assert max(map(len, part.rows)) == 18
    assert all(row[-1] == END for row in part.rows)
    assert f"cut in train: {long}" in module.describe()
    assert module.texts_cut(["row 1", "row 1 column 1 and so on", ""]) == [1]
    tokens, is_token = module.encode_texts(["", "row 1"])
    assert tokens[0, : is_token[0].sum()].tolist()[-1] == END


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_a_saved_place_goes_on_with_the_same_bits(stop):
    whole = take(data(augmentation=SHIFTED), 10)  # 38 pairs are 5 batches less 2
    stopped = data(augmentation=SHIFTED)
    take(stopped, stop)
    assert stopped.state_dict() == {"pairs_seen": 8 * stop}
    resumed = data(augmentation=SHIFTED)
    resumed.load_state_dict(stopped.state_dict())
    for batch, expected in zip(take(resumed, 10 - stop), whole[stop:], strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@settings(max_examples=10, deadline=None)
@given(batch_size=st.integers(1, 30), world_size=st.integers(1, 3), seed=st.integers(0, 9))
def test_a_step_has_the_same_pairs_however_it_is_split(batch_size, world_size, seed):
    whole = take(data(batch_size=batch_size * world_size, seed=seed, augmentation=SHIFTED), 2)
    ranks = [
        take(place(data(batch_size=batch_size, seed=seed, augmentation=SHIFTED), rank, world_size), 2)
        for rank in range(world_size)
    ]
    for step, expected in enumerate(whole):
        for name in ("ids", "images"):
            joined = torch.cat([rank[step][name] for rank in ranks])
            torch.testing.assert_close(joined, expected[name], rtol=0, atol=1e-6)
    seen = [row for batch in whole for row in batch["ids"].tolist()]
    assert len(set(seen[:38])) == len(seen[:38])


def test_evaluation_gives_each_pair_once_over_all_ranks_as_it_is():
    modules = [place(data(augmentation=SHIFTED), rank, 2) for rank in range(2)]
    batches = [batch for module in modules for batch in module.evaluation_loader("train")]
    ids = torch.cat([batch["ids"] for batch in batches])
    assert sorted(ids.tolist()) == list(range(38))
    for batch in batches:
        assert torch.equal(batch["images"], modules[0].images_of("train", batch["ids"].tolist()))


def test_the_fingerprint_is_of_pixels_and_words():
    first = data().facts()["fingerprint"]
    assert data(seed=1, batch_size=4).facts()["fingerprint"] == first
    assert data(source=Dots(long=True)).facts()["fingerprint"] != first


def test_mistakes():
    with pytest.raises(
        DataError, match=r"augmentation.mixup and augmentation.cutmix must be 0 with data of images and"
    ):
        data(augmentation=Augmentation(mixup=0.2))
    with pytest.raises(DataError, match="dots has no pairs in a split 'extra'; accepted: train, validation, test"):
        data().split("extra")
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        data(max_length=2)
