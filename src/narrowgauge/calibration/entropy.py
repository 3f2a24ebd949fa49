"""Ranges by least relative entropy between the values and their quantized copy: TensorRT's calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.calibration.density import Array, density, magnitude_counts
from narrowgauge.calibration.extremes import Range, cut, exact_range
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import encoding_from_range

BINS = 2048
_COARSE = 8
# Two divergences that differ by less are equal: the sums behind them have a few thousand rounded terms.
_EQUAL = 1e-12


def entropy_range(tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
    """Choose the threshold on |x| with the least KL divergence from the values to their quantized copy.

    Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017, the entropy calibration's pseudocode:
    |x| in 2048 equal bins; for i bins from the number of levels up to all, P is these bins with what lies beyond
    added to the last, Q the same bins without it, merged to as many groups as there are levels and spread over each
    group's non-empty bins; the threshold is (i + 1/2) bins where KL(P||Q) is least.
    Differs: the bin of zero is left out. Zeros and what any candidate rounds to zero would only make Q's first group
    look bad as it widens, and so shrink the threshold of every tensor behind a Relu to a fraction of its range. The
    number of levels is what one side has (128 of int8; 256 of uint8 behind a Relu), groups are as equal as can be,
    and of equal divergences the widest range is taken. Data on both sides of zero get one threshold for both.
    A type with more levels than bins clips nothing, because nothing is gained by it.
    """
    exact = exact_range(tensor)
    reach = max(-exact.minimum, exact.maximum)
    seen = density(tensor)
    if reach == 0.0 or seen.total == 0.0:
        return exact
    counts = magnitude_counts(seen, reach, BINS)
    counts[0] = 0.0
    levels = _levels_of_one_side(exact, type, symmetric=symmetric)
    if levels >= BINS or not counts.any():
        return exact
    coarse = np.unique(np.append(np.arange(levels, BINS, _COARSE), BINS))
    best = _best(coarse, divergences(counts, coarse, levels))
    fine = np.arange(max(levels, best - _COARSE + 1), min(BINS, best + _COARSE) + 1)
    best = _best(fine, divergences(counts, fine, levels))
    threshold = (best + 0.5) * reach / BINS
    return cut(exact, -threshold, threshold)


def _levels_of_one_side(exact: Range, type: IntegerType, *, symmetric: bool) -> int:
    """Number of levels from zero to the farther extreme."""
    encoding = encoding_from_range(exact.minimum, exact.maximum, type, PerTensor(), symmetric=symmetric)
    return 1 + round(max(-exact.minimum, exact.maximum) / float(encoding.scale))


def _best(candidates: npt.NDArray[np.int64], found: Array) -> int:
    return int(candidates[found <= found.min() + _EQUAL][-1])


def divergences(counts: Array, candidates: npt.NDArray[np.int64], levels: int) -> Array:
    """KL(P||Q) of each candidate number of bins, in nats, from running sums: one logarithm per candidate and level.

    Q is constant over the non-empty bins of a group, so sum P log Q needs only each group's total and their number.

    Args:
        counts: per bin of |x|.
        candidates: numbers of bins, each at least `levels`.
        levels: number of groups.
    """
    below = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_times_log(counts, counts))])
    total = below[-1]
    outside = total - below[candidates]
    edges = candidates[:, None] * np.arange(levels + 1) // levels  # (candidates, levels + 1)
    kept = np.diff(below[edges], axis=1)  # (candidates, levels), the same below
    number = np.diff(filled[edges], axis=1)
    number[:, -1] += (counts[candidates - 1] == 0) & (outside > 0)
    held = kept.copy()
    held[:, -1] += outside
    last = counts[candidates - 1] + outside
    own = entropy[candidates - 1] + _times_log(last, last)
    with np.errstate(divide="ignore", invalid="ignore"):
        other = _times_log(held, kept / np.maximum(number, 1)).sum(axis=1)
        found = (own - other) / total - np.log(total) + np.log(below[candidates])
    # Where the last group is empty and the outliers fall into it, the divergence is infinite.
    return np.where((kept[:, -1] > 0) | (held[:, -1] == 0), found, np.inf)


def _times_log(factors: Array, arguments: Array) -> Array:
    """`factors * log(arguments)`, 0 where the factor is 0."""
    return np.asarray(factors * np.log(np.where(factors > 0, arguments, 1.0)))
