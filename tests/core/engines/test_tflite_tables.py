"""Biases come back as the levels they were, pools divide as C does, tables follow their functions."""

import itertools
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.engines.kernels import UNBOUNDED, Kernels, Layer
from narrowgauge.core.engines.tflite_optimized import TFLITE_NEON
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE
from narrowgauge.core.engines.tflite_tables import (
    average_pool,
    bias_levels,
    limits_away,
    limits_even,
    real_function,
    softmax,
)
from narrowgauge.core.engines.xnnpack import XNNPACK
from narrowgauge.errors import PlanError
from tests.core.engines.litert_operators import encoding

scales = st.floats(2.0**-20, 2.0**4, width=32)


@given(scales, scales, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4))
def test_biases_come_back_as_levels(input_scale: float, weight_scale: float, levels: list[int]) -> None:
    held, weights = encoding(input_scale), encoding(weight_scale)
    unit = (held.scale * weights.scale).astype(np.float64)
    layer = Layer(kind="product", input=held, weights=weights, output=encoding(1), bias=np.array(levels) * unit)
    np.testing.assert_array_equal(bias_levels(layer), levels)


@given(scales, scales, st.lists(st.integers(-(2**22), 2**22), min_size=1, max_size=4))
def test_biases_of_float32_come_back(input_scale: float, weight_scale: float, levels: list[int]) -> None:
    """As DequantizeLinear gives them."""
    held, weights = encoding(input_scale), encoding(weight_scale)
    real = np.array(levels, np.float32) * (held.scale * weights.scale)
    layer = Layer(kind="product", input=held, weights=weights, output=encoding(1), bias=real)
    np.testing.assert_array_equal(bias_levels(layer), levels)


def test_no_bias_and_one_beyond_int32() -> None:
    held, wide = encoding(1), encoding(1, 0, "int16")
    assert bias_levels(Layer(kind="product", input=held, weights=held, output=held)) is None
    beyond = np.array([2.0**40])
    found = bias_levels(Layer(kind="product", input=held, weights=held, output=held, bias=beyond))
    np.testing.assert_array_equal(found, [2**31 - 1])
    found = bias_levels(Layer(kind="product", input=wide, weights=held, output=wide, bias=beyond))
    np.testing.assert_array_equal(found, [2**40])


@given(st.integers(1, 5000), st.data())
def test_pools_divide_as_c_does(count: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["int8", "uint8", "int16"]))
    held, limits = encoding(1, 0, kind), np.iinfo(kind)
    drawn = data.draw(st.lists(st.integers(int(limits.min) * count, int(limits.max) * count), min_size=1, max_size=9))
    ties = [count * level + half for level in (-3, -1, 0, 1, 5) for half in (count // 2, (count + 1) // 2, -count // 2)]
    sums = [one for one in drawn + ties if limits.min * count <= one <= limits.max * count]
    exact = [(abs(one) + count // 2) // count * (1 if one > 0 else -1) for one in sums]
    np.testing.assert_array_equal(average_pool(held, held, count).levels(np.array(sums)), exact)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kernels", [XNNPACK, TFLITE_REFERENCE, TFLITE_NEON], ids=lambda kernels: kernels.name)
def test_extreme_scales_are_refused_or_saturate(kernels: Kernels) -> None:
    for kind, held, made in itertools.product(
        ("int8", "uint8", "int16"), *[(1e-38, 1e-10, 1e-4, 1.0, 1e5, 1e12, 3e38)] * 2
    ):
        one, other, limits = encoding(held, 0, kind), encoding(made, 0, kind), np.iinfo(kind)
        for operator in ("Tanh", "Requantize", "Relu", "LeakyRelu", "HardSwish", "Abs", "Gelu", "Exp", "Log"):
            with suppress(PlanError):
                levels = kernels.unary(operator, {}, one, other, UNBOUNDED)
                assert limits.min <= levels.min() <= levels.max() <= limits.max
        for operator in ("Add", "Mul", "PRelu", "SquaredDifference"):
            with suppress(PlanError):
                kernels.binary(operator, one, one, other, UNBOUNDED)
        with suppress(PlanError):
            kernels.mean(one, other, 7)
            kernels.sum(one, other, 7)


def test_bounds_round_on_their_own_or_with_the_zero_point() -> None:
    made = encoding(4, -3)  # 6 / 4 is a tie
    assert limits_away(made, (0, 6)) == (-3, -1)
    assert limits_even(made, (0, 6)) == (-3, -2)
    assert limits_away(made, (-np.inf, np.inf)) == limits_even(made, (-np.inf, np.inf)) == (-128, 127)
    assert limits_away(encoding(4, -128), (-7, -6)) == (-128, -128), "bounds beyond the levels"


def test_functions() -> None:
    real = np.array([-2, 0, 3], np.float32)
    for operator, attributes, exact in [
        ("Elu", {}, [np.expm1(-2.0), 0, 3]),
        ("Gelu", {}, [-0.04550026, 0, 2.9959502]),
        ("Gelu", {"approximate": "tanh"}, [-0.04540229, 0, 2.9963627]),
        ("Log", {}, [-128, -128, np.log(3)]),
    ]:
        found = real_function(operator, attributes, encoding(1))(real)
        np.testing.assert_allclose(found, exact, rtol=1e-6)
    with pytest.raises(PlanError, match=r"known for Elu \{'alpha': 0.5\}"):
        real_function("Elu", {"alpha": 0.5}, encoding(1))


def test_softmax_of_other_types_is_refused() -> None:
    wide, narrow = encoding(1, 0, "int16"), encoding(1)
    with pytest.raises(PlanError, match="expected 8-bit levels of Softmax, got int16"):
        softmax(wide, wide, 3)
    with pytest.raises(PlanError, match=r"Softmax to write int8 with scale 0.00390625 and zero point -128"):
        softmax(narrow, narrow, 3)
