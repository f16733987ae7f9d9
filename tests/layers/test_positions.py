"""Position encodings against their published formulas, computed again here in Python floats.

Legend: B batch, T target length, S source length, D model width, H heads, K head width, P rotated pairs.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import (
    ALiBi,
    AxialRotary,
    Learned,
    Learned2D,
    PositionEncoding,
    RelativeBias,
    Rotary,
    RotaryLinear,
    RotaryLlama3,
    RotaryNTK,
    RotaryYaRN,
    Sinusoidal,
    Sinusoidal2D,
)

CPU = torch.device("cpu")


def plain_frequencies(width, base):
    return [base ** (-2 * i / width) for i in range(width // 2)]


def assert_frequencies(rotary, expected):
    torch.testing.assert_close(rotary.frequencies(CPU).double(), torch.tensor(expected).double(), atol=0, rtol=2e-6)


# --- none, sinusoidal, learned ---


def test_none_is_the_identity():
    none, x = PositionEncoding(), torch.randn(2, 3, 4)
    positions = torch.arange(3)[None]
    assert none.embed(x, positions) is x
    assert none.rotate(x, positions) is x
    assert none.bias(positions, positions) is None
    assert none.rotation(positions) is None
    assert none.longest is None


def test_sinusoidal_is_the_formula_of_section_3_5():
    positions_BT = torch.tensor([[0, 1, 5, 1000], [3, 2, 2, 31]])
    made = Sinusoidal(12, base=100.0).embed(torch.ones(2, 4, 12), positions_BT) - 1
    for b, t in ((0, 0), (0, 1), (0, 3), (1, 0), (1, 3)):
        position = positions_BT[b, t].item()
        for i in range(6):
            angle = position / 100.0 ** (2 * i / 12)
            assert made[b, t, 2 * i].item() == pytest.approx(math.sin(angle), abs=2e-4)
            assert made[b, t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=2e-4)


def test_learned_adds_rows_and_ends_with_its_table():
    learned = Learned(4, max_length=32)
    x_BTD = torch.randn(2, 3, 4)
    positions_BT = torch.tensor([[0, 1, 2], [31, 0, 7]])
    made = learned.embed(x_BTD, positions_BT)
    torch.testing.assert_close(made, x_BTD + learned.table.weight[positions_BT])
    assert learned.longest == 32
    with pytest.raises(ValueError, match="Learned ends at 32 positions; position 33 was asked for"):
        learned.embed(x_BTD[:, :1], torch.tensor([[32]]))


def test_halves_of_sines_and_cosines_are_marians_table():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    for d_model in (4, 30, 64):
        theirs = MarianSinusoidalPositionalEmbedding(65, d_model)
        table = theirs.create_weight()
        made = Sinusoidal(d_model, interleaved=False).embed(torch.zeros(1, 65, d_model), torch.arange(65)[None])[0]
        # Theirs are rounded once from double precision; an angle of 64 in fp32 is one of 64 * 2 ** -24 = 4e-6 more or less.
        torch.testing.assert_close(made, table.data, atol=4e-6, rtol=0)


def test_halves_hold_the_same_numbers_as_pairs():
    x_BTD, positions_BT = torch.zeros(1, 9, 12), torch.arange(9)[None]
    pairs = Sinusoidal(12, base=100.0).embed(x_BTD, positions_BT)
    halves = Sinusoidal(12, base=100.0, interleaved=False).embed(x_BTD, positions_BT)
    assert halves.equal(torch.cat([pairs[..., 0::2], pairs[..., 1::2]], dim=-1))


def test_learned_reads_behind_its_offset():
    learned = Learned(4, max_length=6, offset=2)
    assert learned.table.weight.shape == (8, 4)
    assert learned.longest == 6
    x_BTD = torch.randn(1, 6, 4)
    torch.testing.assert_close(learned.embed(x_BTD, torch.arange(6)[None]), x_BTD + learned.table.weight[2:])
    with pytest.raises(ValueError, match="Learned ends at 6 positions; position 7 was asked for"):
        learned.embed(x_BTD[:, :1], torch.tensor([[6]]))
    with pytest.raises(ValueError, match="offset must be at least 0, got -1"):
        Learned(4, max_length=6, offset=-1)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_rows_of_the_offset_stay_when_a_grid_grows(before):
    torch.manual_seed(0)
    learned, plain = Learned(4, max_length=before + 6, offset=2), Learned(4, max_length=before + 6)
    with torch.no_grad():
        plain.table.weight.copy_(learned.table.weight[2:])
    first = learned.table.weight[: 2 + before].clone()
    for table in (learned, plain):
        table.resize(before, (2, 3), (4, 5))
    assert learned.longest == plain.longest == before + 20
    assert learned.table.weight[: 2 + before].equal(first)
    assert learned.table.weight[2:].equal(plain.table.weight)
    positions_BT = torch.arange(before + 20)[None]
    zeros_BTD = torch.zeros(1, before + 20, 4)
    assert learned.embed(zeros_BTD, positions_BT).equal(plain.embed(zeros_BTD, positions_BT))


# --- rotary ---


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_multiplies_complex_pairs_by_a_phase(interleaved):
    x_BHTK = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    positions_BT = torch.tensor([[0, 1, 2, 3], [7, 7, 100, 4]])
    made = Rotary(8, base=100.0, interleaved=interleaved).rotate(x_BHTK, positions_BT)
    for pair, frequency in enumerate(plain_frequencies(8, 100.0)):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
        phase_B1T = torch.polar(torch.ones(2, 4).double(), positions_BT.double() * frequency)[:, None]
        expected = torch.complex(x_BHTK[..., first], x_BHTK[..., second]) * phase_B1T
        torch.testing.assert_close(made[..., first], expected.real, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made[..., second], expected.imag, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rotary", [Rotary(8), Rotary(8, fraction=0.5), Rotary(8, interleaved=True), RotaryYaRN(8, max_length=64)]
)
def test_rotated_scores_depend_on_the_distance_alone(rotary):
    q_BHTK, k_BHTK = torch.randn(2, 1, 1, 1, 8).unbind()

    def score(query_position, key_position):
        q = rotary.rotate(q_BHTK, torch.tensor([[query_position]]))
        return (q * rotary.rotate(k_BHTK, torch.tensor([[key_position]]))).sum().item()

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
    assert score(0, 5) == pytest.approx(score(40, 45), abs=1e-5)
    assert abs(score(9, 4) - score(9, 6)) > 1e-3


def test_partial_rotary_leaves_the_rest_and_turns_the_front_as_a_smaller_head():
    x_BHTK, positions_BT = torch.randn(1, 2, 5, 16), torch.arange(5)[None]
    made = Rotary(16, fraction=0.25).rotate(x_BHTK, positions_BT)
    assert made[..., 4:].equal(x_BHTK[..., 4:])
    torch.testing.assert_close(made[..., :4], Rotary(4).rotate(x_BHTK[..., :4], positions_BT))


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_prepared_once_is_rotate(interleaved):
    rotary, positions_BT = Rotary(8, interleaved=interleaved), torch.tensor([[3, 4, 9]])
    x_BHTK = torch.randn(2, 3, 3, 8)
    for turn in rotary.rotation(positions_BT):
        assert turn(x_BHTK).equal(rotary.rotate(x_BHTK, positions_BT))


def test_layouts_differ_by_a_permutation_of_the_head_only():
    x_BHTK, positions_BT = torch.randn(1, 2, 5, 8), torch.arange(5)[None]
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    interleaved = Rotary(8, interleaved=True).rotate(x_BHTK, positions_BT)
    torch.testing.assert_close(Rotary(8).rotate(x_BHTK[..., order], positions_BT), interleaved[..., order])


@pytest.mark.parametrize("position", [65_535, 65_536])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_in_bf16_is_right_at_65536(position, interleaved):
    rotary = Rotary(64, interleaved=interleaved).bfloat16()
    x_BHTK = torch.randn(1, 1, 1, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = rotary.rotate(x_BHTK, torch.tensor([[position]]))
    assert made.dtype == torch.bfloat16
    for pair, frequency in enumerate(plain_frequencies(64, 10000.0)):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 32)
        a, b = x_BHTK[0, 0, 0, first].item(), x_BHTK[0, 0, 0, second].item()
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        bound = 0.012 * math.hypot(a, b)  # half a bf16 step (0.004) and fp32's error of the largest angles (0.008)
        assert made[0, 0, 0, first].item() == pytest.approx(a * cos - b * sin, abs=bound)
        assert made[0, 0, 0, second].item() == pytest.approx(a * sin + b * cos, abs=bound)


def test_neighbours_at_65536_stay_apart_in_bf16():
    sinusoidal, x_BTD = Sinusoidal(64).bfloat16(), torch.zeros(1, 2, 64, dtype=torch.bfloat16)
    near, far = (sinusoidal.embed(x_BTD, torch.tensor([[p, p + 1]]))[0].float() for p in (0, 65_536))
    assert torch.dist(*far).item() == pytest.approx(torch.dist(*near).item(), rel=0.02)


def test_linear_scaling_divides_positions():
    assert_frequencies(RotaryLinear(16, factor=4.0), [f / 4 for f in plain_frequencies(16, 10000.0)])
    x_BHTK = torch.randn(1, 1, 3, 16)
    stretched = RotaryLinear(16, factor=4.0).rotate(x_BHTK, torch.tensor([[0, 4, 40]]))
    torch.testing.assert_close(stretched, Rotary(16).rotate(x_BHTK, torch.tensor([[0, 1, 10]])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [4, 16, 128])
def test_ntk_scaling_keeps_the_fastest_pair_and_divides_the_slowest(width):
    rotary = RotaryNTK(width, factor=8.0)
    base = 10000.0 * 8.0 ** (width / (width - 2))
    assert_frequencies(rotary, [base ** (-2 * i / width) for i in range(width // 2)])
    plain, scaled = plain_frequencies(width, 10000.0), rotary.frequencies(CPU).tolist()
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 8, rel=1e-5)


def yarn_by_the_authors_code(width, base, factor, length, beta_fast, beta_slow):
    def dimension(turns):
        return (width * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(base))

    low = max(math.floor(dimension(beta_fast)), 0)
    high = min(math.ceil(dimension(beta_slow)), width - 1)
    if low == high:
        high += 0.001
    frequencies = []
    for i, frequency in enumerate(plain_frequencies(width, base)):
        mask = 1 - min(max((i - low) / (high - low), 0), 1)
        frequencies.append(frequency / factor * (1 - mask) + frequency * mask)
    return frequencies


@pytest.mark.parametrize(
    ("width", "base", "factor", "length"),
    [(128, 10000.0, 16.0, 4096), (128, 1_000_000.0, 4.0, 32_768), (64, 10000.0, 2.0, 2048), (16, 10000.0, 4.0, 64)],
)
def test_yarn_is_the_authors_code(width, base, factor, length):
    rotary = RotaryYaRN(width, base=base, factor=factor, original_length=length)
    assert_frequencies(rotary, yarn_by_the_authors_code(width, base, factor, length, 32.0, 1.0))
    assert rotary.magnitude() == pytest.approx(0.1 * math.log(factor) + 1)  # the paper's equation 22: sqrt(1 / t)


@pytest.mark.parametrize("length", [64, 512, 4096])
def test_yarn_keeps_and_divides_the_pairs_that_the_paper_says(length):
    rotary = RotaryYaRN(128, factor=8.0, original_length=length)
    for plain, scaled in zip(plain_frequencies(128, 10000.0), rotary.frequencies(CPU).tolist(), strict=True):
        turns = length * plain / (2 * math.pi)  # r(d) of the paper's definition 3
        if turns > 32:
            assert scaled == pytest.approx(plain, rel=1e-5)
        elif turns < 1:
            assert scaled == pytest.approx(plain / 8, rel=1e-5)
        else:
            assert plain / 8 * (1 - 1e-5) <= scaled <= plain * (1 + 1e-5)


def test_yarn_scales_queries_and_keys():
    x_BHTK, positions_BT = torch.randn(1, 1, 3, 16), torch.arange(3)[None]
    rotary = RotaryYaRN(16, factor=8.0, max_length=64)
    lengths = rotary.rotate(x_BHTK, positions_BT).norm(dim=-1) / x_BHTK.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full((1, 1, 3), 0.1 * math.log(8.0) + 1))
    assert RotaryYaRN(16, max_length=64, attention_factor=1.0).magnitude() == 1.0


def llama3_by_metas_code(width, base, factor, low_factor, high_factor, length):
    frequencies = []
    for frequency in plain_frequencies(width, base):
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high_factor:
            frequencies.append(frequency)
        elif wavelength > length / low_factor:
            frequencies.append(frequency / factor)
        else:
            smooth = (length / wavelength - low_factor) / (high_factor - low_factor)
            frequencies.append((1 - smooth) * frequency / factor + smooth * frequency)
    return frequencies


@pytest.mark.parametrize(
    ("width", "factor", "low", "high", "length"),
    [(128, 8.0, 1.0, 4.0, 8192), (64, 32.0, 1.0, 4.0, 8192), (64, 4.0, 2.0, 8.0, 512)],
)
def test_llama3_scaling_is_metas_code(width, factor, low, high, length):
    rotary = RotaryLlama3(width, factor, low, high, length)
    expected = llama3_by_metas_code(width, 500000.0, factor, low, high, length)
    assert_frequencies(rotary, expected)
    kinds = {round(made / plain, 6) for made, plain in zip(expected, plain_frequencies(width, 500000.0), strict=True)}
    assert {1.0, round(1 / factor, 6)} < kinds  # kept, divided, and some blended


def test_original_length_falls_back_to_the_models_length():
    for cls in (RotaryYaRN, RotaryLlama3):
        fallen_back, asked = cls(64, max_length=128), cls(64, original_length=128, max_length=4)
        assert fallen_back.frequencies(CPU).equal(asked.frequencies(CPU))
        with pytest.raises(ValueError, match="original_length must be a number of positions"):
            cls(64)


# --- ALiBi ---


@pytest.mark.parametrize(
    ("num_heads", "slopes"),
    [
        (1, [2**-8]),
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),  # section 3 of the paper
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_slopes_are_the_papers(num_heads, slopes):
    assert ALiBi(num_heads).slopes == pytest.approx(slopes)


def test_alibi_is_minus_slope_times_distance_on_both_sides():
    bias = ALiBi(2).bias(torch.tensor([[4, 5]]), torch.tensor([[3, 4, 5, 9]]))
    assert bias.shape == (1, 2, 2, 4)
    assert bias[0, 0].tolist() == [[-1 / 16, 0, -1 / 16, -5 / 16], [-2 / 16, -1 / 16, 0, -4 / 16]]
    torch.testing.assert_close(bias[0, 1], bias[0, 0] / 16)


def test_alibi_is_exact_far_out_whatever_the_models_type():
    bias = ALiBi(4).bfloat16().bias(torch.tensor([[65_536]]), torch.tensor([[65_535, 65_536]]))
    assert bias[0, :, 0, 0].tolist() == [-(2.0**-2), -(2.0**-4), -(2.0**-6), -(2.0**-8)]
    assert bias[0, :, 0, 1].count_nonzero() == 0


# --- T5's relative bias ---


def t5_bucket(relative, bidirectional, num_buckets=32, max_distance=128):
    """Mesh TensorFlow's _relative_position_bucket, step by step, in double precision."""
    bucket, n = 0, -relative
    if bidirectional:
        num_buckets //= 2
        if n < 0:
            bucket += num_buckets
        n = abs(n)
    else:
        n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return bucket + n
    logarithmic = math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    return bucket + min(exact + int(logarithmic + 1e-9), num_buckets - 1)


