"""The loader gives what Hydra's own gives, from files as they are now."""

import os

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import OmegaConf, grammar_parser
from omegaconf.errors import GrammarParseError

from attnlab.config import loader
from attnlab.config.compose import CONFIG_NAME, ConfigSpace

WORDS = [
    [],
    ["seed=3", "optimizer.lr=1e-2", "trainer.max_steps=7"],
    ["position=alibi", "data=text", "data.path=x", "+feed_forward.dropout=0.1", "model.d_model=32"],
    ["position=alibi", "data=text", "data.path='a, b'", "~schedule.warmup_steps"],
    ["hydra/launcher=basic", "hydra.job.env_copy=[HOME]", "hydra.job.name=x"],
    ["hydra/launcher=slurm", "hydra/sweeper=search", "hydra/job_logging=none"],
    ["optimizer={lr: 3}", "+a={b: [1, {c: null}]}", "++seed=4"],
    ["seed=1,2", "position=none,alibi", "data=text", "hydra.sweep.dir=x"],
    ["position=nowhere"],
    ["model.nothing=1"],
    ["~optimizer"],
    ["position"],
]


def outcome(load, words, mode):
    """What it comes to with its interpolations and what may be changed in it, or every word of the error."""
    try:
        config = load.load_configuration(CONFIG_NAME, list(words), mode)
    except Exception as error:
        return type(error), str(error), str(error.__cause__)
    flags = [(node._get_flag("struct"), node._get_flag("readonly")) for node in (config, config.hydra, config.model)]
    return OmegaConf.to_container(config, resolve=False), flags


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_it_gives_what_hydra_gives(words):
    with ConfigSpace() as space:
        ours, hydras = space._loader, ConfigLoaderImpl(space._loader.config_search_path)
        mode = RunMode.MULTIRUN if "seed=1,2" in words else RunMode.RUN
        assert outcome(ours, words, mode) == outcome(ours, words, mode) == outcome(hydras, words, mode)


def test_what_is_done_to_a_configuration_changes_no_later_one():
    with ConfigSpace() as space:
        before, changed = (space._loader.load_configuration(CONFIG_NAME, ["seed=1"], RunMode.RUN) for _ in range(2))
        OmegaConf.set_struct(changed, False)
        changed.model.clear()
        changed.hydra.overrides.task.append("x=1")
        assert space._loader.load_configuration(CONFIG_NAME, ["seed=1"], RunMode.RUN) == before


def test_a_file_that_was_changed_or_added_since_is_seen(tmp_path):
    (tmp_path / "position").mkdir()
    (own := tmp_path / "position" / "mine.yaml").write_text("_target_: a.B\nx: 1\n")
    with ConfigSpace([str(tmp_path)]) as space:

        def target(*words):
            return space._loader.load_configuration(CONFIG_NAME, list(words), RunMode.RUN).model.position

        assert target("position=mine").x == 1
        theirs = target("position=alibi")
        own.write_text("_target_: a.B\nx: 2\n")
        os.utime(own, ns=(1, 1))
        assert target("position=mine").x == 2
        (tmp_path / "position" / "alibi.yaml").write_text("_target_: a.C\n")
        assert target("position=alibi")._target_ == "a.C"
        (tmp_path / "position" / "alibi.yaml").unlink()
        assert target("position=alibi") == theirs
        own.unlink()
        with pytest.raises(Exception, match="mine"):
            target("position=mine")


def test_hydras_own_part_is_merged_once_and_a_file_may_set_fields_of_it(tmp_path, monkeypatch):
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "mine.yaml").write_text("# @package _global_\nhydra: {job: {name: mine, env_set: {A: 1}}}\n")
    with ConfigSpace([str(tmp_path)]) as space:
        hydras = ConfigLoaderImpl(space._loader.config_search_path)
        space.compose([])
        merged = []
        whole = ConfigLoaderImpl._compose_config_from_defaults_list
        monkeypatch.setattr(
            ConfigLoaderImpl,
            "_compose_config_from_defaults_list",
            lambda self, defaults, repo: merged.extend(defaults) or whole(self, defaults, repo),
        )
        for words in (["init=mine"], ["init=xavier", "norm=rms_norm"]):
            found = outcome(space._loader, words, RunMode.RUN)
            assert merged
            assert not [one for one in merged if (one.package or "").startswith("hydra")]
            assert found == outcome(hydras, words, RunMode.RUN)
            merged.clear()


