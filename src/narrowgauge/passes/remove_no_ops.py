"""Remove nodes whose output equals their input."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_integers, constant_scalar
from narrowgauge.graph.edits import all_nodes, bypass, is_operator, remove_unused
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, same_shape


def remove_no_ops(model: ir.Model) -> tuple[Refusal, ...]:
    """Remove identities, dropouts and every node that its attributes or shapes make one, in place.

    Those are: Identity; Dropout outside training; Cast to the type it has; Transpose that moves nothing
    (but axes of size 1 among themselves); Reshape,
    Flatten, Squeeze, Unsqueeze and Expand to the shape it has; Slice of everything; Pad by nothing; Concat and
    Sum of one; Split into one. The input's name survives, or, if the output is an output of the network, that.
    Nothing is refused: a node that stays for its name (a network output equal to an input) is still right.
    """
    for node in tuple(all_nodes(model)):
        test = _NO_OP_TESTS.get(node.op_type)
        if test is None or not is_operator(node, node.op_type) or not node.inputs or node.inputs[0] is None:
            continue
        if not any(output.uses() or output.is_graph_output() for output in node.outputs[1:]) and test(node):
            bypass(node)
    remove_unused(model)
    return ()


def _keeps_shape(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and same_shape(source, node.outputs[0])


def _reshape(node: ir.Node) -> bool:
    """With one axis of unknown size the others tell: the number of elements is the same on both sides."""
    source = node.inputs[0]
    if _keeps_shape(node):
        return True
    target = constant_integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or target is None:
        return False
    if 0 in target and node.attributes.get_int("allowzero", 0) != 0:
        return False
    if len(target) != source.shape.rank():
        return False
    unknown = [size for size, wanted in zip(source.shape, target, strict=True) if wanted not in {0, size}]
    return len(unknown) == 0 or (len(unknown) == 1 and -1 in target and 0 not in source.shape)


def _dropout(node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return training is None or constant_scalar(training) == 0


def _cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype is not None and source.dtype == node.attributes.get_int("to")


def _transpose(node: ir.Node) -> bool:
    order = node.attributes.get_ints("perm")
    if order is not None and list(order) == list(range(len(order))):
        return True
    sizes = dimensions(node.inputs[0])
    if sizes is None or not _keeps_shape(node):
        return False
    longer = [axis for axis in order or reversed(range(len(sizes))) if sizes[axis] != 1]
    return longer == sorted(longer)


def _slice(node: ir.Node) -> bool:
    steps = constant_integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else (1,)
    if steps is None or any(step != 1 for step in steps):
        return False
    starts, ends = constant_integers(node.inputs[1]), constant_integers(node.inputs[2])
    unlimited = np.iinfo(np.int32).max
    if starts is not None and ends is not None and not any(starts) and all(end >= unlimited for end in ends):
        return True
    return _keeps_shape(node)


def _pad(node: ir.Node) -> bool:
    pads = constant_array(node.inputs[1])
    return pads is not None and not pads.any()


def _one_input(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _one_output(node: ir.Node) -> bool:
    return len(node.outputs) == 1


_NO_OP_TESTS: dict[str, Callable[[ir.Node], bool]] = {
    "Cast": _cast,
    "Concat": _one_input,
    "Dropout": _dropout,
    "Expand": _keeps_shape,
    "Flatten": _keeps_shape,
    "Identity": _one_input,
    "Max": _one_input,
    "Mean": _one_input,
    "Min": _one_input,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _one_output,
    "Squeeze": _keeps_shape,
    "Sum": _one_input,
    "Transpose": _transpose,
    "Unsqueeze": _keeps_shape,
}
