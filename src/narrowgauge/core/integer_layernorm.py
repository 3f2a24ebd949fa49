"""LayerNormalization of levels in integers: mean, variance, square root, and gain and bias folded into integers.

Input levels have one scale `base`, and a shift and a zero point for each channel (`power_of_two_factor`). The base
cancels, but for epsilon: with `X = (level - zero_point) << shift` of `C` channels

    D = C X - sum(X),    V = C sum(X^2) - sum(X)^2 + epsilon C^2 / base^2,    (x - mean) / sqrt(variance + epsilon)
    = D / sqrt(V),       |D| <= sqrt(C - 1) sqrt(V).

That last bound is what keeps everything behind the square root small. FQ-ViT ("Power-of-Two Factor for Integer
LayerNorm") writes the same mean and variance; their code leaves epsilon out, so that a row of equal numbers becomes
NaN, and computes square root, division and folding in float (models/ptq/layers.py, QIntLayerNorm). Here all is integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.integer_logarithm import floor_log2, integer_square_root
from narrowgauge.core.integer_width import Integers, shift_half_up, within
from narrowgauge.core.power_of_two_factor import factor_of
from narrowgauge.errors import PlanError

Width = Literal[32, 64]
"""Of products: 32 bits, or 64 as chips that multiply 32 by 32 bits have them."""

_MARGIN = 1.001
"""Above 1 by more than root, reciprocal and rounding add to `d r`: 2^-13 of it and half a unit of `n`."""

_LEAST_NORMAL_BITS = 8
"""With fewer, half a unit of `n` would exceed that margin."""

_MOST_EPSILON_BITS = 8

_MOST_ERROR = 0.5
"""A level off by more than a tie explains is a wrong number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNormForm:
    """The integers of one LayerNormalization over the last axis.

    With `w` the width of products, `R = w / 2 - 1`, and in brackets the bits, the sign's included, of ViT-Ti: C = 192,
    8-bit levels, shifts up to 5, w = 32:

    | step | bits with the sign |
    |---|---|
    | `X = (level - zero_point) << shift` | those of a level + 1 + the greatest shift (14) |
    | `sum(X)`, `D = C X - sum(X)` | those of X + log2 C + 1, at most w (23) |
    | `V` and the two sums of squares in it, numbers of a row | 64 (43) |
    | `t = (floor(log2 V) - (2R - 2)) >> 1`, `m = V >> 2t` (`<<` where negative) | 2R + 1 (31) |
    | `root = round(sqrt(m))`, `2^(R-1)` to `2^R` | R + 2 (17) |
    | `r = (2^(2R) + (root >> 1)) // root`, `2^R` to `2^(R+1)` | R + 3 (18) |
    | `d = (D + half) >> (t + guard - epsilon_bits)`, up to `2^(R+1)` | R + 3 (18) |
    | `n = (d r + half) >> (2R - guard - normal_bits)` | its product w (32) |
    | `level = (n multiplier + addend) >> shift_out`, then cut | w (32): `layernorm_form` checks |

    So with products of 32 bits all but a row's sums of squares is int32. `V` counts in units of `2^(-2 epsilon_bits)`,
    so that an epsilon of less than a unit is not lost. A `V` of 0 (epsilon 0, all X equal) counts as 1: D is 0 then,
    and the output is the bias. A shift by a row's own `s` can be a product, where that is easier:
    `(D 2^(J - s) + 2^(J - 1)) >> J` of any constant J that no `s` exceeds.

    Attributes:
        shifts: of the input's channels, int64, shape (channels,).
        zero_points: of the input's channels, likewise.
        epsilon: `epsilon C^2 / base^2` in units of `2^(-2 epsilon_bits)`.
        epsilon_bits: see above.
        root_bits: R, 15 or 31.
        guard: bits that `d` leaves for `sqrt(C - 1)`.
        normal_bits: bits of `n` behind the point.
        multipliers: gain over output scale, times `2^(shift_out - normal_bits)`, shape (channels,).
        addends: bias over output scale, zero point and half a level, times `2^shift_out`, shape (channels,).
        shift_out: bits behind the point of the last product.
        low: least level that is written.
        high: greatest level.
    """

    shifts: Integers
    zero_points: Integers
    epsilon: int
    epsilon_bits: int
    root_bits: int
    guard: int
    normal_bits: int
    multipliers: Integers
    addends: Integers
    shift_out: int
    low: int
    high: int

    def levels(self, levels: Integers) -> Integers:
        """Normalize rows [..., channels] of input levels; levels, the same shape."""
        width, channels, top = 2 * self.root_bits + 2, len(self.shifts), 2 * self.root_bits
        spread = (np.asarray(levels, dtype=np.int64) - self.zero_points) << self.shifts
        total = spread.sum(axis=-1, keepdims=True)
        difference = within(channels * spread - total, width)
        squares = np.square(spread).sum(axis=-1, keepdims=True)
        exact = channels * squares - total * total
        variance = np.maximum((exact << (2 * self.epsilon_bits)) + self.epsilon, 1)
        halvings = (floor_log2(variance) - (top - 2)) >> 1
        magnitude = within((variance >> np.maximum(2 * halvings, 0)) << np.maximum(-2 * halvings, 0), top + 1)
        root = integer_square_root(magnitude)
        root = within(root + (magnitude - root * root > root), self.root_bits + 2)
        reciprocal = within((2**top + (root >> 1)) // root, self.root_bits + 3)
        scaled = within(shift_half_up(difference, halvings + self.guard - self.epsilon_bits), self.root_bits + 3)
        normal_shift = top - self.guard - self.normal_bits
        normal = within(scaled * reciprocal + (1 << (normal_shift - 1)), width) >> normal_shift
        product = within(normal * self.multipliers + self.addends, width)
        return np.asarray(np.clip(product >> self.shift_out, self.low, self.high))

    @property
    def error(self) -> float:
        """The most by which a level before it is rounded and cut may be off, in levels.

        Half a unit of `d` (at most `2^(guard - R)` of a standard deviation) and of `n`, times the greatest gain; half a
        unit of a multiplier, times `sqrt(C - 1)`; root and reciprocal together `2^(1 - R)` of what lies between the
        bias and the farthest level; half a unit of an addend. Compared with real numbers, rounded half up, a level
        differs only where the real one lies so near to a tie.
        """
        fraction = self.shift_out - self.normal_bits
        gain = float(np.max(np.abs(self.multipliers))) * 2.0**-fraction
        unit = 2.0 ** (self.guard - self.root_bits) + 2.0 ** (-self.normal_bits - 1)
        offsets = self.addends * 2.0**-self.shift_out
        most = math.sqrt(len(self.shifts) - 1)
        farthest = float(np.max(np.maximum(offsets - self.low, self.high - offsets))) + 1
        relative = min(farthest, gain * most) * 2.0 ** (1 - self.root_bits)
        return gain * unit + most * 2.0 ** (-fraction - 1) + relative + 2.0**-self.shift_out


def layernorm_form(
    input: Encoding,
    output: Encoding,
    *,
    gain: npt.ArrayLike,
    bias: npt.ArrayLike,
    epsilon: float,
    width: Width = 32,
) -> LayerNormForm:  # fmt: skip
    """Find the integers of a LayerNormalization over the last axis.

    Bits behind the point of `n` and of the multipliers are shared out so that both cost the same: of the products'
    bits those that the greatest level leaves, `n` takes half and `log2(greatest gain / sqrt(C - 1)) / 2` more. Measured
    against float64 on 384000 levels of 8 bits: with products of 32 bits 0.3 % differ, each within 0.013 of a tie; with
    products of 64 bits none.

    Args:
        input: one scale, or one for each channel that are powers of two of each other.
        output: one scale, or one for each channel.
        gain: gamma, real numbers, shape (channels,).
        bias: beta, likewise.
        epsilon: added to the variance, 0 or more.
        width: of products.

    Raises:
        PlanError: shapes differ, gain or bias is not finite, scales are no powers of two of each other, or epsilon is
            negative; or numbers do not fit: a row's squares 62 bits, a difference or the last product the width; or
            levels would be off by half a one, as 16-bit ones are with products of 32 bits.
    """
    gamma, beta = np.asarray(gain, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    channels = gamma.size
    if gamma.ndim != 1 or gamma.shape != beta.shape or not channels:
        raise PlanError(f"expected a gain and a bias for each channel, got shapes {gamma.shape} and {beta.shape}")
    if not (np.isfinite(gamma).all() and np.isfinite(beta).all()):
        raise PlanError("expected finite gains and biases, got NaN or infinity")
    factor = factor_of(input)
    if {factor.shifts.size, output.scale.size} - {1, channels}:
        raise PlanError(f"expected one scale or {channels}, got {factor.shifts.size} and {output.scale.size}")
    shifts, zero_points = np.broadcast_to(factor.shifts, channels), np.broadcast_to(factor.zero_points, channels)
    widest = _spread(input, shifts, zero_points)
    constant, epsilon_bits = _epsilon(epsilon, channels, factor.base, widest)
    if channels * (widest[1] - widest[0]) >= 15 << (width - 5):  # the rest is room for half a unit of `d`
        raise PlanError(f"{channels} channels of {input.type.name} with these shifts do not fit {width} bits; use 64")
    reach = math.sqrt(channels - 1) * _MARGIN
    guard = max(math.ceil(math.log2(max(reach, 1))) - 1, 0)
    scale = np.broadcast_to(output.scale.astype(np.float64), channels)
    gains, low, high = gamma / scale, output.type.minimum, output.type.maximum
    # Farther outside every level of the channel is cut, as it is there.
    margin = reach * np.abs(gains) + 1
    offsets = np.clip(beta / scale + output.zero_point, low - margin, high + margin)
    normal_bits, shift_out = _share(gains, offsets, reach, guard, width)
    fraction = shift_out - normal_bits
    half = np.int64(1) << (shift_out - 1)
    form = LayerNormForm(
        shifts=shifts, zero_points=zero_points, epsilon=constant, epsilon_bits=epsilon_bits,
        root_bits=width // 2 - 1, guard=guard, normal_bits=normal_bits, shift_out=shift_out,
        multipliers=np.rint(gains * 2.0**fraction).astype(np.int64),
        addends=np.rint(offsets * 2.0**shift_out).astype(np.int64) + half,
        low=low, high=high,
    )  # fmt: skip
    if form.error > _MOST_ERROR:
        raise PlanError(f"with products of {width} bits a level would be off by up to {form.error:.2g}; use 64")
    return form


def _spread(input: Encoding, shifts: Integers, zero_points: Integers) -> tuple[int, int]:
    """Return the least and the greatest X of any channel."""
    low = (input.type.minimum - zero_points) << shifts
    high = (input.type.maximum - zero_points) << shifts
    return int(low.min()), int(high.max())


def _epsilon(epsilon: float, channels: int, base: float, widest: tuple[int, int]) -> tuple[int, int]:
    """Return epsilon in units of V, and how many bits of them stand behind the point, halved."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise PlanError(f"expected an epsilon of 0 or more, got {epsilon}")
    real = epsilon * (channels / base) ** 2
    greatest = real + (channels * float(max(widest[1], -widest[0]))) ** 2 + 1
    bits = min((62 - math.ceil(math.log2(greatest))) // 2, _MOST_EPSILON_BITS) if math.isfinite(greatest) else -1
    if bits < 0:
        raise PlanError(
            f"the squares of {channels} channels, and epsilon {epsilon} in squares of the input's scale {base}, "
            "exceed 62 bits; use fewer bits or smaller shifts"
        )
    return round(math.ldexp(real, 2 * bits)), bits


def _share(
    gains: npt.NDArray[np.float64], offsets: npt.NDArray[np.float64], reach: float, guard: int, width: Width
) -> tuple[int, int]:
    """Share the bits of the last product out: those of `n` behind the point, and those of the product."""
    gain = float(np.abs(gains).max())
    greatest = reach * gain + float(np.abs(offsets).max()) + 1
    product_bits = math.floor(width - 1 - math.log2(greatest))
    most = min(width - 3 - guard, width - 2 - math.ceil(math.log2(max(reach, 1))))
    for shift_out in (product_bits, product_bits - 1, product_bits - 2):
        wanted = (shift_out + math.log2(max(gain, 2.0**-30) / max(reach, 1))) / 2
        normal_bits = int(np.clip(round(wanted), _LEAST_NORMAL_BITS, most))
        if shift_out >= 1 and _fits(gains, offsets, reach, (normal_bits, shift_out), width):
            return normal_bits, shift_out
    raise PlanError(f"levels up to {greatest:.3g} before they are cut do not fit products of {width} bits; use 64")


def _fits(
    gains: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.float64],
    reach: float,
    bits: tuple[int, int],
    width: Width,
) -> bool:
    """Whether `n multiplier + addend` fits: with the greatest `n`, the greatest rounding, and half a level."""
    normal_bits, shift_out = bits
    normal = reach * 2.0**normal_bits + 1
    multipliers = np.abs(gains) * 2.0 ** (shift_out - normal_bits) + 0.5
    addends = np.abs(offsets) * 2.0**shift_out + 2.0 ** (shift_out - 1) + 1
    return bool((normal * multipliers + addends < 2.0 ** (width - 1)).all())
