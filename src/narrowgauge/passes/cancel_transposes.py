"""Remove transposes that only move data into another layout and back.

Networks converted from TensorFlow surround each convolution with NHWC -> NCHW and NCHW -> NHWC. Two facts remove
them: Transpose after Transpose is one Transpose, and an operator such as Relu, Add or Concat computes the same in
either layout. So connected operators of that kind are taken together as a region and moved into the other layout,
wherever this saves more transposes at the region's border than it costs. What then still parts a convolution from its
bias, its activation function, or the scaling of the network's input, is moved out of between.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_tensor
from narrowgauge.graph.edits import bypass, graph_of, is_operator, new_node, remove_unused, sole_consumer, unique_name
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank
from narrowgauge.passes.affine import affine_of
from narrowgauge.passes.layouts import UNARY, drops_axes_in_order, follow_reduction, layout_of

_CONVOLUTIONS = ("Conv", "ConvTranspose")

_MAXIMAL_REGION = 4096
"""Larger regions are given up: growing one takes time proportional to its size, once for each transpose in it."""


def cancel_transposes(model: ir.Model) -> tuple[Refusal, ...]:
    """Merge adjacent transposes and move regions between transposes into the other layout, in place.

    Values inside a moved region keep their names and hold their numbers in the other order of axes; the outputs of the
    network keep theirs. Nothing is refused: a transpose that stays is right.
    """
    merge_transposes(model)
    changed = True
    while changed:
        changed = False
        for transpose in tuple(model.graph):
            if transpose.graph is not None and is_operator(transpose, "Transpose") and _move_beside(transpose):
                remove_unused(model)
                changed = True
        merge_transposes(model)
    for transpose in tuple(model.graph):
        if transpose.graph is not None and is_operator(transpose, "Transpose"):
            _move_behind_elementwise(transpose)
            _move_to_input(transpose)
    remove_unused(model)
    return ()


def merge_transposes(model: ir.Model) -> None:
    """Let a Transpose that reads a Transpose do both, and remove it if together they move nothing.

    A reduction that drops its axes and leaves the others in order reads what the Transpose before it reads.
    """
    for node in tuple(model.graph):
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        before = None if producer is None else order_of(producer)
        if node.graph is None or before is None or producer is None:
            continue
        order = order_of(node)
        if order is None:
            if follow_reduction(node, before):
                node.replace_input_with(0, producer.inputs[0])
            continue
        joined = [before[axis] for axis in order]
        node.replace_input_with(0, producer.inputs[0])
        node.attributes["perm"] = ir.AttrInt64s("perm", joined)
        if joined == sorted(joined):
            bypass(node)
    remove_unused(model)


def order_of(node: ir.Node) -> tuple[int, ...] | None:
    """Return the order of axes of a Transpose, None for another node or an unknown rank."""
    if not is_operator(node, "Transpose"):
        return None
    order = node.attributes.get_ints("perm")
    if order is not None:
        return tuple(order)
    axes = rank(node.inputs[0])
    return None if axes is None else tuple(reversed(range(axes)))


@dataclass(kw_only=True, slots=True)
class _Region:
    """Nodes that are to work in another layout.

    Attributes:
        order: Old value = Transpose(new value, perm=order).
        nodes: The nodes, each with the numbers of the inputs that are reordered, in the order found.
        inputs: The reordered values that no node of the region makes.
    """

    order: tuple[int, ...]
    nodes: dict[ir.Node, Sequence[int]] = field(default_factory=dict)
    inputs: dict[ir.Value, None] = field(default_factory=dict)

    def outputs(self) -> Iterator[ir.Value]:
        """Yield the reordered values that the region's nodes make."""
        for node in self.nodes:
            yield from node.outputs

    def reads(self, use_node: ir.Node, index: int) -> bool:
        """Tell whether a use is a reordered input of a node of the region."""
        return index in self.nodes.get(use_node, ())


def _move_beside(transpose: ir.Node) -> bool:
    """Move the best region that begins behind, or ends before, a Transpose; False if none saves any."""
    order = order_of(transpose)
    if order is None:
        return False
    source, result = transpose.inputs[0], transpose.outputs[0]
    if source is None:
        return False
    backwards = tuple(int(axis) for axis in np.argsort(order))
    for seed, seed_order in ((result, order), (source, backwards)):
        for grow in (_grow_everywhere, _grow_down):
            region = grow(seed, seed_order)
            if region.nodes and _saved(region) > 0:
                _move(region)
                return True
    return False


