"""LayerNormalization in integers: against real numbers, and every step within its bits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.integer_layernorm import LayerNormForm, layernorm_form
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError

UINT8 = IntegerType(bits=8, signed=False)
INT8 = IntegerType(bits=8, signed=True)


def per_tensor(scale: float, zero_point: int, type: IntegerType = UINT8) -> Encoding:
    return Encoding(type=type, granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point))


def powers(base: float, shifts: np.ndarray, zero_points: np.ndarray, type: IntegerType = UINT8) -> Encoding:
    scale = np.ldexp(np.float32(base), np.asarray(shifts, np.int32)).astype(np.float32)
    return Encoding(type=type, granularity=PerAxis(-1), scale=scale, zero_point=np.asarray(zero_points, np.int32))


def real_levels(levels, input, output, gain, bias, epsilon):
    """The level before it is rounded and cut, in float64."""
    real = (levels - input.zero_point) * input.scale.astype(np.float64)
    centred = real - real.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    normal = centred / np.where(deviation == 0, 1, deviation)
    return (normal * gain + bias) / output.scale.astype(np.float64) + output.zero_point


def step_by_step(form: LayerNormForm, levels: list[int]) -> list[int]:
    """The docstring's table in Python's integers, which cannot overflow; every step is held to its bits."""

    def fits(value: int, bits: int) -> int:
        assert -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
        return value

    def divide(value: int, shift: int) -> int:
        return fits(value + (1 << (shift - 1)), width) >> shift if shift > 0 else value << -shift

    half_width = form.root_bits
    width, channels = 2 * half_width + 2, len(levels)
    spread = [
        (level - int(zero)) << int(shift)
        for level, zero, shift in zip(levels, form.zero_points, form.shifts, strict=True)
    ]
    total = fits(sum(spread), width)
    variance = channels * sum(x * x for x in spread) - total**2
    variance = fits(max((variance << (2 * form.epsilon_bits)) + form.epsilon, 1), 64)
    t = (variance.bit_length() - 1 - (2 * half_width - 2)) >> 1
    m = fits(variance >> 2 * t if t >= 0 else variance << -2 * t, 2 * half_width + 1)
    root = math.isqrt(m)
    root += m - root * root > root
    reciprocal = fits((2 ** (2 * half_width) + root // 2) // root, half_width + 3)
    result = []
    for x, multiplier, addend in zip(spread, form.multipliers, form.addends, strict=True):
        d = fits(channels * x - total, width)
        d = fits(divide(d, t + form.guard - form.epsilon_bits), half_width + 3)
        shift = 2 * half_width - form.guard - form.normal_bits
        n = fits(d * reciprocal + (1 << (shift - 1)), width) >> shift
        y = fits(n * int(multiplier) + int(addend), width) >> form.shift_out
        result.append(min(max(y, form.low), form.high))
    return result


def differing(form, levels, real) -> int:
    """How many levels differ from the real ones, rounded half up; each is next to a tie, by the stated error."""
    found = form.levels(levels)
    rounded = np.clip(np.floor(real + 0.5), form.low, form.high)
    cut = np.clip(real, form.low - 0.5, form.high + 0.5)
    assert (np.abs(found - cut) <= 0.5 + form.error).all()
    return int((found != rounded).sum())


@st.composite
def cases(draw: st.DrawFn):
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 64, 192]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    type = draw(st.sampled_from([UINT8, INT8]))
    base = draw(st.sampled_from([1.0, 2.0**-7, 0.0123, 1e-3, 3.7]))
    shifts = generator.integers(0, draw(st.integers(0, 5)), channels, endpoint=True)
    zero_points = generator.integers(type.minimum, type.maximum, channels, endpoint=True)
    input = powers(base, shifts, zero_points, type)
    output = per_tensor(draw(st.sampled_from([2.0**-5, 0.0213, 0.1])), draw(st.integers(0, 255)))
    gain = generator.normal(1, 0.3, channels) * draw(st.sampled_from([0.1, 1.0, -0.5, 2.0]))
    bias = generator.normal(0, 1, channels)
    epsilon = draw(st.sampled_from([0.0, 1e-12, 1e-6, 1e-5, 0.1]))
    kind = draw(st.sampled_from(["any", "ends", "equal", "one", "near"]))
    shape = (3, channels)
    levels = generator.integers(type.minimum, type.maximum, shape, endpoint=True)
    if kind == "ends":
        levels = np.where(generator.random(shape) < 0.5, type.minimum, type.maximum)
    elif kind == "equal":
        levels = np.broadcast_to(zero_points, shape)
    elif kind == "one":
        levels = np.full(shape, type.minimum)
        levels[:, 0] = type.maximum
    elif kind == "near":
        levels = np.clip(zero_points + generator.integers(0, 1, shape, endpoint=True), type.minimum, type.maximum)
    return input, output, gain, bias, epsilon, levels


@settings(max_examples=200)
@given(cases(), st.sampled_from([32, 64]))
def test_levels_are_those_of_real_numbers_but_for_ties(case, width) -> None:
    input, output, gain, bias, epsilon, levels = case
    form = layernorm_form(input, output, gain=gain, bias=bias, epsilon=epsilon, width=width)
    differing(form, levels, real_levels(levels, input, output, gain, bias, epsilon))


@settings(max_examples=100)
@given(cases(), st.sampled_from([32, 64]))
def test_no_step_exceeds_its_bits(case, width) -> None:
    input, output, gain, bias, epsilon, levels = case
    form = layernorm_form(input, output, gain=gain, bias=bias, epsilon=epsilon, width=width)
    expected = [step_by_step(form, row) for row in levels.tolist()]
    np.testing.assert_array_equal(form.levels(levels), expected)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 6, 16, 17, 18, 65, 66, 192, 257, 768, 1024, 1025, 4096])
def test_one_channel_far_from_all_others_is_the_worst(channels: int, width: int) -> None:
    """Its distance is `sqrt(C - 1)` standard deviations, the most there is; all the magnitudes of its variance."""
    input = per_tensor(0.01, 0)
    form = layernorm_form(
        input, per_tensor(math.sqrt(channels) / 127, 128), gain=np.ones(channels), bias=np.zeros(channels), epsilon=0,
        width=width,
    )  # fmt: skip
    for far in (1, 2, 3, 11, 23, 45, 90, 128, 181, 255)[: 10 if channels < 1000 else 3]:
        for near in (0, 255 - far):
            row = [near] * (channels - 1) + [near + far]
            assert step_by_step(form, row) == form.levels(np.array(row)).tolist()
            assert step_by_step(form, row[::-1]) == form.levels(np.array(row[::-1])).tolist()


@pytest.mark.parametrize("channels", [2, 7, 500, 4000])
def test_the_greatest_differences_that_32_bits_hold(channels: int) -> None:
    """16-bit levels with as great a shift as is not refused, at their ends."""
    type = IntegerType(bits=16, signed=False)
    output = per_tensor(math.sqrt(channels) / 127, 128)
    form = None
    for shift in range(16):
        input = powers(0.001, np.array([0, *[shift] * (channels - 1)]), np.zeros(channels), type)
        try:
            form = layernorm_form(input, output, gain=np.ones(channels), bias=np.zeros(channels), epsilon=0)
        except PlanError:
            break
    assert form is not None
    for row in ([65535] + [0] * (channels - 1), [0] + [65535] * (channels - 1), [0, 65535] * (channels // 2)):
        padded = (row + [0] * channels)[:channels]
        assert step_by_step(form, padded) == form.levels(np.array(padded)).tolist()


def vit_like(type: IntegerType, most_shift: int, seed: int = 0):
    """Rows as in the residual stream of a small vision transformer: channels whose spreads differ by 30 times."""
    generator = np.random.default_rng(seed)
    channels, rows = 192, 2000
    spreads = np.exp2(generator.uniform(0, most_shift, channels))
    real = generator.normal(generator.normal(0, 0.3, channels), 0.3, (rows, channels)) * spreads
    shifts = np.ceil(np.log2(np.abs(real).max(axis=0) * 2 / (type.levels - 1))).astype(int)
    base = float(2.0 ** shifts.min())
    shifts = np.minimum(shifts - shifts.min(), most_shift)
    zero_points = np.rint(type.minimum - real.min(axis=0) / (base * 2.0**shifts))
    zero_points = np.clip(zero_points, type.minimum, type.maximum).astype(int)
    input = powers(base, shifts, zero_points, type)
    levels = np.clip(np.rint(real / input.scale) + zero_points, type.minimum, type.maximum).astype(np.int64)
    gain, bias = generator.uniform(0.3, 1.5, channels), generator.normal(0, 0.2, channels)
    output = per_tensor(8 * 1.5 / 255, 120)
    return input, output, gain, bias, levels


@pytest.mark.parametrize(("width", "share"), [(32, 0.004), (64, 1e-5)])
@pytest.mark.parametrize("most_shift", [0, 3, 5])
def test_how_many_levels_differ(width, share, most_shift) -> None:
    """Of 384000 levels of 8 bits 0.3 % with products of 32 bits, each within 0.013 of a tie; none with 64 bits."""
    input, output, gain, bias, levels = vit_like(UINT8, most_shift)
    form = layernorm_form(input, output, gain=gain, bias=bias, epsilon=1e-6, width=width)
    real = real_levels(levels, input, output, gain, bias, 1e-6)
    assert differing(form, levels, real) <= share * levels.size
    assert form.error < 0.04
    cut = np.clip(real, -0.5, 255.5)
    assert np.abs(form.levels(levels) - cut).max() < 0.515


def test_levels_of_16_bits() -> None:
    """In and out, with products of 64 bits; those of 32 bits are refused where levels would be off by several."""
    type = IntegerType(bits=16, signed=True)
    input, _, gain, bias, levels = vit_like(type, 3)
    output = per_tensor(12 / 65535, 100, type)
    form = layernorm_form(input, output, gain=gain, bias=bias, epsilon=1e-6, width=64)
    assert differing(form, levels, real_levels(levels, input, output, gain, bias, 1e-6)) <= 20
    with pytest.raises(PlanError, match=r"would be off by up to \S+; use 64"):
        layernorm_form(vit_like(UINT8, 3)[0], output, gain=gain, bias=bias, epsilon=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-5])
@pytest.mark.parametrize("width", [32, 64])
def test_equal_numbers_become_the_bias(epsilon: float, width) -> None:
    """The variance is 0: FQ-ViT's code divides by it."""
    bias = np.linspace(-3, 3, 50)
    output = per_tensor(0.03, 120)
    form = layernorm_form(
        per_tensor(0.02, 7), output, gain=np.full(50, 1.7), bias=bias, epsilon=epsilon, width=width
    )  # fmt: skip
    expected = np.clip(np.floor(bias / float(output.scale) + 120 + 0.5), 0, 255)
    for level in (0, 7, 255):
        np.testing.assert_array_equal(form.levels(np.full((2, 50), level)), [expected] * 2)


