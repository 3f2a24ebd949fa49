"""Ranges by the analytic clipping of Banner et al."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from narrowgauge.calibration.extremes import Range, cut, exact_range
from narrowgauge.calibration.histogram import Intervals, intervals
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.numbers import IntegerType

# Halvings of an interval of a few dozen deviations down to float64's own resolution.
_HALVINGS = 60
_WIDEST_DEVIATIONS = 64.0


def aciq_range(tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
    """Clip where a Gaussian or a Laplace distribution fitted to the values has the least expected squared error.

    Banner, Nahshan, Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
    NeurIPS 2019, the section on ACIQ. Both sides of zero: around the mean (around zero without a zero point), half the
    levels a side. One side (behind a Relu): the folded distribution, all levels on it, its zeros left out, because
    there the clipped half of a symmetric distribution lies. The family is the one of greater likelihood.
    Differs: the equation is solved for any number of levels instead of reading a table, and the range is cut at the
    exact extremes.
    """
    exact = exact_range(tensor)
    laid = intervals(tensor.histogram, exact.minimum, exact.maximum)
    folded = exact.minimum >= 0.0 or exact.maximum <= 0.0
    centre, values, counts = _centred(laid, folded=folded, symmetric=symmetric)
    if not counts.size or not values.any():
        return exact
    absolute = float(np.average(np.abs(values), weights=counts))
    deviation = math.sqrt(float(np.average(values * values, weights=counts)))
    steps = _steps_a_side(type, folded=folded, symmetric=symmetric)
    is_laplace = _is_laplace(absolute, deviation)
    threshold = absolute * laplace_clip(steps) if is_laplace else deviation * gaussian_clip(steps)
    return cut(exact, centre - threshold, centre + threshold)


def laplace_clip(steps: float) -> float:
    """Best threshold over the mean absolute deviation b of a Laplace distribution.

    Banner et al. 2019, the Laplace case: the error 2 b^2 exp(-y) + (y b / steps)^2 / 12 at a threshold y b has its
    minimum where y exp(y) = 12 steps^2; 2.83, 3.89 and 5.03 at 2, 3 and 4 bits. The folded half has the same one.

    Args:
        steps: steps between the centre and the threshold; 2^(bits - 1) where the levels lie on both sides.
    """
    return _root(lambda y: math.log(y) + y - math.log(12.0 * steps * steps))


def gaussian_clip(steps: float) -> float:
    """Best threshold over the standard deviation of a Gaussian distribution.

    Banner et al. 2019, the Gaussian case: the error (y^2 + 1) erfc(y / sqrt 2) - y sqrt(2 / pi) exp(-y^2 / 2)
    + (y / steps)^2 / 12 has its minimum where 2 y erfc(y / sqrt 2) - 2 sqrt(2 / pi) exp(-y^2 / 2)
    + y / (6 steps^2) = 0; 1.71, 2.15 and 2.55 at 2, 3 and 4 bits. The folded half has the same one.

    Args:
        steps: as for `laplace_clip`.
    """

    def slope(y: float) -> float:
        clipping = y * math.erfc(y / math.sqrt(2.0)) - math.sqrt(2.0 / math.pi) * math.exp(-y * y / 2.0)
        return 2.0 * clipping + y / (6.0 * steps * steps)

    return _root(slope)


def _root(rising: Callable[[float], float]) -> float:
    """Root of a function that is negative before it and positive after it, by halving."""
    low, high = 1e-9, _WIDEST_DEVIATIONS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rising(middle) < 0.0 else (low, middle)
    return high


def _centred(laid: Intervals, *, folded: bool, symmetric: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Centre of the distribution, the bins' distances from it, and their counts."""
    values, counts = laid.centre, laid.counts
    if folded:
        kept = values != 0.0
        return 0.0, values[kept], counts[kept]
    centre = 0.0 if symmetric or not counts.size else float(np.average(values, weights=counts))
    return centre, values - centre, counts


def _steps_a_side(type: IntegerType, *, folded: bool, symmetric: bool) -> float:
    """Steps between the centre and the threshold: the paper's 2^bits steps span the range."""
    one_sided = folded and not (symmetric and type.signed)
    return float(type.levels) if one_sided else type.levels / 2.0


def _is_laplace(absolute: float, deviation: float) -> bool:
    """Whether the fitted Laplace distribution gives the values a greater likelihood than the fitted Gaussian."""
    return 1.0 + math.log(2.0 * absolute) < 0.5 + math.log(math.sqrt(2.0 * math.pi) * deviation)
