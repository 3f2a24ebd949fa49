"""PyTorch's quantized_decomposed operators as ONNX operators.

torchao's `convert_pt2e` (PT2E, "PyTorch 2 export quantization") writes networks in these. Definitions:
`torch/ao/quantization/fx/_decomposed.py`; quantizing is clamp(round(x / scale) + zero_point, quant_min, quant_max),
half to even, as ONNX's QuantizeLinear does it, and dequantizing (q - zero_point) * scale. PyTorch multiplies with the
reciprocal of the scale where ONNX divides, so that numbers beside a tie may come one step apart.

ONNX has no quant_min and quant_max. Weights of 4 bits in bytes become ONNX's type of 4 bits. Where the levels of
activations do not fill their bytes, a Clip of the real numbers stands before QuantizeLinear.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.errors import ModelError

Translations = dict[Callable[..., Any], Callable[..., Any]]

_LEVELS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}
"""Lowest and highest level of the containers that both PyTorch and ONNX have."""


def register() -> None:
    """Make PyTorch know the operators, which it does once the module that defines them is imported."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401


def translations(program: Any) -> Translations:
    """Return the operator of PyTorch -> what writes it in ONNX, for `torch.onnx.export` of this program."""
    import torch

    register()
    known, aten = torch.ops.quantized_decomposed, torch.ops.aten
    write = _Writer(stored=_stored(program))
    table: Translations = {}
    for overload in ("default", "tensor", "tensor2"):
        table[getattr(known.quantize_per_tensor, overload)] = write.quantize_per_tensor
        table[getattr(known.dequantize_per_tensor, overload)] = write.dequantize_per_tensor
    table[known.quantize_per_channel.default] = write.quantize_per_channel
    table[known.dequantize_per_channel.default] = write.dequantize_per_channel
    table[known.choose_qparams.tensor] = _choose_parameters
    table[aten.fake_quantize_per_tensor_affine.default] = write.fake_quantize_per_tensor
    table[aten.fake_quantize_per_tensor_affine.tensor_qparams] = write.fake_quantize_per_tensor
    table[aten.fake_quantize_per_channel_affine.default] = write.fake_quantize_per_channel
    return {operator: _plain(function) for operator, function in table.items()}


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of a method: the exporter keeps notes in attributes, which methods have none of."""

    @functools.wraps(function)
    def plain(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return plain


def _stored(program: Any) -> dict[str, Any]:
    """Collect the stored tensors by the names that they have in the graph."""
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors = {name: program.state_dict.get(key, program.constants.get(key)) for name, key in named.items()}
    tensors |= {name: program.constants.get(key) for name, key in signature.inputs_to_lifted_tensor_constants.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _choose_parameters(source: Any, lowest: int, highest: int, eps: float, dtype: int) -> Sequence[Any]:
    """Ranges of each tensor at run time: ONNX's DynamicQuantizeLinear, whose levels are the same less 128 if signed."""
    if (lowest, highest) not in ((-128, 127), (0, 255)):
        raise ModelError(
            f"dynamic quantization to levels {lowest} to {highest}: expected all 256 of 8 bits; quantize the float "
            "network anew"
        )
    _, scale, zero_point = _operators().DynamicQuantizeLinear(source)
    return scale, zero_point


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the operators of one program.

    Attributes:
        stored: its tensors, by their names in the graph.
    """

    stored: dict[str, Any]

    def quantize_per_tensor(
        self, source: Any, scale: Any, zero_point: Any, lowest: Any, highest: Any, dtype: int
    ) -> Any:
        """Write quantize_per_tensor."""
        dynamic = _dynamic(scale)
        if dynamic is not None:
            return dynamic.outputs[0]
        return self.quantize(source, scale, zero_point, (self.integer(lowest), self.integer(highest)), dtype, None)

    def dequantize_per_tensor(
        self, source: Any, scale: Any, zero_point: Any, lowest: Any, highest: Any, dtype: int,
        out_dtype: int | None = None,
    ) -> Any:  # fmt: skip
        """Write dequantize_per_tensor."""
        if _dynamic(scale) is not None:
            return _operators().DequantizeLinear(source, scale, zero_point)
        levels = self.integer(lowest), self.integer(highest)
        return self.dequantize(source, (scale, zero_point, None), levels, dtype, out_dtype)

    def quantize_per_channel(
        self, source: Any, scales: Any, zero_points: Any, axis: int, lowest: int, highest: int, dtype: int
    ) -> Any:
        """Write quantize_per_channel."""
        return self.quantize(source, scales, zero_points, (lowest, highest), dtype, axis)

    def dequantize_per_channel(  # noqa: PLR0913, PLR0917 - the operator's own arguments
        self, source: Any, scales: Any, zero_points: Any, axis: int, lowest: int, highest: int, dtype: int,
        out_dtype: int | None = None,
    ) -> Any:  # fmt: skip
        """Write dequantize_per_channel."""
        return self.dequantize(source, (scales, zero_points, axis), (lowest, highest), dtype, out_dtype)

    def fake_quantize_per_tensor(self, source: Any, scale: Any, zero_point: Any, lowest: int, highest: int) -> Any:
        """Write fake_quantize_per_tensor_affine."""
        dtype = int(ir.DataType.INT8 if lowest < 0 else ir.DataType.UINT8)
        levels = self.quantize(source, scale, zero_point, (lowest, highest), dtype, None)
        return self.dequantize(levels, (scale, zero_point, None), (lowest, highest), dtype, None)

    def fake_quantize_per_channel(
        self, source: Any, scale: Any, zero_point: Any, axis: int, lowest: int, highest: int
    ) -> Any:
        """Write fake_quantize_per_channel_affine."""
        dtype = int(ir.DataType.INT8 if lowest < 0 else ir.DataType.UINT8)
        levels = self.quantize(source, scale, zero_point, (lowest, highest), dtype, axis)
        return self.dequantize(levels, (scale, zero_point, axis), (lowest, highest), dtype, None)

    def quantize(
        self, source: Any, scale: Any, zero_point: Any, levels: tuple[int, int], dtype: int, axis: int | None
    ) -> Any:
        """Write the levels of weights, or a QuantizeLinear of what is computed."""
        container = ir.DataType(dtype)
        if container not in _LEVELS:
            raise ModelError(f"expected integers of 8, 16 or 32 bits to quantize to, got {container.name}")
        weights, scales, zeros = self.numbers(source), self.constant(scale), self.constant(zero_point)
        if weights is not None:
            narrow = _narrow(container, levels) or container
            return _constant(_quantized(weights, scales, zeros, levels, axis).astype(narrow.numpy()))
        if levels != _LEVELS[container]:
            source = _clipped(source, scales, zeros, levels)
        axis_attribute = {} if axis is None else {"axis": axis}
        steps, level = _constant(np.float32(scales)), _constant(_whole(zeros).astype(container.numpy()))
        return _operators().QuantizeLinear(source, steps, level, **axis_attribute)

    def dequantize(
        self, source: Any, parameters: tuple[Any, Any, int | None], levels: tuple[int, int], dtype: int,
        out_dtype: int | None,
    ) -> Any:  # fmt: skip
        """Write a DequantizeLinear; `parameters` are scale, zero point and axis."""
        scale, zero_point, axis = parameters
        container, scales = ir.DataType(dtype), self.constant(scale)
        zeros = _whole(np.zeros(scales.shape) if zero_point is None else self.constant(zero_point))
        stored = self.numbers(source)
        narrow = _narrow(container, levels) if stored is not None or _is_written(source) else None
        if narrow is not None:
            container = narrow
            source = source if stored is None else _constant(stored.astype(narrow.numpy()))
        axis_attribute = {} if axis is None else {"axis": axis}
        steps, level = _constant(np.float32(scales)), _constant(zeros.astype(container.numpy()))
        result = _operators().DequantizeLinear(source, steps, level, **axis_attribute)
        if out_dtype is not None and int(out_dtype) not in (-1, int(ir.DataType.FLOAT)):
            result = _operators().Cast(result, to=int(out_dtype))
        return result

    def numbers(self, value: Any) -> Any:
        """Read a Python number or a stored tensor; None of what is computed."""
        if not isinstance(value, ir.Value):
            return np.asarray(value)
        if value.const_value is not None:
            return value.const_value.numpy()
        tensor = self.stored.get(str(value.name))
        return None if tensor is None else tensor.detach().cpu().numpy()

    def constant(self, value: Any) -> Any:
        """Read a scale or zero point."""
        numbers = self.numbers(value)
        if numbers is None:
            raise ModelError("expected scales and zero points that are stored, got some that the network computes")
        return numbers

    def integer(self, level: Any) -> int:
        """Read a bound of the levels."""
        return int(self.constant(level).reshape(-1)[0])


def _quantized(weights: Any, scales: Any, zeros: Any, levels: tuple[int, int], axis: int | None) -> Any:
    """Quantize weights as PyTorch does, by the reciprocal of the scale."""
    shape = [1] * weights.ndim
    if axis is not None:
        shape[axis] = -1
    steps, offsets = ((1.0 / scales).astype(np.float32), zeros) if axis is None else (
        (1.0 / scales).astype(np.float32).reshape(shape), zeros.reshape(shape)
    )  # fmt: skip
    return np.clip(np.rint(weights * steps) + offsets, *levels)


def _is_written(source: Any) -> bool:
    """Tell levels of weights that `quantize` has written."""
    producer = source.producer() if isinstance(source, ir.Value) else None
    return producer is not None and producer.op_type == "Constant"


def _narrow(container: ir.DataType, levels: tuple[int, int]) -> ir.DataType | None:
    """Return the type of 4 bits for levels that need no more, None for others."""
    kinds = {ir.DataType.INT8: (ir.DataType.INT4, -8, 7), ir.DataType.UINT8: (ir.DataType.UINT4, 0, 15)}
    if container not in kinds:
        return None
    kind, lowest, highest = kinds[container]
    return kind if lowest <= levels[0] and levels[1] <= highest else None


def _clipped(source: Any, scales: Any, zeros: Any, levels: tuple[int, int]) -> Any:
    """Cut real numbers to those that the levels stand for."""
    if scales.size != 1:
        raise ModelError(
            f"expected one scale for activations of levels {levels[0]} to {levels[1]}, which do not fill their type, "
            f"got {scales.size}; quantize the float network anew"
        )
    step, zero = np.float32(scales.reshape(-1)[0]), int(zeros.reshape(-1)[0])
    low, high = (np.float32(level - zero) * step for level in levels)
    return _operators().Clip(source, _constant(low), _constant(high))


def _whole(zeros: Any) -> Any:
    if np.any(zeros != np.rint(zeros)):
        raise ModelError(f"expected zero points that are integers, got {zeros.reshape(-1)[:4].tolist()}")
    return zeros


def _operators() -> Any:
    from onnxscript import opset21

    return opset21


def _dynamic(scale: Any) -> Any:
    """Return the DynamicQuantizeLinear that makes this scale, None if it is a constant."""
    producer = scale.producer() if isinstance(scale, ir.Value) else None
    return producer if producer is not None and producer.op_type == "DynamicQuantizeLinear" else None


def _constant(numbers: Any) -> Any:
    return _operators().Constant(value=ir.to_proto(ir.tensor(np.asarray(numbers))))
