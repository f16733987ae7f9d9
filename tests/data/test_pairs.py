"""Sentence pairs: what is read, what is cleaned, how it is split, and every mistake in a file."""

import codecs
import gzip
import hashlib
import json
import zipfile
from dataclasses import replace

import pytest

from attnlab.data import DataError, HomeAssistant, HubPairs, Multi30k, ParallelText


def write(path, lines, end="\n"):
    content = end.join([*lines, ""]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the form of Home Assistant's, with texts that must be left out."""
    english = {
        "config": {
            "step": {"user": {"description": "Set up the device now", "title": "Too short"}},
            "error": {
                "a": "The value {x} is wrong here",
                "b": "See http for more help",
                "c": "The same in both languages",
            },
            "abort": {
                "many": " ".join(["word"] * 31),
                "two": "One line\nand one more line",
                "none": "There is no translation",
            },
        }
    }
    german = {
        "config": {
            "step": {"user": {"description": " Das Gerät jetzt einrichten ", "title": "Zu kurz"}},
            "error": {
                "a": "Der Wert {x} ist hier falsch",
                "b": "Siehe http für mehr",
                "c": "The same in both languages",
            },
            "abort": {"many": "Wort", "two": "Eine Zeile\nund noch eine"},
        }
    }
    again = {"name": "Set up the device now"}, {"name": "Gerät jetzt einrichten"}
    path = tmp_path / "home.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, (en, de) in {"a": (english, german), "b": again}.items():
            archive.writestr(f"homeassistant/components/{folder}/translations/en.json", json.dumps(en))
            archive.writestr(f"homeassistant/components/{folder}/translations/de.json", json.dumps(de))
    pinned = replace(HomeAssistant.wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(HomeAssistant, "wheel", pinned)
    return path


@pytest.mark.parametrize("pair", ["en-de", "de-en"])
def test_home_assistant_keeps_whole_sentences_and_one_english_string_in_one_split(wheel, pair):
    splits = HomeAssistant(pair, wheel).read()
    (full,) = [pairs for pairs in splits.values() if pairs.sources]
    both = {
        ("Set up the device now", "Das Gerät jetzt einrichten"),
        ("Set up the device now", "Gerät jetzt einrichten"),
    }
    found = set(zip(full.sources, full.targets, strict=True))
    assert found == (both if pair == "en-de" else {(b, a) for a, b in both})


def test_an_unknown_pair_names_those_there_are(wheel):
    with pytest.raises(
        DataError,
        match="language_pair=en-xx: home_assistant has no such pair; it has en-de, en-es, en-nl, en-fr",
    ):
        HomeAssistant("en-xx", wheel)
    with pytest.raises(DataError, match="language_pair=german is no pair of languages; accepted: SOURCE-TARGET"):
        HomeAssistant("german", wheel)


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("below", ["data/task1/raw", "."])
def test_multi30k_is_read_in_its_own_layout(tmp_path, gz, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in {"train": 3, "val": 2, "test_2016_flickr": 1, "test_2018_flickr": 2}.items():
        for language in ("en", "de"):
            lines = [f"{stem} {language} {i}" for i in range(count)]
            write(folder / f"{stem}.{language}{'.gz' if gz else ''}", lines)
    splits = Multi30k("de-en", tmp_path).read()
    assert {name: len(pairs.sources) for name, pairs in splits.items()} == {
        "train": 3, "validation": 2, "test": 1, "test_2018_flickr": 2,
    }  # fmt: skip
    assert (splits["test"].sources, splits["test"].targets) == (["test_2016_flickr de 0"], ["test_2016_flickr en 0"])
    with pytest.raises(DataError, match=r"holds no train.en and train.fr \(plain or .gz\)"):
        Multi30k("en-fr", tmp_path).read()


@pytest.mark.parametrize("form", ["tabs", "beginning", "two files"])
def test_parallel_text_in_every_form(tmp_path, form):
    sources, targets = [f"source {i}" for i in range(60)], [f"Ziel {i}" for i in range(60)]
    if form == "tabs":
        lines = [f"{a}\t{b}" for a, b in zip(sources, targets, strict=True)]
        source = ParallelText("en-de", write(tmp_path / "both.tsv", lines))
    else:
        first, second = write(tmp_path / "c.en.gz", sources), write(tmp_path / "c.de", targets)
        source = (
            ParallelText("en-de", tmp_path / "c") if form == "beginning" else ParallelText("en-de", first, str(second))
        )
    splits = source.read()
    found = [pair for pairs in splits.values() for pair in zip(pairs.sources, pairs.targets, strict=True)]
    assert sorted(found) == sorted(zip(sources, targets, strict=True))
    assert len(splits["train"].sources) > 40


@pytest.mark.parametrize(
    ("header", "sources"),
    [("en\tde", ["a"]), ("DE\tEN", ["b"]), ("source\ttarget", ["a"]), ("target\tsource", ["b"]), (None, ["a"])],
)
def test_a_first_line_that_names_the_columns_is_no_pair(tmp_path, header, sources):
    path = write(tmp_path / "h.tsv", [*([header] if header else []), "a\tb"])
    pairs = ParallelText("en-de", path, split=(1, 0, 0)).read()["train"]
    assert (pairs.sources, pairs.dropped) == (sources, 0)
    assert pairs.remarks == (
        (f"line 1 of h.tsv names the columns ({header.lower().replace(chr(9), ', ')})",) if header else ()
    )


def test_own_validation_and_test_files_take_nothing_from_the_training(tmp_path):
    train = write(tmp_path / "train.tsv", [f"a {i}\tb {i}" for i in range(9)])
    extra = str(write(tmp_path / "extra.tsv", ["x\ty"]))
    splits = ParallelText("en-de", train, validation_path=extra, test_path=extra).read()
    assert {name: len(pairs.sources) for name, pairs in splits.items()} == {"train": 9, "validation": 1, "test": 1}


def test_equal_sources_stand_in_one_split_and_new_lines_move_none(tmp_path):
    lines = [f"same {i % 40}\tother {i}" for i in range(120)]
    splits = ParallelText("en-de", write(tmp_path / "a.tsv", lines)).read()
    seen = [set(pairs.sources) for pairs in splits.values()]
    assert sum(map(len, seen)) == 40
    more = ParallelText("en-de", write(tmp_path / "b.tsv", [*lines, "new\tneu"])).read()
    assert all(set(splits[name].sources) <= set(more[name].sources) for name in splits)


def test_line_ends_marks_and_empty_lines(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_bytes(b"\xef\xbb\xbfone\teins\r\n\r\ntwo\t\r\n\tdrei\r\nfour\xe2\x80\xa8five\tvier\r\n")
    pairs = ParallelText("en-de", path, split=(1, 0, 0)).read()["train"]
    found = list(zip(pairs.sources, pairs.targets, strict=True))
    assert found == [("one", "eins"), ("four\u2028five", "vier")]  # a mark inside of a sentence ends no line
    assert pairs.dropped == 3


def test_a_carriage_return_ends_a_line_only_where_nothing_else_does(tmp_path):
    def read(content):
        (tmp_path / "c.tsv").write_bytes(content)
        pairs = ParallelText("en-de", tmp_path / "c.tsv", split=(1, 0, 0)).read()["train"]
        return list(zip(pairs.sources, pairs.targets, strict=True))

    assert read(b"one\teins\rtwo\tzwei\r") == [("one", "eins"), ("two", "zwei")]
    # Files of the web have single ones inside of sentences, and their counterparts have not.
    assert read(b"on\re\teins\ntwo\tzwei\n") == [("on\re", "eins"), ("two", "zwei")]
    assert read(b"on\re\teins\r\ntwo\tzwei\r\n") == [("on\re", "eins"), ("two", "zwei")]


@pytest.mark.parametrize("longer", ["source", "target"])
def test_unequal_files_say_which_line_of_which_has_no_counterpart(tmp_path, longer):
    few, many = ["a", "b"], ["a", "b", "c", "d"]
    write(tmp_path / "c.en", many if longer == "source" else few)
    write(tmp_path / "c.de", few if longer == "source" else many)
    name = "c.en" if longer == "source" else "c.de"
    with pytest.raises(DataError, match=rf"has (4|2) lines and .* has (2|4): line 3 of .*{name} has no counterpart"):
        ParallelText("en-de", tmp_path / "c").read()


def test_other_mistakes_in_files(tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_bytes("gut\tgood\nSchön\tnice\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"line 2 of .*bad.tsv is no UTF-8 text \(byte 12 is 0xf6: .*iconv -f LATIN1"):
        ParallelText("de-en", bad).read()
    bad.write_bytes(codecs.BOM_UTF8 + bad.read_bytes())
    with pytest.raises(DataError, match=r"line 2 of .*bad.tsv is no UTF-8 text \(byte 15 is 0xf6: "):
        ParallelText("de-en", bad).read()
    bad.write_text("gut\tgood\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"bad.tsv is in UTF-16; accepted: UTF-8.*iconv -f UTF-16 -t UTF-8"):
        ParallelText("de-en", bad).read()
    with pytest.raises(DataError, match=r"line 2 of .*c.tsv has 3 columns; accepted: a source, one tab and a target"):
        ParallelText("de-en", write(tmp_path / "c.tsv", ["a\tb", "a\tb\tc"])).read()
    (tmp_path / "d.tsv.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DataError, match=r"cannot read .*d.tsv.gz"):
        ParallelText("de-en", tmp_path / "d.tsv.gz").read()
    with pytest.raises(DataError, match=r"data.path=.*nowhere does not exist"):
        ParallelText("de-en", tmp_path / "nowhere").read()
    with pytest.raises(DataError, match=r"data.source.validation_path=.*nope.tsv does not exist"):
        ParallelText("de-en", write(tmp_path / "e.tsv", ["a\tb"]), validation_path=str(tmp_path / "nope.tsv")).read()
    with pytest.raises(DataError, match=r"data.source.target_path=.*nope.en does not exist"):
        ParallelText("de-en", tmp_path / "e.tsv", str(tmp_path / "nope.en")).read()
    with pytest.raises(DataError, match="three fractions"):
        ParallelText("de-en", bad, split=(0.5, 0.2, 0.2))


@pytest.mark.parametrize(("there", "missing"), [("de", "en"), ("en", "de")])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_one_of_two_files_alone_names_the_other(tmp_path, there, missing, end):
    write(tmp_path / f"v.{there}{end}", ["a"])
    with pytest.raises(DataError) as caught:
        ParallelText("de-en", tmp_path / "v").read()
    assert f"data.path={tmp_path / 'v'}: there is v.{there}{end}, but no v.{missing}" in str(caught.value)
    with pytest.raises(DataError, match=rf"data.source.test_path=.*no v.{missing} beside it"):
        ParallelText("de-en", write(tmp_path / "t.tsv", ["a\tb"]), test_path=str(tmp_path / "v")).read()
    tabbed = write(tmp_path / "v", ["c\td"])  # a file of the very name that was given is what is meant
    assert ParallelText("de-en", tabbed, split=(1, 0, 0)).read()["train"].sources == ["c"]


@pytest.mark.parametrize("form", ["translation", "columns"])
def test_hub_pairs_from_a_local_folder_in_the_hubs_format(tmp_path, form):
    for split in ("train", "validation", "test"):
        rows = [{"de": f"{split} eins", "en": f"{split} one"}, {"de": " ", "en": "x"}, {"de": None, "en": "y"}]
        rows = [{"translation": row} for row in rows] if form == "translation" else rows
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = HubPairs("de-en", str(tmp_path)).read(tmp_path.parent / "hub cache")
    assert splits["test"].sources == ["test eins"]
    assert splits["test"].targets == ["test one"]
    assert splits["test"].dropped == 2
    with pytest.raises(DataError, match=r"has no language 'fr' \(data.language_pair=fr-en\); it has: de, en"):
        HubPairs("fr-en", str(tmp_path)).read(tmp_path.parent / "hub cache")
