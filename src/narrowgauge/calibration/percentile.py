"""Ranges from percentiles of the values."""

from __future__ import annotations

import numpy as np

from narrowgauge.calibration.density import Array
from narrowgauge.calibration.extremes import Estimator, Range, cut, exact_range
from narrowgauge.calibration.histogram import Intervals, intervals
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import RecipeError


def percentile(percent: float) -> Estimator:
    """Make the estimator that covers `percent` of the values.

    Wu, Judd, Zhang, Isaev, Micikevicius, "Integer Quantization for Deep Learning Inference: Principles and Empirical
    Evaluation", 2020, the section on calibration: the range is a percentile of |x|. Differs: so it is where no zero
    point is wanted; else each tail of signed data is cut on its own side, and data of one sign at their far end
    only. A cut that would leave nothing but zero (nearly all values are zeros) is not made.

    Args:
        percent: above 50, at most 100.

    Raises:
        RecipeError: if `percent` is not.
    """
    if not 50.0 < percent <= 100.0:
        raise RecipeError(f"expected a percentile above 50 and at most 100, got {percent}")

    def percentile_range(tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
        exact = exact_range(tensor)
        laid = intervals(tensor.histogram, exact.minimum, exact.maximum)
        if not laid.counts.size:
            return exact
        share = percent / 100.0
        two_sided = exact.minimum < 0.0 < exact.maximum
        if symmetric and two_sided:
            reach = _quantile(_magnitudes(laid), share)
            low, high = -reach, reach
        else:
            low = _quantile(laid, 1.0 - share) if exact.minimum < 0.0 else exact.minimum
            high = _quantile(laid, share) if exact.maximum > 0.0 else exact.maximum
        return exact if low >= 0.0 >= high else cut(exact, low, high)

    return percentile_range


def _quantile(laid: Intervals, share: float) -> float:
    """Number below which a share of the values lies; inside a bin they are taken to be spread evenly."""
    below: Array = np.cumsum(laid.counts)
    rank = share * below[-1]
    index = min(int(np.searchsorted(below, rank)), below.size - 1)
    inside = 1.0 - (below[index] - rank) / laid.counts[index]
    return float(laid.lower[index] + np.clip(inside, 0.0, 1.0) * (laid.upper[index] - laid.lower[index]))


def _magnitudes(laid: Intervals) -> Intervals:
    """Lay |values| along the axis; bins of equal place, one from each sign, stay apart."""
    negative = laid.upper <= 0.0
    lower = np.where(negative, -laid.upper, laid.lower)
    upper = np.where(negative, -laid.lower, laid.upper)
    order = np.lexsort((upper, lower))
    return Intervals(lower=lower[order], upper=upper[order], counts=laid.counts[order])
