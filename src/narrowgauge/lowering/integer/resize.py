"""Resize: copies of the nearest level, and linear interpolation in integers."""

from __future__ import annotations

from typing import cast, get_args

import numpy as np
import onnx_ir as ir

from narrowgauge.core.engines.kernels import AxisInterpolation, CoordinateMode
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer.elementwise import bounded
from narrowgauge.lowering.integer.emitter import Site, result_of
from narrowgauge.lowering.integer.movement import move
from narrowgauge.lowering.integer.rescaling import Sums, write_levels


def resize(node: ir.Node, site: Site) -> None:
    """Resize, of known extents where it interpolates."""
    mode = node.attributes.get_string("mode", "nearest")
    if mode == "nearest":
        move(node, site)
    elif mode == "linear" and not node.attributes.get_int("antialias", 0):
        _interpolate(node, site)
    else:
        raise PlanError(f"it interpolates in another way than linearly ({mode})")


def _interpolate(node: ir.Node, site: Site) -> None:
    places = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    before, after = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    if places == "pytorch_half_pixel" and after is not None and all(size is None or size > 1 for size in after[2:]):
        places = "half_pixel"  # they differ for one pixel alone
    if places not in get_args(CoordinateMode):
        raise PlanError(f"expected one of {', '.join(get_args(CoordinateMode))} for where pixels lie, got {places}")
    if before is None or after is None:
        raise PlanError("the rank of its input or output is not known")
    axes = [axis for axis, (one, other) in enumerate(zip(before, after, strict=True)) if one != other or one is None]
    axes = [axis for axis in axes if axis > 0 or before[axis] is not None]  # the batch is never resized
    extents = [(before[axis], after[axis]) for axis in axes]
    known = [(one, other) for one, other in extents if one and other]
    if len(known) != len(extents):
        raise PlanError(f"it resizes axes of {extents} entries, expected known extents")
    _check_scales(node, axes, known)
    source, result = site.source(0), result_of(node.outputs[0])
    old, new = tuple(one for one, _ in known), tuple(other for _, other in known)
    form = site.kernels.resize(source.encoding, result.encoding, cast(CoordinateMode, places), old, new)
    bits = sum(one.bits for one in form.axes)
    container = np.iinfo(source.encoding.type.storage)
    ends = [(end + result.offset) << bits for end in (container.min, container.max)]
    wide = max(abs(end) for end in ends) > np.iinfo(np.int32).max
    value = site.cast(source.value, ir.DataType.INT64 if wide else ir.DataType.INT32)
    for axis, one in zip(axes, form.axes, strict=True):
        value = _along(site, value, axis, len(after), one)
    value.shape = node.outputs[0].shape
    sums = Sums(value=value, least=np.array([ends[0]]), greatest=np.array([ends[1]]))
    levels = write_levels(site, sums, np.asarray(-result.offset << bits), form.rescale, result)
    site.write(bounded(site, levels, result), result)


def _check_scales(node: ir.Node, axes: list[int], extents: list[tuple[int, int]]) -> None:
    """Refuse scales other than the quotients of extents, which the engines take."""
    scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or not scales.size:
        return
    listed = list(node.attributes.get_ints("axes", range(scales.size)))
    for axis, (one, other) in zip(axes, extents, strict=True):
        if axis not in listed or scales[listed.index(axis)] * one != other:
            raise PlanError("its scales are not the quotients of its extents")


def _along(site: Site, value: ir.Value, axis: int, rank: int, form: AxisInterpolation) -> ir.Value:
    """Weigh the two neighbours along an axis."""
    kind = np.int64 if value.dtype == ir.DataType.INT64 else np.int32
    shape = [-1 if number == axis else 1 for number in range(rank)]
    parts = []
    for places, weights in ((form.first, (1 << form.bits) - form.weight), (form.second, form.weight)):
        near = site.add("Gather", value, site.constant(places, f"places_{axis}", np.int64), axis=axis)
        near.shape = ir.Shape([None] * rank)
        parts.append(site.add("Mul", near, site.constant(weights.reshape(shape), f"weights_{axis}", kind)))
    return site.add("Add", *parts)
