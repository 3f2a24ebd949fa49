"""Operators that compute each position along an axis from the same position of their inputs, and along which axes.

A position is a token of a sequence, say: an operator that does not mix tokens gives the same tokens as before where it
is handed only some of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_integers
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.shapes import rank
from narrowgauge.passes.cancel_transposes import order_of
from narrowgauge.passes.layouts import LAYOUTS

Sources: TypeAlias = Mapping[int, int]
"""Input number -> axis of that input whose positions the output's are made from; other inputs are read whole."""

Size: TypeAlias = int | str | None
"""How long an axis is: a number, the name of one known only when the network runs, or None for neither."""


def sources(node: ir.Node, axis: int) -> Sources | None:
    """Return where the positions along an axis of a node's first output come from, None where they may be mixed.

    For every position p, the output at p depends on those inputs at p alone, and on nothing but p.

    Args:
        node: any node; its inputs' and outputs' ranks must be known.
        axis: of the first output, 0 or more.
    """
    rule = _RULES.get(node.op_type)
    if rule is None or not is_operator(node, node.op_type):
        return None
    if rank(node.outputs[0]) is None or any(value is not None and rank(value) is None for value in node.inputs):
        return None
    return rule(node, axis)


def sizes_of(value: ir.Value | None) -> list[Size]:
    """Return the size of each axis of a value of known rank."""
    shape = () if value is None or value.shape is None else value.shape
    return [size if isinstance(size, int) else size.value for size in shape]


def _broadcast(node: ir.Node, axis: int) -> Sources | None:
    """All inputs are aligned at the last axis; one of size 1 holds the same for all positions."""
    result = sizes_of(node.outputs[0])
    long = {}
    for number, value in enumerate(node.inputs):
        sizes = sizes_of(value)
        own = axis - len(result) + len(sizes)
        if value is not None and own >= 0 and sizes[own] != 1:
            long[number] = (own, sizes[own])
    certain = len(long) == 1 or all(size is not None and size == result[axis] for _, size in long.values())
    return {number: own for number, (own, _) in long.items()} if certain else None


def _layer_normalization(node: ir.Node, axis: int) -> Sources | None:
    first = node.attributes.get_int("axis", -1) % len(sizes_of(node.outputs[0]))
    return _broadcast(node, axis) if axis < first else None


def _softmax(node: ir.Node, axis: int) -> Sources | None:
    return {0: axis} if axis != node.attributes.get_int("axis", -1) % len(sizes_of(node.outputs[0])) else None


def _matmul(node: ir.Node, axis: int) -> Sources | None:
    """Rows come from the first factor and columns from the second, but not those of a layer's constant weights."""
    axes, factors = len(sizes_of(node.outputs[0])), [len(sizes_of(value)) for value in node.inputs]
    if min(factors) < 2:  # a vector's axis is not in the product
        return None
    if axis < axes - 2:
        return _broadcast(node, axis)
    number = axis - (axes - 2)
    return None if constant_array(node.inputs[number]) is not None else {number: factors[number] - 2 + number}


def _gemm(node: ir.Node, axis: int) -> Sources | None:
    if axis != 0 or constant_array(node.inputs[0]) is not None:
        return None
    found = {0: node.attributes.get_int("transA", 0)}
    bias = sizes_of(node.inputs[2]) if len(node.inputs) > 2 else []
    if len(bias) == 2 and bias[0] != 1:
        if bias[0] is None or bias[0] != sizes_of(node.outputs[0])[0]:
            return None
        found[2] = 0
    return found


def _transpose(node: ir.Node, axis: int) -> Sources | None:
    order = order_of(node)
    return None if order is None else {0: order[axis]}


def _reshape(node: ir.Node, axis: int) -> Sources | None:
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    target = constant_integers(node.inputs[1])
    own = _same_axis(before, after, axis)
    if own is None or target is None:
        return None
    copies = own < len(target) and target[own] == 0 and node.attributes.get_int("allowzero", 0) == 0
    return None if copies and own != axis else {0: own}  # another axis takes its size from this one


