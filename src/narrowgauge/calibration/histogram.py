"""Histograms over the leading bits of float32: sign, exponent and the first seven bits of the mantissa.

The upper 16 bits of a float32 are its bin, so a bin is as wide as 1/128 of its own power of two: the relative
resolution is the same at every magnitude, no range is needed beforehand, nothing is ever rebinned, and two
histograms merge by adding counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 1 << 16
_SIGN = 0x8000
_INFINITY = 0x7F80


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts per bin, empty bins left out.

    Attributes:
        bins: upper 16 bits of the float32 values, uint16, ascending, each once.
        counts: how many values each bin holds, int64, positive, the shape of `bins`.
    """

    bins: npt.NDArray[np.uint16]
    counts: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())


EMPTY = Histogram(bins=np.zeros(0, np.uint16), counts=np.zeros(0, np.int64))


def leading_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bin of each value: the upper 16 bits of its float32 bytes, flattened."""
    words = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view("<u2")
    bits: npt.NDArray[np.uint16] = words[1::2]
    return bits


def histogram_of_bins(bins: npt.NDArray[np.uint16]) -> Histogram:
    """Count finite values that are given by their bins; NaN and infinity are left out."""
    counts = np.bincount(bins, minlength=BINS)
    counts[_INFINITY:_SIGN] = 0
    counts[_SIGN | _INFINITY :] = 0
    present = np.flatnonzero(counts)
    return Histogram(bins=present.astype(np.uint16), counts=counts[present].astype(np.int64))


def histogram_of(values: npt.NDArray[np.float32]) -> Histogram:
    """Count finite values."""
    return histogram_of_bins(leading_bits(values))


def merge_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Add histograms up; commutative and associative, to the same bits."""
    parts = [histogram for histogram in histograms if histogram.bins.size]
    if len(parts) < 2:
        return parts[0] if parts else EMPTY
    bins, index = np.unique(np.concatenate([part.bins for part in parts]), return_inverse=True)
    counts = np.zeros(bins.size, dtype=np.int64)
    np.add.at(counts, index, np.concatenate([part.counts for part in parts]))
    return Histogram(bins=bins, counts=counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """A histogram along the real axis.

    Attributes:
        lower: lower ends in real units, float64, ascending.
        upper: upper ends, not below the lower ones.
        counts: values in each interval, float64.
    """

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """Middles in real units."""
        return (self.lower + self.upper) / 2


def intervals(histogram: Histogram, minimum: float, maximum: float) -> Intervals:
    """Lay a histogram along the real axis, its ends cut at the exact extremes.

    The bin of zero also holds the subnormal numbers; it becomes the interval [0, 0].

    Args:
        histogram: the counts.
        minimum: smallest value, real units; no interval reaches below it.
        maximum: largest value; no interval reaches above it.
    """
    negative = histogram.bins >= _SIGN
    magnitude = (histogram.bins & (_SIGN - 1)).astype(np.uint32)
    inner = (magnitude << 16).view(np.float32).astype(np.float64)
    outer = ((magnitude + 1) << 16).view(np.float32).astype(np.float64)
    zero = magnitude < 0x80  # exponent 0: zero and the subnormal numbers
    inner, outer = np.where(zero, 0.0, inner), np.where(zero, 0.0, outer)
    outer = np.where(np.isfinite(outer), outer, np.finfo(np.float32).max)
    lower = np.clip(np.where(negative, -outer, inner), minimum, maximum)
    upper = np.clip(np.where(negative, -inner, outer), minimum, maximum)
    order = np.lexsort((upper, lower))
    return Intervals(lower=lower[order], upper=upper[order], counts=histogram.counts[order].astype(np.float64))
