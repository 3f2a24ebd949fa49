"""What rounding shares of a whole loses (what Softmax writes), where levels are no equal steps.

The error of a number is what it becomes less what it is. Of shares (`NormalizedEncoding`) all of it is rounding: the
greatest number of a row has the highest level, and nothing lies beyond it. Of logarithms (`LogEncoding`) a number above
0 that lies below the smallest power of two becomes 0: that is its clipping error; all else is rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.analysis.loss_sums import LossSums
from narrowgauge.core.encoding import LogEncoding, NormalizedEncoding
from narrowgauge.core.logarithmic import quantize_logarithm

FloatArray = npt.NDArray[np.float32]

_LEAST = np.float32(np.finfo(np.float32).tiny)  # a row of zeros stays one


def round_probabilities(
    values: npt.ArrayLike, encoding: LogEncoding | NormalizedEncoding
) -> tuple[npt.NDArray[np.integer], FloatArray]:
    """Round numbers as `lowering.probabilities` does.

    Args:
        values: numbers of 0 to 1, their rows along the last axis.
        encoding: what they are rounded to.

    Returns:
        Their levels, and what these mean, real units; both of the shape of `values`.
    """
    real = np.asarray(values, dtype=np.float32)
    if isinstance(encoding, LogEncoding):
        levels = quantize_logarithm(_over(real, "max") if encoding.normalized else real, encoding)
        meant = encoding.values[levels.astype(np.intp)]
        return levels, _over(meant, "sum") if encoding.normalized else meant
    highest = np.float32(encoding.type.maximum)
    levels = np.clip(np.rint(_over(real, "max") * highest), 0, highest).astype(encoding.type.storage)
    return levels, _over(levels.astype(np.float32), "sum")


def probability_sums(values: npt.ArrayLike, encoding: LogEncoding | NormalizedEncoding) -> LossSums:
    """Round a tensor and add up what that loses, sums in float64.

    Args:
        values: numbers of 0 to 1, finite, their rows along the last axis, at least one.
        encoding: what they are rounded to.
    """
    real = np.asarray(values, dtype=np.float32)
    levels, meant = round_probabilities(real, encoding)
    squares = np.square(meant.astype(np.float64) - real)
    beyond = np.zeros(real.shape, dtype=bool)
    if isinstance(encoding, LogEncoding):
        beyond = (levels == encoding.type.maximum) & (real > 0)
    counts = np.bincount(levels.astype(np.intp).reshape(-1), minlength=encoding.type.levels).astype(np.float64)
    return LossSums(
        elements=real.size,
        minimum=float(real.min()),
        maximum=float(real.max()),
        signal=float(np.square(real, dtype=np.float64).sum()),
        rounding=float(squares[~beyond].sum()),
        clipping=float(squares[beyond].sum()),
        clipped=float(np.count_nonzero(beyond)),
        levels=counts,
        free=np.where(counts > 0, -np.inf, 0.0),
    )


def _over(real: FloatArray, of_row: str) -> FloatArray:
    """Divide each number by the greatest or by the sum of its row."""
    whole = real.max(axis=-1, keepdims=True) if of_row == "max" else real.sum(axis=-1, keepdims=True)
    divided: FloatArray = real / np.maximum(whole, _LEAST)
    return divided
