"""Compute only the tokens that are selected later.

A vision transformer classifies by its first token: behind the last attention all others are computed for nothing. The
operators there work token by token, so the selection may as well come before them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array, constant_integers, replace_constant_input
from narrowgauge.graph.edits import bypass, graph_of, is_operator, new_node, remove_unused, take_place, unique_name
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.roles import weight_inputs
from narrowgauge.graph.shapes import dimensions, rank
from narrowgauge.passes.positions import sources

_UNLIMITED = np.iinfo(np.int32).max
"""From here on the end of a Slice means the end of the axis (ONNX, Slice: "INT_MAX" where the size is unknown)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What a Gather or Slice takes from the value it reads.

    Attributes:
        node: the Gather or Slice.
        axis: of the value, 0 or more.
        indices: positions along the axis, 0 or more where its size is known, else as they are written.
        drops_axis: whether the result is without the axis.
    """

    node: ir.Node
    axis: int
    indices: tuple[int, ...]
    drops_axis: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Region:
    """Nodes that are to compute only some positions.

    Attributes:
        nodes: each with the axis of its output that shrinks, in the network's order.
        reads: (node, input number) -> axis of the input that shrinks.
    """

    nodes: Mapping[ir.Node, int]
    reads: Mapping[tuple[ir.Node, int], int]


def select_early(model: ir.Model) -> tuple[Refusal, ...]:
    """Move selections of at most half of an axis up to before the products whose other results nobody reads, in place.

    A selection is one or more Gather and Slice, with constant positions along one axis, that alone read a value. What
    makes that value is followed as long as it computes every position by itself (`positions.sources`), is read by
    nothing else, and is no output of the network; there, and at the other inputs of what was followed, the positions
    are selected instead. Nothing is computed twice. Operators before the first product of a path stay as they are:
    they cost little, and may belong to what writes them (a bias, an activation function). So do layers that read the
    same value as other layers, which are not followed: those share its rounding and its scales.

    Values that shrink keep their names and their number of axes. Nothing is refused: a selection that stays is right.
    """
    for value in [value for node in model.graph for value in node.outputs]:
        selections = _selections_of(value)
        if not selections:
            continue
        kept = tuple(sorted({index for selection in selections for index in selection.indices}))
        size = (dimensions(value) or ())[selections[0].axis]
        if size is not None and 2 * len(kept) > size:
            continue
        region = _region(model.graph, value, selections[0].axis)
        if region.nodes:
            _shrink(region, kept)
            for selection in selections:
                _select_from_shrunk(selection, kept)
    remove_unused(model)
    return ()


def _selections_of(value: ir.Value) -> list[Selection]:
    """Return the selections along one axis that alone read a value, [] if anything else does."""
    producer, found = value.producer(), []
    for use in value.uses():
        selection = selection_of(use.node) if use.idx == 0 else None
        if selection is None or producer is None or use.node.graph is not producer.graph:
            return []
        found.append(selection)
    if value.is_graph_output() or len({selection.axis for selection in found}) != 1:
        return []
    # Where the size is unknown, -1 may be any of the others.
    signs = {index >= 0 for selection in found for index in selection.indices}
    return found if len(signs) == 1 else []


def selection_of(node: ir.Node) -> Selection | None:
    """Return which constant positions along one axis a Gather or Slice takes; None for any other node."""
    if is_operator(node, "Gather"):
        return _gathered(node)
    return _sliced(node) if is_operator(node, "Slice") else None


def _gathered(node: ir.Node) -> Selection | None:
    sizes, indices = dimensions(node.inputs[0]), constant_integers(node.inputs[1])
    if not sizes or not indices:
        return None
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    size = sizes[axis]
    if size is not None:
        if not all(-size <= index < size for index in indices):
            return None
        indices = tuple(index % size for index in indices)
    return Selection(node=node, axis=axis, indices=indices, drops_axis=rank(node.inputs[1]) == 0)


def _sliced(node: ir.Node) -> Selection | None:
    """Read a Slice that takes a part along one axis, whose size is known, and all along the others."""
    sizes = dimensions(node.inputs[0])
    starts, ends, axes, steps = (
        constant_integers(node.inputs[number]) if number < len(node.inputs) and node.inputs[number] is not None else ()
        for number in range(1, 5)
    )
    if sizes is None or starts is None or ends is None or axes is None or steps is None:
        return None
    cut: dict[int, tuple[int, ...]] = {}
    whole = axes or range(len(starts))
    for start, end, axis, step in zip(starts, ends, whole, steps or (1,) * len(starts), strict=True):
        size = sizes[axis]
        if size is None:
            if start != 0 or end < _UNLIMITED or step != 1:
                return None
            continue
        taken = tuple(range(*slice(start, end, step).indices(size)))
        if taken != tuple(range(size)):
            cut[axis % len(sizes)] = taken
    if len(cut) != 1:
        return None
    axis, indices = cut.popitem()
    return Selection(node=node, axis=axis, indices=indices, drops_axis=False) if indices else None


def _region(graph: ir.Graph, value: ir.Value, axis: int) -> _Region:
    """Return the nodes before a value that need compute only some positions along one of its axes."""
    left_whole: set[ir.Node] = set()
    while True:
        region = _from_first_products(_grow(graph, value, axis, left_whole))
        parted = {node for node in region.nodes if _is_parted(node, region)}
        if not parted:
            return region
        left_whole |= parted


def _grow(graph: ir.Graph, value: ir.Value, axis: int, left_whole: set[ir.Node]) -> _Region:
    """Take in every node whose output is read only by nodes that were taken in, along the same axis."""
    reads: dict[tuple[ir.Node, int], int] = {(use.node, use.idx): axis for use in value.uses()}
    waiting = {value}
    nodes: dict[ir.Node, int] = {}
    for node in reversed(graph):
        read = [output for output in node.outputs if output.uses() or output.is_graph_output()]
        if len(read) != 1 or read[0] not in waiting or read[0] is not node.outputs[0] or read[0].is_graph_output():
            continue
        axes = {reads.get((use.node, use.idx)) for use in read[0].uses()}
        own = axes.pop()
        found = sources(node, own) if own is not None and not axes and node not in left_whole else None
        if own is None or found is None:
            continue
        nodes[node] = own
        for number, source_axis in found.items():
            reads[node, number] = source_axis
            source = node.inputs[number]
            waiting |= set() if source is None else {source}
    return _Region(nodes=dict(reversed(nodes.items())), reads=reads)


def _from_first_products(region: _Region) -> _Region:
    """Leave out the nodes before which there is no matrix product."""
    nodes: dict[ir.Node, int] = {}
    for node, axis in region.nodes.items():
        follows = any(value.producer() in nodes for _, value in _shrinking(node, region))
        if follows or is_operator(node, "MatMul", "Gemm"):
            nodes[node] = axis
    return _Region(nodes=nodes, reads={use: axis for use, axis in region.reads.items() if use[0] in nodes})


def _shrinking(node: ir.Node, region: _Region) -> Iterator[tuple[int, ir.Value]]:
    """Yield the inputs of a node that shrink, with their numbers."""
    for number, value in enumerate(node.inputs):
        if value is not None and (node, number) in region.reads:
            yield number, value


def _is_parted(node: ir.Node, region: _Region) -> bool:
    """Tell whether a layer would read a selection where other layers read all of the same value."""
    if not weight_inputs(node):
        return False
    return any(
        is_operator(use.node, "MatMul", "Gemm") and weight_inputs(use.node) and use.node not in region.nodes
        for _, value in _shrinking(node, region)
        for use in value.uses()
    )


def _shrink(region: _Region, kept: Sequence[int]) -> None:
    """Let the nodes of a region compute only the positions `kept`, in that order."""
    selected: dict[tuple[ir.Value, int], ir.Value] = {}
    for node, axis in region.nodes.items():
        for number, value in tuple(_shrinking(node, region)):
            own, array = region.reads[node, number], constant_array(value)
            if array is not None:
                replace_constant_input(node, number, np.take(array, kept, axis=own))
            elif value.producer() not in region.nodes:
                if (value, own) not in selected:
                    selected[value, own] = _select(graph_of(node), value, own, kept)
                node.replace_input_with(number, selected[value, own])
        result = node.outputs[0]
        result.shape = _shrunk_shape(result, axis, len(kept))
        if is_operator(node, "Reshape"):
            target = np.array(constant_integers(node.inputs[1]), dtype=np.int64)
            target[axis] = len(kept)
            replace_constant_input(node, 1, target)


def _shrunk_shape(value: ir.Value, axis: int, size: int) -> ir.Shape | None:
    if value.shape is None:
        return None
    return ir.Shape([size if number == axis else each for number, each in enumerate(value.shape)])


def _select(graph: ir.Graph, value: ir.Value, axis: int, kept: Sequence[int]) -> ir.Value:
    """Add a node behind the one that makes a value that takes some positions of it, and keeps the axis."""
    name = unique_name(graph, f"{value.name}_selected")
    if tuple(kept) == tuple(range(kept[0], kept[0] + len(kept))) and kept[0] >= 0:
        bounds = {"starts": kept[0], "ends": kept[-1] + 1, "axes": axis}
        constants = [
            add_constant(graph, f"{name}_{part}", np.array([number], dtype=np.int64)) for part, number in bounds.items()
        ]
        node = new_node("Slice", [value, *constants], name=name)
    else:
        indices = add_constant(graph, f"{name}_indices", np.array(kept, dtype=np.int64))
        node = new_node("Gather", [value, indices], {"axis": axis}, name=name)
    node.outputs[0].type = value.type
    node.outputs[0].shape = _shrunk_shape(value, axis, len(kept))
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _select_from_shrunk(selection: Selection, kept: Sequence[int]) -> None:
    """Let a selection take what it took, now that the value has only the positions `kept`."""
    old, axis = selection.node, selection.axis
    graph, value, result = graph_of(old), old.inputs[0], old.outputs[0]
    positions = [kept.index(index) for index in selection.indices]
    output = unique_name(graph, f"{result.name}_selected")
    if selection.drops_axis and len(kept) == 1:
        axes = add_constant(graph, f"{output}_axes", np.array([axis], dtype=np.int64))
        node = new_node("Squeeze", [value, axes], name=old.name or output, output=output)
    else:
        indices = np.array(positions[0] if selection.drops_axis else positions, dtype=np.int64)
        constant = add_constant(graph, f"{output}_indices", indices)
        node = new_node("Gather", [value, constant], {"axis": axis}, name=old.name or output, output=output)
    graph.insert_before(old, node)
    take_place(node.outputs[0], result)
    if not selection.drops_axis and positions == list(range(len(kept))):
        bypass(node)
