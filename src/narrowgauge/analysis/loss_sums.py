"""What rounding a tensor loses, as sums over its elements that add up.

An element x becomes x^ = s (clip(round(x / s) + z, lowest, highest) - z), s the scale factor (real value of one step)
and z the zero point. Its error x^ - x is one of two kinds:

- rounding, DX_r = s round(x / s) - x, where the level round(x / s) + z exists: x lies in the range or within half a
  step of its ends. Between -s/2 and s/2; of mean square s^2 / 12 where x is spread evenly over many steps.
- clipping, DX_c = bound - x, where it does not: the bound is the nearer end of the range.

One of the two is 0 for each element, so the mean squares add up to that of the error. The scale factor trades one for
the other: half of it quarters the rounding error and halves the range, beyond which everything is clipped (Banner et
al., "Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment", 2019, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import spread
from narrowgauge.core.encoding import Encoding

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]

# Elements that are worked on at a time: what stays in a core's cache for all steps.
_PIECE_ELEMENTS = 1 << 15


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSums:
    """Sums over the elements of a tensor; those of parts add up to those of the whole.

    Attributes:
        elements: how many there were.
        minimum: smallest, real units; infinity if there was none.
        maximum: largest; minus infinity if there was none.
        signal: sum of x^2.
        rounding: sum of DX_r^2.
        clipping: sum of DX_c^2.
        clipped: how many elements lie beyond the range.
        levels: how many elements have each level, lowest level first, float64; fractions where a histogram's bin is
            shared out among levels.
        free: logarithm of the chance that no element has the level, of the shape of `levels`: minus infinity where one
            has, 0 where none can; between the two only where a histogram does not tell.
    """

    elements: float
    minimum: float
    maximum: float
    signal: float
    rounding: float
    clipping: float
    clipped: float
    levels: Array
    free: Array

    def merge(self, other: LossSums) -> LossSums:
        """Add the sums of two parts that were rounded to levels of one type."""
        return LossSums(
            elements=self.elements + other.elements,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            signal=self.signal + other.signal,
            rounding=self.rounding + other.rounding,
            clipping=self.clipping + other.clipping,
            clipped=self.clipped + other.clipped,
            levels=self.levels + other.levels,
            free=self.free + other.free,
        )


def no_sums(levels: int) -> LossSums:
    """Return the sums over no element."""
    return LossSums(
        elements=0.0, minimum=math.inf, maximum=-math.inf, signal=0.0, rounding=0.0, clipping=0.0, clipped=0.0,
        levels=np.zeros(levels), free=np.zeros(levels),
    )  # fmt: skip


def entropy_bits(counts: Array) -> float:
    """Entropy of levels, sum of -p log2 p over their shares p, in bits (Shannon 1948); 0 where there is no element."""
    shares = counts[counts > 0] / max(float(counts.sum()), np.finfo(np.float64).tiny)
    return max(0.0, -float(np.sum(shares * np.log2(shares))))


def element_sums(
    values: npt.NDArray[np.floating], encoding: Encoding, *, wanted: npt.NDArray[np.floating] | None = None
) -> LossSums:
    """Round a tensor and add up what that loses, exactly as `core.arithmetic.round_trip` rounds, sums in float64.

    Args:
        values: real units, any shape that the encoding's granularity fits, finite.
        encoding: what they are rounded to.
        wanted: what the rounded values stand for, of the same shape; None for the values themselves. Errors, signal
            and what lies beyond the range are then those of these; levels are those of the values.

    Raises:
        PlanError: if the scale does not fit the shape.
    """
    real = np.asarray(values, dtype=np.float32)
    goal = real if wanted is None else np.asarray(wanted, dtype=np.float32)
    lowest = np.asarray(encoding.type.minimum - encoding.zero_point, dtype=np.float32)
    arrays = [real, goal, *(spread(each, encoding, real.shape) for each in (encoding.scale, lowest))]
    if encoding.scale.ndim == 0:  # all axes as one
        arrays[:2] = [real.reshape(-1), goal.reshape(-1)]
    levels = encoding.type.levels
    sums = no_sums(levels)
    rows = arrays[0].shape[0]
    for part in _pieces(rows, real.size, most=max(_PIECE_ELEMENTS, 2 * levels)):
        ours, theirs, scale, low = (each[part] if each.ndim and len(each) == rows else each for each in arrays)
        sums = sums.merge(_piece_sums(ours, theirs, scale, low, levels))
    return sums


def _pieces(rows: int, size: int, *, most: int) -> list[slice]:
    """Runs of a tensor's rows, of about so many elements each."""
    length = max(1, most * rows // max(size, 1))
    return [slice(start, start + length) for start in range(0, rows, length)] if size else []


def _piece_sums(real: FloatArray, goal: FloatArray, scale: FloatArray, lowest: FloatArray, levels: int) -> LossSums:
    # As core.arithmetic: one float32 division, one rounding, saturation, one float32 product. The zero point is left
    # out on both ways: the bounds are levels without it, whole numbers that float32 holds.
    highest = lowest + np.float32(levels - 1)
    steps = _steps(goal, scale)
    saturated = np.clip(steps, lowest, highest)
    beyond = steps != saturated
    if goal is not real:
        saturated = np.clip(_steps(real, scale), lowest, highest)
    counts = np.bincount((saturated - lowest).astype(np.intp).reshape(-1), minlength=levels).astype(np.float64)
    saturated *= scale
    errors = np.subtract(saturated, goal, out=saturated)
    clipped = int(np.count_nonzero(beyond))
    clipping = 0.0
    if clipped:
        clipping = _squares(errors[beyond])
        errors[beyond] = 0.0
    return LossSums(
        elements=goal.size,
        minimum=float(goal.min()),
        maximum=float(goal.max()),
        signal=_squares(goal),
        rounding=_squares(errors),
        clipping=clipping,
        clipped=clipped,
        levels=counts,
        free=np.where(counts > 0, -np.inf, 0.0),
    )


def _steps(real: FloatArray, scale: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):  # infinitely many steps saturate like any number of them
        steps: FloatArray = real / scale
    return np.rint(steps, out=steps)


def _squares(values: FloatArray) -> float:
    """Sum of squares in float64, which no float32 overflows."""
    flat = values.reshape(-1)
    return float(np.einsum("e,e->", flat, flat, dtype=np.float64))
