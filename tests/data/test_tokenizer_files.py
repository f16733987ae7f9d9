"""Hugging Face's files: old and new layouts read, what is refused, caches by content; written, AutoTokenizer gives the same."""

import json
import re
import shutil

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
    prepare,
    read_tokenizer,
    write_tokenizer,
)
from attnlab.data.special_tokens import add_special_tokens
from attnlab.data.vocabulary import Vocabulary


def change(path, **fields):
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **fields}))


def test_names_of_tokens_as_tables_and_in_their_own_file(tmp_path):
    """The layout of before: special_tokens_map.json, tokens as {"content": ...}, a list of chat templates."""
    new = read_tokenizer(str(save("bart", tmp_path / "new", CHATML)))
    old = save("bart", tmp_path / "old")
    settings = json.loads((old / "tokenizer_config.json").read_text())
    tokens = {name: {"content": settings.pop(name), "lstrip": False} for name in new.special}
    settings["chat_template"] = [{"name": "tools", "template": "no"}, {"name": "default", "template": CHATML}]
    (old / "tokenizer_config.json").write_text(json.dumps(settings))
    (old / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert read_tokenizer(str(old)).as_json() == new.as_json()


@pytest.mark.parametrize("kind", ["bert", "bart", "gpt2", "t5"])
def test_names_that_files_leave_out_are_those_of_the_kind_of_model(tmp_path, kind):
    folder = save(kind, tmp_path / kind)
    named = read_tokenizer(str(folder)).special
    (folder / "tokenizer_config.json").unlink()
    change(folder / "config.json", model_type=kind)
    found = read_tokenizer(str(folder)).special
    assert found == (
        {name: named[name] for name in named if name != "pad_token"} | {"unk_token": "<|endoftext|>"}
        if kind == "gpt2"
        else named
    )


def test_a_token_that_only_the_configuration_knows_is_added_as_transformers_does(tmp_path):
    from transformers import AutoTokenizer

    folder = save("gpt2", tmp_path)
    decoder = {
        "320": {
            "content": "<extra>",
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        }
    }
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder, mask_token="<hidden>")
    theirs, own = AutoTokenizer.from_pretrained(folder), read_tokenizer(str(folder))
    for text in ("a <extra>b", "a <hidden> b"):
        assert own.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert own.special_tokens.mask == theirs.mask_token_id
    assert own.vocabulary_size == 322


