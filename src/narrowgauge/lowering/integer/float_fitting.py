"""Float rescales for rules that are none: proved by their thresholds, since a QLinearConv is ten times as fast.

FBGEMM and oneDNN add a real bias to the sum in float32. Where the bias is a whole number of units, which it is in the
Q/DQ form of a target with integer biases, one float32 multiplier gives the same levels for all sums that can occur, in
most layers; it is the engine's own or one of those next to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.engines.kernels import Layer, LayerForm
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale
from narrowgauge.lowering.integer.fitting import Integers, thresholds

_SHARES = (0.5, 0.25, 0.75, 0.1, 0.9)
"""Places between the least and the greatest multiplier that are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """Where levels change.

    Attributes:
        levels: shape (levels,).
        sums: the least that reaches each of them, shape (levels, channels).
        always: whether every sum that can occur reaches it, the same shape.
        never: whether none does.
    """

    levels: Integers
    sums: Integers
    always: npt.NDArray[np.bool_]
    never: npt.NDArray[np.bool_]


def float_form(form: LayerForm, layer: Layer, least: Integers, greatest: Integers) -> LayerForm:
    """Find a float rescale and an integer bias that give a layer's levels for every sum that can occur.

    Args:
        form: of the layer.
        layer: what it is of.
        least: least sum that can occur, without a bias, shape (channels,).
        greatest: the greatest one.

    Returns:
        The form found; the given one where that is no computed rule of 8-bit levels, or none was found.
    """
    rule = form.rescale
    if not isinstance(rule, ComputedRescale) or form.bias is not None or layer.output.type.bits > 8:
        return form
    unit = (layer.input.scale * layer.weights.scale).astype(np.float64)
    bias = np.zeros(least.shape, np.int64)
    if layer.bias is not None:
        bias += np.rint(layer.bias.astype(np.float64) / unit).astype(np.int64)
    levels = np.arange(rule.low + 1, rule.high + 1, dtype=np.int64)
    known = thresholds(rule, levels, least, greatest)
    asked = _Asked(levels=levels, sums=known, always=known <= least, never=known > greatest)
    found = FloatRescale(
        multiplier=np.broadcast_to((unit / layer.output.scale).astype(np.float32), least.shape).copy(),
        zero_point=int(layer.output.zero_point), low=rule.low, high=rule.high,
    )  # fmt: skip
    fits = _fits(found, bias, asked)
    lowest, highest = _multipliers(levels - found.zero_point - 0.5, known + bias, ~(asked.always | asked.never))
    for share in _SHARES:
        if fits.all():
            return LayerForm(bias=bias, rescale=found)
        with np.errstate(invalid="ignore", over="ignore"):  # nothing may bound a channel's multiplier
            tried = (lowest + (highest - lowest) * share).astype(np.float32)
        tried = np.where(np.isfinite(tried) & (tried > 0) & ~fits, tried, found.multiplier)
        better = _fits(replace(found, multiplier=tried), bias, asked)
        found = replace(found, multiplier=np.where(better, tried, found.multiplier))
        fits = fits | better
    return LayerForm(bias=bias, rescale=found) if fits.all() else form


def _multipliers(
    steps: npt.NDArray[np.floating[Any]], sums: Integers, inside: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return between which multipliers each sum reaches its number of steps and the sum before does not.

    Args:
        steps: shape (levels,), half a step before the level.
        sums: least sums of the levels, bias included, shape (levels, channels).
        inside: which of them tell something.

    Returns:
        The least and the greatest multiplier, shape (channels,); infinite where nothing bounds it, and crossed where
        there is none.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        reached, before = steps[:, None] / sums, steps[:, None] / (sums - 1)
    lowest = np.maximum(
        np.where(inside & (sums > 0), reached, -np.inf).max(axis=0),
        np.where(inside & (sums < 1), before, -np.inf).max(axis=0),
    )
    highest = np.minimum(
        np.where(inside & (sums < 0), reached, np.inf).min(axis=0),
        np.where(inside & (sums > 1), before, np.inf).min(axis=0),
    )
    return lowest, highest


def _fits(form: FloatRescale, bias: Integers, asked: _Asked) -> npt.NDArray[np.bool_]:
    """Tell for each channel whether a form reaches each level at its sum, and not at the sum before."""
    reached = form.levels(asked.sums + bias) >= asked.levels[:, None]
    before = form.levels(asked.sums - 1 + bias) < asked.levels[:, None]
    return np.asarray(((reached | asked.never) & (before | asked.always)).all(axis=0))
