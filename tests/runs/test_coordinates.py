"""The coordinate check: sizes are root mean squares of what layers give, and tell muP from what is none."""

import csv
import math
from functools import partial

import pytest
import torch

import attnlab.layers
from attnlab.layers import ALiBi, GPT2Init, GroupedQuery, MuP, PositionEncoding, Rotary
from attnlab.models import GPT, ViT
from attnlab.runs.coordinates import FLAT, Sizes, recording
from attnlab.training import adamw

REFUSED = {
    "--widths 64": "--widths must be two widths or more, as in 64,128,256, got '64'",
    "--widths 64,x": "--widths must be two widths or more",
    "--widths 64,64": "--widths must be two widths or more",
    "--steps 0": "--steps must be at least 1, got 0",
    "--seeds 0": "--seeds must be at least 1, got 0",
    "model.d_model=64": "model.d_model=64: --widths sets it; leave it out",
    "--widths 30,64": "model.num_heads must be one of",
    "model=recurrent_lm --widths 16,32": "a coordinate check needs a Transformer",
}


def test_slope_spread_and_verdict_are_those_of_powers():
    widths = [64, 128, 256]
    powers = {"a": 0.0, "b": 0.5, "c": -1.0}
    sizes = Sizes(widths, {name: [[0.0] * 3, [3.0 * w**power for w in widths]] for name, power in powers.items()})
    assert sizes.steps == 1
    for name, power in powers.items():
        assert sizes.slope(name, 1) == pytest.approx(power)
        assert sizes.spread(name, 1) == pytest.approx(2 ** abs(power) - 1)
        assert math.isnan(sizes.slope(name, 0))
        assert sizes.spread(name, 0) == 0.0
    assert [sizes.verdict(name, 1) for name in powers] == ["flat", "grows", "shrinks"]
    assert sizes.grows == ["b"]


def test_what_is_recorded_is_what_layers_give():
    """The scores of what a query sees in loops, everything else by running the parts one after another."""
    torch.manual_seed(0)
    attention = partial(GroupedQuery, num_key_value_heads=2, window=3)
    model = GPT(9, 8, d_model=16, num_heads=4, num_layers=1, position=ALiBi, attention=attention).eval()
    tokens = torch.randint(0, 9, (2, 6))
    seen = {}
    with torch.no_grad(), recording(model, lambda place, x: seen.setdefault(place, []).append(x)):
        logits = model(tokens)
    assert torch.equal(seen["logits"][0], logits)
    layer = model.stack.layers[0]
    assert layer.attention.backend == "auto"
    with torch.no_grad():
        x = model.embed(tokens)
        normed = layer.residual.norms[0](x)
        torch.testing.assert_close(seen["stream"][0], x + seen["attention"][0] + seen["feed-forward"][0])
        q, k = layer.attention.query(normed).view(2, 6, 4, 4), layer.attention.key(normed).view(2, 6, 2, 4)
        scores = [
            (q[b, t, h] @ k[b, s, h // 2]).item() / 2
            for b in range(2)
            for h in range(4)
            for t in range(6)
            for s in range(max(0, t - 2), t + 1)
        ]
    torch.testing.assert_close(seen["attention logits"][0].sort().values, torch.tensor(scores).sort().values)
    with torch.no_grad():
        assert torch.allclose(model(tokens), logits, atol=1e-6)


def test_activations_grow_without_mup_and_not_with_it(attnlab, here, tiny, left):
    words = [word for word in tiny if not word.startswith(("model.d_model", "model.num_heads"))]
    words += ["optimizer=adamw", "optimizer.lr=0.002", "schedule=constant", "schedule.warmup_steps=0"]
    ask = ["coordinate-check", "--widths", "64,512", "--steps", "4", "--seeds", "2"]
    without = attnlab(*ask, *words, "init=gpt2", "--to", "found")
    assert without.status == 1, without.err
    for place in ("stream", "attention logits", "attention", "feed-forward"):
        assert place in without.out.splitlines()[-1]
    with open("found/coordinate-check.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 5 * 2
    assert {row["rms"] for row in rows if row["quantity"] == "change" and row["step"] == "0"} == {"0.0"}
    assert sorted(left(here)) == ["found", *(f"found/coordinate-check.{end}" for end in ("csv", "pdf", "png"))]
    said = attnlab(*ask, *words, "init=mup", "--changes")
    assert said.status == 0, said.out
    assert said.out.splitlines()[-1] == "nothing grows with the width"
    assert sorted(left(here)) == ["found", *(f"found/coordinate-check.{end}" for end in ("csv", "pdf", "png"))]


@pytest.mark.parametrize("given", REFUSED)
def test_a_mistake_is_one_line(attnlab, here, tiny, given):
    words = [word for word in tiny if not word.startswith(("model.", "attention"))]
    said = attnlab("coordinate-check", *words, *given.split())
    assert said.status in (1, 2), said.out
    assert REFUSED[given] in said.err


MIXERS = ("LinearAttention", "GatedLinear", "Retention", "DeltaNet", "GatedDeltaNet", "LSTM", "GRU")
ATTENTIONS = ("DifferentialAttention", "ForgettingAttention", "LatentAttention", "TalkingHeads")


def of_width(name, width, init):
    """A model of this width, and what it is trained on for some steps."""
    drawn = torch.Generator().manual_seed(0)
    sizes = {"d_model": width, "num_heads": 4, "num_layers": 2, "init": init}
    if name == "ViT":
        images = torch.randn(8, 1, 8, 8, generator=drawn)
        return ViT(10, 8, 1, patch_size=2, **sizes), images, torch.randint(0, 10, (8,), generator=drawn)
    attention = getattr(attnlab.layers, name)
    position = Rotary if attention.takes_rotation else PositionEncoding
    tokens = torch.randint(0, 40, (4, 24), generator=drawn)
    return GPT(40, 32, attention=attention, position=position, **sizes), tokens, tokens.roll(-1, 1)


def changes(name, width, init, seeds, steps=4):
    """Root mean squares by place of how activations have changed over some steps of AdamW."""
    squares = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs, targets = of_width(name, width, init)
        optimizer, seen = adamw(model, lr=0.002, weight_decay=0.0), []
        for step in range(steps + 1):
            found = {}
            with recording(model, lambda place, x, found=found: found.setdefault(place, []).append(x.detach())):
                logits = model(inputs)
            seen.append(found)
            if step < steps:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
                optimizer.step()
        for place, first in seen[0].items():
            pairs = zip(seen[-1][place], first, strict=True)
            squares.setdefault(place, []).extend((x - y).square().mean().item() for x, y in pairs)
    return {place: math.sqrt(sum(of) / len(of)) for place, of in squares.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT", *MIXERS, *ATTENTIONS])
def test_what_steps_change_is_alike_in_all_widths_with_mup_alone(name):
    """What has no softmax of its scores, and images: within a fifth from 64 to 512, and not with GPT-2's init."""
    init = MuP if name in ("ViT", "LSTM", "GRU") else partial(MuP, zero_query=True)
    for chosen, is_flat, seeds in ((init, True, 2), (GPT2Init, False, 1)):
        widths = (64, 512)
        found = [changes(name, width, chosen, seeds) for width in widths]
        sizes = Sizes(
            widths, {place: [[of[place] for of in found]] for place in found[0] if place != "attention logits"}
        )
        spreads = {place: sizes.spread(place, 0) for place in sizes.of}
        assert (max(spreads.values()) <= FLAT) == is_flat, spreads
