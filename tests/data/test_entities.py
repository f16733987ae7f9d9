"""CoNLL files and the hub: what is read, what is refused with its place."""

import warnings

import datasets
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from attnlab.data import WNUT17, CoNLL, DataError, HubEntities
from attnlab.data.entities import Entity, Tagged, entities_of, iob2, is_tag, may_follow, typed


def write(folder, ending=".conll", **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}{ending}").write_text(text, encoding="utf-8")
    return folder


def same(folder, text, **fields):
    return CoNLL(write(folder, train=text, dev=text, test=text), **fields).read()["test"]


def test_sentences_words_and_tags(tmp_path):
    text = "-DOCSTART- -X- O\n\nEU\tNNP\tB-org\nsaid\tVBD\tO\n\t\nNew York\tNNP\tB-loc\n\n\n.\t.\tO\n"
    part = same(tmp_path, text)
    assert part == Tagged([["EU", "said"], ["New York"], ["."]], [["B-org", "O"], ["B-loc"], ["O"]])


def test_white_space_that_parts_no_columns_is_part_of_a_word(tmp_path):
    expected = Tagged([["10\xa0000", "\u3000", "a\u2028b"], ["\x0b", "c"]], [["O", "B-x", "O"], ["O", "O"]])
    for place, column in enumerate((" ", "\t", " \t", "   ")):
        lines = [
            "\n".join(map(column.join, zip(*both, strict=True)))
            for both in zip(expected.words, expected.tags, strict=True)
        ]
        assert same(tmp_path / str(place), "\n\n".join(lines) + "\n \t\n") == expected


def test_comments_stand_before_sentences_and_a_word_may_begin_like_one(tmp_path):
    text = "#begin document x\n# text = a b O\na O\n# B-x\n\n# id 7 O\n#tag B-x\nb O\n\n#end document\n"
    for place, lines in enumerate(
        (text, text.replace(" B-x", "\tB-x").replace("a O", "a\tO").replace("b O\n\n", "b\tO\n\n"))
    ):
        part = same(tmp_path / str(place), lines)
        assert (part.words, part.tags) == ([["a", "#"], ["#tag", "b"]], [["O", "B-x"], ["B-x", "O"]])
        assert part.remarks == ("4 lines of comments in test.conll",)
    with pytest.raises(DataError, match=r"line 1 of .*train\.conll has 1 columns \('#tag'\)"):
        same(tmp_path / "none", "#tag\nb O\n")
    with pytest.raises(DataError, match=r"line 2 of .*train\.conll: 'comment' is no tag"):
        same(tmp_path / "late", "a O\n# comment\nb O\n")
    with pytest.raises(DataError, match=r"line 1 of .*train\.conll has 2 columns .*tag_column=2"):
        same(tmp_path / "far", "# O\nb O\n", tag_column=2)


def test_tags_alone_are_of_one_type(tmp_path):
    part = same(tmp_path, "a B\nb I\nc O\nd I\n")
    assert part.tags == [["B-entity", "I-entity", "O", "B-entity"]]


def test_every_scheme_becomes_iob2(tmp_path):
    expected = [["B-per", "I-per", "B-per", "O", "B-loc"]]
    for place, tags in enumerate(
        ["I-per I-per B-per O I-loc", "B-per I-per B-per O B-loc", "B-per E-per S-per O S-loc"]
    ):
        text = "".join(f"w {tag}\n" for tag in tags.split())
        assert same(tmp_path / str(place), text).tags == expected


def test_columns_between_blanks_in_any_order(tmp_path):
    part = same(tmp_path, "1  B-x   NN  word\r\n2  O NN  other\r\n", token_column=-1, tag_column=1)
    assert (part.words, part.tags) == ([["word", "other"]], [["B-x", "O"]])


