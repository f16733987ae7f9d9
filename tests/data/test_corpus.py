import json
import multiprocessing
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import save

from attnlab.data import (
    BPE,
    TOKENIZERS,
    Byte,
    Character,
    DataError,
    TextFiles,
    Tokenizer,
    WithEndOfText,
    prepare,
    read_tokenizer,
)
from attnlab.data.texts import bytes_before, split_text


class CountingText(TextFiles):
    """A text that counts how often it is read."""

    times_read = 0
    text_sha256 = "pinned"

    def read(self, cache=None):
        type(self).times_read += 1
        return super().read(cache)


@given(text=st.text(), a=st.floats(0.01, 1), b=st.floats(0, 1), c=st.floats(0, 1))
@settings(max_examples=60)
def test_parts_are_contiguous_and_cover_the_text_once(text, a, b, c):
    split = [a / (a + b + c), b / (a + b + c), c / (a + b + c)]
    parts = split_text(text, split)
    assert "".join(parts) == text
    for part, fraction in zip(parts, split, strict=True):
        assert abs(len(part) - fraction * len(text)) < 2


@pytest.mark.parametrize("split", [(0.9, 0.1), (0, 0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.1, 0.1), (1, 1, 1)])
def test_fractions_that_are_no_split_are_refused(split):
    with pytest.raises(DataError, match=r"data\.split must be three fractions"):
        split_text("some text", split)


@pytest.mark.parametrize("name", ["character", "byte", "bpe", "unigram"])
def test_corpus_holds_the_text_and_its_counts(name, prose, prose_file):
    tokenizer = TOKENIZERS[name]() if name in ("character", "byte") else TOKENIZERS[name](300)
    corpus = prepare(TextFiles(prose_file), tokenizer, split=(0.8, 0.1, 0.1))
    for split, text in zip(("train", "validation", "test"), split_text(prose, (0.8, 0.1, 0.1)), strict=True):
        part = corpus.part(split)
        assert corpus.tokenizer.decode(part.tokens) == text
        assert part.num_tokens == len(part.tokens)
        assert part.num_bytes == len(text.encode())
        assert part.num_words == len(text.split())


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2"])
def test_the_text_of_tokens_is_the_files_own_where_a_tokenizer_changes_it(kind, prose, prose_file, tmp_path):
    tokenizer = read_tokenizer(str(save(kind, tmp_path / kind)))
    for corpus in (prepare(TextFiles(prose_file), tokenizer), prepare(TextFiles(prose_file), tokenizer)):
        text = split_text(prose, (0.9, 0.05, 0.05))[2]
        part = corpus.test
        assert part.tokens.tolist() == tokenizer.encode(text).tolist()
        first, middle, end = 0, part.num_tokens // 3, part.num_tokens
        pieces = [part.text_of(corpus.tokenizer, *between) for between in ((first, middle), (middle, end))]
        assert "".join(pieces) == text
        assert len(pieces[0]) == tokenizer.locate(text)[1][middle, 0]
        assert part.num_bytes == len(text.encode())


@given(text=st.text())
@settings(max_examples=60, deadline=None)
def test_bytes_before_characters_are_those_of_utf8(text):
    expected = [len(text[:place].encode()) for place in range(len(text) + 1)]
    assert bytes_before(text, np.arange(len(text) + 1)).tolist() == expected


