"""Marian's tokenizer out of source.spm, target.spm and vocab.json: the numbers and texts that transformers gives, and SentencePiece's pieces."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import save_marian, train_sentencepiece

from attnlab.data import DataError, Tokenizer, read_tokenizer, write_tokenizer
from attnlab.data.marian_tokenizer import library_of

pytest.importorskip("sentencepiece")

ENGLISH = "the quick brown fox jumps over the lazy dog, and then it sleeps well under the old trees; isn't it so?"
GERMAN = "der schnelle braune Fuchs springt über den faulen Hund, und dann schläft er gut unter den alten Bäumen; nicht wahr?"
WORDS = [
    *ENGLISH.split(),
    *GERMAN.split(),
    "  ",
    "\t",
    "\n",
    "ﬁne",
    "½",
    "Ω",
    "😀",
    "a\u0300",
    "\u00a0",
    "\u3000",
    "▁",
    "日本",
    "\uff11\uff12",
    "\x00",
]
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(WORDS)).map(" ".join), st.lists(st.sampled_from(WORDS)).map("".join)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As Marian's are: one list of numbers for the pieces of both languages, of which a few are left out."""
    return save_marian(tmp_path_factory.mktemp("marian"), ENGLISH, GERMAN)


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import MarianTokenizer

    return MarianTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS.filter(lambda text: "<" not in text))
def test_transformers_gives_the_same_numbers_and_texts(folder, theirs, text):
    own = read_tokenizer(str(folder))
    assert [*own.of_source.encode(text).tolist(), 0] == theirs(text)["input_ids"]
    target = theirs(text_target=text)["input_ids"]
    assert [*own.encode(text).tolist(), 0] == target
    assert own.decode(target) == theirs.decode(target, skip_special_tokens=True)
    tokens, places = own.of_source.locate(text)
    assert len(tokens) == len(places)


def test_a_text_may_begin_with_its_language(folder, theirs):
    own, text = read_tokenizer(str(folder)), ">>de<< the fox"
    assert [*own.of_source.encode(text).tolist(), 0] == theirs(text)["input_ids"]
    assert own.numbers[">>de<<"] == own.of_source.encode(text)[0]


def test_marks_are_those_of_the_model(folder):
    marks = read_tokenizer(str(folder)).marks
    pad = len(json.loads((folder / "vocab.json").read_text())) - 1
    assert (marks.pad, marks.end, marks.target_start, marks.ends) == (pad, 0, pad, (0,))
    assert (marks.source, marks.target) == (((), (0,)), ((), (0,)))


def test_it_is_kept_and_written_as_it_was_read(folder, tmp_path):
    own = read_tokenizer(str(folder))
    own.save(tmp_path / "kept.json")
    assert Tokenizer.load(tmp_path / "kept.json") == own
    write_tokenizer(own, tmp_path / "out")
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == json.loads((folder / "vocab.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "bpe"}, "is no plain unigram model of SentencePiece"),
        ({"byte_fallback": True, "vocab_size": 400}, "is no plain unigram model of SentencePiece"),
        ({"user_defined_symbols": ["fox"]}, "is no plain unigram model of SentencePiece"),
        ({"treat_whitespace_as_suffix": True}, "is no plain unigram model of SentencePiece"),
    ],
)
def test_a_model_that_cuts_otherwise_is_refused(tmp_path, options, said):
    train_sentencepiece(ENGLISH, tmp_path / "source.spm", **{"vocab_size": 90, **options})
    with pytest.raises(DataError, match=said):
        library_of((tmp_path / "source.spm").read_bytes(), "source.spm")


def test_a_damaged_file_is_one_message(folder):
    content = (folder / "source.spm").read_bytes()
    for damaged in (content[:-7], content[: len(content) // 2], b"", b"not a model at all", b"\xff" * 50):
        with pytest.raises(DataError, match=r"source\.spm is no"):
            library_of(damaged, "source.spm")


def test_a_vocabulary_without_the_unknown_token_is_named(folder, tmp_path):
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<pad>": 1}))
    with pytest.raises(DataError, match=r"vocab.json lacks <unk>"):
        read_tokenizer(str(tmp_path))


def test_files_that_are_missing_are_named(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "vocab.json").write_text((folder / "vocab.json").read_text())
    with pytest.raises(DataError, match=r"lacks source\.spm, target\.spm, which a Marian's tokenizer is made of"):
        read_tokenizer(str(tmp_path))
