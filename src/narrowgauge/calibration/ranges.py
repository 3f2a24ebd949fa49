"""The estimators of ranges: statistics of a tensor in, the range that its levels are to cover out.

A new estimator is one function and one line of `ESTIMATORS`.
"""

from __future__ import annotations

from narrowgauge.calibration.aciq import aciq_range
from narrowgauge.calibration.entropy import entropy_range
from narrowgauge.calibration.extremes import Estimator, Range, exact_range
from narrowgauge.calibration.global_scale import global_scale
from narrowgauge.calibration.percentile import percentile
from narrowgauge.calibration.squared_error import mse_range
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import RecipeError

__all__ = ["ESTIMATORS", "Estimator", "Range", "estimator", "max_range", "percentile"]


def max_range(tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
    """Cover everything from the smallest to the largest value: nothing is clipped, steps are the widest.

    Raises:
        StatisticsError: if no finite value was seen.
    """
    return exact_range(tensor)


ESTIMATORS: dict[str, Estimator] = {
    "max": max_range,
    "percentile": percentile(99.99),
    "entropy": entropy_range,
    "mse": mse_range,
    "aciq": aciq_range,
}


def estimator(name: str) -> Estimator:
    """Read an estimator from its name: one of `ESTIMATORS`, which all look at the data, or `global-scale`.

    `percentile:P` has another percentile than 99.99, `global-scale:S` another reach than 8.

    Raises:
        RecipeError: if there is none of that name, P is not a number above 50 and at most 100, or S not one above 0.
    """
    known, _, argument = name.strip().lower().partition(":")
    if known == "percentile" and argument:
        return percentile(_number(argument, name))
    if known == "global-scale":
        return global_scale(_number(argument, name)) if argument else global_scale()
    if known not in ESTIMATORS or argument:
        raise RecipeError(
            f"expected a range estimator, one of {', '.join(ESTIMATORS)}, percentile:P, global-scale or "
            f"global-scale:S, got {name!r}"
        )
    return ESTIMATORS[known]


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"expected a number behind the colon, as in percentile:99.99, got {name!r}") from None
