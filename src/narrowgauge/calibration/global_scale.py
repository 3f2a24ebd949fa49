"""One range for every tensor, whatever it holds: the default of TVM's former automatic quantization."""

from __future__ import annotations

from narrowgauge.calibration.extremes import Estimator, Range
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import RecipeError

GLOBAL_SCALE = 8.0
"""Half the width of the range, real units (TVM 0.19, relay/quantize/quantize.py, QConfig.global_scale)."""


def global_scale(reach: float = GLOBAL_SCALE) -> Estimator:
    """Make the estimator that gives every tensor the same step, `reach / 2^(bits - 1)`.

    TVM 0.19, relay/quantize/quantize.py, calibrate_mode "global_scale": the scale of all activations is
    `global_scale / 2^(nbit - 1)`, 8 / 128 for int8. It looks at no data. The step is exactly that one where the
    encoding is symmetric and signed; the range ends at the highest level, `reach` less one step.

    Args:
        reach: positive, real units.

    Raises:
        RecipeError: if it is not.
    """
    if not 0.0 < reach < float("inf"):
        raise RecipeError(f"expected a global scale above 0, got {reach}")

    def global_range(tensor: TensorStatistics, type: IntegerType, *, symmetric: bool) -> Range:
        half = 2 ** (type.bits - 1)
        most = reach * (half - 1) / half
        return Range(minimum=-most, maximum=most)

    return global_range
