"""The entries of a model's pattern, written as choices."""

import pytest

from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace

LOCAL = "model.layers.local.attention.window=8"


@pytest.fixture(scope="module")
def space():
    with ConfigSpace() as space:
        yield space


def model_of(space, *words):
    composed = space.compose(list(words))
    check(composed)
    return composed.resolved["model"]


def test_a_choice_by_name_is_the_whole_part_and_a_field_that_of_the_run(space):
    model = model_of(
        space,
        "model.pattern=[local,global]",
        "attention=grouped_query",
        LOCAL,
        "model.layers.local.position=alibi",
        "model.layers.global={position: rotary, position.base: 500, norm: rms_norm, d_ff: 7}",
    )
    local, whole = model["layers"]["local"], model["layers"]["global"]
    assert local["attention"] == {**model["attention"], "window": 8}
    assert local["attention"]["_target_"] == "attnlab.layers.GroupedQuery"
    assert local["position"]["_target_"] == "attnlab.layers.ALiBi"
    assert (whole["position"]["base"], whole["position"]["fraction"], whole["d_ff"]) == (500, 1.0, 7)
    assert whole["residual"] == {**model["residual"], "norm": whole["residual"]["norm"]}
    assert whole["residual"]["norm"]["_target_"] == "attnlab.layers.RMSNorm"
    assert model["residual"]["norm"]["_target_"] == "attnlab.layers.LayerNorm"


def test_three_spellings_are_one_entry(space):
    spelt = (
        ["model.layers.local.attention.window=8", "model.layers.local.position=alibi"],
        ["model.layers.local={attention.window: 8, position: alibi}"],
        ["model.layers.local={attention: {window: 8}, position: alibi}"],
    )
    entries = [model_of(space, "model.pattern=[local]", *words)["layers"] for words in spelt]
    assert entries[0] == entries[1] == entries[2]


def test_a_residual_by_name_has_the_norm_of_the_run(space):
    layers = model_of(space, "model.pattern=[a]", "norm=rms_norm", "model.layers.a.residual=sandwich")["layers"]
    assert layers["a"]["residual"]["norm"]["_target_"] == "attnlab.layers.RMSNorm"


def test_a_pattern_by_name_takes_other_fields(space):
    model = model_of(space, "pattern=rnope_swa", "model.layers.local.attention.window=16")
    assert model["pattern"] == ["local", "local", "local", "global"]
    assert model["layers"]["local"]["attention"]["window"] == 16
    assert model["layers"]["global"]["position"]["_target_"] == "attnlab.layers.PositionEncoding"


def test_the_names_of_choices_are_known(space):
    composed = space.compose(["model.pattern=[a]", "model.layers.a={position: alibi, norm: rms_norm}"])
    assert composed.names["position@model.layers.a.position"] == "alibi"
    assert composed.names["norm@model.layers.a.norm"] == "rms_norm"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.pattern=[a,b]", "model.layers.a.d_ff=8"], "model.pattern: b is no entry of layers (defined: a)"),
        (["pattern=local_global", "model.num_layers=3"], "model.pattern: 4 entries (local, local, local, global) are"),
        ([LOCAL], "model.layers: without model.pattern its entries would have no effect"),
        (["model.pattern=[a]", "model.layers.a.position=alibbi"], "model.layers.a.position must be one of alibi, "),
        (["model.pattern=[a]", "model.layers.a.position=alibbi"], "Did you mean alibi?"),
        (["model.pattern=[a]", "model.layers.a.heads=2"], "model.layers.a.heads: there is no such field"),
        (["model.pattern=[a]", "model.layers.a.attention.windw=2"], "Did you mean window?"),
        (
            ["model.pattern=[a]", "model.layers.a.attention.window=0"],
            "model.layers.a.attention.window must be at least 1",
        ),
        (["model.pattern=[a]", "model.layers.a=3"], "model.layers.a must be a table of choices"),
        (["model.pattern=[a]", "model.layers.a.position=3"], "model.layers.a.position must be the name of a choice"),
        (["model.pattern=a", "model.layers.a.d_ff=8"], "model.pattern must be a list of text or null, got 'a'"),
        (
            ["model.pattern=[a]", "model.d_model=12", "position=none", "model.layers.a.position=rotary"],
            "model.layers.a.position: rotary rotates pairs of channels",
        ),
        (["model=recurrent_lm", "pattern=local_global"], "model.pattern: there is no such field"),
    ],
)
def test_what_makes_no_sense_is_refused(space, words, said):
    with pytest.raises(UsageError) as caught:
        model_of(space, *words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["model.layers.a.attention=linear", "model.layers.a.attention.convolution=3"],
        ["model.layers.a.attention.convolution=3", "model.layers.a={attention: linear, attention.convolution: 3}"],
        ["model.layers.a={attention: linear}", "model.layers.a.attention.convolution=3"],
    ],
)
def test_a_choice_keeps_the_fields_that_are_set_beside_it(space, words):
    words = [*words, "model.layers.a.position=none"]
    attention = model_of(space, "model.pattern=[a]", *words)["layers"]["a"]["attention"]
    assert (attention["_target_"], attention["convolution"]) == ("attnlab.layers.LinearAttention", 3)


def test_another_choice_leaves_nothing_of_the_one_before(space):
    words = ["model.layers.a.position.base=500", "model.layers.a.position=alibi"]
    assert "base" not in model_of(space, "model.pattern=[a]", *words)["layers"]["a"]["position"]
    model = model_of(space, "pattern=rnope_swa", "model.layers.local.position.base=500")
    assert model["layers"]["local"]["position"]["base"] == 500
    assert model["layers"]["local"]["position"]["_target_"] == "attnlab.layers.Rotary"
