"""Operators on two tensors that LiteRT computes in integers and that are no sum or product of two rescaled levels.

Each is a table of every pair of 8-bit levels, int64, shape (256, 256). Sources are named below `tflite/kernels/` of
google-ai-edge/LiteRT.
"""

from __future__ import annotations

import numpy as np

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import Rule, quantized_multiplier
from narrowgauge.core.engines.kernels import steps
from narrowgauge.core.engines.tflite_tables import Table, ratio_multiplier, saturated


def parametric_relu(input: Encoding, slope: Encoding, output: Encoding, rule: Rule) -> Table:
    """Negative numbers times their slopes (activations.cc, PreluPrepare; internal/reference/prelu.h)."""
    values, slopes = steps(input)[:, None], steps(slope)[None, :]
    positive = rule.literal(values, ratio_multiplier(input.scale / output.scale))
    negative = rule.literal(values * slopes, ratio_multiplier(input.scale * slope.scale / output.scale))
    return saturated(np.where(values >= 0, positive, negative) + int(output.zero_point), output)


def squared_difference(first: Encoding, second: Encoding, output: Encoding, rule: Rule) -> Table:
    """Difference in units of twice the greater scale over 2^7, squared (squared_difference.cc)."""
    twice_greater = 2 * np.float64(max(first.scale, second.scale))
    terms = [
        rule.literal(steps(one) << 7, quantized_multiplier(np.float64(one.scale) / twice_greater))
        for one in (first, second)
    ]
    squares = (terms[0][:, None] - terms[1][None, :]) ** 2
    real = twice_greater * twice_greater / np.float64(np.float32(2**14) * output.scale)
    return saturated(rule.literal(squares, ratio_multiplier(real)) + int(output.zero_point), output)
