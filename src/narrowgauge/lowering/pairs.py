"""Reading pairs of QuantizeLinear and DequantizeLinear: the levels before an operator, the rounding behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.roles import clip_bounds, is_constant

BITS_8 = (ir.DataType.UINT8, ir.DataType.INT8)
LEVELS = (*BITS_8, ir.DataType.UINT16, ir.DataType.INT16)

_TYPES = {kind: integer_type(kind.name) for kind in (ir.DataType.UINT4, ir.DataType.INT4, *LEVELS, ir.DataType.INT32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """Levels of a value and the parameters of the node that reads or writes them.

    Attributes:
        levels: the integers.
        scale: of the node.
        zero_point: of the node.
        axis: along which scales differ, None for one scale.
    """

    levels: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    axis: int | None

    @property
    def inputs(self) -> list[ir.Value | None]:
        """What the node reads."""
        return [self.levels, self.scale, self.zero_point]

    @property
    def type(self) -> ir.DataType | None:
        """In what the levels are stored."""
        return self.zero_point.dtype

    def same_as(self, other: Linear) -> bool:
        """Whether both give the same levels the same meaning."""
        return (
            self.type == other.type
            and self.axis == other.axis
            and _same_numbers(self.scale, other.scale)
            and _same_numbers(self.zero_point, other.zero_point)
        )


def _same_numbers(first: ir.Value, second: ir.Value) -> bool:
    if first is second:
        return True
    one, other = constant_array(first), constant_array(second)
    return one is not None and other is not None and np.array_equal(one, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How an operator's output is rounded.

    Attributes:
        node: the QuantizeLinear.
        linear: its levels, scale and zero point.
        clips: every Relu and Clip before it, in order.
    """

    node: ir.Node
    linear: Linear
    clips: tuple[ir.Node, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        """Real numbers that the clips keep the output between; infinite where none does."""
        low, high = -np.inf, np.inf
        for clip in self.clips:
            least, greatest = clip_bounds(clip)
            low, high = min(max(low, least), greatest), min(max(high, least), greatest)
        return float(low), float(high)


def linear_of(node: ir.Node, levels: ir.Value) -> Linear | None:
    """Read scale and zero point of a QuantizeLinear or DequantizeLinear; None for blocks or a missing zero point."""
    scale, zero_point = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or zero_point is None or node.attributes.get_int("block_size", 0) != 0:
        return None
    per_tensor = is_constant(scale) and scale.shape is not None and scale.shape.rank() == 0
    axis = None if per_tensor else node.attributes.get_int("axis", 1)
    return Linear(levels=levels, scale=scale, zero_point=zero_point, axis=axis)


def dequantized(value: ir.Value | None, types: Sequence[ir.DataType] = BITS_8) -> Linear | None:
    """Return the levels behind a value that a DequantizeLinear wrote, None if none did or they are of another type."""
    node = value.producer() if value is not None else None
    if node is None or not is_operator(node, "DequantizeLinear") or node.inputs[0] is None:
        return None
    linear = linear_of(node, node.inputs[0])
    return linear if linear is not None and linear.type in types else None


def activation(value: ir.Value | None, types: Sequence[ir.DataType] = BITS_8) -> Linear | None:
    """Return the levels of a value that has one scale, else None."""
    linear = dequantized(value, types)
    return linear if linear is not None and linear.axis is None else None


def rounded(value: ir.Value, *, most_clips: int = 1, per_axis: bool = False) -> Rounding | None:
    """Return the QuantizeLinear that alone reads a value, through some Relu or Clip or not, else None.

    It has one scale; where `per_axis`, one for each channel will do, too.
    """
    reader, clips = sole_consumer(value), []
    while reader is not None and is_operator(reader, "Relu", "Clip") and reader.inputs[0] is value:
        if any(bound is not None and not is_constant(bound) for bound in reader.inputs[1:]):
            return None
        clips.append(reader)
        value = reader.outputs[0]
        reader = sole_consumer(value)
    if reader is None or not is_operator(reader, "QuantizeLinear") or len(clips) > most_clips:
        return None
    linear = linear_of(reader, reader.outputs[0])
    if linear is None or (linear.axis is not None and not per_axis):
        return None
    return Rounding(node=reader, linear=linear, clips=tuple(clips))


def encoding_of(linear: Linear) -> Encoding | None:
    """Return what the levels stand for; None where scale and zero point are computed, or of a type without levels.

    Raises:
        PlanError: a scale is not a positive finite number, or shapes differ.
    """
    scale, zero_point = constant_array(linear.scale), constant_array(linear.zero_point)
    kind = _TYPES.get(linear.type) if linear.type is not None else None
    if scale is None or zero_point is None or kind is None:
        return None
    return Encoding(
        type=kind,
        granularity=PerTensor() if linear.axis is None else PerAxis(linear.axis),
        scale=scale.astype(np.float32),
        zero_point=zero_point.astype(np.int32),
    )
