"""Integer functions stay close to the real ones that they stand for; `test_arithmetics` compares them with LiteRT."""

import numpy as np
import pytest

from narrowgauge.core.engines.fixed_point import DOUBLE_ROUNDING
from narrowgauge.core.engines.kernels import UNBOUNDED, steps
from narrowgauge.core.engines.tflite_optimized import TFLITE_NEON, gemmlowp_function
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE
from narrowgauge.core.engines.tflite_unary import (
    absolute,
    function_table_16_bits,
    hard_swish,
    leaky_relu,
    sigmoid_16_bits,
    tanh_16_bits,
    wide_softmax,
)
from narrowgauge.errors import PlanError
from tests.core.engines.litert_operators import Array, encoding

UNIT = encoding(1 / 32768, 0, "int16")


def real(scale: float, kind: str = "int16") -> Array:
    return steps(encoding(scale, 0, kind)) * np.float64(np.float32(scale))


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**-11, 0.0001, 0.0003, 0.01])
def test_sigmoid_and_tanh_of_sixteen_bits(scale: float) -> None:
    held = encoding(scale, 0, "int16")
    assert np.abs(sigmoid_16_bits(held) / 32768 - 1 / (1 + np.exp(-real(scale)))).max() < 1e-4
    assert np.abs(tanh_16_bits(held) / 32768 - np.tanh(real(scale))).max() < 2e-4
    tanh = gemmlowp_function("Tanh", encoding(2.0**-11, 0, "int16"), UNIT)
    assert np.abs(tanh / 32768 - np.tanh(real(2.0**-11))).max() < 1e-3


def test_functions_of_sixteen_bits_are_straight_between_512_places() -> None:
    held, made = encoding(0.0002, 0, "int16"), encoding(0.03, 0, "int16")
    table = function_table_16_bits(np.exp, held, made)
    assert np.abs(table - np.exp(real(0.0002)) / np.float32(0.03)).max() < 6, "pieces of 0.026"
    assert set(np.diff(table, 2)[:126].tolist()) <= {-1, 0, 1}
    with pytest.raises(PlanError, match="scale 1 to stay within float32"):
        function_table_16_bits(np.exp, encoding(1, 0, "int16"), made)


def test_hard_swish() -> None:
    held, made = encoding(0.05, 0), encoding(0.025, -100)
    x = real(0.05, "int8")
    exact = np.clip(x * np.clip(x + 3, 0, 6) / 6 / 0.025 - 100, -128, 127)
    assert np.abs(hard_swish(held, made) - exact).max() < 1.5


def test_leaky_relu_and_absolute() -> None:
    held, made = encoding(0.05, 3), encoding(0.02, -7)
    x = steps(held) * 0.05
    for slope in (0.1, -0.5, 0.0):
        exact = np.clip(np.where(x < 0, slope * x, x) / 0.02 - 7, -128, 127)
        assert np.abs(leaky_relu(held, made, slope, DOUBLE_ROUNDING) - exact).max() < 0.8
    assert np.abs(absolute(held, made, DOUBLE_ROUNDING) - np.clip(np.abs(x) / 0.02 - 7, -128, 127)).max() < 0.8
    np.testing.assert_array_equal(absolute(held, held, DOUBLE_ROUNDING), np.clip(np.abs(steps(held)) + 3, -128, 127))


def test_negative_multipliers_move_ties() -> None:
    held, made = encoding(1, 0, "int16"), encoding(2, 0, "int16")
    both = [
        kernels.unary("LeakyRelu", {"alpha": -0.5}, held, made, UNBOUNDED)
        for kernels in (TFLITE_REFERENCE, TFLITE_NEON)
    ]
    assert 0 <= (both[1] - both[0]).max() <= 1


def test_softmax_of_sixteen_bits() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(-(2**15), 2**15, (50, 7))
    found = wide_softmax(encoding(0.0002, 0, "int16"), UNIT).levels(levels) / 32768
    parts = np.exp((levels - levels.max(axis=1, keepdims=True)) * np.float32(0.0002))
    assert np.abs(found - parts / parts.sum(axis=1, keepdims=True)).max() < 2e-4
    with pytest.raises(PlanError, match="expected 16-bit levels, got int8"):
        wide_softmax(encoding(1), encoding(1))
    with pytest.raises(PlanError, match="fewer than 32768 of the output"):
        wide_softmax(encoding(1000, 0, "int16"), UNIT)
