"""Networks that compute in 16-bit floating point, brought to float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import set_constant
from narrowgauge.graph.edits import all_nodes, is_operator

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


NOTE = (
    "the given network computes in 16-bit floating point; here it computes, takes and gives float32, so results that "
    "lie on the border of two levels may differ"
)
"""What a person should know of a network that was widened."""


def is_narrow(model: ir.Model) -> bool:
    """Tell whether any value of a network is float16 or bfloat16."""
    return any(_is_narrow(value) for value in _values(model))


def widen_to_float32(model: ir.Model) -> None:
    """Let all that is float16 or bfloat16 be float32, in place: weights, scales, inputs, outputs and conversions.

    Every number of a 16-bit type is one of float32, so weights and scales stay what they are; only the rounding of
    intermediate results to 16 bits goes. `NOTE` says so.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in _NARROW:
                set_constant(value, value.const_value.numpy().astype(np.float32))
    for value in _values(model):
        if _is_narrow(value):
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in all_nodes(model):
        _widen_attributes(node)


def _values(model: ir.Model) -> list[ir.Value]:
    found = [value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())]
    return found + [value for node in all_nodes(model) for value in node.outputs]


def _is_narrow(value: ir.Value) -> bool:
    return value.dtype in _NARROW


def _widen_attributes(node: ir.Node) -> None:
    if not is_operator(node, node.op_type):
        return
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _NARROW:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
            wide = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
            node.attributes[name] = ir.AttrTensor(name, wide)
