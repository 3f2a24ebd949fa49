"""Reading a Q/DQ network for PyTorch's kernels: the levels that an operator reads and the rounding behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.roles import clip_bounds, is_constant


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """Levels and what they stand for.

    Attributes:
        name: of the value that holds them.
        scale: float32, shape () or (channels,).
        zero_point: the same shape, of the levels' type.
        axis: along which scales differ; None for one scale.
        constant: the levels themselves where they are constant.
    """

    name: str
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.integer]
    axis: int | None
    constant: npt.NDArray[Any] | None

    @property
    def unsigned(self) -> bool:
        """Whether they are of the type of PyTorch's activations, uint8 with one scale."""
        return self.zero_point.dtype == np.uint8 and self.axis is None

    def like(self, other: Levels) -> bool:
        """Whether both have one scale, and the same meaning."""
        if self.axis is not None or other.axis is not None or self.zero_point.dtype != other.zero_point.dtype:
            return False
        return bool(self.scale == other.scale and self.zero_point == other.zero_point)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How an operator's output is rounded.

    Attributes:
        levels: what is written.
        nodes: every Relu and Clip before the QuantizeLinear, then this.
        bounds: real numbers that they keep the output between; infinite where none does.
    """

    levels: Levels
    nodes: tuple[ir.Node, ...]
    bounds: tuple[float, float]


def levels_of(node: ir.Node) -> Levels | None:
    """Read the levels that a QuantizeLinear writes or a DequantizeLinear reads; None for blocks and computed scales."""
    value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    scale = constant_array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = constant_array(given)
    if given is None and scale is not None and value is not None:
        kind = np.uint8 if value.dtype is None else value.dtype.numpy()
        zero_point = np.zeros(scale.shape, kind)
    if value is None or scale is None or zero_point is None or scale.ndim > 1 or scale.dtype != np.float32:
        return None
    if node.attributes.get_int("block_size", 0) != 0 or zero_point.dtype not in _TYPES:
        return None
    axis = None if scale.ndim == 0 else node.attributes.get_int("axis", 1)
    return Levels(name=str(value.name), scale=scale, zero_point=zero_point, axis=axis, constant=constant_array(value))


_TYPES = (np.uint8, np.int8, np.int32)


def levels_before(value: ir.Value | None) -> Levels | None:
    """Return the levels behind a value that a DequantizeLinear wrote, else None."""
    node = value.producer() if value is not None else None
    return levels_of(node) if node is not None and is_operator(node, "DequantizeLinear") else None


def constant_reals(value: ir.Value | None) -> npt.NDArray[np.float32] | None:
    """Return constant real numbers, as they are or of constant levels with one scale or along their only axis."""
    array = constant_array(value)
    if array is not None:
        return array.astype(np.float32)
    levels = levels_before(value)
    if levels is None or levels.constant is None or (levels.axis is not None and levels.constant.ndim != 1):
        return None
    steps = levels.constant.astype(np.float64) - levels.zero_point
    return np.asarray(steps * levels.scale, dtype=np.float32)


def greatest_level(value: ir.Value | None) -> int:
    """Return a level of 8 bits that none of those behind a value exceeds, by the Relu and Clip before them."""
    node = value.producer() if value is not None else None
    levels = levels_of(node) if node is not None and is_operator(node, "DequantizeLinear") else None
    source = node.inputs[0].producer() if node is not None and node.inputs[0] is not None else None
    if levels is None or levels.axis is not None or source is None or not is_operator(source, "QuantizeLinear"):
        return 255
    real, high = source.inputs[0], np.inf
    while real is not None and is_operator(real.producer(), "Relu", "Clip"):
        clip = real.producer()
        assert clip is not None
        high = min(high, clip_bounds(clip)[1])
        real = clip.inputs[0]
    return int(np.clip(np.rint(high / float(levels.scale)) + int(levels.zero_point), 0, 255))


def rounding_behind(value: ir.Value) -> Rounding | None:
    """Return the QuantizeLinear of one scale that alone reads a value, through Relus and Clips or not, else None."""
    nodes: list[ir.Node] = []
    low, high = -np.inf, np.inf
    reader = sole_consumer(value)
    while reader is not None and is_operator(reader, "Relu", "Clip") and reader.inputs[0] is value:
        if any(bound is not None and not is_constant(bound) for bound in reader.inputs[1:]):
            return None
        least, greatest = clip_bounds(reader)
        low, high = min(max(low, least), greatest), min(max(high, least), greatest)
        nodes.append(reader)
        value = reader.outputs[0]
        reader = sole_consumer(value)
    if reader is None or not is_operator(reader, "QuantizeLinear"):
        return None
    levels = levels_of(reader)
    if levels is None or levels.axis is not None:
        return None
    return Rounding(levels=levels, nodes=(*nodes, reader), bounds=(float(low), float(high)))
