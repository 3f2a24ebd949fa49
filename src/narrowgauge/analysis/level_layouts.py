"""Levels of two networks in one layout and one type, so that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How the engine's array gets the shape of ours: `transpose(axes).reshape(shape)`; `axes` None where they stay."""

    axes: tuple[int, ...] | None = None
    reshaped: bool = False

    def of(self, other: Array, shape: tuple[int, ...]) -> Array | None:
        """The array in our layout; None where it does not get that shape."""
        if self.axes is not None and other.ndim == len(self.axes):
            other = other.transpose(self.axes)
        if self.reshaped and _without_ones(other.shape) == _without_ones(shape):
            other = other.reshape(shape)
        return other if other.shape == shape else None


AS_SAID = Fit(reshaped=True)
"""The layout of an array that is in ours already, since its file says how it lies; axes of size 1 may be missing."""


def as_type_of(levels: Array, kind: np.dtype[Any]) -> Array:
    """Count levels from the same end as those of another type of the same width: 0 of uint8 is -128 of int8."""
    if levels.dtype.itemsize != kind.itemsize or {levels.dtype.kind, kind.kind} != {"i", "u"}:
        return levels
    shift = np.iinfo(levels.dtype).min - np.iinfo(kind).min
    return (levels.astype(np.int64) - shift).astype(kind)


def best_fit(one: Array, other: Array) -> Fit | None:
    """Find the layout of the engine's array in which most elements are equal; None where none has our shape.

    A guess, for files that do not say how their tensors lie. The channels may stand behind all other axes instead of
    behind the batch; axes of size 1 may be missing.
    """
    axes = range(1, other.ndim - 1)
    orders = [(0, other.ndim - 1, *axes), (0, *range(2, other.ndim), 1)] if other.ndim > 2 else []
    fits = [Fit(), *(Fit(axes=order) for order in dict.fromkeys(orders))]
    fitting = [(fit, found) for fit in fits if (found := fit.of(other, one.shape)) is not None]
    if fitting:
        return min(fitting, key=lambda pair: np.count_nonzero(one != pair[1]))[0]
    return AS_SAID if _without_ones(one.shape) == _without_ones(other.shape) else None


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
