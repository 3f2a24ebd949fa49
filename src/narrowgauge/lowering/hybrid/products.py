"""MatMul and Gemm: each row of the first factor is rounded for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import FloatArray
from narrowgauge.core.encoding import Encoding
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.roles import bias_addition
from narrowgauge.lowering.dynamic import DynamicWriter, IntegerWeights
from narrowgauge.lowering.hybrid.layer import Readings, layer_of, weights_of

_TO_UNSIGNED = 128.0
"""Added to levels: ONNX Runtime's integer products take unsigned first factors."""


def matmul(readings: Readings, writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    """Write a MatMul with constant weights, and the constant bias that is added to it."""
    weights = weights_of(writer, node, encodings, -1)
    if weights is None:
        return False
    addition = bias_addition(node)
    bias = None
    if addition is not None:
        bias = next(array for value in addition.inputs if (array := constant_array(value)) is not None)
    output = node.outputs[0] if addition is None else addition.outputs[0]
    return _product(readings, writer, node, weights, bias, output)


def gemm(readings: Readings, writer: DynamicWriter, node: ir.Node, encodings: Mapping[int, Encoding]) -> bool:
    """Write a Gemm; one whose first factor is transposed or whose bias is computed stays float."""
    transposed = bool(node.attributes.get_int("transB", 0))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_array(bias)
    if node.attributes.get_int("transA", 0) or (bias is not None and array is None):
        return False
    weights = weights_of(writer, node, encodings, 0 if transposed else 1)
    if weights is None:
        return False
    levels = np.ascontiguousarray(weights.levels.T) if transposed else weights.levels
    scale = (weights.scale * np.float32(node.attributes.get_float("alpha", 1.0))).astype(np.float32)
    weights = replace(weights, levels=levels, scale=scale)
    if array is not None:
        array = (array * np.float32(node.attributes.get_float("beta", 1.0))).astype(np.float32)
    return _product(readings, writer, node, weights, array, node.outputs[0])


def _product(
    readings: Readings,
    writer: DynamicWriter,
    node: ir.Node,
    weights: IntegerWeights,
    bias: FloatArray | None,
    output: ir.Value,
) -> bool:
    layer = layer_of(readings, writer, node, "product", weights)
    make, rounded = layer.make, layer.rounded()
    constant = make.parameters.constant(f"{weights.name}_quantized", weights.levels)
    # The zero point is taken off behind the product: ONNX Runtime's operator has one for all rows, and where it is
    # given, what scales each row by itself would be fused into a kernel that scales all alike (measured on 1.31).
    summed = weights.levels.astype(np.int64).sum(axis=-2, keepdims=weights.levels.ndim > 2)
    if rounded.zero_point is None:
        taken = make.constant(summed * int(_TO_UNSIGNED), np.int32)
    else:
        zero_point = make.cast(make("Add", rounded.zero_point, _TO_UNSIGNED), ir.DataType.INT32)
        taken = make("Mul", zero_point, make.constant(summed, np.int32))
    unsigned = make.cast(make("Add", rounded.levels, _TO_UNSIGNED), ir.DataType.UINT8)
    sums = make("Sub", make("MatMulInteger", unsigned, constant), taken)
    layer.finish(sums, weights.scale, bias, output)
    return True