def _move_behind_elementwise(transpose: ir.Node) -> None:
    """Let what works element by element behind a convolution's output come before the Transpose of that output."""
    source, order = transpose.inputs[0], order_of(transpose)
    if source is None or order is None or not is_operator(source.producer(), *_CONVOLUTIONS):
        return
    value: ir.Value | None = transpose.outputs[0]
    while value is not None:
        node = sole_consumer(value)
        tensors = None if node is None else _elementwise(node, value, order)
        if node is None or tensors is None:
            return
        _move(_Region(order=order, nodes={node: tensors}, inputs={value: None}))
        use = next(iter(node.outputs[0].uses()), None)
        value = None if use is None or order_of(use.node) != order else use.node.outputs[0]


def _move_to_input(transpose: ir.Node) -> None:
    """Let the Transpose before a convolution come before what works element by element on an input of the network."""
    order, result = order_of(transpose), transpose.outputs[0]
    if order is None or not any(is_operator(use.node, *_CONVOLUTIONS, "Pad") for use in result.uses()):
        return
    backwards = tuple(int(axis) for axis in np.argsort(order))
    chain: list[tuple[ir.Node, Sequence[int]]] = []
    value = transpose.inputs[0]
    while value is not None and value.producer() is not None and sole_consumer(value) is not None:
        node = value.producer()
        found = None if node is None else layout_of(node, len(backwards))
        if node is None or found is None or not found[1]:
            return
        before = node.inputs[found[1][0]]
        tensors = None if before is None else _elementwise(node, before, backwards)
        if before is None or tensors is None:
            return
        chain.append((node, tensors))
        value = before
    if value is None or not value.is_graph_input() or not chain or result.is_graph_output():
        return
    for node, tensors in chain:
        source = node.inputs[tensors[0]]
        if source is not None:
            _move(_Region(order=backwards, nodes={node: tensors}, inputs={source: None}))


def _elementwise(node: ir.Node, value: ir.Value, order: Sequence[int]) -> Sequence[int] | None:
    """Return the inputs of a node that are a value, if it works on that value alone and element by element."""
    found = layout_of(node, len(order))
    if found is None or not (is_operator(node, *UNARY) or affine_of(node) is not None):
        return None
    return found[1] if found[1] and all(node.inputs[index] is value for index in found[1]) else None


def _grow_everywhere(seed: ir.Value, order: tuple[int, ...]) -> _Region:
    """Take in every operator that can follow and is connected to the value."""
    return _grow(seed, order, lambda node, tensors, region: True)


def _grow_down(seed: ir.Value, order: tuple[int, ...]) -> _Region:
    """Take in only operators whose operands are all in the new layout already, or come from a like Transpose."""

    def is_free(node: ir.Node, tensors: Sequence[int], region: _Region) -> bool:
        for index in tensors:
            value = node.inputs[index]
            producer = None if value is None else value.producer()
            if value is seed or producer in region.nodes or (producer is not None and order_of(producer) == order):
                continue
            return False
        return True

    return _grow(seed, order, is_free)


def _grow(seed: ir.Value, order: tuple[int, ...], admits: Callable[[ir.Node, Sequence[int], _Region], bool]) -> _Region:
    region = _Region(order=order)
    seen: set[ir.Value] = set()
    waiting = [seed]
    graph = _graph_holding(seed)
    while waiting and len(region.nodes) < _MAXIMAL_REGION:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        neighbours = [use.node for use in value.uses()]
        producer = value.producer()
        for node in [*neighbours, *([producer] if producer is not None else [])]:
            if node in region.nodes or node.graph is not graph:
                continue
            found = layout_of(node, len(order))
            if found is None or not admits(node, found[1], region):
                continue
            region.nodes[node] = found[1]
            waiting.extend(node.outputs)
            operands = [node.inputs[index] for index in found[1]]
            waiting.extend(value for value in operands if value is not None and constant_tensor(value) is None)
    made = set(region.outputs())
    for node, tensors in region.nodes.items():
        for index in tensors:
            operand = node.inputs[index]
            if operand is not None and operand not in made:
                region.inputs[operand] = None
    return region


