"""Products with real multipliers in integers: each rule as its source writes it, and as an `IntegerRescale`.

A real multiplier is written as `q31 * 2^(shift - 31)`, `q31` an int32 of 31 bits (gemmlowp's fixed point; Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017, section 2.2). The
rules differ in how often they round and where a tie goes. The first function of each `Rule` follows its source step by
step; the second gives the closed form that computes the same in one step, and the tests compare them. In the sources
int32 overflows where a multiplier greater than 1 shifts a sum of 2^31 and more to the left. The first functions, in
int64, go on from there; a closed form's product then exceeds 62 bits, and the lowering refuses the layer
(`lowering.integer.fitting.within_62_bits`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

from narrowgauge.core.engines.rescale import FRACTION_BITS, ComputedRescale, IntegerRescale, Rescale, Sums

Integers = npt.NDArray[np.int64]
Limits = tuple[int, int]
"""The least and the greatest level that are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiplier:
    """Real multipliers in fixed point: `q31 * 2^(shift - 31)`.

    Attributes:
        q31: int64, 2^30 to 2^31 - 1, or 0; a quotient of such a number (`tflite_reference.mean`) may be less.
        shift: int64, the same shape, -31 to 30.
    """

    q31: Integers
    shift: Integers

    @property
    def left(self) -> Integers:
        """By how many bits the sum is shifted to the left before the product."""
        return np.maximum(self.shift, 0)

    @property
    def right(self) -> Integers:
        """By how many bits the product is shifted to the right after its 31."""
        return np.maximum(-self.shift, 0)


def quantized_multiplier(real: npt.ArrayLike) -> Multiplier:
    """Write real multipliers, 0 or more, in fixed point (TFLite, quantization_util.cc, QuantizeMultiplier)."""
    mantissa, exponent = np.frexp(np.asarray(real, dtype=np.float64))
    q31, shift = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64), np.asarray(exponent, dtype=np.int64)
    rounded_up = q31 == 2**31
    q31, shift = np.where(rounded_up, 2**30, q31), np.where(rounded_up, shift + 1, shift)
    vanished = shift < -31
    q31, shift = np.where(vanished, 0, q31), np.where(vanished, 0, shift)
    beyond = shift > 30
    return Multiplier(q31=np.where(beyond, 2**31 - 1, q31), shift=np.minimum(shift, 30))


def doubling_high_multiply(values: Integers, q31: Integers) -> Integers:
    """Multiply and take the high 32 bits of the doubled product, half up.

    gemmlowp, fixedpoint.h, SaturatingRoundingDoublingHighMul. Its only saturation, of the least int32 times itself,
    cannot happen: no `q31` is that.
    """
    product = values * q31
    nudge = np.where(product >= 0, 2**30, 1 - 2**30)
    quotient: Integers = np.asarray(truncated(product + nudge, 31))
    return quotient


def doubling_high_multiply_16_bits(values: npt.ArrayLike, q15: npt.ArrayLike) -> Integers:
    """Multiply and take the high 16 bits of the doubled product of int16, half up; -1 times -1 saturates.

    gemmlowp, fixedpoint.h, SaturatingRoundingDoublingHighMul.
    """
    product = np.asarray(values, dtype=np.int64) * np.asarray(q15, dtype=np.int64)
    return np.minimum(truncated(product + np.where(product >= 0, 2**14, 1 - 2**14), 15), 2**15 - 1)


def divide_by_power_of_two(values: Integers, exponent: npt.ArrayLike) -> Integers:
    """Divide by `2^exponent`, half away from zero (gemmlowp, fixedpoint.h, RoundingDivideByPOT)."""
    power = np.asarray(exponent, dtype=np.int64)
    mask = (np.int64(1) << power) - 1
    threshold = (mask >> 1) + (values < 0)
    return np.asarray((values >> power) + ((values & mask) > threshold))