@pytest.mark.parametrize("ending", [".conll", ".txt", ".tsv"])
@pytest.mark.parametrize("validation", ["dev", "validation", "valid"])
def test_names_of_files(tmp_path, ending, validation):
    files = {name: f"{name} B-x\n" for name in ("train", validation, "test")}
    parts = CoNLL(write(tmp_path, ending, **files)).read()
    assert {name: part.words[0][0] for name, part in parts.items()} == {
        "train": "train",
        "validation": validation,
        "test": "test",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb X-per\n", r"line 2 of .*train\.conll: 'X-per' is no tag; accepted: O, or B-, I-, E- or S- and a type"),
        ("a O\n\nb B-\n", r"line 3 of .*train\.conll: 'B-' is no tag"),
        ("a O\nb\n", r"line 2 of .*train\.conll has 1 columns \('b'\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        same(tmp_path, text)


def test_a_mark_and_line_ends_of_windows(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.conll").write_bytes(b"\xef\xbb\xbfEU\tB-org\r\nsaid\tO\r\n\r\nno\tO\r\n")
    assert CoNLL(tmp_path).read()["train"] == Tagged([["EU", "said"], ["no"]], [["B-org", "O"], ["O"]])


def test_what_is_no_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "train.conll").write_bytes(b"EU B-org\n\nM\xfcnchen B-loc\n")
    with pytest.raises(DataError, match=r"line 3 of .*train\.conll is no UTF-8 text \(byte \d+ is 0xfc"):
        CoNLL(tmp_path).read()


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no dev or validation or valid; give a folder"):
        CoNLL(write(tmp_path / "a", train="a O\n", test="a O\n")).read()
    write(tmp_path / "a", dev="a O\n")
    with pytest.raises(DataError, match=r"holds both dev\.conll and dev\.txt"):
        CoNLL(write(tmp_path / "a", ".txt", dev="a O\n")).read()
    with pytest.raises(DataError, match=r"token_column=5"):
        same(tmp_path / "b", "a O\n", token_column=5)
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        CoNLL(tmp_path / "nowhere")


ROWS = {
    "train": [{"tokens": ["EU", "said"], "ner_tags": [1, 0]}, {"tokens": [], "ner_tags": []}],
    "validation": [{"tokens": ["a"], "ner_tags": [0]}],
    "test": [{"tokens": ["in", "New", "York"], "ner_tags": [0, 4, 4]}],
}
NAMES = ["O", "B-org", "I-org", "B-loc", "I-loc"]


def hub_set(folder, tags=None, **other_rows):
    kind = datasets.ClassLabel(names=NAMES) if tags is None else datasets.Value(tags)
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(kind)}
    )
    folder.mkdir(exist_ok=True)
    for split, rows in (ROWS | other_rows).items():
        named = rows if tags is None else [{**row, "ner_tags": [NAMES[i] for i in row["ner_tags"]]} for row in rows]
        # Not Dataset.from_list, which would refuse numbers without a name; parquet files of the hub may hold them.
        table = pyarrow.Table.from_pylist(named, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("tags", [None, "string"], ids=["numbers with names", "names"])
def test_a_set_of_the_hub(tmp_path, own_cache, tags):
    parts = HubEntities(hub_set(tmp_path / "set", tags)).read(own_cache)
    assert parts["train"] == Tagged([["EU", "said"]], [["B-org", "O"]], dropped=1)
    assert parts["test"] == Tagged([["in", "New", "York"]], [["O", "B-loc", "I-loc"]])


def test_without_a_split_to_validate_on_a_part_of_the_training_serves(tmp_path, own_cache):
    rows = [{"tokens": [word], "ner_tags": [0]} for word in map(str, range(50))]
    parts = HubEntities(hub_set(tmp_path / "set", train=rows), validation=None).read(own_cache)
    assert 0 < len(parts["validation"]) < 15
    assert sorted(parts["train"].words + parts["validation"].words) == sorted([str(word)] for word in range(50))


@pytest.mark.parametrize("number", [-1, 5, None])
def test_a_number_without_a_name_is_refused_with_its_row(tmp_path, own_cache, number):
    rows = [{"tokens": ["a"], "ner_tags": [0]}, {"tokens": ["b", "c"], "ner_tags": [1, number]}]
    message = rf"row 1 of .*set \(train\) has the class {number}; accepted: 0 to 4 \(O, B-org, I-org, B-loc, I-loc\)"
    with pytest.raises(DataError, match=message):
        HubEntities(hub_set(tmp_path / "set", train=rows)).read(own_cache)


def test_a_row_without_words_is_dropped_and_a_word_that_is_missing_refused(tmp_path, own_cache):
    rows = [{"tokens": None, "ner_tags": None}, {"tokens": ["b"], "ner_tags": [1]}]
    part = HubEntities(hub_set(tmp_path / "one", train=rows)).read(own_cache)["train"]
    assert part == Tagged([["b"]], [["B-org"]], dropped=1)
    rows = [{"tokens": ["b", None], "ner_tags": [1, 0]}]
    with pytest.raises(DataError, match=r"row 0 of .*two \(train\) has 1 words and 2 tags; accepted: O"):
        HubEntities(hub_set(tmp_path / "two", train=rows)).read(own_cache)


def test_a_set_of_the_hub_without_such_columns(tmp_path, own_cache):
    path = hub_set(tmp_path / "set")
    with pytest.raises(DataError, match=r"has no column 'words' \(data\.source\.tokens\); accepted: tokens, ner_tags"):
        HubEntities(path, tokens="words").read(own_cache)
    with pytest.raises(DataError, match=r"has no column 'pos' \(data\.source\.tags\); accepted: tokens, ner_tags"):
        HubEntities(path, tags="pos").read(own_cache)


def test_wnut17_is_a_folder_or_the_hub(tmp_path, monkeypatch):
    folder = write(tmp_path / "w", train="a B-x\n", dev="b O\n", test="c O\n")
    assert WNUT17(folder).read()["train"] == Tagged([["a"]], [["B-x"]])
    asked = []

    def load(path, name, split, revision, cache):
        asked.append((path, split, revision))
        return datasets.Dataset.from_list([{"tokens": [split], "ner_tags": ["O"]}])

    monkeypatch.setattr("attnlab.data.readers.load_hub", load)
    assert WNUT17(revision="abc").read()["validation"].words == [["validation"]]
    assert asked == [("leondz/wnut_17", split, "abc") for split in ("train", "validation", "test")]


TAGS = st.lists(st.sampled_from(["O", *(f"{p}-{kind}" for p in "BIES" for kind in ("x", "y", "creative-work"))]))


@settings(max_examples=400, deadline=None)
@given(tags=TAGS)
def test_any_tags_are_read_as_seqeval_reads_them(tags):
    expected = [Entity(first, last + 1, kind) for kind, first, last in get_entities(list(tags))]
    assert entities_of(tags) == expected


@settings(max_examples=200, deadline=None)
@given(tags=TAGS)
def test_iob2_keeps_the_entities_and_allows_every_step(tags):
    written = iob2(tags)
    assert entities_of(written) == entities_of(tags)
    assert all(may_follow(before, tag) for before, tag in zip([None, *written], written, strict=False))
    assert iob2(written) == written


# "Wolff , in Paris , met Anna Lee Ng": Anna Lee and Ng are two persons.
@pytest.mark.parametrize(
    "tags",
    [
        "I-per O O I-loc O O I-per I-per B-per",
        "B-per O O B-loc O O B-per I-per B-per",
        "S-per O O S-loc O O B-per E-per S-per",
    ],
    ids=["IOB1", "IOB2", "BIOES"],
)
def test_all_schemes_spell_the_same_entities(tags):
    assert entities_of(tags.split()) == [(0, 1, "per"), (3, 4, "loc"), (6, 8, "per"), (8, 9, "per")]


def test_tags_without_a_type_are_of_one_type():
    tags = [typed(tag) for tag in ["O", "B", "I", "O", "B", "B", "I", "O", "S"]]
    assert entities_of(tags) == [(1, 3, "entity"), (4, 5, "entity"), (5, 7, "entity"), (8, 9, "entity")]
    assert typed("B-x") == "B-x"


def test_steps_that_no_scheme_has():
    assert entities_of(["O", "I-x", "I-x", "I-y", "E-y", "I-y", "O", "E-x"]) == [
        (1, 3, "x"),
        (3, 5, "y"),
        (5, 6, "y"),
        (7, 8, "x"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_entities(["O", "I-x", "I-x"]) == [("x", 1, 2)]


@pytest.mark.parametrize(
    ("tag", "good"),
    [
        ("O", True),
        ("B-x", True),
        ("S-a-b", True),
        ("B-", False),
        ("B", True),
        ("E", True),
        ("BI", False),
        ("X-a", False),
        ("", False),
    ],
)
def test_what_is_a_tag(tag, good):
    assert is_tag(tag) == good


def test_iob2_allows_an_i_only_within_its_type():
    assert may_follow("B-x", "I-x")
    assert may_follow("I-x", "I-x")
    assert may_follow("O", "B-x")
    assert not any(may_follow(before, "I-x") for before in (None, "O", "B-y", "I-y"))
