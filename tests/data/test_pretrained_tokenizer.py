"""Tokenizers of published models: the numbers, texts, places and marks that transformers gives, for any text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import KINDS, TEXT, save

from attnlab.data import DataError, Tokenizer, read_tokenizer
from attnlab.data.vocabulary import Vocabulary, framed

TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["fox", " the ", "\n", "é", "</s>", "[MASK]", "<extra_id_1>", "<|im_end|>"])).map("".join),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def both(folders):
    """Each tokenizer as transformers reads it, and as it is read here."""
    from transformers import AutoTokenizer

    return {
        kind: (AutoTokenizer.from_pretrained(folder), read_tokenizer(str(folder))) for kind, folder in folders.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_numbers_and_texts_are_those_of_transformers(both, kind, text):
    theirs, own = both[kind]
    tokens = own.encode(text)
    assert tokens.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert own.decode(tokens) == theirs.decode(
        tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    marks = own.marks
    assert framed(marks.text, tokens).tolist() == theirs(text)["input_ids"]
    pair = theirs(text, "fox")["input_ids"]
    assert framed(marks.pair, tokens, own.encode("fox")).tolist() == pair
    located, places = own.locate(text)
    assert np.array_equal(located, tokens)
    assert places.tolist() == [
        list(p) for p in theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]


EXPECTED = {
    "bert": {"pad": 0, "start": 2, "end": 3, "mask": 4, "separator": 3, "target_start": 2, "target": ((), (3,))},
    "gpt2": {"pad": 0, "start": 0, "end": 0, "mask": None, "separator": None, "target": ((), (0,)), "text": ((), ())},
    "bart": {
        "pad": 1,
        "start": 0,
        "end": 2,
        "mask": 4,
        "target_start": 2,
        "pair": ((0,), (2, 2), (2,)),
        "never": (1, 4),
    },
    "llama": {
        "pad": None,
        "start": 1,
        "end": 2,
        "target_start": 1,
        "text": ((1,), ()),
        "target": ((), (2,)),
        "filler": 2,
    },
    "t5": {
        "pad": 0,
        "start": None,
        "end": 1,
        "target_start": 0,
        "text": ((), (1,)),
        "target": ((), (1,)),
        "never": (0,),
    },
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_marks_and_where_they_stand(both, kind):
    marks = both[kind][1].marks
    assert {name: getattr(marks, name) for name in EXPECTED[kind]} == EXPECTED[kind]


def test_a_decoders_input_is_what_transformers_shifts_to_the_right(both):
    """BART: labels <s> x </s>, input </s> <s> x; T5: labels x </s>, input <pad> x."""
    for kind, start in {"bart": 2, "t5": 0}.items():
        theirs, own = both[kind]
        labels = framed(own.marks.target, own.encode("The fox")).tolist()
        assert labels == theirs(text_target="The fox")["input_ids"]
        assert own.marks.target_start == start


def test_sentinels_are_counted_by_their_names(both):
    theirs, own = both["t5"]
    names = [f"<extra_id_{i}>" for i in range(12)]
    assert list(own.marks.sentinels) == theirs.convert_tokens_to_ids(names)
    assert own.marks.sentinels[0] > own.marks.sentinels[1]
    assert Vocabulary(own, 5).sentinels.tolist() == list(own.marks.sentinels[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_text_tokens_are_neither_marks_nor_rows_of_no_token(both, kind):
    theirs, own = both[kind]
    marks = {number for number, token in theirs.added_tokens_decoder.items() if token.special}
    assert set(own.text_tokens.tolist()) == set(range(len(theirs))) - marks
    assert own.vocabulary_size == {"t5": 192}.get(kind, len(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_where_they_are_spelt_to(both, kind):
    own = both[kind][1]
    begins, tokens = own.begins_word(), own.encode("The quick naïve fox")
    assert [own.decode(tokens[start:]).split()[0] for start in np.flatnonzero(begins[tokens])] == (
        own.decode(tokens).split()[0 if begins[tokens[0]] else 1 :]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_encoded_as_it_looks_within_a_text(both, kind):
    own = both[kind][1]
    whole, first, word = (own.encode(text).tolist() for text in ("fox lazy", "fox", f"{own.word_lead}lazy"))
    assert whole == first + word


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_kept_as_json_and_nothing_is_learned(both, tmp_path, kind):
    own = both[kind][1]
    own.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.as_json() == own.as_json()
    assert again.marks == own.marks
    assert again.encode(TEXT[0]).tolist() == own.encode(TEXT[0]).tolist()
    assert own.train("other text") is own
    assert read_tokenizer(str(tmp_path)).as_json() == own.as_json()


def test_a_mark_that_is_missing_is_named(both):
    vocabulary = Vocabulary(both["gpt2"][1])
    message = r"this tokenizer has no mask mark \(pad 0, start 0, end 0, target_start 0\), and here one stands where a token is hidden; take"
    with pytest.raises(DataError, match=message):
        _ = vocabulary.mask
    with pytest.raises(DataError, match="has no separator mark"):
        vocabulary.pair_marks()
    assert (vocabulary.pad, vocabulary.end, vocabulary.first_text) == (0, 0, 0)
