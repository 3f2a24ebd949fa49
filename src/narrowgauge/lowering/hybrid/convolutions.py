"""Conv and ConvTranspose: each sample is rounded for itself, or the channels of each pixel.

Products of levels are added up by a float convolution of whole numbers: it is exact, in whatever order, as long as no
sum can reach 2^24, and several times as fast in ONNX Runtime as ConvInteger (measured on 1.31).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.hybrid import HybridLayer
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.lowering.dynamic import DynamicWriter
from narrowgauge.lowering.hybrid.layer import Layer, Readings, layer_of, weights_of

EXACT = 1 << 24
"""Whole numbers below this are exact in float32, and so are their sums in any order."""

FARTHEST = 255
"""No level is farther from its zero point."""

PART = 16
"""Weights whose sums may grow too large are parted: `level = 16 * high + low`, both of 8 at most."""


def convolution(readings: Readings, writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    """Write a Conv; one whose bias is computed stays float."""
    return _write(readings, writer, node, encodings, 0)


def transposed_convolution(
    readings: Readings, writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]
) -> bool:
    """Write a ConvTranspose; one whose bias is computed stays float."""
    return _write(readings, writer, node, encodings, 1)


def _write(
    readings: Readings, writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding], axis: int
) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_array(bias)
    weights = weights_of(writer, node, encodings, axis) if bias is None or array is not None else None
    if weights is None:
        return False
    kind = _kind(node, weights.levels)
    layer = layer_of(readings, writer, node, kind, weights)
    if layer.how.scope == "row" and any(node.attributes.get_ints("pads", [])):
        raise PlanError(
            f"node {node.name!r} ({node.op_type}): expected a kernel of one element without padding, whose pixels are "
            "rounded one by one, got one that pads; keep it float"
        )
    sums = _sums(layer, weights.levels.astype(np.int64), weights.name, axis)
    shape = (-1,) + (1,) * (weights.levels.ndim - 2)  # (channels, 1, ...) behind the batch axis
    scale = weights.scale.reshape(shape) if weights.scale.ndim else weights.scale
    if kind == "depthwise convolution":
        scale = np.broadcast_to(scale, (len(weights.levels), *shape[1:]))
    layer.finish(sums, scale, None if array is None else array.reshape(shape), node.outputs[0])
    return True


def _kind(node: ir.Node, levels: npt.NDArray[np.integer]) -> HybridLayer:
    """Return which of LiteRT's layers a node becomes.

    Raises:
        PlanError: LiteRT has no such layer with dynamic ranges.
    """
    if levels.ndim > 4:
        raise PlanError(
            f"node {node.name!r}: expected a {node.op_type} of 1 or 2 dimensions, got {levels.ndim - 2}: LiteRT has no "
            "other with dynamic ranges; keep it float"
        )
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "ConvTranspose":
        if groups != 1 or any(one != 1 for one in node.attributes.get_ints("dilations", [])):
            raise PlanError(
                f"node {node.name!r}: expected a ConvTranspose without groups and dilations: LiteRT has no other with "
                "dynamic ranges; keep it float"
            )
        return "transposed convolution"
    if groups > 1:
        return "depthwise convolution" if levels.shape[1] == 1 else "grouped convolution"
    strides = node.attributes.get_ints("strides", [])
    pointwise = all(extent == 1 for extent in levels.shape[2:]) and all(stride == 1 for stride in strides)
    return "pointwise convolution" if pointwise else "convolution"


def _sums(layer: Layer, levels: npt.NDArray[np.int64], name: str, axis: int) -> ir.Value:
    """Add up the products of steps and weights, int32; what pads counts for nothing."""
    make, node = layer.make, layer.node
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    sums = []
    for number, (factor, part) in enumerate(_parts(node, levels, axis)):
        suffix = f"_{number}" if number else ""
        constant = make.parameters.constant(f"{name}_levels{suffix}", part.astype(np.float32))
        made = make.cast(make(node.op_type, layer.steps(), constant, attributes=attributes), ir.DataType.INT32)
        sums.append(made if factor == 1 else make("Mul", made, factor, type=np.int32))
    return sums[0] if len(sums) == 1 else make("Add", *sums)


def _parts(node: ir.Node, levels: npt.NDArray[np.int64], axis: int) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Part weights so that no sum of products reaches 2^24: (factor, part), which add up to the weights.

    Raises:
        PlanError: no such parts were found: more than some 8000 products make an output.
    """
    if _largest(levels, axis) < EXACT:
        return [(1, levels)]
    high = np.rint(levels / PART).astype(np.int64)
    parts = [(1, levels - PART * high), (PART, high)]
    largest = max(_largest(part, axis) for _, part in parts)
    if largest >= EXACT:
        raise PlanError(
            f"node {node.name!r} ({node.op_type}): its sums may reach {largest} in parts, expected less than {EXACT}, "
            "which float32 holds exactly; keep it float"
        )
    return parts


def _largest(levels: npt.NDArray[np.int64], axis: int) -> int:
    """Bound the sums of an output channel, which lie along an axis of the weights."""
    others = tuple(number for number in range(levels.ndim) if number != axis)
    return FARTHEST * int(np.abs(levels).sum(axis=others).max(initial=0))
