"""The widths of integers: every step of an arithmetic says how many bits it has, and is held to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

LARGEST_INT32 = 2**31 - 1


def within(values: npt.ArrayLike, bits: int) -> Integers:
    """Return signed integers unchanged, asserting that each fits `bits` bits, the sign's included.

    The bounds follow from parameters that were checked before, so an integer that does not fit is an error of ours.
    """
    integers: Integers = np.asarray(values, dtype=np.int64)
    if integers.size:
        limit = 1 << (bits - 1)
        low, high = int(integers.min()), int(integers.max())
        assert -limit <= low, f"expected integers of {bits} bits, got {low}"
        assert high < limit, f"expected integers of {bits} bits, got {high}"
    return integers


def shift_half_up(values: Integers, shift: npt.ArrayLike) -> Integers:
    """Divide by `2^shift`, half up: `(values + (1 << shift - 1)) >> shift`; a negative shift multiplies instead."""
    right = np.asarray(shift, dtype=np.int64)
    down = np.maximum(right, 0)
    half = (np.int64(1) << down) >> 1
    return np.asarray(((values << np.maximum(-right, 0)) + half) >> down)
