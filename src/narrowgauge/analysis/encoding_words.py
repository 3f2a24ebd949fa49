"""What encodings of every kind are called, span and step, for records and reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import AnyEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PowerOfTwoFactor, granularity_words


def type_words(encoding: AnyEncoding) -> str:
    """Name what numbers are written as: "int8", "log2 4 bits", "log2 8 bits, 16 an octave", "shares 8 bits"."""
    if isinstance(encoding, LogEncoding):
        parted = f", {2**encoding.octave_bits} an octave" if encoding.octave_bits else ""
        return f"log2 {encoding.type.bits} bits{parted}"
    if isinstance(encoding, NormalizedEncoding):
        return f"shares {encoding.type.bits} bits"
    return encoding.type.name


def scale_words(encoding: AnyEncoding) -> str:
    """Say what one scale of an encoding covers, as the records do."""
    if isinstance(encoding, LogEncoding):
        return "powers of two below each row’s greatest" if encoding.normalized else "powers of two"
    if isinstance(encoding, NormalizedEncoding):
        return "each row at run time"
    if not isinstance(encoding, Encoding):
        return "each tensor at run time"
    return granularity_words(encoding.granularity)


def channel_shifts(encoding: AnyEncoding | None) -> npt.NDArray[np.int64] | None:
    """Return the exponent of each channel's scale over the smallest one, where scales are powers of two apart."""
    there = isinstance(encoding, Encoding) and isinstance(encoding.granularity, PowerOfTwoFactor)
    if not there or not isinstance(encoding, Encoding) or not encoding.scale.size:
        return None
    exponents: npt.NDArray[np.int64] = np.rint(np.log2(encoding.scale / encoding.scale.min())).astype(np.int64)
    return exponents


def shift_words(encoding: AnyEncoding | None) -> str:
    """Say how far a channel's scales lie apart: "shifts 0 to 5"; "" where they are not powers of two apart."""
    shifts = channel_shifts(encoding)
    return "" if shifts is None else f"shifts {shifts.min()} to {shifts.max()}"


def representable(encoding: Encoding | LogEncoding | NormalizedEncoding) -> tuple[float, float]:
    """Smallest and largest number that an encoding holds, real units, of all channels.

    Of logarithms it is the smallest power of two above 0; where rows are normalized, numbers from 0 to 1.
    """
    if isinstance(encoding, LogEncoding) and not encoding.normalized:
        return float(encoding.values[-2]), 1.0
    if not isinstance(encoding, Encoding):
        return 0.0, 1.0
    return float(encoding.minimum.min()), float(encoding.maximum.max())


def steps(encoding: Encoding | LogEncoding | NormalizedEncoding, row: int | None) -> tuple[float, float]:
    """Smallest and largest distance of neighbouring levels, real units.

    The levels of a normalized row are divided by their sum. That is at least the greatest number's level, and at most
    the length of the row times that.

    Args:
        encoding: of the numbers.
        row: how many numbers a row along the last axis has; None if unknown, the smallest distance is then 0.
    """
    if isinstance(encoding, Encoding):
        return float(encoding.scale.min()), float(encoding.scale.max())
    if isinstance(encoding, NormalizedEncoding):
        apart = np.full(1, 1 / encoding.type.maximum)
    else:
        apart = -np.diff(encoding.values.astype(np.float64))
        if not encoding.normalized:
            return float(apart.min()), float(apart.max())
    return float(apart.min()) / row if row else 0.0, float(apart.max())
