"""Reshape and its like: tensors in any order of axes in other shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Order, channels_last, cut_options, extents_of, identity, permuted
from narrowgauge.exporters.tflite.shaping import as_int32
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator

Size = int | str | None
"""An extent; the name of one that is known only at run time; None where it has no name."""

Group = tuple[list[int], list[int]]
"""Axes of the input and of the output of a reshape, with equally many numbers."""


def reshape(call: Call) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: RESHAPE, of the tensor as it is found where that gives an order of axes.

    A flattened image that only layers with constant weights read stays with its channels innermost: these layers'
    columns are moved instead.
    """
    value, levels = call.result(), call.levels(call.input())
    before, after = _sizes(call.input()), _sizes(value)
    home = call.home()
    order = reshaped_order(before, after, home)
    if order is None and _is_flattened_image(call, home):
        order, home = identity(2), channels_last(call.rank())
        parts = tuple(extent for extent in call.extents()[1:] if extent is not None)
        call.emitter.flattened[str(value.name)] = parts
    elif order is None:
        order, home = identity(len(after)), identity(len(before))
    extents = permuted(extents_of(value), order)
    source = call.read(0, home)
    if list(extents).count(None) > 1:
        _reshape_at_run_time(call, source, order)
        return
    shape = [-1 if extent is None else extent for extent in extents]
    if 0 in shape and -1 in shape:
        raise call.refusal(f"the shape {shape} has no numbers and an open extent")
    call.emit("RESHAPE", [source, call.constant(shape, "shape")], {"new_shape": shape}, order=order, levels=levels)


def _reshape_at_run_time(call: Call, source: int, order: Order) -> None:
    """Reshape to a shape that is put together at run time: as the network does, or of the input's open extents."""
    if order != identity(len(order)):
        raise call.refusal(f"more than one extent of its output is open: {extents_of(call.result())}")
    computed = call.node.op_type == "Reshape" and call.array(1) is None
    shape = as_int32(call, 1) if computed else _open_shape(call, source)
    call.emit("RESHAPE", [source, shape], {"new_shape": []}, levels=call.levels(call.input()))


def _open_shape(call: Call, source: int) -> int:
    """Join the output's fixed extents and those of the input that have the same names; one may be left, -1.

    Args:
        call: the node.
        source: its input in the network's order of axes.
    """
    before, after = _sizes(call.input()), _sizes(call.result())
    own = call.between("SHAPE", [source], (len(before),), {"out_type": "INT32"}, type="INT32")
    parts, rest = [], 0
    for size in after:
        if isinstance(size, str) and size in before:
            axis = before.index(size)
            places = [call.constant([number], "place") for number in (axis, axis + 1, 1)]
            cut = cut_options()
            parts.append(call.between("STRIDED_SLICE", [own, *places], (1,), cut, type="INT32"))
        else:
            parts.append(call.constant([size if isinstance(size, int) else -1], "extent"))
            rest += not isinstance(size, int)
    if rest > 1:
        raise call.refusal(f"more than one extent of its output is open and none of its input's: {after}")
    return call.between("CONCATENATION", parts, (len(after),), {"axis": 0}, type="INT32")


def _sizes(value: ir.Value) -> list[Size]:
    assert value.shape is not None
    return [size if isinstance(size, int) else size.value for size in value.shape]


def _is_flattened_image(call: Call, home: Order) -> bool:
    """Whether channels and spatial axes become columns that only layers with constant weights read."""
    before, after = call.extents(), extents_of(call.result())
    if len(after) != 2 or len(before) < 3 or home != channels_last(len(before)) or None in before[1:]:
        return False
    if after[1] != int(np.prod(before[1:])) or call.result().is_graph_output():  # type: ignore[arg-type]
        return False
    readers = [(use.node, use.idx) for use in call.result().uses()]
    return bool(readers) and all(_multiplies_columns(node, number) for node, number in readers)


def _multiplies_columns(node: ir.Node, number: int) -> bool:
    weights = constant_array(node.inputs[1]) if is_operator(node, "Gemm", "MatMul") else None
    return number == 0 and weights is not None and weights.ndim == 2 and not node.attributes.get_int("transA", 0)


def reshaped_order(before: Sequence[Size], after: Sequence[Size], home: Order) -> Order | None:
    """Return the order of axes that a reshape of a tensor in order `home` gives; None where it mixes them.

    Axes are parted into groups whose products are equal before and after. Such a group stays together and in its order
    if it is so in the tensor; then the tensor's numbers, as they lie, are those of the output in some order.
    """
    if home == identity(len(before)):
        return identity(len(after))
    groups = _groups(before, after)
    if groups is None:
        return None
    runs = _runs(groups, before, home)
    if runs is None:
        return None
    order = [axis for number in runs for axis in groups[number][1]]
    for number, (_, made) in enumerate(groups):  # what has one entry goes where the network has it
        for axis in made if number not in runs else ():
            order.insert(next((place for place, other in enumerate(order) if other > axis), len(order)), axis)
    return tuple(order)


def _runs(groups: Sequence[Group], before: Sequence[Size], home: Order) -> list[int] | None:
    """Return the groups as they follow each other in a tensor; None where one is torn apart, or out of its order."""
    group = {axis: number for number, (axes, _) in enumerate(groups) for axis in axes if before[axis] != 1}
    runs: list[int] = []
    last: dict[int, int] = {}
    for axis in home:
        if axis not in group:
            continue
        number = group[axis]
        if number in last and (runs[-1] != number or last[number] > axis):
            return None
        if number not in last:
            runs.append(number)
        last[number] = axis
    return runs


def _groups(before: Sequence[Size], after: Sequence[Size]) -> list[Group] | None:
    """Part the axes of two shapes of equally many numbers into the smallest groups with equal products."""
    groups: list[Group] = []
    first = second = 0
    while first < len(before) or second < len(after):
        ours, theirs = [first] if first < len(before) else [], [second] if second < len(after) else []
        first, second = first + len(ours), second + len(theirs)
        while (left := _product(before, ours)) != (right := _product(after, theirs)):
            if left is None or right is None:
                return None
            if left[0] == right[0] and left[1] < right[1] and first < len(before):
                ours.append(first)
                first += 1
            elif left[0] == right[0] and right[1] < left[1] and second < len(after):
                theirs.append(second)
                second += 1
            else:
                return None
        groups.append((ours, theirs))
    return groups


def _product(sizes: Sequence[Size], axes: Sequence[int]) -> tuple[tuple[str, ...], int] | None:
    """Multiply extents: the names of those that are not known, and the product of the others."""
    names, product = [], 1
    for axis in axes:
        size = sizes[axis]
        if size is None or size == 0:
            return None
        if isinstance(size, str):
            names.append(size)
        else:
            product *= size
    return tuple(sorted(names)), product
