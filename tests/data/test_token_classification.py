"""Tagged words as batches: alignment with sub-words, sentences longer than a row, words without a token."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Byte, Character, CoNLL, DataError, TokenClassificationData, Tokenizer
from attnlab.data.classification import groups_within
from attnlab.data.entities import Tagged, TaggedSource
from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import END, MASK, START, leading_special_tokens


class Given(TaggedSource):
    """Sentences that a test hands over."""

    name = "given"

    def __init__(self, words, tags, test=None):
        self.parts = {
            "train": Tagged(words, tags),
            "validation": Tagged(words, tags),
            "test": test or Tagged(words, tags),
        }

    def read(self, cache=None):
        return self.parts


SENTENCES = [
    ["Ms", "Anna-Lee", "Ng", "lives", "in", "San", "José", "'s", "centre", "!"],
    ["RT", "@ng", "::", "http://x.y/z", "don't", "go", "123,456"],
    ["ok"],
]
TAGS = [
    ["O", "B-per", "I-per", "O", "O", "B-loc", "I-loc", "O", "O", "O"],
    ["O", "B-per", "O", "O", "O", "O", "O"],
    ["O"],
]


def data(tokenizer=None, words=SENTENCES, tags=TAGS, test=None, **fields):
    given = {"max_length": 100, "batch_tokens": 200}
    return TokenClassificationData(Given(words, tags, test), tokenizer or BPE(280), **{**given, **fields})


@pytest.mark.parametrize("tokenizer", [BPE(280), Byte(), Character()], ids=lambda tokenizer: tokenizer.name)
def test_a_row_is_the_running_text_with_labels_where_words_begin(tokenizer):
    module = data(tokenizer)
    part = module.split("train")
    for row, labels, words, tags in zip(part.rows, part.labels, SENTENCES, TAGS, strict=True):
        text = "".join(f" {word}" for word in words)
        assert (row[0], row[-1]) == (START, END)
        assert row[1:-1].tolist() == module.vocabulary.encode(text).tolist()
        firsts = np.flatnonzero(labels != IGNORED)
        assert [module.labels[i] for i in labels[firsts]] == tags
        ends = [*firsts[1:], len(row) - 1]
        assert [module.vocabulary.decode(row[a:b]) for a, b in zip(firsts, ends, strict=True)] == [
            f" {w}" for w in words
        ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    max_length=st.integers(3, 40),
    seed=st.integers(0, 99),
)
def test_no_word_is_lost_however_long_sentence_and_words_are(lengths, max_length, seed):
    random = np.random.default_rng(seed)
    words = [["".join(random.choice(list("ab"), n)) for n in lengths], ["a"]]
    tags = [[str(tag) for tag in random.choice(["O", "B-x", "B-y"], len(lengths))], ["B-x"]]
    tags[1:] = [["B-y"]] if "B-x" in tags[0] else [["B-x"]]
    module = data(Byte(), words, tags, max_length=max_length)
    part = module.split("test")
    assert max(part.lengths) <= max_length
    found = {}
    for batch in module.evaluation_loader("test"):
        for row, labels in zip(batch["ids"].tolist(), batch["labels"].numpy(), strict=True):
            assert row not in found
            found[row] = [module.labels[i] for i in labels[labels != IGNORED]]
    assert module.by_sentence("test", found) == tags
    assert part.counts["words cut"] == sum(n + 1 > max_length - 2 for n in lengths) + (max_length == 3)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1), room=st.integers(1, 12))
def test_groups_are_neighbours_that_fit_and_no_two_could_be_one(lengths, room):
    groups = groups_within(lengths, room)
    assert [place for group in groups for place in group] == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in group) for group in groups]
    assert all(size <= room or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    assert all(size + lengths[after[0]] > room for size, after in zip(sizes, groups[1:], strict=False))


@dataclass(frozen=True)
class Deaf(Tokenizer):
    """Has a token for letters alone."""

    name = "character"
    vocabulary_size: int = 26

    def train(self, text):
        return self

    def encode(self, text):
        return np.array([ord(c) - ord("a") for c in text if "a" <= c <= "z"], dtype=np.uint16)


def test_a_word_without_a_token_is_the_mask(monkeypatch):
    module = data(Deaf(), [["ab", "\u200d", "c"]], [["O", "B-x", "O"]])
    monkeypatch.setattr(Tokenizer, "load", lambda path: Deaf())
    part = module.split("train")
    letter = module.vocabulary.first_text
    assert part.rows[0].tolist() == [START, letter, letter + 1, MASK, letter + 2, END]
    assert [module.labels[i] for i in part.labels[0] if i != IGNORED] == ["O", "B-x", "O"]


def test_widths_batches_and_what_is_told():
    module = data()
    module.setup()
    assert module.labels == ["O", "B-loc", "I-loc", "B-per", "I-per"]
    assert module.dims() == {
        "vocabulary_size": module.vocabulary.size,
        "num_classes": 5,
        "special_tokens": leading_special_tokens(),
    }
    assert set(module.dims()) == set(module.placeholder_dims())
    assert module.train_tokens == 18
    assert "sentences train 3, validation 3, test 3; 2 types of entity" in module.describe()
    batch = next(iter(module.train_dataloader()))
    assert batch["labels"].shape == batch["tokens"].shape
    assert (batch["labels"][~batch["is_token"]] == IGNORED).all()


def test_types_are_those_of_the_training_part_and_then_those_it_lacks():
    module = data(test=Tagged([["a", "b", "c"]], [["B-an", "B-an", "B-per"]]))
    module.setup()
    assert module.types == ["loc", "per", "an"]
    said = "2 in test of entities of types that training has no example of ('an'): they count as missed"
    assert said in module.describe()
    assert module.facts()["remarks"] == [said]
    with pytest.raises(DataError, match=r"has no entity: every tag is O; look at data.source.tag_column"):
        data(words=[["a"]], tags=[["O"]]).setup()


def test_files_of_ones_own(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text("a B-x\nb I-x\n\nc O\n")
    module = TokenClassificationData(CoNLL, Byte(), path=str(tmp_path))
    module.setup()
    assert module.facts()["sentences"] == {"train": 2, "validation": 2, "test": 2}
