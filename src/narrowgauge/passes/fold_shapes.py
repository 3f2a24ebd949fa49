"""Follow shape computations, and replace by constants what they compute whatever the batch size is.

Exporters write `Reshape(x, Concat(Gather(Shape(x), 0), 3, -1))` where `Reshape(x, [0, 3, -1])` is meant. This pass
evaluates such integers with sizes that may be symbols.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_integers, replace_by_constant, replace_constant_input
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions, infer_shapes
from narrowgauge.passes.size_arithmetic import ELEMENTWISE, LONGEST, Sizes, Symbol, broadcast, elementwise, filled

_ROUNDS = 4

_INVENTED = "unk__"
"""How the names begin that ONNX's shape inference makes up (onnx, shape_inference/implementation.h)."""


def fold_shapes(model: ir.Model) -> tuple[Refusal, ...]:
    """Make shape computations constant where they do not depend on a dynamic axis, in place.

    A vector of sizes that are all static becomes an initializer. The target of a Reshape with one dynamic size becomes
    one with 0 (the size its input has there) or -1. The shape of an Expand is noted, which ONNX infers from a constant
    target only. Nothing is refused.
    """
    for _ in range(_ROUNDS):
        known = _evaluate(model.graph)
        changed = [_replace_static(value, sizes) for value, sizes in known.items()]
        changed += [_replace_reshape(node, known) for node in model.graph if is_operator(node, "Reshape")]
        changed += [_note_expanded(node, known) for node in model.graph if is_operator(node, "Expand")]
        if not any(changed):
            break
        remove_unused(model)
        infer_shapes_anew(model)
    return ()


def infer_shapes_anew(model: ir.Model) -> None:
    """Infer shapes after a change that lets ONNX know the names of sizes that it had to make up before.

    It never replaces a name that is there, so shapes with such a name are dropped first.
    """
    for node in model.graph:
        for value in node.outputs:
            if is_operator(node, node.op_type) and not value.is_graph_output() and _has_invented_name(value):
                value.shape = None
    infer_shapes(model)


def _has_invented_name(value: ir.Value) -> bool:
    sizes = () if value.shape is None else value.shape
    return any(not isinstance(size, int) and (size.value or "").startswith(_INVENTED) for size in sizes)


def _evaluate(graph: ir.Graph) -> dict[ir.Value, Sizes]:
    """Return the sizes that the nodes of shape computations make."""
    known: dict[ir.Value, Sizes] = {}
    for node in graph:
        rule = _RULES.get(node.op_type)
        if rule is None or not is_operator(node, node.op_type):
            continue
        sizes = rule(node, [_sizes(value, known) for value in node.inputs])
        if sizes is not None and len(sizes) <= LONGEST:
            known[node.outputs[0]] = sizes
    return known


def _sizes(value: ir.Value | None, known: dict[ir.Value, Sizes]) -> Sizes | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    return constant_integers(value)


