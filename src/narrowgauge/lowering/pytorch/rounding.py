"""QuantizeLinear and its kin as the operators of PyTorch's `quantized_decomposed`, the form of its exported networks.

`quantize` there is `clamp(round(x * (1 / scale)) + zero_point, quant_min, quant_max)`, half to even
(torch/ao/quantization/fx/_decomposed.py): it multiplies by the inverse where ONNX divides, so that a number next to a
tie can fall on the neighbouring level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import dequantize as dequantize_levels
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.graph.constants import constant_array, replace_by_constant
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.lowering.pytorch.call import Call

ROUNDING = ("QuantizeLinear", "DequantizeLinear")

LEVELS = "levels"
"""Key of a node's `meta`: least and greatest level, where they are fewer than the type has."""

_STORED = {ir.DataType.INT4: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.UINT8}
"""Types that torch stores in wider ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """The numbers of one quantize or dequantize operator.

    Attributes:
        scale: real value of one step; one, or one per index of `axis`.
        zero_point: level of real 0, likewise.
        lowest: least level (`quant_min`).
        highest: greatest level (`quant_max`).
        stored: the type that holds the levels.
        axis: of the scales; None for one scale.
    """

    scale: np.ndarray[Any, np.dtype[np.float32]]
    zero_point: np.ndarray[Any, np.dtype[np.int64]]
    lowest: int
    highest: int
    stored: ir.DataType
    axis: int | None

    @property
    def dtype(self) -> str:
        """Name of the torch type."""
        return self.stored.name.lower()


def rounding_of(node: ir.Node) -> Rounding | None:
    """Read the numbers of a QuantizeLinear or DequantizeLinear; None where they come at run time or in blocks."""
    scale = constant_array(node.inputs[1])
    if scale is None or node.attributes.get_int("block_size", 0) > 0:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = zero.dtype if zero is not None else _kind(node)
    zero_point = constant_array(zero) if zero is not None else np.zeros(scale.shape)
    if zero_point is None or kind is None:
        return None
    single = scale.size == 1
    lowest, highest = node.meta.get(LEVELS) or (int(kind.min), int(kind.max))
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    axis = node.attributes.get_int("axis", 1)
    return Rounding(
        scale=scale.reshape(() if single else -1),
        zero_point=zero_point.astype(np.int64).reshape(() if single else -1),
        lowest=lowest,
        highest=highest,
        stored=_STORED.get(kind, kind),
        axis=None if single else axis % rank if rank else axis,
    )


def to_float_biases(network: ir.Model) -> None:
    """Turn biases in int32 into the real numbers that they stand for, in place: PyTorch's layers take them so."""
    for node in list(network.graph):
        levels = constant_array(node.inputs[0]) if is_operator(node, "DequantizeLinear") else None
        rounding = None if levels is None or levels.dtype != np.int32 else rounding_of(node)
        if levels is None or rounding is None or node.outputs[0].is_graph_output():
            continue
        encoding = Encoding(
            type=IntegerType(bits=32, signed=True),
            granularity=PerTensor() if rounding.axis is None else PerAxis(rounding.axis),
            scale=rounding.scale,
            zero_point=rounding.zero_point.astype(np.int32),
        )
        replace_by_constant(node.outputs[0], dequantize_levels(levels, encoding))
    remove_unused(network)


def _kind(node: ir.Node) -> ir.DataType | None:
    """Type of the levels where no zero point says it."""
    if is_operator(node, "DequantizeLinear"):
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)


def quantize(call: Call) -> Any:
    """QuantizeLinear."""
    rounding, operators = _known(call), call.torch.ops.quantized_decomposed
    kind = getattr(call.torch, rounding.dtype)
    values = call.tensor(0)
    if rounding.axis is None:
        scale, zero_point = float(rounding.scale), int(rounding.zero_point)
        return operators.quantize_per_tensor.default(values, scale, zero_point, rounding.lowest, rounding.highest, kind)
    scales, zero_points = call.tensor(1), _zero_points(call, rounding)
    return operators.quantize_per_channel.default(
        values, scales, zero_points, rounding.axis, rounding.lowest, rounding.highest, kind
    )


def dequantize(call: Call) -> Any:
    """DequantizeLinear, also with numbers of run time and in blocks."""
    operators = call.torch.ops.quantized_decomposed
    rounding = rounding_of(call.node)
    if rounding is None:
        return _by_arithmetic(call)
    kind = getattr(call.torch, rounding.dtype)
    levels = call.tensor(0)
    if rounding.axis is None:
        scale, zero_point = float(rounding.scale), int(rounding.zero_point)
        return operators.dequantize_per_tensor.default(
            levels, scale, zero_point, rounding.lowest, rounding.highest, kind
        )
    return operators.dequantize_per_channel.default(
        levels, call.tensor(1), _zero_points(call, rounding), rounding.axis, rounding.lowest, rounding.highest, kind
    )


def dynamic_quantize(call: Call) -> Any:
    """DynamicQuantizeLinear: the range of each tensor at run time, uint8."""
    operators, kind, values = call.torch.ops.quantized_decomposed, call.torch.uint8, call.tensor()
    least = float(np.finfo(np.float32).eps)
    scale, zero_point = operators.choose_qparams.tensor(values, 0, 255, least, kind)
    levels = operators.quantize_per_tensor.tensor(values, scale, zero_point, 0, 255, kind)
    return levels, scale.to(call.torch.float32).reshape(()), zero_point.reshape(())


def _known(call: Call) -> Rounding:
    rounding = rounding_of(call.node)
    if rounding is None:
        raise call.refusal("constant scales and zero points, not in blocks")
    return rounding


def _zero_points(call: Call, rounding: Rounding) -> Any:
    """Return zero points of channels, int64."""
    return call.tensor(2) if call.has(2) else call.torch.from_numpy(np.array(rounding.zero_point))


def _by_arithmetic(call: Call) -> Any:
    """`(levels - zero_point) * scale` in plain operators."""
    levels, scale = call.tensor(0), call.tensor(1)
    zero_point = call.tensor(2) if call.has(2) else None
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    if scale.dim() and scale.numel() > 1:
        axis = axis % levels.dim()
        scale = _spread(call, scale, levels, axis, block)
        zero_point = None if zero_point is None else _spread(call, zero_point, levels, axis, block)
    real = levels.to(call.torch.float32)
    if zero_point is not None:
        real = real - zero_point.to(call.torch.float32)
    return real * scale


def _spread(call: Call, numbers: Any, levels: Any, axis: int, block: int) -> Any:
    if block:
        return call.torch.repeat_interleave(numbers, block, axis).narrow(axis, 0, levels.shape[axis])
    return numbers.reshape([-1 if index == axis else 1 for index in range(levels.dim())])
