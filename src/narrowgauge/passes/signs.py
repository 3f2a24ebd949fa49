"""What can be said of the sign of a value without running the network."""

from collections.abc import Callable

import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_scalar
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import is_float

_ALWAYS = frozenset(
    {"Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax", "Softplus"}
    | {"Sqrt"}
)
"""Operators that make nothing below zero."""

_AS_INPUTS = frozenset(
    {"Add", "AveragePool", "Ceil", "Concat", "DepthToSpace", "Div", "Dropout", "Flatten", "Floor", "Gather"}
    | {"GlobalAveragePool", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Mean", "Min", "Mul", "ReduceMax"}
    | {"ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze"}
    | {"Sum", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that make nothing below zero of operands of which none is."""

_FIRST_ONLY = frozenset(
    {"Dropout", "Flatten", "Gather", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}
    | {"Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Those whose other inputs are parameters."""

_FARTHEST = 32
"""Operators looked back over; farther away nothing is said."""


def is_nonnegative(value: ir.Value | None, *, farthest: int = _FARTHEST) -> bool:
    """Tell whether no number of a value can be below zero (NaN aside), whatever the network reads."""
    if value is None or farthest == 0:
        return False
    array = constant_array(value)
    if array is not None:
        return array.dtype.kind in "fiu" and bool((array >= 0).all())
    node = value.producer()
    if node is None or not is_operator(node, node.op_type) or not is_float(value):  # integers wrap around
        return False
    if node.op_type in _ALWAYS:
        return True
    special = _RULES.get(node.op_type)
    if special is not None:
        return special(node, farthest - 1)
    if node.op_type not in _AS_INPUTS:
        return False
    operands = node.inputs[:1] if node.op_type in _FIRST_ONLY else node.inputs
    return all(is_nonnegative(operand, farthest=farthest - 1) for operand in operands)


def _clip(node: ir.Node, farthest: int) -> bool:
    bounds = [constant_scalar(node.inputs[index]) if index < len(node.inputs) else None for index in (1, 2)]
    given = [index < len(node.inputs) and node.inputs[index] is not None for index in (1, 2)]
    if given[1] and (bounds[1] is None or bounds[1] < 0):
        return False  # Clip gives the upper bound where the two are the wrong way round
    if bounds[0] is not None and bounds[0] >= 0:
        return True
    return is_nonnegative(node.inputs[0], farthest=farthest)


def _maximum(node: ir.Node, farthest: int) -> bool:
    return any(is_nonnegative(operand, farthest=farthest) for operand in node.inputs)


def _product(node: ir.Node, farthest: int) -> bool:
    square = len(set(node.inputs)) == 1
    return square or all(is_nonnegative(operand, farthest=farthest) for operand in node.inputs)


def _pad(node: ir.Node, farthest: int) -> bool:
    constant = len(node.inputs) > 2 and node.inputs[2] is not None
    if constant and not is_nonnegative(node.inputs[2], farthest=farthest):
        return False
    return is_nonnegative(node.inputs[0], farthest=farthest)


_RULES: dict[str, Callable[[ir.Node, int], bool]] = {
    "Clip": _clip,
    "Max": _maximum,
    "Mul": _product,
    "Pad": _pad,
}
