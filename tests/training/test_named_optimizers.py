"""Optimizers by name: the steps are those of the class itself, to the bit; what cannot train or go on here says why."""

import math
from functools import partial

import pytest
import torch
from test_checkpoints import Stop, curve, stop_after
from tiny_run import TinyModel, make_task, same_bits, train, weights
from torch import nn

from attnlab.parts import Choices
from attnlab.training import cautious_adamw, find_resume, named_optimizers, pytorch_optimizer, torch_optimizer
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


# With what reaches every branch of a step within the few steps of these runs.
RESUMED = {
    "SOAP": {"precondition_frequency": 2},
    "Adan": {},
    "Shampoo": {},
    "NorMuon": {"adamw_lr": 1e-3},
    "AdaMuon": {},
    "AdEMAMix": {"t_alpha_beta3": 10.0},
    "MARS": {},
    "Lion": {"cautious": True},
}


@pytest.mark.parametrize("name", RESUMED)
def test_so_is_one_of_the_library(tmp_path, name):
    pytest.importorskip("pytorch_optimizer")
    check_resumed(tmp_path, partial(pytorch_optimizer, name=name, **RESUMED[name]))


def test_a_run_with_cautious_adamw_is_gone_on_with_to_the_bit(tmp_path):
    check_resumed(tmp_path, cautious_adamw)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("A2Grad", "has no learning rate"),
        ("SpectralSphere", "only supports 2D parameters"),
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


# --- the library's rules against the papers', on one matrix and one vector


