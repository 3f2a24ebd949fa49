"""Energies of values and of their errors, and the noise at a network's outputs that follows from them.

Numbers that are not finite in the float network (masks of minus infinity) count in neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Elements whose float64 copies stay in a core's cache.
_PIECE_ELEMENTS = 1 << 15


def energy(values: Array) -> float:
    """Sum of the squares of the finite numbers, in float64."""
    total = 0.0
    for piece in _pieces(values):
        part = float(np.dot(piece, piece))
        if not math.isfinite(part):
            finite = piece[np.isfinite(piece)]
            part = float(np.dot(finite, finite))
        total += part
    return total


def error_energy(reference: Array, other: Array) -> float:
    """Sum of (other - reference)^2 over the elements that are finite in the reference; both have one shape.

    Infinity where the other one is not finite at one of these.
    """
    total = 0.0
    for one, two in zip(_pieces(reference), _pieces(other), strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            difference = two - one
            part = float(np.dot(difference, difference))
            if not math.isfinite(part):
                difference[~np.isfinite(one)] = 0
                part = float(np.dot(difference, difference))
        total += part
    return total if math.isfinite(total) else math.inf


def output_noise(errors: Iterable[float], signals: Iterable[float]) -> float:
    """Energy of the errors relative to the signals', the mean over the outputs: no output is drowned by a larger one.

    An output without an error counts 0, one of zeros with an error infinity.

    Args:
        errors: of each output, summed over the samples.
        signals: likewise.
    """
    shares = [
        0.0 if error == 0 else error / signal if signal > 0 else math.inf
        for error, signal in zip(map(float, errors), map(float, signals), strict=True)
    ]
    return sum(shares) / max(len(shares), 1)


def _pieces(array: Array) -> Iterator[npt.NDArray[np.float64]]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _PIECE_ELEMENTS):
        yield flat[start : start + _PIECE_ELEMENTS].astype(np.float64)
