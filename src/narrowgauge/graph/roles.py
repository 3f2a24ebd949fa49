"""What the inputs of an operator mean: which hold weights, which the bias, and along which axis channels lie.

One table for all of ONNX; an operator that it does not name has only activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.graph.edits import is_operator, sole_consumer

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRole:
    """Where a layer keeps its weights.

    Attributes:
        weights: input numbers of the weights.
        bias: input number of the bias, None where the operator takes none.
        output_axis: axis of the weights along which the output channels lie, from the node and the weights' rank.
        input_axis: axis of the activation along which the channels lie that the weights are multiplied with.
    """

    weights: tuple[int, ...]
    bias: int | None
    output_axis: Callable[[ir.Node, int], int]
    input_axis: int


def _gemm_output_axis(node: ir.Node, rank: int) -> int:
    return 0 if node.attributes.get_int("transB", 0) else 1


WEIGHT_ROLES: dict[str, WeightRole] = {
    "Conv": WeightRole(weights=(1,), bias=2, output_axis=lambda node, rank: 0, input_axis=1),
    "ConvTranspose": WeightRole(weights=(1,), bias=2, output_axis=lambda node, rank: 1, input_axis=1),
    "Gemm": WeightRole(weights=(1,), bias=2, output_axis=_gemm_output_axis, input_axis=-1),
    "MatMul": WeightRole(weights=(1,), bias=None, output_axis=lambda node, rank: rank - 1, input_axis=-1),
    "LSTM": WeightRole(weights=(1, 2), bias=3, output_axis=lambda node, rank: 1, input_axis=-1),
    "GRU": WeightRole(weights=(1, 2), bias=3, output_axis=lambda node, rank: 1, input_axis=-1),
    "RNN": WeightRole(weights=(1, 2), bias=3, output_axis=lambda node, rank: 1, input_axis=-1),
    "Gather": WeightRole(weights=(0,), bias=None, output_axis=lambda node, rank: 0, input_axis=-1),
}

# Outputs hold the levels of one input, moved or selected; value: which input.
LAYOUT_OPERATORS = {
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip

# Activation functions that cut a value off; what they cut off needs no level before them.
CLIPPING_OPERATORS = {"Relu", "Clip"}

# Operators whose second and later inputs are parameters (shapes, axes, bounds), never activations.
_PARAMETER_INPUTS = {
    "Clip": 1, "Reshape": 1, "Squeeze": 1, "Unsqueeze": 1, "Slice": 1, "Split": 1, "Expand": 1, "Pad": 1, "Resize": 1,
    "Gather": 1, "ReduceMean": 1, "ReduceSum": 1, "ReduceMax": 1, "ReduceMin": 1, "TopK": 1, "Tile": 1, "Upsample": 1,
    "QuantizeLinear": 1, "DequantizeLinear": 1, "LayerNormalization": 1, "BatchNormalization": 1,
    "InstanceNormalization": 1, "GroupNormalization": 1, "PRelu": 1, "ConstantOfShape": 0, "Range": 0,
}  # fmt: skip


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is known to hold floating-point numbers."""
    return value is not None and value.dtype in FLOATS


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer whose numbers are there."""
    return value is not None and value.const_value is not None


def weight_inputs(node: ir.Node) -> list[int]:
    """Input numbers of a node's constant float weights; empty for a product of two activations."""
    role = WEIGHT_ROLES.get(node.op_type) if node.domain == "" else None
    if role is None:
        return []
    return [
        number
        for number in role.weights
        if number < len(node.inputs) and is_constant(node.inputs[number]) and is_float(node.inputs[number])
    ]


def bias_input(node: ir.Node) -> int | None:
    """Input number of a node's bias, None if it can have none; the input itself may be missing."""
    role = WEIGHT_ROLES.get(node.op_type) if node.domain == "" else None
    return None if role is None else role.bias


def output_axis(node: ir.Node, input_number: int) -> int:
    """Axis of a node's weights along which its output channels lie."""
    weights = node.inputs[input_number]
    assert weights is not None
    assert weights.const_value is not None
    return WEIGHT_ROLES[node.op_type].output_axis(node, len(weights.const_value.shape))


def activation_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Float inputs of a node that carry activations (or a constant in the place of one), with their numbers."""
    first_parameter = _PARAMETER_INPUTS.get(node.op_type, len(node.inputs)) if node.domain == "" else len(node.inputs)
    held = set(weight_inputs(node))
    bias = bias_input(node)
    for number, value in enumerate(node.inputs[: max(first_parameter, 0)]):
        if value is not None and number not in held and number != bias and is_float(value):
            yield number, value


def float_outputs(node: ir.Node) -> list[ir.Value]:
    """Outputs of a node that are used and hold floating-point numbers."""
    return [value for value in node.outputs if value is not None and value.name and is_float(value)]


def clips_only(value: ir.Value) -> ir.Node | None:
    """Return the Relu or Clip that alone reads a value, else None."""
    consumer = sole_consumer(value)
    if consumer is None or consumer.op_type not in CLIPPING_OPERATORS or consumer.domain != "":
        return None
    return consumer if all(is_constant(bound) for bound in consumer.inputs[1:] if bound is not None) else None


def bounded_by_constant(node: ir.Node) -> ir.Value | None:
    """Return the value that a Min or Max with one constant bounds, None for any other node."""
    if not is_operator(node, "Min", "Max") or len(node.inputs) != 2:
        return None
    moving = [value for value in node.inputs if value is not None and not is_constant(value)]
    return moving[0] if len(moving) == 1 else None


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Bounds that a Relu or Clip keeps its output in, real units; infinite where there is none."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [float("-inf"), float("inf")]
    for number, value in enumerate(node.inputs[1:3]):
        if value is not None and value.const_value is not None:
            bounds[number] = float(value.const_value.numpy())
    return bounds[0], bounds[1]


def bias_addition(node: ir.Node) -> ir.Node | None:
    """Return the Add of a constant per column that alone reads a matrix product with constant weights, else None."""
    if not is_operator(node, "MatMul") or not weight_inputs(node):
        return None
    addition = sole_consumer(node.outputs[0])
    if addition is None or not is_operator(addition, "Add"):
        return None
    other = next((value for value in addition.inputs if value is not node.outputs[0]), None)
    weights = node.inputs[1]
    if other is None or not is_constant(other) or weights is None or weights.const_value is None:
        return None
    assert other.const_value is not None
    return addition if tuple(other.const_value.shape) == (weights.const_value.shape[-1],) else None