class Two(nn.Module):
    """A hidden matrix W (3, 5) and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.ModuleList([nn.Linear(5, 3)])

    @property
    def w(self) -> torch.Tensor:
        return self.layers[0].weight


def gradient(step: int) -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(100 + step))


def trained(name: str, steps: int, **fields: object) -> list[torch.Tensor]:
    """W before the first step and after each."""
    pytest.importorskip("pytorch_optimizer")
    model = Two()
    optimizer, found = pytorch_optimizer(model, name=name, **fields), [model.w.detach().clone()]
    for step in range(steps):
        model.w.grad, model.layers[0].bias.grad = gradient(step), torch.zeros(3)
        optimizer.step()
        found.append(model.w.detach().clone())
    return found


def near(found: list[torch.Tensor], expected: list[torch.Tensor], rtol: float = 1e-4) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6)


def powered(matrix: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp(min=1e-12) ** power) @ vectors.T


def test_shampoo_preconditions_rows_and_columns():
    """Gupta et al. 2018, algorithm 1: W - lr L^-1/4 G R^-1/4, with L and R summed from epsilon times the identity."""
    found = trained("Shampoo", 4, lr=0.1, matrix_eps=1e-2)
    left, right, expected = 1e-2 * torch.eye(3).double(), 1e-2 * torch.eye(5).double(), [found[0]]
    for step in range(4):
        g = gradient(step).double()
        left, right = left + g @ g.T, right + g.T @ g
        expected.append(expected[-1] - 0.1 * (powered(left, -0.25) @ g @ powered(right, -0.25)).float())
    near(found, expected)


def test_soap_is_adam_in_the_eigenbases():
    """Vyas et al. 2024, algorithm 3, until the eigenbases change; the first gradient only makes them."""
    found = trained("SOAP", 5, lr=0.1, betas=[0.9, 0.95], weight_decay=0.0, max_precondition_dim=4)
    assert torch.equal(found[0], found[1])
    basis = torch.linalg.eigh(gradient(0).double() @ gradient(0).double().T)[1]  # of the rows; columns are too many
    m, v, expected = torch.zeros(3, 5).double(), torch.zeros(3, 5).double(), [found[0], found[0]]
    for t in range(1, 5):
        g = gradient(t).double()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * (basis.T @ g) ** 2
        adam = (basis.T @ m) / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        expected.append(expected[-1] - 0.1 * (basis @ adam).float())
    near(found, expected)


def test_normuons_rows_move_equally_far_at_adamws_root_mean_square():
    """Li et al. 2025, algorithm 1: at the first step each row of the orthogonal factor is divided by its own root mean square."""
    before, after = trained("NorMuon", 1, lr=0.01, weight_decay=0.0, update_scale="match_rms", momentum=0.0)
    moved = (before - after) / 0.01
    torch.testing.assert_close(moved.norm(dim=1), torch.full((3,), 0.2 * 5**0.5), rtol=1e-4, atol=0)
    u, _, v = torch.linalg.svd(gradient(0), full_matrices=False)
    factor = u @ v
    rows = factor / factor.norm(dim=1, keepdim=True) * 0.2 * 5**0.5
    assert torch.nn.functional.cosine_similarity(moved.flatten(), rows.flatten(), dim=0) > 0.97


def test_ademamix_adds_a_slow_average_that_grows_in():
    """Pagliardini et al. 2024, equation 3.2 and the schedulers of section 3."""
    beta1, beta2, beta3, alpha, whole = 0.9, 0.99, 0.9999, 5.0, 8
    fields = {"betas": [beta1, beta2, beta3], "alpha": alpha, "t_alpha_beta3": float(whole), "eps": 1e-8}
    found = trained("AdEMAMix", 10, lr=0.01, weight_decay=0.1, weight_decouple=True, **fields)
    m, v, slow, expected = (*(torch.zeros(3, 5).double() for _ in range(3)), [found[0]])
    for t in range(1, 11):
        g, share = gradient(t - 1).double(), t / whole
        a = min(share * alpha, alpha)
        logs = math.log(beta1), math.log(beta3)
        b = min(math.exp(logs[0] * logs[1] / ((1 - share) * logs[1] + share * logs[0])), beta3)
        b = beta3 if t >= whole else b
        m, v, slow = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g, b * slow + (1 - b) * g
        update = (m / (1 - beta1**t) + a * slow) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
        expected.append((expected[-1].double() * (1 - 0.01 * 0.1) - 0.01 * update).float())
    near(found, expected)


def test_mars_corrects_the_gradient_by_the_one_before():
    """Yuan et al. 2024, algorithm 2 (MARS-AdamW, approximate): c is clipped to a norm of 1."""
    found = trained("MARS", 5, lr=0.01, betas=[0.95, 0.99], gamma=0.025, weight_decay=0.1)
    m, v, last, expected = (*(torch.zeros(3, 5).double() for _ in range(3)), [found[0]])
    for t in range(1, 6):
        g = gradient(t - 1).double()
        c = g + 0.025 * 0.95 / 0.05 * (g - last)
        c, last = c / max(1.0, float(c.norm())), g
        m, v = 0.95 * m + 0.05 * c, 0.99 * v + 0.01 * c * c
        update = m / (1 - 0.95**t) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        expected.append((expected[-1].double() * (1 - 0.01 * 0.1) - 0.01 * update).float())
    near(found[1:], expected[1:])


def test_cautious_lion_leaves_out_what_disagrees():
    """Liang et al. 2024, over Chen et al. 2023, program 1."""
    found = trained("Lion", 4, lr=0.01, betas=[0.9, 0.99], weight_decay=0.1, cautious=True)
    m, expected, left_out = torch.zeros(3, 5), [found[0]], 0
    for step in range(4):
        g = gradient(step)
        update = (0.9 * m + 0.1 * g).sign()
        kept = update * g > 0
        left_out += int((~kept).sum())
        scale, m = 15 / (int(kept.sum()) + 1), 0.99 * m + 0.01 * g
        expected.append(expected[-1] * (1 - 0.01 * 0.1) - 0.01 * scale * update * kept)
    assert left_out > 0
    near(found, expected)


def test_wherever_cautious_can_be_set_it_changes_the_steps():
    pytest.importorskip("pytorch_optimizer")
    kinds = named_optimizers._of_library()
    found = [name for name in kinds if "cautious" in fields_of(kinds[name]) and name != "AdaShift"]
    assert {"Lion", "AdEMAMix", "MARS", "ADOPT", "LaProp"} <= set(found)
    assert not {"NorMuon", "Muon"} & set(found)
    for name in found:
        with_it, without = trained(name, 4, cautious=True), trained(name, 4, cautious=False)
        assert not torch.equal(with_it[-1], without[-1]), name


def test_mars_trains_vectors_as_adamw_at_the_same_rate():
    pytest.importorskip("pytorch_optimizer")
    for given in ({"lr": 0.02}, {}):
        [group, _] = pytorch_optimizer(TinyModel(), name="MARS", **given).param_groups
        assert (group["lr_1d_factor"], group["weight_decay_1d"]) == (1.0, 0.0)


def test_shampoo_keeps_no_huge_square_and_says_what_does(monkeypatch):
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr("attnlab.training.named_optimizers.SQUARES", 16)
    with pytest.raises(ValueError, match=r"the longest side may have 16, here it has 17\. Choose SOAP"):
        pytorch_optimizer(TinyModel(), name="Shampoo")


def test_what_is_for_hidden_matrices_alone_has_them_marked():
    pytest.importorskip("pytorch_optimizer")
    model = TinyModel()
    groups = pytorch_optimizer(model, name="normuon", lr=0.01, adamw_lr=0.02, weight_decay=0.1).param_groups
    marked = [id(p) for group in groups for p in group["params"] if group["use_muon"]]
    assert marked == [id(layer.weight) for layer in model.layers]
    assert [(g["use_muon"], g["lr"], g["weight_decay"]) for g in groups] == [
        (True, 0.01, 0.1),
        (False, 0.02, 0.1),
        (False, 0.02, 0),
    ]
    with pytest.raises(ValueError, match=r"NorMuon is for hidden matrices: .*; the model has none"):
        pytorch_optimizer(nn.Linear(2, 2), name="NorMuon")


def test_what_draws_random_numbers_is_not_trained_by_several_ranks():
    pytest.importorskip("pytorch_optimizer")

    def reasons(name: str, devices: int) -> list[str]:
        fields = {"optimizer": {"name": name}, "trainer": {"devices": devices}}
        return list(pytorch_optimizer.incompatible(Choices(fields, parts={"optimizer": pytorch_optimizer})))

    assert "Kron draws random numbers" in reasons("Kron", 2)[0]
    assert [reasons("Kron", 1), *(reasons(name, 2) for name in RESUMED)] == [[]] * 9
