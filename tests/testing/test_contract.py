"""What every choice of every seam must do. The choices are the YAML files under conf: a new one is covered by being there."""

import contextlib
import inspect
import re
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from attnlab.layers import FeedForward, LayerNorm, PositionEncoding, Stack
from attnlab.models import GPT
from attnlab.parts import parameters_of
from attnlab.testing import SEAMS, contract
from attnlab.testing.families import FAMILIES

CONF = Path(__file__).parents[2] / "conf"
DIMS = {"vocabulary_size": 13, "max_length": 16, "d_model": 16, "num_heads": 4, "num_layers": 2}
TOKENS = torch.randint(0, 13, (3, 12), generator=torch.Generator().manual_seed(0))
GRID = (3, 4)


@cache
def part(seam, choice):
    """The part that a YAML file describes; `${norm}` is the default norm."""
    fields = yaml.safe_load((CONF / seam / f"{choice}.yaml").read_text())
    module, _, name = fields.pop("_target_").rpartition(".")
    fields.pop("defaults", None)  # parts within parts, which are the defaults of the class
    assert fields.pop("_partial_") is True
    fields = {field: LayerNorm if value == "${norm}" else value for field, value in fields.items()}
    fields = {field: value for field, value in fields.items() if not str(value).startswith("${")}
    return partial(getattr(import_module(module), name), **fields)


def choices(seam):
    return sorted(path.stem for path in (CONF / seam).glob("*.yaml"))


def serves(mixer, family):
    """Whether a mixer says that it can be in a family: one of layers that see both sides, or with a memory, or neither."""
    return family == "gpt" or (mixer.sees_both_sides and (family in ("bert", "vit") or mixer.reads_memory))


def is_2d(position):
    return "grid" in inspect.signature(position).parameters


ALL = [(seam, choice) for seam in SEAMS for choice in choices(seam)]
CAUSAL_ONLY = [
    (seam, name)
    for seam in ("position", "attention")
    for name in choices(seam)
    if not part(seam, name).func.sees_both_sides
]
IN_A_GRID = [choice for choice in choices("position") if is_2d(part("position", choice))]
FAMILY_NAMES = [family.name for family in FAMILIES]
# The inits that know how some families grow, with those.
BY_WIDTH = {"mup": ("gpt", "bert", "encoder_decoder", "vit"), "complete_p": ("gpt", "vit")}


def disturbed(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)  # also off ReZero's zero
    return module.eval()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_seams_hold_what_the_design_lists():
    designed = {
        "residual": {"post_ln", "pre_ln", "sandwich", "deepnorm", "rezero", "parallel"},
        "norm": {"layer_norm", "rms_norm", "dynamic_tanh", "none"},
        "attention": {"multi_head", "multi_query", "grouped_query", "latent", "shared_key_value", "value_residual"}
        | {"sink_logit", "softmax_plus_one", "sigmoid", "forgetting", "differential", "talking_heads", "head_gate"},
        "feed_forward": {"relu", "gelu", "squared_relu", "glu", "geglu", "swiglu", "reglu", "quick_gelu", "none"},
        "init": {"xavier", "normal_002", "gpt2", "small", "fan_in", "pytorch"},
    }
    rotary = {"rotary", *(f"rotary_{scaling}" for scaling in ("linear", "ntk", "yarn", "llama3"))}
    one = {"sinusoidal", "learned", "alibi", "relative_bias", "none", "cope"}
    designed["position"] = rotary | one | {"sinusoidal_2d", "learned_2d", "axial_rotary"}
    for seam, names in designed.items():
        assert names <= set(choices(seam)), seam


@pytest.mark.parametrize(("seam", "choice"), ALL, ids=lambda name: name)
def test_the_file_names_the_fields_of_its_class_with_their_defaults(seam, choice):
    chosen = part(seam, choice)
    defaults = {name: parameter.default for name, parameter in parameters_of(chosen.func).items()}
    for name, value in chosen.keywords.items():
        assert value == defaults[name] or defaults[name] is None, (
            name
        )  # None: the class's own, which the file spells out
    assert (CONF / seam / f"{choice}.yaml").read_text().startswith("# ")


@contextlib.contextmanager
def in_double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(("seam", "choice"), ALL, ids=lambda name: name)
def test_every_choice_keeps_the_contract(seam, choice, family):
    # Two stacks without a norm between them have scores of hundreds, whose sums float32 does not keep to the last digits.
    exact = contextlib.nullcontext if (choice, family) != ("none", "encoder_decoder") or seam != "norm" else in_double
    with exact():
        checks = [check for check in contract(seam, part(seam, choice)) if check.family == family]
    refused = {
        **{("position", name): set(FAMILY_NAMES) - {"vit", "clip"} for name in IN_A_GRID},
        **{("init", name): set(FAMILY_NAMES) - {*known} for name, known in BY_WIDTH.items()},
        **dict.fromkeys(CAUSAL_ONLY, set(FAMILY_NAMES) - {"gpt"}),
    }
    if family in refused.get((seam, choice), ()):
        assert [check.unavailable is not None for check in checks] == [True]
        return
    if seam == "attention" and not serves(part(seam, choice).func, family):
        [check] = checks
        assert re.search("sees only what stands before a token|cannot attend to an encoder", check.unavailable)
        return
    assert len(checks) >= 5
    for check in checks:
        assert check.unavailable is None
        with exact():
            check()


