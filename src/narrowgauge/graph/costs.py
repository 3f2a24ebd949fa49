"""What a layer costs: multiplications and additions of one sample."""

from __future__ import annotations

import math

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import output_axis, weight_inputs
from narrowgauge.graph.shapes import dimensions


def multiply_accumulates(node: ir.Node) -> int:
    """Count the multiply-accumulate operations of a layer with constant weights.

    Axes of unknown length (the batch, as a rule) count 1, so the figure is that of one sample. A Gather multiplies
    nothing; a recurrent layer uses its weights at every step.

    Args:
        node: any node; one without constant weights counts 0.
    """
    numbers = weight_inputs(node)
    if not numbers or is_operator(node, "Gather"):
        return 0
    if is_operator(node, "LSTM", "GRU", "RNN"):
        steps = _elements(node.inputs[0], until=2)
        return steps * sum(_size(node.inputs[number]) for number in numbers)
    weights = node.inputs[numbers[0]]
    assert weights is not None
    assert weights.const_value is not None
    if is_operator(node, "ConvTranspose"):
        return _elements(node.inputs[0]) * _size(weights) // max(weights.const_value.shape.numpy()[0], 1)
    shape = weights.const_value.shape.numpy()
    if is_operator(node, "MatMul"):  # [..., inputs, outputs], or a vector of inputs
        return _elements(node.outputs[0]) * shape[-2 if len(shape) > 1 else 0]
    return _elements(node.outputs[0]) * _size(weights) // max(shape[output_axis(node, numbers[0])], 1)


def _elements(value: ir.Value | None, until: int | None = None) -> int:
    return math.prod(1 if size is None else size for size in (dimensions(value) or ())[:until])


def _size(value: ir.Value | None) -> int:
    return value.const_value.size if value is not None and value.const_value is not None else 0
