"""A new data set is one declaration and one YAML file, and is checked, cached, batched and listed as ours are."""

import sys

import pytest
import yaml
from hydra.utils import instantiate

DECLARATION = '''
from attnlab.data.labelled import LabelledSource, labelled
from attnlab.data.readers import read_lines
from attnlab.data.source import completed, existing


class Reviews(LabelledSource):
    """Reviews of two shops: a star, a blank and the text on each line of train.txt and test.txt."""

    name = "reviews"
    what = "reviews of two shops: data.path=FOLDER"

    def __init__(self, path):
        self.path = existing(path, "a folder with train.txt and test.txt")

    def read(self, cache=None):
        return completed({split: self.part(split) for split in ("train", "test")})

    def part(self, split):
        rows = [line.partition(" ") for line in read_lines(self.path / f"{split}.txt")]
        return labelled([(text, stars) for stars, _, text in rows], len(rows))
'''
YAML = """
# Reviews of two shops.
_target_: attnlab.data.ClassificationData
source: {_target_: shops.Reviews, _partial_: true}
path: ???
batch_tokens: 400
"""


@pytest.fixture
def shops(tmp_path, monkeypatch):
    """The declaration on the path, and a folder of the data."""
    (tmp_path / "shops.py").write_text(DECLARATION)
    monkeypatch.syspath_prepend(tmp_path)
    for split, count in {"train": 200, "test": 20}.items():
        lines = [f"{1 + i % 5} {'good ' * (i % 7)}shop {i}" for i in range(count)]
        (tmp_path / f"{split}.txt").write_text("\n".join([*lines, "3 ", ""]))
    yield str(tmp_path)
    sys.modules.pop("shops", None)


def test_one_declaration_and_one_file_are_a_data_set(shops, own_cache):
    data = instantiate({**yaml.safe_load(YAML), "path": shops, "tokenizer": {"_target_": "attnlab.data.Character"}})
    data.prepare_data()
    data.setup()
    facts = data.facts()
    assert facts["classes"] == ["1", "2", "3", "4", "5"]
    assert facts["texts"]["train"] + facts["texts"]["validation"] == 200
    assert facts["left_out"]["train"]["without text"] == 1
    assert list(own_cache.glob("labelled/reviews-*/tokenizer.json"))
    batch = next(iter(data.train_dataloader()))
    texts = data.source.read()["train"].texts
    for row, number in enumerate(batch["ids"].tolist()):
        assert data.vocabulary.decode(batch["tokens"][row][1:]).strip() == texts[number]


def test_what_it_is_told_wrong_is_said_in_the_words_of_ours(tmp_path, shops):
    with pytest.raises(Exception, match=r"data\.path=.*nowhere does not exist .*a folder with train.txt and test.txt"):
        instantiate(
            {
                **yaml.safe_load(YAML),
                "path": str(tmp_path / "nowhere"),
                "tokenizer": {"_target_": "attnlab.data.Character"},
            }
        )
