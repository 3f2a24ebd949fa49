"""Rounding to levels and back, against ONNX Runtime and exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import (
    ROUNDINGS,
    Rounding,
    dequantize,
    quantize,
    round_half_away,
    round_half_even,
    round_half_up,
    round_trip,
)
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, scale_shape
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import PlanError
from tests.core.engines.engine import ort_dequantize, ort_round_trip
from tests.core.strategies import integer_types, per_tensor, reals

ONNX_TYPES = ["int4", "uint4", "int8", "uint8", "int16", "uint16"]
GRANULARITIES = [PerTensor(), PerAxis(0), PerAxis(2), PerAxis(-2), PerBlock(0, 2), PerBlock(1, 4), PerBlock(-1, 3)]


def drawn_encoding(name: str, granularity: Granularity, shape: tuple[int, ...], seed: int) -> Encoding:
    rng = np.random.default_rng(seed)
    kind = integer_type(name)
    sizes = scale_shape(granularity, shape)
    return Encoding(
        type=kind,
        granularity=granularity,
        scale=np.exp2(rng.uniform(-6, 2, sizes)),
        zero_point=rng.integers(kind.minimum, kind.maximum, sizes, endpoint=True),
    )


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", ONNX_TYPES)
def test_round_trip_is_onnx_runtimes(name: str, granularity: Granularity) -> None:
    shape = (6, 8, 9)
    encoding = drawn_encoding(name, granularity, shape, seed=7)
    reach = float(encoding.scale.max()) * encoding.type.levels
    values = np.random.default_rng(8).uniform(-reach, reach, shape).astype(np.float32)
    values.reshape(-1)[:2] = [
        1e6,
        -1e6,
    ]  # beyond 2^31 steps ONNX Runtime's blocked loops overflow, against the standard
    levels, real = ort_round_trip(values, encoding)
    if levels is not None:
        np.testing.assert_array_equal(quantize(values, encoding), levels)
        assert quantize(values, encoding).dtype == levels.dtype
    np.testing.assert_array_equal(round_trip(values, encoding), real)


@pytest.mark.parametrize("name", ONNX_TYPES)
def test_exact_ties_are_onnx_runtimes(name: str) -> None:
    """Every half step of the whole range and beyond, the scale a power of two so that the ties are exact."""
    kind = integer_type(name)
    for zero_point in (kind.minimum, (kind.minimum + kind.maximum) // 2 + 1, kind.maximum):
        encoding = Encoding(
            type=kind, granularity=PerTensor(), scale=np.float32(0.125), zero_point=np.array(zero_point)
        )
        halves = np.arange(2 * (kind.minimum - zero_point) - 9, 2 * (kind.maximum - zero_point) + 9)
        values = (halves * 0.0625).astype(np.float32)
        levels, real = ort_round_trip(values, encoding)
        if levels is not None:
            np.testing.assert_array_equal(quantize(values, encoding), levels)
        np.testing.assert_array_equal(round_trip(values, encoding), real)


def test_bias_of_32_bits_is_dequantized_as_by_onnx_runtime() -> None:
    levels = np.array([-(2**31), -(2**24) - 1, -1, 0, 1, 2**24 + 1, 2**31 - 1], np.int32)
    encoding = Encoding(
        type=integer_type("int32"), granularity=PerTensor(), scale=np.float32(1.7e-5), zero_point=np.array(0)
    )
    np.testing.assert_array_equal(dequantize(levels, encoding), ort_dequantize(levels, encoding))


def test_bias_of_32_bits_saturates() -> None:
    encoding = Encoding(
        type=integer_type("int32"), granularity=PerTensor(), scale=np.float32(1e-9), zero_point=np.array(0)
    )
    assert quantize([5.0, -5.0, np.inf], encoding).tolist() == [2**31 - 1, -(2**31), 2**31 - 1]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nan_becomes_real_zero_and_infinity_saturates(rounding: Rounding) -> None:
    encoding = encoding_from_range(-1.0, 3.0, integer_type("uint8"), PerTensor())
    levels = quantize([np.nan, np.inf, -np.inf], encoding, rounding=rounding)
    assert levels.tolist() == [encoding.zero_point, 255, 0]
    assert dequantize(levels, encoding)[0] == 0.0


def test_quotients_beyond_float32_saturate() -> None:
    encoding = Encoding(
        type=integer_type("int8"), granularity=PerTensor(), scale=np.float32(1e-10), zero_point=np.array(3)
    )
    assert quantize([3e38, -3e38], encoding).tolist() == [127, -128]


@given(per_tensor(), st.data())
def test_error_within_the_range_is_at_most_half_a_step(encoding: Encoding, data: st.DataObject) -> None:
    low, high = float(encoding.minimum), float(encoding.maximum)
    value = np.float32(data.draw(st.floats(0, 1)) * (high - low) + low)
    error = abs(float(round_trip(value, encoding)) - float(value))
    assert error <= float(encoding.scale) / 2 + float(np.spacing(np.float32(max(abs(low), abs(high)))))


@given(per_tensor())
def test_every_level_comes_back(encoding: Encoding) -> None:
    """Also: rounding a second time changes nothing."""
    levels = np.arange(encoding.type.minimum, encoding.type.maximum + 1)
    np.testing.assert_array_equal(quantize(dequantize(levels, encoding), encoding), levels)


@given(per_tensor())
def test_zero_is_exact(encoding: Encoding) -> None:
    assert round_trip(0.0, encoding) == 0.0
    assert quantize(0.0, encoding) == encoding.zero_point


@given(per_tensor(), st.lists(reals, min_size=2, max_size=20), st.sampled_from(list(ROUNDINGS)))
def test_order_is_kept(encoding: Encoding, values: list[float], rounding: Rounding) -> None:
    assert (np.diff(quantize(np.sort(np.float32(values)), encoding, rounding=rounding).astype(np.int64)) >= 0).all()


@given(integer_types, st.floats(-1e3, 0), st.floats(0, 1e3), st.booleans())
def test_levels_are_of_the_types_storage(kind: object, low: float, high: float, symmetric: bool) -> None:
    encoding = encoding_from_range(low, high, kind, PerTensor(), symmetric=symmetric)  # type: ignore[arg-type]
    levels = quantize(np.linspace(2 * low - 1, 2 * high + 1, 50), encoding)
    assert levels.dtype == encoding.type.storage
    assert encoding.type.minimum <= levels.min() <= levels.max() <= encoding.type.maximum


# --- rounding -------------------------------------------------------------------------------------------------


def exactly(rounding: Rounding, value: float) -> int:
    """The rule in exact arithmetic."""
    number = Fraction(value)
    if rounding == "half_even":
        return round(number)
    if rounding == "half_up":
        return math.floor(number + Fraction(1, 2))
    return int(math.copysign(math.floor(abs(number) + Fraction(1, 2)), value))


@pytest.mark.parametrize(
    ("value", "even", "away", "up"),
    [
        (0.5, 0, 1, 1), (1.5, 2, 2, 2), (2.5, 2, 3, 3), (-0.5, 0, -1, 0), (-1.5, -2, -2, -1), (-2.5, -2, -3, -2),
        (0.49999997, 0, 0, 0), (-0.49999997, 0, 0, 0), (0.50000006, 1, 1, 1), (-0.50000006, -1, -1, -1),
        (8388607.5, 8388608, 8388608, 8388608), (-8388607.5, -8388608, -8388608, -8388607), (1e-30, 0, 0, 0),
        (-1e-30, 0, 0, 0),
    ],
)  # fmt: skip
def test_ties_and_their_neighbours(value: float, even: int, away: int, up: int) -> None:
    given_value = np.array([value], np.float32)
    found = [rule(given_value)[0] for rule in (round_half_even, round_half_away, round_half_up)]
    assert found == [even, away, up]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(st.floats(-(2.0**26), 2.0**26, width=32) | st.integers(-(2**24), 2**24).map(lambda n: n / 2))
def test_rounding_is_exact(rounding: Rounding, value: float) -> None:
    assert ROUNDINGS[rounding](np.array([value], np.float32))[0] == exactly(rounding, value)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_keeps_infinity_nan_and_the_dtype(rounding: Rounding) -> None:
    values: npt.NDArray[np.float32] = np.array([np.inf, -np.inf, np.nan], np.float32)
    rounded = ROUNDINGS[rounding](values)
    np.testing.assert_array_equal(rounded, values)
    assert rounded.dtype == np.float32


# --- granularity ----------------------------------------------------------------------------------------------


def test_last_block_may_be_shorter() -> None:
    granularity = PerBlock(0, 4)
    encoding = Encoding(
        type=integer_type("int8"),
        granularity=granularity,
        scale=np.array([[1.0, 2.0], [4.0, 8.0]]),
        zero_point=np.zeros((2, 2)),
    )
    assert scale_shape(granularity, (6, 2)) == (2, 2)
    found = dequantize(np.ones((6, 2), np.int8), encoding)
    np.testing.assert_array_equal(found, [[1, 2]] * 4 + [[4, 8]] * 2)


@pytest.mark.parametrize(
    ("granularity", "shape"), [(PerAxis(0), (4, 3)), (PerAxis(5), (3, 3)), (PerBlock(0, 2), (4, 3))], ids=str
)
def test_scales_that_do_not_fit_the_tensor_are_refused(granularity: Granularity, shape: tuple[int, ...]) -> None:
    scale = np.ones((3,) if isinstance(granularity, PerAxis) else (3, 3))
    encoding = Encoding(
        type=integer_type("int8"), granularity=granularity, scale=scale, zero_point=np.zeros(scale.shape)
    )
    with pytest.raises(PlanError, match=r"expected (scales|an axis)"):
        quantize(np.zeros(shape), encoding)
