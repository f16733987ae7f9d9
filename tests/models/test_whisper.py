"""Whisper: its convolutions and sinusoids by their formulas, who sees what, decoding, its stacks set apart, and its special tokens."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import ALiBi, DeepNorm, Learned, PositionEncoding, PostNorm, RelativeBias, Rotary, Sinusoidal
from attnlab.models import Whisper, WhisperTokens, measure_size
from attnlab.models.whisper import Stem

SMALL = {"vocabulary_size": 23, "num_mels": 5, "num_frames": 20, "max_length": 12}
SMALL |= {"d_model": 16, "num_heads": 4, "num_layers": 2}
POSITIONS = [None, PositionEncoding, Sinusoidal, Learned, Rotary, ALiBi, RelativeBias]
PUBLISHED = {"<|endoftext|>": 50, "<|startoftranscript|>": 51, "<|en|>": 52, "<|haw|>": 53, "<|translate|>": 54}
PUBLISHED |= {"<|transcribe|>": 55, "<|startoflm|>": 56, "<|nospeech|>": 57, "<|notimestamps|>": 58, "the": 3}


def build(seed=0, **fields):
    """A small model whose weights make a wrong mask or position show."""
    torch.manual_seed(seed)
    model = Whisper(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(frames=20, seed=0):
    """Features (3, M, F) and tokens (3, T)."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, frames, generator=draws), torch.randint(0, 23, (3, 6), generator=draws)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("d_model", "num_layers", "num_heads", "millions"),
    [(384, 4, 6, 39), (512, 6, 8, 74), (768, 12, 12, 244), (1024, 24, 16, 769), (1280, 32, 20, 1550)],
)
def test_the_sizes_of_the_paper(d_model, num_layers, num_heads, millions):
    # Table 1 of Radford et al. 2022; they count the encoder's fixed sinusoids and no bias of the keys.
    with torch.device("meta"):
        undrawn = {"init": lambda: lambda model, seed: None}
        model = Whisper(51865, d_model=d_model, num_layers=num_layers, num_heads=num_heads, **undrawn)
    total = sum(p.numel() for p in model.parameters()) - 3 * num_layers * d_model + 1500 * d_model
    assert total / 1e6 == pytest.approx(millions, rel=0.035)


@pytest.mark.parametrize("frames", [1, 2, 7, 20])
def test_the_stem_is_two_convolutions(frames):
    torch.manual_seed(0)
    stem, x_BMF = Stem(5, 16), draw(frames)[0]
    first, second = (layer.weight.view(16, -1, 3) for layer in (stem.first, stem.second))
    h_BDF = F.gelu(F.conv1d(x_BMF, first, stem.first.bias, padding=1))
    expected = F.gelu(F.conv1d(h_BDF, second, stem.second.bias, stride=2, padding=1))
    assert_close(stem(x_BMF), expected.transpose(1, 2))


def test_the_encoder_has_fixed_sinusoids_and_the_decoder_a_table():
    model = build()
    states = model.encoder.position.embed(torch.zeros(1, 10, 16), torch.arange(10)[None])[0]
    for pair in range(8):
        angle = torch.arange(10.0) * math.exp(-math.log(10000) * pair / 7)
        assert_close(states[:, pair], angle.sin())
        assert_close(states[:, 8 + pair], angle.cos())
    assert not [*model.encoder.position.parameters()]
    assert isinstance(model.decoder.position, Learned)
    assert model.longest == 12


@settings(max_examples=20, deadline=None)
@given(position=st.sampled_from(POSITIONS), residual=st.sampled_from([PostNorm, DeepNorm]), seed=st.integers(0, 99))
def test_decoding_step_by_step_is_decoding_at_once(position, residual, seed):
    model = build(seed, position=position, residual=residual)
    features, tokens = draw(seed=seed)
    with torch.no_grad():
        state = model.start(features, capacity=6)
        steps = [model.step(tokens_B, state) for tokens_B in tokens.unbind(dim=1)]
        assert_close(torch.stack(steps, dim=1), model(features, tokens))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_frames_that_are_padding_change_nothing(lengths, seed):
    model, (features, tokens) = build(seed), draw(seed=seed)
    is_frame = torch.arange(20)[None] < torch.tensor(lengths)[:, None]
    together = model(features, tokens, is_frame)
    for row, length in enumerate(lengths):
        rows = slice(row, row + 1)
        assert_close(together[rows], model(features[rows, :, :length], tokens[rows]))


