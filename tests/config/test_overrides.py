"""Any path that exists is a value, and any value of a YAML file is an override, as Hydra reads them and as names of cells."""

import os

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attnlab.config.compose import ConfigSpace
from attnlab.config.engine import for_each_job
from attnlab.config.identity import as_value, cell_name, key_and_text, literal, readable
from attnlab.training.run_directory import read_json

PATHS = ["é.txt", "名.txt", "e\u0301.txt", "ü é/ö.txt", "a(1).txt", "it's.txt", "c,d.txt", "~x.txt", 'q"uo.txt', "h#ash.txt", "a&b.txt", "a;b.txt",
         "bang!.txt", "{x}.txt", "[y].txt", "x{", "y[", "(", "'", '"', "'\"'", "two words.txt", " lead.txt", "tab\tx", "a=b.txt", "x,y=z,[1]",
         "$HOME.txt", "$", "a$b{c}", "${x}.txt", "\\${x}", "back\\slash.txt", "a\\,b", "end\\", "\\", "co:lon.txt", "*.txt", "a?b.txt", "a|b", "<a>",
         "`t`", "%d.txt", "@x.txt", "+p.txt", "-m.txt", "2024", "1e3", "true", "nan", "[1,2]", "{a:1}", "choice(a,b)", "range(1,3)"]  # fmt: skip
SIGNS = st.text(alphabet="a1\\'\"${}[](),:= \té名#~.", min_size=1, max_size=12)


def read(word):
    """The value of an override as a configuration has it."""
    config = OmegaConf.create({"value": OverridesParser.create().parse_override(word).value()})
    return OmegaConf.create(OmegaConf.to_container(config, resolve=False)).value


@pytest.fixture(scope="module")
def space():
    with ConfigSpace() as opened:
        yield opened


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(path):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as file:
        file.write("x")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("multirun", [False, True])
def test_a_path_that_exists_is_taken_as_it_stands(folder, path, multirun):
    make(path)
    for value in (path, f"./{path}", os.path.abspath(path)):
        (word,) = readable([f"data.path={value}"], multirun)
        assert read(word) == value
        assert key_and_text(f"data.path={value}") == ("data.path", value)


def test_each_path_has_a_cell_of_its_own_which_a_multirun_has_too(folder, space):
    names = []
    for path in PATHS:
        make(path)
        words = readable(["data=text", f"data.path={path}"], multirun=True)
        parsed = OverridesParser.create().parse_overrides(for_each_job(words, space))
        (job,) = BasicSweeper.split_arguments(parsed, None)[0]
        assert [read(word) for word in job if "path" in word] == [path]
        names.append(cell_name(readable(["data=text", f"data.path={path}"])))
        assert cell_name(job) == cell_name(words) == names[-1]
    assert len(set(names)) == len(PATHS) >= 50
    for name in names:
        os.mkdir(name)
        assert not set(name) & set(" \t/\\'\"$`&;|<>*?()[]{}!#~")
    assert {"data=text,path=é.txt", "data=text,path=名.txt"} <= set(names)
    assert any(name.startswith("data=text,path=c,d.txt-") for name in names)


def test_a_long_path_has_a_name_that_file_systems_take():
    assert len(cell_name([f'data.path="{"名" * 300}"']).encode()) < 120


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("position=alibi", "alibi"),
        ("optimizer.lr=1e-3", 0.001),
        ("model.num_layers=2", 2),
        ("model.tie_embeddings=true", True),
        ("data.path=null", None),
        ("task.evaluation_lengths=[1,2]", [1, 2]),
        ("data.path=${runs_dir}/x", "${runs_dir}/x"),
        ("data.path='quoted'", "quoted"),
        ('data.path="a b"', "a b"),
    ],
)
def test_what_is_no_path_is_read_as_hydra_reads_it(folder, word, value):
    for name in ("2", "1e-3", "true", "null", "alibi"):
        make(name)  # a number stays one but in a field that holds a path, and null stays null
    assert readable([word]) == [word]
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize("value", ["nowhere/é.txt", "a(", "[1,2", "it's", "{a", '"open', "x;y", "a=b", "名,é"])
def test_what_hydra_cannot_read_is_text(folder, value):
    assert read(readable([f"data.path={value}"])[0]) == value


def test_a_comma_parts_choices_in_a_multirun_alone(folder):
    make("c,d.txt")
    assert readable(["position=alibi,none"], multirun=True) == ["position=alibi,none"]
    assert readable(["data.path=é.txt,b.txt"], multirun=True) == ['data.path="é.txt",b.txt']
    assert readable(["data.path=c,d.txt"], multirun=True) == ['data.path="c,d.txt"']
    assert readable(["x=[é,b]", "x=choice(1,2)"], multirun=True) == ['x="[é,b]"', "x=choice(1,2)"]


@given(SIGNS)
def test_any_text_passes_through_an_override(text):
    assert read(f"key={literal(text)}") == text
    assert read(f"key={as_value([text.replace('$', '')])}") == [text.replace("$", "")]


@pytest.mark.parametrize(
    "value",
    [
        "alibi",
        "it's",
        "32",
        "null",
        "true",
        3,
        1e-5,
        True,
        None,
        [1, "2", None, True],
        {"a b": ["c,d", 1.5]},
        [[0.9, 0.1]],
    ],
)
def test_any_value_of_a_yaml_file_is_an_override(value):
    found = OverridesParser.create().parse_override(f"key={as_value(value)}").value()
    assert OmegaConf.to_container(OmegaConf.create({"value": found}))["value"] == value


def test_one_value_is_one_name_however_it_is_quoted():
    assert cell_name(["data.path=é.txt"]) == cell_name(['data.path="é.txt"']) == cell_name(["data.path='é.txt'"])
    assert cell_name(["position=alibi"]) == cell_name(['position="alibi"']) == "position=alibi"
    assert cell_name(['trainer.precision="32"']) != cell_name(["trainer.precision=32"])
    assert cell_name(['x="null"']) != cell_name(["x=null"])


@pytest.mark.slow
def test_runs_on_such_paths_train_in_every_way_and_are_evaluated(attnlab, tiny, library, here):
    text = (library / "text.txt").read_text()
    names = ["it's (1), é.txt", "${x}.txt"]
    for name in names:
        (here / name).write_text(text)
    rest = [word for word in tiny if not word.startswith("data.path=")]
    for words in (["study.name=one"], ["-m", "study.name=many", "position=none"]):
        for name in names:
            said = attnlab("train", *words, *rest, f"data.path={name}")
            assert said.status == 0, said.err
    records = [read_json(path) for path in here.glob("runs/*/*/seed=0/run.json")]
    assert sorted(record["config"]["data"]["path"] for record in records) == sorted([*names] * 2)
    assert {record["cell"]["data.path"] for record in records} == set(names)
    for run in here.glob("runs/one/*/seed=0"):
        said = attnlab("evaluate", str(run))
        assert said.status == 0, said.err
    for words in (["positions", "--to", "out"], ["reach"]):
        said = attnlab(*words, *rest, f"data.path={names[0]}")
        assert said.status == 0, said.err