def double_rounding(values: Integers, multiplier: Multiplier) -> Integers:
    """Round twice, the second time half away from zero (TFLite, common.cc, MultiplyByQuantizedMultiplier)."""
    high = doubling_high_multiply(values << multiplier.left, multiplier.q31)
    return divide_by_power_of_two(high, multiplier.right)


def neon_double_rounding(values: Integers, multiplier: Multiplier) -> Integers:
    """Round twice, the second time half up, as ARM's rounding shift does.

    TFLite, common.h, MultiplyByQuantizedMultiplier4Rows.
    """
    high = doubling_high_multiply(values << multiplier.left, multiplier.q31)
    return np.asarray((high + ((np.int64(1) << multiplier.right) >> 1)) >> multiplier.right)


def truncated_shift(values: Integers, multiplier: Multiplier) -> Integers:
    """Round once, then shift down, as ARM's shift by a negative number does (TFLite, optimized_ops.h, terms of ADD)."""
    high = doubling_high_multiply(values << multiplier.left, multiplier.q31)
    return np.asarray(high >> multiplier.right)


def single_rounding(values: Integers, multiplier: Multiplier) -> Integers:
    """Round once, half up (TFLite, common.cc, built with TFLITE_SINGLE_ROUNDING)."""
    shift = 31 - multiplier.shift
    return np.asarray((values * multiplier.q31 + (np.int64(1) << (shift - 1))) >> shift)


def rounding_16_bits(values: Integers, multiplier: Multiplier) -> Integers:
    """Multiply by 15 bits of the multiplier, round once, half up.

    TFLite, common.cc, MultiplyByQuantizedMultiplier of int64: sums of 16-bit activations.
    """
    reduced, shift = _reduced(multiplier), 15 - multiplier.shift
    return np.asarray((values * reduced + (np.int64(1) << (shift - 1))) >> shift)


def _reduced(multiplier: Multiplier) -> Integers:
    return np.where(multiplier.q31 < 0x7FFF0000, (multiplier.q31 + 2**15) >> 16, 0x7FFF)


def truncated(values: Integers, bits: int) -> Integers:
    """Divide by 2^bits towards zero, as C does."""
    return np.asarray(np.sign(values) * (np.abs(values) >> bits))


# --- closed forms


def double_rounding_form(multiplier: Multiplier, zero_point: int, limits: Limits) -> IntegerRescale:
    """Round twice, half away: with `e` bits to the right, `(xq + sign(x) 2^30 + 2^(30+e)) >> (31+e)`.

    The first rounding adds 2^30 to `xq`; the second adds half its unit, 2^(30+e), and takes 2^31 off for a negative
    result of the first. A product whose magnitude is below 2^30 becomes 0 either way.
    """
    right = multiplier.right
    sign = np.where(right > 0, 2**30, 0)
    addend = np.where(right > 0, np.int64(1) << (30 + right), 2**30)
    return integer_rescale(multiplier.q31 << multiplier.left, addend, 31 + right, (-sign, sign), zero_point, limits)


def neon_double_rounding_form(multiplier: Multiplier, zero_point: int, limits: Limits) -> IntegerRescale:
    """Round twice, half up: `(xq + 2^30 + 2^(30+e)) >> (31+e)`."""
    right = multiplier.right
    addend = 2**30 + np.where(right > 0, np.int64(1) << (30 + right), 0)
    return integer_rescale(multiplier.q31 << multiplier.left, addend, 31 + right, None, zero_point, limits)


def single_rounding_form(multiplier: Multiplier, zero_point: int, limits: Limits) -> IntegerRescale:
    """Round once, half up: `(xq + 2^(s-1)) >> s`."""
    shift = 31 - multiplier.shift
    return integer_rescale(multiplier.q31, np.int64(1) << (shift - 1), shift, None, zero_point, limits)


