"""Layers with constant weights: convolutions, fully connected layers, matrix products.

Where the engine scales its sums by a float32 number and rounds half to even, ONNX's QLinearConv does the same in one
step: with scales of 1 before and behind, `float32(1 * weight scale / 1)` is the engine's multiplier, bit for bit. All
other rules take the int32 sums of ConvInteger or MatMulInteger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import Layer, LayerForm, LayerKind
from narrowgauge.core.engines.rescale import FloatRescale
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.emitter import Result, Site, Source, offset
from narrowgauge.lowering.integer.fitting import Integers
from narrowgauge.lowering.integer.float_fitting import float_form
from narrowgauge.lowering.pairs import dequantized, encoding_of

_WEIGHT_TYPES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Constant weights.

    Attributes:
        levels: int64, output channels first: (channels, inputs a group, ...).
        encoding: one scale or one per output channel.
    """

    levels: Integers
    encoding: Encoding

    @property
    def zero_points(self) -> Integers:
        """Zero point of each channel, in a shape that broadcasts over the levels."""
        return self.encoding.zero_point.astype(np.int64).reshape(-1, *(1,) * (self.levels.ndim - 1))


def weights_of(node: ir.Node, axis: int) -> Weights:
    """Read constant weights whose output channels lie along an axis.

    Raises:
        PlanError: they are computed, or not levels of 8 bits or fewer with one scale or one per output channel.
    """
    linear = dequantized(node.inputs[1], _WEIGHT_TYPES)
    encoding = encoding_of(linear) if linear is not None else None
    levels = constant_array(linear.levels) if linear is not None else None
    if linear is None or encoding is None or levels is None:
        raise PlanError("its weights are not constant levels of 8 bits or fewer")
    if axis >= levels.ndim:
        raise PlanError(f"its weights have rank {levels.ndim}, expected {axis + 1} or more")
    if linear.axis is not None and linear.axis % levels.ndim != axis % levels.ndim:
        raise PlanError(f"its weights have scales along axis {linear.axis}, output channels lie along {axis}")
    granularity = PerTensor() if linear.axis is None else PerAxis(0)
    encoding = Encoding(
        type=encoding.type, granularity=granularity, scale=encoding.scale, zero_point=encoding.zero_point
    )
    return Weights(levels=np.moveaxis(levels.astype(np.int64), axis, 0), encoding=encoding)


def bias_of(
    value: ir.Value | None, channels: int, unit: npt.NDArray[np.float32]
) -> npt.NDArray[np.floating[Any]] | None:
    """Read a constant bias as real numbers, shape (channels,): levels of `unit` exactly, in float64.

    Raises:
        PlanError: it is computed, or has another shape.
    """
    if value is None:
        return None
    array = constant_array(value)
    if array is None:
        linear = dequantized(value, (ir.DataType.INT32,))
        encoding = encoding_of(linear) if linear is not None else None
        levels = constant_array(linear.levels) if linear is not None else None
        if encoding is None or levels is None:
            raise PlanError("its bias is computed")
        if (encoding.scale == unit).all():
            # What the levels stand for, with more bits than float32 has: the kernels find the levels again.
            array = levels.reshape(-1) * encoding.scale.astype(np.float64)
        else:
            array = levels.reshape(-1).astype(np.float32) * encoding.scale
    if array.size not in (1, channels) or array.size != max(array.shape, default=1):
        raise PlanError(f"its bias has shape {array.shape}, expected one number for each of {channels} channels")
    return np.broadcast_to(array.reshape(-1), (channels,))


def form_of(
    site: Site, kind: LayerKind, source: Source, weights: Weights, bias: ir.Value | None, result: Result,
    groups: int = 1,
) -> LayerForm:  # fmt: skip
    """Ask the engine's kernels how a layer's sums become levels, in float32 where that is the same.

    Raises:
        PlanError: the kernels refuse it, or 32 bits may not hold its sums.
    """
    _check_sums(site, source, weights)
    sizes = dimensions(site.node.inputs[0])
    unit = np.asarray(source.encoding.scale * weights.encoding.scale)
    layer = Layer(
        kind=kind, input=source.encoding, weights=weights.encoding, output=result.encoding,
        bias=bias_of(bias, len(weights.levels), unit), bounds=result.rounding.bounds, groups=groups,
        channels=len(weights.levels), fixed_shape=sizes is not None and None not in sizes,
    )  # fmt: skip
    return float_form(site.kernels.layer(layer), layer, *reach(source, weights))


