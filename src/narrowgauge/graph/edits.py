"""Edits of a graph that keep the names users know, and the questions such edits begin with."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes


def unique_name(graph: ir.Graph, base: str) -> str:
    """Return `base`, or `base_1`, `base_2`, ... where a value or node of the graph already has the name."""
    taken = set(graph.initializers)
    taken.update(value.name for value in graph.inputs if value.name)
    for node in graph:
        taken.update(value.name for value in node.outputs if value.name)
        if node.name:
            taken.add(node.name)
    return free_name(base, taken)


def free_name(base: str, taken: Container[str]) -> str:
    """Return `base`, or `base_1`, `base_2`, ..., the first that is not taken."""
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def is_operator(node: ir.Node | None, *operators: str) -> bool:
    """Tell whether the node is one of these standard ONNX operators."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in operators


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads the value, once, within the same graph; None if the value is a graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    consumer = next(iter(uses)).node
    producer = value.producer()
    return consumer if producer is None or consumer.graph is producer.graph else None


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that holds the node."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        message = f"the node {node.name!r} is in no graph"
        raise TypeError(message)
    return graph


def new_node(
    operator: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
    output: str | None = None,
    like: ir.Value | None = None,
) -> ir.Node:
    """Build a node of one output that is in no graph yet.

    Args:
        operator: A standard ONNX operator.
        inputs: What it reads.
        attributes: Python values by attribute name.
        name: The node's name.
        output: The output's name; `name` where it is None.
        like: A value whose type and shape the output has.
    """
    node = ir.node(operator, inputs=inputs, attributes=attributes or {}, name=name)
    node.outputs[0].name = output or name
    if like is not None:
        node.outputs[0].type = like.type
        node.outputs[0].shape = like.shape
    return node


def take_place(new: ir.Value, old: ir.Value) -> None:
    """Let `new` stand for `old` everywhere, under the old value's name, and as graph output where that was one.

    For rewrites after which `new` holds what `old` held (a convolution that has absorbed the node behind it).
    The node that made `old` is removed if nothing else of it is read.
    """
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.type = old.type
    new.shape = old.shape
    new.metadata_props.update(old.metadata_props)
    remove_if_unused(old.producer())
    if old.producer() is not None:
        old.name = None
    new.name = name


def bypass(node: ir.Node) -> bool:
    """Remove a node whose first output equals its first input, as `substitute` does it."""
    source = node.inputs[0]
    return source is not None and substitute(node.outputs[0], source)


def substitute(result: ir.Value, source: ir.Value) -> bool:
    """Let all read `source` instead of `result`, a node's output that equals it; return False where names forbid it.

    The source's name survives, except for a graph output, whose name must: then the source takes that name, unless it
    is itself a graph input, a graph output, a constant, or of another graph; nothing is then changed.
    """
    node = result.producer()
    if result.is_graph_output():
        producer = source.producer()
        if producer is None or source.is_graph_output() or node is None or producer.graph is not node.graph:
            return False
        take_place(source, result)
        return True
    result.replace_all_uses_with(source)
    remove_if_unused(node)
    return True


def remove_if_unused(node: ir.Node | None) -> None:
    """Remove the node from its graph if no output of it is read."""
    if node is None or node.graph is None:
        return
    if any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    node.graph.remove(node, safe=True)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node, also those in the bodies of If, Loop and Scan."""
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that no graph output needs."""
    common_passes.RemoveUnusedNodesPass()(model)


def name_everything(model: ir.Model) -> None:
    """Give every value and node a name, unique in the model; names already unique stay."""
    common_passes.NameFixPass()(model)
