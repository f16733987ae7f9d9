"""What the heads of a model of images and texts attend to: each tower by itself, its pooling, and what masking a head does."""

import numpy as np
import pytest
import torch

from attnlab.data import Character
from attnlab.inspection.ablation import TaskLosses, ablate, heads_of
from attnlab.inspection.attended import Reader, read_image
from attnlab.inspection.attention_maps import OF_IMAGE, OF_TEXT, POOLING, rollout_of
from attnlab.inspection.heads import head_scores
from attnlab.models import CLIP
from attnlab.report.attention import page_data
from attnlab.tasks import Contrastive

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 2, "max_length": 16, "image_size": 8, "channels": 1}


def build(**fields):
    torch.manual_seed(0)
    return CLIP(vocabulary_size=5 + 27, **SIZES | fields).eval()


def tokenizer():
    return Character().train(["abcdefghijklmnopqrstuvwxyz "])


@pytest.mark.parametrize("causal", [True, False])
def test_a_text_is_read_by_its_tower(causal):
    model = build(causal_text=causal)
    found = Reader(model, tokenizer()).read("arrow left")
    assert found.kinds == [OF_TEXT, rollout_of(OF_TEXT)]
    queries, keys = found.axes[OF_TEXT]
    assert queries is keys
    assert [label for label, mark in zip(keys.labels, keys.is_mark_N, strict=True) if mark] == ["[end]"]
    assert len(found.of_kind(OF_TEXT)) == 2
    for one in found.of_kind(OF_TEXT):
        assert one.weights_HTS.shape == (2, len(keys), len(keys))
        torch.testing.assert_close(one.weights_HTS.sum(dim=2), torch.ones(2, len(keys)))
        assert bool(one.allowed_TS.all()) != causal
    with pytest.raises(ValueError, match="the text takes 19 positions, marks included, and the model's table has 16"):
        Reader(model, tokenizer()).read("a" * 17)


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_an_image_is_read_by_its_tower(pooling):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    found = read_image(build(pooling=pooling, registers=1), pixels, np.full(1, 0.4), np.full(1, 0.3), "noise")
    tokens = 4 + 1 + (pooling == "class")
    assert [one.weights_HTS.shape for one in found.of_kind(OF_IMAGE)] == [(2, tokens, tokens)] * 2
    pooled = found.of_kind(POOLING)
    assert [one.weights_HTS.shape for one in pooled] == [(2, 1, 4)] * (pooling == "attention")
    scores = head_scores([found])
    assert {head.kind for head in scores} == {OF_IMAGE, *([POOLING] if pooled else [])}
    shown = {kind["name"]: kind for kind in page_data([found], scores)["examples"][0]["kinds"]}
    has_mean = shown[OF_IMAGE]["queries"][0] == "[mean of patches]"
    assert has_mean == (pooling == "mean")
    assert not pooled or (shown[POOLING]["queries"], shown[POOLING]["keys"]) == (
        ["[probe]"],
        ["1.1", "1.2", "2.1", "2.2"],
    )


def test_every_head_of_either_tower_can_be_masked():
    task = Contrastive(build(pooling="attention"))
    draw = torch.Generator().manual_seed(0)
    batches = [
        {
            "images": torch.randn(4, 1, 8, 8, generator=draw),
            "tokens": torch.randint(5, 32, (4, 6), generator=draw),
            "is_token": torch.ones(4, 6, dtype=torch.bool),
            "ids": torch.arange(4),
        }
        for _ in range(3)
    ]
    losses = TaskLosses(task, batches)
    effects = ablate(task.model, losses)
    assert losses.count == 3  # the examples of a batch are compared with each other
    assert {str(head) for head in heads_of(task.model)} == {
        *(f"{kind} {layer}.{head}" for kind in (OF_IMAGE, OF_TEXT) for layer in (0, 1) for head in (0, 1)),
        *(f"{POOLING} 0.{head}" for head in (0, 1)),
    }
    assert all(abs(found.change) > 1e-7 for found in effects.values())
