"""Questions as batches: windows cover their text, answers stand where they are said to, whatever the tokenizer."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Byte, Character, DataError, SpanExtractionData, Unigram
from attnlab.data.questions import Question, Questions, QuestionSource
from attnlab.data.span_extraction import windows_over
from attnlab.data.special_tokens import END, SEPARATOR, START, leading_special_tokens
from attnlab.data.vocabulary import Vocabulary

LETTERS = "ab é—日🎉'.1 \n"
TEXT = "In (1990) the naïve émigrés of Straße 12, “日本” 🎉 didn't go. " * 20
LOSSLESS = [
    Byte(),
    Character(alphabet="".join(sorted({*TEXT, *LETTERS}))),
    BPE(300).train(TEXT),
    Unigram(300).train(TEXT),
]


class Given(QuestionSource):
    """Questions that a test hands over."""

    name = "given"

    def __init__(self, train, test=None):
        parts = {"train": train, "validation": train, "test": test or train}
        self.parts = {name: Questions(part) for name, part in parts.items()}

    def read(self, cache=None):
        return self.parts


def data(questions, tokenizer=None, test=None, **fields):
    given = {"max_length": 40, "stride": 7, "max_question": 8, "batch_tokens": 200}
    return SpanExtractionData(Given(questions, test), tokenizer or BPE(300), **{**given, **fields})


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 60), room=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_cover_the_text_and_none_is_too_long(length, room, stride):
    windows = windows_over(length, room, stride)
    assert {place for start, end in windows for place in range(start, end)} == set(range(length))
    assert all(0 < end - start <= room for start, end in windows)
    steps = [after[0] - before[0] for before, after in pairwise(windows)]
    assert all(step == min(stride, room) for step in steps)
    assert all(end < length for _, end in windows[:-1])


@pytest.mark.parametrize("tokenizer", LOSSLESS, ids=lambda tokenizer: tokenizer.name)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=LETTERS, min_size=1, max_size=60), data_=st.data(), stride=st.integers(1, 30))
def test_the_answer_is_found_again_in_the_windows_that_hold_it(tokenizer, text, data_, stride):
    begin = data_.draw(st.integers(0, len(text) - 1))
    answer = text[begin : begin + data_.draw(st.integers(1, len(text) - begin))]
    asked = Question("1", "a (", text, ((answer, begin),))
    other = Question("2", "ab", "b b", (("b", 0),))
    module = data([other], tokenizer_from=None, tokenizer=tokenizer, test=[asked], stride=stride)
    module.vocabulary = Vocabulary(tokenizer)
    part = module._encode(Questions([asked]), training=False)
    tokens = module.vocabulary.encode(f" {text}")
    begin_ = begin + len(answer) - len(answer.lstrip())
    end_ = begin_ + len(answer.strip())
    covered, held = set(), 0
    for row, (first, last) in enumerate(part.answers):
        start, size = part.start[row], len(part.rows[row]) - part.first[row] - 1
        assert part.rows[row][part.first[row] : -1].tolist() == tokens[start : start + size].tolist()
        covered |= set(range(start, start + size))
        if (first, last) != (0, 0):
            held += 1
            assert answer.strip() in part.words(row, first, last)
            move = start - part.first[row]
            of_begin, of_end = ((part.places[0] <= place) @ [1, -1] == 1 for place in (begin_, end_ - 1))
            assert (first + move, last + move) == (of_begin.argmax(), len(tokens) - 1 - of_end[::-1].argmax())
    assert covered == set(range(len(tokens)))
    if not answer.strip():
        assert held == 0
        assert part.counts["without its answer"] == 1


@pytest.mark.parametrize("tokenizer", LOSSLESS[:2], ids=lambda tokenizer: tokenizer.name)
def test_with_a_token_a_character_the_span_is_the_answer(tokenizer):
    text = "Ein Text über 日本 und mehr"
    module = data(
        [Question("1", "q?", text, (("über 日本", 9),))], tokenizer=Byte() if tokenizer.name == "byte" else Character()
    )
    part = module.split("train")
    held = [part.words(row, *answer) for row, answer in enumerate(part.answers) if answer != (0, 0)]
    assert held
    assert set(held) == {"über 日本"}


def test_a_row_is_question_and_window_and_a_batch_tells_them_apart():
    text = "one two three four five six seven eight nine ten " * 9
    module = data([Question("1", "which one?", text, (("three", 8),)), Question("2", "x", "a b", (("b", 2),))])
    part = module.split("train")
    rows = {}
    for batch in module.evaluation_loader("train"):
        for place, row in enumerate(batch["ids"].tolist()):
            rows[row] = {name: tensor[place].tolist() for name, tensor in batch.items()}
    assert sorted(rows) == list(range(len(part.rows)))
    for number, row in rows.items():
        length, first = sum(row["is_token"]), part.first[number]
        assert row["tokens"][:length] == part.rows[number].tolist()
        assert (row["tokens"][0], row["tokens"][first - 1], row["tokens"][length - 1]) == (START, SEPARATOR, END)
        assert row["segments"][:length] == [0] * first + [1] * (length - first)
        assert [i for i, is_text in enumerate(row["is_text"]) if is_text] == list(range(first, length - 1))
        assert not any(row["segments"][length:])
    asked = module.vocabulary.encode(" which one?")
    assert part.rows[0][1 : 1 + len(asked)].tolist() == asked.tolist()
    assert len(part.rows) > 3
    assert len(asked) <= 8


def test_answers_of_windows_that_lack_them_are_the_first_token():
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    module = data(
        [Question("1", "?", text, (("y z", 48),))], tokenizer=Character(), max_length=20, stride=5, max_question=4
    )
    part = module.split("train")
    assert part.answers[0] == (0, 0)
    assert part.words(len(part.rows) - 1, *part.answers[-1]) == "y z"
    split = [row for row, answer in enumerate(part.answers) if answer == (0, 0)]
    assert len(split) == len(part.rows) - 1


def test_what_is_cut_left_out_and_told():
    good = Question("1", "a longer question, of 20 (many, many) words", "the answer", (("answer", 4),))
    moved = Question("2", "b", "the answer", (("answer", 3),))
    without = Question("3", "c", "the answer", ())
    module = data([good, moved, without])
    module.setup()
    assert [q.id for q in module.split("train").texts] == ["1", "3"]
    assert [q.id for q in module.split("test").texts] == ["1", "2", "3"]
    assert module.split("train").counts == {"cut": 1, "without its answer": 1}
    assert module.has_unanswered
    told = module.describe()
    assert "questions train 2, validation 3, test 3; 8 windows; 3 questions without an answer" in told
    assert "without its answer in train: 1" in told


def test_widths_and_what_cannot_be_used():
    module = data([Question("1", "q", "a b", (("b", 2),))])
    assert module.dims() == {
        "vocabulary_size": module.vocabulary.size,
        "num_segments": 2,
        "special_tokens": leading_special_tokens(),
    }
    assert set(module.dims()) == set(module.placeholder_dims())
    with pytest.raises(
        DataError, match=r"max_length=11 leaves no room for a text beside a question of 8 tokens .* from 12 on"
    ):
        data([], max_length=11)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        data([], stride=0)
