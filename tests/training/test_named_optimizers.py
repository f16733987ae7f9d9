"""Optimizers by name: the steps are those of the class itself, to the bit; what cannot train or go on here says why."""

from functools import partial

import pytest
import torch
from test_checkpoints import Stop, curve, stop_after
from tiny_run import TinyModel, make_task, same_bits, train, weights

from attnlab.training import find_resume, pytorch_optimizer, torch_optimizer
from attnlab.training.named_optimizers import fields_of
from attnlab.training.optimizers import decay_groups

OF_TORCH = {
    "SGD": {"momentum": 0.9, "nesterov": True, "lr": 0.1},
    "NAdam": {"betas": [0.8, 0.95]},
    "RMSprop": {"centered": True},
    "Adagrad": {"lr_decay": 0.1},
    "Rprop": {"etas": [0.4, 1.3]},
}


def stepped(optimizer, model, steps=3):
    for step in range(steps):
        drawn = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=drawn)
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def models():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(TinyModel())
    return found


@pytest.mark.parametrize("name", OF_TORCH)
def test_steps_are_those_of_torchs_own_class_to_the_bit(name):
    ours, theirs = models()
    kind, arguments = getattr(torch.optim, name), OF_TORCH[name]
    decay = {} if name == "Rprop" else {"weight_decay": 0.1}
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], **decay},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], **(decay and {"weight_decay": 0.0})},
    ]
    made = torch_optimizer(ours, name=name, **decay, **arguments)
    assert type(made) is kind
    assert same_bits(stepped(made, ours), stepped(kind(groups, **arguments), theirs))


def test_what_is_left_out_is_the_optimizers_own():
    ours, theirs = models()
    made = torch_optimizer(ours, name="adamw")
    assert [group["weight_decay"] for group in made.param_groups] == [0.01, 0.0]
    assert same_bits(stepped(made, ours), stepped(torch.optim.AdamW(decay_groups(theirs, 0.01)), theirs))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "LBFGS"}, "evaluates the loss several times a step"),
        ({"name": "SparseAdam"}, "sparse gradients alone"),
        ({"name": "Muon"}, "choose optimizer=muon"),
        ({"name": "SDG"}, r"optimizer\.name must be one of .*SGD.*, got 'SDG'\. Did you mean SGD\?"),
        ({"name": "SGD", "betas": [0.9, 0.9]}, r"optimizer\.betas: SGD has no such field; it has lr, momentum"),
        ({"name": "SGD", "momentum": -1.0}, "SGD cannot train this model with these fields: Invalid momentum value: -1.0"),
        ({"name": "Rprop", "weight_decay": 0.1}, r"optimizer\.weight_decay: Rprop has no weight decay"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_train_here_says_why(given, said):
    with pytest.raises(ValueError, match=said):
        torch_optimizer(TinyModel(), **given)


def test_fields_are_those_that_yaml_can_write():
    fields = fields_of(torch.optim.NAdam)
    assert (fields["eps"], fields["betas"]) == (float, tuple[float, float])
    assert "params" not in fields


def check_resumed(tmp_path, optimizer):
    straight, second = (make_task(optimizer) for _ in range(2))
    train(tmp_path / "straight", straight)
    with pytest.raises(Stop):
        train(tmp_path / "run", make_task(optimizer), callbacks=(stop_after(7),))
    train(tmp_path / "run", second, resume=find_resume(tmp_path / "run"))
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


def test_a_run_with_one_of_torch_is_gone_on_with_to_the_bit(tmp_path):
    check_resumed(tmp_path, partial(torch_optimizer, name="SGD", momentum=0.9))


@pytest.mark.parametrize("name", ["SOAP", "Adan", "Shampoo"])
def test_so_is_one_of_the_library(tmp_path, name):
    pytest.importorskip("pytorch_optimizer")
    check_resumed(tmp_path, partial(pytorch_optimizer, name=name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("A2Grad", "has no learning rate"),
        ("AdaMuon", "choose optimizer=muon"),
        ("AdamMini", "is made of a whole model"),
        ("AdaShift", "keeps more than tensors and numbers"),
        ("BSAM", r"add optimizer\.num_data="),
        ("ScheduleFreeSGD", "choose optimizer=schedule_free"),
        ("SophiaH", "needs second derivatives"),
    ],
)
def test_what_cannot_be_saved_or_scheduled_is_refused(name, said):
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match=said):
        pytorch_optimizer(TinyModel(), name=name)


def test_a_state_that_is_not_whole_is_found_out(monkeypatch):
    """An optimizer that counts its steps beside its state goes another way when it is gone on with."""

    class Forgets(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            self.count += 1
            for group in self.param_groups:
                group["lr"] = 0.1 / self.count
            return super().step(closure)

    monkeypatch.setattr("attnlab.training.named_optimizers._of_torch", lambda: {"Forgets": Forgets})
    with pytest.raises(ValueError, match="Forgets does not keep all of its state"):
        torch_optimizer(TinyModel(), name="Forgets")