def test_a_gain_of_nothing_and_a_bias_far_outside() -> None:
    gain, bias = np.array([0.0, 1.0, -1.0]), np.array([0.5, 1e4, -1e4])
    form = layernorm_form(per_tensor(0.02, 7), per_tensor(0.05, 100), gain=gain, bias=bias, epsilon=1e-5)
    np.testing.assert_array_equal(form.levels(np.array([[0, 9, 200], [255, 0, 0]])), [[110, 255, 0]] * 2)
    nothing = layernorm_form(per_tensor(0.02, 7), per_tensor(0.05, 100), gain=gain * 0, bias=gain, epsilon=1e-5)
    np.testing.assert_array_equal(nothing.levels(np.array([[0, 9, 200]])), [[100, 120, 80]])


def test_any_number_of_rows() -> None:
    form = layernorm_form(per_tensor(0.02, 7), per_tensor(0.05, 100), gain=np.ones(3), bias=np.zeros(3), epsilon=1e-5)
    levels = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3))
    np.testing.assert_array_equal(form.levels(levels)[1, 2, 3], form.levels(levels[1, 2, 3]))
    assert form.levels(np.zeros((0, 7, 3), np.int64)).shape == (0, 7, 3)


def test_a_scale_for_each_channel_of_the_output() -> None:
    scale = np.array([0.05, 0.1, 0.025], np.float32)
    output = Encoding(type=UINT8, granularity=PerAxis(-1), scale=scale, zero_point=np.array([0, 100, 255], np.int32))
    input, gain, bias = per_tensor(0.02, 7), np.array([1.0, 0.5, -2.0]), np.array([0.3, 0.0, -0.1])
    form = layernorm_form(input, output, gain=gain, bias=bias, epsilon=1e-5)
    levels = np.random.default_rng(0).integers(0, 255, (100, 3))
    differing(form, levels, real_levels(levels, input, output, gain, bias, 1e-5))


def test_what_is_refused() -> None:
    ones, zeros = np.ones(3), np.zeros(3)
    input, output = per_tensor(0.02, 7), per_tensor(0.05, 100)

    def refused(match: str, *, input=input, output=output, gain=ones, bias=zeros, epsilon=1e-5) -> None:
        with pytest.raises(PlanError, match=match):
            layernorm_form(input, output, gain=gain, bias=bias, epsilon=epsilon)

    refused("a gain and a bias for each channel", bias=np.zeros(4))
    refused("a gain and a bias for each channel", gain=np.zeros(0), bias=np.zeros(0))
    refused("finite gains and biases", gain=np.array([1, np.nan, 1]))
    refused("one scale or 3, got 2 and 1", input=powers(0.1, np.array([0, 1]), np.zeros(2)))
    refused("an epsilon of 0 or more, got -1", epsilon=-1.0)
    refused("exceed 62 bits", epsilon=1e30)
    wide = powers(0.1, np.array([0, 14, 14]), zeros, IntegerType(bits=16, signed=True))
    refused("do not fit 32 bits; use 64", input=wide)
    refused("do not fit products of 32 bits; use 64", gain=np.full(3, 1e9))
