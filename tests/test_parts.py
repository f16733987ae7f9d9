"""What a part says about itself before it is built, and how it is built."""

from collections.abc import Iterator
from functools import partial

import pytest
from torch import nn

from attnlab.layers import (
    GEGLU,
    AxialRotary,
    FeedForward,
    Init,
    LayerNorm,
    Norm,
    PositionEncoding,
    PreNorm,
    ReZero,
    RMSNorm,
    Rotary,
    RotaryLlama3,
    RotaryYaRN,
    Sandwich,
    Sinusoidal,
)
from attnlab.models import GPT, T5, Bert, Encoder, LanguageModel
from attnlab.parts import Choices, accepts, build_part, parameters_of, value_of
from attnlab.ranges import PositiveInt

FIELDS = {"model": {"d_model": 12, "num_heads": 4, "position": {}}, "position": {"fraction": 1.0}}


def choices(fields=FIELDS, **given):
    return Choices(fields, given, parts={"position": Rotary})


def test_choices_are_read_by_their_path():
    assert choices().get("model.d_model") == 12
    assert choices().get("model.d_model.deeper", 3) == 3
    assert choices().get("data.path") is None
    assert choices().takes("position")
    assert not choices().takes("norm")
    assert choices().name("position") == "Rotary"
    assert choices(position="rotary").name("position") == "rotary"
    assert choices().name("norm") == ""
    assert choices().is_a("position", PositionEncoding)
    assert not choices().is_a("position", AxialRotary)
    assert not choices().is_a("norm", nn.Module)


def test_a_part_says_what_it_cannot_be_combined_with():
    assert list(PositionEncoding.incompatible(choices())) == []
    odd = list(Rotary.incompatible(choices(position="rotary")))
    assert odd == [
        "position: rotary rotates pairs of channels, and a head has an odd number of them (3); "
        "change model.d_model or model.num_heads"
    ]
    assert list(Rotary.incompatible(choices({**FIELDS, "attention": {"d_head": 4}}))) == []


def test_a_strangers_part_says_it_beside_its_base():
    class Picky(Rotary):
        @classmethod
        def incompatible(cls, choices: Choices) -> Iterator[str]:
            yield from super().incompatible(choices)
            if choices.get("model.d_model") == 12:
                yield "model.d_model: never 12"

    assert [line.split(":")[0] for line in Picky.incompatible(choices())] == ["position", "model.d_model"]


def test_a_part_is_built_of_the_dims_it_names_and_does_not_bind():
    built = build_part(
        partial(partial(PreNorm, norm=RMSNorm, dropout=0.5), dropout=0.1), d_model=8, dropout=0.2, d_ff=3
    )
    assert built.dropout.rate == 0.1
    assert isinstance(built.norms[0], RMSNorm)
    assert accepts(PreNorm, "dropout")
    assert not accepts(partial(PreNorm, dropout=0.1), "dropout")
    with pytest.raises(ValueError, match="PreNorm needs d_model, which is not given here; given: d_ff"):
        build_part(partial(PreNorm, norm=RMSNorm), d_ff=3)


def test_what_a_constructor_passes_on_whole_counts_field_by_field():
    gpt, t5 = parameters_of(GPT), parameters_of(T5)
    assert gpt.keys() == {"vocabulary_size", "max_length", "extra_heads", "logit_soft_cap", *GPT.defaults}
    assert {"d_model", "num_layers", "dropout", "position", "tie_embeddings", "init"} <= gpt.keys()
    assert gpt["d_model"].annotation == PositiveInt
    assert (gpt["d_model"].default, gpt["position"].default, gpt["tie_embeddings"].default) == (128, Sinusoidal, True)
    assert (t5["tie_embeddings"].default, t5["feed_forward"].default, t5["share_layers"].default) == (
        False,
        GEGLU,
        False,
    )
    assert gpt["vocabulary_size"].default is gpt["vocabulary_size"].empty


def test_it_has_the_default_of_the_constructor_that_it_goes_to():
    assert {name: p.default for name, p in parameters_of(GEGLU).items() if name not in ("d_model", "d_ff")} == {
        "approximate": "none", "matched": True, "bias": False, "dropout": 0.0
    }  # fmt: skip
    assert parameters_of(RotaryLlama3)["base"].default == 500000.0
    assert parameters_of(RotaryYaRN)["base"].default == 10000.0
    assert value_of(partial(Sandwich, norm=RMSNorm), "norm", None) is RMSNorm
    assert value_of(Sandwich, "norm", None) is LayerNorm
    assert value_of(ReZero, "norm", "none") == "none"


@pytest.mark.parametrize("model", [GPT, Bert])
def test_a_field_that_is_passed_on_is_checked_as_ones_own(model):
    with pytest.raises(TypeError, match=rf"{model.__name__}.__init__\(\) got an unexpected keyword argument 'd_modl'"):
        model(vocabulary_size=9, max_length=8, d_modl=8)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        model(vocabulary_size=9, max_length=8, num_layers=0)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        model(vocabulary_size=9, max_length=8, dropout=1)


@pytest.mark.parametrize(
    ("base", "missing"),
    [
        (Norm, "forward"),
        (FeedForward, "activate"),
        (Init, "std"),
        (LanguageModel, "forward, new_cache"),
        (Encoder, "encode"),
    ],
)
def test_what_a_class_leaves_out_is_named(base, missing):
    with pytest.raises(TypeError, match=f"abstract class Lacking with abstract methods? {missing}"):
        type("Lacking", (base,), {})()