def test_every_frame_is_heard_unless_it_is_padding():
    model, (features, tokens) = build(), draw()
    for frame in (0, 19):
        changed = features.clone()
        changed[:, :, frame] += 1
        assert not torch.allclose(model(changed, tokens), model(features, tokens), atol=1e-4)


def test_a_stack_may_differ_from_the_model():
    model = build(position=ALiBi, encoder={"position": Rotary, "num_layers": 1, "num_heads": None}, decoder={"d_ff": 8})
    assert isinstance(model.encoder.position, Rotary)
    assert isinstance(model.decoder.position, ALiBi)
    assert [len(stack.layers) for stack in (model.encoder, model.decoder)] == [1, 2]
    assert model.encoder.layers[0].feed_forward.up.out_features == 64
    assert model.decoder.layers[0].feed_forward.up.out_features == 8


def test_what_is_left_out_is_what_is_null():
    given, left_out = build(position=None, d_ff=None, encoder=None), build()
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), left_out.parameters(), strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": {"d_model": 8}}, "encoder.d_model=8 and decoder.d_model=16"),
        ({"encoder": {"position": partial(Sinusoidal), "depth": 3}}, "no field 'depth'"),
        ({"num_heads": 3}, "num_heads=3 does not divide d_model=16"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Whisper(**{**SMALL, **fields})


def test_features_that_do_not_fit_are_refused():
    model, (features, tokens) = build(encoder={"position": Learned}), draw(22)
    with pytest.raises(ValueError, match=r"features of the shape \(3, 4, 22\) do not fit; accepted: \(batch, 5 mel"):
        model(features[:, :4], tokens)
    with pytest.raises(ValueError, match="ends at 10 positions"):
        model(features, tokens)


def test_its_operations_are_counted():
    model, (features, tokens) = build(), draw()

    def forward():
        model(features, tokens)
        return tokens.numel()

    size = measure_size(model, forward)
    assert size.embedding_parameters == (23 + 12) * 16
    layers = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.ndim == 2)
    assert size.flops_per_token > 6 * layers


# --- special tokens


def test_the_tokens_of_a_published_tokenizer():
    tokens = WhisperTokens.named(PUBLISHED, 51865, suppressed=(1, 2))
    assert (tokens.start, tokens.end, tokens.no_speech, tokens.first_timestamp) == (51, 50, 57, 59)
    assert tokens.languages == {"en": 52, "haw": 53}
    assert tokens.others == (56,)
    assert tokens.suppressed == (1, 2)
    assert tokens.special == {*range(50, 59)}
    assert WhisperTokens.named({**PUBLISHED, "<|0.00|>": 70, "<|0.02|>": 71}, 51865).first_timestamp == 70


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({"language": "en"}, [51, 52, 55]),
        ({"language": "haw", "translate": True}, [51, 53, 54]),
        ({"language": "en", "timestamps": False}, [51, 52, 55, 58]),
    ],
)
def test_a_prompt_names_language_and_task(asked, prompt):
    assert WhisperTokens.named(PUBLISHED, 51865).prompt(**asked) == prompt


def test_a_prompt_without_a_language():
    tokens = WhisperTokens.named(PUBLISHED, 51864)
    assert tokens.prompt() == [51]
    assert tokens.prompt("en", timestamps=False) == [51, 58]
    assert WhisperTokens(1, 2).prompt(timestamps=False) == [1]


@pytest.mark.parametrize(
    ("tokens", "asked", "message"),
    [
        (WhisperTokens(1, 2), {}, "first_timestamp: this vocabulary has no such token"),
        (WhisperTokens.named(PUBLISHED, 51864), {"language": "de"}, "language=de: this model knows one language"),
        (WhisperTokens.named(PUBLISHED, 51865), {"language": "xx"}, "language=xx: there is no such language"),
        (WhisperTokens.named(PUBLISHED, 51865), {}, "accepted: en, haw"),
    ],
)
def test_what_a_vocabulary_has_no_token_for_is_refused(tokens, asked, message):
    with pytest.raises(ValueError, match=message):
        tokens.prompt(**asked)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"no <\|startoftranscript\|>"):
        WhisperTokens.named({"<|endoftext|>": 0}, 50257)
