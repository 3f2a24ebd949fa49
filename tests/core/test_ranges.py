"""From a real range to scale and zero point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import quantize, round_trip
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.ranges import SMALLEST_SCALE, encoding_from_range
from narrowgauge.errors import PlanError
from tests.core.strategies import integer_types

bounds = st.floats(-1e30, 1e30)


@given(integer_types, bounds, bounds, st.booleans(), st.booleans())
def test_range_is_covered_and_zero_is_exact(
    kind: IntegerType, first: float, second: float, symmetric: bool, power_of_two: bool
) -> None:
    low, high = sorted([first, second])
    encoding = encoding_from_range(low, high, kind, PerTensor(), symmetric=symmetric, power_of_two=power_of_two)
    ends = np.array([low, high])
    # The zero point is rounded, so an end may lie half a step outside.
    slack = float(encoding.scale) * 0.5 + 1e-6 * np.abs(ends).max()
    assert (np.abs(round_trip(ends, encoding) - ends) <= slack).all()
    assert round_trip(0.0, encoding) == 0.0
    if symmetric and kind.signed:
        assert encoding.zero_point == 0
    if power_of_two:
        assert np.log2(encoding.scale) % 1 == 0


@pytest.mark.parametrize(
    ("name", "low", "high", "symmetric", "scale", "zero_point"),
    [
        ("uint8", 0.0, 25.5, False, 0.1, 0),
        ("uint8", -12.8, 12.7, False, 0.1, 128),
        ("int8", -12.8, 12.7, False, 0.1, 0),
        ("int8", 2.0, 25.5, False, 0.1, -128),
        ("int8", -6.0, 12.7, True, 0.1, 0),
        ("int8_narrow", -12.7, 12.7, False, 0.1, 0),
        ("int4", -0.7, 0.3, True, 0.1, 0),
        ("uint8", 0.0, 25.5, True, 0.1, 0),
        ("uint8", -12.7, 3.0, True, 0.1, 128),
        ("uint2", 0.0, 3.0, False, 1.0, 0),
    ],
)
def test_known_encodings(name: str, low: float, high: float, symmetric: bool, scale: float, zero_point: int) -> None:
    encoding = encoding_from_range(low, high, integer_type(name), PerTensor(), symmetric=symmetric)
    assert encoding.scale == np.float32(scale)
    assert encoding.zero_point == zero_point


@given(integer_types, st.floats(-1e6, 1e6))
def test_a_constant_is_a_level(kind: IntegerType, value: float) -> None:
    encoding = encoding_from_range(value, value, kind, PerTensor())
    assert float(round_trip(value, encoding)) == pytest.approx(value, rel=1e-6, abs=SMALLEST_SCALE * kind.levels)


def test_a_range_of_no_width_keeps_zero() -> None:
    encoding = encoding_from_range(0.0, 0.0, integer_type("int8"), PerTensor())
    assert encoding.scale == np.float32(SMALLEST_SCALE)
    assert quantize(0.0, encoding) == encoding.zero_point


def test_channels_get_a_scale_each() -> None:
    encoding = encoding_from_range([-1.0, -2.0], [1.27, 1.0], integer_type("int8"), PerAxis(0), symmetric=True)
    np.testing.assert_allclose(encoding.scale, [0.01, 2 / 127], rtol=1e-6)
    assert encoding.zero_point.tolist() == [0, 0]


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0), (1.0, 0.5)])
def test_no_range_no_encoding(low: float, high: float) -> None:
    with pytest.raises(PlanError, match="range"):
        encoding_from_range(low, high, integer_type("int8"), PerTensor())
