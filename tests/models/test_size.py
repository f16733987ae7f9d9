"""Sizes against closed forms and published numbers."""

from functools import partial

import pytest
import torch
from torch import nn

from attnlab.layers import (
    CoPE,
    DifferentialAttention,
    ForgettingAttention,
    HeadGate,
    LayerNorm,
    Learned,
    MultiHead,
    PreNorm,
    RelativeBias,
    SharedKeyValues,
    SigmoidAttention,
    SinkLogit,
    SoftmaxPlusOne,
    TalkingHeads,
    ValueResidual,
)
from attnlab.models import (
    GPT,
    T5,
    Bert,
    ConvolutionalEncoder,
    ConvolutionalLanguageModel,
    ConvolutionalSeq2Seq,
    EncoderDecoder,
    RecurrentEncoder,
    RecurrentLanguageModel,
    RecurrentSeq2Seq,
    T5LanguageModel,
    measure_size,
)


def size_of(length, **fields):
    """Of a GPT, as one forward pass over two rows of this length shows it."""
    model = GPT(**fields)
    tokens = torch.zeros(2, length, dtype=torch.long, device=next(model.parameters()).device)
    return measure_size(model, lambda: model(tokens).shape[:2].numel())


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("length", [12, 200], ids=["as matrix products", "in the fused kernel"])
@pytest.mark.parametrize("tied", [True, False])
def test_operations_and_parameters_are_those_of_the_closed_form(length, tied):
    size = size_of(
        length,
        vocabulary_size=13,
        max_length=length,
        d_model=16,
        num_heads=4,
        num_layers=3,
        d_ff=40,
        tie_embeddings=tied,
    )
    matrices = 3 * (4 * 16 * 16 + 2 * 16 * 40)
    norms = (2 * 3 + 1) * 2 * 16
    assert size.parameters == matrices + norms + 13 * 16 * (1 if tied else 2)
    assert size.embedding_parameters == 13 * 16 * (1 if tied else 2)
    assert size.non_embedding_parameters == matrices + norms
    # Two operations a weight and token, q.k and weights.v over all keys, three times for forward and backward.
    assert size.flops_per_token == 3 * 2 * (matrices + 3 * 2 * length * 16 + 13 * 16)


def test_tables_of_positions_and_distances_are_no_part_of_the_rest():
    fields = {"vocabulary_size": 13, "max_length": 12, "d_model": 16, "num_layers": 1}
    plain, learned, biased = (
        size_of(12, **fields, **p) for p in ({}, {"position": Learned}, {"position": RelativeBias})
    )
    assert learned.embedding_parameters == plain.embedding_parameters + 12 * 16
    assert biased.embedding_parameters == plain.embedding_parameters + 32 * 4
    assert plain.non_embedding_parameters == learned.non_embedding_parameters == biased.non_embedding_parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wide", ["d_model", "d_ff"])
def test_layers_as_wide_as_the_vocabulary_are_no_tables(wide, tied):
    fields = {"max_length": 8, "d_model": 16, "num_heads": 4, "num_layers": 2, "d_ff": 40, "tie_embeddings": tied}
    vocabulary_size = fields[wide]
    size = size_of(8, vocabulary_size=vocabulary_size, **fields)
    assert size.embedding_parameters == vocabulary_size * 16 * (1 if tied else 2)
    other = size_of(8, vocabulary_size=13, **fields)
    assert size.non_embedding_parameters == other.non_embedding_parameters


@pytest.mark.parametrize(
    "model",
    [
        partial(Bert, max_length=8),
        partial(T5, num_heads=4),
        partial(T5LanguageModel, num_heads=4),
        EncoderDecoder,
        ConvolutionalLanguageModel,
        ConvolutionalSeq2Seq,
        RecurrentLanguageModel,
        RecurrentSeq2Seq,
    ],
)
def test_the_output_matrix_of_every_family_is_a_table_where_it_is_untied(model):
    tied, untied = (
        measure_size(model(13, d_model=16, num_layers=1, tie_embeddings=tied), lambda: 1) for tied in (True, False)
    )
    assert untied.embedding_parameters == tied.embedding_parameters + 13 * 16
    assert untied.non_embedding_parameters == tied.non_embedding_parameters


def test_gpt2_has_its_published_number_of_parameters():
    # Radford et al. 2019: the smallest GPT-2, whose released weights hold 124,439,808 numbers.
    gpt2 = {"d_model": 768, "num_heads": 12, "num_layers": 12, "bias": True, "position": Learned, "residual": PreNorm}
    with torch.device("meta"):
        assert numbers(GPT(50257, 1024, **gpt2)) == 124_439_808


