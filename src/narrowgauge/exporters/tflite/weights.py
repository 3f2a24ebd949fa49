"""Weights and biases of layers: in the order, the type and the units that a kernel wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Order, weight_levels
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.roles import output_axis
from narrowgauge.importers.tflite.network import Quantization

_HYBRID = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
"""Operators with kernels of float activations, rounded at run time, and int8 weights."""


_FOUR_BITS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators with kernels of int4 weights; for others these are written as int8, the same numbers."""

_LARGEST_RATIO = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Constant weights in the order that a kernel wants.

    Attributes:
        array: real numbers.
        levels: what the file holds of them; None for the real numbers.
        quantization: of the levels.
        name: of the initializer.
    """

    array: npt.NDArray[Any]
    name: str
    levels: npt.NDArray[Any] | None = None
    quantization: Quantization | None = None

    def reshaped(self, shape: Sequence[int], order: Order, axis: int) -> Weights:
        """Change shape, then order; `axis` is where the channels are then, along which scales lie."""
        quantization = self.quantization
        if quantization is not None and quantization.per_channel:
            quantization = Quantization(scale=quantization.scale, zero_point=quantization.zero_point, axis=axis)
        levels = None if self.levels is None else self.levels.reshape(shape).transpose(order)
        array = self.array.reshape(shape).transpose(order)
        return Weights(array=array, name=self.name, levels=levels, quantization=quantization)


def weights_of(call: Call, number: int = 1) -> Weights | None:
    """Return a node's constant weights as the initializer has them; None where they are computed."""
    value, array = call.input(number), call.array(number)
    if array is None:
        return None
    encoding, name = call.emitter.plan.encodings.get(str(value.name)), str(value.name)
    if not isinstance(encoding, Encoding):
        return Weights(array=array, name=name)
    levels, quantization = weight_levels(array, encoding, name)
    axis = output_axis(call.node, number)
    if quantization.per_channel and quantization.axis != axis:
        raise call.refusal(
            f"expected the scales of its weights {name!r} along axis {axis}, its outputs, got axis {quantization.axis}"
        )
    return Weights(array=array, name=name, levels=levels, quantization=quantization)


def add_weights(call: Call, weights: Weights, operator: str) -> int:
    """Add a layer's weights: levels where the kernel takes them, else real numbers, made of levels where it has some.

    Raises:
        TargetError: the kernel does not take such levels.
    """
    levels, quantization = weights.levels, weights.quantization
    if levels is None or quantization is None:
        if call.integer:
            raise call.refusal(f"the plan has no encoding of its weights {weights.name!r}")
        return call.emitter.float_constant(np.ascontiguousarray(weights.array), weights.name, own=True)
    hybrid = call.dynamic and operator in _HYBRID
    if call.integer:
        _check_ratio(call, quantization)
    if levels.dtype == np.dtype(ml_dtypes.int4) and (operator not in _FOUR_BITS or call.type() == "UINT8"):
        levels = levels.astype(np.int8)
    if (call.integer or hybrid) and quantization.zero_point.any() and levels.dtype != np.uint8:
        raise call.refusal("expected weights with zero point 0")
    if call.integer and call.type() == "UINT8":
        levels, quantization = _unsigned(call, levels, quantization)
    if operator == "DEPTHWISE_CONV_2D" and hybrid and quantization.scale.size == 1:
        channels = levels.shape[3]  # depthwise_conv.cc: the hybrid kernel wants a scale for each channel
        quantization = Quantization(
            scale=np.repeat(quantization.scale, channels), zero_point=np.repeat(quantization.zero_point, channels),
            axis=3,
        )  # fmt: skip
    found = call.emitter.constant(np.ascontiguousarray(levels), weights.name, quantization=quantization, own=True)
    return found if call.integer or hybrid else call.emitter.dequantized(found)


def _check_ratio(call: Call, weights: Quantization) -> None:
    """Refuse scales with which XNNPACK, LiteRT's default, does not load the file at all (convolution-nhwc.c).

    Raises:
        TargetError: naming the layer.
    """
    source, result = call.levels(call.input()), call.levels(call.result())
    if source is None or result is None or source.type == "INT16":
        return
    with np.errstate(over="ignore"):
        ratio = np.float32(source.scale) * weights.scale / np.float32(result.scale)
    if (ratio >= _LARGEST_RATIO).any():
        raise call.refusal(
            f"a step of its sums is {float(ratio.max()):g} steps of its output, and XNNPACK loads no file with a layer "
            f"of {_LARGEST_RATIO} or more; keep the layer in float, or give its output a wider range"
        )


def _unsigned(
    call: Call, levels: npt.NDArray[Any], quantization: Quantization
) -> tuple[npt.NDArray[Any], Quantization]:
    """Write levels 128 higher, as kernels of uint8 activations want them: the same numbers."""
    if levels.dtype == np.uint8 and quantization.scale.size == 1:
        return levels, quantization
    if levels.dtype != np.int8 or quantization.scale.size > 1:
        raise call.refusal(
            "kernels of uint8 activations take 8-bit weights with one scale; plan with one scale for each tensor, or "
            "with int8 activations"
        )
    moved = Quantization(scale=quantization.scale, zero_point=quantization.zero_point + 128, axis=0)
    return (levels.astype(np.int16) + 128).astype(np.uint8), moved


def add_bias(
    call: Call, value: ir.Value | None, channels: int, *, factor: float = 1.0, activation: int = 0
) -> list[int]:
    """Add a layer's bias: int32 levels in units of the product of the scales (int64 beside int16), or real numbers.

    Returns:
        The tensor, or none where there is no bias.

    Args:
        call: the layer.
        value: the bias, constant; None for none.
        channels: of the output.
        factor: that it is multiplied with.
        activation: number of the input that carries the activation.
    """
    if value is None:
        return []
    array = constant_array(value)
    if array is None:
        raise call.refusal("its bias is computed")
    real = array.reshape(-1) * np.float32(factor) if factor != 1 else array.reshape(-1)
    return _bias(call, np.ascontiguousarray(np.broadcast_to(real, (channels,))), str(value.name), activation, own=True)


def add_zeros(call: Call, channels: int) -> list[int]:
    """Add a bias of zeros for a convolution without one: kernels of depthwise ones insist on it (LiteRT 2.3)."""
    return _bias(call, np.zeros(channels, np.float32), f"{call.name}_bias", 0, own=False)


def _bias(call: Call, array: npt.NDArray[Any], name: str, activation: int, *, own: bool) -> list[int]:
    channels = array.size
    if not call.integer:
        return [call.emitter.float_constant(array, name, own=own)]
    levels = call.levels(call.input(activation))
    weights = call.emitter.plan.encodings[str(call.input(1).name)]
    assert levels is not None
    assert isinstance(weights, Encoding)
    per_channel = isinstance(weights.granularity, PerAxis)
    encoding = Encoding(
        type=IntegerType(bits=32, signed=True),
        granularity=PerAxis(0) if per_channel else PerTensor(),
        scale=(np.float32(levels.scale) * weights.scale).astype(np.float32),
        zero_point=np.zeros(weights.scale.shape, dtype=np.int32),
    )
    if per_channel and weights.scale.size != channels:
        raise call.refusal(f"its weights have {weights.scale.size} scales, expected one or {channels}")
    stored = quantize(array.astype(np.float32), encoding).astype(np.int64 if levels.type == "INT16" else np.int32)
    quantization = Quantization(
        scale=encoding.scale.reshape(-1), zero_point=np.zeros(encoding.scale.size, dtype=np.int64), axis=0
    )
    return [call.emitter.constant(stored, name, quantization=quantization, own=own)]
