"""What attentions and positions say that they cannot be combined with."""

import pytest

from attnlab.config import UsageError
from attnlab.config.check import incompatible
from attnlab.config.compose import ConfigSpace
from attnlab.runs.build import dry_build


@pytest.fixture(scope="module")
def space():
    with ConfigSpace() as opened:
        yield opened


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("attention=forgetting model=bert", "attention: attention=forgetting sees only what stands before a token"),
        (
            "attention=sink_logit attention.backend=fused",
            "attention.backend: fused makes weights by a softmax alone, and",
        ),
        ("position=cope attention.backend=flex", "and position=cope needs all scores; choose attention.backend=auto"),
        ("position=cope attention=latent", "position: position=cope acts on whole queries, of which attention=latent"),
        (
            "position=cope model=encoder_decoder",
            "position: cope is of distances to keys before the query, and model=encoder",
        ),
        ("attention=differential model.d_model=20 position=none", "halves the width of each head, which is odd (5)"),
        ("attention=shared_key_value pattern=rnope_swa", "takes keys from other layers as positions rotated them"),
        (
            "attention=value_residual model.pattern=[a,b] model.layers.a.attention=multi_head +model.layers.b={}",
            "attention: value_residual takes keys or values from other layers, and those of model.layers.a have another",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(space, words, reason):
    found = incompatible(space.compose(["model.num_heads=4", "model.num_layers=4", *words.split(" ")]))
    assert any(reason in line for line in found), found


@pytest.mark.parametrize(
    "words",
    [
        "attention=shared_key_value pattern=local_global",
        "attention=latent model=vit",
        "attention=sigmoid model=t5",
        "attention=differential attention.window=8 position=alibi",
        "attention=value_residual model=encoder_decoder",
        "attention=talking_heads position=cope",
        "attention=forgetting attention.soft_cap=30",
    ],
)
def test_what_makes_sense_is_built(space, words):
    composed = space.compose(["model.num_layers=4", *words.split(" ")])
    assert incompatible(composed) == []
    dry_build(composed.resolved)


def test_a_head_gate_beside_an_elementwise_one_is_no_field(space):
    with pytest.raises(UsageError, match=r"attention\.output_gate: there is no such field"):
        incompatible(space.compose(["attention=head_gate", "attention.output_gate=true"]))
