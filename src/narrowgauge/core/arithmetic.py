"""The one definition of rounding real numbers to levels and back: numpy, exact, everything is tested against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor, normalized_axis, scale_shape
from narrowgauge.errors import PlanError

FloatArray = npt.NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)
Rounding = Literal["half_even", "half_away", "half_up"]


def round_half_even(values: FloatArray) -> FloatArray:
    """Round to the nearest integer, ties to the even one (IEEE 754 roundTiesToEven; ONNX QuantizeLinear)."""
    rounded: FloatArray = np.rint(values)
    return rounded


def round_half_away(values: FloatArray) -> FloatArray:
    """Round to the nearest integer, ties away from zero (C `round`; TFLite's reference quantize).

    The fraction is compared exactly: adding 0.5 first would round 0.49999997 up.
    """
    whole: FloatArray = np.trunc(values)
    with np.errstate(invalid="ignore"):  # infinity has no fraction
        up = np.abs(values - whole) >= 0.5
    return whole + np.where(up, np.sign(values), 0).astype(whole.dtype)


def round_half_up(values: FloatArray) -> FloatArray:
    """Round to the nearest integer, ties towards plus infinity (an arithmetic right shift with a rounding bit)."""
    whole: FloatArray = np.floor(values)
    with np.errstate(invalid="ignore"):  # infinity has no fraction
        up = values - whole >= 0.5
    return whole + up.astype(whole.dtype)


ROUNDINGS: dict[Rounding, Callable[[FloatArray], FloatArray]] = {
    "half_even": round_half_even,
    "half_away": round_half_away,
    "half_up": round_half_up,
}


def quantize(values: npt.ArrayLike, encoding: Encoding, *, rounding: Rounding = "half_even") -> npt.NDArray[np.integer]:
    """Write real numbers as levels: `saturate(round(values / scale) + zero_point)`.

    One float32 division and one rounding, the zero point added after it, as ONNX defines QuantizeLinear.

    Args:
        values: real units, any shape that the encoding's granularity fits. NaN becomes the zero point.
        encoding: the map.
        rounding: what happens to ties.

    Returns:
        Levels in the type's storage dtype, the shape of `values`.

    Raises:
        PlanError: if the scale does not fit the shape.
    """
    real = np.asarray(values, dtype=np.float32)
    scale = spread(encoding.scale, encoding, real.shape)
    zero_point = spread(encoding.zero_point, encoding, real.shape)
    with np.errstate(over="ignore"):  # infinitely many steps saturate like any number of them
        quotients = real / scale
    steps = np.nan_to_num(ROUNDINGS[rounding](quotients), nan=0.0)
    # Float64 holds every sum of a rounded float32 and a zero point that matters before saturation.
    levels = np.clip(steps.astype(np.float64) + zero_point, encoding.type.minimum, encoding.type.maximum)
    return levels.astype(encoding.type.storage)


def bounds_in_levels(bounds: tuple[float, float], encoding: Encoding) -> tuple[int, int]:
    """Round bounds to levels, half to even, within those of the type; an infinite one is the type's end.

    Rounding keeps the order of numbers, so that cutting levels at these is cutting the numbers before they are rounded.

    Args:
        bounds: the lower and the upper one, real units.
        encoding: of one scale.
    """
    ends = []
    for bound in bounds:
        level = bound if np.isinf(bound) else float(np.rint(np.float32(bound) / encoding.scale))
        ends.append(int(np.clip(level + int(encoding.zero_point), encoding.type.minimum, encoding.type.maximum)))
    return ends[0], ends[1]


def dequantize(levels: npt.ArrayLike, encoding: Encoding) -> FloatArray:
    """Write levels as real numbers: `(levels - zero_point) * scale`, the difference exact, one float32 product.

    Raises:
        PlanError: if the scale does not fit the shape.
    """
    integers = np.asarray(levels, dtype=np.int64)
    scale = spread(encoding.scale, encoding, integers.shape)
    zero_point = spread(encoding.zero_point, encoding, integers.shape)
    return (integers - zero_point).astype(np.float32) * scale


def round_trip(values: npt.ArrayLike, encoding: Encoding, *, rounding: Rounding = "half_even") -> FloatArray:
    """What is left of real numbers after quantization: `dequantize(quantize(values))`."""
    return dequantize(quantize(values, encoding, rounding=rounding), encoding)


def spread(parameters: npt.NDArray[Number], encoding: Encoding, shape: tuple[int, ...]) -> npt.NDArray[Number]:
    """Spread scales or zero points so that they broadcast over a tensor of that shape.

    Raises:
        PlanError: if there are not as many as the granularity asks for.
    """
    granularity = encoding.granularity
    if isinstance(granularity, PerTensor):
        return parameters
    expected = scale_shape(granularity, shape)
    if parameters.shape != expected:
        raise PlanError(
            f"expected scales of shape {expected} for a tensor of shape {shape} with {granularity}, "
            f"got {parameters.shape}"
        )
    axis = normalized_axis(granularity.axis, len(shape))
    if isinstance(granularity, PerAxis):
        return parameters.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    assert isinstance(granularity, PerBlock)
    return np.repeat(parameters, granularity.size, axis=axis).take(range(shape[axis]), axis=axis)
