"""Text classification: figures against scikit-learn, padding, a pretrained encoder, and that a tiny model learns."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from attnlab.data import TSV, Character, ClassificationData
from attnlab.data.vocabulary import marks_in_front
from attnlab.models import T5, Bert
from attnlab.tasks import SequenceClassification
from attnlab.tasks.pretrained import load_pretrained
from attnlab.training import write_checkpoint


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


def task_of(module, **fields):
    torch.manual_seed(0)
    encoder = Bert(module.widths()["vocabulary_size"], 32, d_model=16, num_heads=2, num_layers=1, dropout=0.0)
    return SequenceClassification(encoder, None, None, num_classes=3, marks=marks_in_front(), dropout=0.0, **fields)


def train(task, module, steps=60):
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for batch, _ in zip(module.train_dataloader(), range(steps), strict=False):
        loss, count = task.loss_sums(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_figures_are_those_of_scikit_learn(data):
    task = task_of(data).eval()
    train(task, data, 6)
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
    task = task_of(data, pooling=pooling).eval()
    batch = next(iter(data.evaluation_loader("test")))
    together = task.model(batch["tokens"], batch["is_token"])
    for row, is_token in enumerate(batch["is_token"]):
        alone = task.model(batch["tokens"][row : row + 1, is_token])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


def test_hidden_tokens_and_smoothing_act_in_training_alone(data):
    task = task_of(data, token_dropout=0.5, label_smoothing=0.2)
    batch = next(iter(data.evaluation_loader("test")))
    draws = [task.model(batch["tokens"], batch["is_token"]) for _ in range(2)]
    assert not torch.equal(*draws)
    task.eval()
    again = [task.model(batch["tokens"], batch["is_token"]) for _ in range(2)]
    assert torch.equal(*again)
    assert {"test/nats", "test/smoothed_nats"} <= set(task.evaluate(data))


def test_a_tiny_model_learns(data):
    task = task_of(data)
    train(task, data)
    assert task.evaluate(data)["test/macro_f1"] > 0.95


def test_an_encoder_is_taken_from_another_run(data, tmp_path):
    source = task_of(data)
    with torch.no_grad():
        for parameter in source.model.encoder.parameters():
            parameter.add_(1.0)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    # The checkpoint of a masked language model: its encoder is the whole model.
    state = {f"model.{name}": tensor for name, tensor in source.model.encoder.state_dict().items()}
    write_checkpoint({"state_dict": state}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    task = task_of(data, pretrained=str(tmp_path / "run"))
    head = task.model.output.weight.clone()
    (line,) = task.initialise()
    assert line.startswith(f"took {len(state)} tensors from")
    for name, tensor in task.model.encoder.state_dict().items():
        assert torch.equal(tensor, state[f"model.{name}"])
    assert torch.equal(task.model.output.weight, head)
    assert task_of(data).initialise() == []


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
        task_of(data, pretrained=str(tmp_path)).initialise()
    write_checkpoint({"state_dict": {"model.other": torch.zeros(3)}}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="no name in common"):
        task_of(data, pretrained=str(tmp_path)).initialise()
    table = task_of(data).model.encoder.state_dict()["embedding.weight"]
    state = {"model.embedding.weight": table, "model.decoder.layers.0.weight": torch.zeros(3)}
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="only here"):
        task_of(data, pretrained=str(tmp_path)).initialise()
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"task.pretrained=.*last\.ckpt is damaged"):
        task_of(data, pretrained=str(tmp_path)).initialise()
    with pytest.raises(ValueError, match="there is no checkpoint; give the directory of a trained run"):
        task_of(data, pretrained=str(tmp_path / "nowhere")).initialise()


def test_layers_that_this_model_has_no_place_for_are_named(data, tmp_path):
    source = task_of(data).model.encoder.state_dict()
    state = {f"model.{name}": tensor for name, tensor in source.items()} | {"model.stack.layers.9.x": torch.zeros(3)}
    (tmp_path / "checkpoints").mkdir()
    write_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"stack\.layers\.9\.x: only there"):
        task_of(data, pretrained=str(tmp_path)).initialise()
