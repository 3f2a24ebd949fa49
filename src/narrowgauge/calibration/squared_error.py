"""Ranges by least expected squared error."""

from __future__ import annotations

import numpy as np

from narrowgauge.calibration.density import Array, Density, counts_between, density
from narrowgauge.calibration.extremes import Range, cut, exact_range
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import encoding_from_range

# The search goes so far below an extreme, in two steps per octave where both ends move and four where one does.
_OCTAVES = 8
_BOTH = np.exp2(-np.arange(2 * _OCTAVES + 1) / 2)
_ONE = np.exp2(-np.arange(4 * _OCTAVES + 1) / 4)

# Then both ends move by these factors and their inverses, one after the other.
_REFINEMENTS = np.exp2(np.array([1 / 4, 1 / 8, 1 / 16, 1 / 32]))

# Bins down to this share of an extreme; what is smaller is one bin to zero.
_SMALLEST_OCTAVE = 14
_NATIVE_OCTAVES = 5


def mse_range(tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
    """Choose the range with the least expected squared error, clipping and rounding together.

    Sung, Shin, Hwang, "Resiliency of Deep Neural Networks under Quantization", 2015 (the step that minimises the L2
    error); Choukroun, Kravchik, Yang, Kisilev, "Low-bit Quantization of Neural Networks for Efficient Inference", 2019
    (OMSE: the same, per kernel and tensor). Differs: the error is no sum over samples but the exact integral over the
    histogram, values spread evenly inside a bin; an asymmetric range searches both ends; the range of the extremes is
    always a candidate.
    """
    exact = exact_range(tensor)
    low, high = min(exact.minimum, 0.0), max(exact.maximum, 0.0)
    seen = density(tensor)
    if seen.total == 0.0 or low == high:
        return exact
    if symmetric:
        reach = max(-low, high)
        thresholds = reach * _ONE
        lows, highs = np.maximum(-thresholds, low), np.minimum(thresholds, high)
    else:
        lows, highs = _pairs(low, high)
    coarse = _Error(seen, _geometric_edges(seen, 8), type, symmetric)
    best = int(np.argmin(coarse(lows, highs)))
    fine = _Error(seen, _native_edges(seen), type, symmetric)
    for factor in _REFINEMENTS:
        lows, highs = _around(float(lows[best]), float(highs[best]), factor, type, symmetric=symmetric)
        lows, highs = np.append(np.maximum(lows, low), low), np.append(np.minimum(highs, high), high)
        best = int(np.argmin(fine(lows, highs)))
    return cut(exact, float(lows[best]), float(highs[best]))


def _pairs(low: float, high: float) -> tuple[Array, Array]:
    """Every pair of candidates for both ends; an end at zero is one too, where the other is not."""
    if low == 0.0:
        return np.zeros_like(_ONE), high * _ONE
    if high == 0.0:
        return low * _ONE, np.zeros_like(_ONE)
    shares = np.append(_BOTH, 0.0)
    lows, highs = np.meshgrid(low * shares, high * shares, indexing="ij")
    return lows.reshape(-1)[:-1], highs.reshape(-1)[:-1]


def _around(low: float, high: float, factor: float, type: IntegerType, *, symmetric: bool) -> tuple[Array, Array]:
    """The range itself first, then its ends moved by a factor or its inverse; with a zero point, also by one step.

    The zero point is rounded, so at few levels the error jumps where it changes: both ends move together over it.
    """
    moves = np.array([1.0, factor, 1.0 / factor])
    if symmetric:
        reach = max(-low, high)
        return -reach * moves, reach * moves
    lows, highs = np.meshgrid(low * moves, high * moves, indexing="ij")
    steps = (high - low) * moves / (type.levels - 1)
    shifted = [np.concatenate([lows.reshape(-1), low * moves - steps, low * moves + steps])]
    shifted.append(np.concatenate([highs.reshape(-1), high * moves - steps, high * moves + steps]))
    return np.minimum(shifted[0], 0.0), np.maximum(shifted[1], 0.0)


class _Error:
    """Summed squared error over a density, as a function of ranges.

    Within a bin from a to b over which c values are spread evenly it is c (F(b) - F(a)) / (b - a), where F is the
    integral of the squared error from 0. With x = step * y, y clipped to the levels as z, k the level nearest to z:
    F = step^3 (k / 12 + ((z - k)^3 + (y - z)^3) / 3): a whole step of rounding error is step^3 / 12, the rest of one
    is cubic, and so is what lies beyond the last level. Bins that touch share an end, so each end is worked out once,
    times the difference of the densities on its sides.
    """

    def __init__(self, seen: Density, edges: Array, type: IntegerType, symmetric: bool) -> None:
        self.edges = edges
        heights = counts_between(seen, edges) / np.diff(edges)
        self.weights: Array = -np.diff(heights, prepend=0.0, append=0.0)
        self.seen = seen
        self.type = type
        self.symmetric = symmetric

    def __call__(self, lows: Array, highs: Array) -> Array:
        """Errors of ranges, real units squared times count."""
        encoding = encoding_from_range(lows, highs, self.type, PerAxis(0), symmetric=self.symmetric)
        scale = encoding.scale.astype(np.float64)[:, None]  # (ranges, 1), the same below
        lowest = (self.type.minimum - encoding.zero_point)[:, None].astype(np.float64)
        highest = (self.type.maximum - encoding.zero_point)[:, None].astype(np.float64)
        steps = self.edges / scale  # (ranges, edges)
        inside = np.clip(steps, lowest, highest)
        steps -= inside
        nearest = np.rint(inside)
        inside -= nearest
        cubes = inside * inside * inside + steps * steps * steps
        cubes *= 4.0
        cubes += nearest
        errors = (cubes @ self.weights) * scale[:, 0] ** 3 / 12.0
        points = self.seen.points / scale
        differences = (points - np.clip(np.rint(points), lowest, highest)) * scale
        return np.asarray(errors + (differences * differences) @ self.seen.masses)


def _geometric_edges(seen: Density, per_octave: int, first_octave: int = 0) -> Array:
    """Ends of bins that shrink towards zero by the same factor, on each side that has values."""
    if not seen.ends.size:
        return np.array([-1.0, 1.0])
    shares = np.exp2(-np.arange(per_octave * first_octave, per_octave * _SMALLEST_OCTAVE + 1) / per_octave)
    low, high = min(seen.ends[0], 0.0), max(seen.ends[-1], 0.0)
    return np.unique(np.concatenate([low * shares, [0.0], high * shares]))


def _native_edges(seen: Density) -> Array:
    """The histogram's own bins within a few octaves of the extremes, geometric ones nearer to zero."""
    if not seen.ends.size:
        return np.array([-1.0, 1.0])
    share = 2.0**-_NATIVE_OCTAVES
    low, high = min(seen.ends[0], 0.0), max(seen.ends[-1], 0.0)
    native = seen.ends[(seen.ends <= low * share) | (seen.ends >= high * share)]
    return np.unique(np.concatenate([native, _geometric_edges(seen, 16, _NATIVE_OCTAVES)]))
