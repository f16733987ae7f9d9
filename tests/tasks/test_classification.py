"""Image classification: figures against scikit-learn, soft targets against torch and closed forms, and that a tiny model learns."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from attnlab.data import TSV, Augmentation, Character, ClassificationData, ImageData
from attnlab.data.images import Images, ImageSource
from attnlab.data.special_tokens import leading_special_tokens
from attnlab.layers import ALiBi, AxialRotary, Learned, Learned2D, PositionEncoding, Rotary, Sinusoidal, Sinusoidal2D
from attnlab.models import T5, Bert, ViT
from attnlab.tasks import ImageClassification, SequenceClassification
from attnlab.tasks.classification import shared_cross_entropy_sums
from attnlab.tasks.pretrained import load_pretrained
from attnlab.training import write_checkpoint
from attnlab.training.loss import cross_entropy_sums


class Quarters(ImageSource):
    """Noise whose class is the quarter of the image that is bright; a model without positions cannot tell them apart."""

    name = "quarters"
    channels, image_size = 1, 8

    def read(self, cache=None):
        return {name: self.part(seed, count) for seed, (name, count) in enumerate({"train": 160, "test": 41}.items())}

    def part(self, seed, count):
        pixels = np.random.default_rng(seed).integers(0, 60, (count, 1, 8, 8), dtype=np.uint8)
        for place, image in enumerate(pixels):
            row, column = divmod(place % 4, 2)
            image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 190
        return Images(pixels, [f"quarter {place % 4}" for place in range(count)])


def data_of(**fields):
    module = ImageData(Quarters(), **{"batch_size": 16, **fields})
    module.setup()
    return module


def task_of(module, **fields):
    torch.manual_seed(0)
    model = ViT(**module.dims(), patch_size=2, d_model=16, num_heads=2, num_layers=2, position=Sinusoidal2D)
    return ImageClassification(model, **fields)


def train(task, module, steps):
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for batch, _ in zip(module.train_dataloader(), range(steps), strict=False):
        loss, count, _ = task.loss_sums(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_figures_are_those_of_scikit_learn():
    module = data_of()
    task = task_of(module).eval()
    train(task, module, 15)
    found = task.evaluate(module)
    labels, nats = module.labels("test"), 0.0
    predicted = torch.zeros(len(labels), dtype=torch.long)
    with torch.no_grad():
        for batch in module.evaluation_loader("test"):
            logits = task.model(batch["images"])
            predicted[batch["ids"]] = logits.argmax(dim=1)
            nats += F.cross_entropy(logits, batch["labels"], reduction="sum").item()
    assert 0 < found["test/accuracy"] < 1
    assert found["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["test/macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0.0))
    assert found["test/loss"] == pytest.approx(nats / len(labels), rel=1e-5)
    assert task.outputs["test.classes.txt"].splitlines() == [module.classes[i] for i in predicted]
    assert set(task.validate(module)) == {"val/loss", "val/accuracy", "val/macro_f1"}


@settings(max_examples=30, deadline=None)
@given(smoothing=st.sampled_from([0.0, 0.1, 0.5]), classes=st.integers(2, 7), seed=st.integers(0, 99))
def test_shared_targets_are_the_shares_of_hard_ones(smoothing, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, classes, generator=generator, requires_grad=True)
    one, other = (torch.randint(classes, (6,), generator=generator) for _ in range(2))
    share = torch.rand(6, 1, generator=generator)
    targets = share * F.one_hot(one, classes) + (1 - share) * F.one_hot(other, classes)
    found = shared_cross_entropy_sums(logits, targets, smoothing)
    rows = [
        [cross_entropy_sums(logits[row : row + 1], labels[row : row + 1], smoothing) for labels in (one, other)]
        for row in range(6)
    ]
    for which in range(2):
        expected = sum(share[row, 0] * a[which] + (1 - share[row, 0]) * b[which] for row, (a, b) in enumerate(rows))
        torch.testing.assert_close(found[which], expected, rtol=1e-5, atol=1e-5)
    hard = shared_cross_entropy_sums(logits, F.one_hot(one, classes).float(), smoothing)
    torch.testing.assert_close(hard, cross_entropy_sums(logits, one, smoothing), rtol=1e-5, atol=1e-5)
    assert found[0].requires_grad
    assert not found[1].requires_grad
    log_p = logits.detach().log_softmax(dim=1)
    smoothed = (1 - smoothing) * targets + smoothing / classes
    torch.testing.assert_close(found[0].detach(), -(smoothed * log_p).sum(), rtol=1e-5, atol=1e-5)


def test_mixed_images_are_trained_on_by_their_shares():
    module = data_of(augmentation=Augmentation(mixup=1.0))
    task = task_of(module, label_smoothing=0.1)
    batch = next(iter(module.train_dataloader()))
    smoothed, count, _ = task.loss_sums(batch)
    log_p = task.model(batch["images"]).log_softmax(dim=1)
    targets = 0.9 * batch["targets"] + 0.1 / 4
    assert count == 16
    torch.testing.assert_close(smoothed, -(targets * log_p).sum(), rtol=1e-5, atol=1e-5)
    _, _, also = task.loss_sums(batch)
    torch.testing.assert_close(also["loss"], -(batch["targets"] * log_p).sum().detach(), rtol=1e-5, atol=1e-5)
    assert {"test/loss", "test/loss_smoothed"} <= set(task.evaluate(module))


def test_the_loss_of_a_model_that_knows_nothing_is_the_logarithm_of_the_number_of_classes():
    module = data_of()
    task = task_of(module).eval()
    torch.nn.init.zeros_(task.model.head.weight)
    assert task.evaluate(module)["test/loss"] == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize(
    "augmentation", [Augmentation(), pytest.param(Augmentation(mixup=0.2), marks=pytest.mark.slow)]
)
def test_a_tiny_model_learns(augmentation):
    module = data_of(augmentation=augmentation)
    task = task_of(module)
    train(task, module, 200)
    assert task.evaluate(module)["test/macro_f1"] > 0.95


def test_mistakes():
    with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 1, got 1.5"):
        task_of(data_of(), label_smoothing=1.5)


VIT = {
    "channels": 1,
    "patch_size": 2,
    "d_model": 16,
    "num_heads": 2,
    "num_layers": 2,
    "pooling": "class",
    "registers": 1,
}
POSITIONS = [PositionEncoding, Learned, Learned2D, Sinusoidal, Sinusoidal2D, Rotary, AxialRotary, ALiBi]


def saved(model, folder):
    (folder / "checkpoints").mkdir()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    write_checkpoint({"state_dict": state}, folder / "checkpoints" / "last.ckpt")
    return str(folder)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_trained_model_is_taken_to_images_of_another_size(tmp_path, position):
    trained = ViT(4, (8, 6), position=position, **VIT).eval()
    task = ImageClassification(ViT(3, (12, 16), position=position, **VIT), saved(trained, tmp_path))
    head = task.model.head.weight.clone()
    [line] = task.initialise()
    images = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(1))
    states = task.model.eval().encode(images)
    assert torch.equal(states, trained.at_size((12, 16)).encode(images))
    assert line.endswith("fresh: head.weight, head.bias and the output; positions (4, 3) -> (6, 8)")
    assert torch.equal(task.model.head.weight, head)
    again = ViT(3, (12, 16), position=position, **VIT).eval()
    again.load_state_dict(task.model.state_dict())  # as a resumed run does
    assert torch.equal(again.encode(images), states)


def test_at_the_same_size_all_but_the_output_is_taken_and_another_model_is_refused(tmp_path):
    trained = ViT(4, 8, **VIT).eval()
    task = ImageClassification(ViT(4, 8, **VIT), saved(trained, tmp_path))
    images = torch.rand(2, 1, 8, 8)
    assert "positions" not in task.initialise()[0]
    assert torch.equal(task.model.eval().encode(images), trained.encode(images))
    assert not torch.equal(task.model(images), trained(images))
    other = ImageClassification(ViT(4, 8, **{**VIT, "num_layers": 3}), str(tmp_path))
    with pytest.raises(ValueError, match=r"stack\.layers\.2\.attention\.key\.bias: only here"):
        other.initialise()
    (tmp_path / "words").mkdir()
    words = saved(torch.nn.Linear(2, 2), tmp_path / "words")
    with pytest.raises(ValueError, match="its model is no ViT; give the directory of a run of model=vit"):
        ImageClassification(ViT(4, 8, **VIT), words).initialise()


def test_the_images_that_were_misclassified_are_shown():
    module = data_of()
    task = task_of(module)
    task.evaluate(module)
    predicted = task.outputs["test.classes.txt"].splitlines()
    labels = [module.classes[number] for number in module.labels("test")]
    wrong = [row for row in range(41) if predicted[row] != labels[row]]
    shown = task.samples(module)
    assert shown.columns == ("image", "class", "put into")
    assert 0 < len(shown.rows) == min(32, len(wrong))
    for (image, label, guess), row in zip(shown.rows, wrong, strict=False):
        assert (label, guess) == (labels[row], predicted[row])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.png))), module.split("test").pixels[row, 0])
    task.outputs["test.classes.txt"] = "".join(f"{label}\n" for label in labels)
    assert [row[1] for row in task.samples(module).rows] == labels[:32]


@pytest.fixture
def data(tmp_path):
    """Texts whose class is a letter that they hold."""
    letters = "abc"
    for name, count in {"train": 240, "dev": 30, "test": 30}.items():
        lines = [f"{'x' * (i % 7)} {letters[i % 3]} {'y' * (i % 4)}\tclass {letters[i % 3]}" for i in range(count)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]))
    module = ClassificationData(TSV, Character(), path=str(tmp_path), batch_tokens=200, cache=str(tmp_path / "cache"))
    module.setup()
    return module


def text_task_of(module, **fields):
    torch.manual_seed(0)
    encoder = Bert(module.dims()["vocabulary_size"], 32, d_model=16, num_heads=2, num_layers=1, dropout=0.0)
    return SequenceClassification(
        encoder, num_classes=3, special_tokens=leading_special_tokens(), dropout=0.0, **fields
    )


def train_on_texts(task, module, steps=60):
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for batch, _ in zip(module.train_dataloader(), range(steps), strict=False):
        loss, count, _ = task.loss_sums(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_figures_of_texts_are_those_of_scikit_learn(data):
    task = text_task_of(data).eval()
    train_on_texts(task, data, 6)
    found = task.evaluate(data)
    labels = data.split("test").labels
    predicted = torch.zeros(len(labels), dtype=torch.long)
    with torch.no_grad():
        for batch in data.evaluation_loader("test"):
            predicted[batch["ids"]] = task.model(batch["tokens"], batch["is_token"]).argmax(dim=1)
    assert found["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["test/macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0.0))
    names = [data.classes[i] for i in predicted]
    assert task.outputs["test.classes.txt"].splitlines() == names
    lines = (Path(data.source.path) / "test.tsv").read_text().splitlines()[1:]
    wrong = [[*line.split("\t"), name] for line, name in zip(lines, names, strict=True) if not line.endswith(name)]
    assert 0 < len(wrong) == len(task.samples(data).rows)
    assert [[text.strip(), *classes] for text, *classes in task.samples(data).rows] == [
        [text.strip(), *classes] for text, *classes in wrong
    ]


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_changes_nothing(data, pooling):
    task = text_task_of(data, pooling=pooling).eval()
    batch = next(iter(data.evaluation_loader("test")))
    together = task.model(batch["tokens"], batch["is_token"])
    for row, is_token in enumerate(batch["is_token"]):
        alone = task.model(batch["tokens"][row : row + 1, is_token])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


def test_hidden_tokens_and_smoothing_act_in_training_alone(data):
    task = text_task_of(data, token_dropout=0.5, label_smoothing=0.2)
    batch = next(iter(data.evaluation_loader("test")))
    draws = [task.model(batch["tokens"], batch["is_token"]) for _ in range(2)]
    assert not torch.equal(*draws)
    task.eval()
    again = [task.model(batch["tokens"], batch["is_token"]) for _ in range(2)]
    assert torch.equal(*again)
    assert {"test/loss", "test/loss_smoothed"} <= set(task.evaluate(data))


def test_a_tiny_encoder_learns(data):
    task = text_task_of(data)
    train_on_texts(task, data)
    assert task.evaluate(data)["test/macro_f1"] > 0.95


def test_an_encoder_is_taken_from_another_run(data, tmp_path):
    source = text_task_of(data)
    with torch.no_grad():
        for parameter in source.model.encoder.parameters():
            parameter.add_(1.0)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    # The checkpoint of a masked language model: its encoder is the whole model.
    state = {f"model.{name}": tensor for name, tensor in source.model.encoder.state_dict().items()}
    write_checkpoint({"state_dict": state}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    task = text_task_of(data, pretrained=str(tmp_path / "run"))
    head = task.model.output.weight.clone()
    (line,) = task.initialise()
    assert line.startswith(f"took {len(state)} tensors from")
    for name, tensor in task.model.encoder.state_dict().items():
        assert torch.equal(tensor, state[f"model.{name}"])
    assert torch.equal(task.model.output.weight, head)
    assert text_task_of(data).initialise() == []


SIZES = {"vocabulary_size": 30, "d_model": 16, "num_heads": 4}


@pytest.mark.parametrize(
    ("trained", "layers", "reason"),
    [
        (T5(**SIZES, num_layers=2), 2, r"stack.layers.0.attention.key.bias: only here"),
        (Bert(**SIZES, max_length=8, num_layers=1), 2, r"stack.layers.1.attention.key.bias: only here"),
        (Bert(**SIZES, max_length=8, num_layers=3), 2, r"stack.layers.2.attention.key.bias: only there"),
        (Bert(**SIZES, max_length=8, num_layers=2, bias=False), 2, r"stack.layers.0.attention.key.bias: only here"),
    ],
)
def test_a_part_of_an_encoder_is_no_pretrained_encoder(tmp_path, trained, layers, reason):
    (tmp_path / "checkpoints").mkdir()
    state = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=f"does not fit this model: {reason}"):
        load_pretrained(Bert(**SIZES, max_length=8, num_layers=layers), str(tmp_path))


def test_what_a_task_adds_to_an_encoder_may_be_fresh(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    trained = Bert(**SIZES, max_length=8, num_layers=1)
    state = {f"model.encoder.{name}": tensor for name, tensor in trained.state_dict().items()}
    state["model.output.weight"] = torch.zeros(2, 16)
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    line = load_pretrained(Bert(**SIZES, max_length=8, num_layers=1, num_segments=2), str(tmp_path))
    assert line.endswith("fresh: segments.weight and the output")


def test_an_encoder_that_does_not_fit_is_refused(data, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    write_checkpoint(
        {"state_dict": {"model.embedding.weight": torch.zeros(3, 4)}}, tmp_path / "checkpoints" / "last.ckpt"
    )
    with pytest.raises(ValueError, match=r"does not fit this model: embedding.weight: \(3, 4\) there, .* here"):
        text_task_of(data, pretrained=str(tmp_path)).initialise()
    write_checkpoint({"state_dict": {"model.other": torch.zeros(3)}}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="no name in common"):
        text_task_of(data, pretrained=str(tmp_path)).initialise()
    table = text_task_of(data).model.encoder.state_dict()["embedding.weight"]
    state = {"model.embedding.weight": table, "model.decoder.layers.0.weight": torch.zeros(3)}
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="only here"):
        text_task_of(data, pretrained=str(tmp_path)).initialise()
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"task.pretrained=.*last\.ckpt is damaged"):
        text_task_of(data, pretrained=str(tmp_path)).initialise()
    with pytest.raises(ValueError, match="there is no checkpoint; give the directory of a trained run"):
        text_task_of(data, pretrained=str(tmp_path / "nowhere")).initialise()


def test_layers_that_this_model_has_no_place_for_are_named(data, tmp_path):
    source = text_task_of(data).model.encoder.state_dict()
    state = {f"model.{name}": tensor for name, tensor in source.items()} | {"model.stack.layers.9.x": torch.zeros(3)}
    (tmp_path / "checkpoints").mkdir()
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"stack\.layers\.9\.x: only there"):
        text_task_of(data, pretrained=str(tmp_path)).initialise()