def reach(source: Source, weights: Weights) -> tuple[Integers, Integers]:
    """Return the least and the greatest sum that weights make of any levels, shape (channels,).

    Padding adds nothing, which lies between. Sums of 8-bit levels are int32 here and in the engines.
    """
    container = np.iinfo(source.encoding.type.storage)
    lowest, highest = (end - int(source.encoding.zero_point) for end in (container.min, container.max))
    steps = (weights.levels - weights.zero_points).reshape(len(weights.levels), -1)
    up, down = np.maximum(steps, 0).sum(axis=1), np.minimum(steps, 0).sum(axis=1)
    least, greatest = up * lowest + down * highest, up * highest + down * lowest
    if source.encoding.type.bits == 8:
        return np.maximum(least, _INT32.min), np.minimum(greatest, _INT32.max)
    return least, greatest


def _check_sums(site: Site, source: Source, weights: Weights) -> None:
    """Refuse sums of products with bytes that int32 does not hold.

    In engines with 32 bits for sums of 8-bit levels those wrap around, as they do here; the arithmetic that is defined
    here has none that do.
    """
    if source.encoding.type.bits == 8 and not site.kernels.transformer_forms:
        return
    steps = (weights.levels - weights.zero_points).reshape(len(weights.levels), -1)
    up, down = np.maximum(steps, 0).sum(axis=1), -np.minimum(steps, 0).sum(axis=1)
    for zero in _byte_zero_points(source):
        largest = np.maximum(up * (255 - zero) + down * zero, up * zero + down * (255 - zero))
        if largest.max(initial=0) > _INT32.max:
            raise PlanError(f"it adds up {steps.shape[1]} products, which 32 bits may not hold")


def _byte_zero_points(source: Source) -> tuple[int, ...]:
    """Return the zero point of 8-bit levels as they are kept, those of both bytes, low first, of 16-bit levels."""
    if source.encoding.type.bits == 8:
        return (zero_point_of(source),)
    raised = zero_point_of(source) - int(np.iinfo(source.encoding.type.storage).min)
    return raised & 255, raised >> 8


def at_once(source: Source, weights: Weights, form: LayerForm, result: Result) -> bool:
    """Whether QLinearConv does it: 8 bits, one zero point of the weights, a bias that fits its sums."""
    bias = np.zeros(1) if form.bias is None else form.bias
    least, greatest = reach(source, weights)
    return (
        isinstance(form.rescale, FloatRescale)
        and source.encoding.type.bits == 8
        and result.encoding.type.bits == 8
        and len(np.unique(weights.zero_points)) == 1
        and bool((least + bias >= _INT32.min).all() and (greatest + bias <= _INT32.max).all())
    )


def zero_point_of(source: Source) -> int:
    """Return the zero point of levels as they are kept."""
    return int(source.encoding.zero_point) + offset(source.linear)


def unsigned_weights(weights: Weights) -> tuple[npt.NDArray[np.uint8], int]:
    """Write weights as uint8 with one zero point: ConvInteger of int8 weights takes five times as long (ORT 1.31).

    Raises:
        PlanError: the channels' zero points differ too much.
    """
    steps = weights.levels - weights.zero_points
    zero_point = int(-min(steps.min(initial=0), 0))
    if weights.encoding.type.signed and not weights.zero_points.any():
        zero_point = 128
    if steps.max(initial=0) + zero_point > 255:
        raise PlanError("its weights, less their zero points, span more than 8 bits")
    return (steps + zero_point).astype(np.uint8), zero_point


def by_bytes(site: Site, source: Source, sums: Any, ends: tuple[Integers, Integers]) -> ir.Value:
    """Sum products of 8-bit levels, or of both bytes of 16-bit levels: `256 * high + low`.

    Args:
        site: the operator.
        source: the levels.
        sums: (levels of 8 bits, their zero point, name) -> int32 sums.
        ends: the least and the greatest sum.
    """
    inside = bool(ends[0].min(initial=0) >= _INT32.min and ends[1].max(initial=0) <= _INT32.max)
    zero_points = _byte_zero_points(source)
    if source.encoding.type.bits == 8:
        made: ir.Value = sums(source.value, zero_points[0], "input")
        return made
    shift = -np.iinfo(source.encoding.type.storage).min  # to levels from 0 on
    wide = site.cast(source.value, ir.DataType.INT32)
    low = sums(site.cast(wide, ir.DataType.UINT8), zero_points[0], "low")
    raised = site.add("Add", wide, site.constant(shift, "raised", np.int32)) if shift else wide
    places = site.constant(8, "byte", np.uint32)
    high = site.add("BitShift", site.cast(raised, ir.DataType.UINT32), places, direction="RIGHT")
    high = sums(site.cast(high, ir.DataType.UINT8), zero_points[1], "high")
    kind = ir.DataType.INT32 if inside else ir.DataType.INT64
    factor = site.constant(256, "base", np.int32 if inside else np.int64)
    high = site.add("Mul", site.cast(high, kind), factor)
    return site.add("Add", high, site.cast(low, kind))
