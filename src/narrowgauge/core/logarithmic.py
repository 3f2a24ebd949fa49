"""The definition of rounding numbers of 0 to 1 to levels of their logarithm, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import LogEncoding

FloatArray = npt.NDArray[np.float32]


def quantize_logarithm(values: npt.ArrayLike, encoding: LogEncoding) -> npt.NDArray[np.integer]:
    """Write numbers as levels of `-log2`, saturated to the highest, which means 0.

    "three_halves": `r = floor(1 / x + 1/2)`, and the level is the greatest q with `r >= 3 2^(q - 2)`; 0 for r = 1.
    "square_root_of_two": `floor(-2^octave_bits log2(x) + 1/2)`.

    Args:
        values: real units, any shape; what lies above 1 becomes level 0, what is not above 0, or NaN, the highest.
        encoding: which logarithm.

    Returns:
        Levels in the type's storage dtype, the shape of `values`.
    """
    real = np.nan_to_num(np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0), nan=0.0)
    with np.errstate(divide="ignore"):
        if encoding.threshold == "three_halves":
            ratio = np.floor(1 / real + 0.5)
            # Just above its integers the logarithm may come out just below them.
            levels = np.floor(np.log2(ratio * (4 / 3)) + 1e-12)
        else:
            levels = np.floor(-np.log2(real) * 2.0**encoding.octave_bits + 0.5)
    return np.clip(levels, 0, encoding.type.maximum).astype(encoding.type.storage)


def dequantize_logarithm(levels: npt.ArrayLike, encoding: LogEncoding) -> FloatArray:
    """Write levels as real numbers: `2^(-level / 2^octave_bits)`, the highest as 0."""
    real: FloatArray = encoding.values[np.asarray(levels, dtype=np.int64)]
    return real
