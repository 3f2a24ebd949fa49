"""GELU of levels: a table of every level, and I-BERT's polynomial beside it.

The table is the one to use: each level rounded once, one look-up, 256 bytes of 8-bit levels and 128 kB of 16-bit ones.
`PolynomialGelu` needs no table, which pays on chips without a memory for one, and is off by up to 0.018 in the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.integer_width import LARGEST_INT32, Integers, within
from narrowgauge.errors import PlanError

Approximation = Literal["none", "tanh"]
"""ONNX's: by the error function, or by the hyperbolic tangent."""

_SQUARE = 0.2888
_REACH = 1.769


def gelu(real: npt.NDArray[np.float64], approximate: Approximation = "none") -> npt.NDArray[np.float64]:
    """Compute `x / 2 (1 + erf(x / sqrt 2))`, or its approximation by tanh, in float64.

    Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", 2016.
    """
    if approximate == "tanh":
        return np.asarray(real / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (real + 0.044715 * real**3))))
    halves = [math.erfc(-x / math.sqrt(2)) / 2 for x in np.ravel(real).tolist()]
    return np.asarray(real * np.reshape(halves, np.shape(real)))


def gelu_table(input: Encoding, output: Encoding, approximate: Approximation = "none") -> Integers:
    """Tabulate the output's level for each level of the input's type, from the least on; rounded half to even.

    Args:
        input: at most 16 bits, one scale or one per channel (a power-of-two factor).
        output: one scale, or one per channel.
        approximate: which GELU.

    Returns:
        int64, shape (levels,), or (channels, levels) where either has several scales; 8 bits have 256 levels.

    Raises:
        PlanError: a type of more than 16 bits, or numbers of channels that differ.
    """
    if input.type.bits > 16 or output.type.bits > 16:
        raise PlanError(f"expected levels of at most 16 bits, got {input.type.name} and {output.type.name}")
    channels = {each.scale.size for each in (input, output) if each.scale.ndim}
    if len(channels) > 1 or max(input.scale.ndim, output.scale.ndim) > 1:
        raise PlanError(f"expected one scale, or as many as channels, got {input.scale.shape} and {output.scale.shape}")
    levels = np.arange(input.type.minimum, input.type.maximum + 1, dtype=np.int64)
    real = (levels - input.zero_point[..., None]) * input.scale.astype(np.float64)[..., None]
    steps = np.rint(gelu(real, approximate) / output.scale.astype(np.float64)[..., None])
    written = np.clip(steps + output.zero_point[..., None], output.type.minimum, output.type.maximum)
    return np.asarray(written, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolynomialGelu:
    """I-BERT's i-GELU: `q (one + sign(q) (one - (min(|q|, reach) - reach)^2))`, a product of levels and a polynomial.

    Kim, Gholami, Yao, Mahoney, Keutzer, "I-BERT: Integer-only BERT Quantization", 2021, section 3.4:
    `erf(x) = sign(x) (a (min(|x|, -b) + b)^2 + 1)`, a = -0.2888, b = -1.769. Differs: signs turned so that every
    coefficient is positive; their code shifts the polynomial by 14 bits to the right before the last product, here
    nothing is lost.

    | number | bound | bits, the sign's included |
    |---|---|---|
    | `q`, a level less its zero point | 255 or 65535 | 9 or 17 |
    | `(min(abs(q), reach) - reach)^2` | `reach^2 <= one` | 32 |
    | result | `2 one abs(q)` | 32 |

    `reach = floor(1.769 sqrt 2 / scale)` and `one = floor(6.925 / scale^2)`. So the result fits int32 from a scale of
    `sqrt(13.85 * 255 / 2^31)` = 0.00128 on with 8 bits, and of 0.0206 on with 16 bits (`polynomial_gelu` checks).

    Attributes:
        reach: levels beyond which the error function is 1.
        one: what stands for 1 of the error function.
        unit: real value of one unit of the result.
    """

    reach: int
    one: int
    unit: float

    def values(self, steps: Integers) -> Integers:
        """Compute from levels less the zero point, any shape, in units of `unit`; a rescale makes levels of it."""
        distance = np.minimum(np.abs(steps), self.reach) - self.reach
        error_function = np.sign(steps) * (self.one - within(distance * distance, 32))
        return within(steps * within(error_function + self.one, 32), 32)


def polynomial_gelu(input: Encoding) -> PolynomialGelu:
    """Find the integers of i-GELU for one scale.

    Raises:
        PlanError: several scales, or one with which the result does not fit int32 or no polynomial is left.
    """
    if input.scale.ndim:
        raise PlanError(f"i-GELU takes one scale, got shape {input.scale.shape}; use the table")
    scale = float(input.scale)
    one, reach = math.floor(2 / (_SQUARE * scale**2)), math.floor(_REACH * math.sqrt(2) / scale)
    zero_point = int(input.zero_point)
    widest = max(input.type.maximum - zero_point, zero_point - input.type.minimum)
    if reach < 1 or 2 * one * widest > LARGEST_INT32:
        least = math.sqrt(4 / _SQUARE * widest / LARGEST_INT32)
        raise PlanError(f"i-GELU of {input.type.name} fits int32 with a scale of {least:.3g} to 2.5, got {scale}")
    return PolynomialGelu(reach=reach, one=one, unit=scale**3 * _SQUARE / 4)
