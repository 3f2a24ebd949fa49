"""How real numbers become levels on the way in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import Rounding
from narrowgauge.core.engines.requantize import quantize_by_inverse
from tests.lowering.integer.networks import encoding, levels_of, lowered, simulated
from tests.passes.networks import node


def levels_of_numbers(numbers: np.ndarray, kind: Encoding, how: Rounding) -> np.ndarray:
    """Return what a network that begins with this rounding makes of its input."""
    qdq = simulated([node("Relu", "x", "y")], {"x": numbers.shape}, {"x": kind, "y": kind})
    return levels_of(lowered(qdq, replace(KERNELS["xnnpack"], quantize=how)).model, {"x": numbers})["x_quantized"]


@settings(max_examples=40)
@given(
    how=st.sampled_from(["divide", "reciprocal", "reciprocal_with_zero_point", "divide_half_away"]),
    scale=st.one_of(st.floats(1e-3, 10), st.integers(-6, 2).map(lambda power: 2.0**power)),
    zero_point=st.integers(-128, 127), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_real_numbers_round_as_the_engine_rounds_them(how: Rounding, scale: float, zero_point: int, seed: int) -> None:
    kind = encoding("int8", scale, zero_point)
    rng = np.random.default_rng(seed)
    ties = (rng.integers(-300, 300, 200) + 0.5).astype(np.float32) * kind.scale
    numbers = np.concatenate(
        [ties, np.nextafter(ties, np.float32(0)), rng.normal(0, 90 * scale, 200), [0, 1e30, -1e30]]
    )
    numbers = numbers.astype(np.float32)[None]
    qdq = simulated(
        [node("Relu", "x", "r"), node("Flatten", "r", "y")], {"x": numbers.shape}, {"x": kind, "r": kind, "y": kind}
    )
    found = levels_of(lowered(qdq, replace(KERNELS["xnnpack"], quantize=how)).model, {"x": numbers})["x_quantized"]
    if how == "divide":
        expected = quantize(numbers, kind)
    elif how == "divide_half_away":
        expected = quantize(numbers, kind, rounding="half_away")
    else:
        expected = quantize_by_inverse(numbers, kind, zero_point_first=how == "reciprocal_with_zero_point")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("how", ["reciprocal", "divide_half_away"])
def test_infinity_saturates(how: Rounding) -> None:
    kind = encoding("uint8", 0.1, 7)
    numbers = np.array([[np.inf, -np.inf]], np.float32)
    qdq = simulated(
        [node("Relu", "x", "r"), node("Flatten", "r", "y")], {"x": [1, 2]}, {"x": kind, "r": kind, "y": kind}
    )
    found = levels_of(lowered(qdq, replace(KERNELS["xnnpack"], quantize=how)).model, {"x": numbers})["x_quantized"]
    assert found.tolist() == [[255, 0]]