def _flatten(node: ir.Node, axis: int) -> Sources | None:
    own = _same_axis(sizes_of(node.inputs[0]), sizes_of(node.outputs[0]), axis)
    return None if own is None else {0: own}


def _same_axis(before: Sequence[Size], after: Sequence[Size], axis: int) -> int | None:
    """Return which axis before a reshape is this one behind it: as long, with as many elements before and behind.

    Of the three numbers two must be known to be equal; so is the third then.
    """
    for own, size in enumerate(before):
        equal = (
            _same_count(before[:own], after[:axis]),
            size is not None and size == after[axis],
            _same_count(before[own + 1 :], after[axis + 1 :]),
        )
        if sum(equal) >= 2:
            return own
    return None


def _same_count(first: Sequence[Size], second: Sequence[Size]) -> bool:
    counts = []
    for sizes in (first, second):
        number = math.prod(size for size in sizes if isinstance(size, int))
        counts.append((number, sorted(size for size in sizes if isinstance(size, str))))
    return counts[0] == counts[1] and counts[0][0] > 0 and None not in (*first, *second)


def _squeeze(node: ir.Node, axis: int) -> Sources | None:
    axes = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:  # without them it would also remove an axis that has become 1
        return None
    count = len(sizes_of(node.inputs[0]))
    removed = {each % count for each in axes}
    return {0: [each for each in range(count) if each not in removed][axis]}


def _unsqueeze(node: ir.Node, axis: int) -> Sources | None:
    axes = constant_integers(node.inputs[1])
    new = {each % len(sizes_of(node.outputs[0])) for each in axes or ()}
    return None if axes is None or axis in new else {0: axis - sum(each < axis for each in new)}


def _concat(node: ir.Node, axis: int) -> Sources | None:
    if node.attributes.get_int("axis", 0) % len(sizes_of(node.outputs[0])) == axis:
        return None
    return dict.fromkeys(range(len(node.inputs)), axis)


def _slice(node: ir.Node, axis: int) -> Sources | None:
    starts = constant_integers(node.inputs[1])
    given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = constant_integers(node.inputs[3]) if given else range(len(starts or ()))
    if starts is None or axes is None:
        return None
    return None if axis in {each % len(sizes_of(node.inputs[0])) for each in axes} else {0: axis}


def _gather(node: ir.Node, axis: int) -> Sources | None:
    if constant_array(node.inputs[0]) is not None:
        return None
    picked = node.attributes.get_int("axis", 0) % len(sizes_of(node.inputs[0]))
    behind = picked + len(sizes_of(node.inputs[1]))
    if axis < picked:
        return {0: axis}
    return {0: axis - behind + picked + 1} if axis >= behind else None


def _reduction(node: ir.Node, axis: int) -> Sources | None:
    axes = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes:
        return None
    count = len(sizes_of(node.inputs[0]))
    reduced = {each % count for each in axes}
    if node.attributes.get_int("keepdims", 1):
        return None if axis in reduced else {0: axis}
    return {0: [each for each in range(count) if each not in reduced][axis]}


_MIXING: dict[str, Callable[[ir.Node, int], Sources | None]] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    **{operator: _reduction for operator in LAYOUTS if operator.startswith("Reduce")},
}
"""Operators that mix the positions along some of their axes, or give the axes other numbers."""

_LEFT_OUT = {"Dropout", "Pad", "Split"}  # a Dropout that is still there is random; the others are not worth a rule

ELEMENTWISE = tuple(sorted(set(LAYOUTS) - set(_MIXING) - _LEFT_OUT))
"""Operators that compute every element from the elements in its place, as far as they work in any layout."""

_RULES = {**dict.fromkeys(ELEMENTWISE, _broadcast), **_MIXING}
