"""Counts as a density: point masses, and bins over which the values are taken to be spread evenly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.calibration.histogram import Intervals

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


def density(laid: Intervals) -> Density:
    """Part a histogram into bins of some width and point masses."""
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
