"""How engines write rows of real numbers as levels at run time, exact in numpy; `hybrid` says which does which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import FloatArray, round_half_away

Integers = npt.NDArray[np.int64]

VECTOR = 8
"""Numbers that LiteRT's kernels round in one step; the rest of a row is rounded one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of numbers as levels.

    Attributes:
        levels: shape (rows, numbers).
        scale: float32, shape (rows, 1).
        zero_point: shape (rows, 1).
    """

    levels: Integers
    scale: FloatArray
    zero_point: Integers

    @property
    def steps(self) -> Integers:
        """The levels less the zero point: what products are made of."""
        return self.levels - self.zero_point


def round_symmetrically(values: FloatArray) -> Rows:
    """Round each row to -127 to 127 without zero point: `round(x * float32(127 / reach))`, scale `reach / 127`.

    LiteRT, SymmetricQuantizeFloats of neon_tensor_utils.cc, which x86-64 runs by translation.
    """
    reach = np.abs(values).max(axis=1, keepdims=True, initial=0)
    empty = reach == 0
    known = np.where(empty, np.float32(1), reach)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = values * np.where(empty, np.float32(0), np.float32(127) / known)
    return Rows(
        levels=_saturated(_round_in_vectors(steps), -127),
        scale=np.where(empty, np.float32(1), known / np.float32(127)),
        zero_point=np.zeros(reach.shape, np.int64),
    )


def round_asymmetrically(values: FloatArray) -> Rows:
    """Round each row to -128 to 127, 0 on the zero point: `round(x * float32(1 / scale)) + zero point`.

    LiteRT, AsymmetricQuantizeFloats of neon_tensor_utils.cc: extremes are taken apart in float32, all else of scale and
    zero point is float64. Of rows that reach no farther than 10^-36 the inverse of the scale is infinite; what LiteRT
    makes of these depends on the processor, here they saturate.
    """
    low, high = _extremes(values)
    empty = low == high
    exact = np.where(empty, 1.0, (high - low).astype(np.float64) / 255)
    below, above = low / exact, high / exact
    near_low = 128 + np.abs(below) < 127 + np.abs(above)
    rounded = np.clip(round_half_away(np.where(near_low, -128 - below, 127 - above)), -128, 127)
    zero_point: Integers = np.where(empty, 0, rounded).astype(np.int64)
    scale = exact.astype(np.float32)
    lost = scale == 0  # of numbers below float32's least
    with np.errstate(over="ignore", invalid="ignore"):
        steps = values * np.where(lost, np.float32(0), np.float32(1) / np.where(lost, np.float32(1), scale))
    return Rows(
        levels=_saturated(_round_in_vectors(steps) + zero_point, -128),
        scale=scale,
        zero_point=zero_point,
    )


def round_like_xnnpack(values: FloatArray) -> Rows:
    """Round each row to -128 to 127, 0 on the zero point: all in float32, by the inverse of the scale, half to even.

    XNNPACK, xnn_f32_qd8_asymmetric_quantization_params and the f32-qs8 conversion, which saturates before it rounds.
    """
    low, high = _extremes(values)
    empty = low == high
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = np.where(empty, np.float32(1), np.float32(255) / np.where(empty, np.float32(1), high - low))
        below, above = low * inverse, high * inverse
        near_low = (np.float32(-128) + below) + (np.float32(127) + above) > 0
        exact = np.where(near_low, np.float32(-128) - below, np.float32(127) - above)
        zero_point = np.rint(np.clip(exact, np.float32(-128), np.float32(127)))
        steps = np.clip(values * inverse, np.float32(-128) - zero_point, np.float32(127) - zero_point)
        scale = np.asarray(np.float32(1) / inverse, np.float32)
    return Rows(
        levels=_saturated(np.rint(steps) + zero_point, -128), scale=scale, zero_point=zero_point.astype(np.int64)
    )


def round_like_onnx(values: FloatArray) -> Rows:
    """Round each row to 0 to 255, 0 on the zero point, as ONNX's DynamicQuantizeLinear rounds a tensor."""
    low, high = _extremes(values)
    empty = low == high
    scale = np.asarray(np.where(empty, np.float32(1), (high - low) / np.float32(255)), np.float32)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        zero_point = np.rint(np.clip(np.nan_to_num(-(low / scale)), 0, 255)).astype(np.int64)
        steps = np.rint(values / scale).astype(np.float64)
    levels = np.clip(np.nan_to_num(steps) + zero_point, 0, 255).astype(np.int64)
    return Rows(levels=levels, scale=scale, zero_point=zero_point)


def _extremes(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return least and greatest number of each row, 0 among them; shape (rows, 1)."""
    low = np.asarray(values.min(axis=1, keepdims=True, initial=0))
    return low, np.asarray(values.max(axis=1, keepdims=True, initial=0))


def _round_in_vectors(steps: FloatArray) -> FloatArray:
    """Round half away from zero: in full vectors by adding one half in float32, which takes 0.49999997 for 0.5.

    neon_tensor_utils.cc, RoundToNearest: so on x86-64; on 64-bit ARM vectors round as the rest does.
    """
    half = np.where(steps < 0, np.float32(-0.5), np.float32(0.5))
    full = np.arange(steps.shape[1]) < steps.shape[1] // VECTOR * VECTOR
    return np.where(full, np.trunc(steps + half), round_half_away(steps))


def _saturated(levels: npt.NDArray[np.floating], least: int) -> Integers:
    return np.asarray(np.clip(np.nan_to_num(levels), least, 127), dtype=np.int64)
