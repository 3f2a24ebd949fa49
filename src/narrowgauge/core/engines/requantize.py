"""Rounding as PyTorch does it, exact in numpy: by the inverse of a scale, in fused steps, the zero point inside or out.

`arithmetic.quantize` is what ONNX defines and what the simulation computes. The rules here differ from it and from each
other in the order of two steps and in where a tie falls; each was compared with PyTorch integer for integer
(tests/core/engines/test_requantize.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import FloatArray, spread
from narrowgauge.core.encoding import Encoding

Levels = npt.NDArray[np.integer]


def multiply_add(first: npt.ArrayLike, second: npt.ArrayLike, addend: npt.ArrayLike) -> FloatArray:
    """Compute `first * second + addend` of float32 numbers with one rounding to float32 (IEEE 754 fusedMultiplyAdd).

    Float64 holds the product exactly; its sum is rounded to odd, so that the second rounding sees on which side of a
    tie it lies (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008, theorem 3).
    """
    product = np.asarray(first, np.float32).astype(np.float64) * np.asarray(second, np.float32).astype(np.float64)
    other = np.asarray(addend, np.float32).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.asarray(product + other)
        part = total - product
        lost = (product - (total - part)) + (other - part)  # what the sum lacks, exactly (Knuth's TwoSum)
        even = (total.view(np.int64) & 1) == 0
        towards = np.where(lost > 0, np.inf, -np.inf)
        inexact = np.isfinite(lost) & (lost != 0)
        return np.where(inexact & even, np.nextafter(total, towards), total).astype(np.float32)


def quantize_by_inverse(values: npt.ArrayLike, encoding: Encoding, *, zero_point_first: bool) -> Levels:
    """Write real numbers as levels by a product with `1 / scale`, where ONNX divides.

    PyTorch's `quantize_per_tensor` adds the zero point first, in one fused step (ATen's quantize_avx2 and
    FBGEMM's Quantize, QuantUtils.h); the operators of its exported programs, those of `quantized_decomposed`, after
    (torch/ao/quantization/fx/_decomposed.py).

    Args:
        values: real units, any shape that the encoding's granularity fits; no NaN.
        encoding: the map.
        zero_point_first: add the zero point before the one rounding to integers.

    Raises:
        PlanError: the scale does not fit the shape.
    """
    real = np.asarray(values, dtype=np.float32)
    inverse = np.float32(1) / spread(encoding.scale, encoding, real.shape)
    zero_point = spread(encoding.zero_point, encoding, real.shape)
    with np.errstate(over="ignore"):  # infinitely many steps saturate like any number of them
        if zero_point_first:
            return saturated(np.rint(multiply_add(real, inverse, zero_point)), encoding)
        return rounded(real * inverse, encoding)


def rounded(steps: FloatArray, output: Encoding) -> Levels:
    """Round numbers of steps, half to even, and add the zero point: a tie falls on an even number of steps."""
    zero_point = spread(output.zero_point, output, steps.shape)
    # Float64 holds every sum of a rounded float32 and a zero point that matters before saturation.
    return saturated(np.rint(steps).astype(np.float64) + zero_point, output)


def rounded_with_zero_point(steps: FloatArray, output: Encoding) -> Levels:
    """Add the zero point in float32 and round, half to even: a tie falls on an even level."""
    zero_point = spread(output.zero_point, output, steps.shape)
    return saturated(np.rint(steps + zero_point.astype(np.float32)), output)


def saturated(levels: npt.NDArray[np.floating], output: Encoding) -> Levels:
    """Clip whole numbers to the levels of a type, in its storage."""
    clipped: Levels = np.clip(levels, output.type.minimum, output.type.maximum).astype(output.type.storage)
    return clipped
