"""Images with their texts: the losses as formulas, recall by sorting, prompts, validation as the end, two ranks as one."""

import os
import re
import sys
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import ranks_from_server
from torch.nn import functional as F

from attnlab.data import Character, ImageTextData
from attnlab.data.captions import Captioned, CaptionedSource, completed
from attnlab.models import CLIP
from attnlab.parts import Choices, build_part
from attnlab.tasks import Contrastive
from attnlab.tasks.contrastive import ROWS, Pairs, numbered, placed, sigmoid_sum, softmax_sum
from attnlab.training import Checkpoints, Constant, Optimization, TrainerSettings, adamw, build_trainer, ranks, resolve

LOSSES = {"softmax": softmax_sum, "sigmoid": sigmoid_sum}
SIDE, STEPS = 4, 6
SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 1, "patch_size": 2}


class Dots(CaptionedSource):
    """Images with one bright pixel and a word of where it is; 64 of them, each row of pixels a class."""

    name = "dots"

    def __init__(self, path=None, labelled=False, doubles=False):
        self.labelled, self.doubles = labelled, doubles

    def read(self, cache=None):
        count = 64
        pixels = np.zeros((count, 1, 8, 8), dtype=np.uint8)
        pixels[np.arange(count), 0, np.arange(count) // 8, np.arange(count) % 8] = 200
        captions = ["same" if self.doubles else f"{'abcdefgh'[n // 8]}{'stuvwxyz'[n % 8]}" for n in range(count)]
        labels = ["abcdefgh"[n // 8] if self.labelled else "" for n in range(count)]
        return completed({"train": Captioned(pixels, captions, labels)})


def data_of(**fields):
    source = Dots(**{name: fields.pop(name) for name in ("labelled", "doubles") if name in fields})
    module = ImageTextData(**{"source": source, "tokenizer": Character(), "batch_size": 8, "max_length": 9, **fields})
    module.setup()
    return module


def task_of(data, **fields):
    torch.manual_seed(0)
    bias = fields.get("loss") == "sigmoid"
    model = build_part(partial(CLIP, logit_bias=bias, **SMALL), **data.dims())
    task = Contrastive(model, **fields)
    task.optimization = Optimization(partial(adamw, lr=1e-2, eps=1e-6), Constant)
    return task


class Gradients(pl.Callback):
    """Those of the first step, by the name of the weight."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.found = {name: p.grad.clone() for name, p in pl_module.model.named_parameters()}


def fit(folder, halves=1, loss="softmax", resume=None, checkpoints=None, validates=6, scale=None):
    """Trains for some steps, each of 8 images over so many ranks; gives what came out."""
    torch.set_num_threads(1)
    data = data_of(batch_size=8 // halves, cache=str(folder / "cache"))
    task = task_of(data, loss=loss)
    if scale is not None:
        task.model.log_scale.data.fill_(scale)
    chosen = TrainerSettings(
        max_steps=STEPS, device="cpu", devices=halves, precision="32", log_every_n_steps=1, val_check_interval=validates
    )
    gradients = Gradients()
    watchers = [gradients, *([] if checkpoints is None else [Checkpoints(checkpoints, 3600.0)])]
    trainer = build_trainer(chosen, resolve(chosen.precision, chosen.device_type), (), watchers, folder)
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    watched = {name: value for name, value in task.latest.items() if name.split("/")[0] in ("train", "val")}
    found = {"watched": watched, "final": task.evaluate(data), "weights": task.model.state_dict()}
    return found | {"gradients": getattr(gradients, "found", {})}


def embeddings(count, seed=0, width=5):
    drawn = torch.randn(2, count, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=2)


def score(images, texts):
    return images @ texts.T * 7 - 1


# --- losses


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_losses_are_those_of_the_papers(count):
    images, texts = embeddings(count)
    scores, diagonal = score(images, texts), torch.arange(count)
    wanted = (F.cross_entropy(scores, diagonal) + F.cross_entropy(scores.T, diagonal)) / 2 * count
    assert float(softmax_sum(score, Pairs.alone(images, texts))) == pytest.approx(float(wanted), rel=1e-6)
    signs = 2 * torch.eye(count) - 1
    wanted = -torch.log(torch.sigmoid(signs * scores)).sum()
    assert float(sigmoid_sum(score, Pairs.alone(images, texts))) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_of_a_split_have_the_loss_of_the_whole(loss):
    pairs = Pairs.alone(*embeddings(2 * ROWS + 3))
    parts = [LOSSES[loss](score, block) for block in pairs.blocks()]
    assert [len(block.images_BE) for block in pairs.blocks()] == [ROWS, ROWS, 3]
    assert float(sum(parts)) == pytest.approx(float(LOSSES[loss](score, pairs)), rel=1e-6)


# --- retrieval


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_recall_is_what_sorting_finds(count, groups, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (count, count), generator=draw).float()  # some are equal
    group = torch.randint(0, groups, (count,), generator=draw)
    right = group[:, None] == group
    found = placed(scores, right)
    for row in range(count):
        # Of equal scores the wrong candidates go first.
        order = sorted(range(count), key=lambda n, row=row: (-float(scores[row, n]), bool(right[row, n])))
        assert int(found[row]) == next(place for place, n in enumerate(order) if right[row, n])


def test_scores_that_are_no_numbers_find_nothing():
    scores, right = torch.full((3, 3), torch.nan), torch.eye(3, dtype=torch.bool)
    assert placed(scores, right).tolist() == [2, 2, 2]


def test_equal_things_have_equal_numbers():
    assert numbered(["a", "b", "a"], torch.device("cpu")).tolist() == [0, 1, 0]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_figures_of_a_split_compare_all_of_it(loss):
    data = data_of(batch_size=4)
    task = task_of(data, loss=loss)
    part = data.split("test")
    rows = np.arange(len(part))
    task.eval()
    with torch.no_grad():
        pairs = Pairs.alone(*task.embed(data.collate(part, rows)))
        wanted = float(LOSSES[loss](task.model.scores, pairs)) / len(rows)
        scores = task.model.scores(pairs.images_BE, pairs.texts_BE)
    found = task.evaluate(data)
    assert found["test/loss"] == pytest.approx(wanted, rel=1e-5)
    for name, of in (("text_to_image", scores.T), ("image_to_text", scores)):
        first = of.argsort(dim=1, descending=True)
        for cut in (1, 5, 10):
            hits = (first[:, :cut] == torch.arange(len(rows))[:, None]).any(dim=1).double().mean()
            assert found[f"test/{name}_recall@{cut}"] == pytest.approx(float(hits))
    assert task.notes["test/text_to_image_recall@1"] == f"comparison with {len(rows)} candidates"
    table = task.samples(data)
    assert len(table.rows) == len(rows)
    assert [row[0] for row in table.rows] == part.captions


def test_examples_of_one_text_are_right_for_each_other():
    data = data_of(doubles=True)
    found = task_of(data).evaluate(data)
    assert {value for name, value in found.items() if "recall" in name} == {1.0}


def test_classes_are_told_by_the_mean_of_their_prompts():
    data = data_of(labelled=True)
    task = task_of(data, templates=("{}", "a {} b"))
    part = data.split("test")
    found = task.evaluate(data)["test/zero_shot_accuracy"]
    task.eval()
    with torch.no_grad():
        images = task.model.encode_images(data.images_of("test", np.arange(len(part))))
        means = []
        for name in data.classes:
            each = task.model.encode_texts(*data.encode_texts([name, f"a {name} b"]))
            means.append(F.normalize(each.mean(dim=0), dim=0))
        predicted = (images @ torch.stack(means).T).argmax(dim=1).numpy()
    assert found == pytest.approx((predicted == part.labels).mean())
    assert "test/zero_shot_accuracy" not in task_of(data_of()).evaluate(data_of())


# --- training


@pytest.mark.parametrize("loss", LOSSES)
def test_a_validation_during_the_training_compares_what_the_end_compares(loss, tmp_path):
    found = fit(tmp_path, loss=loss)
    data = data_of(cache=str(tmp_path / "cache"))
    task = task_of(data, loss=loss)
    task.model.load_state_dict(found["weights"])
    wanted = task.evaluate(data, "validation")
    assert {name: value for name, value in found["watched"].items() if name in wanted} == pytest.approx(wanted)


def test_the_scale_is_held_after_each_step(tmp_path):
    found = fit(tmp_path, scale=9.0)  # which is 8,103
    assert 50 < found["weights"]["log_scale"].exp().item() < 100.001


def test_a_run_that_goes_on_from_its_checkpoint_has_the_same_bits(tmp_path):
    straight = fit(tmp_path, checkpoints=tmp_path / "saved", validates=3)
    resumed = fit(tmp_path, resume=tmp_path / "saved" / "step=3.ckpt", validates=3)
    assert straight["final"] == resumed["final"]
    assert all(torch.equal(value, resumed["weights"][name]) for name, value in straight["weights"].items())


def fit_together(folder, path):
    sys.path[:] = path
    found = {loss: fit(folder, 2, loss) for loss in LOSSES}
    torch.save(found, folder / f"rank{os.environ['RANK']}.pt")


@pytest.mark.slow
def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path):
    alone = {loss: fit(tmp_path, loss=loss) for loss in LOSSES}
    with ranks_from_server():
        ranks.start(TrainerSettings(devices=2, device="cpu"), fit_together, tmp_path, sys.path)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        for loss, one in alone.items():
            assert found[loss]["watched"] == pytest.approx(one["watched"], abs=1e-6, rel=1e-6)
            assert found[loss]["final"] == pytest.approx(one["final"], abs=1e-6, rel=1e-6)
            for name, value in one["gradients"].items():
                torch.testing.assert_close(found[loss]["gradients"][name], value, atol=1e-6, rtol=0)


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": "hinge"}, "task.loss must be one of softmax, sigmoid, got 'hinge'"),
        ({"templates": ()}, "task.templates must be sentences, at least one, each with {} once, where the name of a"),
        ({"templates": ("a photo",)}, "once, where the name of a class goes, got 'a photo'"),
    ],
)
def test_what_makes_no_task(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        task_of(data_of(), **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trainer": {"accumulate_grad_batches": 2}}, "trainer.accumulate_grad_batches: a contrastive loss compares"),
        ({"task": {"loss": "sigmoid"}, "model": {"logit_bias": False}}, "set model.logit_bias=true (model=siglip)"),
        ({"task": {"loss": "softmax"}, "model": {"logit_bias": True}}, "softmax sees no bias on all scores"),
        ({"task": {"loss": "softmax"}, "model": {"logit_bias": False}}, None),
    ],
)
def test_what_it_cannot_be_combined_with(fields, said):
    found = list(Contrastive.incompatible(Choices(fields)))
    assert (said in found[0]) if said else not found
