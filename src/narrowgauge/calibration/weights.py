"""Ranges of weights, from the array itself: one per tensor, channel or block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, normalized_axis
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import ModelError, RecipeError

FloatArray = npt.NDArray[np.float32]
Ranges = tuple[FloatArray, FloatArray]
GroupRanges = Callable[[FloatArray, IntegerType, bool], Ranges]

# Shares of the extremes that the search tries. Weights have light tails: at 2 bits the best share of a Gaussian's
# extreme of 4 deviations is 1.71 / 4 = 0.43 (Banner et al. 2019), so 0.08 leaves room for outliers.
_SHARES = np.concatenate([1.0 - 0.02 * np.arange(31), 0.4 - 0.04 * np.arange(1, 9)])
# The error of a group of more elements is smooth: every fourth share is tried, then the neighbours of the best.
_FEW = 128
_STRIDE = 4
# Elements that are worked on at a time: their float32 copies stay in a core's cache.
_CHUNK = 1 << 16


def weight_range(
    weights: FloatArray,
    granularity: Granularity,
    type: IntegerType,
    *,
    symmetric: bool,
    estimator: str = "max",
) -> Ranges:
    """Choose the ranges of a weight.

    Args:
        weights: real units, float32.
        granularity: what one range covers.
        type: the integers that it will be written in.
        symmetric: whether the encoding will have no zero point.
        estimator: one of `WEIGHT_ESTIMATORS`.

    Returns:
        Minima and maxima, real units, float32, of the scale's shape (`core.granularity.scale_shape`).

    Raises:
        RecipeError: if there is no such estimator.
        PlanError: if the tensor has no such axis.
        ModelError: if a weight is NaN or infinite.
    """
    if estimator not in WEIGHT_ESTIMATORS:
        known = ", ".join(WEIGHT_ESTIMATORS)
        raise RecipeError(f"expected a range estimator of weights, one of {known}, got {estimator!r}")
    choose = WEIGHT_ESTIMATORS[estimator]
    real = np.asarray(weights, dtype=np.float32)
    if isinstance(granularity, PerTensor):
        low, high = _checked(choose, real.reshape(1, -1), type, symmetric)
        return low.reshape(()), high.reshape(())
    axis = normalized_axis(granularity.axis, real.ndim)
    if isinstance(granularity, PerAxis):
        channels = real.shape[axis]
        groups = np.moveaxis(real, axis, 0).reshape(channels, real.size // max(channels, 1))
        return _checked(choose, groups, type, symmetric)
    return _block_ranges(choose, real, PerBlock(axis, granularity.size), type, symmetric)


def _block_ranges(
    choose: GroupRanges, real: FloatArray, blocks: PerBlock, type: IntegerType, symmetric: bool
) -> Ranges:
    """Whole blocks first, then the shorter one at the end."""
    moved = np.moveaxis(real, blocks.axis, -1)  # (..., length)
    whole = moved.shape[-1] // blocks.size * blocks.size
    parts = [moved[..., :whole].reshape(*moved.shape[:-1], -1, blocks.size)] if whole else []
    if whole < moved.shape[-1]:
        parts.append(moved[..., whole:][..., None, :])
    found = [_checked(choose, part.reshape(-1, part.shape[-1]), type, symmetric) for part in parts]
    low, high = (
        np.concatenate([ends[side].reshape(part.shape[:-1]) for ends, part in zip(found, parts, strict=True)], axis=-1)
        for side in (0, 1)
    )
    return np.moveaxis(low, -1, blocks.axis), np.moveaxis(high, -1, blocks.axis)


def _checked(choose: GroupRanges, groups: FloatArray, type: IntegerType, symmetric: bool) -> Ranges:
    if groups.size == 0:
        return np.zeros(groups.shape[0], np.float32), np.zeros(groups.shape[0], np.float32)
    low, high = choose(np.ascontiguousarray(groups), type, symmetric)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ModelError("expected finite weights, got NaN or infinity; export the network again from sound weights")
    return low, high


def _max_ranges(groups: FloatArray, type: IntegerType, symmetric: bool) -> Ranges:
    """Extremes of each group, `(groups, elements)` to two of `(groups,)`."""
    return groups.min(axis=1), groups.max(axis=1)


def _mse_ranges(groups: FloatArray, type: IntegerType, symmetric: bool) -> Ranges:
    """Ranges of least squared error of each group; see `calibration.squared_error.mse_range` for the sources.

    Without a zero point both ends shrink together; with one, together first, then each alone. Never worse than the
    extremes, which are the first candidate.
    """
    low, high = _max_ranges(groups, type, symmetric)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return low, high
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    searches = [(True, True)] if symmetric else [(True, True), (True, False), (False, True)]
    for moves_low, moves_high in searches:
        tried = _SHARES if moves_low and moves_high else _SHARES[::2]
        still = np.ones_like(tried)
        shares = np.stack([tried if moves_low else still, tried if moves_high else still])
        low, high = _least_error(groups, low, high, shares, (type, symmetric))
    return low, high


def _least_error(
    groups: FloatArray,
    low: FloatArray,
    high: FloatArray,
    shares: npt.NDArray[np.float64],
    code: tuple[IntegerType, bool],
) -> Ranges:
    """Of ranges shrunk to each of the shares `(2, candidates)`, those of least squared error per group."""

    def best_of(tried: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Best of some candidates, `(tried, groups)`, the earlier one of two equals."""
        errors = np.stack([_errors(groups, low * shares[0, t], high * shares[1, t], code) for t in tried])
        best: npt.NDArray[np.int64] = np.take_along_axis(tried, errors.argmin(axis=0)[None], axis=0)[0]
        return best

    stride = 1 if groups.shape[1] <= _FEW else _STRIDE
    every = np.arange(0, shares.shape[1], stride)[:, None]
    best = best_of(np.broadcast_to(every, (every.size, groups.shape[0])))
    if stride > 1:
        moves = np.array(sorted(range(1 - stride, stride), key=abs))[:, None]
        best = best_of(np.clip(best + moves, 0, shares.shape[1] - 1))
    return (low * shares[0, best]).astype(np.float32), (high * shares[1, best]).astype(np.float32)


def _errors(
    groups: FloatArray,
    low: npt.NDArray[np.floating],
    high: npt.NDArray[np.floating],
    code: tuple[IntegerType, bool],
) -> npt.NDArray[np.float64]:
    """Sum of squared errors of each group under its range, float64."""
    type, symmetric = code
    encoding = encoding_from_range(low, high, type, PerAxis(0), symmetric=symmetric)
    scale = encoding.scale[:, None]  # (groups, 1), the same below
    inverse = 1.0 / scale
    lowest = (type.minimum - encoding.zero_point).astype(np.float32)[:, None]
    highest = (type.maximum - encoding.zero_point).astype(np.float32)[:, None]
    result = np.empty(groups.shape[0])
    rows = max(1, _CHUNK // groups.shape[1])
    for start in range(0, groups.shape[0], rows):
        part = slice(start, start + rows)
        steps = groups[part] * inverse[part]
        levels = np.rint(steps)
        np.clip(levels, lowest[part], highest[part], out=levels)
        steps -= levels
        result[part] = np.einsum("ge,ge->g", steps, steps) * encoding.scale[part].astype(np.float64) ** 2
    return result


WEIGHT_ESTIMATORS: dict[str, GroupRanges] = {"max": _max_ranges, "mse": _mse_ranges}
