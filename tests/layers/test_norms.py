import torch

from attnlab.layers import DynamicTanh, LayerNorm, RMSNorm


def random_norm(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


X_BTD = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1


def test_layer_norm_is_the_published_formula():
    norm = random_norm(LayerNorm(8, eps=0.1))
    mean, variance = X_BTD.mean(-1, keepdim=True), X_BTD.var(-1, correction=0, keepdim=True)
    expected = (X_BTD - mean) / (variance + 0.1).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(X_BTD), expected)


def test_rms_norm_is_the_published_formula():
    norm = random_norm(RMSNorm(8, eps=0.1))
    torch.testing.assert_close(norm(X_BTD), X_BTD / (X_BTD.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight)


def test_dynamic_tanh_is_the_published_formula():
    assert DynamicTanh(8, alpha=0.3).alpha.item() == torch.tensor(0.3)
    norm = random_norm(DynamicTanh(8))
    torch.testing.assert_close(norm(X_BTD), norm.weight * torch.tanh(norm.alpha * X_BTD) + norm.bias)


def test_a_layer_norm_without_bias_has_only_a_gain():
    assert [name for name, _ in LayerNorm(8, bias=False).named_parameters()] == ["weight"]