def test_subwords_learn_from_the_training_part_alone(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("aa " * 900 + "zz " * 100)
    rules = prepare(TextFiles(path), BPE(260), split=(0.9, 0.05, 0.05)).tokenizer.rules
    assert json.loads(rules)["model"]["merges"]
    assert ["z", "z"] not in json.loads(rules)["model"]["merges"]


def test_alphabet_is_that_of_the_whole_text(tmp_path):
    path = tmp_path / "late.txt"
    path.write_text("a" * 99 + "z")
    assert prepare(TextFiles(path), Character()).tokenizer.alphabet == "az"


DOCUMENTS = ("one\ntwo", "", "three é", "\n\nfour five\n", "six seven eight nine ten eleven")


@pytest.fixture
def documents(tmp_path):
    """A folder of texts."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return TextFiles(folder)


@pytest.mark.parametrize("tokenizer", [Character(), Byte(), BPE(300)])
@pytest.mark.parametrize("split", [(0.9, 0.05, 0.05), (0.1, 0.4, 0.5), (0.5, 0.5, 0.0)])
def test_a_mark_stands_for_the_newline_between_two_documents(documents, tokenizer, split):
    plain, marked = prepare(documents, tokenizer, split), prepare(documents, tokenizer, split, end_of_text=True)
    end = plain.tokenizer.vocabulary_size
    assert isinstance(marked.tokenizer, WithEndOfText)
    assert (marked.tokenizer.own, marked.tokenizer.vocabulary_size) == (plain.tokenizer, end + 1)
    assert Tokenizer.load(marked.folder / "tokenizer.json") == marked.tokenizer
    texts = split_text(documents.read(), split)
    for name, text in zip(("train", "validation", "test"), texts, strict=True):
        before, part = plain.part(name), marked.part(name)
        assert part.text_of(marked.tokenizer, 0, part.num_tokens) == text
        assert (part.num_bytes, part.num_words) == (before.num_bytes, before.num_words)
    every = np.concatenate([marked.part(name).tokens for name in ("train", "validation", "test")])
    assert (every == end).sum() == len(DOCUMENTS) - 1
    pieces = np.split(every, np.flatnonzero(every == end))
    assert tuple(plain.tokenizer.decode(piece[piece != end]) for piece in pieces) == DOCUMENTS


def test_one_document_has_the_tokens_that_it_has_without_the_mark(prose_file):
    plain, marked = (prepare(TextFiles(prose_file), BPE(300), end_of_text=asked) for asked in (False, True))
    np.testing.assert_array_equal(plain.train.tokens, marked.train.tokens)
    assert plain.folder != marked.folder


def test_a_tokenizer_with_an_end_of_its_own_puts_that_between_documents(documents, tmp_path):
    tokenizer = read_tokenizer(str(save("gpt2", tmp_path / "gpt2")))
    marked, end = prepare(documents, tokenizer, end_of_text=True, split=(0.5, 0.25, 0.25)), tokenizer.special_tokens.end
    assert marked.tokenizer == tokenizer
    every = [marked.part(name) for name in ("train", "validation", "test")]
    assert sum((part.tokens == end).sum() for part in every) == len(DOCUMENTS) - 1
    for part, text in zip(every, split_text(documents.read(), (0.5, 0.25, 0.25)), strict=True):
        assert part.text_of(tokenizer, 0, part.num_tokens).strip() == text.strip()


def test_second_time_nothing_is_read_and_it_is_quick(prose_file, monkeypatch):
    monkeypatch.setattr(CountingText, "times_read", 0)
    first = prepare(CountingText(prose_file), Byte())
    start = time.perf_counter()
    second = prepare(CountingText(prose_file), Byte())
    assert time.perf_counter() - start < 0.05
    assert CountingText.times_read == 1
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)


def test_every_setting_and_every_text_has_a_corpus_of_its_own(prose, prose_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(prose + "!", encoding="utf-8")
    corpora = [
        prepare(TextFiles(prose_file), Byte()),
        prepare(TextFiles(other), Byte()),
        prepare(TextFiles(prose_file), Character()),
        prepare(TextFiles(prose_file), BPE(300)),
        prepare(TextFiles(prose_file), BPE(301)),
        prepare(TextFiles(prose_file), Byte(), split=(0.8, 0.1, 0.1)),
    ]
    assert len({corpus.folder for corpus in corpora}) == len(corpora)


@pytest.mark.parametrize("victim", ["train.npy", "corpus.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_damaged_corpus_is_made_again(prose_file, victim, damage):
    good = prepare(TextFiles(prose_file), Byte())
    tokens, file = good.train.tokens.copy(), good.folder / victim
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    else:
        file.unlink()
    np.testing.assert_array_equal(prepare(TextFiles(prose_file), Byte()).train.tokens, tokens)


def test_part_of_no_size_is_empty_and_unknown_parts_are_refused(prose_file):
    corpus = prepare(TextFiles(prose_file), Byte(), split=(0.9, 0.1, 0.0))
    assert corpus.test.num_tokens == 0
    assert corpus.part("validation").num_tokens > 0
    with pytest.raises(DataError, match="no split 'dev'; accepted: train, validation, test"):
        corpus.part("dev")


def _prepare_and_count(path, barrier, results):
    barrier.wait()
    corpus = prepare(TextFiles(path), BPE(300))
    results.put((corpus.train.num_tokens, int(corpus.train.tokens.sum()), str(corpus.folder)))


def test_processes_that_prepare_at_once_get_the_same_corpus(prose_file, own_cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_prepare_and_count, args=(prose_file, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len(set(found)) == 1
    assert [path.name for path in (own_cache / "corpora").iterdir()] == [found[0][2].rsplit("/", 1)[1]]
