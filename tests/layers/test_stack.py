from functools import partial

import pytest
import torch
from torch import nn

from attnlab.layers import (
    GELU,
    ALiBi,
    Learned,
    MultiHead,
    NoFeedForward,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReLU,
    Rotary,
    Stack,
)

SIZES = {"d_model": 16, "num_heads": 4}


def reference(norm_first, activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, activation, norm_first=norm_first, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm_first else None, enable_nested_tensor=False)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def copy_weights(encoder, stack):
    """Torch's encoder weights into a stack."""
    for source, target in zip(encoder.layers, stack.layers, strict=True):
        names = ("query", "key", "value")
        weights, biases = source.self_attn.in_proj_weight.chunk(3), source.self_attn.in_proj_bias.chunk(3)
        for name, weight, bias in zip(names, weights, biases, strict=True):
            getattr(target.attention, name).load_state_dict({"weight": weight, "bias": bias})
        target.attention.output.load_state_dict(source.self_attn.out_proj.state_dict())
        target.feed_forward.up.load_state_dict(source.linear1.state_dict())
        target.feed_forward.down.load_state_dict(source.linear2.state_dict())
        target.residual.norms[0].load_state_dict(source.norm1.state_dict())
        target.residual.norms[1].load_state_dict(source.norm2.state_dict())
    if encoder.norm is not None:
        stack.norm.load_state_dict(encoder.norm.state_dict())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("residual", "feed_forward", "activation"), [(PreNorm, GELU, "gelu"), (PostNorm, ReLU, "relu")]
)
def test_a_stack_is_torchs_transformer_encoder(causal, residual, feed_forward, activation):
    encoder = reference(residual is PreNorm, activation)
    stack = Stack(
        {**SIZES, "num_layers": 2, "bias": True, "residual": residual, "feed_forward": feed_forward}, causal=causal
    )
    copy_weights(encoder, stack)
    x = torch.randn(3, 7, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(7) if causal else None
    torch.testing.assert_close(stack(x), encoder(x, mask=mask), rtol=1e-5, atol=1e-5)


def gradients(stack, x, is_token):
    stack.zero_grad()
    torch.manual_seed(0)  # dropout
    stack(x, is_token_BT=is_token).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in stack.named_parameters()}


def saved_bytes(stack, x):
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stack(x)
    return total


@pytest.mark.parametrize("position", [Rotary, ALiBi, RelativeBias, Learned])
@pytest.mark.parametrize("padded", [True, False])
def test_activation_checkpointing_changes_memory_and_nothing_else(position, padded):
    torch.manual_seed(0)
    stack = Stack({**SIZES, "num_layers": 4, "dropout": 0.1, "position": position}, causal=True, max_length=16)
    x = torch.randn(2, 16, 16)
    is_token = torch.arange(16) < torch.tensor([[16], [9]]) if padded else None
    plain, plain_bytes = gradients(stack, x, is_token), saved_bytes(stack, x)
    stack.checkpoint_activations = True
    checkpointed, checkpointed_bytes = gradients(stack, x, is_token), saved_bytes(stack, x)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-6)
    assert checkpointed_bytes < plain_bytes / 3


def test_the_encoding_follows_the_attentions_own_head_width():
    stack = Stack(
        {**SIZES, "num_layers": 1, "position": Rotary, "attention": partial(MultiHead, d_head=6)}, causal=True
    )
    assert stack(torch.randn(1, 5, 16)).shape == (1, 5, 16)


def test_the_embedded_input_is_dropped_in_training():
    stack = Stack(
        {**SIZES, "d_model": 64, "num_layers": 1, "dropout": 0.5, "position": Learned}, causal=True, max_length=32
    )
    seen = []
    stack.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stack(torch.ones(4, 32, 64))
    assert 0.45 < (seen[0] == 0).float().mean() < 0.55


def test_no_layers_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"num_layers must be at least 1, got 0"):
        Stack({**SIZES, "num_layers": 0}, causal=True)


def test_layers_of_attention_alone_are_those_whose_feed_forward_writes_nothing():
    torch.manual_seed(0)
    fields = {**SIZES, "num_layers": 2}
    whole, alone = Stack(fields, causal=True), Stack({**fields, "feed_forward": NoFeedForward}, causal=True)
    for layer in whole.layers:
        nn.init.zeros_(layer.feed_forward.down.weight)
    missing = alone.load_state_dict(whole.state_dict(), strict=False)
    assert (missing.missing_keys, len(missing.unexpected_keys)) == ([], 2 * (2 + 2))  # the matrices and the norm
    x_BTD = torch.randn(2, 5, 16)
    torch.testing.assert_close(alone(x_BTD), whole(x_BTD))