def form_16_bits(multiplier: Multiplier, zero_point: int, limits: Limits) -> IntegerRescale:
    """Round once, half up, with a multiplier of 15 bits: `(x q + 2^(s-1)) >> s`."""
    shift = 15 - multiplier.shift
    over = np.maximum(1 - shift, 0)  # a multiplier of 2^14 and more shifts to the left first
    shift = shift + over
    return integer_rescale(_reduced(multiplier) << over, np.int64(1) << (shift - 1), shift, None, zero_point, limits)


def truncated_mantissa_form(scale: npt.NDArray[np.float32], zero_point: int, limits: Limits) -> IntegerRescale:
    """Round once, half up, with the 24 bits of a float32 multiplier (XNNPACK, requantization.h, the rule rndnu).

    `(x m + 2^(s-1)) >> s` where the multiplier is `m 2^-s` exactly.
    """
    mantissa, exponent = np.frexp(np.asarray(scale, dtype=np.float64))
    multiplier, shift = np.asarray(mantissa * 2.0**24).astype(np.int64), 24 - np.asarray(exponent, dtype=np.int64)
    vanished = shift > 62  # less than half a level for every int32
    multiplier, shift = np.where(vanished, 0, multiplier), np.clip(shift, 1, 62)
    return integer_rescale(multiplier, np.int64(1) << (shift - 1), shift, None, zero_point, limits)


def half_away_form(real: npt.ArrayLike, zero_point: int, limits: Limits) -> Rescale:
    """Round `double(sum) * real` half away from zero: one product in float64 (TFLite's reference FULLY_CONNECTED).

    In integers where a multiplier of 31 bits, of 16-bit levels one of some 70, puts every change of level at the same
    sum, else as it is computed.
    """
    factor = np.asarray(real, dtype=np.float64)
    computed = _computed_half_away(factor, zero_point, limits)
    if limits[1] - limits[0] > 255:
        room = bool((factor < 2**14).all())  # for a product of 62 bits
        wide = room and _same_ties(factor, zero_point, limits)
        return _wide_half_away(factor, zero_point, limits) if wide else computed
    multiplier = quantized_multiplier(factor)
    shift = 31 - multiplier.shift
    # Rounded up, so that a sum whose product is a tie in float64 lies at or above the tie.
    up = np.minimum(np.ceil(factor * np.exp2(shift)).astype(np.int64), 2**31 - 1)
    form = integer_rescale(up, np.int64(1) << (shift - 1), shift, (-1, 0), zero_point, limits)
    return form if _same_steps(form, computed, factor) else computed


def _computed_half_away(factor: npt.NDArray[np.float64], zero_point: int, limits: Limits) -> ComputedRescale:
    def compute(sums: Sums) -> Integers:
        product = np.asarray(sums).astype(np.float64) * factor
        steps = np.sign(product) * np.floor(np.abs(product) + 0.5)
        # floor(p + 0.5) rounds the greatest float64 below a half up; C's round does not.
        steps = np.where(np.abs(product) == np.nextafter(0.5, 0), 0, steps)
        return np.asarray(np.clip(steps + zero_point, *limits), dtype=np.int64)

    channels = factor.size if factor.ndim else 0
    return ComputedRescale(compute=compute, channels=channels, low=limits[0], high=limits[1])


def _wide_half_away(factor: npt.NDArray[np.float64], zero_point: int, limits: Limits) -> IntegerRescale:
    """Round a product with every bit of the factor, of numbers below 2^14.

    The factor is raised by 2^-53 of itself: a product so near below a tie is one in float64.
    """
    shift = 61 - _reach(zero_point, limits).bit_length()  # products of sums that do not saturate have 62 bits
    raised = 2 ** (shift + FRACTION_BITS) * (1 + Fraction(1, 2**53))
    exact = [ceil(Fraction(one) * raised) for one in np.ravel(factor).tolist()]
    whole = np.array([one >> FRACTION_BITS for one in exact], dtype=np.int64).reshape(factor.shape)
    rest = np.array([one % 2**FRACTION_BITS for one in exact], dtype=np.int64).reshape(factor.shape)
    form = integer_rescale(whole, np.int64(1) << (shift - 1), shift, (-1, 0), zero_point, limits)
    return replace(form, fraction=rest)