def test_nanogpts_character_model_is_as_large_as_it_reports():
    # nanoGPT prints 10.65M (d=384, 6 layers) without its position table, and 0.80M (d=128, 4 layers).
    bare = partial(PreNorm, norm=partial(LayerNorm, bias=False))
    seams = {"vocabulary_size": 65, "position": Learned, "residual": bare}
    with torch.device("meta"):
        large = numbers(GPT(max_length=256, d_model=384, num_heads=6, num_layers=6, **seams))
        small = numbers(GPT(max_length=64, d_model=128, num_heads=4, num_layers=4, **seams))
    assert round((large - 256 * 384) / 1e6, 2) == 10.65
    assert round((small - 64 * 128) / 1e6, 2) == 0.80


@pytest.mark.parametrize(
    ("part", "more"),
    [
        (SinkLogit, 0),
        (SoftmaxPlusOne, 0),
        (SigmoidAttention, 0),
        (DifferentialAttention, 0),  # half as wide, twice as many
        (ForgettingAttention, 16 * 4),
        (HeadGate, 16 * 4),
        (TalkingHeads, 2 * 12 * 4 * 4),
        (ValueResidual, 0),
    ],
)
def test_other_attentions_count_their_scores_and_what_they_add(part, more):
    fields = {"vocabulary_size": 13, "max_length": 12, "d_model": 16, "num_heads": 4, "num_layers": 2}
    plain, other = (size_of(12, **fields, attention=attention) for attention in (MultiHead, part))
    assert other.flops_per_token - plain.flops_per_token == 3 * 2 * 2 * more


def test_layers_without_keys_and_values_do_not_count_them():
    fields = {"vocabulary_size": 13, "max_length": 12, "d_model": 16, "num_heads": 4, "num_layers": 3}
    plain, shared = (size_of(12, **fields, attention=attention) for attention in (MultiHead, SharedKeyValues))
    assert plain.non_embedding_parameters - shared.non_embedding_parameters == 2 * 16 * 16
    assert plain.flops_per_token - shared.flops_per_token == 3 * 2 * 2 * 16 * 16


def test_positions_that_depend_on_the_content_count_a_product_with_their_table():
    fields = {"vocabulary_size": 13, "max_length": 12, "d_model": 16, "num_heads": 4, "num_layers": 2}
    plain, contextual = size_of(12, **fields), size_of(12, **fields, position=CoPE)
    assert contextual.flops_per_token - plain.flops_per_token == 3 * 2 * 2 * 16 * 13


@pytest.mark.slow
def test_operations_approach_six_times_the_parameters_in_a_wide_model():
    # Kaplan et al. 2020, section 2.1: 6 N a token where the width is far above the context.
    with torch.device("meta"):
        size = size_of(32, vocabulary_size=50, max_length=32, d_model=4096, num_heads=32, num_layers=2)
    assert size.flops_per_token / (6 * size.non_embedding_parameters) == pytest.approx(1, abs=0.01)


def test_all_that_is_computed_on_a_source_counts_for_the_target():
    model = EncoderDecoder(13, d_model=16, num_heads=4, num_layers=1, d_ff=40)
    source, target = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    size = measure_size(model, lambda: model(source, target).shape[:2].numel())
    encoder = 9 * (4 * 256 + 2 * 640 + 2 * 9 * 16)
    decoder = 5 * (4 * 256 + 2 * 640 + 2 * 5 * 16) + (2 * 5 + 2 * 9) * 256 + 5 * 2 * 9 * 16
    assert size.flops_per_token == 3 * 2 * (encoder + decoder + 5 * 13 * 16) // 5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_count_their_matrices_at_every_step(kind):
    model = kind(8, 16, 2, batch_first=True, bidirectional=True)
    x = torch.zeros(3, 7, 8)
    size = measure_size(model, lambda: model(x)[0].shape[:2].numel())
    matrices = sum(p.numel() for name, p in model.named_parameters() if name.startswith("weight"))
    assert size.flops_per_token == 3 * 2 * matrices


GATES = {"lstm": 4, "gru": 3}


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("padded", [False, True])
def test_recurrent_models_of_one_text_count_two_operations_a_weight_and_token(cell, padded):
    tokens = torch.zeros(3, 7, dtype=torch.long)
    is_token = torch.arange(7)[None] < torch.tensor([[7], [7], [7 - 3 * padded]])
    language = RecurrentLanguageModel(13, d_model=16, num_layers=2, cell=cell)
    size = measure_size(language, lambda: language(tokens, is_token_BT=is_token).shape[:2].numel())
    matrices = 2 * GATES[cell] * 2 * 16 * 16
    assert size.non_embedding_parameters == matrices + 2 * GATES[cell] * 2 * 16
    assert size.flops_per_token == 3 * 2 * (matrices + 13 * 16)
    encoder = RecurrentEncoder(13, d_model=16, num_layers=2, cell=cell)
    size = measure_size(encoder, lambda: encoder.encode(tokens, is_token).shape[:2].numel())
    assert size.flops_per_token == 3 * 2 * 2 * 2 * GATES[cell] * (16 * 8 + 8 * 8)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("attention", ["none", "luong", "luong fed", "bahdanau"])
