"""Operators on numbers one by one that are more than one ONNX operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.importers.tflite.emitter import CHANNELS_FIRST, Call, Results, Written

ONNX_TYPES = {
    "FLOAT32": ir.DataType.FLOAT,
    "FLOAT16": ir.DataType.FLOAT16,
    "FLOAT64": ir.DataType.DOUBLE,
    "INT8": ir.DataType.INT8,
    "UINT8": ir.DataType.UINT8,
    "INT16": ir.DataType.INT16,
    "UINT16": ir.DataType.UINT16,
    "INT32": ir.DataType.INT32,
    "UINT32": ir.DataType.UINT32,
    "INT64": ir.DataType.INT64,
    "UINT64": ir.DataType.UINT64,
    "BOOL": ir.DataType.BOOL,
}


def activated(call: Call, value: ir.Value) -> ir.Value:
    """Apply an operator's fused activation function to its result, in real numbers."""
    name = call.operator.options.get("fused_activation_function", "NONE")
    if name == "NONE":
        return value
    if name == "RELU":
        return call.node("Relu", value)
    if name == "TANH":
        return call.node("Tanh", value)
    if name in BOUNDS:
        return clipped(call, value, *BOUNDS[name])
    raise call.refusal(f"the fused activation function {name} is not known")


BOUNDS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}


def clipped(call: Call, value: ir.Value, low: float, high: float) -> ir.Value:
    """Keep a value between two numbers."""
    bounds = (call.constant(low, "lowest", np.float32), call.constant(high, "highest", np.float32))
    return call.node("Clip", value, *bounds)


def clip(call: Call) -> Results:
    """RELU6, RELU_N1_TO_1, RELU_0_TO_1."""
    order = call.free_order()
    return Written(value=clipped(call, call.read(0, order), *BOUNDS[call.operator.name]), order=order)


def reciprocal_root(call: Call) -> Results:
    """RSQRT."""
    order = call.free_order()
    return Written(value=call.node("Reciprocal", call.node("Sqrt", call.read(0, order))), order=order)


def square(call: Call) -> Results:
    """SQUARE."""
    order = call.free_order()
    value = call.read(0, order)
    return Written(value=call.node("Mul", value, value), order=order)


def squared_difference(call: Call) -> Results:
    """SQUARED_DIFFERENCE."""
    order = call.free_order()
    difference = call.node("Sub", call.read(0, order), call.read(1, order))
    return Written(value=call.node("Mul", difference, difference), order=order)


def not_equal(call: Call) -> Results:
    """NOT_EQUAL."""
    return call.node("Not", call.node("Equal", call.read(0), call.read(1)))


def floor_division(call: Call) -> Results:
    """FLOOR_DIV: rounds down, of integers too."""
    first, second = call.read(0), call.read(1)
    if call.tensor(0).dtype.kind == "f":
        return call.node("Floor", call.node("Div", first, second))
    return call.node("Div", call.node("Sub", first, call.node("Mod", first, second)), second)


def floor_remainder(call: Call) -> Results:
    """FLOOR_MOD: the remainder has the divisor's sign."""
    first, second = call.read(0), call.read(1)
    if call.tensor(0).dtype.kind != "f":
        return call.node("Mod", first, second)
    rest = call.node("Mod", first, second, fmod=1)  # the dividend's sign: one divisor too low where signs differ
    zero = call.constant(0, "zero", np.float32)
    differ = call.node("Less", call.node("Mul", rest, second), zero)
    return call.node("Where", differ, call.node("Add", rest, second), rest)


def softmax(call: Call) -> Results:
    """SOFTMAX of `beta` times the input, along the last axis."""
    value, beta = call.read(), float(call.option("beta"))
    if beta != 1:
        value = call.node("Mul", value, call.constant(beta, "beta", np.float32))
    return call.node("Softmax", value, axis=-1)


def gelu(call: Call) -> Results:
    """GELU: by the error function, or by tanh."""
    order = call.free_order()
    how = "tanh" if call.option("approximate") else "none"
    return Written(value=call.node("Gelu", call.read(0, order), approximate=how), order=order)


def parametric_relu(call: Call) -> Results:
    """PRELU: the slope may have all axes but the batch."""
    order = call.free_order()
    return Written(value=call.node("PRelu", call.read(0, order), call.read(1, order)), order=order)


def select(call: Call) -> Results:
    """SELECT: a condition of rank 1 selects whole rows."""
    condition = call.read(0)
    missing = call.rank(1) - 1
    if call.rank(0) == 1 and missing > 0:
        condition = call.node("Unsqueeze", condition, call.constant(range(1, 1 + missing), "axes"))
    return call.node("Where", condition, call.read(1), call.read(2))


def cast(call: Call) -> Results:
    """CAST of plain numbers."""
    for tensor in (call.tensor(0), call.result()):
        if tensor.encoding is not None:
            raise call.refusal(f"it takes the integers of {tensor.name!r}, which stand for real numbers, as they are")
        if tensor.type not in ONNX_TYPES:
            raise call.refusal(f"expected elements of {', '.join(ONNX_TYPES)}, got {tensor.type}")
    return call.node("Cast", call.read(), to=ONNX_TYPES[call.result().type])


def rounding(call: Call) -> Results:
    """QUANTIZE and DEQUANTIZE: the tensors say what is rounded; float16 constants become float32."""
    for tensor in (call.tensor(0), call.result()):
        if tensor.dtype.kind != "f" and tensor.encoding is None:
            raise call.refusal(f"{tensor.name!r} has no scale")
    if call.tensor(0).type == "FLOAT16":
        if call.is_constant(0):
            array = call.array(0).astype(np.float32)
            return call.node("Identity", call.emitter.constant(f"{call.tensor(0).name}_float32", array))
        return call.node("Cast", call.read(), to=ir.DataType.FLOAT)
    order = call.free_order()
    return Written(value=call.node("Identity", call.read(0, order)), order=order)


def local_response_normalization(call: Call) -> Results:
    """LOCAL_RESPONSE_NORMALIZATION: `x / (bias + alpha * sum) ^ beta`; ONNX divides alpha by the number of summands."""
    size = 2 * call.positive("radius") + 1
    attributes: dict[str, Any] = {
        "size": size, "alpha": float(call.option("alpha")) * size, "beta": float(call.option("beta")),
        "bias": float(call.option("bias")),
    }  # fmt: skip
    return Written(value=call.node("LRN", call.read(0, CHANNELS_FIRST), **attributes), order=CHANNELS_FIRST)
