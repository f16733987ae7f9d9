import subprocess
import sys

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Byte, Character, DataError, Tokenizer, Unigram
from attnlab.data import tokenizers as module

TRAINING_TEXT = "In the beginning was the Word, and the Word was with God.\n\n  Straße, don't!\n" * 30
LOSSLESS = [Byte(), BPE(300).train(TRAINING_TEXT), Unigram(300).train(TRAINING_TEXT)]


@pytest.mark.parametrize("tokenizer", LOSSLESS, ids=lambda tokenizer: tokenizer.name)
@given(text=st.text())
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_unchanged(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.uint16
    assert tokens.size == 0 or tokens.max() < tokenizer.vocabulary_size
    assert tokenizer.decode(tokens) == text


@given(text=st.text(alphabet=st.characters(), min_size=1), data=st.data())
@settings(max_examples=60, deadline=None)
def test_characters_come_back_and_a_token_is_a_character(text, data):
    tokenizer = Character().train(text)
    part = data.draw(st.text(alphabet=st.sampled_from(text)))
    assert tokenizer.vocabulary_size == len(set(text))
    assert [tokenizer.alphabet[token] for token in tokenizer.encode(part)] == list(part)
    assert tokenizer.decode(tokenizer.encode(part)) == part


@given(alphabet=st.text(min_size=1), text=st.text())
@settings(max_examples=60, deadline=None)
def test_character_outside_of_the_alphabet_is_named(alphabet, text):
    tokenizer = Character().train(alphabet)
    unknown = [character for character in text if character not in alphabet]
    if unknown:
        with pytest.raises(DataError) as caught:
            tokenizer.encode(text)
        assert f"{unknown[0]!r} (U+{ord(unknown[0]):04X})" in str(caught.value)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_given_alphabet_is_kept():
    assert Character(alphabet="abc").train("ba").vocabulary_size == 3


def test_bytes_are_those_of_utf8():
    assert Byte().encode("aé").tolist() == [0x61, 0xC3, 0xA9]
    assert Byte().decode([0x61, 0xFF]) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("tokenizer", LOSSLESS[1:], ids=lambda tokenizer: tokenizer.name)
def test_tokens_are_those_of_the_library(tokenizer):
    reference = library.Tokenizer.from_str(tokenizer.rules)
    text = "the Word was Straße"
    assert tokenizer.encode(text).tolist() == reference.encode(text).ids
    assert len(tokenizer.encode(text)) < len(text.encode())


@pytest.mark.parametrize(
    "tokenizer", [*LOSSLESS, Character().train(TRAINING_TEXT)], ids=lambda tokenizer: tokenizer.name
)
def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == tokenizer


@given(text=st.text(alphabet="ab .\n'é1", max_size=120))
@settings(max_examples=50, deadline=None)
def test_text_given_in_pieces_has_the_same_tokens(text):
    expected = [tokenizer.encode(text).tolist() for tokenizer in LOSSLESS[1:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 7)
        assert "".join(module._pieces(text)) == text
        assert [tokenizer.encode(text).tolist() for tokenizer in LOSSLESS[1:]] == expected


@pytest.mark.parametrize("kind", [BPE, Unigram])
def test_vocabulary_smaller_than_the_bytes_is_refused(kind):
    with pytest.raises(ValueError, match="vocabulary_size must be from 256 to 16777216, got 255"):
        kind(255)


def test_large_vocabularies_get_wider_numbers():
    tokenizer = Character("".join(map(chr, range(0x10000, 0x10000 + 70_000))))
    tokens = tokenizer.encode(chr(0x10000 + 69_999))
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [69_999]


TRAIN = """
import hashlib, sys
from attnlab.data import TOKENIZERS
text = sys.stdin.read()
print([hashlib.sha256(TOKENIZERS[name](500).train(text).rules.encode()).hexdigest() for name in ("bpe", "unigram")])
"""


def test_training_gives_the_same_rules_in_every_process(prose):
    outputs = {
        subprocess.run([sys.executable, "-c", TRAIN], input=prose, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("piece", [1 << 20, 5], ids=["whole", "in pieces"])
@pytest.mark.parametrize("tokenizer", [*LOSSLESS, Character()], ids=lambda tokenizer: tokenizer.name)
def test_tokens_are_located_at_the_characters_that_they_spell(tokenizer, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)

    @given(text=st.text(alphabet="abthe é—日🎉'.1 \n", max_size=40))
    @settings(max_examples=60, deadline=None)
    def assert_located(text):
        trained = tokenizer.train(text) if tokenizer.name == "character" else tokenizer
        tokens, places = trained.locate(text)
        assert tokens.tolist() == trained.encode(text).tolist()
        assert places.shape == (len(tokens), 2)
        # The characters that the bytes of a token (or its code point) belong to, counted without the library.
        subwords = hasattr(trained, "rules")
        sizes = [len(trained._library.id_to_token(token)) if subwords else 1 for token in tokens]
        owners = np.repeat(np.arange(len(text)), [len(c.encode()) if trained.name != "character" else 1 for c in text])
        assert sum(sizes) == len(owners)
        expected = [
            (owners[end - size], owners[end - 1] + 1) for end, size in zip(np.cumsum(sizes), sizes, strict=True)
        ]
        assert list(map(tuple, places.tolist())) == expected

    assert_located()
