"""The list of sources holds every source, and knows which are prepared."""

import importlib
import inspect
import pkgutil
from functools import partial

import pytest

import attnlab.data
from attnlab.data import (
    CATALOGUE,
    TSV,
    Character,
    ClassificationData,
    ParallelText,
    ReutersR8,
    TranslationData,
    describe_sources,
)
from attnlab.data.labelled import LABELLED_SOURCES
from attnlab.data.pairs import PAIR_SOURCES, HomeAssistant
from attnlab.data.text_to_text import Mixture


def all_sources():
    """Every class of attnlab.data that describes itself as a source does; not the bases, which have no name, nor a mixture of others."""
    for module in pkgutil.iter_modules(attnlab.data.__path__):
        for _, found in inspect.getmembers(importlib.import_module(f"attnlab.data.{module.name}"), inspect.isclass):
            if found is not Mixture and all(hasattr(found, name) for name in ("name", "what", "size", "licence")):
                yield found


def test_every_source_is_listed_under_its_name():
    listed = [source for shelf in CATALOGUE for source in shelf.sources.values()]
    assert {source.__name__ for source in all_sources()} == {source.__name__ for source in listed}
    assert len(listed) == len(set(listed)) == len({source.name for source in listed})
    rows = {row.name: row for row in describe_sources()}
    assert {source.name: source.__name__ for source in listed} == {n: row.class_name for n, row in rows.items()}
    assert all(row.what and row.size and row.licence for row in rows.values())


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
    assert HomeAssistant.name in PAIR_SOURCES
    assert ReutersR8.name in LABELLED_SOURCES
    before = {row.name: row.is_prepared for row in describe_sources()}
    assert before[name] is False
    few[name].prepare_data()
    assert {row.name: row.is_prepared for row in describe_sources()} == before | {name: True}
