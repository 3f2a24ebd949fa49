"""What LiteRT's kernels share whatever computes the sums: bounds, biases, tables of functions, softmax, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import bounds_in_levels, round_half_away
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import Multiplier, integer_rescale, quantized_multiplier
from narrowgauge.core.engines.kernels import Bounds, Layer, SoftmaxForm, steps, storage_levels, storage_limits
from narrowgauge.core.engines.rescale import IntegerRescale
from narrowgauge.core.engines.tflite_checks import check_alike, check_count, check_fixed_output
from narrowgauge.errors import PlanError

Table = npt.NDArray[np.int64]
Real = npt.NDArray[np.float32]

Function = Callable[[Real], Real]


def rounded(function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Function:
    """Compute a function exactly and round it to float32, as C's mathematical functions of float nearly always do."""

    def compute(real: Real) -> Real:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return function(real.astype(np.float64)).astype(np.float32)

    return compute


_exp = rounded(np.exp)


def sigmoid(real: Real) -> Real:
    """`1 / (1 + exp(-x))`, each step in float32."""
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + _exp(-real))


def _gelu(real: Real) -> Real:
    """`0.5 x erfc(-x / sqrt 2)`, each step in float32 (gelu.h)."""
    inside = real * np.float32(-np.sqrt(0.5))
    complement = np.array([math.erfc(x) for x in inside.tolist()], dtype=np.float32)
    return np.float32(0.5) * real * complement


def _gelu_by_tanh(real: Real) -> Real:
    """`0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, each step in float32 (gelu.h)."""
    inside = np.float32(np.sqrt(2 / np.pi)) * (real + np.float32(0.044715) * real * real * real)
    return np.float32(0.5) * real * (np.float32(1) + rounded(np.tanh)(inside))


def real_function(operator: str, attributes: Mapping[str, Any], output: Encoding) -> Function:
    """Return the function of real numbers that LiteRT has as a table of levels; the output's encoding is Log's.

    Raises:
        PlanError: it has none.
    """
    least = np.float32(output.scale * np.float32(storage_limits(output)[0] - int(output.zero_point)))
    functions: dict[str, Function] = {
        "Sigmoid": sigmoid,
        "Tanh": rounded(np.tanh),
        "Exp": rounded(np.exp),
        "Gelu": _gelu_by_tanh if attributes.get("approximate", "none") == "tanh" else _gelu,
        "Log": lambda x: np.where(x > 0, rounded(np.log)(x), least),  # elementwise.cc, LogLUTPrepare
    }
    if attributes.get("alpha", 1.0) == 1.0:
        functions["Elu"] = lambda x: np.where(x < 0, rounded(np.expm1)(x), x)
    if operator not in functions:
        raise PlanError(f"no integer arithmetic of LiteRT is known for {operator} {dict(attributes) or ''}".rstrip())
    return functions[operator]


def ratio_multiplier(real: npt.ArrayLike) -> Multiplier:
    """Write how many steps of the output one of the input is in fixed point.

    Raises:
        PlanError: so many that a level could overflow.
    """
    if np.asarray(real) >= 2**15:
        raise PlanError(
            f"expected a step of the input to be fewer than 32768 of the output, got {float(np.max(real)):g}"
        )
    return quantized_multiplier(real)


def bias_levels(layer: Layer) -> npt.NDArray[np.int64] | None:
    """Bias in units of the sum, float32(input scale * weight scale): int32, of 16-bit activations int64.

    Real numbers of float32 are divided in float32, as where a file's levels are made; those of float64 are levels that
    come back.

    Raises:
        PlanError: the unit is 0 in float32.
    """
    if layer.bias is None:
        return None
    real = np.asarray(layer.bias)
    unit = np.asarray(layer.input.scale * layer.weights.scale).astype(real.dtype)
    if not (unit > 0).all():
        raise PlanError("expected scales of a layer's input and weights whose product is a float32 number above 0")
    limits = np.iinfo(np.int32)
    levels = np.rint(real / unit).astype(np.float64)
    bounded = levels if layer.input.type.bits == 16 else np.clip(levels, limits.min, limits.max)
    return np.asarray(bounded, dtype=np.int64)


ACTIVATION_BOUNDS = frozenset({(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)})
"""Bounds that TFLite's operators apply themselves: none, RELU, RELU6, RELU_N1_TO_1 (schema.fbs).

Others are operators behind them in the file, MAXIMUM and MINIMUM of levels, see `bounds_in_levels`.
"""


def kernel_name(operator: str, bounds: Bounds) -> str:
    """Return what runs for an operator: a Clip that is no activation function is a QUANTIZE, its levels cut after it.

    So `exporters.tflite` writes it.
    """
    return "Requantize" if operator == "Clip" and bounds not in ACTIVATION_BOUNDS else operator


def limits_away(output: Encoding, bounds: Bounds) -> tuple[int, int]:
    """Levels of a fused activation's bounds: zero point + bound / scale rounded half away from zero, in float32.

    TFLite, kernel_util.cc, CalculateActivationRangeQuantized. Of other bounds: see `ACTIVATION_BOUNDS`.
    """
    if bounds not in ACTIVATION_BOUNDS:
        return bounds_in_levels(bounds, output)
    zero_point, (low, high) = int(output.zero_point), storage_limits(output)
    levels = round_half_away(_bounds(bounds) / output.scale).astype(np.float64) + zero_point
    return _ordered(np.clip(levels, low, high))