def test_recurrent_translation_counts_its_cells_and_its_attention(cell, attention):
    kind, fed = attention.removesuffix(" fed"), attention.endswith("fed")
    model = RecurrentSeq2Seq(13, d_model=16, num_layers=1, cell=cell, attention=kind, input_feeding=fed)
    source, target = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    size = measure_size(model, lambda: model(source, target).shape[:2].numel())
    square, gates = 16 * 16, GATES[cell]
    weighed = 9 * 16  # a context, over all states of the source
    encoder = {"bahdanau": 9 * 2 * gates * (16 * 8 + 8 * 8)}.get(kind, 9 * gates * 2 * square)
    decoder = {
        "none": 5 * gates * 2 * square,
        "luong": 9 * square + 5 * (gates * (3 if fed else 2) * square + 2 * weighed + 2 * square),
        "bahdanau": 9 * square + 8 * 16 + 5 * (gates * 3 * square + square + 2 * weighed + 3 * 2 * square),
    }[kind]
    assert size.flops_per_token == 3 * 2 * (encoder + decoder + 5 * 13 * 16) // 5


def test_convolutions_count_their_whole_window_at_every_token():
    tokens, square = torch.zeros(3, 7, dtype=torch.long), 16 * 16
    language = ConvolutionalLanguageModel(13, d_model=16, num_layers=2, kernel_size=4)
    size = measure_size(language, lambda: language(tokens).shape[:2].numel())
    assert size.non_embedding_parameters == 2 * (4 * 2 * square + 2 * 16)
    assert size.flops_per_token == 3 * 2 * (2 * 4 * 2 * square + 13 * 16)
    encoder = ConvolutionalEncoder(13, max_length=7, d_model=16, num_layers=2, kernel_size=3)
    size = measure_size(encoder, lambda: encoder.encode(tokens).shape[:2].numel())
    assert size.embedding_parameters == (13 + 7) * 16
    assert size.flops_per_token == 3 * 2 * 2 * 3 * 2 * square
    model = ConvolutionalSeq2Seq(13, d_model=16, num_layers=2, num_decoder_layers=1)
    source, target = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    size = measure_size(model, lambda: model(source, target).shape[:2].numel())
    decoder = 5 * (3 * 2 * square + square + 2 * 9 * 16)
    assert size.flops_per_token == 3 * 2 * (9 * 2 * 3 * 2 * square + decoder + 5 * 13 * 16) // 5


def test_a_measured_model_is_left_as_it_was():
    model = GPT(13, 12, d_model=16, dropout=0.5).train()
    before = torch.get_rng_state()
    measure_size(model, lambda: model(torch.zeros(1, 12, dtype=torch.long)).shape[1])
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_window_counts_the_keys_that_fit_into_it_however_it_is_computed():
    tokens = torch.zeros(1, 512, dtype=torch.long)

    def flops(attention=MultiHead, **fields):
        model = GPT(10, 512, d_model=16, num_heads=2, num_layers=1, attention=partial(attention, **fields))
        found = measure_size(model, lambda: model(tokens).shape[1]).flops_per_token
        assert model.stack.layers[0].attention.backend == fields.get("backend", "auto")
        return found

    hidden = 3 * 2 * 2 * 16 * (512 - 32)  # q.k and weights.v
    assert flops() - flops(window=32) == hidden
    assert flops(window=32) == flops(window=32, soft_cap=30.0) == flops(window=32, backend="math")
    assert flops(window=512) == flops(window=2000) == flops()
    mixed = 3 * 2 * 2 * 2 * 2 * (512 - 32)  # heads with heads, of scores and of weights
    assert flops(TalkingHeads) - flops(TalkingHeads, window=32) == hidden + mixed


@pytest.mark.parametrize(("window", "keys"), [(2, 3), (5, 9), (7, 12), (30, 12)])
def test_a_window_on_both_sides_counts_both(window, keys):
    model = Bert(13, max_length=12, d_model=16, num_heads=4, num_layers=1, attention=partial(MultiHead, window=window))
    whole = Bert(13, max_length=12, d_model=16, num_heads=4, num_layers=1)
    tokens = torch.zeros(2, 12, dtype=torch.long)
    found = [measure_size(m, lambda m=m: m.encode(tokens).shape[:2].numel()).flops_per_token for m in (whole, model)]
    assert found[0] - found[1] == 3 * 2 * 2 * 16 * (12 - keys)


def test_a_pattern_counts_each_layers_window_and_a_table_of_positions_no_key():
    fields = {"vocabulary_size": 13, "max_length": 12, "d_model": 16, "num_heads": 4, "num_layers": 4}
    local = {
        "pattern": ["local", "global"],
        "layers": {"local": {"attention": partial(MultiHead, window=3)}, "global": {}},
    }
    for position in (RelativeBias, CoPE):
        plain, mixed = (size_of(12, **fields, position=position, **pattern) for pattern in ({}, local))
        assert plain.flops_per_token - mixed.flops_per_token == 3 * 2 * 2 * (2 * 16 * (12 - 3))
