"""`attnlab data list` names every source and every choice of the group data."""

import subprocess
import sys

import pytest

from attnlab.cli.parts import choices_of_sources
from attnlab.config import shipped
from attnlab.data import describe_sources


@pytest.mark.parametrize("columns", ["60", "100", "200"])
def test_every_source_stands_with_the_choices_that_read_it(attnlab, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    said = attnlab("data", "list")
    assert said.status == 0
    words = said.out.replace(",", " ").replace("data=", " ").split()
    choices = choices_of_sources()
    for row in describe_sources():
        assert row.name in words
        assert set(choices[row.class_name]) <= set(words)
    assert "prepared" in said.out
    assert len(max(said.out.splitlines(), key=len)) <= int(columns)


def test_every_choice_of_data_reads_a_source_that_is_listed():
    choices = {path.stem for path in (shipped("conf") / "data").glob("*.yaml")}
    choices -= {name for name in choices if "SyntheticData" in (shipped("conf") / "data" / f"{name}.yaml").read_text()}
    rows, readers = {row.class_name for row in describe_sources()}, choices_of_sources()
    assert choices == {name for source in rows for name in readers.get(source, [])}
    assert readers["KJV"] == ["kjv", "kjv_masked", "kjv_spans", "kjv_ul2"]
    assert readers["HubPairs"] == ["wmt14"]


def test_listing_loads_neither_torch_nor_a_tokenizer(here):
    code = "import sys; from attnlab.cli.main import main; main(['data', 'list']);"
    code += "print(sorted({'torch', 'lightning', 'tokenizers', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