def broken_properties(seam, chosen):
    """The properties, by family, that a part does not have."""
    broken = set()
    for check in contract(seam, chosen):
        try:
            check()
        except AssertionError:
            broken.add(str(check))
    return broken


class ByPlace(PositionEncoding):
    """Counts places in the batch, whatever positions it is told."""

    def bias(self, query_positions_BT, key_positions_BS):
        queries, keys = query_positions_BT.shape[1], key_positions_BS.shape[1]
        return -0.5 * (torch.arange(queries)[:, None] - torch.arange(keys)).abs()[None, None].float()


class NormOverTime(nn.LayerNorm):
    """Takes the mean over the positions, later ones too."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)

    def forward(self, x_BTD):
        return super().forward(x_BTD - x_BTD.mean(dim=1, keepdim=True))


class Cancelling(nn.Module):
    """Takes the variance as a difference of two large numbers, in the model's own format."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gain_D = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BTD):
        far_BTD = x_BTD + 30
        mean_BT1 = far_BTD.mean(-1, keepdim=True)
        variance_BT1 = far_BTD.square().mean(-1, keepdim=True) - mean_BT1.square()
        return self.gain_D * (far_BTD - mean_BT1) / (variance_BT1.relu() + 1e-3).sqrt()


class FallsWithTheLogarithm(PositionEncoding):
    """A position of somebody's own, with nothing wrong in it."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.strength_H = nn.Parameter(torch.ones(num_heads))

    def bias(self, query_positions_BT, key_positions_BS):
        distance_BTS = (query_positions_BT[:, :, None] - key_positions_BS[:, None, :]).abs()
        return -self.strength_H[:, None, None] * torch.log1p(distance_BTS.float())[:, None]


class Hoarder(FeedForward):
    """Has a parameter that nothing uses, and state that its state dict lacks."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        nn.Module.__init__(self)
        self.inner, self.idle_D = nn.Linear(d_model, d_model), nn.Parameter(torch.zeros(d_model))
        self.register_buffer("scale_D", torch.rand(d_model), persistent=False)

    def activate(self, h_BTF):
        return h_BTF

    def forward(self, x_BTD):
        return self.inner(x_BTD) * self.scale_D


def test_a_position_that_counts_places_is_found():
    broken = broken_properties("position", ByPlace)
    assert "gpt: cached decoding equals full decoding" in broken
    assert "encoder_decoder: decoding step by step equals decoding at once" in broken


def test_a_norm_that_sees_later_tokens_is_found():
    broken = broken_properties("norm", NormOverTime)
    assert {"gpt: later tokens do not change earlier logits", "bert: padding changes nothing"} <= broken


def test_a_norm_that_loses_its_digits_in_bfloat16_is_found():
    broken = broken_properties("norm", Cancelling)
    for family in ("gpt", "bert", "encoder_decoder", "vit", "clip", "whisper"):
        assert f"{family}: bfloat16 is finite and near fp32" in broken


def test_a_part_with_nothing_wrong_breaks_nothing():
    assert not broken_properties("position", FallsWithTheLogarithm)


def test_a_part_with_idle_parameters_and_hidden_state_is_found():
    broken = broken_properties("feed_forward", Hoarder)
    assert {"vit: gradients reach every parameter", "gpt: a state dict gives the same model"} <= broken


def test_a_seam_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"seam must be one of position, .*, got optimizer"):
        next(contract("optimizer", nn.Identity))


def image_stack(choice):
    torch.manual_seed(0)
    stack = Stack(
        {"d_model": 16, "num_heads": 4, "num_layers": 2, "position": part("position", choice)}, causal=False, grid=GRID
    )
    return disturbed(stack)


@pytest.mark.parametrize("choice", IN_A_GRID)
def test_two_dimensional_positions_keep_the_contract_in_a_bidirectional_stack(choice):
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    stack = image_stack(choice)
    out = stack(x)
    assert out.shape == x.shape
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert_close(
        stack(x[:, order], order[None]), out[:, order]
    )  # a token's position is told, not its place in the batch
    assert not torch.allclose(stack(x[:, order]), out[:, order], atol=1e-3)
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in stack.parameters())
    copy = image_stack(choice)
    copy.load_state_dict(stack.state_dict())
    assert torch.equal(copy(x), out)
    assert (stack.bfloat16()(x.bfloat16()).float() - out).std() < 0.05 * out.std()


@pytest.mark.parametrize("residual", choices("residual"))
@pytest.mark.parametrize("position", [choice for choice in choices("position") if choice not in IN_A_GRID])
def test_every_pair_of_position_and_residual_learns(position, residual):
    torch.manual_seed(0)
    model = GPT(**DIMS, position=part("position", position), residual=part("residual", residual))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(16):
        loss = F.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
