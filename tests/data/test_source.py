"""The list of sources holds every source, and knows which are prepared."""

from functools import partial

import pytest

import attnlab.data
from attnlab.data import TSV, Character, ClassificationData, ParallelText, TranslationData, describe_sources
from attnlab.data.labelled import Labelled, LabelledSource
from attnlab.data.pairs import Mixture
from attnlab.data.source import completed, declared, divide


def test_every_source_is_listed_under_its_name():
    listed = list(declared())
    assert all(getattr(attnlab.data, source.__name__) is source for source in listed)
    assert len(listed) == len(set(listed)) == len({source.name for source in listed}) == 30
    assert Mixture not in listed
    rows = {row.name: row for row in describe_sources()}
    assert {source.name: source.__name__ for source in listed} == {n: row.class_name for n, row in rows.items()}
    assert all(row.what and row.size and row.licence and row.kind for row in rows.values())
    kinds = [row.kind for row in describe_sources()]
    assert kinds == sorted(kinds)


class FewPairs(ParallelText):
    """Stands in for a source that is fetched."""

    name, fetched = "home_assistant", True


class FewTexts(TSV):
    """Stands in for a source that is fetched."""

    name, fetched = "reuters_r8", True


@pytest.fixture
def few(tmp_path):
    """Data modules of the two."""
    (tmp_path / "pairs.tsv").write_text("".join(f"ein Satz {i}\ta sentence {i}\n" for i in range(40)))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n" + "".join(f"{i}\t{i % 2}\n" for i in range(9)))
    source = partial(FewPairs, split=(0.5, 0.25, 0.25))
    pairs = TranslationData(source, Character(), "de-en", path=str(tmp_path / "pairs.tsv"))
    return {"home_assistant": pairs, "reuters_r8": ClassificationData(FewTexts, Character(), path=str(tmp_path))}


@pytest.mark.parametrize("name", ["home_assistant", "reuters_r8"])
def test_what_is_in_the_cache_is_prepared(few, name):
    before = {row.name: row.is_prepared for row in describe_sources()}
    assert before[name] is False
    few[name].prepare_data()
    assert {row.name: row.is_prepared for row in describe_sources()} == before | {name: True}


def labelled(count, **more):
    return Labelled([f"text {i}" for i in range(count)], [str(i % 2) for i in range(count)], **more)


def test_a_source_that_gives_no_examples_is_named_with_what_it_lacks():
    with pytest.raises(TypeError, match=r"abstract class LabelledSource .*read"):
        LabelledSource()


def test_a_part_is_divided_by_its_texts_and_keeps_what_was_said_of_it():
    whole = labelled(400, dropped=3, remarks=("said",))
    parts = divide(whole, {"train": 0.5, "test": 0.5})
    assert 150 < len(parts["train"]) < 250
    assert len(parts["train"]) + len(parts["test"]) == 400
    assert (parts["train"].dropped, parts["train"].remarks, parts["test"].dropped) == (3, ("said",), 0)
    assert parts["test"].labels == [str(int(text.split()[1]) % 2) for text in parts["test"].texts]


@pytest.mark.parametrize("there", [("train", "test"), ("train", "validation"), ("train", "validation", "test")])
def test_what_a_data_set_lacks_is_made_of_what_it_has(there):
    parts = completed({name: labelled(200) for name in there}, "no test part")
    assert list(parts) == ["train", "validation", "test"]
    assert len(parts["train"]) + len(parts["validation"]) == 200 + 200 * (len(there) == 3)
    assert parts["test"] == labelled(200)
    assert parts["train"].remarks == (() if "test" in there else ("no test part",))
