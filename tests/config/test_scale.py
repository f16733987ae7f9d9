"""One dial: nanochat's sizes, what its rules keep the same, and that each of its fields can still be set."""

import math

import pytest

from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.config.scale import by_depth
from attnlab.models import GPT, count_parameters

NANOCHAT = {
    "context_length": 2048,
    "aspect_ratio": 64,
    "d_head": 128,
    "tokens_per_parameter": 10.5,
    "reference_depth": 12,
    "batch_size": 2**19 // 2048,
    "lr": 0.02,
    "weight_decay": 0.2,
    "batch_power": 0.383,
    "width_power": -0.5,
}
FIELDS = ("model.num_layers", "model.d_model", "model.num_heads", "data.batch_size", "trainer.max_steps")


@pytest.fixture(scope="module")
def compose():
    with ConfigSpace() as space:

        def composed(*words):
            found = space.compose(words)
            check(found)
            return found

        yield composed


@pytest.mark.parametrize(("depth", "d_model", "heads"), [(12, 768, 6), (20, 1280, 10), (26, 1664, 13), (13, 896, 7)])
def test_widths_are_nanochat_s(depth, d_model, heads):
    sizes = by_depth(depth, **NANOCHAT)
    assert (sizes["d_model"], sizes["num_heads"]) == (d_model, heads)


def test_sixteen_times_the_tokens_have_four_times_the_batch_twice_the_rate_and_an_eighth_of_the_decay():
    """2^19 * 16^0.383 is 1.5 million tokens, to the nearest power of 2 2^21; with layers of one width tokens go as the
    depth."""
    given = NANOCHAT | {"aspect_ratio": 1, "d_head": 1024}
    small, large = by_depth(12, **given), by_depth(192, **given)
    assert (small["batch_size"], large["batch_size"]) == (2**8, 2**10)
    assert large["lr"] == pytest.approx(2 * 0.02)
    assert large["weight_decay"] == pytest.approx(0.2 / 8)
    assert large["max_steps"] == pytest.approx(4 * small["max_steps"], abs=4)


@pytest.mark.parametrize("depth", [3, 12, 17, 40])
def test_averages_of_the_weights_reach_over_the_same_share_of_a_training(depth):
    """batch / (rate decay tokens), Wang & Aitchison 2024, does not change where the width itself changes no rate."""

    def share(sizes):
        return sizes["batch_size"] / (sizes["lr"] * sizes["weight_decay"] * sizes["d_model"] ** 2 * sizes["layers"])

    given = NANOCHAT | {"width_power": 0.0}
    assert share(by_depth(depth, **given) | {"layers": depth}) == pytest.approx(
        share(by_depth(12, **given) | {"layers": 12})
    )


def test_tokens_are_as_many_for_each_weight_of_the_model_as_is_asked(compose):
    config = compose("scale=depth", "scale.depth=6")
    layers, d_model, heads, batch, steps = map(config.get, FIELDS)
    model = GPT(10, 64, d_model=d_model, num_heads=heads, num_layers=layers)
    total, embedding = count_parameters(model)
    assert steps * batch * 64 / (total - embedding) == pytest.approx(10, rel=0.01)


def test_at_its_reference_it_is_the_run_without_it(compose):
    one, other = compose("scale=depth"), compose()
    for field in (*FIELDS[:-1], "optimizer.lr", "optimizer.weight_decay"):
        assert one.get(field) == other.get(field)


def test_the_dial_turns_all_and_each_can_be_set(compose):
    config = compose("scale=depth", "scale.depth=8", "model.num_heads=4", "optimizer.lr=0.5")
    assert [config.get(field) for field in FIELDS] == [8, 256, 4, 64, 15360]
    assert config.get("optimizer.lr") == 0.5
    assert config.get("optimizer.weight_decay") == pytest.approx(0.01 * math.sqrt(2) / 8)
    assert config.resolved["scale"]["depth"] == 8


@pytest.mark.parametrize(
    ("word", "message"),
    [("scale.depth=0", "depth must be at least 1, got 0"), ("scale.depht=3", "Did you mean scale.depth?")],
)
def test_a_mistake_is_said(compose, word, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        compose("scale=depth", word)


def test_it_is_refused_where_data_have_no_windows_of_tokens(compose):
    with pytest.raises(UsageError, match=r"choose data that has data\.context_length"):
        compose("scale=depth", "data=digits", "model=vit", "task=image_classification")
