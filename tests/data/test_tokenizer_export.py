"""Tokenizers in Hugging Face's files: AutoTokenizer gives the same numbers and texts, for any text."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import CHATML, KINDS, TEXT, save

from attnlab.data import (
    BPE,
    Byte,
    Character,
    DataError,
    Digits,
    ImageData,
    MaskedTextData,
    Masking,
    ParallelText,
    SpanCorruptionData,
    TextData,
    TextFiles,
    TranslationData,
    Unigram,
    WithEndOfText,
    read_tokenizer,
    write_tokenizer,
)
from attnlab.data.vocabulary import Vocabulary, framed

TRAINING = "\n".join(TEXT)
OWN = {t.name: t for t in (Character().train(TRAINING), Byte(), BPE(300).train(TRAINING), Unigram(300).train(TRAINING))}
WRITTEN = {
    **OWN,
    **{f"{name} with an end": WithEndOfText(tokenizer) for name, tokenizer in OWN.items()},
    **{f"{name} with marks": Vocabulary(tokenizer, 3) for name, tokenizer in OWN.items()},
}
SPELT = re.compile(r"<(pad|s|/s|mask|sep|extra_id_\d|\|endoftext\|)>")  # such a text has the mark
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(["fox", " the ", "\n", "é", "</s", "<pad", "extra_id_1>"])).map("".join)
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    from transformers import AutoTokenizer

    read = {}
    for name, tokenizer in WRITTEN.items():
        folder = tmp_path_factory.mktemp("written")
        write_tokenizer(tokenizer, folder)
        read[name] = AutoTokenizer.from_pretrained(folder)
    return read


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_transformers_gives_the_same_numbers_and_texts(theirs, name, data):
    characters = st.text(alphabet=st.sampled_from(OWN["character"].alphabet))
    text = data.draw(characters if "character" in name else TEXTS.filter(lambda text: not SPELT.search(text)))
    own = WRITTEN[name]
    if not isinstance(own, Vocabulary):
        tokens = own.encode(text)
        assert theirs[name](text)["input_ids"] == tokens.tolist()
    elif text:  # a text of nothing is nothing there
        tokens = own.encode_text(text)
        assert theirs[name](text, add_special_tokens=False)["input_ids"] == tokens.tolist()
        assert theirs[name](text)["input_ids"] == framed(own.marks.text, tokens).tolist()
        pair = theirs[name](text, "fox")["input_ids"]
        assert pair == framed(own.pair_marks(), tokens, own.encode_text("fox")).tolist()
    else:
        return
    given = tokens.tolist()
    assert theirs[name].decode(given) == own.decode(given)
    marked = [0, 1, *given] if isinstance(own, Vocabulary) else given
    assert theirs[name].decode(marked, skip_special_tokens=True) == own.decode(given)


@pytest.mark.parametrize("name", ["bpe", "unigram", "byte"])
def test_a_mark_that_a_text_spells_is_the_mark_and_takes_the_place_of_a_sub_word(theirs, name):
    vocabulary, words = (
        WRITTEN[f"{name} with marks"],
        "the quick|mask| fox jumps|2| over|end|the|mask|, dog|mask|s |mask|",
    )
    marks = {"mask": vocabulary.mask, "2": vocabulary.sentinel(2), "end": vocabulary.end}
    spelt = {"mask": "<mask>", "2": "<extra_id_2>", "end": "</s>"}
    pieces = words.split("|")
    if name == "byte":
        text = "".join(spelt.get(piece, piece) for piece in pieces)
        pieces[-3] = "s "
    else:
        text = "".join(f" {spelt[p]}" if p in ("mask", "2") else spelt.get(p, p) for p in pieces)
        pieces[-3] = "s"
    lead = vocabulary.tokenizer.text_lead
    expected: list[int] = []
    for place, piece in enumerate(pieces):
        expected += (
            [marks[piece]] if piece in marks else vocabulary.encode((lead if place == 0 else "") + piece).tolist()
        )
    assert theirs[f"{name} with marks"](text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_marks_have_their_names(theirs, name):
    found = [getattr(theirs[name], f"{mark}_token_id") for mark in ("pad", "bos", "eos", "mask", "sep", "cls")]
    ends = [None, *[WRITTEN[name].vocabulary_size - 1] * 2, None, None, None] if "end" in name else [None] * 6
    assert found == ([0, 1, 2, 3, 4, 1] if "marks" in name else ends)
    assert len(theirs[name]) == (WRITTEN[name].size if "marks" in name else WRITTEN[name].vocabulary_size)
    if "marks" in name:
        assert theirs[name].convert_tokens_to_ids("<extra_id_2>") == WRITTEN[name].sentinel(2)


def test_a_sequence_to_sequence_models_texts_have_an_end_alone(tmp_path):
    from transformers import AutoTokenizer

    vocabulary = Vocabulary(OWN["bpe"])
    write_tokenizer(vocabulary, tmp_path, "source")
    assert AutoTokenizer.from_pretrained(tmp_path)("fox")["input_ids"] == [*vocabulary.encode_text("fox"), 2]


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_was_read_is_written_as_it_was(tmp_path, kind):
    from transformers import AutoTokenizer

    first = save(kind, tmp_path / "first", CHATML if kind == "chat" else None)
    own = read_tokenizer(str(first))
    write_tokenizer(own, tmp_path / "second")
    write_tokenizer(Vocabulary(own), tmp_path / "third")
    there, here = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("first", "second"))
    for text in (*TEXT[:2], "", "</s> [SEP] <extra_id_0>", "日本\n\n"):
        assert here(text)["input_ids"] == there(text)["input_ids"]
    assert here.special_tokens_map == there.special_tokens_map
    assert here.chat_template == there.chat_template
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "third" / name).read_bytes()


def data_modules(folder, prose_file):
    """Of every way in which texts stand in batches."""
    (folder / "pairs.tsv").write_text("".join(f"{line} {number}\t{line}\n" for number, line in enumerate(TEXT)))
    yield "text", TextData(TextFiles, BPE(300), context=8, path=str(prose_file))
    yield "masked", MaskedTextData(TextFiles, BPE(300), Masking(), context=8, path=str(prose_file))
    yield "spans", SpanCorruptionData(TextFiles, BPE(300), context=16, num_sentinels=9, path=str(prose_file))
    yield "pairs", TranslationData(ParallelText, BPE(300), "en-de", path=str(folder / "pairs.tsv"))


def test_data_write_their_tokenizer_with_the_marks_that_their_models_see(tmp_path, prose_file):
    from transformers import AutoTokenizer

    text = "lorem ipsum"
    for name, data in data_modules(tmp_path, prose_file):
        data.write_tokenizer(tmp_path / name)
        found = AutoTokenizer.from_pretrained(tmp_path / name)(text)["input_ids"]
        if name == "text":
            assert found == data.tokenizer.encode(text).tolist()
        else:
            marks = data.vocabulary.marks.text if name == "masked" else data.vocabulary.marks.source
            assert found == framed(marks, data.vocabulary.encode_text(text)).tolist()
    two = TranslationData(ParallelText, BPE(300), "en-de", joint=False, path=str(tmp_path / "pairs.tsv"))
    with pytest.raises(DataError, match=r"has tokenizer\.json, source_tokenizer\.json; Hugging Face's files hold one"):
        two.write_tokenizer(tmp_path / "two")
    with pytest.raises(DataError, match="digits has no tokenizer"):
        ImageData(Digits).write_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "t5", "llama"])
def test_a_models_configuration_beside_it_changes_nothing(tmp_path, model_type):
    from transformers import AutoTokenizer

    vocabulary = Vocabulary(OWN["unigram"], 2)
    write_tokenizer(vocabulary, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": vocabulary.size}))
    tokens = vocabulary.encode_text(TEXT[1]).tolist()
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT[1])["input_ids"] == [1, *tokens, 2]
    again = read_tokenizer(str(tmp_path))
    assert again.encode(" the <").tolist() == vocabulary.encode_text(" the <").tolist()
    lead, text = vocabulary.encode(" "), vocabulary.encode(" the ")
    assert again.encode("</s> the <pad>").tolist() == [*lead, 2, *text, 0]
    assert again.marks.sentinels == vocabulary.marks.sentinels
