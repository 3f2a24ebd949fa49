"""Power-of-two factors: one scale for a tensor and a small shift for each channel, so that channels add up in integers.

`real = base 2^shift (level - zero_point)`. The residual stream of a vision transformer has channels whose ranges differ
by a hundred times; one scale rounds the ordinary ones away, and a scale of each channel's own would take a product for
each number before a LayerNormalization could add them up. With shifts that is `(level - zero_point) << shift`.

Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, "Power-of-Two Factor for
Integer LayerNorm". Their rule has one zero point, so that a channel with a small shift loses the side that the zero
point leaves it (of [-588, 39] nearly all above zero). In an integer LayerNormalization a zero point for each channel
costs nothing. SQNR behind the 25 LayerNormalizations of ViT-Ti, their inputs rounded to 8 bits, mean and worst in dB
(24 images calibrate, 8 are measured):

| encoding | mean | worst |
|---|---|---|
| one scale | 20.6 | 2.2 |
| FQ-ViT's, shifts up to 3 | 29.2 | 15.3 |
| shifts up to 3, a zero point for each channel | 31.5 | 19.3 |
| shifts up to 5 | 34.6 | 27.8 |
| shifts up to 5, no channel clipped (chosen from extremes alone) | 34.4 | 27.7 |
| shifts up to 7 | 34.9 | 28.9 |
| a scale of its own for each channel | 35.6 | 29.7 |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import MOST_SHIFT, Encoding
from narrowgauge.core.granularity import PowerOfTwoFactor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import SMALLEST_SCALE
from narrowgauge.errors import PlanError

Real = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

USUAL_SHIFT = 5
"""Beyond it there is little to win (see above), and every shift is a bit more in the sums behind."""

_BASES = np.exp2(np.arange(8) / 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelFactor:
    """One scale, and a shift and a zero point for each channel.

    Attributes:
        base: real value of one step with shift 0; a float32.
        shifts: int64, shape (channels,), 0 or more.
        zero_points: levels of real 0, int64, the same shape.
    """

    base: float
    shifts: Integers
    zero_points: Integers

    @property
    def scales(self) -> npt.NDArray[np.float32]:
        """Real value of one step of each channel, exact: a power of two times the base."""
        return np.ldexp(np.float32(self.base), self.shifts.astype(np.int32)).astype(np.float32)

    def encoding(self, type: IntegerType, axis: int) -> Encoding:
        """Write it as the encoding of a tensor whose channels lie along this axis."""
        return Encoding(
            type=type,
            granularity=PowerOfTwoFactor(axis),
            scale=self.scales,
            zero_point=self.zero_points.astype(np.int32),
        )


def factor_of(encoding: Encoding) -> ChannelFactor:
    """Read the shifts out of an encoding, the inverse of `ChannelFactor.encoding`; per tensor there is one channel.

    The base is the smallest scale.

    Raises:
        PlanError: the scales are not powers of two of each other, or lie more than 2^16 apart.
    """
    scale = np.atleast_1d(encoding.scale).astype(np.float64)
    if scale.ndim != 1 or not scale.size:
        raise PlanError(f"a power-of-two factor has a scale for each channel, got scales of shape {scale.shape}")
    mantissa, exponent = np.frexp(scale / scale.min())
    if (mantissa != 0.5).any() or (exponent > MOST_SHIFT + 1).any():
        raise PlanError("expected scales that are one scale times powers of two up to 2^16, got others")
    return ChannelFactor(
        base=float(scale.min()),
        shifts=exponent.astype(np.int64) - 1,
        zero_points=np.atleast_1d(encoding.zero_point).astype(np.int64),
    )


def choose_factor(
    minimum: npt.ArrayLike,
    maximum: npt.ArrayLike,
    type: IntegerType,
    *,
    most_shift: int = USUAL_SHIFT,
    rows: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
) -> ChannelFactor:
    """Choose the base, and shift and zero point of each channel, by least expected squared error.

    The base is searched over an octave above the smallest one with which the greatest shift covers the widest channel:
    a step costs `step^2 / 12`, each channel with the least shift that covers it. Then, where rows are given, each
    channel takes the shift and zero point with the least squared error over its numbers, its extremes among them, so
    that it is clipped where that pays. Shifts that all channels share move into the base.

    Args:
        minimum: least value of each channel, real units, shape (channels,).
        maximum: greatest value, likewise.
        type: the integers.
        most_shift: greatest shift, 0 to 16.
        rows: some values, real units, shape (rows, channels); without them no channel is clipped.
        weights: what a squared error of each channel costs (the square of a LayerNormalization's gain), shape
            (channels,), alike where not given. They choose the base.

    Raises:
        PlanError: shapes differ, an extreme is not finite or a minimum above its maximum, or the shift is none of
            these.
    """
    low, high = _extremes(minimum, maximum)
    if not 0 <= most_shift <= MOST_SHIFT:
        raise PlanError(f"expected a greatest shift of 0 to {MOST_SHIFT}, got {most_shift}")
    cost = np.ones_like(low) if weights is None else np.asarray(weights, dtype=np.float64)
    if cost.shape != low.shape:
        raise PlanError(f"expected a weight for each of {low.size} channels, got shape {cost.shape}")
    needed = np.maximum((high - low) / (type.levels - 1), SMALLEST_SCALE)
    smallest = np.ldexp(needed.max(initial=SMALLEST_SCALE), -most_shift)
    bases = np.maximum(smallest * _BASES, SMALLEST_SCALE).astype(np.float32).astype(np.float64)
    covering = [_covering_shifts(needed, base, most_shift) for base in bases]
    errors = [
        float(np.sum(cost * np.square(np.ldexp(base, shifts)))) for base, shifts in zip(bases, covering, strict=True)
    ]
    best = int(np.argmin(errors))
    base, shifts = float(bases[best]), covering[best]
    zero_points = _zero_points(low, np.ldexp(base, shifts), type)
    if rows is not None:
        seen = np.concatenate([_rows(rows, low.size), np.asarray(minimum)[None], np.asarray(maximum)[None]])
        shifts, zero_points = _least_error(seen, (low, high), base, most_shift, type)
    shared = int(shifts.min(initial=MOST_SHIFT)) if shifts.size else 0
    return ChannelFactor(base=float(np.ldexp(base, shared)), shifts=shifts - shared, zero_points=zero_points)


def published_factor(
    minimum: npt.ArrayLike, maximum: npt.ArrayLike, type: IntegerType, *, rows: npt.ArrayLike, most_shift: int = 3
) -> ChannelFactor:
    """Choose as FQ-ViT does: one zero point, the base from the tensor's range, shifts by squared error over the rows.

    Their code (models/ptq/observer/ptf.py): `scale = (max - min) / (levels - 1)`, base `scale / 2^K`,
    `zero_point = least level - round(min / scale)` saturated, and numbers become `round(x / s + zero_point)`, half to
    even with the zero point inside. Their rows are the last batch of calibration; the range is not stretched to 0.
    Among equal errors the smallest shift.

    Args:
        minimum: least value of each channel, real units, shape (channels,).
        maximum: greatest value, likewise.
        type: the integers.
        rows: values, real units, shape (rows, channels).
        most_shift: K.

    Raises:
        PlanError: shapes differ, or an extreme is not finite or a minimum above its maximum.
    """
    low, _ = _extremes(minimum, maximum)
    seen = _rows(rows, low.size)
    least = float(np.min(minimum)) if low.size else 0.0
    greatest = float(np.max(maximum)) if low.size else 0.0
    widest = np.float32(max((greatest - least) / (type.levels - 1), SMALLEST_SCALE))
    base = float(np.ldexp(widest, -most_shift))
    zero_point = float(np.clip(type.minimum - np.rint(least / widest), type.minimum, type.maximum))
    errors = np.empty((most_shift + 1, low.size))
    for shift in range(most_shift + 1):
        scale = np.ldexp(base, shift)
        levels = np.clip(np.rint(seen / scale + zero_point), type.minimum, type.maximum)
        errors[shift] = np.sum(np.square((levels - zero_point) * scale - seen), axis=0)
    shifts = np.argmin(errors, axis=0).astype(np.int64)
    return ChannelFactor(base=base, shifts=shifts, zero_points=np.full(low.size, int(zero_point), dtype=np.int64))


def _extremes(minimum: npt.ArrayLike, maximum: npt.ArrayLike) -> tuple[Real, Real]:
    """Check the channels' extremes and stretch them to hold 0."""
    low, high = np.asarray(minimum, dtype=np.float64), np.asarray(maximum, dtype=np.float64)
    if low.ndim != 1 or low.shape != high.shape:
        raise PlanError(f"expected a minimum and a maximum for each channel, got shapes {low.shape} and {high.shape}")
    if not (np.isfinite(low).all() and np.isfinite(high).all()) or (low > high).any():
        raise PlanError("expected finite extremes, each minimum not above its maximum")
    return np.minimum(low, 0.0), np.maximum(high, 0.0)


def _rows(rows: npt.ArrayLike, channels: int) -> Real:
    seen = np.asarray(rows, dtype=np.float64)
    if seen.ndim != 2 or seen.shape[1] != channels:
        raise PlanError(f"expected rows of {channels} channels, got shape {seen.shape}")
    return seen


def _covering_shifts(needed: Real, base: float, most_shift: int) -> Integers:
    """Return the least shift of each channel whose step is not below the one it needs."""
    # The base was rounded to float32: a relative 1e-6 is no reason for another shift.
    shifts = np.ceil(np.log2(needed / base) - 1e-6)
    return np.clip(shifts, 0, most_shift).astype(np.int64)


def _zero_points(low: Real, scales: Real, type: IntegerType) -> Integers:
    return np.clip(np.rint(type.minimum - low / scales), type.minimum, type.maximum).astype(np.int64)


def _least_error(
    seen: Real, extremes: tuple[Real, Real], base: float, most_shift: int, type: IntegerType
) -> tuple[Integers, Integers]:
    """Try every shift with the zero points that keep the minimum, the maximum, or the middle between both.

    Returns shifts and zero points, shape (channels,); among equal errors the smallest shift.
    """
    low, high = extremes
    best = np.full(low.shape, np.inf)
    shifts, zero_points = np.zeros(low.shape, dtype=np.int64), np.zeros(low.shape, dtype=np.int64)
    for shift in range(most_shift + 1):
        scale = np.full(low.shape, np.ldexp(base, shift))
        excess = np.maximum(high - low - scale * (type.levels - 1), 0.0)
        for share in (0.0, 0.5, 1.0):
            zero_point = _zero_points(low + share * excess, scale, type)
            levels = np.clip(np.rint(seen / scale) + zero_point, type.minimum, type.maximum)
            errors = np.sum(np.square((levels - zero_point) * scale - seen), axis=0)
            better = errors < best
            best = np.where(better, errors, best)
            shifts, zero_points = np.where(better, shift, shifts), np.where(better, zero_point, zero_points)
    return shifts, zero_points