def test_what_is_kept_has_an_end(monkeypatch):
    monkeypatch.setattr(loader, "MOST_KEPT", 2)
    with ConfigSpace() as space:
        for name in ("none", "alibi", "rotary"):
            space._loader.load_configuration(CONFIG_NAME, [f"position={name}"], RunMode.RUN)
    assert len(loader.KEPT) == 2


def test_a_word_is_parsed_once_and_none_shares_what_another_was_told(monkeypatch):
    parsed = []
    whole = loader.OverridesParser.parse_rule
    monkeypatch.setattr(loader.OverridesParser, "parse_rule", lambda *given: parsed.append(1) or whole(*given))
    first, second = (loader.parse(["a.b=[1,2]"])[0] for _ in range(2))
    assert len(parsed) <= 1
    first.key_or_group, first.value()[0] = "other", 5
    assert (second.key_or_group, second.value()) == ("a.b", [1, 2])
    assert loader.parse_one("a.b=[1,2]").value() == [1, 2]


def test_a_list_of_defaults_may_name_a_choice_by_that_of_another_group(tmp_path):
    """`${...}` in it is filled in from the choices, which are worked out for such lists alone."""
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "mine.yaml").write_text("defaults:\n- /init: of_${model}\n- _self_\nb: 2\n")
    (tmp_path / "init" / "of_gpt.yaml").write_text("a: 1\n")
    with ConfigSpace([str(tmp_path)]) as space:
        words = ["init=mine"]
        hydras = ConfigLoaderImpl(space._loader.config_search_path)
        found = outcome(space._loader, words, RunMode.RUN)
        assert found == outcome(hydras, words, RunMode.RUN)
        assert found[0]["init"] == {"init": {"a": 1}, "b": 2}


def test_an_interpolation_is_parsed_once_and_filled_in_anew(monkeypatch):
    parsed = []
    whole = grammar_parser.OmegaConfGrammarParser.configValue
    monkeypatch.setattr(
        grammar_parser.OmegaConfGrammarParser, "configValue", lambda self: parsed.append(1) or whole(self)
    )
    for number in (1, 2):
        monkeypatch.setenv("ATTNLAB_NUMBER", str(number))
        config = OmegaConf.create({"a": {"b": number}, "c": "${a.b} of ${oc.env:ATTNLAB_NUMBER}"})
        assert config.c == f"{number} of {number}"
    assert len(parsed) <= 1
    with pytest.raises(GrammarParseError):
        OmegaConf.create({"c": "${a.b"}).c  # noqa: B018


@pytest.mark.parametrize(
    "words", [["callbacks=[mine,other]"], ["callbacks=[other,mine]", "callbacks.mine.x=5"], ["callbacks=mine"]]
)
def test_choices_of_a_list_stand_as_where_hydra_is_told_their_place(tmp_path, words):
    """A file without a word about its place, beside Hydra's own way with one that has `@package`."""
    for folder, header in (("plain", ""), ("placed", "# @package callbacks.{}\n")):
        (tmp_path / folder / "callbacks").mkdir(parents=True)
        for name in ("mine", "other"):
            text = header.format(name) + f"_target_: a.{name}\nx: 1\n"
            (tmp_path / folder / "callbacks" / f"{name}.yaml").write_text(text)
    found = []
    for folder, kind in (("plain", None), ("placed", ConfigLoaderImpl)):
        with ConfigSpace([str(tmp_path / folder)]) as space:
            loads = space._loader if kind is None else kind(space._loader.config_search_path)
            found.append(OmegaConf.to_container(loads.load_configuration(CONFIG_NAME, words, RunMode.RUN).callbacks))
    assert found[0] == found[1]
    assert list(found[0]) == words[0].partition("=")[2].strip("[]").split(",")
