"""Operators that compute the same whatever the order of their tensors' axes is, and how they follow a reordering.

`order` is that of a Transpose: the old tensor is Transpose(new tensor, perm=order), so axis i of the old layout is axis
order[i] of the new one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_integers, replace_constant_input
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import rank

UNARY = (
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
    *("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu"),
)
_BROADCASTING = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod"),
    *("Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How an operator follows a reordering of axes.

    Attributes:
        tensors: From a node and the rank, the numbers of the inputs that are reordered with the outputs, or None
            where this node cannot follow.
        follow: Rewrites the node's attributes and constant operands for an order.
    """

    tensors: Callable[[ir.Node, int], Sequence[int] | None]
    follow: Callable[[ir.Node, Sequence[int]], None]


def layout_of(node: ir.Node, axes: int) -> tuple[Layout, Sequence[int]] | None:
    """Return how a node follows a reordering of tensors of `axes` axes, and which inputs are reordered, else None."""
    layout = LAYOUTS.get(node.op_type)
    if layout is None or not is_operator(node, node.op_type) or any(rank(output) != axes for output in node.outputs):
        return None
    tensors = layout.tensors(node, axes)
    return None if tensors is None else (layout, tensors)


def follow_reduction(node: ir.Node, order: Sequence[int]) -> bool:
    """Let a reduction that drops its axes read the new layout, if its result is the same there; tell whether it is."""
    if not drops_axes_in_order(node, order):
        return False
    if not _reduces_everything(node):
        _axes_input(1)(node, order)
    return True


def drops_axes_in_order(node: ir.Node, order: Sequence[int]) -> bool:
    """Tell whether a node is a reduction that drops its axes and leaves the others in order in either layout."""
    if not is_operator(node, *_REDUCTIONS) or node.attributes.get_int("keepdims", 1) != 0:
        return False
    if _reduces_everything(node):
        return True
    axes = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes:
        return False
    dropped = {axis % len(order) for axis in axes}
    kept = [order[axis] for axis in range(len(order)) if axis not in dropped]
    return kept == sorted(kept)


def _reduces_everything(node: ir.Node) -> bool:
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    return not given and node.attributes.get_int("noop_with_empty_axes", 0) == 0


def _first_input(node: ir.Node, axes: int) -> Sequence[int] | None:
    del node, axes
    return (0,)


def _all_inputs(node: ir.Node, axes: int) -> Sequence[int] | None:
    del axes
    return range(len(node.inputs))


def _broadcast_inputs(node: ir.Node, axes: int) -> Sequence[int] | None:
    """Constants are reordered themselves; other operands must have all axes, or be a single number."""
    tensors = []
    for index, value in enumerate(node.inputs):
        if value is None:
            return None
        if constant_array(value) is not None or rank(value) == 0:
            continue
        if rank(value) != axes:
            return None
        tensors.append(index)
    return tensors


def _with_constants(*required: int) -> Callable[[ir.Node, int], Sequence[int] | None]:
    """Accept a node whose given inputs, where present, are constant integers."""

    def tensors(node: ir.Node, axes: int) -> Sequence[int] | None:
        del axes
        for index in required:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and constant_integers(value) is None:
                return None
        return (0,)

    return tensors


def _kept_reduction(node: ir.Node, axes: int) -> Sequence[int] | None:
    if not node.attributes.get_int("keepdims", 1) or len(node.inputs) < 2:
        return None
    return _with_constants(1)(node, axes)


def _nothing(node: ir.Node, order: Sequence[int]) -> None:
    del node, order


def _axis_attribute(default: int) -> Callable[[ir.Node, Sequence[int]], None]:
    def follow(node: ir.Node, order: Sequence[int]) -> None:
        axis = node.attributes.get_int("axis", default)
        node.attributes["axis"] = ir.AttrInt64("axis", order[axis])

    return follow


def _axes_input(index: int) -> Callable[[ir.Node, Sequence[int]], None]:
    def follow(node: ir.Node, order: Sequence[int]) -> None:
        axes = constant_integers(node.inputs[index])
        replace_constant_input(node, index, np.asarray([order[axis] for axis in axes or ()], dtype=np.int64))

    return follow


def _reorder_constants(node: ir.Node, order: Sequence[int]) -> None:
    backwards = np.argsort(order)
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is not None and array.size > 1:
            full = array.reshape((1,) * (len(order) - array.ndim) + array.shape)  # one size for each axis
            replace_constant_input(node, index, np.ascontiguousarray(full.transpose(backwards)))


def _reorder_pads(node: ir.Node, order: Sequence[int]) -> None:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        _axes_input(3)(node, order)
        return
    pads = np.asarray(constant_integers(node.inputs[1])).reshape(2, -1)  # [begin and end, axis]
    replace_constant_input(node, 1, pads[:, np.argsort(order)].reshape(-1))


def _reorder_slice(node: ir.Node, order: Sequence[int]) -> None:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        _axes_input(3)(node, order)
        return
    count = len(constant_integers(node.inputs[1]) or ())
    name = f"{node.outputs[0].name}_axes"
    replace_constant_input(node, 3, np.asarray(order[:count], dtype=np.int64), name=name)


LAYOUTS: dict[str, Layout] = {
    **{operator: Layout(tensors=_first_input, follow=_nothing) for operator in UNARY},
    **{operator: Layout(tensors=_broadcast_inputs, follow=_reorder_constants) for operator in _BROADCASTING},
    **{operator: Layout(tensors=_kept_reduction, follow=_axes_input(1)) for operator in _REDUCTIONS},
    "Concat": Layout(tensors=_all_inputs, follow=_axis_attribute(0)),
    "LogSoftmax": Layout(tensors=_first_input, follow=_axis_attribute(-1)),
    "Pad": Layout(tensors=_with_constants(1, 3), follow=_reorder_pads),
    "Slice": Layout(tensors=_with_constants(1, 3), follow=_reorder_slice),
    "Softmax": Layout(tensors=_first_input, follow=_axis_attribute(-1)),
    "Split": Layout(tensors=_first_input, follow=_axis_attribute(0)),
}
"""Operator -> how it follows. Opset 13 or newer is assumed (Softmax along one axis, axes as inputs)."""
