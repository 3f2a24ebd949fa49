"""Operators on one tensor that LiteRT computes in integers: each as a table of every level.

Sources are named below `tflite/kernels/` of google-ai-edge/LiteRT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import round_half_away
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import (
    Multiplier,
    Rule,
    divide_by_power_of_two,
    double_rounding,
    doubling_high_multiply_16_bits,
    quantized_multiplier,
)
from narrowgauge.core.engines.kernels import Bounds, WideSoftmaxForm, steps, storage_levels
from narrowgauge.core.engines.tflite_checks import check_alike, check_fixed_output
from narrowgauge.core.engines.tflite_tables import (
    Function,
    Table,
    limits_away,
    ratio_multiplier,
    saturated,
)
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError

Integers = npt.NDArray[np.int64]


def rescaled(input: Encoding, output: Encoding, bounds: Bounds, real: np.float64, rule: Rule) -> Table:
    """Table of levels from one encoding to another, `real` output steps for one of the input."""
    form = rule.form(ratio_multiplier(real), int(output.zero_point), limits_away(output, bounds))
    return form.levels(steps(input))


def leaky_relu(
    input: Encoding, output: Encoding, slope: float, rule: Rule, *, negative_multiplier: bool = False
) -> Table:
    """Each side of zero with its multiplier, of scales divided in float32 (internal/reference/leaky_relu.h).

    Where the slope is negative, the reference negates the product; vectors of 16 bits have a negative multiplier
    (internal/optimized/integer_ops/leaky_relu.h).
    """
    positive = ratio_multiplier(input.scale / output.scale)
    negative = ratio_multiplier(np.abs(input.scale * np.float32(slope) / output.scale))
    values, sign = steps(input), -1 if slope < 0 else 1
    if negative_multiplier:
        falling = rule.literal(values, Multiplier(q31=sign * negative.q31, shift=negative.shift))
    else:
        falling = sign * rule.literal(values, negative)
    return saturated(np.where(values >= 0, rule.literal(values, positive), falling) + int(output.zero_point), output)


def slopes_encoding(slopes: npt.NDArray[np.float32], kind: IntegerType) -> Encoding:
    """How a file rounds the slopes of a PRELU of levels: plans have no encoding of theirs.

    Args:
        slopes: real numbers.
        kind: of the levels, 8 bits; the slopes are 8 bits around zero.
    """
    reach = np.float32(np.abs(slopes).max(initial=0) / 127)
    return Encoding(
        type=kind, granularity=PerTensor(), scale=np.asarray(reach or np.float32(1), dtype=np.float32),
        zero_point=np.asarray(0 if kind.signed else 128, dtype=np.int32),
    )  # fmt: skip


def absolute(input: Encoding, output: Encoding, rule: Rule) -> Table:
    """Magnitudes, rescaled where the scales differ (elementwise.cc, AbsEvalQuantized)."""
    values = np.abs(steps(input))
    if input.scale != output.scale:
        values = rule.literal(values, ratio_multiplier(input.scale / output.scale))
    return saturated(values + int(output.zero_point), output)


def hard_swish(input: Encoding, output: Encoding) -> Table:
    """`x * relu6(x + 3) / 6` in 16-bit fixed point (internal/reference/hard_swish.h; activations.cc, HardSwishPrepare).

    Raises:
        PlanError: the output's scale is less than 1/128 of the input's, which LiteRT refuses.
    """
    fine = np.float32(1 / 128) * input.scale
    to_output = quantized_multiplier(fine / output.scale)
    to_unit = quantized_multiplier(fine / np.float32(3 / 32768))
    if to_output.shift > 0:
        raise PlanError(
            f"expected the output of HardSwish to have a scale of more than 1/128 of the input's, as LiteRT asks, got "
            f"{float(output.scale):g} and {float(input.scale):g}"
        )
    values = steps(input) * 128
    on_output = doubling_high_multiply_16_bits(values, _downscaled(to_output.q31))
    shift = int(to_unit.shift)
    unit = np.clip(values << max(shift - 1, 0), -(2**15), 2**15 - 1)  # of [-3, 3]: 16 bits
    unit = doubling_high_multiply_16_bits(unit, _downscaled(to_unit.q31))
    if shift > 0:
        unit = np.clip(unit * 2, -(2**15), 2**15 - 1)
    elif shift < 0:
        unit = divide_by_power_of_two(unit, -shift)
    unit = (unit + 2**15) >> 1  # of [0, 1]: 15 bits
    product = unit * on_output
    towards_zero = np.sign(product) * (np.abs(product) >> 15)
    levels = divide_by_power_of_two(towards_zero, -to_output.shift) + int(output.zero_point)
    return saturated(levels, output)


def _downscaled(q31: Integers) -> Integers:
    """Fixed point of 15 bits (internal/common.h, DownScaleInt32ToInt16Multiplier)."""
    return np.asarray(np.minimum((q31 + 2**15) >> 16, 2**15 - 1))


# --- 16-bit levels


def function_table_16_bits(function: Function, input: Encoding, output: Encoding) -> Table:
    """Table of a function of 16-bit levels: 512 straight pieces (internal/common.h, LUTPopulate and LUTLookup)."""
    return looked_up(pieces(function, float(input.scale), 0, float(output.scale), np.float32), storage_levels(input))


def pieces(
    function: Callable[[Any], Any], scale: float, zero_point: int, output_scale: float, kind: type[np.floating[Any]]
) -> Integers:
    """Ends of the 512 pieces, int64, shape (513,): each moved by half of what its middle is off.

    Args:
        function: of real numbers of that kind.
        scale: of the levels that are looked up.
        zero_point: of those.
        output_scale: of the levels that come out, zero point 0.
        kind: float32 or float64, in which all is computed.

    Raises:
        PlanError: the function's numbers are beyond float32.
    """
    low, high = (kind(scale) * kind(limit - zero_point) for limit in (-(2**15), 2**15 - 1))
    step = (high - low) / kind(512)
    places = low + np.arange(513).astype(kind) * step
    inverse = kind(2**16) / (kind(output_scale) * kind(2**15 - 1) - kind(output_scale) * kind(-(2**15)))
    with np.errstate(over="ignore"):
        exact, middles = function(places) * inverse, function(places[:-1] + step / kind(2)) * inverse
    if not (np.isfinite(exact).all() and np.isfinite(middles).all()):
        raise PlanError(f"expected the function of 16-bit levels of scale {scale:g} to stay within float32")
    sampled = round_half_away(exact)[:-1]
    halfway = round_half_away((exact[1:] + sampled) / kind(2))
    starts = sampled - round_half_away((halfway - round_half_away(middles)) / kind(2))
    last = round_half_away(function(np.asarray([high])) * inverse)
    ends: Integers = np.clip(np.concatenate([starts, last]), -(2**15), 2**15 - 1).astype(np.int64)
    return ends


def looked_up(ends: Integers, levels: Integers) -> Integers:
    """Interpolate between the ends of pieces, half up; levels are int16."""
    index, offset = 256 + (levels >> 7), levels & 127
    slope = ends[index + 1] - ends[index]
    return np.asarray(ends[index] + ((slope * offset + 64) >> 7))


def wide_softmax(input: Encoding, output: Encoding) -> WideSoftmaxForm:
    """Softmax of 16-bit levels by two tables of 512 pieces (internal/reference/softmax.h, SoftmaxInt16).

    Differences are written in units of 10 / 65535: below -10 the exponential is what it is there.

    Raises:
        PlanError: another type, or an output without scale 1/32768.
    """
    check_alike("Softmax", input, output)
    if input.type.bits != 16:
        raise PlanError(f"expected 16-bit levels, got {input.type.name}")
    check_fixed_output("Softmax", output, 1 / 32768, 0)
    multiplier = ratio_multiplier(np.float64(input.scale) / (10 / 65535))
    differences = double_rounding(-np.arange(2**16, dtype=np.int64), multiplier) + 2**15 - 1
    exponentials = pieces(np.exp, 10 / 65535, 2**15 - 1, 2 / 65535, np.float64)
    reciprocals = pieces(lambda x: 1 / (1 + x), 1 / 65535, -(2**15), 2 / 65535, np.float64)
    return WideSoftmaxForm(
        exponentials=looked_up(exponentials, np.maximum(differences, -(2**15))),
        reciprocals=looked_up(reciprocals, storage_levels(input)),
    )


def _sigmoid_table() -> Integers:
    """sigmoid(i / 24) in 16 bits, i of 0 to 255 (internal/common.h, sigmoid_table_uint16).

    Each raised by half of what the straight line to the next misses in its middle; the last one is 1.
    """
    exact = 2**16 / (1 + np.exp(-np.arange(0, 256.5, 0.5) / 24))
    starts, middles, ends = exact[:-2:2], exact[1:-1:2], exact[2::2]
    table = np.rint(starts + (middles - (starts + ends) / 2) / 2).astype(np.int64)
    return np.append(table[:255], 2**16 - 1)


_SIGMOIDS = _sigmoid_table()


def _twelve_bits(input: Encoding, powers: tuple[int, ...]) -> tuple[int, int]:
    """Multiplier and right shift to units of 1/(3 * 4096); shift -1: a power of two, to be shifted by the multiplier.

    `powers`: the left shifts that power-of-two scales may need (activations.cc, SigmoidPrepare and TanhPrepare).
    """
    mantissa, exponent = np.frexp(input.scale)
    left = 12 + int(exponent) - 1
    if mantissa == 0.5 and left in powers:
        return left, -1
    multiplier, shift = np.float64(input.scale) * 4096 * 3, 0
    while multiplier <= 32767 / 2 and shift <= 30:
        multiplier, shift = multiplier * 2, shift + 1
    return int(multiplier), shift


def sigmoid_16_bits(input: Encoding) -> Table:
    """Sigmoid of 16-bit levels, output scale 1/32768 (internal/reference/integer_ops/logistic.h)."""
    multiplier, shift = _twelve_bits(input, (0,))
    if shift < 0:
        multiplier, shift = 3 << multiplier, 0
    values = (steps(input) * multiplier + (1 << shift >> 1)) >> shift
    result = _interpolated(np.abs(values), 9, (2**15 - 1) << 10)
    result = np.where(values >= 0, result + 2**9, 2**25 - result + 2**9 - 1)
    return np.asarray(result >> 10)


def tanh_16_bits(input: Encoding) -> Table:
    """Tanh of 16-bit levels as `2 sigmoid(2x) - 1`, output scale 1/32768 (integer_ops/tanh.h)."""
    multiplier, shift = _twelve_bits(input, (0, 1))
    if shift < 0:
        multiplier, shift = 3 << multiplier, 0
    values = (steps(input) * multiplier + (1 << shift >> 1)) >> shift
    result = _interpolated(np.abs(values), 8, (2**16 - 1) << 8)
    result = np.where(values >= 0, result - 2**23 + 2**7, -result + 2**23 + 2**7 - 1)
    return np.asarray(result >> 8)


def _interpolated(magnitudes: Integers, bits: int, greatest: int) -> Integers:
    """Interpolate between the sigmoids: the number's low `bits` are the place between two of them."""
    index, place = magnitudes >> bits, magnitudes & ((1 << bits) - 1)
    inside = np.minimum(index, 254)
    between = (_SIGMOIDS[inside] << bits) + place * (_SIGMOIDS[inside + 1] - _SIGMOIDS[inside])
    return np.where(index >= 255, greatest, between)