# By hand from the paper: 16 exact buckets, then bucket 16 + j starts at 16 * 8 ** (j / 16); both sides: 8 and 8 * 16 ** (j / 8).
CAUSAL = {
    0: 0,
    1: 1,
    15: 15,
    16: 16,
    18: 16,
    19: 17,
    20: 17,
    21: 18,
    45: 23,
    46: 24,
    63: 26,
    112: 30,
    113: 31,
    127: 31,
    5000: 31,
}
BOTH = {
    0: 0,
    1: 1,
    7: 7,
    8: 8,
    11: 8,
    12: 9,
    15: 9,
    16: 10,
    22: 10,
    23: 11,
    31: 11,
    32: 12,
    64: 14,
    90: 14,
    91: 15,
    128: 15,
    999: 15,
}


def test_buckets_are_those_computed_by_hand():
    causal, both = RelativeBias(2, causal=True), RelativeBias(2, causal=False)
    for distance, bucket in CAUSAL.items():
        assert causal.buckets(torch.tensor([-distance])).item() == bucket
    assert causal.buckets(torch.tensor([3, 500])).tolist() == [0, 0]  # keys after the query
    for distance, bucket in BOTH.items():
        assert both.buckets(torch.tensor([-distance])).item() == bucket
        assert both.buckets(torch.tensor([distance])).item() == (bucket + 16 if distance else 0)


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.integers(1, 16), st.integers(40, 400))
def test_buckets_are_those_of_the_authors_code(bidirectional, quarter, max_distance):
    num_buckets = 4 * quarter
    relative = torch.arange(-500, 501)
    made = RelativeBias(1, not bidirectional, num_buckets, max_distance).buckets(relative)
    expected = [t5_bucket(r, bidirectional, num_buckets, max_distance) for r in relative.tolist()]
    assert made.tolist() == expected


