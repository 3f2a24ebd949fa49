"""Weighted sums of levels in another encoding: additions of tensors with different scales, and requantization.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017,
appendix A.2, rescales both inputs to a common unit, adds, and rescales the sum: three roundings. Here there is one:
each input has a multiplier of its own, the products are added up, and the sum is shifted to the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import UNBOUNDED, Bounds
from narrowgauge.core.integer_width import Integers, within
from narrowgauge.errors import PlanError

_MULTIPLIER_BITS = 31
_MOST_SHIFT = 44
"""A zero point of 16 bits, shifted so, leaves one of 62 bits for the sum."""

_LARGEST_RATIO = 2.0**12


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedSum:
    """`clip((sum of level * multiplier) + addend >> shift, low, high)`, all within 63 bits; the rounding is half up.

    | number | bits, the sign's included |
    |---|---|
    | level, of 8 or 16 bits | 9 or 17 |
    | multiplier | 32 |
    | their product | 48 |
    | zero points and half a level, shifted | 62 |

    Attributes:
        multipliers: one for each input, int64, shape () or (channels,), negative where it is subtracted.
        addend: what the zero points come to, and half a level, times `2^shift`; the same shape.
        shift: bits behind the point.
        low: least level that is written, int64, shape () or (channels,).
        high: greatest level, likewise.
    """

    multipliers: tuple[Integers, ...]
    addend: Integers
    shift: int
    low: Integers
    high: Integers

    def levels(self, *levels: Integers) -> Integers:
        """Add levels up, shape [..., channels] each; they broadcast."""
        terms = [np.asarray(one, np.int64) * each for one, each in zip(levels, self.multipliers, strict=True)]
        total = within(sum(terms, np.zeros((), np.int64)) + self.addend, 64)
        return np.asarray(np.clip(total >> self.shift, self.low, self.high))


def weighted_sum(
    inputs: tuple[Encoding, ...], output: Encoding, *, signs: tuple[int, ...] = (), bounds: Bounds = UNBOUNDED
) -> WeightedSum:
    """Find the integers of a sum of tensors.

    Args:
        inputs: each with one scale, or one for each channel of the last axis, at most 16 bits.
        output: likewise.
        signs: 1 or -1 for each input; 1 where not given.
        bounds: between which an activation function keeps the sum.

    Raises:
        PlanError: numbers of channels differ, types are wider, or an input's scale is more than 4096 times the
            output's.
    """
    encodings = (*inputs, output)
    channels = {one.scale.size for one in encodings if one.scale.ndim}
    if len(channels) > 1 or any(one.scale.ndim > 1 or one.type.bits > 16 for one in encodings):
        raise PlanError("expected levels of at most 16 bits, with one scale or one for each channel, alike in number")
    factors = signs or (1,) * len(inputs)
    ratios = [one.scale.astype(np.float64) / output.scale for one in inputs]
    greatest = max((float(ratio.max(initial=0)) for ratio in ratios), default=0.0)
    if greatest > _LARGEST_RATIO:
        raise PlanError(f"a step of an input is {greatest:.4g} steps of the output, at most {_LARGEST_RATIO:.0f} fit")
    shift = int(np.clip(_MULTIPLIER_BITS - np.ceil(np.log2(max(greatest, 2.0**-62))), 1, _MOST_SHIFT))
    multipliers = tuple(
        np.rint(np.ldexp(ratio, shift)).astype(np.int64) * sign for ratio, sign in zip(ratios, factors, strict=True)
    )
    addend = (output.zero_point.astype(np.int64) << shift) + (np.int64(1) << (shift - 1))
    for one, multiplier in zip(inputs, multipliers, strict=True):
        addend = addend - one.zero_point.astype(np.int64) * multiplier
    low, high = channel_limits(output, bounds)
    return WeightedSum(multipliers=multipliers, addend=np.asarray(addend), shift=shift, low=low, high=high)


def channel_limits(output: Encoding, bounds: Bounds) -> tuple[Integers, Integers]:
    """Round bounds to levels, half to even, one for each scale: what an activation function leaves of them."""
    ends: list[npt.NDArray[np.int64]] = []
    for bound in bounds:
        with np.errstate(over="ignore"):
            steps = np.clip(np.rint(np.float64(bound) / output.scale.astype(np.float64)), -(2.0**40), 2.0**40)
        level = np.clip(steps + output.zero_point, output.type.minimum, output.type.maximum)
        ends.append(np.asarray(level, dtype=np.int64))
    return ends[0], ends[1]
