"""How sums become levels: the closed forms in which every engine's requantization is written down and lowered.

A form is plain numbers, evaluated here in numpy and written into ONNX networks by `lowering.integer`, so that both
say the same. An engine's rule (`kernels`) is a function from encodings to one of these forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.int64]
Levels = npt.NDArray[np.int64]

FRACTION_BITS = 26
"""Of `IntegerRescale.fraction`: a sum of 36 bits times it has 62."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FloatRescale:
    """`clip(rint(float32(float32(sum) * multiplier)) + zero_point, low, high)`: half to even, float32.

    XNNPACK's fp32 rule, ONNX Runtime's QLinearConv, QNNPACK in PyTorch.

    Attributes:
        multiplier: real value of a unit of the sum over the output's scale, float32, shape () or (channels,).
        zero_point: of the output.
        low: least level that is written: the type's, or an activation function's bound.
        high: greatest level.
    """

    multiplier: npt.NDArray[np.float32]
    zero_point: int
    low: int
    high: int

    def levels(self, sums: Sums) -> Levels:
        """Write sums, shape [..., channels], as levels."""
        with np.errstate(over="ignore"):
            steps = np.rint(np.asarray(sums).astype(np.float32) * self.multiplier).astype(np.float64)
        return np.asarray(np.clip(steps + self.zero_point, self.low, self.high), dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerRescale:
    """`clip((product + clip(product, below, above) + addend >> shift) + zero_point, low, high)` of integers.

    `product = sum * multiplier + (sum * fraction >> 26)`. The inner clip is what tells apart the treatments of negative
    numbers: none is rounding half up; -1 to 0 is half away from zero (`addend` half a unit); -2^30 to 2^30 is
    gemmlowp's rounding twice, since a product is 0 or at least 2^30 (its multiplier is) and its sign then moves the tie
    of the first rounding. See `kernels` for the rules in these terms.

    Attributes:
        multiplier: int64, shape () or (channels,), 0 or more.
        addend: int64, the same shape.
        shift: int64, the same shape, 0 to 62.
        below: int64, the same shape, 0 or less.
        above: int64, the same shape, 0 or more.
        zero_point: of the output.
        low: least level that is written.
        high: greatest level.
        fraction: int64, the same shape: 26 more bits of the multiplier, 0 where it is whole.
    """

    multiplier: npt.NDArray[np.int64]
    addend: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    zero_point: int
    low: int
    high: int
    fraction: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((), np.int64))

    @property
    def room(self) -> npt.NDArray[np.int64]:
        """Magnitude of the sums whose products have 62 bits, shape of the multiplier; one of 31 bits leaves 2^31."""
        bits = np.frexp(np.maximum(self.multiplier, 1).astype(np.float64))[1].astype(np.int64)
        room = np.int64(1) << (62 - bits)
        return np.asarray(np.minimum(room, 2 ** (62 - FRACTION_BITS)) if self.fraction.any() else room)

    def levels(self, sums: Sums) -> Levels:
        """Write sums, shape [..., channels], as levels; sums beyond `room` as those at its ends."""
        whole = np.clip(np.asarray(sums, dtype=np.int64), -self.room, self.room)
        product = whole * self.multiplier
        if self.fraction.any():
            product = product + (whole * self.fraction >> FRACTION_BITS)
        steps = (product + np.clip(product, self.below, self.above) + self.addend) >> self.shift
        return np.asarray(np.clip(steps + self.zero_point, self.low, self.high), dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputedRescale:
    """A rule that is neither: any function that never falls as its sum grows.

    The lowering looks for one of the other forms that gives the same level for every sum that can occur, and proves it
    by comparing the sums at which the level changes.

    Attributes:
        compute: sums, int64 [..., channels] -> levels, int64, the same shape, clipped.
        channels: how many, 0 where one rule holds for all.
        low: least level that is written.
        high: greatest level.
    """

    compute: Callable[[Sums], Levels]
    channels: int
    low: int
    high: int

    def levels(self, sums: Sums) -> Levels:
        """Write sums, shape [..., channels], as levels."""
        return self.compute(np.asarray(sums, dtype=np.int64))


Rescale = FloatRescale | IntegerRescale | ComputedRescale
