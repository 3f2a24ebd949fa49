"""Write a sequence of parts, each taken by a constant number, as a Split."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_integers, constant_tensor
from narrowgauge.graph.edits import graph_of, is_operator, remove_unused, take_place, unique_name
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions


def split_sequences(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace SplitToSequence of which only SequenceAt of constant numbers read, by Split, in place.

    torch.onnx writes these for every torch.split and torch.unbind; few engines have sequences. The values keep their
    names. Nothing is refused: a sequence that stays is right.
    """
    for node in tuple(model.graph):
        if is_operator(node, "SplitToSequence"):
            _replace(node)
    remove_unused(model)
    return ()


def _replace(node: ir.Node) -> None:
    sequence, sizes = node.outputs[0], _part_sizes(node)
    readers = [use.node for use in sequence.uses()]
    if sizes is None or sequence.is_graph_output() or not all(is_operator(reader, "SequenceAt") for reader in readers):
        return
    numbers = [number for reader in readers for number in constant_integers(reader.inputs[1]) or ()]
    if len(numbers) != len(readers) or not all(-len(sizes) <= number < len(sizes) for number in numbers):
        return
    graph, base, source = graph_of(node), sequence.name or "split", node.inputs[0]
    axis = node.attributes.get_int("axis", 0)
    parts = add_constant(graph, f"{base}_sizes", np.array(sizes, dtype=np.int64))
    split = ir.node("Split", [source, parts], {"axis": axis}, num_outputs=len(sizes), name=node.name)
    split.metadata_props.update(node.metadata_props)
    for place, part in enumerate(split.outputs):
        part.name = unique_name(graph, f"{base}_part_{place}")
        part.type = None if source is None else source.type
    graph.insert_before(node, split)
    drops = len(node.inputs) < 2 and not node.attributes.get_int("keepdims", 1)
    for reader, number in zip(readers, numbers, strict=True):
        part = split.outputs[number]
        last = _without_axis(graph, node, part, axis) if drops else part
        _stand_for(last, reader.outputs[0])
    graph.remove(node, safe=True)


def _part_sizes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the sizes of the parts, None where they depend on the input."""
    shape, axis = dimensions(node.inputs[0]), node.attributes.get_int("axis", 0)
    size = None if shape is None else shape[axis]
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None if size is None else (1,) * size
    given, tensor = constant_integers(node.inputs[1]), constant_tensor(node.inputs[1])
    if not given or tensor is None:
        return None
    if tensor.shape.rank() == 1:
        return given
    if size is None or given[0] < 1:
        return None
    whole, rest = divmod(size, given[0])
    return (given[0],) * whole + ((rest,) if rest else ())


def _without_axis(graph: ir.Graph, place: ir.Node, part: ir.Value, axis: int) -> ir.Value:
    name = unique_name(graph, f"{part.name}_squeezed")
    axes = add_constant(graph, f"{name}_axes", np.array([axis], dtype=np.int64))
    squeeze = ir.node("Squeeze", [part, axes], name=name)
    squeeze.outputs[0].name, squeeze.outputs[0].type = name, part.type
    graph.insert_before(place, squeeze)
    return squeeze.outputs[0]


def _stand_for(part: ir.Value, element: ir.Value) -> None:
    """Let a part take the place of a sequence's element; of an element that is read twice, only once the name."""
    producer = element.producer()
    if part.uses() or part.is_graph_output():
        element.replace_all_uses_with(part, replace_graph_outputs=True)
        if producer is not None:
            graph_of(producer).remove(producer, safe=True)
        return
    take_place(part, element)
