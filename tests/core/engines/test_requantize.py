"""Roundings are PyTorch's, integer for integer, ties included."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.requantize import multiply_add, quantize_by_inverse, rounded, rounded_with_zero_point
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from tests.core.engines.torch_engines import FAMILIES, Scales, use


def encoding(scale: Any, zero_point: Any, kind: str = "uint8") -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point)
    )


floats = st.floats(-(2.0**60), 2.0**60, width=32)


@given(floats, floats, floats)
def test_a_fused_product_and_sum_is_rounded_once(first: float, second: float, addend: float) -> None:
    exact = Fraction(first) * Fraction(second) + Fraction(addend)
    found = multiply_add(first, second, addend)
    below, above = np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))
    distance = abs(exact - Fraction(float(found)))
    if abs(exact) < 2**-100:
        return  # float32's own range ends
    others = [abs(exact - Fraction(float(near))) for near in (below, above) if np.isfinite(near)]
    assert distance <= min(others)
    if distance == min(others):  # a tie falls on the even number
        assert found.view(np.int32) & 1 == 0


def test_a_tie_that_float64_alone_would_round_wrong() -> None:
    """The exact sum lies above a tie of float32 by less than float64 can tell."""
    one = np.float32(1 + 2**-12)
    found = multiply_add(one, one, np.float32(2**-70))  # 1 + 2^-11 + 2^-24 + 2^-70, a tie but for the last
    assert found == np.float32(1 + 2**-11 + 2**-23)


def test_infinity_stays() -> None:
    np.testing.assert_array_equal(multiply_add([np.inf, 3e38], [1.0, 3e38], [0.0, 1.0]), [np.inf, np.inf])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_quantize_per_tensor(engine: str, family: str) -> None:
    scales = Scales(family)
    with use(engine) as torch:
        for _ in range(20):
            held = encoding(scales.one(), scales.rng.integers(0, 256))
            # Halves of a step, and the numbers next to them, where a product with the inverse and a quotient differ.
            halves = (scales.rng.integers(-600, 600, 1000) * np.float32(0.5) * held.scale).astype(np.float32)
            values = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9))])
            found = torch.quantize_per_tensor(
                torch.from_numpy(values), float(held.scale), int(held.zero_point), torch.quint8
            )
            np.testing.assert_array_equal(
                quantize_by_inverse(values, held, zero_point_first=True), found.int_repr().numpy()
            )


def test_the_operators_of_exported_programs() -> None:
    scales, differing = Scales("rand"), 0
    with use("fbgemm") as torch:
        import torch.ao.quantization.fx._decomposed

        operators = torch.ops.quantized_decomposed
        for _ in range(20):
            held = encoding(scales.one(), scales.rng.integers(0, 256))
            halves = (scales.rng.integers(-600, 600, 1000) * np.float32(0.5) * held.scale).astype(np.float32)
            found = operators.quantize_per_tensor(
                torch.from_numpy(halves), float(held.scale), int(held.zero_point), 0, 255, torch.uint8
            ).numpy()
            np.testing.assert_array_equal(quantize_by_inverse(halves, held, zero_point_first=False), found)
            differing += int((quantize(halves, held) != found).sum())
    assert differing > 0, "beside ties the inverse and the quotient differ"


def test_fbgemms_own_example_of_the_inverse() -> None:
    """FBGEMM, QuantUtils.h: x / scale rounds to 127, x * (1 / scale) to 128."""
    held = encoding(0.00214854861, 0)
    assert quantize(np.float32(0.273939937), held) == 127
    assert quantize_by_inverse(np.float32(0.273939937), held, zero_point_first=True) == 128


def test_where_a_tie_falls() -> None:
    held = encoding(1.0, 3)
    np.testing.assert_array_equal(rounded(np.float32([0.5, 1.5]), held), [3, 5])
    np.testing.assert_array_equal(rounded_with_zero_point(np.float32([0.5, 1.5]), held), [4, 4])
    np.testing.assert_array_equal(rounded(np.float32([np.inf, -np.inf]), held), [255, 0])
