"""What rounding a tensor loses, worked out from its histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from narrowgauge.analysis.loss_sums import Array, LossSums, no_sums
from narrowgauge.calibration.density import density
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.numbers import IntegerType


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bins:
    """Counts along the real axis: bins without overlap, ascending, and points that hold some elements each."""

    lower: Array
    upper: Array
    counts: Array
    points: Array
    masses: Array

    @property
    def total(self) -> float:
        return float(self.counts.sum() + self.masses.sum())

    def between(self, low: float, high: float) -> _Bins:
        """Keep what lies between two numbers."""
        lower, upper = np.clip(self.lower, low, high), np.clip(self.upper, low, high)
        counts = self.counts * (upper - lower) / (self.upper - self.lower)
        kept, inside = counts > 0, (self.points >= low) & (self.points <= high)
        return _Bins(
            lower=lower[kept], upper=upper[kept], counts=counts[kept],
            points=self.points[inside], masses=self.masses[inside],
        )  # fmt: skip

    def scaled_to(self, total: float) -> _Bins:
        """Change all counts by one factor."""
        factor = total / self.total if self.total else 0.0
        return replace(self, counts=self.counts * factor, masses=self.masses * factor)


def histogram_sums(tensor: TensorStatistics, encoding: Encoding) -> LossSums:
    """Work out what rounding a tensor loses from its histogram, elements taken to be spread evenly inside a bin.

    Zeros, exact extremes, and bounds that fall on a bin's end (0 and 6 of ReLU6) are known exactly. All else is
    integrated in closed form: bins are cut at the ends of the levels' cells, and from a to b, with the level's real
    number v, the mean of (x - v)^2 is (l^2 + l r + r^2) / 3 where l = a - v and r = b - v. Bins are 1/128 of their
    power of two, so where steps are finer than bins (8 bits: above half of the range) the error inside a bin is the
    mean over the sawtooth. It deviates from the elements' own

    - by chance, for the histogram does not tell where in a step an element lies: by about 0.9 / sqrt(elements) of the
      rounding error (the deviation of the square of a number spread evenly over a step);
    - more where numbers that are no bin's end occur over and over, for these are as one (pixels of 8 bits; what a layer
      makes of nothing but zeros): by about 0.9 sqrt(sum of count^2) / elements, counts of each number;
    - where a sample's tensor was counted in part: rare outliers that were not counted are not clipped here, and with a
      range that leaves them out the true clipping error may be many times as large.

    With a scale per channel, each channel is taken to be distributed as the tensor is between the channel's extremes,
    for the histogram does not tell channels apart.

    Args:
        tensor: what was seen.
        encoding: what it is rounded to.
    """
    seen = density(tensor)
    zeros = tensor.histogram.total - seen.total
    bins = _Bins(
        lower=seen.ends[::2],
        upper=seen.ends[1::2],
        counts=np.diff(seen.cumulative)[::2],
        points=np.append(seen.points, 0.0),
        masses=np.append(seen.masses, zeros),
    )
    sums = no_sums(encoding.type.levels)
    for part, scale, zero_point in _channels(bins, tensor, encoding):
        sums = sums.merge(_bin_sums(part, scale, encoding.type, zero_point))
    return replace(sums, minimum=tensor.minimum, maximum=tensor.maximum)


def _channels(bins: _Bins, tensor: TensorStatistics, encoding: Encoding) -> Iterator[tuple[_Bins, float, int]]:
    """Each scale's share of the histogram, with the scale and the zero point."""
    scales, zero_points = encoding.scale.reshape(-1), encoding.zero_point.reshape(-1)
    parts = [bins] * scales.size
    channels, granularity = tensor.channels, encoding.granularity
    along = isinstance(granularity, PerAxis) and channels is not None and granularity.axis in (channels.axis, -1)
    if channels is not None and along and channels.minimum.size == scales.size:
        ends = zip(channels.minimum, channels.maximum, strict=True)
        parts = [bins.between(float(low), float(high)) for low, high in ends]
    for part, scale, zero_point in zip(parts, scales, zero_points, strict=True):
        yield part.scaled_to(bins.total / scales.size), float(scale), int(zero_point)


def _bin_sums(bins: _Bins, scale: float, type: IntegerType, zero_point: int) -> LossSums:
    lowest, highest = type.minimum - zero_point, type.maximum - zero_point
    kept = bins.counts > 0
    lower, upper, counts = bins.lower[kept], bins.upper[kept], bins.counts[kept]
    # Cut bins at the ends of cells; behind the first and the last end, elements are clipped.
    cells = scale * (np.arange(lowest, highest + 2) - 0.5)
    span = (lower.min(initial=np.inf), upper.max(initial=-np.inf))
    ends = np.unique(np.concatenate([lower, upper, cells[(cells > span[0]) & (cells < span[1])]]))
    middle = (ends[:-1] + ends[1:]) / 2
    owner = np.searchsorted(lower, middle, side="right") - 1
    inside = middle < upper[owner]  # else a gap between two bins
    owner, left, right = owner[inside], ends[:-1][inside], ends[1:][inside]
    share = (right - left) / (upper - lower)[owner]
    present = bins.masses > 0
    points, masses = bins.points[present], bins.masses[present]
    left, right = np.append(left, points), np.append(right, points)
    share = np.append(share, np.ones_like(points))
    held = np.append(counts[owner], masses)  # elements of the whole bin
    mass = held * share
    steps = np.rint((left + right) / (2 * scale))
    saturated = np.clip(steps, lowest, highest)
    errors = mass * _mean_square(left - saturated * scale, right - saturated * scale)
    beyond = steps != saturated
    level = (saturated - lowest).astype(np.intp)
    with np.errstate(divide="ignore"):  # a bin that lies in one cell
        missed = held * np.log1p(-np.minimum(share, 1.0))
    return LossSums(
        elements=float(mass.sum()),
        minimum=math.inf,
        maximum=-math.inf,
        signal=float(mass @ _mean_square(left, right)),
        rounding=float(errors[~beyond].sum()),
        clipping=float(errors[beyond].sum()),
        clipped=float(mass[beyond].sum()),
        levels=np.bincount(level, weights=mass, minlength=type.levels).astype(np.float64),
        free=np.bincount(level, weights=missed, minlength=type.levels).astype(np.float64),
    )


def _mean_square(left: Array, right: Array) -> Array:
    """Mean of the squares of numbers that are spread evenly between two."""
    mean: Array = (left * left + left * right + right * right) / 3.0
    return mean