def _graph_holding(value: ir.Value) -> object:
    producer = value.producer()
    return value.graph if producer is None else producer.graph


def _saved(region: _Region) -> int:
    """Return how many transposes moving the region saves at its border, less those it costs."""
    saved = 0
    for value in region.inputs:
        producer = value.producer()
        if producer is not None and order_of(producer) == region.order:
            saved += all(region.reads(*use) for use in value.uses()) and not value.is_graph_output()
        elif producer is None or order_of(producer) is None:
            saved -= constant_tensor(value) is None
    for value in region.outputs():
        needs_old = value.is_graph_output()
        for node, index in value.uses():
            order = order_of(node)
            if region.reads(node, index) or drops_axes_in_order(node, region.order):
                continue
            if order is None:
                needs_old = True
            else:
                saved += _is_identity(_joined(region.order, order))
        saved -= needs_old
    return saved


def _joined(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the order of one Transpose that does what two in a row do."""
    return [first[axis] for axis in second]


def _is_identity(order: Sequence[int]) -> bool:
    return list(order) == list(range(len(order)))


def _move(region: _Region) -> None:
    """Rewrite the region to the new layout."""
    backwards = [int(axis) for axis in np.argsort(region.order)]
    borders = [(value, [use for use in value.uses() if not region.reads(*use)]) for value in region.outputs()]
    for value in region.inputs:
        new = _in_new_layout(value, region.order, backwards)
        for node, index in value.uses():
            if region.reads(node, index):
                node.replace_input_with(index, new)
    for node in region.nodes:
        found = layout_of(node, len(region.order))
        if found is not None:
            found[0].follow(node, region.order)
    for value, uses in borders:
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[axis] for axis in backwards])
        _serve_outside(value, uses, region.order)


def _in_new_layout(value: ir.Value, order: Sequence[int], backwards: Sequence[int]) -> ir.Value:
    """Return what holds a value's numbers in the new layout: what a like Transpose reads, or a new Transpose."""
    producer = value.producer()
    before = None if producer is None else order_of(producer)
    if producer is not None and before is not None and producer.inputs[0] is not None:
        joined = _joined(before, backwards)
        if _is_identity(joined):
            return producer.inputs[0]
        return _transpose_of(producer.inputs[0], joined, like=value, place=producer)
    del order
    return _transpose_of(value, backwards, like=value, place=producer)


def _transpose_of(value: ir.Value, order: Sequence[int], *, like: ir.Value, place: ir.Node | None) -> ir.Value:
    """Insert a Transpose behind `place` (None: at the beginning)."""
    graph = _main_graph(value, place)
    name = unique_name(graph, f"{like.name}_transposed")
    node = new_node("Transpose", [value], {"perm": list(order)}, name=name)
    node.outputs[0].type = value.type
    if value.shape is not None:
        node.outputs[0].shape = ir.Shape([value.shape[axis] for axis in order])
    if place is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(place, node)
    return node.outputs[0]


def _main_graph(value: ir.Value, place: ir.Node | None) -> ir.Graph:
    if place is not None:
        return graph_of(place)
    if value.graph is None:
        message = f"the value {value.name!r} is in no graph"
        raise ValueError(message)
    return value.graph


def _serve_outside(value: ir.Value, uses: Sequence[tuple[ir.Node, int]], order: Sequence[int]) -> None:
    """Give the readers outside the region the old layout back, each in the cheapest way."""
    others = []
    is_output = value.is_graph_output()  # asked now: removing a transpose may hand its own role as output to the value
    for node, index in uses:
        following = order_of(node)
        if following is not None:
            joined = _joined(order, following)
            node.attributes["perm"] = ir.AttrInt64s("perm", joined)
            if _is_identity(joined):
                bypass(node)
        elif not follow_reduction(node, order):
            others.append((node, index))
    if not others and not is_output:
        return
    producer, name = value.producer(), value.name
    old = _transpose_of(value, order, like=value, place=producer)
    for node, index in others:
        node.replace_input_with(index, old)
    if is_output:
        graph = _main_graph(value, producer)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = old
        value.name, old.name = old.name, name
