import pytest
import torch

from attnlab.layers import ALiBi, Learned, PositionEncoding, Rotary, Sinusoidal
from attnlab.models import GPT

TOKENS = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(0))


def test_tied_logits_are_products_with_the_embedding():
    torch.manual_seed(0)
    model = GPT(11, 8, 16, 2, 1)
    hidden = model.stack(model.embedding(TOKENS))
    torch.testing.assert_close(model(TOKENS), torch.einsum("btd,vd->btv", hidden, model.embedding.weight))
    assert not hasattr(model.head, "weight")


def test_untied_logits_have_weights_of_their_own():
    model = GPT(11, 8, 16, 2, 1, tied=False)
    hidden = model.stack(model.embedding(TOKENS))
    torch.testing.assert_close(model(TOKENS), torch.einsum("btd,vd->btv", hidden, model.head.weight))
    assert model.head.weight.shape == (11, 16)


def test_scaled_embedding_is_multiplied_by_the_root_of_the_width():
    torch.manual_seed(0)
    plain = GPT(11, 8, 16, 2, 1)
    torch.manual_seed(0)
    scaled = GPT(11, 8, 16, 2, 1, scale_embedding=True)
    hidden = plain.stack(plain.embedding(TOKENS) * 4.0)
    torch.testing.assert_close(scaled(TOKENS), torch.einsum("btd,vd->btv", hidden, plain.embedding.weight))


@pytest.mark.parametrize(
    ("position", "longest"), [(Learned, 8), (Rotary, None), (ALiBi, None), (PositionEncoding, None)]
)
def test_longest_is_the_encodings(position, longest):
    model = GPT(11, 8, 16, 2, 1, position=position)
    assert model.longest == longest
    long = torch.zeros(1, 9, dtype=torch.long)
    if longest is None:
        assert model(long).shape == (1, 9, 11)
    else:
        with pytest.raises(ValueError, match="8 positions"):
            model(long)


def test_logits_keep_the_models_type_and_start_near_uniform():
    torch.manual_seed(0)
    model = GPT(65, 64)
    tokens = torch.randint(0, 65, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(4.174, abs=0.15)  # ln 65
    assert model.bfloat16()(tokens).dtype == torch.bfloat16


def test_packed_positions_are_taken_as_they_are():
    # Two sequences that start at position 0 in one batch, given explicitly, equal the default.
    model = GPT(11, 8, 16, 2, 2, position=Sinusoidal).eval()
    torch.testing.assert_close(model(TOKENS, torch.arange(6)[None]), model(TOKENS))
    shifted = model(TOKENS, torch.arange(6)[None] + 1)
    assert not torch.allclose(shifted, model(TOKENS), atol=1e-3)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"num_heads": 7}, r"num_heads=7 does not divide d_model=16; accepted: 1, 2, 4, 8, 16"),
        ({"num_layers": 0}, r"num_layers=0"),
        ({"vocabulary_size": 0}, r"vocabulary_size=0"),
        ({"d_ff": -1}, r"d_ff=-1"),
        ({"dropout": 1.5}, r"dropout=1.5"),
    ],
)
def test_a_size_that_cannot_be_is_named(field, message):
    with pytest.raises(ValueError, match=message):
        GPT(**{"vocabulary_size": 11, "max_length": 8, "d_model": 16, "num_heads": 2, **field})
