"""A real range, and the exact extremes that no estimator reaches beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import StatisticsError


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The real numbers that the levels are to cover; what lies outside is clipped.

    Attributes:
        minimum: lower end, real units.
        maximum: upper end, real units, not below the lower one.

    Raises:
        StatisticsError: if an end is NaN or infinite, or the lower one lies above the upper one.
    """

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum):
            raise StatisticsError(
                f"expected a range with finite ends, the minimum not above the maximum, got {self.minimum} "
                f"to {self.maximum}"
            )


class Estimator(Protocol):
    """Chooses a tensor's range from its statistics; it looks at the finite values only."""

    def __call__(self, tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
        """Choose the range.

        Args:
            tensor: what was seen of the tensor.
            type: the integers that it will be written in.
            symmetric: whether the encoding will have no zero point.

        Raises:
            StatisticsError: if no finite value was seen.
        """


def exact_range(tensor: TensorStatistics) -> Range:
    """Return the smallest and the largest finite value.

    Raises:
        StatisticsError: if no finite value was seen.
    """
    if tensor.is_empty:
        raise StatisticsError(
            "expected statistics of at least one finite value, got none: the tensor was empty or held only NaN and "
            "infinity; look at the samples, or leave the nodes around it in float"
        )
    return Range(minimum=tensor.minimum, maximum=tensor.maximum)


def cut(exact: Range, low: float, high: float) -> Range:
    """Return the range from `low` to `high`, kept inside the exact extremes and zero, which every encoding holds."""
    least, most = min(exact.minimum, 0.0), max(exact.maximum, 0.0)
    return Range(minimum=min(max(low, least), most), maximum=max(min(high, most), least))
