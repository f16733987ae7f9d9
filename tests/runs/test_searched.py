"""`attnlab search`: the images closest to a phrase, as a list and a picture, of a stand-in that knows what is right."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.data.test_image_text import Dots

from attnlab.data import Character, ImageTextData
from attnlab.runs.searched import search


class Knowing(torch.nn.Module):
    """Embeds an image as its pixels, and a text that says where a dot is as those of such an image."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def encode_images(self, images):
        return F.normalize(images.flatten(1), dim=1)

    def encode_texts(self, tokens, is_token):
        texts = [self.data.vocabulary.decode(row[kept]) for row, kept in zip(tokens, is_token, strict=True)]
        images = torch.zeros(len(texts), 1, 8, 8)
        for image, text in zip(images, texts, strict=True):
            row, column = (int(word) for word in text.split() if word.isdigit())
            image[0, row, column] = 200 / 255
        return self.encode_images(self.data.normalised(images))


@pytest.fixture
def data(here, monkeypatch):
    """The data of the run RUN, whose model is the stand-in."""
    monkeypatch.setenv("ATTNLAB_CACHE", str(here / "cache"))
    data = ImageTextData(Dots(), Character(), max_length=24)
    data.setup()
    parts, task = SimpleNamespace(data=data), SimpleNamespace(model=Knowing(data))
    monkeypatch.setattr("attnlab.runs.searched.load_run", lambda *_: (parts, task))
    Path("RUN").mkdir()
    return data


@pytest.mark.slow  # draws
def test_the_best_images_are_listed_by_their_cosines_and_shown(data, attnlab):
    said = attnlab("search", "RUN", "row 2 column 1", "--split", "train", "--top", "7")
    assert said.status == 0, said.err
    *lines, last = said.out.splitlines()
    images = torch.from_numpy(data.split("train").pixels).double() / 255
    looked_for = torch.zeros(1, 8, 8).double()
    looked_for[0, 2, 1] = 200 / 255
    mean, deviation = data.mean_C[0], data.deviation_C[0]
    cosines = F.cosine_similarity(
        ((images - mean) / deviation).flatten(1), ((looked_for - mean) / deviation).flatten(), 1
    )
    captions = data.split("train").captions
    best = {caption: float(score) for caption, score in zip(captions, cosines, strict=True)}
    assert len(lines) == 7
    assert lines[0].split(maxsplit=2) == ["1", f"{max(best.values()):.3f}", "row 2 column 1"]
    for number, line in enumerate(lines, start=1):
        place, score, caption = line.split(maxsplit=2)
        assert (int(place), float(score)) == (number, pytest.approx(best[caption], abs=6e-4))
    count = len({pixels.tobytes() for pixels in data.split("train").pixels})
    assert last == f"RUN/outputs/search.png: the best 7 of {count} images (train)"
    assert np.asarray(Image.open("RUN/outputs/search.png")).std() > 1


def test_an_image_of_several_captions_is_found_once(data):
    found = search(Path("RUN"), "last", "row 0 column 0", "train", 99)
    count = len({pixels.tobytes() for pixels in data.split("train").pixels})
    assert len(found.hits) == found.candidates == count < len(data.split("train"))
    assert len({hit.pixels_CYX.tobytes() for hit in found.hits}) == count


@pytest.mark.slow  # trains
def test_a_trained_run_is_searched(attnlab, here, library):
    words = ["model=clip", "data=image_text", f"data.path={library / 'captioned'}", "data.source.image_size=8"]
    words += ["data.batch_size=8", "tokenizer=byte", "model.d_model=16", "model.num_heads=2", "model.num_layers=1"]
    words += ["trainer.max_steps=2", "schedule.warmup_steps=0", "trainer.threads=1", "progress=off", "run_dir=run"]
    said = attnlab("train", *words)
    assert said.status == 0, said.err
    said = attnlab("search", "run", "the quick fox", "--output", "sheet.pdf", "--top", "2")
    assert said.status == 0, said.err
    first, second, last = said.out.splitlines()
    scores = [float(line.split()[1]) for line in (first, second)]
    assert -1 <= scores[1] <= scores[0] <= 1
    captions = {path.read_text().strip() for path in (library / "captioned").glob("*.txt")}
    assert {line.split(maxsplit=2)[2] for line in (first, second)} <= captions
    assert last.startswith("sheet.pdf: the best 2 of ")
    assert Path("sheet.pdf").read_bytes().startswith(b"%PDF")
    assert not Path("run/outputs/search.png").exists()


def test_a_long_phrase_is_cut_and_told(data, attnlab):
    said = attnlab("search", "RUN", "row 2 column 1 again again", "--top", "1")
    assert said.err == "the phrase is cut at the most tokens of a caption (data.max_length)\n"


REFUSED = {
    "an empty phrase": (["RUN", " "], "the phrase is empty; say what to look for"),
    "no images": (["RUN", "row", "--top", "0"], "--top must be from 1 to 200, got 0"),
    "another ending": (["RUN", "row", "--output", "a.gif"], "--output must be a file that ends in .pdf or .png"),
    "no such split": (
        ["RUN", "row 1 column 1", "--split", "odd"],
        "dots has no pairs in a split 'odd'; accepted: train",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_searched_is_one_message(data, attnlab, name):
    words, message = REFUSED[name]
    said = attnlab("search", *words)
    assert said.status in (1, 2)
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_run_of_another_kind_is_refused(attnlab, data, monkeypatch):
    parts, task = SimpleNamespace(data=data), SimpleNamespace(model=torch.nn.Linear(2, 2))
    monkeypatch.setattr("attnlab.runs.searched.load_run", lambda *_: (parts, task))
    said = attnlab("search", "RUN", "a dog")
    assert said.err.startswith("attnlab: RUN: Linear finds no images for a text; give a run of one that does, such as")
    monkeypatch.undo()
    assert attnlab("search", "nowhere", "a dog").err.startswith("attnlab: nowhere: there is no run (no run.json)")
