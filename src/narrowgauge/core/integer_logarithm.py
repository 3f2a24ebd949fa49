"""Binary logarithms and square roots of integers, in integers."""

from __future__ import annotations

from math import isqrt
from typing import Literal

import numpy as np

from narrowgauge.core.integer_width import Integers, within

Threshold = Literal["three_halves", "square_root_of_two"]
"""From which ratio on `-log2 p` is rounded up. FQ-ViT's Log-Int-Softmax compares the bit behind the leading one, which
is 1 from 1.5 on; rounding the logarithm itself, as its log2 quantizer does, compares with the square root of 2."""


def floor_log2(values: Integers) -> Integers:
    """Return `floor(log2(values))` of integers of 1 to 2^63 - 1, by halving the width six times; 0 of 0."""
    rest, logarithm = np.asarray(values, dtype=np.int64), np.zeros(np.shape(values), dtype=np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        above = (rest >> step) > 0
        logarithm += step * above
        rest = np.where(above, rest >> step, rest)
    return np.asarray(logarithm)


def ratio_thresholds(threshold: Threshold, *, codes: int, fraction_bits: int) -> Integers:
    """Return the least ratios, in units of `2^-fraction_bits`, whose code is 1, 2, ... `codes`.

    A ratio is `floor((sum << fraction_bits) / e)` of one row's sum and one of its exponentials; its code is how many
    of these it reaches, which is `-log2(e / sum)` rounded.

    - "three_halves" is the paper's: `round(sum / e)`, half up, then the logarithm of that integer, up from 1.5 on. So
      code `k` begins where `sum / e` is `3 2^(k-2) - 1/2`, 1.5 of code 1: halves, exact from one fraction bit on.
      Differs: FQ-ViT's code rounds `sum / e` half to even, which moves `sum / e = 2.5` from code 2 to code 1 and no
      other.
    - "square_root_of_two": the ratio itself is compared with `2^(k-1/2)`, rounded up to a unit.

    Raises:
        ValueError: no fraction bit for "three_halves".
    """
    if threshold == "three_halves":
        if fraction_bits < 1:
            raise ValueError("the paper's thresholds are halves: expected at least 1 fraction bit, got 0")
        halves = [3] + [3 * 2 ** (code - 1) - 1 for code in range(2, codes + 1)]
        return np.array([half << (fraction_bits - 1) for half in halves][:codes], dtype=np.int64)
    squares = [2 ** (2 * (code + fraction_bits) - 1) for code in range(1, codes + 1)]
    return np.array([isqrt(square - 1) + 1 for square in squares], dtype=np.int64)


def integer_square_root(values: Integers) -> Integers:
    """Return `floor(sqrt(values))` of integers of 0 to 2^62 - 1, exactly.

    Newton's `x = (x + value / x) / 2` from the power of two at or above the root: the error is at most the root at
    first, then 1/4, 1/40, 3e-4, 5e-8 and 1e-15 of it, so that after five steps in integers at most 1 is too much.
    """
    values = np.asarray(values, dtype=np.int64)
    root = np.int64(1) << ((floor_log2(values) + 2) >> 1)
    for _ in range(5):
        root = np.maximum((root + values // root) >> 1, 1)
    return within(root - (root * root > values), 32)
