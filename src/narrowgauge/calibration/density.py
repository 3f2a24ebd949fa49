"""Counts as a density: point masses, and bins over which the values are taken to be spread evenly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.calibration.histogram import Intervals, intervals
from narrowgauge.calibration.statistics import TensorStatistics

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Density:
    """A histogram along the real axis, zero left out.

    Every encoding holds zero exactly, so zeros say nothing about a range; the leading-bits histogram has them apart.

    Attributes:
        ends: ends of the bins that have a width, real units, ascending.
        cumulative: how many values of these bins lie below each end.
        points: numbers that have a bin of no width of their own (a bound where values were cut off), ascending.
        masses: how many values are each of these numbers.
    """

    ends: Array
    cumulative: Array
    points: Array
    masses: Array

    @property
    def total(self) -> float:
        """Number of values."""
        return float(self.masses.sum()) + (float(self.cumulative[-1]) if self.cumulative.size else 0.0)


def density(tensor: TensorStatistics) -> Density:
    """Part a tensor's histogram into bins of some width and point masses.

    One value of each outermost bin is known exactly: it is the extreme.
    """
    laid = _with_extremes(intervals(tensor.histogram, tensor.minimum, tensor.maximum), tensor)
    is_point = laid.lower == laid.upper
    is_kept_point = is_point & (laid.lower != 0.0)
    counts = laid.counts[~is_point]
    upper = np.cumsum(counts)
    # Per bin its lower and its upper end; where bins touch, both ends hold the same number below them.
    ends = np.stack([laid.lower[~is_point], laid.upper[~is_point]], axis=1).reshape(-1)
    cumulative = np.stack([upper - counts, upper], axis=1).reshape(-1)
    return Density(
        ends=ends, cumulative=cumulative, points=laid.lower[is_kept_point], masses=laid.counts[is_kept_point]
    )


def _with_extremes(laid: Intervals, tensor: TensorStatistics) -> Intervals:
    """Take the extremes out of the bins that end there and make them bins of no width."""
    at_low = laid.lower == tensor.minimum
    at_high = (laid.upper == tensor.maximum) & ~at_low
    ends = np.concatenate([np.full(int(at_low.any()), tensor.minimum), np.full(int(at_high.any()), tensor.maximum)])
    counts = laid.counts.copy()
    counts[np.flatnonzero(at_low)[:1]] -= 1.0
    counts[np.flatnonzero(at_high)[-1:]] -= 1.0
    lower, upper = np.concatenate([laid.lower, ends]), np.concatenate([laid.upper, ends])
    counts = np.concatenate([counts, np.ones(ends.size)])
    order = np.lexsort((upper, lower))
    return Intervals(lower=lower[order], upper=upper[order], counts=counts[order])


def counts_between(seen: Density, edges: Array) -> Array:
    """Count the values of the bins that have a width (not the points) between neighbouring edges, float64."""
    if not seen.ends.size:
        return np.zeros(edges.size - 1)
    counts: Array = np.diff(np.interp(edges, seen.ends, seen.cumulative))
    return counts


def magnitude_counts(seen: Density, reach: float, bins: int) -> Array:
    """Count |values| in equally wide bins from 0 to `reach`, points too."""
    edges = np.linspace(0.0, reach, bins + 1)
    counts = counts_between(seen, edges) + counts_between(seen, -edges[::-1])[::-1]
    index = np.minimum((np.abs(seen.points) / reach * bins).astype(np.int64), bins - 1)
    np.add.at(counts, index, seen.masses)
    return counts