def limits_even(output: Encoding, bounds: Bounds) -> tuple[int, int]:
    """Levels of a fused activation's bounds: bound / scale + zero point rounded half to even, in float32.

    XNNPACK, operator-utils.h, xnn_qs8_quantize. Of other bounds: see `ACTIVATION_BOUNDS`.
    """
    if bounds not in ACTIVATION_BOUNDS:
        return bounds_in_levels(bounds, output)
    low, high = storage_limits(output)
    levels = np.rint(_bounds(bounds) / output.scale + output.zero_point.astype(np.float32))
    return _ordered(np.clip(levels, low, high))


def _bounds(bounds: Bounds) -> Real:
    with np.errstate(over="ignore"):
        return np.asarray(bounds, dtype=np.float32)


def _ordered(levels: npt.NDArray[np.floating]) -> tuple[int, int]:
    return int(levels[0]), int(max(levels))


def function_table(function: Function, input: Encoding, output: Encoding) -> Table:
    """Table of a function of 8-bit levels, each step in float32, half away (TFLite, common.h, LUTPopulate)."""
    with np.errstate(over="ignore", invalid="ignore"):
        steps_out = round_half_away(function(real_levels(input)) * (np.float32(1) / output.scale))
    return saturated(steps_out.astype(np.float64) + int(output.zero_point), output)


def real_levels(encoding: Encoding) -> Real:
    """Real number of each level of the storage type, float32."""
    return np.asarray(steps(encoding).astype(np.float32) * encoding.scale)


def saturated(levels: npt.NDArray[np.floating] | npt.NDArray[np.integer], output: Encoding) -> Table:
    """Return numbers within the type that stores the output's levels."""
    return np.asarray(np.clip(levels, *storage_limits(output)), dtype=np.int64)


def concatenated(input: Encoding, output: Encoding) -> Table:
    """Levels of an input of CONCATENATION: as they are where the scales agree; uint8 otherwise rescaled in float32.

    TFLite, concatenation.h, ConcatenationWithScaling; int8 is refused there.

    Raises:
        PlanError: other types whose scales differ.
    """
    check_alike("Concat", input, output)
    if input.scale == output.scale and input.zero_point == output.zero_point:
        return storage_levels(input)
    if input.type.signed:
        raise PlanError(f"expected one scale for all of a Concat of {input.type.name}, as LiteRT asks, got several")
    ratio = np.asarray(input.scale * (np.float32(1) / output.scale), dtype=np.float32)
    shifted = storage_levels(input).astype(np.float32) * ratio + np.float32(-int(input.zero_point)) * ratio
    return saturated(round_half_away(shifted).astype(np.float64) + int(output.zero_point), output)


def average_pool(input: Encoding, output: Encoding, count: int) -> IntegerRescale:
    """Sum of `count` levels divided by it, half away from zero (TFLite, integer_ops/pooling.h, AveragePool).

    As a product with `2^shift / count` rounded up. What that adds to the quotient stays below `levels * count /
    2^shift`, less than the 1 / (2 count) that parts a quotient from the next tie.

    Raises:
        PlanError: input and output differ, or the window is too large for that.
    """
    check_alike("AveragePool", input, output)
    check_count("AveragePool", count)
    if not input.same_as(output):
        raise PlanError("expected input and output of AveragePool to share scale and zero point, as LiteRT's do")
    shift = 61 - input.type.storage.itemsize * 8  # the product of any sum has 61 bits
    if count**2 >= 1 << (shift - 1 - input.type.storage.itemsize * 8):
        raise PlanError(f"expected a window of AveragePool of fewer cells, got {count}")
    low, high = storage_limits(output)
    return integer_rescale(-(-(1 << shift) // count), 1 << (shift - 1), shift, (-1, 0), 0, (low, high))


def softmax(input: Encoding, output: Encoding, count: int) -> SoftmaxForm:
    """Softmax of 8-bit levels: a table of `exp(-scale * difference)` in float32 (TFLite, optimized_ops.h, Softmax).

    LiteRT adds the exponentials in float32, multiplies by `1 / float32(sum / 256)` and rounds half to even. Its
    reference kernel does all in gemmlowp's fixed point. Measured with sums as they are here: of 2,808,000 levels 1 of
    the one and 27 of the other differ by one.

    Raises:
        PlanError: another type, or an output without scale 1/256 and its zero point at the least level.
    """
    check_alike("Softmax", input, output)
    if input.type.bits != 8:
        raise PlanError(f"expected 8-bit levels of Softmax, got {input.type.name}")
    low, high = storage_limits(output)
    check_fixed_output("Softmax", output, 1 / 256, low)
    differences = np.arange(256, dtype=np.float32)
    exponentials = np.exp((-input.scale * differences).astype(np.float64)).astype(np.float32)
    return SoftmaxForm(exponentials=exponentials, steps=256, zero_point=low, low=low, high=high)


def divided(bits: int, output: Encoding, *, half_away: bool) -> IntegerRescale:
    """Divide levels by 2^bits, half away from zero or half up."""
    return integer_rescale(1, 1 << bits >> 1, bits, (-int(half_away), 0), 0, storage_limits(output))
