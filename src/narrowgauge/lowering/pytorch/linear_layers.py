"""Products with constant weights in the form that PyTorch and its compiler know as a linear layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, remove_unused, sole_consumer, take_place
from narrowgauge.lowering.parameters import Parameters
from narrowgauge.lowering.pytorch.table import LINEAR

DOMAIN = "narrowgauge.pytorch"


def to_linear_layers(model: ir.Model) -> None:
    """Turn each MatMul and Gemm with constant weights, and the bias behind it, into one Linear, in place.

    ONNX has weights `[inputs, outputs]`, a linear layer `[outputs, inputs]`: the levels themselves are transposed.
    Products that a linear layer does not compute stay as they are.
    """
    parameters = Parameters(model.graph)
    for node in list(model.graph):
        if is_operator(node, "MatMul", "Gemm"):
            _turn(node, parameters)
    remove_unused(model)


def _turn(node: ir.Node, parameters: Parameters) -> None:
    transposed = bool(node.attributes.get_int("transB", 0))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    if not plain or node.attributes.get_int("transA", 0) != 0:
        return
    if bias is not None and (bias.shape is None or bias.shape.rank() != 1 or bias.shape[0] == 1):
        return
    weights = node.inputs[1] if transposed else _transposed(node.inputs[1], parameters)
    if weights is None or node.inputs[0] is None:
        return
    result = node.outputs[0]
    if bias is None:
        addition, bias = _bias(result, weights)
        result = result if addition is None else addition.outputs[0]
    inputs = [node.inputs[0], weights] + ([bias] if bias is not None else [])
    layer = ir.node(LINEAR, inputs=inputs, domain=DOMAIN, name=str(node.name))
    layer.outputs[0].name = parameters.name(f"{result.name}_linear")
    node.prepend(layer)
    take_place(layer.outputs[0], result)


def _transposed(value: ir.Value | None, parameters: Parameters) -> ir.Value | None:
    """Return weights of two axes turned round; None where they are no constants that can be."""
    array, rounding = constant_array(value), value.producer() if value is not None else None
    if value is not None and array is not None and array.ndim == 2:
        return parameters.constant(f"{value.name}_transposed", np.ascontiguousarray(array.T))
    if value is None or rounding is None or not is_operator(rounding, "DequantizeLinear"):
        return None
    source = rounding.inputs[0]
    levels, blocks = constant_array(source), rounding.attributes.get_int("block_size", 0)
    if source is None or levels is None or levels.ndim != 2 or blocks != 0:  # scales of blocks have two axes, too
        return None
    turned = parameters.constant(f"{source.name}_transposed", np.ascontiguousarray(levels.T))
    copy = ir.node(
        "DequantizeLinear",
        inputs=[turned, *rounding.inputs[1:]],
        attributes={"axis": 1 - rounding.attributes.get_int("axis", 1) % 2},
        name=parameters.name(f"{rounding.name}_transposed"),
    )
    copy.meta.update(rounding.meta)
    copy.outputs[0].name = parameters.name(f"{value.name}_transposed")
    copy.outputs[0].type = value.type
    rounding.append(copy)
    return copy.outputs[0]


def _bias(result: ir.Value, weights: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the Add of a constant per column that alone reads a product, and that constant."""
    addition = sole_consumer(result)
    if addition is None or not is_operator(addition, "Add"):
        return None, None
    other = next((value for value in addition.inputs if value is not None and value is not result), None)
    array = constant_array(other)
    source = weights.producer()
    levels = constant_array(weights if source is None else source.inputs[0])
    if array is None or levels is None or array.shape != levels.shape[:1]:
        return None, None
    return addition, other