def _shape(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    del inputs
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    axes = source.shape.rank()
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", axes)
    sizes: list[int | Symbol] = []
    for axis, size in enumerate(source.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif size.value is not None:
            sizes.append((size.value, -1))
        else:
            sizes.append((source.name or "", axis))
    return tuple(sizes[slice(start, end)])


def _gather(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    data, indices = inputs[0], inputs[1]
    if data is None or indices is None or node.attributes.get_int("axis", 0) not in {0, -1}:
        return None
    places = [index for index in indices if isinstance(index, int) and -len(data) <= index < len(data)]
    return tuple(data[place] for place in places) if len(places) == len(indices) else None


def _slice(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    if len(inputs) < 3:  # before opset 10 the bounds were attributes
        return None
    data, starts, ends = inputs[0], inputs[1], inputs[2]
    steps = inputs[4] if len(inputs) > 4 and node.inputs[4] is not None else (1,)
    bounds = [part[0] for part in (starts, ends, steps) if part is not None and len(part) == 1]
    numbers = [bound for bound in bounds if isinstance(bound, int)]
    return data[slice(*numbers)] if data is not None and len(numbers) == 3 else None


def _concat(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    del node
    parts = [part for part in inputs if part is not None]
    return tuple(size for part in parts for size in part) if len(parts) == len(inputs) else None


def _same(node: ir.Node, inputs: Sequence[Sizes | None]) -> Sizes | None:
    """Reshapes to rank 0 or 1 and casts between integers keep the numbers."""
    output = node.outputs[0]
    if node.op_type == "Cast" and (output.dtype is None or not output.dtype.is_integer()):
        return None
    if output.shape is None or output.shape.rank() > 1:
        return None
    return inputs[0]


_RULES: dict[str, Callable[[ir.Node, Sequence[Sizes | None]], Sizes | None]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "Cast": _same,
    "Concat": _concat,
    "ConstantOfShape": filled,
    "Gather": _gather,
    "Identity": _same,
    "Reshape": _same,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _same,
    "Unsqueeze": _same,
}


def _replace_static(value: ir.Value, sizes: Sizes) -> bool:
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) != len(sizes) or value.is_graph_output() or not value.uses():
        return False
    if value.shape is None or value.dtype is None:
        return False
    array = np.asarray(numbers, dtype=value.dtype.numpy())
    replace_by_constant(value, array.reshape(()) if value.shape.rank() == 0 else array)
    return True


def _replace_reshape(node: ir.Node, known: dict[ir.Value, Sizes]) -> bool:
    """Write the target as integers, 0 for a size equal to the input's in that place and -1 for one other."""
    source, target = node.inputs[0], node.inputs[1]
    if source is None or source.shape is None or target is None:
        return False
    old = constant_integers(target)
    sizes = known.get(target, old)
    if sizes is None or 0 in sizes:
        return False
    numbers = [
        size if isinstance(size, int) else (0 if _is_size_of(source, place, size) else -1)
        for place, size in enumerate(sizes)
    ]
    if numbers.count(-1) == 1 and _is_what_remains(source, numbers):
        numbers[numbers.index(-1)] = 0
    if numbers.count(-1) > 1 or tuple(numbers) == old:
        return False
    node.attributes.pop("allowzero", None)
    replace_constant_input(node, 1, np.asarray(numbers, dtype=np.int64), name=f"{node.outputs[0].name}_shape")
    return True


def _note_expanded(node: ir.Node, known: dict[ir.Value, Sizes]) -> bool:
    """Give what an Expand writes its shape; an axis of which only the value is known that has it stays unknown."""
    source, target, result = node.inputs[0], _sizes(node.inputs[1], known), node.outputs[0]
    if source is None or source.shape is None or target is None:
        return False
    own = [size if isinstance(size, int) else None if size.value is None else (size.value, -1) for size in source.shape]
    sizes = [
        size if isinstance(size, int) else size[0] if size is not None and size[1] == -1 else None
        for size in broadcast(own, target)
    ]
    old = None if result.shape is None else [size if isinstance(size, int) else size.value for size in result.shape]
    if sizes == old or (old is not None and None in sizes):
        return False
    result.shape = ir.Shape(sizes)
    return True


def _is_what_remains(source: ir.Value, numbers: Sequence[int]) -> bool:
    """Tell whether -1 stands for the one dynamic size of the input, in the same place; 0 then keeps its name."""
    sizes, place = dimensions(source) or (), numbers.index(-1)
    if place >= len(sizes) or sizes[place] is not None or 0 in numbers:
        return False
    others = [size for size in sizes if size is not None]
    return len(others) == len(sizes) - 1 and math.prod(others) == -math.prod(numbers) != 0


def _is_size_of(source: ir.Value, axis: int, symbol: Symbol) -> bool:
    if source.shape is None or axis >= source.shape.rank():
        return False
    size = source.shape[axis]
    if isinstance(size, int):
        return False
    return symbol == ((source.name or "", axis) if size.value is None else (size.value, -1))
