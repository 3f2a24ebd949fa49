"""Join adjacent reshapes, and remove chains of them that end in the shape they began with."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers, replace_constant_input
from narrowgauge.graph.edits import is_operator, remove_if_unused, remove_unused, substitute
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, same_shape

RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that keep the order of the elements and change only the shape."""


def merge_reshapes(model: ir.Model) -> tuple[Refusal, ...]:
    """Let every reshape read what the first of its chain reads, where its own meaning allows it, in place.

    A Reshape to constant sizes may skip all reshapes before it, unless it copies a size (0) that the skipped ones
    changed. A reshape whose result has the shape that the chain began with goes away. A Transpose before such a
    Reshape goes away if it moves only axes of size 1; so does one behind a reshape, or it becomes a Reshape. Nothing
    is refused.
    """
    for node in tuple(model.graph):
        if node.graph is None:
            continue
        if is_operator(node.inputs[0].producer() if node.inputs and node.inputs[0] else None, *RESHAPES):
            _write_as_reshape(node)
        if not is_operator(node, *RESHAPES):
            continue
        start = _start_of_chain(node)
        ends_as_begun = same_shape(start, node.outputs[0]) and substitute(node.outputs[0], start)
        if not ends_as_begun and is_operator(node, "Reshape"):
            _skip(node)
    remove_unused(model)
    return ()


def _write_as_reshape(node: ir.Node) -> None:
    """Turn a Transpose that moves only axes of size 1 into a Reshape, if at most one size is unknown."""
    sizes = dimensions(node.outputs[0])
    if not _moves_only_ones(node) or sizes is None or sizes.count(None) > 1 or 0 in sizes:
        return
    before = dimensions(node.inputs[0]) or ()
    same_place = None in sizes and before[sizes.index(None)] is None
    target = [(0 if same_place else -1) if size is None else size for size in sizes]
    node.op_type = "Reshape"
    node.attributes.pop("perm", None)
    replace_constant_input(node, 1, np.array(target, dtype=np.int64), name=f"{node.outputs[0].name}_shape")


def _start_of_chain(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    while value is not None and is_operator(value.producer(), *RESHAPES):
        producer = value.producer()
        value = producer.inputs[0] if producer is not None else None
    if value is None:
        message = f"the reshape {node.name!r} has no input"
        raise ValueError(message)
    return value


def _skip(node: ir.Node) -> None:
    """Step over the reshapes (and transposes of size-1 axes) before a Reshape, one at a time."""
    while True:
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        if value is None or producer is None or producer.inputs[0] is None:
            return
        skippable = is_operator(producer, *RESHAPES) or _moves_only_ones(producer)
        if not skippable or not _means_the_same(node, value, producer.inputs[0]):
            return
        _read_from(node, producer.inputs[0])


def _read_from(node: ir.Node, value: ir.Value) -> None:
    old = node.inputs[0]
    node.replace_input_with(0, value)
    while old is not None and old is not value:
        producer = old.producer()
        following = None if producer is None else producer.inputs[0]
        remove_if_unused(producer)
        if producer is None or producer.graph is not None:
            return
        old = following


def _means_the_same(node: ir.Node, old: ir.Value, new: ir.Value) -> bool:
    """Tell whether the Reshape gives the same result on a value of the same elements in another shape."""
    target = constant_integers(node.inputs[1])
    if target is None or (0 in target and node.attributes.get_int("allowzero", 0) != 0):
        return False
    before, after = dimensions(old), dimensions(new)
    for place in np.flatnonzero(np.asarray(target) == 0):
        if old.shape is None or new.shape is None or before is None or after is None or place >= len(after):
            return False
        if old.shape[int(place)] != new.shape[int(place)] or (before[place] is None and _is_anonymous(old, int(place))):
            return False
    return True


def _is_anonymous(value: ir.Value, axis: int) -> bool:
    size = None if value.shape is None else value.shape[axis]
    return not isinstance(size, int) and (size is None or size.value is None)


def _moves_only_ones(node: ir.Node) -> bool:
    """Tell whether the node is a Transpose that leaves the axes longer than 1 in their order."""
    if not is_operator(node, "Transpose"):
        return False
    sizes, order = dimensions(node.inputs[0]), node.attributes.get_ints("perm")
    if sizes is None:
        return False
    if order is None:
        order = tuple(reversed(range(len(sizes))))
    longer = [axis for axis in order if sizes[axis] != 1]
    return longer == sorted(longer)