@pytest.mark.parametrize(
    "asked", [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": True}]
)
def test_start_and_end_stand_where_tokenizer_json_has_them_as_in_transformers(tmp_path, asked):
    from transformers import AutoTokenizer

    folder = save("llama", tmp_path)
    change(folder / "tokenizer_config.json", **asked)
    theirs, own = AutoTokenizer.from_pretrained(folder), read_tokenizer(str(folder))
    tokens = own.encode("The fox")
    assert add_special_tokens(own.special_tokens.text, tokens).tolist() == theirs("The fox")["input_ids"]
    assert (
        add_special_tokens(own.special_tokens.pair, tokens, tokens).tolist()
        == theirs("The fox", "The fox")["input_ids"]
    )


def test_generation_ends_at_any_of_several_tokens(tmp_path):
    folder = save("chat", tmp_path)
    change(folder / "generation_config.json", eos_token_id=[0, 2])
    assert read_tokenizer(str(folder)).special_tokens.ends == (2, 0)


def test_the_table_has_at_least_as_many_rows_as_there_are_tokens(tmp_path):
    folder = save("gpt2", tmp_path)
    assert read_tokenizer(str(folder)).vocabulary_size == 320
    change(folder / "config.json", vocab_size=384)
    assert read_tokenizer(str(folder)).vocabulary_size == 384
    assert read_tokenizer(str(folder), 400).vocabulary_size == 400
    with pytest.raises(
        DataError, match=r"tokenizer\.vocabulary_size is 319, .* up to number 319; accepted: 320 or more"
    ):
        read_tokenizer(str(folder), 319)
    change(folder / "config.json", vocab_size=300)
    with pytest.raises(DataError, match=r"vocab_size of .*config\.json is 300, .* accepted: 320 or more"):
        read_tokenizer(str(folder))


def test_neither_cutting_nor_filling_is_kept(tmp_path):
    folder = save("bert", tmp_path)
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    rules["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    own = read_tokenizer(str(folder))
    assert own.encode("a").tolist() == own.encode("a fox")[:1].tolist()
    assert len(own.encode("the quick brown fox jumps")) >= 5


REFUSED = {
    "nothing": (
        {},
        r"there is no tokenizer\.json \(but nothing\); make one where transformers is installed: python -c",
    ),
    "spiece": ({"spiece.model": "x"}, r"there is no tokenizer\.json \(but spiece\.model\); make one"),
    "words alone": ({"vocab.txt": "[PAD]\n[UNK]\n"}, r"\(but vocab\.txt\)"),
    "no JSON": ({"tokenizer.json": "{"}, r"tokenizer\.json cannot be read: .*; fetch it again"),
    "a list": ({"tokenizer.json": "[1]"}, r"tokenizer\.json holds no table"),
    "odd": (
        {"tokenizer.json": '{"version": "1.0"}'},
        r"is none that the library tokenizers reads: .*; write it anew: python",
    ),
    "odd settings": ({"tokenizer.json": "{}", "config.json": "no"}, r"config\.json cannot be read"),
    "odd run": ({"tokenizer.json": '{"name": "bpe", "size": 3}'}, r"cannot be read: .*; take that of another run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path, name):
    files, message = REFUSED[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match=r"tokenizer\.path=.*none: there is no such folder; give one"):
        read_tokenizer(str(tmp_path / "none"))


def test_caches_go_by_content(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXT))
    one = save("gpt2", tmp_path / "one")
    other = shutil.copytree(one, tmp_path / "other")
    folders = [prepare(TextFiles(text), read_tokenizer(str(folder))).folder for folder in (one, other)]
    assert folders[0] == folders[1]
    change(other / "tokenizer_config.json", eos_token="!")
    assert prepare(TextFiles(text), read_tokenizer(str(other))).folder != folders[0]


@pytest.mark.parametrize("kind", [BPE, Unigram])
def test_a_run_of_attnlabs_own_gives_its_tokenizer_as_it_was_learned(tmp_path, kind):
    learned = kind(280).train("\n".join(TEXT))
    learned.save(tmp_path / "tokenizer.json")
    found = read_tokenizer(str(tmp_path))
    assert found == learned
    assert found.train("another text, which teaches nothing") == learned
    with pytest.raises(DataError, match=r"tokenizer\.vocabulary_size=999: that run's tokenizer has \d+; leave it out"):
        read_tokenizer(str(tmp_path), 999)


# --- writing

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
        assert theirs[name](text)["input_ids"] == add_special_tokens(own.special_tokens.text, tokens).tolist()
        pair = theirs[name](text, "fox")["input_ids"]
        assert pair == add_special_tokens(own.pair_special_tokens(), tokens, own.encode_text("fox")).tolist()
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
    marks = {"mask": vocabulary.mask, "2": int(vocabulary.sentinels[2]), "end": vocabulary.end}
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
        assert theirs[name].convert_tokens_to_ids("<extra_id_2>") == WRITTEN[name].sentinels[2]


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
    yield "text", TextData(TextFiles, BPE(300), context_length=8, path=str(prose_file))
    yield "masked", MaskedTextData(TextFiles, BPE(300), Masking(), context_length=8, path=str(prose_file))
    yield "spans", SpanCorruptionData(TextFiles, BPE(300), context_length=16, num_sentinels=9, path=str(prose_file))
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
            marks = data.vocabulary.special_tokens.text if name == "masked" else data.vocabulary.special_tokens.source
            assert found == add_special_tokens(marks, data.vocabulary.encode_text(text)).tolist()
    two = TranslationData(ParallelText, BPE(300), "en-de", joint_vocabulary=False, path=str(tmp_path / "pairs.tsv"))
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
    assert again.special_tokens.sentinels == vocabulary.special_tokens.sentinels
