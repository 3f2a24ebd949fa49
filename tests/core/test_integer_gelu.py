"""GELU of levels: the table of every level, and I-BERT's polynomial."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.integer_gelu import gelu, gelu_table, polynomial_gelu
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError

TYPES = [IntegerType(bits=bits, signed=signed) for bits in (4, 8, 16) for signed in (True, False)]


def encoding(type: IntegerType, scale: float, zero_point: int) -> Encoding:
    return Encoding(type=type, granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point))


def exact(x: float) -> float:
    return x / 2 * math.erfc(-x / math.sqrt(2))


@given(st.sampled_from(TYPES), st.sampled_from(TYPES[:4]), st.floats(1e-4, 0.1), st.data())
def test_every_level_is_rounded_once(
    input: IntegerType, output: IntegerType, scale: float, data: st.DataObject
) -> None:
    zero_points = [data.draw(st.integers(type.minimum, type.maximum)) for type in (input, output)]
    first, second = encoding(input, scale, zero_points[0]), encoding(output, 0.03, zero_points[1])
    table = gelu_table(first, second)
    assert table.shape == (input.levels,)
    for level in (input.minimum, zero_points[0], (zero_points[0] + input.maximum) // 2, input.maximum):
        real = exact((level - zero_points[0]) * float(first.scale)) / float(second.scale) + zero_points[1]
        cut = min(max(real, output.minimum - 0.5), output.maximum + 0.5)
        assert abs(table[level - input.minimum] - cut) <= 0.5 + 1e-9


def test_the_two_kinds_of_gelu() -> None:
    real = np.array([[-40.0, -3.0, -0.5], [0.0, 1.5, 40.0]])
    np.testing.assert_allclose(gelu(real), [[0, -0.00404969, -0.15426877], [0, 1.39978919, 40]], atol=1e-8)
    by_tanh = gelu(real, "tanh")
    np.testing.assert_allclose(by_tanh, gelu(real), atol=5e-4)
    assert (by_tanh != gelu(real))[0, 1]


def test_a_table_for_each_channel() -> None:
    type = IntegerType(bits=8, signed=True)
    channels = Encoding(
        type=type, granularity=PerAxis(-1), scale=np.float32([0.1, 0.05]), zero_point=np.int32([3, -128])
    )
    output = encoding(type, 0.05, -100)
    tables = gelu_table(channels, output, "tanh")
    np.testing.assert_array_equal(tables[0], gelu_table(encoding(type, 0.1, 3), output, "tanh"))
    np.testing.assert_array_equal(tables[1], gelu_table(encoding(type, 0.05, -128), output, "tanh"))
    assert gelu_table(output, channels).shape == (2, 256)


@pytest.mark.parametrize("scale", [0.0014, 0.01, 0.03, 0.05, 0.1])
@pytest.mark.parametrize("zero_point", [-128, -85, 0, 127])
def test_i_gelu_of_every_8_bit_level_fits_int32(scale: float, zero_point: int) -> None:
    form = polynomial_gelu(encoding(IntegerType(bits=8, signed=True), scale, zero_point))
    steps = np.arange(-128, 128) - zero_point
    real = form.values(steps) * form.unit  # asserts every step
    assert form.reach**2 <= form.one
    # I-BERT says 0.018 of the polynomial; whole levels of its reach add 1 / 50 of a step's part of it.
    assert np.abs(real - gelu(steps * scale)).max() < 0.019 + 0.15 * scale


@pytest.mark.parametrize(("bits", "least"), [(8, 0.00128), (16, 0.0206)])
def test_the_least_scales_of_i_gelu(bits: int, least: float) -> None:
    type = IntegerType(bits=bits, signed=False)
    form = polynomial_gelu(encoding(type, least * 1.005, 0))
    widest = form.values(np.arange(type.levels))
    assert 2**30 < widest.max() < 2**31
    with pytest.raises(PlanError, match=f"fits int32 with a scale of {least:.3g} to"):
        polynomial_gelu(encoding(type, least * 0.99, 0))


def test_what_is_refused() -> None:
    wide, type = IntegerType(bits=32, signed=True), IntegerType(bits=8, signed=True)
    with pytest.raises(PlanError, match="at most 16 bits"):
        gelu_table(encoding(wide, 1.0, 0), encoding(wide, 1.0, 0))
    two, three = (
        Encoding(type=type, granularity=PerAxis(0), scale=np.ones(n, np.float32), zero_point=np.zeros(n, np.int32))
        for n in (2, 3)
    )
    with pytest.raises(PlanError, match="as many as channels"):
        gelu_table(two, three)
    with pytest.raises(PlanError, match="one scale"):
        polynomial_gelu(two)
    with pytest.raises(PlanError, match=r"to 2\.5"):
        polynomial_gelu(encoding(type, 3.0, 0))