# Transformers takes logarithms in fp32, which puts a distance on a bucket's edge on either side; these have none there.
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (20, 77)])
def test_buckets_are_those_of_transformers(num_buckets, max_distance, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = torch.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(relative, bidirectional, num_buckets, max_distance)
    made = RelativeBias(1, not bidirectional, num_buckets, max_distance).buckets(relative)
    assert made.tolist() == theirs.tolist()


@pytest.mark.parametrize("causal", [True, False])
def test_a_distance_between_whole_ones_is_in_the_bucket_of_the_nearest(causal):
    bias, whole = RelativeBias(1, causal), torch.arange(-40, 41)
    for apart in (-0.49, -0.2, 0.2, 0.49):
        assert bias.buckets(whole + apart).equal(bias.buckets(whole))


def test_relative_bias_reads_its_table_by_head():
    encoding = RelativeBias(3, causal=True)
    bias = encoding.bias(torch.tensor([[0, 1, 2], [7, 8, 20]]), torch.tensor([[0, 1], [7, 0]]))
    assert bias.shape == (2, 3, 3, 2)
    assert bias[0, :, 2, 0].equal(encoding.table.weight[2])
    assert bias[1, :, 2, 1].equal(encoding.table.weight[17])


# --- images ---


def test_two_dimensional_positions_read_the_grid_row_by_row():
    positions_BT = torch.arange(12)[None]
    zeros_BTD = torch.zeros(1, 12, 8)
    made = Sinusoidal2D(8, (3, 4)).embed(zeros_BTD, positions_BT)[0]
    line = Sinusoidal(4).embed(torch.zeros(1, 12, 4), positions_BT)[0]
    learned = Learned2D(8, (3, 4))
    tables = learned.embed(zeros_BTD, positions_BT)[0]
    for index in range(12):
        row, column = divmod(index, 4)
        assert made[index].equal(torch.cat([line[row], line[column]]))
        assert tables[index].equal(torch.cat([learned.rows.weight[row], learned.columns.weight[column]]))


@pytest.mark.parametrize("interleaved", [True, False])
def test_axial_rotary_depends_on_both_offsets_alone(interleaved):
    rotary = AxialRotary(8, (6, 7), interleaved=interleaved)
    q_BHTK, k_BHTK = torch.randn(2, 1, 1, 1, 8).unbind()

    def score(query_cell, key_cell):
        q, k = (
            rotary.rotate(x, torch.tensor([[7 * row + column]]))
            for x, (row, column) in ((q_BHTK, query_cell), (k_BHTK, key_cell))
        )
        return (q * k).sum().item()

    assert score((1, 2), (2, 5)) == pytest.approx(score((4, 1), (5, 4)), abs=1e-5)
    assert abs(score((1, 2), (2, 5)) - score((1, 2), (3, 5))) > 1e-3
    assert abs(score((1, 2), (2, 5)) - score((1, 2), (2, 6))) > 1e-3


@pytest.mark.parametrize("interleaved", [True, False])
def test_axial_rotary_turns_first_pairs_by_row_and_last_by_column(interleaved):
    rotary = AxialRotary(8, (3, 4), base=100.0, interleaved=interleaved)
    angles = rotary.angles(torch.tensor([[4 * 2 + 3]]))[0, 0].tolist()
    assert angles == pytest.approx([2 * 1.0, 2 * 0.1, 3 * 1.0, 3 * 0.1])


def test_a_grid_ends():
    for encoding in (Sinusoidal2D(8, (3, 4)), Learned2D(8, (3, 4)), AxialRotary(8, (3, 4))):
        assert encoding.longest == 12
        with pytest.raises(ValueError, match="ends at 12 positions; position 13 was asked for"):
            encoding.check(12)


# --- mistakes ---


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sinusoidal(7), "d_model must be even, got 7"),
        (lambda: Rotary(7), "d_head=7 with fraction=1.0 rotates 7; accepted: an even number from 2 to 7"),
        (lambda: Rotary(10, fraction=0.5), "rotates 5; accepted"),
        (lambda: Rotary(8, fraction=0.0), "fraction must be above 0 and at most 1, got 0.0"),
        (lambda: Rotary(8, fraction=1.5), "fraction must be above 0 and at most 1, got 1.5"),
        (lambda: RotaryLinear(8, factor=0.5), "factor must be at least 1, got 0.5"),
        (lambda: RotaryNTK(2), "NTK-aware scaling needs two pairs"),
        (
            lambda: RotaryYaRN(8, max_length=8, beta_fast=1.0, beta_slow=2.0),
            "beta_slow must be below beta_fast=1.0, got 2.0",
        ),
        (
            lambda: RotaryLlama3(8, max_length=8, low_frequency_factor=4.0),
            "low_frequency_factor must be below high_frequency_factor=4.0, got 4.0",
        ),
        (lambda: RelativeBias(2, True, num_buckets=7), "num_buckets=7 cannot be halved; accepted: a multiple of 2"),
        (lambda: RelativeBias(2, False, num_buckets=6), "num_buckets=6 cannot be halved; accepted: a multiple of 4"),
        (
            lambda: RelativeBias(2, True, max_distance=16),
            "max_distance=16 is within the exact buckets; accepted: more than 16",
        ),
        (lambda: Sinusoidal2D(6, (2, 2)), "d_model must be a multiple of 4, for two axes of sine and cosine, got 6"),
        (lambda: Learned2D(5, (2, 2)), "d_model must be even, as rows and columns take half of it each, got 5"),
        (lambda: AxialRotary(6, (2, 2)), "d_head must be a multiple of 4, for two axes of pairs, got 6"),
    ],
)
def test_mistakes_are_refused_with_what_is_accepted(build, message):
    with pytest.raises(ValueError, match=message):
        build()
