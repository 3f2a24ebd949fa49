"""Transposed convolutions: of levels between which zero points are put, a convolution with the kernel turned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import PlanError
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.convolutions import bias_input, convolved
from narrowgauge.lowering.integer.emitter import Site, Source, result_of
from narrowgauge.lowering.integer.layers import Weights, form_of, weights_of, zero_point_of
from narrowgauge.lowering.integer.windows import shares


def transposed_convolution(node: ir.Node, site: Site) -> None:
    """ConvTranspose.

    Raises:
        PlanError: its padding follows from the shape of its output, and the extents of its input are not known.
    """
    source, result = site.source(0), result_of(node.outputs[0])
    groups = node.attributes.get_int("group", 1)
    weights = _turned(node, groups)
    form = form_of(site, "transposed", source, weights, bias_input(node), result, groups)
    value = _spaced(site, source, _axes(node, weights.levels.shape[2:]))
    attributes: dict[str, Any] = {
        name: node.attributes[name].value for name in ("group", "dilations") if name in node.attributes
    }
    site.write(convolved(site, replace(source, value=value), weights, form, result, attributes), result)


def _turned(node: ir.Node, groups: int) -> Weights:
    """Read weights [inputs, channels a group, ...] as those of a convolution: [channels, inputs a group, ...].

    Scales along axis 1 are those of each group's channels.
    """
    weights = weights_of(node, 1)
    levels = weights.levels  # [channels a group, inputs, ...]
    if groups < 1 or levels.shape[1] % groups:
        raise PlanError(f"its weights are of {levels.shape[1]} inputs, expected a multiple of {groups} groups")
    apart = levels.reshape(len(levels), groups, -1, *levels.shape[2:])
    turned = np.moveaxis(apart, 1, 0).reshape(groups * len(levels), -1, *levels.shape[2:])
    turned = np.flip(turned, axis=tuple(range(2, levels.ndim)))
    return Weights(levels=np.ascontiguousarray(turned), encoding=_of_groups(weights.encoding, groups))


def _of_groups(encoding: Encoding, groups: int) -> Encoding:
    if not encoding.scale.ndim:
        return encoding
    return replace(encoding, scale=np.tile(encoding.scale, groups), zero_point=np.tile(encoding.zero_point, groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    """One spatial axis.

    Attributes:
        stride: how far apart levels lie in the output.
        before: zero points before the first level, negative to cut some off.
        after: behind the last level's `stride - 1` zero points.
    """

    stride: int
    before: int
    after: int


def _axes(node: ir.Node, kernel: tuple[int, ...]) -> list[_Axis]:
    """Work out the padding as ONNX and ONNX Runtime do (ConvTranspose-11; conv_transpose_attributes.h)."""
    rank, attributes = len(kernel), node.attributes
    strides, dilations = (attributes.get_ints(name, (1,) * rank) for name in ("strides", "dilations"))
    pads, beyond = attributes.get_ints("pads", (0,) * 2 * rank), attributes.get_ints("output_padding", (0,) * rank)
    automatic, wanted = attributes.get_string("auto_pad", "NOTSET"), attributes.get_ints("output_shape", ())
    extents = (dimensions(node.inputs[0]) or (None,) * (rank + 2))[2:]
    axes = []
    for axis, (stride, size) in enumerate(zip(strides, kernel, strict=True)):
        reach, extra = (size - 1) * dilations[axis], beyond[axis]
        begin, end = (0, 0) if automatic == "VALID" else (pads[axis], pads[axis + rank])
        if wanted:
            extent = extents[axis]
            if extent is None:
                raise PlanError("its padding follows from the shape of its output, and its input's is not known")
            full = (extent - 1) * stride + extra + reach + 1
            begin, end = shares(max(full - wanted[-rank:][axis], 0), automatic)
            extra += max(wanted[-rank:][axis] - full, 0)
        elif automatic in ("SAME_UPPER", "SAME_LOWER"):
            begin, end = shares(max(extra + reach + 1 - stride, 0), automatic)
        axes.append(_Axis(stride=stride, before=reach - begin, after=reach - end + extra - (stride - 1)))
    return axes


def _spaced(site: Site, source: Source, axes: list[_Axis]) -> ir.Value:
    """Put zero points between levels and around them."""
    rank, kind = len(axes), source.value.dtype
    wide = source.encoding.type.bits == 16  # ONNX Runtime (1.31) has no Pad of 16 bits
    value = site.cast(source.value, ir.DataType.INT32) if wide else source.value
    zero = site.constant(zero_point_of(source), "around_zero_point", np.int32 if wide else np.uint8)
    if any(axis.stride > 1 for axis in axes):
        shape = site.add("Shape", value, type=ir.DataType.INT64, shape=ir.Shape([rank + 2]))
        strides = site.constant([1, 1, *(axis.stride for axis in axes)], "strides", np.int64)
        larger = site.add("Mul", shape, strides)
        inner = site.constant([3 + 2 * axis for axis in range(rank)], "axes", np.int64)
        value = site.add("Unsqueeze", value, inner, shape=ir.Shape([None] * (2 * rank + 2)))
        behind = [0, 0, *(count for axis in axes for count in (0, axis.stride - 1))]
        amounts = site.constant([*(0,) * len(behind), *behind], "gaps", np.int64)
        value = site.add("Pad", value, amounts, zero)
        value = site.add("Reshape", value, larger, shape=ir.Shape([None] * (rank + 2)), allowzero=1)
    around = [0, 0, *(axis.before for axis in axes), 0, 0, *(axis.after for axis in axes)]
    value = site.add("Pad", value, site.constant(around, "around", np.int64), zero, shape=ir.Shape([None] * (rank + 2)))
    return site.cast(value, kind) if kind is not None else value
