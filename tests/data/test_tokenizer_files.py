"""Reading Hugging Face's files: old and new layouts, what decides the size of the table, what is refused, and caches by content."""

import json
import shutil

import pytest
from tests.huggingface import CHATML, TEXT, save
from tokenizers import Tokenizer

from attnlab.data import BPE, DataError, TextFiles, Unigram, prepare, read_tokenizer
from attnlab.data.vocabulary import framed


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
    assert own.marks.mask == theirs.mask_token_id
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
    assert framed(own.marks.text, tokens).tolist() == theirs("The fox")["input_ids"]
    assert framed(own.marks.pair, tokens, tokens).tolist() == theirs("The fox", "The fox")["input_ids"]


def test_generation_ends_at_any_of_several_tokens(tmp_path):
    folder = save("chat", tmp_path)
    change(folder / "generation_config.json", eos_token_id=[0, 2])
    assert read_tokenizer(str(folder)).marks.ends == (2, 0)


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


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_old_files_give_what_the_new_ones_give(tmp_path, kind):
    new, old = save(kind, tmp_path / "new"), tmp_path / "old"
    old.mkdir()
    Tokenizer.from_file(str(new / "tokenizer.json")).model.save(str(old))
    change(old / "config.json", model_type=kind)
    one, other = (read_tokenizer(str(folder)) for folder in (old, new))
    for text in (*TEXT[:2], "", "  two\n\nlines ", "日本", "a<mask>b [MASK]<|endoftext|>"):
        assert one.encode(text).tolist() == other.encode(text).tolist()
        assert one.locate(text)[1].tolist() == other.locate(text)[1].tolist()
        assert one.decode(one.encode(text)) == other.decode(other.encode(text))
    for name in ("text", "pair", "mask", "end"):
        assert getattr(one.marks, name) == getattr(other.marks, name)


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