def _reach(zero_point: int, limits: Limits) -> int:
    """Count the steps from the zero point to where levels saturate."""
    return max(abs(limits[0] - zero_point), abs(limits[1] - zero_point)) + 1


def _same_ties(factor: npt.NDArray[np.float64], zero_point: int, limits: Limits) -> bool:
    """Whether sums whose products lie next to a half, the only ones that may differ, are written as they are computed.

    Products of sums that do not saturate are less than 2^-37 of a level off in both.
    """
    halves = (np.arange(_reach(zero_point, limits) + 1) + 0.5)[:, None]
    for first in range(0, factor.size, 16):  # 16 channels of 32,770 halves at once
        part = np.ravel(factor)[first : first + 16]
        with np.errstate(divide="ignore", over="ignore"):
            near = np.rint(np.minimum(halves / part, 2.0**36))
        ties = np.where(np.abs(near * part - halves) < 2.0**-30, near, 0).astype(np.int64)
        ties = ties[ties.any(axis=1)]
        form, computed = _wide_half_away(part, zero_point, limits), _computed_half_away(part, zero_point, limits)
        if any((form.levels(sums) != computed.levels(sums)).any() for sums in (ties, -ties)):
            return False
    return True


def _same_steps(form: IntegerRescale, computed: ComputedRescale, factor: npt.NDArray[np.float64]) -> bool:
    """Whether both change their level at the same sums: at those around each product of a half, both signs."""
    if not factor.size:
        return True
    halves = np.arange(_reach(form.zero_point, (form.low, form.high)) + 1) + 0.5
    with np.errstate(divide="ignore", over="ignore"):
        near = np.rint(np.minimum(halves[:, None] / np.atleast_1d(factor), 2.0**31)).astype(np.int64)
    around = (near[None] + np.arange(-2, 3)[:, None, None]).reshape(-1, near.shape[1])
    sums = np.concatenate([around, -around])
    sums = sums if factor.ndim else sums[:, 0]
    return bool((form.levels(sums) == computed.levels(sums)).all())


def integer_rescale(
    multiplier: npt.ArrayLike,
    addend: npt.ArrayLike,
    shift: npt.ArrayLike,
    inner: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    zero_point: int,
    limits: Limits,
) -> IntegerRescale:  # fmt: skip
    """Return `(product + clip(product, *inner) + addend >> shift) + zero_point` within limits; all broadcast."""
    shape = np.shape(multiplier)
    below, above = inner or (0, 0)
    spread = [np.broadcast_to(np.asarray(one, dtype=np.int64), shape) for one in (addend, shift, below, above)]
    return IntegerRescale(
        multiplier=np.asarray(multiplier, dtype=np.int64), addend=spread[0], shift=spread[1], below=spread[2],
        above=spread[3], zero_point=zero_point, low=limits[0], high=limits[1],
    )  # fmt: skip


Multiply = Callable[[Integers, Multiplier], Integers]
"""(values, multiplier) -> products, as a source writes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One way of multiplying by a real multiplier.

    Attributes:
        literal: as the source writes it.
        form: (multiplier, zero point, limits) -> the same as a closed form, with the zero point added and saturated.
    """

    literal: Multiply
    form: Callable[[Multiplier, int, Limits], IntegerRescale]


DOUBLE_ROUNDING = Rule(literal=double_rounding, form=double_rounding_form)
NEON_DOUBLE_ROUNDING = Rule(literal=neon_double_rounding, form=neon_double_rounding_form)
SINGLE_ROUNDING = Rule(literal=single_rounding, form=single_rounding_form)
ROUNDING_16_BITS = Rule(literal=rounding_16_bits, form=form_16_bits)
