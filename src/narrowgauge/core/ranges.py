"""From a real range to an encoding: scale and zero point of an affine integer code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import Granularity
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError

# The smallest scale: below it 1 / scale and products of two scales leave the normal float32 numbers.
SMALLEST_SCALE = 2.0**-60


def encoding_from_range(
    minimum: npt.ArrayLike,
    maximum: npt.ArrayLike,
    type: IntegerType,
    granularity: Granularity,
    *,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> Encoding:
    """Choose scale and zero point so that the levels cover a range.

    Asymmetric: `scale = (maximum - minimum) / (levels - 1)`, `zero_point = round(lowest - minimum / scale)`
    (Jacob et al. 2017, equation 1 and section 3; the range is first stretched to hold 0, so that 0 is a level).
    Symmetric: `scale = max(|minimum|, |maximum|) / highest level`, zero point 0 for a signed type (Wu et al.,
    "Integer Quantization for Deep Learning Inference", 2020, equation 4); an unsigned type puts 0 at its lowest
    level if nothing is negative and at its middle else.
    A range of no width becomes the range [-1, 1] times the smallest scale: every real 0 stays 0. A range whose
    values are all one number c != 0 is stretched to hold 0, so c is a level.

    Args:
        minimum: real units, shape `()` per tensor or the scale's shape.
        maximum: likewise, not below `minimum`.
        type: the integers.
        granularity: what one scale covers.
        symmetric: no zero point.
        power_of_two: the scale is rounded up to a power of two, so that the range is still covered.

    Raises:
        PlanError: if a bound is NaN or infinite, or a minimum lies above its maximum.
    """
    low = np.asarray(minimum, dtype=np.float64)
    high = np.asarray(maximum, dtype=np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise PlanError("expected a finite range, got NaN or infinity")
    if (low > high).any():
        raise PlanError("expected a range whose minimum is not above its maximum")
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = _symmetric_scale(low, high, type) if symmetric else (high - low) / (type.levels - 1)
    scale = np.maximum(scale, SMALLEST_SCALE)
    if power_of_two:
        scale = np.exp2(np.ceil(np.log2(scale)))
    step = scale.astype(np.float32)
    if symmetric:
        zero_point = np.broadcast_to(_symmetric_zero_point(low, type), step.shape)
    else:
        zero_point = np.clip(np.rint(type.minimum - low / step.astype(np.float64)), type.minimum, type.maximum)
    return Encoding(type=type, granularity=granularity, scale=step, zero_point=zero_point.astype(np.int32))


def _symmetric_scale(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], type: IntegerType
) -> npt.NDArray[np.float64]:
    reach = np.maximum(-low, high)
    zero_point = _symmetric_zero_point(low, type)
    steps: npt.NDArray[np.float64] = reach / (type.maximum - zero_point)
    return steps


def _symmetric_zero_point(low: npt.NDArray[np.float64], type: IntegerType) -> npt.NDArray[np.int64]:
    if type.signed:
        return np.zeros(low.shape, dtype=np.int64)
    # One for all channels: engines take no zero points that differ between them.
    return np.full(low.shape, (type.maximum + 1) // 2 if (low < 0).any() else 0, dtype=np.int64)
