"""What every choice of every seam must do. The choices are the YAML files under conf: a new one is covered by being there."""

import inspect
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from attnlab.layers import LayerNorm, PreNorm, Stack
from attnlab.models import GPT

CONF = Path(__file__).parents[2] / "conf"
SEAMS = ("position", "residual", "norm", "attention", "feed_forward", "init")
WIDTHS = {"vocabulary_size": 13, "max_length": 16, "d_model": 16, "num_heads": 4, "num_layers": 2}
TOKENS = torch.randint(0, 13, (3, 12), generator=torch.Generator().manual_seed(0))
GRID = (3, 4)


@cache
def part(seam, choice):
    """The part that a YAML file describes; `${norm}` is the default norm."""
    fields = yaml.safe_load((CONF / seam / f"{choice}.yaml").read_text())
    module, _, name = fields.pop("_target_").rpartition(".")
    assert fields.pop("_partial_") is True
    fields = {field: LayerNorm if value == "${norm}" else value for field, value in fields.items()}
    fields = {field: value for field, value in fields.items() if not str(value).startswith("${")}
    return partial(getattr(import_module(module), name), **fields)


def choices(seam):
    return sorted(path.stem for path in (CONF / seam).glob("*.yaml"))


def is_2d(position):
    return "grid" in inspect.signature(position).parameters


ALL = [(seam, choice) for seam in SEAMS for choice in choices(seam)]
IN_A_GRID = [choice for choice in choices("position") if is_2d(part("position", choice))]
IN_A_GPT = [(seam, choice) for seam, choice in ALL if not (seam == "position" and choice in IN_A_GRID)]
every_choice = pytest.mark.parametrize(("seam", "choice"), IN_A_GPT, ids=lambda name: name)


def parts(seam, choice):
    chosen = part(seam, choice)
    return {"residual": partial(PreNorm, norm=chosen)} if seam == "norm" else {seam: chosen}


def build(seam, choice, **fields):
    """A tiny GPT of this choice with weights that make a wrong mask or position show."""
    torch.manual_seed(0)
    return disturbed(GPT(**WIDTHS, **parts(seam, choice), **fields))


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
        "norm": {"layer_norm", "rms_norm", "dynamic_tanh"},
        "attention": {"multi_head", "multi_query", "grouped_query"},
        "feed_forward": {"relu", "gelu", "squared_relu", "glu", "geglu", "swiglu", "reglu"},
        "init": {"xavier", "normal_002", "gpt2", "small", "fan_in"},
    }
    rotary = {"rotary", *(f"rotary_{scaling}" for scaling in ("linear", "ntk", "yarn", "llama3"))}
    one = {"sinusoidal", "learned", "alibi", "relative_bias", "none"}
    designed["position"] = rotary | one | {"sinusoidal_2d", "learned_2d", "axial_rotary"}
    for seam, names in designed.items():
        assert names <= set(choices(seam)), seam


@pytest.mark.parametrize(("seam", "choice"), ALL, ids=lambda name: name)
def test_the_file_names_the_fields_of_its_class_with_their_defaults(seam, choice):
    chosen = part(seam, choice)
    defaults = {name: p.default for name, p in inspect.signature(chosen.func).parameters.items()}
    for name, value in chosen.keywords.items():
        assert value == defaults[name] or defaults[name] is None, (
            name
        )  # None: the class's own, which the file spells out
    assert (CONF / seam / f"{choice}.yaml").read_text().startswith("# ")


@every_choice
def test_shapes(seam, choice):
    assert build(seam, choice)(TOKENS).shape == (3, 12, 13)


@every_choice
def test_future_tokens_do_not_change_past_logits(seam, choice):
    model = build(seam, choice)
    changed = TOKENS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 13
    before, after = model(TOKENS), model(changed)
    assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7:], before[:, 7:], atol=1e-3)


@every_choice
@pytest.mark.parametrize("steps", [[1] * 12, [5, 1, 1, 5], [12]], ids=["one by one", "in chunks", "at once"])
def test_cached_decoding_is_full_decoding(seam, choice, steps):
    model = build(seam, choice)
    cache = model.new_cache(12)
    with torch.no_grad():
        cached = torch.cat([model(tokens, cache=cache) for tokens in TOKENS.split(steps, dim=1)], dim=1)
        assert_close(cached, model(TOKENS))


@every_choice
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(seam, choice, side):
    model = build(seam, choice)
    padded, is_token = torch.full((3, 16), 3), torch.zeros(3, 16, dtype=torch.bool)
    lengths = (12, 7, 1)
    spans = [slice(16 - length, 16) if side == "left" else slice(0, length) for length in lengths]
    for row, span in enumerate(spans):
        padded[row, span], is_token[row, span] = TOKENS[row, : lengths[row]], True
    logits = model(padded, is_token_BT=is_token)
    assert logits.isfinite().all()
    for row, span in enumerate(spans):
        assert_close(logits[row : row + 1, span], model(TOKENS[row : row + 1, : lengths[row]]))


@every_choice
def test_padded_cached_decoding_is_what_each_row_gets_alone(seam, choice):
    model = build(seam, choice)
    is_token = torch.arange(12) >= torch.tensor([[0], [3], [8]])  # left padding
    cache = model.new_cache(12)
    with torch.no_grad():
        steps = [(TOKENS[:, :9], is_token[:, :9]), *((TOKENS[:, i : i + 1], None) for i in range(9, 12))]
        cached = torch.cat([model(tokens, is_token_BT=real, cache=cache) for tokens, real in steps], dim=1)
        for row, start in enumerate((0, 3, 8)):
            assert_close(cached[row, start:], model(TOKENS[row : row + 1, start:])[0])


@every_choice
def test_gradients_reach_every_parameter(seam, choice):
    model = build(seam, choice).train()
    F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not unreached
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_choice
def test_bf16_is_finite_and_near_fp32(seam, choice):
    model = build(seam, choice)
    expected = model(TOKENS)
    logits = model.bfloat16()(TOKENS)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).std() < 0.05 * expected.std()
    F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_choice
def test_state_dict_round_trip(seam, choice):
    model = build(seam, choice)
    torch.manual_seed(9)
    other = GPT(**WIDTHS, **parts(seam, choice)).eval()
    assert not torch.allclose(other(TOKENS), model(TOKENS), atol=1e-3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(TOKENS), model(TOKENS))


def image_stack(choice):
    torch.manual_seed(0)
    stack = Stack(16, 4, 2, causal=False, grid=GRID, position=part("position", choice))
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
    model = GPT(**WIDTHS, position=part("position", position), residual=part("residual", residual))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(16):
        loss = F.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
